//! The statements behind a Reserve, each for the calls of several adders at once.

use std::{convert::Infallible, iter, sync::Arc};

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Store,
    batch::Job,
    burns,
    reserve::{ReserveAsk, ReserveBatch, Reserved},
    row, seconds,
};
use crate::domain::{
    ids::{Bucket, ClientDigest, KeyPackageRef, UserId},
    reservation_id::{Locator, SuiteKey},
};

/// What a statement says of one ask.
#[derive(Debug)]
pub(super) struct ReserveRow {
    /// Which ask of the statement, from 1.
    ord: i64,
    pub(super) outcome: String,
    pub(super) pool_id: Option<i64>,
    pub(super) left: Option<i16>,
    pub(super) seq: Option<i64>,
    pub(super) generation: Option<i32>,
    pub(super) expires_at: Option<OffsetDateTime>,
    pub(super) key_package_ref: Option<Vec<u8>>,
    pub(super) key_package: Option<Vec<u8>>,
    pub(super) not_after: Option<OffsetDateTime>,
}

/// One call's asks that are still open, for the statement that knows every case.
#[derive(Debug)]
pub(super) struct ReserveRound {
    pub(super) batch: Arc<ReserveBatch>,
    /// The places of the asks.
    pub(super) open: Vec<usize>,
}

impl ReserveRound {
    fn asks(&self) -> impl Iterator<Item = (usize, &ReserveAsk)> {
        self.open.iter().filter_map(|&at| Some((at, self.batch.asks.get(at)?)))
    }
}

/// A call's only ask, for the statement that knows just the usual case.
#[derive(Debug)]
pub(super) struct ReserveFresh(pub(super) Arc<ReserveBatch>);

/// The columns that both statements take: one element for each ask.
#[derive(Debug, Default)]
struct AskColumns<'a> {
    /// Which call each belongs to.
    call: Vec<i32>,
    bucket: Vec<i16>,
    user: Vec<&'a str>,
    client: Vec<&'a str>,
    grant_id: Vec<i64>,
    caller: Vec<[u8; 16]>,
    caller_user: Vec<&'a str>,
    caller_client: Vec<&'a str>,
    request_id: Vec<Uuid>,
    group_id: Vec<&'a [u8]>,
    cipher_suite: Vec<i32>,
    ttl: Vec<f64>,
    last_resort: Vec<bool>,
    all_or_nothing: Vec<bool>,
}

impl<'a> AskColumns<'a> {
    fn push(&mut self, call: i32, batch: &'a ReserveBatch, ask: &'a ReserveAsk) {
        self.call.push(call);
        self.bucket.push(Bucket::of(&ask.owner.user).get());
        self.user.push(ask.owner.user.as_str());
        self.client.push(ask.owner.client.as_str());
        self.grant_id.push(ask.grant_id);
        self.caller.push(batch.caller.digest().0);
        self.caller_user.push(batch.caller.user.as_str());
        self.caller_client.push(batch.caller.client.as_str());
        self.request_id.push(batch.request_id.0);
        self.group_id.push(batch.group_id.as_bytes());
        self.cipher_suite.push(i32::from(batch.cipher_suite.0));
        self.ttl.push(seconds(batch.ttl));
        self.last_resort.push(batch.last_resort);
        self.all_or_nothing.push(batch.all_or_nothing);
    }

    fn callers(&self) -> Vec<&[u8]> {
        self.caller.iter().map(|digest| &digest[..]).collect()
    }
}

impl Job for ReserveFresh {
    const STATEMENT: &str = "reserve_fresh";

    type Answer = Option<Reserved>;
    type Claim = Infallible;

    fn rows(&self) -> usize {
        1
    }

    fn goes_with(&self, other: &Self) -> bool {
        self.0.required == other.0.required
    }

    /// Nothing: of two that ask for the same package one gets none.
    fn claims(&self) -> impl Iterator<Item = Infallible> {
        iter::empty()
    }

    async fn run(
        store: &Store,
        connection: &mut PgConnection,
        jobs: &[&Self],
    ) -> Result<Vec<Option<Reserved>>, sqlx::Error> {
        let Some(first) = jobs.first() else { return Ok(Vec::new()) };
        let mut columns = AskColumns::default();
        for (call, job) in (0..).zip(jobs) {
            job.0.asks.iter().take(1).for_each(|ask| columns.push(call, &job.0, ask));
        }
        let rows = sqlx::query_file!(
            "src/store/sql/reserve_fresh.sql",
            store.imposed_now(),
            &columns.call,
            &columns.bucket,
            &columns.user as &[&str],
            &columns.client as &[&str],
            &columns.callers() as &[&[u8]],
            &columns.caller_user as &[&str],
            &columns.caller_client as &[&str],
            &columns.request_id,
            &columns.group_id as &[&[u8]],
            &columns.cipher_suite,
            &columns.ttl,
            seconds(first.0.min_remaining_lifetime),
            first.0.required.codes(),
        )
        .fetch_all(connection)
        .await?;
        let mut answers: Vec<Option<Reserved>> = jobs.iter().map(|_| None).collect();
        for row in rows {
            let place = usize::try_from(row.call).ok();
            let Some((answer, job)) =
                place.and_then(|place| answers.get_mut(place).zip(jobs.get(place)))
            else {
                return Err(sqlx::Error::RowNotFound);
            };
            let Some(ask) = job.0.asks.first() else { continue };
            let bucket = Bucket::of(&ask.owner.user);
            let cipher_suite = job.0.cipher_suite;
            *answer = Some(Reserved {
                locator: Locator {
                    suite: SuiteKey { bucket, pool_id: row.pool_id, cipher_suite },
                    seq: row.seq,
                    generation: 1,
                },
                key_package_ref: KeyPackageRef(row.key_package_ref),
                key_package: row.key_package,
                not_after: row.not_after,
                expires_at: row.expires_at,
                left: u32::try_from(row.left).ok(),
            });
        }
        Ok(answers)
    }
}

impl Job for ReserveRound {
    const STATEMENT: &str = "reserve";

    /// The rows, each with the place of its ask.
    type Answer = Vec<(usize, ReserveRow)>;
    /// Who draws from whose pool: the statement remembers one draw of each.
    type Claim = (ClientDigest, ClientDigest);

    fn rows(&self) -> usize {
        self.open.len()
    }

    fn goes_with(&self, other: &Self) -> bool {
        self.batch.required == other.batch.required
    }

    fn claims(&self) -> impl Iterator<Item = Self::Claim> {
        let caller = self.batch.caller.digest();
        self.asks().map(move |(_, ask)| (caller, ask.owner.digest()))
    }

    async fn run(
        store: &Store,
        connection: &mut PgConnection,
        jobs: &[&Self],
    ) -> Result<Vec<Self::Answer>, sqlx::Error> {
        let Some(first) = jobs.first() else { return Ok(Vec::new()) };
        let mut columns = AskColumns::default();
        // Which call and which of its asks each element is.
        let mut places = Vec::new();
        for (call, (number, job)) in (0..).zip(jobs.iter().enumerate()) {
            for (at, ask) in job.asks() {
                columns.push(call, &job.batch, ask);
                places.push((number, at));
            }
        }
        let fair_share = first.batch.fair_share;
        let rows = sqlx::query_file_as!(
            ReserveRow,
            "src/store/sql/reserve.sql",
            store.imposed_now(),
            &columns.call,
            &columns.bucket,
            &columns.user as &[&str],
            &columns.client as &[&str],
            &columns.grant_id,
            &columns.callers() as &[&[u8]],
            &columns.caller_user as &[&str],
            &columns.caller_client as &[&str],
            &columns.request_id,
            &columns.group_id as &[&[u8]],
            &columns.cipher_suite,
            &columns.ttl,
            &columns.last_resort,
            &columns.all_or_nothing,
            first.batch.required.codes(),
            seconds(first.batch.min_remaining_lifetime),
            burns(first.batch.lapse),
            fair_share.map(|share| row::bounded(share.max_open_reservations)),
            fair_share.map_or(0, |share| row::bounded(share.spared_for_newcomers)),
            seconds(fair_share.map_or(time::Duration::ZERO, |share| share.newcomer_after)),
        )
        .fetch_all(connection)
        .await?;
        let mut answers: Vec<Self::Answer> = jobs.iter().map(|_| Vec::new()).collect();
        for row in rows {
            let place = usize::try_from(row.ord - 1).ok().and_then(|at| places.get(at));
            let answer = place.and_then(|&(job, at)| answers.get_mut(job).zip(Some(at)));
            let Some((answer, at)) = answer else { return Err(sqlx::Error::RowNotFound) };
            answer.push((at, row));
        }
        Ok(answers)
    }
}

/// One call's question which clients its users have.
#[derive(Debug)]
pub(super) struct ClientsOf {
    pub(super) users: Vec<UserId>,
    /// How many in all.
    pub(super) limit: usize,
}

impl Job for ClientsOf {
    const STATEMENT: &str = "clients_of";

    /// Users and clients.
    type Answer = Vec<(String, String)>;
    type Claim = Infallible;

    fn rows(&self) -> usize {
        self.users.len()
    }

    fn goes_with(&self, other: &Self) -> bool {
        self.limit == other.limit
    }

    fn claims(&self) -> impl Iterator<Item = Infallible> {
        iter::empty()
    }

    async fn run(
        _: &Store,
        connection: &mut PgConnection,
        jobs: &[&Self],
    ) -> Result<Vec<Self::Answer>, sqlx::Error> {
        let Some(first) = jobs.first() else { return Ok(Vec::new()) };
        let asked =
            || (0_i32..).zip(jobs).flat_map(|(n, job)| job.users.iter().map(move |user| (n, user)));
        let rows = sqlx::query!(
            r#"SELECT c.call AS "call!", c.user_id AS "user_id!", c.client_id AS "client_id!"
               FROM (SELECT a.call, p.user_id, p.client_id,
                            row_number() OVER (PARTITION BY a.call) AS number
                     FROM unnest($1::int[], $2::smallint[], $3::text[])
                          AS a (call, bucket, user_id)
                     CROSS JOIN LATERAL (
                         SELECT p.user_id, p.client_id FROM pool p
                         WHERE p.bucket = a.bucket AND p.user_id = a.user_id
                         ORDER BY p.client_id
                         LIMIT $4
                     ) p) c
               WHERE c.number <= $4
               ORDER BY c.call, c.user_id, c.client_id"#,
            &asked().map(|(call, _)| call).collect::<Vec<_>>(),
            &asked().map(|(_, user)| Bucket::of(user).get()).collect::<Vec<_>>(),
            &asked().map(|(_, user)| user.as_str()).collect::<Vec<_>>() as &[&str],
            i64::try_from(first.limit).unwrap_or(i64::MAX),
        )
        .fetch_all(connection)
        .await?;
        let mut answers: Vec<Self::Answer> = jobs.iter().map(|_| Vec::new()).collect();
        for row in rows {
            let place = usize::try_from(row.call).ok().and_then(|at| answers.get_mut(at));
            let Some(answer) = place else { return Err(sqlx::Error::RowNotFound) };
            answer.push((row.user_id, row.client_id));
        }
        Ok(answers)
    }
}
