//! How many packages and pools there are, by state: estimated from a bounded number of pages.

use super::{Store, burns};
use crate::domain::{error::Error, policy::LapsePolicy};

/// At so many random pages of a large table a sample looks; of a smaller one at all.
const PAGES: f64 = 1000.0;
/// As [`PAGES`], of the table with a row for each pool and cipher suite.
const SUITE_PAGES: f64 = 200.0;
/// At the live packages of so many pools it looks.
const POOLS: f64 = 500.0;

/// Counts of the whole database. Exact where the tables are small, else estimates.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// Packages, by the state's name.
    pub packages: [(&'static str, f64); 6],
    /// Pools, each of one cipher suite, by the health's name.
    pub pools: [(&'static str, f64); 3],
    /// How many seconds late the sweeper is.
    pub sweeper_lag: f64,
    /// For how many days to come the log has its partitions.
    pub partition_days: Option<i32>,
}

impl Store {
    /// Counts packages and pools by state. What it reads is bounded, however many there are.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn sample(&self, lapse: LapsePolicy, low_watermark: u32) -> Result<Sample, Error> {
        let bounds = sqlx::query_file!("src/store/sql/sample_bounds.sql", self.imposed_now())
            .fetch_one(&self.pool)
            .await
            .map_err(|error| self.error(error))?;
        let found = sqlx::query_file!(
            "src/store/sql/sample.sql",
            self.imposed_now(),
            burns(lapse),
            i64::from(low_watermark),
            share(bounds.package, PAGES),
            share(bounds.tombstone, PAGES),
            share(bounds.last_resort, PAGES),
            share(bounds.pool_suite, SUITE_PAGES),
            POOLS,
        )
        .fetch_one(&self.pool)
        .await
        .map_err(|error| self.error(error))?;
        let late = [bounds.since_lapsed, bounds.since_expired].into_iter().flatten();
        Ok(Sample {
            packages: [
                ("available", found.available),
                ("reserved", found.reserved),
                ("last_resort", found.last_resort),
                ("spent", found.spent),
                ("burned", found.burned),
                ("revoked", found.revoked),
            ],
            pools: [("healthy", found.healthy), ("low", found.low), ("exhausted", found.exhausted)],
            sweeper_lag: late.fold(0.0, f64::max),
            partition_days: bounds.partition_days,
        })
    }
}

/// How much of a table of so many pages to look at, percent.
fn share(pages: i64, most: f64) -> f32 {
    // A table is smaller than what a float counts exactly.
    (100.0 * most / (pages as f64).max(most)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_a_small_table_and_little_of_a_large_one() {
        assert_eq!([0, 1, 1000].map(|pages| share(pages, PAGES)), [100.0; 3]);
        assert_eq!([2000, 4_000_000].map(|pages| share(pages, PAGES)), [50.0, 0.025]);
    }
}
