//! Who Postgres runs as: it refuses to run as root.

use std::{fs, io, os::unix, os::unix::process::CommandExt as _, path::Path, process::Command};

use anyhow::{Context as _, bail};

/// The account that root hands Postgres to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Account {
    uid: u32,
    gid: u32,
}

impl Account {
    /// `None` unless this process is root; then the user `postgres` or else `nobody`.
    pub(super) fn for_postgres() -> anyhow::Result<Option<Self>> {
        if id(&["-u"])? != Some(0) {
            return Ok(None);
        }
        for name in ["postgres", "nobody"] {
            if let (Some(uid), Some(gid)) = (id(&["-u", name])?, id(&["-g", name])?) {
                return Ok(Some(Self { uid, gid }));
            }
        }
        bail!("Postgres refuses to run as root, and there is no user postgres or nobody to run it")
    }

    /// Makes `command` run as this account, with no other group.
    pub(super) fn apply(self, command: &mut Command) {
        command.uid(self.uid).gid(self.gid);
    }

    /// Makes this account the owner of `path`.
    pub(super) fn own(self, path: &Path) -> io::Result<()> {
        unix::fs::chown(path, Some(self.uid), Some(self.gid))
    }

    /// Whether this account can reach and enter the folder.
    pub(super) fn can_enter(self, dir: &Path) -> anyhow::Result<bool> {
        let mut test = Command::new("test");
        test.arg("-x").arg(dir).current_dir("/");
        self.apply(&mut test);
        Ok(test.status().context("running test")?.success())
    }
}

/// Creates a folder that only `account`, or else this process's own user, may enter.
pub(super) fn create_private_dir(path: &Path, account: Option<Account>) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;

    fs::DirBuilder::new().mode(0o700).create(path)?;
    account.map_or(Ok(()), |account| account.own(path))
}

/// The number that `id` prints; `None` for a name it does not know.
fn id(arguments: &[&str]) -> anyhow::Result<Option<u32>> {
    let output = Command::new("id").args(arguments).output().context("running id")?;
    Ok(std::str::from_utf8(&output.stdout)?.trim().parse().ok())
}
