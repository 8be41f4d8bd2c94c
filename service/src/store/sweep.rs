//! The sweeper's verbs. Each ends a bounded number of rows and says how many there were, so that
//! the caller can go on until there are none. Several replicas may sweep at once.

use sqlx::{PgConnection, Postgres, Transaction};
use time::{Duration, OffsetDateTime};

use super::{Store, burns, row, seconds, status::EXPIRING_SOON};
use crate::domain::{error::Error, ids::ClientKey, policy::LapsePolicy};

/// The sweeper looks again at reservations that lapsed this long before it last looked: a
/// statement that was slow to commit, or a row that was locked, may have hidden some.
const LOOK_BACK: Duration = Duration::minutes(1);

/// What one pass of a sweeper's verb did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// How many rows it ended.
    pub ended: u64,
    /// Whose pools it changed, where their owners should hear of it.
    pub owners: Vec<ClientKey>,
    /// Whether there may be more.
    pub more: bool,
}

/// How many packages of a client expired.
pub(super) struct ExpiredRow {
    user_id: String,
    client_id: String,
    ended: i64,
}

/// The key of a package that may have expired.
pub(super) struct Due {
    pub(super) bucket: i16,
    pub(super) pool_id: i64,
    pub(super) cipher_suite: i32,
    pub(super) seq: i64,
}

impl Store {
    /// Ends up to `limit` packages, and as many last resort packages, that reached not_after.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn sweep_expired(&self, limit: u32) -> Result<Swept, Error> {
        let due = sqlx::query_as!(
            Due,
            "SELECT bucket, pool_id, cipher_suite, seq FROM package
             WHERE not_after <= coalesce($1::timestamptz, now()) ORDER BY not_after LIMIT $2",
            self.imposed_now(),
            i64::from(limit),
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|error| self.error(error))?;
        let mut sweep = self.begin_sweep().await?;
        let expired = self.expire(&mut sweep, &due).await.map_err(|error| self.error(error))?;
        sweep.commit().await.map_err(|error| self.error(error))?;
        let mut sweep = self.begin_sweep().await?;
        let last_resorts = sqlx::query_file_as!(
            ExpiredRow,
            "src/store/sql/expire_last_resort.sql",
            self.imposed_now(),
            i64::from(limit)
        )
        .fetch_all(&mut *sweep)
        .await
        .map_err(|error| self.error(error))?;
        sweep.commit().await.map_err(|error| self.error(error))?;
        let count = |rows: &[ExpiredRow]| rows.iter().map(|row| row.ended).sum::<i64>();
        let (ended, last_resort) = (count(&expired), count(&last_resorts));
        // Rows that another statement has locked do not count as more: they would be found again
        // and again.
        let more = ended.max(last_resort) >= i64::from(limit);
        let owners = expired.into_iter().chain(last_resorts);
        let owners = owners.map(|row| row::client_key(row.user_id, row.client_id));
        Ok(Swept {
            ended: (ended + last_resort).unsigned_abs(),
            owners: owners.collect::<Result<_, _>>()?,
            more,
        })
    }

    /// The owners of up to `limit` packages that came within 48 hours of their not_after since
    /// this was last asked.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn sweep_expiring(&self, limit: u32) -> Result<Swept, Error> {
        let rows = sqlx::query!(
            r#"WITH found AS (
                   SELECT k.bucket, k.pool_id, k.not_after
                   FROM package k, sweep_cursor c
                   WHERE c.name = 'expiring' AND k.not_after > c.swept
                     AND k.not_after <= coalesce($1::timestamptz, now())
                                        + make_interval(secs => $2)
                   ORDER BY k.not_after
                   FETCH FIRST $3 ROWS WITH TIES
               )
               SELECT p.user_id, p.client_id, count(*) AS "found!", max(f.not_after) AS "last!"
               FROM found f JOIN pool p USING (bucket, pool_id)
               GROUP BY p.user_id, p.client_id"#,
            self.imposed_now(),
            seconds(EXPIRING_SOON),
            i64::from(limit),
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|error| self.error(error))?;
        let found: i64 = rows.iter().map(|row| row.found).sum();
        if let Some(last) = rows.iter().map(|row| row.last).max() {
            sqlx::query!(
                "UPDATE sweep_cursor SET swept = greatest(swept, $1) WHERE name = 'expiring'",
                last
            )
            .execute(&self.pool)
            .await
            .map_err(|error| self.error(error))?;
        }
        let owners = rows.into_iter().map(|row| row::client_key(row.user_id, row.client_id));
        let owners = owners.collect::<Result<_, _>>()?;
        Ok(Swept { ended: found.unsigned_abs(), owners, more: found >= i64::from(limit) })
    }

    /// A transaction in which the planner sees how few rows of how many a sweeper's statement
    /// ends; a plan for any number of them would read whole tables.
    async fn begin_sweep(&self) -> Result<Transaction<'static, Postgres>, Error> {
        let begin = async {
            let mut sweep = self.pool.begin().await?;
            let custom_plans = "SET LOCAL plan_cache_mode = force_custom_plan";
            sqlx::query(custom_plans).execute(&mut *sweep).await?;
            Ok(sweep)
        };
        begin.await.map_err(|error: sqlx::Error| self.error(error))
    }

    /// Commits what a statement that ends up to `limit` rows has done.
    async fn end_sweep(
        &self,
        sweep: Transaction<'static, Postgres>,
        ended: Result<i64, sqlx::Error>,
        limit: u32,
    ) -> Result<Swept, Error> {
        let ended = ended.map_err(|error| self.error(error))?;
        sweep.commit().await.map_err(|error| self.error(error))?;
        let more = ended >= i64::from(limit);
        Ok(Swept { ended: ended.unsigned_abs(), owners: Vec::new(), more })
    }

    pub(super) async fn expire(
        &self,
        connection: &mut PgConnection,
        due: &[Due],
    ) -> Result<Vec<ExpiredRow>, sqlx::Error> {
        if due.is_empty() {
            return Ok(Vec::new());
        }
        let buckets: Vec<i16> = due.iter().map(|d| d.bucket).collect();
        let pools: Vec<i64> = due.iter().map(|d| d.pool_id).collect();
        let suites: Vec<i32> = due.iter().map(|d| d.cipher_suite).collect();
        let seqs: Vec<i64> = due.iter().map(|d| d.seq).collect();
        sqlx::query_file_as!(
            ExpiredRow,
            "src/store/sql/expire.sql",
            self.imposed_now(),
            &buckets,
            &pools,
            &suites,
            &seqs,
        )
        .fetch_all(connection)
        .await
    }

    /// Settles all reservations that lapsed since the last sweep, the draws of `limit` at a time.
    ///
    /// # Errors
    /// When the database cannot do it. What was settled so far stays settled.
    pub async fn sweep_lapsed(&self, limit: u32, lapse: LapsePolicy) -> Result<u64, Error> {
        let cursor = sqlx::query!(
            r#"SELECT coalesce(nullif(swept, '-infinity'), 'epoch') AS "from!",
                      coalesce($1::timestamptz, now()) AS "now!"
               FROM sweep_cursor WHERE name = 'lapsed'"#,
            self.imposed_now(),
        )
        .fetch_one(&self.pool)
        .await
        .map_err(|error| self.error(error))?;
        let mut after: OffsetDateTime = cursor.from;
        let mut ended = 0;
        loop {
            let mut sweep = self.begin_sweep().await?;
            let pass = sqlx::query_file!(
                "src/store/sql/lapse.sql",
                self.imposed_now(),
                after,
                i64::from(limit),
                burns(lapse),
            )
            .fetch_one(&mut *sweep)
            .await
            .map_err(|error| self.error(error))?;
            sweep.commit().await.map_err(|error| self.error(error))?;
            ended += pass.ended.unsigned_abs();
            match pass.last {
                Some(last) if pass.looked >= i64::from(limit) => after = last,
                _ => break,
            }
        }
        sqlx::query!(
            "UPDATE sweep_cursor SET swept = greatest(swept, $1) WHERE name = 'lapsed'",
            cursor.now - LOOK_BACK,
        )
        .execute(&self.pool)
        .await
        .map_err(|error| self.error(error))?;
        Ok(ended)
    }

    /// Forgets up to `limit` refs and tombstones whose not_after is `retention` past.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn forget_packages(&self, limit: u32, retention: Duration) -> Result<Swept, Error> {
        let mut sweep = self.begin_sweep().await?;
        let forgotten = sqlx::query_file_scalar!(
            "src/store/sql/forget.sql",
            self.imposed_now(),
            i64::from(limit),
            seconds(retention)
        )
        .fetch_one(&mut *sweep)
        .await;
        self.end_sweep(sweep, forgotten, limit).await
    }

    /// Forgets up to `limit` draws that are `retention` past.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn forget_draws(&self, limit: u32, retention: Duration) -> Result<Swept, Error> {
        let mut sweep = self.begin_sweep().await?;
        let forgotten = sqlx::query_file_scalar!(
            "src/store/sql/forget_draws.sql",
            self.imposed_now(),
            i64::from(limit),
            seconds(retention)
        )
        .fetch_one(&mut *sweep)
        .await;
        self.end_sweep(sweep, forgotten, limit).await
    }

    /// Forgets up to `limit` last resort grants that ended `retention` ago.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn forget_grants(&self, limit: u32, retention: Duration) -> Result<Swept, Error> {
        let mut sweep = self.begin_sweep().await?;
        let forgotten = sqlx::query_file_scalar!(
            "src/store/sql/forget_grants.sql",
            self.imposed_now(),
            i64::from(limit),
            seconds(retention)
        )
        .fetch_one(&mut *sweep)
        .await;
        self.end_sweep(sweep, forgotten, limit).await
    }
}
