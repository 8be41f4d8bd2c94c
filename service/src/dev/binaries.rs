//! Where Postgres's programs are.

use std::{
    cmp::Reverse,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, anyhow, bail};

use super::account::Account;

/// The programs of one Postgres installation, and who runs them.
#[derive(Debug, Clone)]
pub(super) struct Binaries {
    dir: PathBuf,
    major: u32,
    account: Option<Account>,
}

impl Binaries {
    /// Finds an installation whose programs `account` can run: `$PG_BIN`, or else the first of
    /// the `PATH`, `/usr/lib/postgresql` (newest first) and what `script/setup` downloaded.
    ///
    /// # Errors
    /// None is found, or none of the major version `wanted`. A `$PG_BIN` that does not serve is
    /// an error too: it was asked for.
    pub(super) fn find(account: Option<Account>, wanted: Option<u32>) -> anyhow::Result<Self> {
        let chosen = env::var_os("PG_BIN").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let mut found = Vec::new();
        for dir in chosen.clone().map_or_else(usual_dirs, |dir| vec![dir]) {
            match Self::at(&dir, account) {
                Ok(binaries) if wanted.is_none_or(|wanted| wanted == binaries.major) => {
                    return Ok(binaries);
                }
                Ok(binaries) => found.push(format!("{} in {}", binaries.major, dir.display())),
                Err(error) if chosen.is_some() => return Err(error.context("PG_BIN is set")),
                Err(_) => {}
            }
        }
        match wanted {
            Some(wanted) if !found.is_empty() => bail!(
                "the data folder was made by PostgreSQL {wanted}, but there is only PostgreSQL \
                 {}: install {wanted}, or remove the data folder to start anew",
                found.join(", ")
            ),
            _ => bail!(
                "no PostgreSQL server was found in $PG_BIN, the PATH, /usr/lib/postgresql or the \
                 download cache: run script/setup, or install one (Debian and Ubuntu: \
                 apt-get install postgresql)"
            ),
        }
    }

    /// The installation in `dir`, if its programs start at all.
    fn at(dir: &Path, account: Option<Account>) -> anyhow::Result<Self> {
        // Postgres finds its share folder from its own path, so symlinks are resolved here.
        let dir = dir.canonicalize().with_context(|| dir.display().to_string())?;
        let unversioned = Self { dir, major: 0, account };
        unversioned.version("initdb")?;
        Ok(Self { major: unversioned.version("postgres")?, ..unversioned })
    }

    fn version(&self, program: &str) -> anyhow::Result<u32> {
        let path = self.dir.join(program);
        let output = self
            .command(program)
            .arg("--version")
            .output()
            .with_context(|| format!("running {}", path.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        major_version(&text).ok_or_else(|| {
            let problem = String::from_utf8_lossy(&output.stderr);
            anyhow!("{} does not run: {}", path.display(), problem.trim())
        })
    }

    /// The major version, such as 18.
    pub(super) fn major(&self) -> u32 {
        self.major
    }

    /// A command that runs one of the programs as the account.
    pub(super) fn command(&self, program: &str) -> Command {
        self.prepare(Command::new(self.dir.join(program)))
    }

    /// The same, under a program that stands before it, such as `setpriv`.
    pub(super) fn command_under(&self, outer: &[&str], program: &str) -> Command {
        let Some((first, rest)) = outer.split_first() else { return self.command(program) };
        let mut command = Command::new(first);
        command.args(rest).arg(self.dir.join(program));
        self.prepare(command)
    }

    fn prepare(&self, mut command: Command) -> Command {
        // The account may not be able to enter this process's own working directory.
        command.current_dir("/").env("LC_ALL", "C");
        if let Some(account) = self.account {
            account.apply(&mut command);
        }
        command
    }
}

/// The folders where programs may be, best first.
fn usual_dirs() -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> =
        env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default();
    dirs.extend(versioned_dirs(Path::new("/usr/lib/postgresql")));
    let home_cache = env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()).map_or_else(
        || env::home_dir().map(|home| home.join(".cache")),
        |dir| Some(PathBuf::from(dir)),
    );
    // Root's downloads lie where the account that runs Postgres can read them.
    for cache in [Some(PathBuf::from("/var/cache")), home_cache].into_iter().flatten() {
        dirs.push(cache.join("keypool/postgres/bin"));
    }
    dirs
}

/// `ROOT/<version>/bin`, newest first.
fn versioned_dirs(root: &Path) -> Vec<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir(root)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
        .collect();
    versions.sort_by_key(|(version, _)| Reverse(*version));
    versions.into_iter().map(|(_, path)| path.join("bin")).collect()
}

/// The major version in the output of `postgres --version`: "postgres (PostgreSQL) 18.4".
fn major_version(output: &str) -> Option<u32> {
    let (_, version) = output.split_once("(PostgreSQL) ")?;
    version.split(|character: char| !character.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_from_every_packagers_output() {
        assert_eq!(
            major_version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"),
            Some(15)
        );
        assert_eq!(major_version("initdb (PostgreSQL) 18.4\n"), Some(18));
        assert_eq!(major_version("postgres (PostgreSQL) 19devel\n"), Some(19));
        assert_eq!(major_version("postgres: error while loading shared libraries"), None);
    }

    #[test]
    fn newer_versions_come_first() {
        let root = tempfile::tempdir().unwrap();
        for name in ["9", "18", "15", "common"] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        let found = versioned_dirs(root.path());
        let expected = ["18", "15", "9"].map(|version| root.path().join(version).join("bin"));
        assert_eq!(found, expected);
    }
}
