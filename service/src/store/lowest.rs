//! The pools that are lowest, for operators.

use time::OffsetDateTime;

use super::{Store, burns, row};
use crate::domain::{
    error::Error,
    ids::{CipherSuite, ClientKey},
    policy::LapsePolicy,
};

/// At so many draws, the latest, [`Store::lowest`] looks.
const DRAWS: i64 = 5000;

/// A pool of one cipher suite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LowPool {
    /// Whose.
    pub owner: ClientKey,
    /// Of which suite.
    pub cipher_suite: CipherSuite,
    /// One-time packages that are ready to be reserved.
    pub available: u32,
    /// Those that are held.
    pub reserved: u32,
    /// How many of the callers that drew last drew from it.
    pub callers: u32,
    /// Whether there is a last resort package.
    pub last_resort: bool,
    /// When the owner last uploaded.
    pub last_upload: OffsetDateTime,
}

impl Store {
    /// The lowest of the pools that callers drew from last, the emptiest first. What it reads is
    /// bounded, however many pools there are; a pool that nobody asks for is not looked at.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn lowest(&self, lapse: LapsePolicy, limit: u32) -> Result<Vec<LowPool>, Error> {
        let rows = sqlx::query_file!(
            "src/store/sql/lowest.sql",
            self.imposed_now(),
            burns(lapse),
            DRAWS,
            i64::from(limit),
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|error| self.error(error))?;
        let mut pools = Vec::with_capacity(rows.len());
        for row in rows {
            pools.push(LowPool {
                owner: row::client_key(row.user_id, row.client_id)?,
                cipher_suite: row::cipher_suite(row.cipher_suite)?,
                available: row::count(row.available)?,
                reserved: row::count(row.reserved)?,
                callers: row::count(row.draws)?,
                last_resort: row.last_resort,
                last_upload: row.last_upload,
            });
        }
        Ok(pools)
    }
}
