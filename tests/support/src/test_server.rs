//! The Postgres of a test run.

use std::{
    env,
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use keypool_service::dev::{EmbeddedPostgres, PostgresOptions};
use tempfile::TempDir;

/// The mode of folders above a server's own: when root runs the tests, another user runs Postgres.
const PASSABLE: u32 = 0o711;

/// A Postgres for one test run: many connections, and quick because a power failure may take it.
#[derive(Debug)]
pub struct TestServer {
    postgres: EmbeddedPostgres,
    dir: TempDir,
}

impl TestServer {
    /// Starts the server in a temporary folder, and removes the folders that earlier runs left
    /// because they were killed.
    ///
    /// # Errors
    /// As [`EmbeddedPostgres::start`]; or the temporary folder cannot be written.
    pub async fn start() -> anyhow::Result<Self> {
        // Held until the server has its own lock, so that nobody takes its folder for a leftover.
        let servers = servers_dir()?;
        let in_turn = servers.clone();
        let _starting = tokio::task::spawn_blocking(move || clear_leftovers(&in_turn)).await??;
        let dir = tempfile::Builder::new()
            .permissions(Permissions::from_mode(PASSABLE))
            .tempdir_in(servers)?;
        let options = PostgresOptions::default()
            .set("fsync", "off")
            .set("synchronous_commit", "off")
            .set("full_page_writes", "off")
            .set("max_connections", "200");
        let postgres = EmbeddedPostgres::start(dir.path(), options).await?;
        Ok(Self { postgres, dir })
    }

    /// The URL of the superuser's database.
    pub fn url(&self) -> &str {
        self.postgres.url()
    }

    /// Stops the server and removes its folder.
    ///
    /// # Errors
    /// As [`EmbeddedPostgres::stop`].
    pub async fn stop(self) -> anyhow::Result<()> {
        self.postgres.stop().await?;
        Ok(remove_server(&self.dir.keep())?)
    }
}

/// The folder of this user's test servers. It has a well-known name in a folder that everyone may
/// write to, so it must be this user's own.
fn servers_dir() -> anyhow::Result<PathBuf> {
    let user = fs::metadata("/proc/self")?.uid();
    let dir = env::temp_dir().join(format!("keypool-tests-{user}"));
    match DirBuilder::new().mode(PASSABLE).create(&dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
        _ => {}
    }
    let found = fs::symlink_metadata(&dir)?;
    anyhow::ensure!(found.is_dir() && found.uid() == user, "{} is someone else's", dir.display());
    Ok(dir)
}

/// Removes the folders of servers that run no more. Returns the lock that keeps others from
/// starting meanwhile.
fn clear_leftovers(servers: &Path) -> anyhow::Result<File> {
    let starting = File::create(servers.join("starting.lock"))?;
    starting.lock()?;
    for entry in fs::read_dir(servers)?.flatten() {
        let lock = entry.path().join("postgres.lock");
        if entry.path().is_dir() && !File::open(lock).is_ok_and(|lock| lock.try_lock().is_err()) {
            remove_server(&entry.path())?;
        }
    }
    Ok(starting)
}

/// Removes the folder of a server, and the database it links to where that lies elsewhere.
fn remove_server(dir: &Path) -> io::Result<()> {
    if let Ok(database) = fs::read_link(dir.join("postgres")) {
        fs::remove_dir_all(database).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
    }
    fs::remove_dir_all(dir)
}
