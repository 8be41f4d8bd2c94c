//! Random walks through everything that can happen to a pool; after each step all must agree:
//! rows, counters, status, events, and what the callers were told.

mod invariants;

use std::collections::HashMap;

use keypool_service::{
    domain::{
        error::Error,
        ids::{CipherSuite, ClientKey, KeyPackageRef},
        policy::{LapsePolicy, PoolPolicy},
    },
    pool::{KeyPool, Selection, SweepPolicy, UploadMode},
};
use keypool_testing::{
    forge::Forge,
    world::{World, ask, client, group, verdict},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use time::Duration;

const STEPS: usize = 90;
const SUITES: [u16; 2] = [1, 2];

/// A reservation as its holder remembers it.
#[derive(Debug, Clone)]
struct Held {
    id: String,
    caller: usize,
    key_package_ref: Vec<u8>,
    last_resort: bool,
    group: u8,
}

struct Walk {
    world: World,
    random: StdRng,
    callers: [ClientKey; 2],
    owners: [ClientKey; 2],
    /// All that was ever uploaded, to be uploaded again.
    uploaded: Vec<(usize, Vec<u8>)>,
    held: Vec<Held>,
    /// By whom a one-time package was spent.
    spent: HashMap<Vec<u8>, String>,
}

impl Walk {
    fn replica(&mut self) -> KeyPool {
        if self.random.random() { self.world.a.clone() } else { self.world.b.clone() }
    }

    async fn step(&mut self) {
        match self.random.random_range(0..100) {
            0..20 => self.upload().await,
            20..55 => self.reserve().await,
            55..70 => self.spend().await,
            70..79 => self.release().await,
            79..82 => self.revoke().await,
            82..92 => {
                let seconds = *[1, 20, 60, 600, 4000, 40_000].choose(&mut self.random).unwrap();
                self.world.pass(seconds);
            }
            _ => {
                let batch = self.random.random_range(1..4);
                let policy = SweepPolicy { batch, ..SweepPolicy::default() };
                self.replica().sweep(&policy).await.unwrap();
            }
        }
    }

    async fn upload(&mut self) {
        let at = self.random.random_range(0..2);
        let owner = self.owners[at].clone();
        let mut batch = Vec::new();
        for _ in 0..self.random.random_range(1..5) {
            let suite = *SUITES.choose(&mut self.random).unwrap();
            let lifetime = self.random.random_range(10..100_000);
            let now = self.world.now();
            let forge = Forge::new(suite, owner.user.as_str()).lifetime(now - 60, now + lifetime);
            let last_resort = self.random.random_range(0..6) == 0;
            let forge = if last_resort { forge.extension(0x000a, b"") } else { forge };
            batch.push(forge.build());
        }
        if let Some((_, old)) = self.uploaded.choose(&mut self.random) {
            batch.push(old.clone());
        }
        let results =
            self.replica().upload(&owner, batch.clone(), UploadMode::Add).await.unwrap().0;
        for (bytes, result) in batch.into_iter().zip(results) {
            if verdict(&result) == Ok(false) {
                assert!(!self.uploaded.iter().any(|(_, known)| *known == bytes), "stored twice");
                self.uploaded.push((at, bytes));
            }
        }
    }

    async fn reserve(&mut self) {
        let caller = self.random.random_range(0..2);
        let mut request = match self.random.random_range(0..3) {
            0 => ask(&[&self.owners[0], &self.owners[1]]),
            n => ask(&[&self.owners[n - 1]]),
        };
        let group_number = self.random.random_range(1..3);
        request.group_id = group(group_number);
        request.cipher_suite = CipherSuite(*SUITES.choose(&mut self.random).unwrap());
        request.ttl = Some(Duration::seconds(self.random.random_range(1..120)));
        request.last_resort = self.random.random();
        request.all_or_nothing = self.random.random();
        let got = self.replica().reserve(&self.callers[caller], &request).await;
        let results = match got {
            Ok(results) => results,
            Err(Error::PoolExhausted | Error::NoCompatibleKeyPackage) => return,
            Err(other) => panic!("{other:?}"),
        };
        let again = self.replica().reserve(&self.callers[caller], &request).await.unwrap();
        for (one, other) in results.into_iter().zip(again) {
            match (one.outcome, other.outcome) {
                (Ok(got), Ok(again)) => {
                    assert_eq!((&got.id, got.expires_at), (&again.id, again.expires_at));
                    let key_package_ref = got.key_package_ref.0;
                    assert!(
                        !self.spent.contains_key(&key_package_ref),
                        "issued after it was spent"
                    );
                    assert!(got.not_after >= self.clock_now() + Duration::hours(1));
                    let (id, last_resort) = (got.id, got.last_resort);
                    self.held.push(Held {
                        id,
                        caller,
                        key_package_ref,
                        last_resort,
                        group: group_number,
                    });
                }
                (Err(one), Err(other)) => assert_eq!(one, other),
                other => panic!("a retry changed the answer: {other:?}"),
            }
        }
    }

    fn clock_now(&self) -> time::OffsetDateTime {
        keypool_service::domain::clock::Clock::now(&self.world.clock)
    }

    async fn spend(&mut self) {
        let Some(held) = self.held.choose(&mut self.random).cloned() else { return };
        let wrong_group = self.random.random_range(0..8) == 0;
        let number = if wrong_group { held.group + 10 } else { held.group };
        let caller = self.callers[held.caller].clone();
        let ids = [held.id.clone()];
        match self.replica().spend(&caller, &ids, &group(number)).await {
            Ok(spent) => {
                assert!(!wrong_group);
                assert_eq!(spent[0].key_package_ref.0, held.key_package_ref);
                if !held.last_resort {
                    let by = self.spent.entry(held.key_package_ref).or_insert(held.id.clone());
                    assert_eq!(*by, held.id, "spent by two reservations");
                }
            }
            Err(Error::GroupMismatch) => assert!(wrong_group),
            Err(Error::ReservationLost | Error::ReservationNotHeld) => {}
            Err(other) => panic!("{other:?}"),
        }
    }

    async fn release(&mut self) {
        let Some(held) = self.held.choose(&mut self.random).cloned() else { return };
        let caller = self.callers[held.caller].clone();
        match self.replica().release(&caller, &[held.id]).await {
            Ok(_) | Err(Error::ReservationNotHeld) => {}
            Err(other) => panic!("{other:?}"),
        }
    }

    async fn revoke(&mut self) {
        let owner = self.owners[self.random.random_range(0..2)].clone();
        let refs = self.held.iter().map(|held| KeyPackageRef(held.key_package_ref.clone()));
        let selection = match self.random.random_range(0..4) {
            0 => Selection::All,
            _ => Selection::Refs(refs.collect()),
        };
        self.replica().revoke(&owner, None, selection).await.unwrap();
    }
}

async fn walk(seed: u64, lapse: LapsePolicy) {
    let world = World::with(PoolPolicy { lapse, hard_cap: 12, ..PoolPolicy::default() }).await;
    let mut walk = Walk {
        world,
        random: StdRng::seed_from_u64(seed),
        callers: [client("alice", "1"), client("eve", "1")],
        owners: [client("bob", "1"), client("carol", "1")],
        uploaded: Vec::new(),
        held: Vec::new(),
        spent: HashMap::new(),
    };
    for _ in 0..STEPS {
        walk.step().await;
        walk.check(lapse == LapsePolicy::Burn).await;
    }
    // The walk went somewhere.
    let kinds = walk.world.texts("SELECT DISTINCT kind FROM event").await;
    assert!(kinds.len() >= 6, "{kinds:?}");
}

#[tokio::test]
async fn by_policy_return_from_seed_1() {
    walk(1, LapsePolicy::Return).await;
}

#[tokio::test]
async fn by_policy_return_from_seed_2() {
    walk(2, LapsePolicy::Return).await;
}

#[tokio::test]
async fn by_policy_burn_from_seed_3() {
    walk(3, LapsePolicy::Burn).await;
}

#[tokio::test]
async fn by_policy_burn_from_seed_4() {
    walk(4, LapsePolicy::Burn).await;
}
