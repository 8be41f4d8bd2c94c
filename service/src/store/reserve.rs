//! Reserve: one package from each of several pools.

use std::{collections::HashMap, time::Duration};

use time::OffsetDateTime;

use super::{MAX_ROUNDS, Store, burns, lost_race, row, seconds};
use crate::domain::{
    capabilities::Capabilities,
    error::Error,
    ids::{Bucket, CipherSuite, ClientId, ClientKey, GroupId, KeyPackageRef, RequestId, UserId},
    policy::{FairShare, LapsePolicy},
    reservation_id::{Locator, SuiteKey},
};

/// What one call reserves.
#[derive(Debug)]
pub struct ReserveBatch<'a> {
    /// Who reserves.
    pub caller: &'a ClientKey,
    /// By which a repeated call is recognised.
    pub request_id: RequestId,
    /// The group the packages are for.
    pub group_id: &'a GroupId,
    /// The cipher suite of the group.
    pub cipher_suite: CipherSuite,
    /// What the leaf must support.
    pub required: &'a Capabilities,
    /// How long the reservations live.
    pub ttl: time::Duration,
    /// A package with less lifetime left is not issued.
    pub min_remaining_lifetime: time::Duration,
    /// What becomes of lapsed reservations.
    pub lapse: LapsePolicy,
    /// How much of one pool a caller may have.
    pub fair_share: Option<FairShare>,
    /// Whether a last resort package will do.
    pub last_resort: bool,
    /// Whether nothing is reserved unless every pool gives something.
    pub all_or_nothing: bool,
    /// The pools, each once.
    pub asks: &'a [ReserveAsk],
}

/// One pool to reserve from.
#[derive(Debug, Clone)]
pub struct ReserveAsk {
    /// Whose pool.
    pub owner: ClientKey,
    /// A random number above 0 that names the grant, should it be the last resort package.
    pub grant_id: i64,
}

/// What one pool gave.
#[derive(Debug)]
pub enum ReserveOutcome {
    /// A package.
    Reserved(Reserved),
    /// It could have given one, but the call was all or nothing.
    Withheld,
    /// Nothing is left, or there is no such pool.
    Exhausted,
    /// Nothing of this cipher suite with these capabilities.
    Incompatible,
    /// The caller holds its fair share of the pool already.
    Quota,
}

/// A package that is the caller's now.
#[derive(Debug)]
pub struct Reserved {
    /// Which reservation.
    pub locator: Locator,
    /// The package's ref.
    pub key_package_ref: KeyPackageRef,
    /// The package.
    pub key_package: Vec<u8>,
    /// The end of its lifetime.
    pub not_after: OffsetDateTime,
    /// Until then nobody else gets it.
    pub expires_at: OffsetDateTime,
    /// How many packages like it the pool has left, as the statement saw it, with those that
    /// others were just taking left out; none for a last resort package and for a repeated call.
    pub left: Option<u32>,
}

struct ReserveRow {
    ord: i32,
    outcome: String,
    pool_id: i64,
    left: Option<i64>,
    seq: Option<i64>,
    generation: Option<i32>,
    expires_at: Option<OffsetDateTime>,
    key_package_ref: Option<Vec<u8>>,
    key_package: Option<Vec<u8>>,
    not_after: Option<OffsetDateTime>,
}

impl Store {
    /// The clients of these users that have a pool, by ascending id; at most `limit` in all. A
    /// user without any is left out.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn clients_of(
        &self,
        users: &[&UserId],
        limit: usize,
    ) -> Result<HashMap<UserId, Vec<ClientId>>, Error> {
        if users.is_empty() {
            return Ok(HashMap::new());
        }
        let buckets: Vec<i16> = users.iter().map(|user| Bucket::of(user).get()).collect();
        let ids: Vec<String> = users.iter().map(ToString::to_string).collect();
        let rows = sqlx::query!(
            r#"SELECT p.user_id, p.client_id
               FROM unnest($1::smallint[], $2::text[]) AS a (bucket, user_id)
               JOIN pool p USING (bucket, user_id)
               ORDER BY p.user_id, p.client_id
               LIMIT $3"#,
            &buckets,
            &ids,
            i64::try_from(limit).unwrap_or(i64::MAX),
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|error| self.error(error))?;
        let mut clients: HashMap<UserId, Vec<ClientId>> = HashMap::new();
        for row in rows {
            let ClientKey { user, client } = row::client_key(row.user_id, row.client_id)?;
            clients.entry(user).or_default().push(client);
        }
        Ok(clients)
    }

    /// Reserves one package from each pool, in one transaction; one outcome for each ask.
    ///
    /// # Errors
    /// [`Error::RequestIdReused`]; [`Error::Overloaded`] when other calls keep coming in between;
    /// when the database cannot do it. Nothing is reserved then.
    pub async fn reserve(&self, batch: &ReserveBatch<'_>) -> Result<Vec<ReserveOutcome>, Error> {
        let mut open: Vec<usize> = (0..batch.asks.len()).collect();
        let mut outcomes: HashMap<usize, ReserveOutcome> = HashMap::new();
        for round in 0..MAX_ROUNDS {
            pause(round).await;
            let rows = match self.reserve_once(batch, &open).await {
                Err(error) if lost_race(&error) => continue,
                other => other.map_err(|error| self.error(error))?,
            };
            if rows.iter().any(|row| row.outcome == "clash") {
                return Err(Error::RequestIdReused);
            }
            let contended = |row: &ReserveRow| row.outcome == "contended";
            let again: Vec<usize> =
                rows.iter().filter(|row| contended(row)).map(ask_of).collect::<Result<_, _>>()?;
            if batch.all_or_nothing && !again.is_empty() {
                continue;
            }
            for row in rows.into_iter().filter(|row| !contended(row)) {
                let ask = ask_of(&row)?;
                outcomes.insert(ask, outcome(batch, ask, row)?);
            }
            if again.is_empty() {
                // A pool that the statement did not find gave no row.
                let found = |ask| outcomes.remove(&ask).unwrap_or(ReserveOutcome::Exhausted);
                return Ok((0..batch.asks.len()).map(found).collect());
            }
            open = again;
        }
        // What other pools gave in the meantime stays the caller's: the same request_id gets it.
        Err(Error::Overloaded)
    }

    async fn reserve_once(
        &self,
        batch: &ReserveBatch<'_>,
        open: &[usize],
    ) -> Result<Vec<ReserveRow>, sqlx::Error> {
        let asks = || open.iter().filter_map(|&ask| batch.asks.get(ask));
        let ords: Vec<i32> = open.iter().filter_map(|&ask| i32::try_from(ask).ok()).collect();
        let buckets: Vec<i16> = asks().map(|ask| Bucket::of(&ask.owner.user).get()).collect();
        let users: Vec<String> = asks().map(|ask| ask.owner.user.to_string()).collect();
        let clients: Vec<String> = asks().map(|ask| ask.owner.client.to_string()).collect();
        let grant_ids: Vec<i64> = asks().map(|ask| ask.grant_id).collect();
        sqlx::query_file_as!(
            ReserveRow,
            "src/store/sql/reserve.sql",
            self.imposed_now(),
            &batch.caller.digest().0[..],
            batch.caller.user.as_str(),
            batch.caller.client.as_str(),
            batch.request_id.0,
            batch.group_id.as_bytes(),
            i32::from(batch.cipher_suite.0),
            &ords,
            &buckets,
            &users,
            &clients,
            &grant_ids,
            batch.required.codes(),
            seconds(batch.ttl),
            seconds(batch.min_remaining_lifetime),
            burns(batch.lapse),
            batch.last_resort,
            batch.all_or_nothing,
            batch.fair_share.map(|share| row::bounded(share.max_open_reservations)),
            batch.fair_share.map_or(0, |share| row::bounded(share.spared_for_newcomers)),
            seconds(batch.fair_share.map_or(time::Duration::ZERO, |share| share.newcomer_after)),
        )
        .fetch_all(&self.pool)
        .await
    }
}

/// Lets the statement that came in between finish: nothing before the first round, then up to
/// 20 ms, which is several commits.
async fn pause(round: u32) {
    if round > 0 {
        let millis = rand::random_range(0..=round.min(20));
        tokio::time::sleep(Duration::from_millis(millis.into())).await;
    }
}

fn ask_of(row: &ReserveRow) -> Result<usize, Error> {
    row::count(row.ord.into())
}

fn outcome(batch: &ReserveBatch<'_>, ask: usize, row: ReserveRow) -> Result<ReserveOutcome, Error> {
    match row.outcome.as_str() {
        "reserved" => reserved(batch, ask, row).map(ReserveOutcome::Reserved),
        "withheld" => Ok(ReserveOutcome::Withheld),
        "exhausted" => Ok(ReserveOutcome::Exhausted),
        "quota" => Ok(ReserveOutcome::Quota),
        "incompatible" => Ok(ReserveOutcome::Incompatible),
        _ => Err(row::impossible("an unknown outcome of a Reserve")),
    }
}

fn reserved(batch: &ReserveBatch<'_>, ask: usize, row: ReserveRow) -> Result<Reserved, Error> {
    let ReserveRow {
        pool_id,
        left,
        seq: Some(seq),
        generation: Some(generation),
        expires_at: Some(expires_at),
        key_package_ref: Some(key_package_ref),
        key_package: Some(key_package),
        not_after: Some(not_after),
        ..
    } = row
    else {
        return Err(row::impossible("a reservation without its package"));
    };
    let owner = &batch.asks.get(ask).ok_or_else(|| row::impossible("an unknown ask"))?.owner;
    let bucket = Bucket::of(&owner.user);
    Ok(Reserved {
        locator: Locator {
            suite: SuiteKey { bucket, pool_id, cipher_suite: batch.cipher_suite },
            seq,
            generation,
        },
        key_package_ref: KeyPackageRef(key_package_ref),
        key_package,
        not_after,
        expires_at,
        left: left.filter(|_| generation > 0).map(row::count).transpose()?,
    })
}
