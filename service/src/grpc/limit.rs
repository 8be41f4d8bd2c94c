//! What one caller, and all of them together, may ask of this replica.
//!
//! A call passes, in this order: [`ShedLayer`], which turns it away by its path alone while too many
//! wait; the count of requests under way, and a token from its caller's bucket, before its message
//! is read ([`Limits::knock`]); the tokens that its message costs; and the gate, where it waits for a
//! place to work. Health and reflection pass none of them.

mod buckets;
mod gate;
mod held;
mod rates;
mod shed;

use std::sync::Arc;

use tokio::{sync::SemaphorePermit, time::Instant};
use tonic::body::Body;

use super::auth::{Caller, Scope};
use crate::{domain::error::Error, pool::ReserveRequest};

pub use buckets::Rate;
pub use gate::GateLimits;
pub use held::RequestLimits;
pub use rates::RateLimits;
pub use shed::{ShedLayer, tell_refused};

pub(super) use gate::Refused;
pub(super) use shed::count_refused;

use gate::Gate;
use held::{Counted, Request, Requests};
use rates::Rates;

/// Those who settle are turned away once so many times as many wait as for those who reserve: what
/// was begun is better ended than begun.
const ROOM_TO_SETTLE: usize = 2;

/// What bounds the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadLimits {
    /// How often callers may call; none for no limit.
    pub rates: Option<RateLimits>,
    /// What requests may take up.
    pub requests: RequestLimits,
    /// The places of those who reserve and settle, one for each KeyPackage.
    pub adders: GateLimits,
    /// The places of those who look after their own pools, one for each call.
    pub owners: GateLimits,
}

/// What a call is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Reserve,
    /// Spend and Release.
    Settle,
    Upload,
    /// All else that is about one's own pool.
    Owner,
    /// What an auditor may ask, too.
    Events,
}

impl Kind {
    /// By the path of a call; none of another service.
    fn of(path: &str) -> Option<Self> {
        Some(match path.strip_prefix("/keypool.v1.KeyPackageService/")? {
            "ReserveKeyPackages" => Self::Reserve,
            "SpendKeyPackages" | "ReleaseReservations" => Self::Settle,
            "UploadKeyPackages" => Self::Upload,
            "ListPoolEvents" => Self::Events,
            _ => Self::Owner,
        })
    }

    fn room(self) -> usize {
        if self == Self::Settle { ROOM_TO_SETTLE } else { 1 }
    }
}

/// What a call asks of the database.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    kind: Kind,
    weight: usize,
}

impl Load {
    /// One call of an owner that costs no more than its knock.
    pub(super) const OWNER: Self = Self { kind: Kind::Owner, weight: 1 };
}

/// The limits of this replica.
#[derive(Debug)]
pub struct Limits {
    start: Instant,
    rates: Option<Rates>,
    requests: Arc<Requests>,
    adders: Gate,
    owners: Gate,
}

impl Limits {
    /// With all buckets full and all places free.
    pub fn new(limits: LoadLimits) -> Self {
        Self {
            start: Instant::now(),
            rates: limits.rates.map(Rates::new),
            requests: Arc::new(Requests::new(limits.requests)),
            adders: Gate::new(limits.adders),
            owners: Gate::new(limits.owners),
        }
    }

    /// Nanoseconds since the start, which no step of a clock changes.
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Whether a call would be turned away by its gate at once.
    fn sheds(&self, kind: Kind) -> bool {
        self.gate(kind).is_full(kind.room())
    }

    fn gate(&self, kind: Kind) -> &Gate {
        match kind {
            Kind::Reserve | Kind::Settle => &self.adders,
            Kind::Upload | Kind::Owner | Kind::Events => &self.owners,
        }
    }

    /// Lets a request begin; its message is counted as it arrives. The request is under way until
    /// the second of the answer is dropped.
    pub(super) fn knock(
        &self,
        caller: &Caller,
        request: http::Request<Body>,
    ) -> Result<(http::Request<Body>, Arc<impl Sized + use<>>), Error> {
        let kind = Kind::of(request.uri().path()).unwrap_or(Kind::Owner);
        let digest = caller.key.digest();
        let held: Arc<Request> = self.requests.begin(digest)?;
        if let Some(rates) = self.rates_for(caller, kind) {
            rates.knock(digest, kind, self.now())?;
        }
        let request = request.map(|body| Body::new(Counted::new(body, held.clone())));
        Ok((request, held))
    }

    /// An auditor reads a long log in a row.
    fn rates_for(&self, caller: &Caller, kind: Kind) -> Option<&Rates> {
        let audits = kind == Kind::Events && caller.scopes.contains(Scope::Audit);
        self.rates.as_ref().filter(|_| !audits)
    }

    /// Takes what a Reserve costs.
    pub(super) fn reserve(&self, caller: &Caller, request: &ReserveRequest) -> Result<Load, Error> {
        let weight = named(request);
        if let Some(rates) = &self.rates {
            let users = request.targets.iter().map(|target| &target.user);
            rates.take_reserve(caller.key.digest(), users, weight, self.now())?;
        }
        Ok(Load { kind: Kind::Reserve, weight })
    }

    /// Takes what a Reserve from so many clients cost beyond that, served or not.
    pub(super) fn reserved(&self, caller: &Caller, load: Load, asked: usize) {
        if let Some(rates) = &self.rates {
            rates.charge_reserve(caller.key.digest(), load.weight, asked, self.now());
        }
    }

    /// Takes what settling so many reservations costs.
    pub(super) fn settle(&self, caller: &Caller, reservations: usize) -> Result<Load, Error> {
        self.take(caller, Kind::Settle, reservations)?;
        Ok(Load { kind: Kind::Settle, weight: reservations })
    }

    /// Takes what uploading so many packages costs.
    pub(super) fn upload(&self, caller: &Caller, packages: usize) -> Result<Load, Error> {
        self.take(caller, Kind::Upload, packages)?;
        Ok(Load { kind: Kind::Upload, weight: 1 })
    }

    fn take(&self, caller: &Caller, kind: Kind, items: usize) -> Result<(), Error> {
        match &self.rates {
            Some(rates) => rates.take(caller.key.digest(), kind, items, self.now()),
            None => Ok(()),
        }
    }

    /// Waits for a place to work.
    pub(super) async fn enter(&self, load: Load) -> Result<SemaphorePermit<'_>, Refused> {
        self.gate(load.kind).enter(load.weight, load.kind.room()).await
    }
}

/// How many clients a Reserve names; a user whose clients it does not name counts as one.
fn named(request: &ReserveRequest) -> usize {
    request.targets.iter().map(|target| target.clients.len().max(1)).sum()
}
