//! The Postgres of a run, and what it costs.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::Context as _;
use keypool_service::dev::{EmbeddedPostgres, PostgresOptions};
use sqlx::{AssertSqlSafe, Executor as _, PgPool, Row as _, postgres::PgPoolOptions};
use tempfile::TempDir;

use crate::machine;

/// Settings of a machine that is a database's own, and durable: what was answered outlives a
/// power failure.
const SETTINGS: [(&str, &str); 8] = [
    ("fsync", "on"),
    ("synchronous_commit", "on"),
    ("full_page_writes", "on"),
    ("max_wal_size", "8GB"),
    ("checkpoint_timeout", "15min"),
    ("maintenance_work_mem", "256MB"),
    ("max_connections", "400"),
    ("random_page_cost", "1.1"),
];

/// A server of this run's own, in a temporary folder.
pub(crate) struct Postgres {
    server: EmbeddedPostgres,
    /// The process whose children the backends are.
    pub(crate) postmaster: u32,
    pub(crate) version: String,
    folder: TempDir,
}

/// A database on it.
pub(crate) struct Database {
    /// Connections of a superuser.
    pub(crate) pool: PgPool,
    pub(crate) url: String,
}

impl Postgres {
    /// Starts a server with some settings, NAME=VALUE, beside this run's own.
    pub(crate) async fn start(settings: &[String]) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("keypool-bench.").tempdir()?;
        // Postgres may run as another user than this one.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711))?;
        let mut options = PostgresOptions::default();
        for (name, value) in SETTINGS {
            options = options.set(name, value);
        }
        let buffers = machine::memory_bytes()? / 4;
        options = options.set("shared_buffers", format!("{}MB", buffers >> 20));
        for setting in settings {
            let (name, value) = setting.split_once('=').context("--postgres takes NAME=VALUE")?;
            options = options.set(name, value);
        }
        let server = EmbeddedPostgres::start(&folder.path().join("data"), options).await?;
        let pool = connect(server.url()).await?;
        let row = sqlx::query("SELECT pg_backend_pid(), current_setting('server_version')")
            .fetch_one(&pool)
            .await?;
        let backend: i32 = row.get(0);
        let postmaster = machine::parent(u32::try_from(backend)?)?;
        compress_wal(&pool).await?;
        // What `keypool serve` connects as.
        pool.execute(
            "CREATE ROLE keypool_service; CREATE ROLE keypool LOGIN IN ROLE keypool_service",
        )
        .await?;
        pool.close().await;
        Ok(Self { server, postmaster, version: row.get(1), folder })
    }

    /// A new database.
    pub(crate) async fn create(&self, name: &str) -> anyhow::Result<Database> {
        let pool = connect(self.server.url()).await?;
        pool.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await?;
        pool.close().await;
        let url = self.server.url().replacen("/postgres?", &format!("/{name}?"), 1);
        Ok(Database { pool: connect(&url).await?, url })
    }

    /// A folder for this run's files, on the disk that the database is on.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        self.server.stop().await
    }
}

impl Database {
    /// The URL that `keypool serve` gets: of its own role, which may do no more than it has to.
    pub(crate) fn service_url(&self) -> String {
        self.url.replacen("postgres://postgres@", "postgres://keypool@", 1)
    }

    /// How much WAL was written so far, bytes.
    pub(crate) async fn wal_bytes(&self) -> anyhow::Result<u64> {
        let bytes: i64 = sqlx::query_scalar("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint")
            .fetch_one(&self.pool)
            .await?;
        Ok(u64::try_from(bytes)?)
    }

    /// Runs statements, one after the other and each in its own transaction.
    pub(crate) async fn run(&self, statements: &[String]) -> anyhow::Result<()> {
        for statement in statements {
            self.pool
                .execute(AssertSqlSafe(statement.clone()))
                .await
                .with_context(|| statement.clone())?;
        }
        Ok(())
    }
}

/// Has whole pages in the WAL compressed by LZ4 where this Postgres was built with it, for its own way
/// takes much more CPU. A setting of the command line goes first.
async fn compress_wal(pool: &PgPool) -> anyhow::Result<()> {
    let has_lz4: bool = sqlx::query_scalar(
        "SELECT 'lz4' = ANY (enumvals) FROM pg_settings WHERE name = 'wal_compression'",
    )
    .fetch_one(pool)
    .await?;
    let way = if has_lz4 { "lz4" } else { "on" };
    pool.execute(AssertSqlSafe(format!("ALTER SYSTEM SET wal_compression = {way}"))).await?;
    pool.execute("SELECT pg_reload_conf()").await?;
    Ok(())
}

async fn connect(url: &str) -> anyhow::Result<PgPool> {
    // One: settings and temporary tables of the session last.
    Ok(PgPoolOptions::new().max_connections(1).connect(url).await?)
}
