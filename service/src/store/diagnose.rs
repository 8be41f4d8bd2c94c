//! What is wrong with a database, for operators.

use time::OffsetDateTime;

use super::{MIGRATOR, Store};
use crate::domain::error::Error;

/// What a database says of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Diagnosis {
    /// The version of Postgres, as it calls itself.
    pub version: String,
    /// As a number: 170002 is 17.2.
    pub version_number: i32,
    /// The time there.
    pub now: OffsetDateTime,
    /// Whether it is a standby, which takes no writes.
    pub standby: bool,
    /// What the role may not do, and has to.
    pub lacking: Vec<String>,
    /// Whether the role may change the event log.
    pub may_change_events: bool,
    /// Whether a restore was not made safe to its end.
    pub unfinished_restoration: bool,
    /// Whether events found no partition of their day.
    pub events_without_partition: bool,
    /// How many seconds late the sweeper is; none before it first ran.
    pub sweeper_lag: Option<f64>,
    /// For how many days to come the log has its partitions.
    pub partition_days: Option<i32>,
    /// Migrations that were applied and that this build does not know.
    pub newer_migrations: Vec<i64>,
}

impl Store {
    /// Looks at a database whose schema is up to date.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn diagnose(&self) -> Result<Diagnosis, Error> {
        let looked = async {
            let said =
                sqlx::query_file!("src/store/sql/diagnose.sql").fetch_one(&self.pool).await?;
            let work = sqlx::query_file!("src/store/sql/sample_bounds.sql", self.imposed_now())
                .fetch_one(&self.pool)
                .await?;
            let applied: Vec<i64> = sqlx::query_scalar("SELECT version FROM _sqlx_migrations")
                .fetch_all(&self.pool)
                .await?;
            let known = |version: &i64| MIGRATOR.iter().any(|known| known.version == *version);
            let late = [work.since_lapsed, work.since_expired].into_iter().flatten();
            Ok(Diagnosis {
                version: said.version,
                version_number: said.version_number,
                now: said.now,
                standby: said.standby,
                lacking: said.lacking,
                may_change_events: said.may_change_events,
                unfinished_restoration: said.unfinished > 0,
                events_without_partition: said.in_default,
                sweeper_lag: late.reduce(f64::max).map(|late| late.max(0.0)),
                partition_days: work.partition_days,
                newer_migrations: applied.into_iter().filter(|it| !known(it)).collect(),
            })
        };
        looked.await.map_err(|error: sqlx::Error| self.error(error))
    }
}
