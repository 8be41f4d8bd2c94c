//! The Delivery Service of this chat: a folder with a log for each group. A log is a folder with a
//! file for each entry, named by its position. Of all who append at one position, one succeeds:
//! that puts Commits into an order (RFC 9750, section 5.2).

use std::{
    fs::{self, File},
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use crate::fault;

/// A message, and the Welcome that goes with it when it is a Commit: whoever is added by a Commit
/// that was accepted has the invitation, too.
#[derive(Serialize, Deserialize, PartialEq)]
pub(crate) struct Entry {
    pub(crate) message: Vec<u8>,
    pub(crate) welcome: Option<Welcome>,
}

#[derive(Serialize, Deserialize, PartialEq)]
pub(crate) struct Welcome {
    pub(crate) to: Vec<String>,
    pub(crate) message: Vec<u8>,
}

pub(crate) struct Delivery {
    folder: PathBuf,
}

impl Delivery {
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let folder = folder.join("groups");
        fs::create_dir_all(&folder)?;
        Ok(Self { folder })
    }

    pub(crate) fn groups(&self) -> Result<Vec<String>> {
        let names = fs::read_dir(&self.folder)?
            .map(|found| Ok(found?.file_name().into_string().ok()))
            .filter_map(Result::transpose);
        names.collect()
    }

    pub(crate) fn read(&self, group: &str, position: u64) -> Result<Option<Entry>> {
        match fs::read(self.path(group, position)) {
            Ok(entry) => Ok(Some(serde_json::from_slice(&entry)?)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Appends an entry at its position, or answers the one that stands there. An entry that is
    /// appended again, as after a crash, was appended.
    pub(crate) fn append(
        &self,
        group: &str,
        position: u64,
        entry: &Entry,
    ) -> Result<Option<Entry>> {
        let log = self.folder.join(group);
        fs::create_dir_all(&log)?;
        let mut file = NamedTempFile::new_in(&log)?;
        file.write_all(&serde_json::to_vec(entry)?)?;
        file.as_file().sync_all()?;
        fault::step();
        match file.persist_noclobber(self.path(group, position)) {
            Ok(_) => {
                File::open(&log)?.sync_all()?;
                fault::step();
                Ok(None)
            }
            Err(error) if error.error.kind() == ErrorKind::AlreadyExists => {
                Ok(self.read(group, position)?.filter(|other| other != entry))
            }
            Err(error) => Err(error.error.into()),
        }
    }

    fn path(&self, group: &str, position: u64) -> PathBuf {
        self.folder.join(group).join(format!("{position:08}"))
    }
}
