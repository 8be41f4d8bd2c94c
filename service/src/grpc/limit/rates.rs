//! How often one caller may call, and how often upon one user.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use super::{
    Kind,
    buckets::{Buckets, Rate},
};
use crate::{
    domain::{
        error::Error,
        ids::{ClientDigest, UserId},
    },
    metrics::{RateLimit, metrics},
};

/// How many callers are remembered; each takes some 50 bytes.
const CALLERS: usize = 1 << 16;
/// How many pairs of a caller and a user are remembered; each takes some 70 bytes.
const PAIRS: usize = 1 << 17;
/// The KeyPackages of an upload that cost a token.
const UPLOADED_PER_TOKEN: usize = 10;

/// What callers may do over time. A caller is one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimits {
    /// Reserving, a token for each client reserved from. Settling has a bucket of its own that
    /// is twice as large: what could be reserved can be settled.
    pub reserve: Rate,
    /// Reserving from one user, a token a call.
    pub target: Rate,
    /// What owners do, a token a call; an upload one for every ten KeyPackages.
    pub owner: Rate,
}

/// The buckets of this replica.
#[derive(Debug)]
pub(super) struct Rates {
    reserve: Buckets<ClientDigest>,
    settle: Buckets<ClientDigest>,
    owner: Buckets<ClientDigest>,
    target: Buckets<(ClientDigest, u64)>,
    /// Names users to one caller's buckets: of two that get the same name, one is held to the
    /// other's rate.
    hasher: RandomState,
}

impl Rates {
    pub(super) fn new(limits: RateLimits) -> Self {
        let double = |Rate { burst, per_minute }: Rate| Rate {
            burst: burst.saturating_mul(2),
            per_minute: per_minute.saturating_mul(2),
        };
        Self {
            reserve: Buckets::new(limits.reserve, CALLERS),
            settle: Buckets::new(double(limits.reserve), CALLERS),
            owner: Buckets::new(limits.owner, CALLERS),
            target: Buckets::new(limits.target, PAIRS),
            hasher: RandomState::new(),
        }
    }

    fn of(&self, kind: Kind) -> &Buckets<ClientDigest> {
        match kind {
            Kind::Reserve => &self.reserve,
            Kind::Settle => &self.settle,
            Kind::Upload | Kind::Owner | Kind::Events => &self.owner,
        }
    }

    /// Takes the token that every call costs, before its message is read.
    pub(super) fn knock(&self, caller: ClientDigest, kind: Kind, now: u64) -> Result<(), Error> {
        self.of(kind).take(&caller, 1, now).map_err(|wait| calls(kind, wait))
    }

    /// Takes what the message costs beyond that: it is about so many KeyPackages or clients.
    pub(super) fn take(
        &self,
        caller: ClientDigest,
        kind: Kind,
        items: usize,
        now: u64,
    ) -> Result<(), Error> {
        let buckets = self.of(kind);
        let cost = cost(kind, items).min(buckets.burst());
        let taken = buckets.take(&caller, cost - 1, now);
        // What the next try costs: all of it.
        taken.map_err(|_| calls(kind, buckets.wait(&caller, cost, now)))
    }

    /// As [`Rates::take`], for a Reserve from these users; and a token from each user's bucket, or
    /// from none.
    pub(super) fn take_reserve<'a>(
        &self,
        caller: ClientDigest,
        users: impl Iterator<Item = &'a UserId> + Clone,
        clients: usize,
        now: u64,
    ) -> Result<(), Error> {
        self.take(caller, Kind::Reserve, clients, now)?;
        let pairs = users.map(|user| (caller, self.hasher.hash_one(user)));
        let refused = pairs.clone().enumerate().find_map(|(before, pair)| {
            self.target.take(&pair, 1, now).err().map(|wait| (before, wait))
        });
        let Some((before, first_wait)) = refused else { return Ok(()) };
        for pair in pairs.clone().take(before) {
            self.target.give_back(&pair, 1);
        }
        let taken = cost(Kind::Reserve, clients).min(self.reserve.burst()) - 1;
        self.reserve.give_back(&caller, taken);
        metrics().rate_limited.count(RateLimit::CallerTarget);
        let waits = pairs.skip(before).map(|pair| self.target.wait(&pair, 1, now));
        Err(Error::RateLimited {
            what: "Reserves from one user",
            retry_after: waits.fold(first_wait, Duration::max),
        })
    }

    /// Takes what a Reserve turned out to cost beyond what was taken: clients that it did not name.
    pub(super) fn charge_reserve(
        &self,
        caller: ClientDigest,
        asked: usize,
        found: usize,
        now: u64,
    ) {
        let more = cost(Kind::Reserve, found).saturating_sub(cost(Kind::Reserve, asked));
        if more > 0 {
            self.reserve.charge(&caller, more, now);
        }
    }
}

/// What a call costs, at least one.
fn cost(kind: Kind, items: usize) -> u32 {
    let tokens = match kind {
        Kind::Reserve | Kind::Settle => items,
        Kind::Upload => items.div_ceil(UPLOADED_PER_TOKEN),
        Kind::Owner | Kind::Events => 1,
    };
    u32::try_from(tokens).unwrap_or(u32::MAX).max(1)
}

fn calls(kind: Kind, wait: Duration) -> Error {
    metrics().rate_limited.count(match kind {
        Kind::Reserve | Kind::Settle => RateLimit::Caller,
        Kind::Upload | Kind::Owner | Kind::Events => RateLimit::Owner,
    });
    Error::RateLimited { what: "calls of one client", retry_after: wait }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const ALICE: ClientDigest = ClientDigest([1; 16]);
    const CAROL: ClientDigest = ClientDigest([2; 16]);

    fn rate(burst: u32, per_minute: u32) -> Rate {
        Rate { burst, per_minute }
    }

    fn rates() -> Rates {
        Rates::new(RateLimits { reserve: rate(100, 60), target: rate(3, 6), owner: rate(12, 60) })
    }

    fn users(count: usize) -> Vec<UserId> {
        (0..count).map(|n| UserId::parse(format!("user {n}")).unwrap()).collect()
    }

    fn wait(refused: Result<(), Error>) -> u64 {
        match refused {
            Err(Error::RateLimited { retry_after, .. }) => retry_after.as_secs(),
            other => panic!("not refused: {other:?}"),
        }
    }

    fn reserve(
        rates: &Rates,
        caller: ClientDigest,
        users: &[UserId],
        now: u64,
    ) -> Result<(), Error> {
        rates.knock(caller, Kind::Reserve, now)?;
        rates.take_reserve(caller, users.iter(), users.len(), now)
    }

    #[test]
    fn a_reserve_costs_a_token_a_client_and_one_that_waits_as_told_passes() {
        let (rates, users) = (rates(), users(90));
        reserve(&rates, ALICE, &users[..90], 0).unwrap();
        reserve(&rates, ALICE, &users[..5], 0).unwrap();
        // Five are left; knocking took one of them.
        assert_eq!(wait(reserve(&rates, ALICE, &users[..20], 0)), 16);
        reserve(&rates, ALICE, &users[..20], 16 * SECOND).unwrap();
        assert_eq!(wait(reserve(&rates, ALICE, &users[..1], 16 * SECOND)), 1);
        reserve(&rates, CAROL, &users, 16 * SECOND).unwrap();
    }

    #[test]
    fn what_costs_more_than_a_bucket_holds_takes_a_full_one() {
        let (rates, users) = (rates(), users(300));
        reserve(&rates, ALICE, &users, 0).unwrap();
        assert_eq!(wait(reserve(&rates, ALICE, &users[..1], 0)), 1);
        assert_eq!(wait(reserve(&rates, ALICE, &users, SECOND)), 100);
    }

    #[test]
    fn one_user_is_asked_so_often_and_a_refused_call_asks_nobody() {
        let (rates, users) = (rates(), users(4));
        for _ in 0..3 {
            reserve(&rates, ALICE, &users[3..], 0).unwrap();
        }
        for _ in 0..5 {
            // The last of them has no token: the others keep theirs, and so does the caller.
            assert_eq!(wait(reserve(&rates, ALICE, &users, 0)), 10);
        }
        for _ in 0..3 {
            reserve(&rates, ALICE, &users[..3], 0).unwrap();
        }
        // 3 and 9 were reserved, and 5 calls were refused.
        assert_eq!(rates.reserve.wait(&ALICE, 100 - 17, 0), Duration::ZERO);
        assert_eq!(rates.reserve.wait(&ALICE, 100 - 16, 0), Duration::from_secs(1));
        reserve(&rates, CAROL, &users, 0).unwrap();
        reserve(&rates, ALICE, &users[3..], 10 * SECOND).unwrap();
    }

    #[test]
    fn clients_that_were_not_named_are_paid_for_afterwards() {
        let (rates, users) = (rates(), users(1));
        reserve(&rates, ALICE, &users, 0).unwrap();
        rates.charge_reserve(ALICE, 1, 120, 0);
        assert_eq!(wait(reserve(&rates, ALICE, &users, 0)), 21);
        rates.charge_reserve(CAROL, 5, 3, 0);
        rates.charge_reserve(CAROL, 0, 1, 0);
        assert_eq!(rates.reserve.wait(&CAROL, 100, 0), Duration::ZERO, "nothing is given back");
    }

    #[test]
    fn what_could_be_reserved_can_be_settled_twice() {
        let (rates, users) = (rates(), users(100));
        reserve(&rates, ALICE, &users, 0).unwrap();
        assert!(reserve(&rates, ALICE, &users, 0).is_err());
        for _ in 0..2 {
            rates.knock(ALICE, Kind::Settle, 0).unwrap();
            rates.take(ALICE, Kind::Settle, 100, 0).unwrap();
        }
        assert!(rates.knock(ALICE, Kind::Settle, 0).is_err());
    }

    #[test]
    fn owners_have_a_bucket_of_their_own_and_uploads_cost_by_their_packages() {
        let rates = rates();
        reserve(&rates, ALICE, &users(100), 0).unwrap();
        rates.knock(ALICE, Kind::Upload, 0).unwrap();
        rates.take(ALICE, Kind::Upload, 100, 0).unwrap();
        rates.knock(ALICE, Kind::Owner, 0).unwrap();
        rates.take(ALICE, Kind::Owner, 1, 0).unwrap();
        rates.knock(ALICE, Kind::Upload, 0).unwrap();
        assert_eq!(wait(rates.take(ALICE, Kind::Upload, 11, 0)), 2);
        assert_eq!(wait(rates.knock(ALICE, Kind::Events, 0)), 1);
    }
}
