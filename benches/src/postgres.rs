//! The Postgres of a run, and what it costs.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::Context as _;
use keypool_service::dev::{EmbeddedPostgres, PostgresOptions};
use sqlx::{AssertSqlSafe, Executor as _, PgPool, Row as _, postgres::PgPoolOptions};
use tempfile::TempDir;

use crate::machine;

/// Settings of a machine that is a database's own, and durable: what was answered outlives a
/// power failure.
const SETTINGS: [(&str, &str); 10] = [
    ("fsync", "on"),
    ("synchronous_commit", "on"),
    ("full_page_writes", "on"),
    ("wal_compression", "on"),
    ("shared_buffers", "2GB"),
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

async fn connect(url: &str) -> anyhow::Result<PgPool> {
    // One: settings and temporary tables of the session last.
    Ok(PgPoolOptions::new().max_connections(1).connect(url).await?)
}
