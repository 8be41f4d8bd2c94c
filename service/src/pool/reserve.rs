//! An adder reserves one package from each client of each target user.

use std::{ops::Range, sync::Arc};

use time::{Duration, OffsetDateTime};

use super::{KeyPool, random_id};
use crate::{
    domain::{
        capabilities::Capabilities,
        error::Error,
        ids::{CipherSuite, ClientId, ClientKey, GroupId, KeyPackageRef, RequestId, UserId},
    },
    metrics::{Issued, NotReserved, metrics},
    store::{ReserveAsk, ReserveBatch, ReserveOutcome, Reserved},
};

/// How many clients one call may reserve from.
pub const MAX_CLIENTS: usize = 1000;

/// What an adder asks for.
#[derive(Debug, Clone)]
pub struct ReserveRequest {
    /// By which a repeated call is recognised.
    pub request_id: RequestId,
    /// The group the packages are for.
    pub group_id: GroupId,
    /// The cipher suite of the group.
    pub cipher_suite: CipherSuite,
    /// Whose packages; each user once.
    pub targets: Vec<Target>,
    /// What the leaf must support.
    pub required: Capabilities,
    /// How long the reservations are to live.
    pub ttl: Option<Duration>,
    /// Whether a last resort package will do.
    pub last_resort: bool,
    /// Whether nothing is to be reserved unless every client can be served.
    pub all_or_nothing: bool,
}

/// A user whose clients are to be added.
#[derive(Debug, Clone)]
pub struct Target {
    /// The user.
    pub user: UserId,
    /// The clients of that user, each once; none means all that have a pool.
    pub clients: Vec<ClientId>,
}

/// What one client gave.
#[derive(Debug)]
pub struct ReserveResult {
    /// The user.
    pub user: UserId,
    /// The client; none where the call named none and the user has none that gives anything.
    pub client: Option<ClientId>,
    /// A reservation, or why there is none.
    pub outcome: Result<Reservation, Unavailable>,
}

/// A package that is the caller's now.
#[derive(Debug)]
pub struct Reservation {
    /// Names the reservation.
    pub id: String,
    /// The package's ref.
    pub key_package_ref: KeyPackageRef,
    /// The package.
    pub key_package: Vec<u8>,
    /// The end of its lifetime.
    pub not_after: OffsetDateTime,
    /// Until then nobody else gets it.
    pub expires_at: OffsetDateTime,
    /// Whether it is the last resort package.
    pub last_resort: bool,
}

/// Why a client gave no package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unavailable {
    /// Nothing is left, or there is no such user or client.
    PoolExhausted,
    /// Nothing of this cipher suite with these capabilities.
    NoCompatibleKeyPackage,
    /// The caller holds its fair share of the pool already.
    Quota,
}

/// Counts what was handed out and what was not.
fn measure(outcomes: &[ReserveOutcome]) {
    let metrics = metrics();
    for outcome in outcomes {
        match outcome {
            ReserveOutcome::Reserved(got) if got.locator.is_last_resort() => {
                metrics.issued.count(Issued::LastResort);
            }
            // Handed out before, to the same call.
            ReserveOutcome::Reserved(got) if got.left.is_none() => {}
            ReserveOutcome::Reserved(got) if got.locator.generation > 1 => {
                metrics.issued.count(Issued::Returned);
            }
            ReserveOutcome::Reserved(_) => metrics.issued.count(Issued::OneTime),
            ReserveOutcome::Exhausted => metrics.unavailable.count(NotReserved::PoolExhausted),
            ReserveOutcome::Incompatible => {
                metrics.unavailable.count(NotReserved::NoCompatibleKeyPackage);
            }
            ReserveOutcome::Quota => metrics.unavailable.count(NotReserved::Quota),
            ReserveOutcome::Withheld => {}
        }
    }
}

impl From<Unavailable> for Error {
    fn from(reason: Unavailable) -> Self {
        match reason {
            Unavailable::PoolExhausted => Self::PoolExhausted,
            Unavailable::NoCompatibleKeyPackage => Self::NoCompatibleKeyPackage,
            Unavailable::Quota => Self::Quota,
        }
    }
}

impl KeyPool {
    /// Reserves one package from each client of each target; one result for each client, in the
    /// order of the request. Where the call named no clients and all of the user's are exhausted
    /// there is one, without a client, as for a user who does not exist.
    ///
    /// # Errors
    /// The reason of the first client that gives nothing, when there is just one client or the
    /// call is all or nothing; [`Error::RequestIdReused`]; [`Error::BatchTooLarge`]; when the
    /// store cannot do it. Nothing is reserved then.
    pub async fn reserve(
        &self,
        caller: &ClientKey,
        request: &ReserveRequest,
    ) -> Result<Vec<ReserveResult>, Error> {
        self.reserve_counting(caller, request, &mut 0).await
    }

    /// As [`KeyPool::reserve`]; `asked` becomes the number of clients that were asked, those too
    /// that the answer does not show.
    ///
    /// # Errors
    /// As [`KeyPool::reserve`].
    pub async fn reserve_counting(
        &self,
        caller: &ClientKey,
        request: &ReserveRequest,
        asked: &mut usize,
    ) -> Result<Vec<ReserveResult>, Error> {
        // One place for the whole call, by its first target: who reserves from the same users
        // again and again is served, but not more than others.
        let first = request.targets.first().map(|target| target.user.clone());
        let place = first.map(|user| self.turns.place((caller.digest(), user)));
        let _turn = match &place {
            Some(place) => Some(place.turn().await),
            None => None,
        };
        let Seats { seats, whole } = self.seats(caller, &request.targets).await?;
        *asked = seats.len();
        let mut asks = Vec::with_capacity(seats.len());
        for (user, client) in &seats {
            // A user without a client is looked for with the statements of any user with one, so
            // that the time of an answer does not tell them apart.
            let client = client.clone().map_or_else(nobody, Ok)?;
            let owner = ClientKey { user: user.clone(), client };
            asks.push(ReserveAsk { owner, grant_id: random_id() });
        }
        let batch = Arc::new(ReserveBatch {
            caller: caller.clone(),
            request_id: request.request_id,
            group_id: request.group_id.clone(),
            cipher_suite: request.cipher_suite,
            required: request.required.clone(),
            ttl: self.policy.ttl(request.ttl),
            min_remaining_lifetime: self.policy.min_remaining_lifetime,
            lapse: self.policy.lapse,
            fair_share: self.policy.fair_share(),
            last_resort: request.last_resort,
            all_or_nothing: request.all_or_nothing,
            asks,
        });
        let outcomes = self.store.reserve(&batch).await?;
        measure(&outcomes);
        let pools = batch.asks.iter().map(|ask| &ask.owner).zip(&outcomes).zip(&seats);
        let pools = pools.filter(|(_, (_, client))| client.is_some()).map(|(pool, _)| pool);
        self.watch.touch_all(&self.policy, pools);
        let mut first_refusal = None;
        let mut refuse = |reason| {
            first_refusal.get_or_insert(reason);
            Err(reason)
        };
        let mut results: Vec<ReserveResult> = seats
            .into_iter()
            .zip(outcomes)
            .map(|((user, client), given)| {
                let outcome = match given {
                    ReserveOutcome::Reserved(got) => Ok(self.reservation(caller, got)),
                    // Never shown: the call fails by the refusal of another client.
                    ReserveOutcome::Withheld => Err(Unavailable::PoolExhausted),
                    ReserveOutcome::Exhausted => refuse(Unavailable::PoolExhausted),
                    ReserveOutcome::Quota => refuse(Unavailable::Quota),
                    ReserveOutcome::Incompatible => refuse(Unavailable::NoCompatibleKeyPackage),
                };
                ReserveResult { user, client, outcome }
            })
            .collect();
        hide_exhausted(&mut results, &whole);
        match first_refusal {
            Some(reason) if request.all_or_nothing || results.len() == 1 => Err(reason.into()),
            _ => Ok(results),
        }
    }

    /// Who is asked.
    async fn seats(&self, caller: &ClientKey, targets: &[Target]) -> Result<Seats, Error> {
        let all_of: Vec<&UserId> =
            targets.iter().filter(|t| t.clients.is_empty()).map(|t| &t.user).collect();
        // The caller's own client does not count, hence one more than the limit and its excess.
        let mut found = self.store.clients_of(&all_of, MAX_CLIENTS + 2).await?;
        let (mut seats, mut whole) = (Vec::new(), Vec::new());
        for Target { user, clients } in targets {
            let every = clients.is_empty();
            let clients =
                if every { found.remove(user).unwrap_or_default() } else { clients.clone() };
            let others = |client: &ClientId| caller.user != *user || caller.client != *client;
            let before = seats.len();
            seats.extend(clients.into_iter().filter(others).map(|c| (user.clone(), Some(c))));
            if every && seats.len() == before {
                seats.push((user.clone(), None));
            }
            if every {
                whole.push(before..seats.len());
            }
        }
        if seats.len() > MAX_CLIENTS {
            return Err(Error::BatchTooLarge { field: "targets", limit: MAX_CLIENTS });
        }
        Ok(Seats { seats, whole })
    }

    fn reservation(&self, caller: &ClientKey, got: Reserved) -> Reservation {
        Reservation {
            id: self.reservation_key.seal(&got.locator, caller.digest()),
            last_resort: got.locator.is_last_resort(),
            key_package_ref: got.key_package_ref,
            key_package: got.key_package,
            not_after: got.not_after,
            expires_at: got.expires_at,
        }
    }
}

/// Who is asked.
struct Seats {
    /// Each target's clients, or its user alone when it has none to reserve from.
    seats: Vec<(UserId, Option<ClientId>)>,
    /// Those of users of whom the call named no clients.
    whole: Vec<Range<usize>>,
}

/// Of a user who has nothing left nobody hears which clients there are, nor that there are any.
fn hide_exhausted(results: &mut Vec<ReserveResult>, whole: &[Range<usize>]) {
    let nothing =
        |result: &ReserveResult| matches!(result.outcome, Err(Unavailable::PoolExhausted));
    for seats in whole.iter().rev() {
        let Some(first) = results.get(seats.start) else { continue };
        let user = first.user.clone();
        if results.get(seats.clone()).is_some_and(|all| all.iter().all(nothing)) {
            let outcome = Err(Unavailable::PoolExhausted);
            results.splice(seats.clone(), [ReserveResult { user, client: None, outcome }]);
        }
    }
}

/// A client that nobody has.
fn nobody() -> Result<ClientId, Error> {
    ClientId::parse(format!("nobody {:016x}{:016x}", random_id(), random_id()))
        .map_err(|error| Error::Internal(error.into()))
}
