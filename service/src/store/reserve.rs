//! Reserve: one package from each of several pools.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use time::OffsetDateTime;

use super::{
    MAX_ROUNDS, Store,
    reserve_jobs::{ClientsOf, ReserveFresh, ReserveRound, ReserveRow},
    row,
};
use crate::domain::{
    capabilities::Capabilities,
    error::Error,
    ids::{Bucket, CipherSuite, ClientId, ClientKey, GroupId, KeyPackageRef, RequestId, UserId},
    policy::{FairShare, LapsePolicy},
    reservation_id::{Locator, SuiteKey},
};

/// What one call reserves.
#[derive(Debug)]
pub struct ReserveBatch {
    /// Who reserves.
    pub caller: ClientKey,
    /// By which a repeated call is recognised.
    pub request_id: RequestId,
    /// The group the packages are for.
    pub group_id: GroupId,
    /// The cipher suite of the group.
    pub cipher_suite: CipherSuite,
    /// What the leaf must support.
    pub required: Capabilities,
    /// How long the reservations live.
    pub ttl: time::Duration,
    /// A package with less lifetime left is not issued. The same for all calls.
    pub min_remaining_lifetime: time::Duration,
    /// What becomes of lapsed reservations. The same for all calls.
    pub lapse: LapsePolicy,
    /// How much of one pool a caller may have. The same for all calls.
    pub fair_share: Option<FairShare>,
    /// Whether a last resort package will do.
    pub last_resort: bool,
    /// Whether nothing is reserved unless every pool gives something.
    pub all_or_nothing: bool,
    /// The pools, each once.
    pub asks: Vec<ReserveAsk>,
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
    /// At least so many packages that were never issued come after it in the pool; none for a last
    /// resort package and for a repeated call.
    pub left: Option<u32>,
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
        let users = users.iter().map(|&user| user.clone()).collect();
        let found = self.clients.call(self, ClientsOf { users, limit }).await?;
        let mut clients: HashMap<UserId, Vec<ClientId>> = HashMap::new();
        for (user, client) in found {
            let ClientKey { user, client } = row::client_key(user, client)?;
            clients.entry(user).or_default().push(client);
        }
        Ok(clients)
    }

    /// Reserves one package from each pool, in one transaction; one outcome for each ask.
    ///
    /// # Errors
    /// [`Error::RequestIdReused`]; [`Error::Overloaded`] when other calls keep coming in between;
    /// when the database cannot do it. Nothing is reserved then.
    pub async fn reserve(&self, batch: &Arc<ReserveBatch>) -> Result<Vec<ReserveOutcome>, Error> {
        if batch.asks.len() == 1
            && let Some(got) = self.fresh.call(self, ReserveFresh(batch.clone())).await?
        {
            return Ok(vec![ReserveOutcome::Reserved(got)]);
        }
        let mut open: Vec<usize> = (0..batch.asks.len()).collect();
        let mut outcomes: BTreeMap<usize, ReserveOutcome> = BTreeMap::new();
        for round in 0..MAX_ROUNDS {
            pause(round).await;
            let job = ReserveRound { batch: batch.clone(), open: open.clone() };
            let rows = self.reserves.call(self, job).await?;
            if rows.iter().any(|(_, row)| row.outcome == "clash") {
                return Err(Error::RequestIdReused);
            }
            let contended = |row: &ReserveRow| row.outcome == "contended";
            let again: Vec<usize> =
                rows.iter().filter(|(_, row)| contended(row)).map(|&(ask, _)| ask).collect();
            if batch.all_or_nothing && !again.is_empty() {
                continue;
            }
            for (ask, row) in rows.into_iter().filter(|(_, row)| !contended(row)) {
                outcomes.insert(ask, outcome(batch, ask, row)?);
            }
            if again.is_empty() {
                if outcomes.len() < batch.asks.len() {
                    return Err(row::impossible("no outcome for a pool"));
                }
                return Ok(outcomes.into_values().collect());
            }
            open = again;
        }
        // What other pools gave in the meantime stays the caller's: the same request_id gets it.
        Err(Error::Overloaded)
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

fn outcome(batch: &ReserveBatch, ask: usize, row: ReserveRow) -> Result<ReserveOutcome, Error> {
    match row.outcome.as_str() {
        "reserved" => reserved(batch, ask, row).map(ReserveOutcome::Reserved),
        "withheld" => Ok(ReserveOutcome::Withheld),
        "exhausted" => Ok(ReserveOutcome::Exhausted),
        "quota" => Ok(ReserveOutcome::Quota),
        "incompatible" => Ok(ReserveOutcome::Incompatible),
        _ => Err(row::impossible("an unknown outcome of a Reserve")),
    }
}

fn reserved(batch: &ReserveBatch, ask: usize, row: ReserveRow) -> Result<Reserved, Error> {
    let ReserveRow {
        pool_id: Some(pool_id),
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
        left: left.filter(|_| generation > 0).map(i64::from).map(row::count).transpose()?,
    })
}
