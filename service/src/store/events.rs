//! The event log, read.

use time::{Duration, OffsetDateTime};

use super::{Store, row};
use crate::domain::{
    error::Error,
    event::{Event, EventKey, EventKind},
    ids::{Bucket, ClientDigest, ClientId, ClientKey, KeyPackageRef, UserId},
    reservation_id::{Locator, SuiteKey},
};

/// The first span of time that is searched for events of all pools. Each that does not fill the
/// page is followed by one twice as long.
const FIRST_SPAN: Duration = Duration::minutes(5);

/// Which events, newest first.
#[derive(Debug, Clone)]
pub struct EventQuery {
    /// Of which pools.
    pub pools: EventPools,
    /// Not before this.
    pub from: OffsetDateTime,
    /// Before this.
    pub before: OffsetDateTime,
    /// Of this package only.
    pub key_package_ref: Option<KeyPackageRef>,
    /// After this one, which ended the last page.
    pub after: Option<EventKey>,
    /// How many at most.
    pub limit: u32,
}

/// Whose events.
#[derive(Debug, Clone)]
pub enum EventPools {
    /// Everyone's.
    All,
    /// Of all clients of a user.
    User(UserId),
    /// Of one client.
    Client(ClientKey),
}

struct EventRow {
    bucket: i16,
    pool_id: i64,
    user_id: String,
    client_id: String,
    at: OffsetDateTime,
    cipher_suite: i32,
    seq: i64,
    generation: i32,
    kind: String,
    key_package_ref: Vec<u8>,
    actor_user: Option<String>,
    actor_client: Option<String>,
    holder: Option<Vec<u8>>,
    group_id: Option<Vec<u8>>,
}

/// The columns of a page's last event, each null on the first page.
struct AfterColumns {
    at: Option<OffsetDateTime>,
    bucket: Option<i16>,
    pool_id: Option<i64>,
    cipher_suite: Option<i32>,
    seq: Option<i64>,
    generation: Option<i32>,
    kind: Option<&'static str>,
}

impl From<Option<&EventKey>> for AfterColumns {
    fn from(key: Option<&EventKey>) -> Self {
        let locator = key.map(|key| key.locator);
        Self {
            at: key.map(|key| key.at),
            bucket: locator.map(|l| l.suite.bucket.get()),
            pool_id: locator.map(|l| l.suite.pool_id),
            cipher_suite: locator.map(|l| l.suite.cipher_suite.0.into()),
            seq: locator.map(|l| l.seq),
            generation: locator.map(|l| l.generation),
            kind: key.map(|key| key.kind.as_str()),
        }
    }
}

impl Store {
    /// One page of the log.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn events(&self, query: &EventQuery) -> Result<Vec<Event>, Error> {
        let rows = match &query.pools {
            EventPools::All => self.events_of_all(query).await,
            EventPools::User(user) => self.events_of(user, None, query).await,
            EventPools::Client(key) => self.events_of(&key.user, Some(&key.client), query).await,
        };
        rows.map_err(|error| self.error(error))?.into_iter().map(event).collect()
    }

    async fn events_of(
        &self,
        user: &UserId,
        client: Option<&ClientId>,
        query: &EventQuery,
    ) -> Result<Vec<EventRow>, sqlx::Error> {
        let bucket = Bucket::of(user).get();
        let pools = sqlx::query_scalar!(
            "SELECT pool_id FROM pool
             WHERE bucket = $1 AND user_id = $2 AND ($3::text IS NULL OR client_id = $3)",
            bucket,
            user.as_str(),
            client.map(ClientId::as_str),
        )
        .fetch_all(&self.pool)
        .await?;
        let after = AfterColumns::from(query.after.as_ref());
        sqlx::query_file_as!(
            EventRow,
            "src/store/sql/events_of_pools.sql",
            &vec![bucket; pools.len()],
            &pools,
            query.from,
            query.before,
            query.key_package_ref.as_ref().map(|r| &r.0[..]),
            i64::from(query.limit),
            after.at,
            after.bucket,
            after.pool_id,
            after.cipher_suite,
            after.seq,
            after.generation,
            after.kind,
        )
        .fetch_all(&self.pool)
        .await
    }

    /// Looks back in ever longer spans until the page is full: no index is in the order of time
    /// over all pools, as that would burden every Reserve.
    async fn events_of_all(&self, query: &EventQuery) -> Result<Vec<EventRow>, sqlx::Error> {
        let after = AfterColumns::from(query.after.as_ref());
        let mut found: Vec<EventRow> = Vec::new();
        let mut span = FIRST_SPAN;
        // The page that follows starts with the instant that the last one ended in.
        let mut before = match after.at {
            Some(at) => query.before.min(at.saturating_add(Duration::MICROSECOND)),
            None => query.before,
        };
        while found.len() < query.limit as usize && before > query.from {
            let start = before.saturating_sub(span).max(query.from);
            found.extend(
                sqlx::query_file_as!(
                    EventRow,
                    "src/store/sql/events_in_span.sql",
                    start,
                    before,
                    query.key_package_ref.as_ref().map(|r| &r.0[..]),
                    i64::from(query.limit) - found.len() as i64, // fits: it is below the limit
                    after.at,
                    after.bucket,
                    after.pool_id,
                    after.cipher_suite,
                    after.seq,
                    after.generation,
                    after.kind,
                )
                .fetch_all(&self.pool)
                .await?,
            );
            before = start;
            span = span.saturating_mul(2);
        }
        Ok(found)
    }

    /// Makes the log's partitions for today and `days_ahead`, and drops those that are older
    /// than `keep_days`.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn tend_event_partitions(
        &self,
        days_ahead: u16,
        keep_days: u16,
    ) -> Result<(), Error> {
        sqlx::query!(
            "SELECT make_event_partitions(
                 (coalesce($1::timestamptz, now()) AT TIME ZONE 'UTC')::date, $2)",
            self.imposed_now(),
            i32::from(days_ahead),
        )
        .fetch_one(&self.pool)
        .await
        .map_err(|error| self.error(error))?;
        // In a transaction of its own: it waits for readers of the whole log, and they may wait
        // for what the other one has locked.
        sqlx::query!(
            "SELECT drop_event_partitions(
                 (coalesce($1::timestamptz, now()) AT TIME ZONE 'UTC')::date, $2)",
            self.imposed_now(),
            i32::from(keep_days),
        )
        .fetch_one(&self.pool)
        .await
        .map_err(|error| self.error(error))?;
        Ok(())
    }
}

fn event(row: EventRow) -> Result<Event, Error> {
    let invalid = || row::impossible("an event that is none");
    let bucket = u16::try_from(row.bucket).ok().and_then(Bucket::from_number);
    Ok(Event {
        key: EventKey {
            at: row.at,
            locator: Locator {
                suite: SuiteKey {
                    bucket: bucket.ok_or_else(invalid)?,
                    pool_id: row.pool_id,
                    cipher_suite: row::cipher_suite(row.cipher_suite)?,
                },
                seq: row.seq,
                generation: row.generation,
            },
            kind: EventKind::from_name(&row.kind).ok_or_else(invalid)?,
        },
        owner: row::client_key(row.user_id, row.client_id)?,
        key_package_ref: KeyPackageRef(row.key_package_ref),
        actor: row
            .actor_user
            .zip(row.actor_client)
            .map(|(u, c)| row::client_key(u, c))
            .transpose()?,
        holder: row
            .holder
            .map(|holder| holder.try_into().map(ClientDigest).map_err(|_| invalid()))
            .transpose()?,
        group_id: row.group_id,
    })
}
