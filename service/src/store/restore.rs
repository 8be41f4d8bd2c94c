//! Making a database safe that was restored from a backup.

use time::OffsetDateTime;

use super::{NAME, Store};
use crate::domain::{error::Error, ids::BUCKETS};

/// How many packages were withdrawn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Withdrawn {
    /// One-time packages.
    pub packages: u64,
    /// Last resort packages.
    pub last_resort: u64,
}

/// A restore whose consequences are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restoration {
    /// Names it.
    pub began_at: OffsetDateTime,
    /// One-time packages whose lifetime begins before are refused from now on.
    pub packages_from: OffsetDateTime,
}

impl Store {
    /// How many connections of servers there are to the database.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn connected_servers(&self) -> Result<u64, Error> {
        let servers = sqlx::query_scalar!(
            r#"SELECT count(*) AS "count!" FROM pg_stat_activity
               WHERE datname = current_database() AND application_name = $1"#,
            NAME
        );
        let servers = servers.fetch_one(&self.pool).await.map_err(|error| self.error(error))?;
        Ok(servers.unsigned_abs())
    }

    /// From now on no server starts, reservations made before are unknown to those that will, and
    /// packages from before `packages_from` are refused. Goes on with one that was not finished.
    ///
    /// # Errors
    /// When the database cannot do it, as for a role that may not change the secret.
    pub async fn begin_restoration(
        &self,
        packages_from: OffsetDateTime,
        secret: [u8; 32],
    ) -> Result<Restoration, Error> {
        let begin = async {
            let mut transaction = self.pool.begin().await?;
            sqlx::query!("LOCK TABLE restoration IN EXCLUSIVE MODE")
                .execute(&mut *transaction)
                .await?;
            // The events of what follows belong into the partition of today, which the backup
            // may lack.
            sqlx::query!("SELECT make_event_partitions(current_date, 7)")
                .fetch_one(&mut *transaction)
                .await?;
            sqlx::query!(
                "INSERT INTO service_secret (name, secret) VALUES ('reservation', $1)
                 ON CONFLICT (name) DO UPDATE SET secret = excluded.secret",
                &secret[..]
            )
            .execute(&mut *transaction)
            .await?;
            let unfinished = sqlx::query_as!(
                Restoration,
                "UPDATE restoration SET packages_from = greatest(packages_from, $1)
                 WHERE finished_at IS NULL
                 RETURNING began_at, packages_from",
                packages_from
            )
            .fetch_optional(&mut *transaction)
            .await?;
            let restoration = match unfinished {
                Some(unfinished) => unfinished,
                None => {
                    sqlx::query_as!(
                        Restoration,
                        "INSERT INTO restoration (began_at, packages_from)
                         VALUES (coalesce($1::timestamptz, clock_timestamp()), $2)
                         RETURNING began_at, packages_from",
                        self.imposed_now(),
                        packages_from
                    )
                    .fetch_one(&mut *transaction)
                    .await?
                }
            };
            transaction.commit().await?;
            Ok(restoration)
        };
        begin.await.map_err(|error: sqlx::Error| self.error(error))
    }

    /// Withdraws all packages, a bucket at a time, each in a transaction of its own.
    ///
    /// # Errors
    /// When the database cannot do it. What was withdrawn so far stays so, and the next attempt
    /// goes on with the rest.
    pub async fn withdraw_all(&self, keep_last_resort: bool) -> Result<Withdrawn, Error> {
        let mut withdrawn = Withdrawn::default();
        for bucket in 0..BUCKETS.cast_signed() {
            let row = sqlx::query_file!(
                "src/store/sql/withdraw.sql",
                self.imposed_now(),
                bucket,
                keep_last_resort
            )
            .fetch_one(&self.pool)
            .await
            .map_err(|error| self.error(error))?;
            withdrawn.packages += row.packages.unsigned_abs();
            withdrawn.last_resort += row.last_resort.unsigned_abs();
        }
        Ok(withdrawn)
    }

    /// Lets servers start again.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn finish_restoration(&self, restoration: &Restoration) -> Result<(), Error> {
        sqlx::query!(
            "UPDATE restoration SET finished_at = coalesce($1::timestamptz, clock_timestamp())
             WHERE began_at = $2 AND finished_at IS NULL",
            self.imposed_now(),
            restoration.began_at
        )
        .execute(&self.pool)
        .await
        .map_err(|error| self.error(error))?;
        Ok(())
    }

    /// One-time packages whose lifetime begins before this are refused; none where the database
    /// was never restored.
    ///
    /// # Errors
    /// A restore was not finished; the database cannot do it.
    pub async fn packages_from(&self) -> Result<Option<OffsetDateTime>, Error> {
        let row = sqlx::query!(
            r#"SELECT max(packages_from) AS "from?",
                      coalesce(bool_or(finished_at IS NULL), false) AS "unfinished!"
               FROM restoration"#
        )
        .fetch_one(&self.pool)
        .await
        .map_err(|error| self.error(error))?;
        if row.unfinished {
            let what = "the database was restored and is not safe yet: run `keypool after-restore`";
            return Err(Error::Internal(anyhow::anyhow!(what)));
        }
        Ok(row.from)
    }
}
