//! A Postgres that is killed, started again, followed by a standby, and replaced by it.

use std::{
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use keypool_service::{
    dev::{EmbeddedPostgres, PostgresOptions},
    store::MIGRATOR,
};
use keypool_testing::{proxy::Target, server::signal};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, PgConnection,
    postgres::PgConnectOptions,
};
use tokio::time::timeout;

/// The database of the service, and its role: one that may do what serving takes and no more.
const NAME: &str = "keypool";
const ROLE: &str = "keypool_serve";
const POLL: Duration = Duration::from_millis(20);
/// How long a server that crashed may take to recover by itself.
const RECOVERS_WITHIN: Duration = Duration::from_secs(20);

/// A server on a folder of its own.
#[derive(Debug)]
pub struct Database {
    folder: PathBuf,
    settings: Vec<(String, String)>,
    server: Option<EmbeddedPostgres>,
    url: String,
}

impl Database {
    /// Starts a server on an empty folder, durable as any other, and makes the service's tables.
    ///
    /// # Errors
    /// When it cannot.
    pub async fn create(folder: &Path, settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let settings = settings.iter().map(|&(n, v)| (n.to_owned(), v.to_owned())).collect();
        let mut database =
            Self { folder: folder.to_owned(), settings, server: None, url: String::new() };
        database.start().await?;
        let mut connection = PgConnection::connect(&database.url).await?;
        connection.execute(AssertSqlSafe(format!("CREATE DATABASE {NAME}"))).await?;
        connection.close().await?;
        let mut connection = database.connect().await?;
        MIGRATOR.run(&mut connection).await?;
        let role = format!("CREATE ROLE {ROLE} LOGIN IN ROLE keypool_service");
        connection.execute(AssertSqlSafe(role)).await?;
        connection.close().await?;
        Ok(database)
    }

    /// Starts it, after a crash too.
    ///
    /// # Errors
    /// When it cannot, which a full disk is a reason for.
    pub async fn start(&mut self) -> anyhow::Result<()> {
        self.server = None; // joins what has ended, and gives the folder's lock back
        let mut options = PostgresOptions::default();
        for (name, value) in &self.settings {
            options = options.set(name, value);
        }
        let server = EmbeddedPostgres::start(&self.folder, options).await?;
        self.url = server.url().to_owned();
        self.server = Some(server);
        Ok(())
    }

    /// Whether the server runs.
    pub fn is_running(&self) -> bool {
        self.postmaster().is_ok_and(|pid| Path::new(&format!("/proc/{pid}")).exists())
    }

    /// Whether it answers, once it has recovered if it has to.
    pub async fn is_reachable(&self) -> bool {
        let reach = async {
            while self.is_running() {
                if self.run("SELECT 1").await.is_ok() {
                    return true;
                }
                tokio::time::sleep(POLL).await;
            }
            false
        };
        timeout(RECOVERS_WITHIN, reach).await.unwrap_or_default()
    }

    /// Ends it without a word, as `kill -9` does; or, at once, as an immediate shutdown does.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn kill(&mut self, by: &str) -> anyhow::Result<()> {
        signal(self.postmaster()?, by);
        let server = self.server.take();
        tokio::task::spawn_blocking(move || drop(server)).await?;
        Ok(())
    }

    /// The URL for a service on this machine.
    ///
    /// # Errors
    /// When there was no server yet.
    pub fn url(&self) -> anyhow::Result<String> {
        Ok(self.options()?.username(ROLE).to_url_lossy().to_string())
    }

    /// The URL of the role that migrates.
    ///
    /// # Errors
    /// When there was no server yet.
    pub fn owner_url(&self) -> anyhow::Result<String> {
        Ok(self.options()?.to_url_lossy().to_string())
    }

    /// The URL for a service that goes through a proxy at `address`.
    pub fn url_through(address: std::net::SocketAddr) -> String {
        format!("postgres://{ROLE}:unused@{address}/{NAME}?sslmode=disable")
    }

    /// The socket, for a proxy.
    pub fn target(&self) -> anyhow::Result<Target> {
        let options = self.options()?;
        let folder = options.get_socket().context("a socket")?;
        Ok(Target::Unix(folder.join(format!(".s.PGSQL.{}", options.get_port()))))
    }

    /// A connection of one's own.
    ///
    /// # Errors
    /// When there is none.
    pub async fn connect(&self) -> anyhow::Result<PgConnection> {
        Ok(self.options()?.connect().await?)
    }

    /// Runs one statement.
    ///
    /// # Errors
    /// When it fails.
    pub async fn run(&self, statement: &str) -> anyhow::Result<()> {
        let mut connection = self.connect().await?;
        connection.execute(AssertSqlSafe(statement.to_owned())).await?;
        Ok(connection.close().await?)
    }

    /// Returns once a query is true.
    ///
    /// # Errors
    /// When it fails.
    pub async fn until(&self, query: &str) -> anyhow::Result<()> {
        let mut connection = self.connect().await?;
        loop {
            let query = sqlx::query_scalar(AssertSqlSafe(query.to_owned()));
            if query.fetch_one(&mut connection).await? {
                return Ok(connection.close().await?);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// A standby on an empty folder, which streams what this one does. When it has caught up, this
    /// one answers no commit before the standby has it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn standby(&self, folder: &Path) -> anyhow::Result<Self> {
        let mut standby = Self {
            folder: folder.to_owned(),
            settings: self.settings.clone(),
            server: None,
            url: String::new(),
        };
        self.copy_to(folder, true).await?;
        standby.start().await?;
        self.until("SELECT EXISTS (SELECT FROM pg_stat_replication WHERE state = 'streaming')")
            .await?;
        self.run("ALTER SYSTEM SET synchronous_standby_names = '*'").await?;
        self.run("SELECT pg_reload_conf()").await?;
        self.until(
            "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE sync_state = 'sync')
                AND current_setting('synchronous_standby_names') = '*'",
        )
        .await?;
        Ok(standby)
    }

    /// Makes a standby the primary, which nobody follows.
    ///
    /// # Errors
    /// When it cannot.
    pub async fn promote(&self) -> anyhow::Result<()> {
        self.run("SELECT pg_promote()").await?;
        self.until("SELECT NOT pg_is_in_recovery()").await
    }

    /// A base backup of it in a folder.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn copy_to(&self, folder: &Path, standby: bool) -> anyhow::Result<()> {
        let cluster = self.cluster()?;
        let owner = fs::metadata(&cluster)?;
        fs::create_dir_all(folder)?;
        let socket = self.options()?.get_socket().context("a socket")?.to_owned();
        let target = folder.join("postgres");
        let mut backup = tool("pg_basebackup")?;
        backup.args(["--username=postgres", "--checkpoint=fast", "--wal-method=stream"]);
        backup.arg("--host").arg(socket).arg("--pgdata").arg(&target);
        if standby {
            backup.arg("--write-recovery-conf");
        }
        let output = tokio::task::spawn_blocking(move || backup.output()).await??;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "pg_basebackup: {said}");
        // The copied one's socket lies in its folder, and the lock on it is not the copy's.
        for entry in fs::read_dir(&target)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(".s.PGSQL.") {
                fs::remove_file(entry.path())?;
            }
        }
        // What the copied one was told does not hold for this one.
        let told = fs::read_to_string(target.join("postgresql.auto.conf"))?;
        let kept: String = told
            .lines()
            .filter(|line| !line.starts_with("synchronous_standby_names"))
            .map(|line| format!("{line}\n"))
            .collect();
        fs::write(target.join("postgresql.auto.conf"), kept)?;
        own(
            &target,
            std::os::unix::fs::MetadataExt::uid(&owner),
            std::os::unix::fs::MetadataExt::gid(&owner),
        )?;
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o711))?;
        Ok(())
    }

    /// Runs a server on a folder that [`Database::copy_to`] filled.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn restore(&self, folder: &Path) -> anyhow::Result<Self> {
        let mut restored = Self {
            folder: folder.to_owned(),
            settings: self.settings.clone(),
            server: None,
            url: String::new(),
        };
        restored.start().await?;
        Ok(restored)
    }

    fn options(&self) -> anyhow::Result<PgConnectOptions> {
        Ok(self.url.parse::<PgConnectOptions>()?.database(NAME))
    }

    fn cluster(&self) -> anyhow::Result<PathBuf> {
        let cluster = self.folder.join("postgres");
        Ok(fs::read_link(&cluster).unwrap_or(cluster))
    }

    fn postmaster(&self) -> anyhow::Result<u32> {
        let text = fs::read_to_string(self.cluster()?.join("postmaster.pid"))?;
        Ok(text.lines().next().context("an empty pid file")?.trim().parse()?)
    }
}

/// A program that comes with Postgres.
fn tool(name: &str) -> anyhow::Result<Command> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> =
        std::env::var_os("PG_BIN").map(Into::into).into_iter().collect();
    folders.extend(std::env::split_paths(&path));
    if let Ok(versions) = fs::read_dir("/usr/lib/postgresql") {
        folders.extend(versions.flatten().map(|version| version.path().join("bin")));
    }
    let found = folders.into_iter().map(|folder| folder.join(name)).find(|tool| tool.is_file());
    Ok(Command::new(found.with_context(|| format!("{name} is not installed"))?))
}

/// Gives a folder and all in it to a user.
fn own(path: &Path, user: u32, group: u32) -> anyhow::Result<()> {
    chown(path, Some(user), Some(group))?;
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            own(&entry?.path(), user, group)?;
        }
    }
    Ok(())
}
