//! The schema, and bringing it up to date beside replicas that serve.

use std::{sync::LazyLock, time::Duration};

use anyhow::Context as _;
use sqlx::{
    Connection as _, Executor as _, PgConnection,
    migrate::{Migrate as _, MigrateError, Migration, Migrator},
};
use tokio::time::Instant;

use super::Store;
use crate::domain::error::Error;

/// The schema. Only ever added to.
pub static MIGRATOR: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrator = sqlx::migrate!();
    // A release that was taken back finds the schema of the one after it, and works on it.
    migrator.set_ignore_missing(true);
    migrator
});

/// Between two tries, so many times as long as one: meanwhile nobody waits behind a migration.
const PAUSE: u32 = 5;

/// The last migration that this build knows.
pub fn newest_migration() -> i64 {
    MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or_default()
}

/// How a migration waits for locks that others hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockPatience {
    /// How long it waits for a lock at a time. Calls that need the same table queue up behind it
    /// for as long.
    pub lock_timeout: Duration,
    /// How long it goes on trying.
    pub give_up_after: Duration,
}

impl Default for LockPatience {
    fn default() -> Self {
        Self {
            lock_timeout: Duration::from_millis(200),
            give_up_after: Duration::from_secs(5 * 60),
        }
    }
}

impl Store {
    /// Brings the schema up to date.
    ///
    /// # Errors
    /// When the database cannot be reached, a migration fails, or gets no lock in time.
    pub async fn migrate(&self, patience: LockPatience) -> anyhow::Result<()> {
        let newest = newest_migration();
        let known = |version: i64| MIGRATOR.iter().any(|migration| migration.version == version);
        let applied = self.applied_migrations().await?;
        if let Some(version) = applied.iter().find(|&&it| it < newest && !known(it)) {
            anyhow::bail!(
                "the database has migration {version}, which is older than the newest of this \
                 version of keypool, and which it does not know"
            );
        }
        self.apply(&MIGRATOR, patience).await
    }

    /// Applies those of these migrations that the database lacks, in their order, each with as many
    /// tries as it takes to get its locks.
    ///
    /// # Errors
    /// As [`Store::migrate`]. What was applied before stays.
    pub async fn apply(&self, migrator: &Migrator, patience: LockPatience) -> anyhow::Result<()> {
        let deadline = Instant::now().checked_add(patience.give_up_after);
        let applied = self.applied_migrations().await?;
        let pending = migrator.iter().filter(|it| !applied.contains(&it.version));
        // One that was applied before may have been another: the last one of all sees to that.
        for migration in pending.chain(migrator.iter().last()) {
            let mut tries = 1_u32;
            while let Err(error) = self.try_to_reach(migration, migrator, patience).await {
                let Some(missing) = missing_lock(&error, migration) else {
                    return Err(error).context("cannot migrate the database");
                };
                let version = migration.version;
                if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                    let waited = humantime::format_duration(patience.give_up_after);
                    let each = humantime::format_duration(patience.lock_timeout);
                    return Err(error).context(format!(
                        "migration {version} got no lock within {waited}, in {tries} tries of \
                         {each}: {missing}. Nothing of it was applied; run `keypool migrate` again"
                    ));
                }
                tracing::warn!(version, tries, "waiting for a lock: {missing}");
                tokio::time::sleep(patience.lock_timeout * PAUSE).await;
                tries = tries.saturating_add(1);
            }
        }
        Ok(())
    }

    /// One try to bring the schema to this migration, on a connection of its own: locks of the
    /// session end with it.
    async fn try_to_reach(
        &self,
        migration: &Migration,
        migrator: &Migrator,
        patience: LockPatience,
    ) -> Result<(), MigrateError> {
        let options = self.pool.connect_options().as_ref().clone().options([
            ("lock_timeout", patience.lock_timeout.as_millis().to_string()),
            // What reads a whole table takes its time. It does so under a lock that stops nobody,
            // or tests/upgrade/lint.rs refuses it.
            ("statement_timeout", "0".to_owned()),
        ]);
        let mut connection = PgConnection::connect_with(&options).await?;
        connection.lock().await?;
        if migration.no_tx {
            // CREATE INDEX CONCURRENTLY waits for the transactions of others and is in nobody's
            // way meanwhile. Ended before its time, it would leave half an index.
            connection.execute("SET lock_timeout = 0").await?;
        }
        let reached = migrator.run_to(migration.version, &mut connection).await;
        if reached.is_ok() {
            // The next try may come before Postgres has seen this session end.
            connection.unlock().await?;
        }
        let closed = connection.close().await;
        reached?;
        Ok(closed?)
    }

    /// The versions of the migrations that this build knows and the database lacks.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn pending_migrations(&self) -> Result<Vec<i64>, Error> {
        let applied = self.applied_migrations().await?;
        let versions = MIGRATOR.iter().map(|migration| migration.version);
        Ok(versions.filter(|version| !applied.contains(version)).collect())
    }

    /// The versions of the migrations that the database has.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn applied_migrations(&self) -> Result<Vec<i64>, Error> {
        let known = sqlx::query_scalar!(
            r#"SELECT to_regclass('_sqlx_migrations') IS NOT NULL AS "known!""#
        )
        .fetch_one(&self.pool)
        .await
        .map_err(|error| self.error(error))?;
        if !known {
            return Ok(Vec::new());
        }
        let versions = sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success");
        versions.fetch_all(&self.pool).await.map_err(|error| self.error(error))
    }
}

/// What the lock is for that a try did not get in time. A deadlock of what is in no transaction has
/// left half an index, which another try would not make whole.
fn missing_lock(error: &MigrateError, migration: &Migration) -> Option<&'static str> {
    let (MigrateError::Execute(cause) | MigrateError::ExecuteMigration(cause, _)) = error else {
        return None;
    };
    let code = cause.as_database_error().and_then(|cause| cause.code());
    let missing = match code.as_deref() {
        Some("55P03") => true,             // lock_not_available
        Some("40P01") => !migration.no_tx, // deadlock_detected
        _ => false,
    };
    missing.then_some(match error {
        MigrateError::ExecuteMigration(..) => "somebody else uses a table that it changes",
        _ => "another migration is running",
    })
}
