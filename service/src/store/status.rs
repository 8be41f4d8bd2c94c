//! How a pool stands.

use sqlx::PgExecutor;
use time::{Duration, OffsetDateTime};

use super::{Store, burns, row, seconds};
use crate::domain::{
    error::Error,
    ids::{Bucket, ClientKey, KeyPackageRef},
    policy::LapsePolicy,
    pool::{LastResortStatus, SuiteCounts},
};

/// What counts as expiring soon.
pub(super) const EXPIRING_SOON: Duration = Duration::hours(48);

/// What the store counts of a pool.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PoolCounts {
    /// When the client last uploaded.
    pub last_upload: Option<OffsetDateTime>,
    /// By ascending cipher suite.
    pub suites: Vec<SuiteCounts>,
}

struct StatusRow {
    last_upload_at: OffsetDateTime,
    cipher_suite: Option<i32>,
    available: i64,
    reserved: i64,
    expiring_soon: i64,
    expired: i64,
    spent: i64,
    last_resort_ref: Option<Vec<u8>>,
    last_resort_not_after: Option<OffsetDateTime>,
    times_issued: i64,
}

impl Store {
    /// Counts the pool of a client; empty for one that never published. Costs the same however
    /// much the pool has seen.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn status(&self, owner: &ClientKey, lapse: LapsePolicy) -> Result<PoolCounts, Error> {
        let connection = self.owner_connection().await;
        let mut connection = connection.map_err(|error| self.error(error))?;
        let counts = self.status_on(&mut **connection, owner, lapse).await?;
        self.owners_kept.keep(connection);
        Ok(counts)
    }

    pub(super) async fn status_on(
        &self,
        executor: impl PgExecutor<'_>,
        owner: &ClientKey,
        lapse: LapsePolicy,
    ) -> Result<PoolCounts, Error> {
        let rows = sqlx::query_file_as!(
            StatusRow,
            "src/store/sql/status.sql",
            self.imposed_now(),
            Bucket::of(&owner.user).get(),
            owner.user.as_str(),
            owner.client.as_str(),
            burns(lapse),
            seconds(EXPIRING_SOON),
        )
        .fetch_all(executor)
        .await
        .map_err(|error| self.error(error))?;
        let last_upload = rows.first().map(|row| row.last_upload_at);
        let suites = rows.into_iter().filter_map(counts).collect::<Result<_, _>>()?;
        Ok(PoolCounts { last_upload, suites })
    }
}

fn counts(row: StatusRow) -> Option<Result<SuiteCounts, Error>> {
    let cipher_suite = row.cipher_suite?;
    let counts = move || {
        Ok(SuiteCounts {
            cipher_suite: row::cipher_suite(cipher_suite)?,
            available: row::count(row.available)?,
            reserved: row::count(row.reserved)?,
            spent: row::count(row.spent)?,
            expired: row::count(row.expired)?,
            expiring_soon: row::count(row.expiring_soon)?,
            last_resort: match (row.last_resort_ref, row.last_resort_not_after) {
                (Some(key_package_ref), Some(not_after)) => Some(LastResortStatus {
                    key_package_ref: KeyPackageRef(key_package_ref),
                    not_after,
                    times_issued: row::count(row.times_issued)?,
                }),
                (None, None) => None,
                _ => return Err(row::impossible("half a last resort package")),
            },
        })
    };
    Some(counts())
}
