//! What is called at random, and what keypool answers.

use keypool_model::{Ask, Refusal, Refused, Request, Revoked, Suite, Time, Unavailable};
use keypool_service::{
    domain::{
        error::Error,
        ids::{CipherSuite, KeyPackageRef},
        key_package::RejectReason,
    },
    pool::{self, KeyPool, ReserveRequest, Selection, UploadMode},
};
use keypool_testing::{
    forge::{Forge, NOW},
    world::{ask, group, join_all, spawn, verdict},
};
use proptest::{prelude::*, sample::Index};
use time::Duration;

use super::Walk;

/// No reservation is asked for for so long, in seconds.
pub(super) const LONGEST_TTL: Time = 120;

/// A step of a walk. Numbers pick among what there is by then.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Pass(Time),
    Sweep,
    /// Reservations lapse, and the sweeper sees it before anyone else.
    Lapse,
    /// At once.
    Calls(Vec<Plan>),
}

#[derive(Debug, Clone)]
pub(super) enum Plan {
    Upload {
        owner: usize,
        new: Vec<New>,
        again: Option<Index>,
    },
    Reserve {
        adder: usize,
        owners: usize,
        group: u8,
        suite: Suite,
        ttl: Time,
        flags: [bool; 2],
    },
    /// A Reserve that was made before, perhaps for another group.
    Repeat {
        which: Index,
        other_group: bool,
    },
    Spend {
        which: Vec<Index>,
        other_group: bool,
    },
    Release {
        which: Vec<Index>,
    },
    Revoke {
        owner: usize,
        which: Option<Vec<Index>>,
    },
}

#[derive(Debug, Clone)]
pub(super) struct New {
    pub(super) suite: Suite,
    pub(super) lifetime: Time,
    pub(super) last_resort: bool,
}

pub(super) fn steps(at_once: usize) -> impl Strategy<Value = Vec<Step>> {
    let suite = || prop_oneof![4 => Just(1_u8), 1 => Just(2)];
    let new = (suite(), 10_u32..100_000, prop::bool::weighted(0.2))
        .prop_map(|(suite, lifetime, last_resort)| New { suite, lifetime, last_resort });
    let some = || prop::collection::vec(any::<Index>(), 1..3);
    let owner = || 0..2_usize;
    let upload = (owner(), prop::collection::vec(new, 1..4), any::<Option<Index>>())
        .prop_map(|(owner, new, again)| Plan::Upload { owner, new, again });
    // More than one pool at a time is not one step, when others come in between.
    let owners = if at_once > 1 { 1..3_usize } else { 1..4 };
    let reserve = (owner(), owners, 1..3_u8, suite(), 1..LONGEST_TTL, any::<[bool; 2]>()).prop_map(
        |(adder, owners, group, suite, ttl, flags)| Plan::Reserve {
            adder,
            owners,
            group,
            suite,
            ttl,
            flags,
        },
    );
    let rarely = || prop::bool::weighted(0.15);
    let plan = prop_oneof![
        20 => upload,
        35 => reserve,
        8 => (any::<Index>(), rarely())
            .prop_map(|(which, other_group)| Plan::Repeat { which, other_group }),
        15 => (some(), rarely())
            .prop_map(|(which, other_group)| Plan::Spend { which, other_group }),
        9 => some().prop_map(|which| Plan::Release { which }),
        4 => (owner(), prop::option::weighted(0.8, some()))
            .prop_map(|(owner, which)| Plan::Revoke { owner, which }),
    ];
    let step = prop_oneof![
        10 => prop::sample::select(vec![1, 20, 60, 600, 4_000, 40_000]).prop_map(Step::Pass),
        7 => Just(Step::Sweep),
        5 => Just(Step::Lapse),
        80 => prop::collection::vec(plan, 1..=at_once).prop_map(Step::Calls),
    ];
    prop::collection::vec(step, 1..45)
}

/// What was made so far, for later steps to pick from.
#[derive(Debug, Default)]
pub(super) struct Made {
    /// Whose, and the package itself.
    packages: Vec<(usize, Vec<u8>)>,
    refs: Vec<(usize, Vec<u8>)>,
    reserves: Vec<(ReserveRequest, Asked)>,
    held: Vec<Held>,
    requests: Request,
}

/// A reservation as its holder remembers it.
#[derive(Debug, Clone)]
struct Held {
    id: String,
    adder: usize,
    group: u8,
}

/// A Reserve in the model's terms.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    /// One for each pool.
    pub(super) asks: Vec<(usize, Ask)>,
    pub(super) all_or_nothing: bool,
}

/// A call that can be made.
#[derive(Debug, Clone)]
pub(super) enum Call {
    Upload { owner: usize, packages: Vec<(Vec<u8>, New)> },
    Reserve { request: ReserveRequest, asked: Asked },
    Spend { adder: usize, ids: Vec<String>, group: u8 },
    Release { adder: usize, ids: Vec<String> },
    Revoke { owner: usize, refs: Option<Vec<Vec<u8>>> },
}

/// What one pool gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Got {
    pub(super) id: String,
    pub(super) key_package_ref: Vec<u8>,
    pub(super) expires_at: Time,
    pub(super) last_resort: bool,
}

/// What a call answered, in the model's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// The ref, and whether it was there already.
    Upload(Vec<(Vec<u8>, Result<bool, Refused>)>),
    Reserve(Result<Vec<Result<Got, Unavailable>>, Unavailable>),
    /// Whether each was settled so before.
    Settle(Result<Vec<bool>, Refusal>),
    Revoke(Revoked),
}

impl Walk {
    /// The call that a plan means now; none when there is nothing to pick.
    pub(super) fn prepare(&mut self, plan: Plan) -> Option<Call> {
        let made = &mut self.made;
        Some(match plan {
            Plan::Upload { owner, new, again } => {
                let now = self.world.now();
                let mut packages: Vec<(Vec<u8>, New)> = new
                    .into_iter()
                    .map(|new| {
                        let user = self.owners[owner].user.as_str();
                        let forge = Forge::new(new.suite.into(), user)
                            .lifetime(now - 60, now + u64::from(new.lifetime));
                        let forge =
                            if new.last_resort { forge.extension(0x000a, b"") } else { forge };
                        (forge.build(), new)
                    })
                    .collect();
                let old: Vec<_> = made.packages.iter().filter(|(of, _)| *of == owner).collect();
                if let Some(again) = again.filter(|_| !old.is_empty()) {
                    // What it is, the model knows by its ref.
                    let new = New { suite: 0, lifetime: 0, last_resort: false };
                    packages.push((again.get(&old).1.clone(), new));
                }
                Call::Upload { owner, packages }
            }
            Plan::Reserve { adder, owners, group: number, suite, ttl, flags } => {
                let targets: Vec<usize> = (0..2).filter(|at| owners & (1 << at) != 0).collect();
                let clients: Vec<_> = targets.iter().map(|&at| &self.owners[at]).collect();
                let mut request = ask(&clients);
                request.group_id = group(number);
                request.cipher_suite = CipherSuite(suite.into());
                request.ttl = Some(Duration::seconds(ttl.into()));
                [request.last_resort, request.all_or_nothing] = flags;
                made.requests += 1;
                let ask = Ask {
                    adder: u8::try_from(adder).unwrap(),
                    request: made.requests,
                    group: number,
                    suite,
                    ttl,
                    last_resort: flags[0],
                };
                let asks = targets.into_iter().map(|owner| (owner, ask)).collect();
                Call::Reserve { request, asked: Asked { asks, all_or_nothing: flags[1] } }
            }
            Plan::Repeat { which, other_group } => {
                let all = Some(&made.reserves).filter(|all| !all.is_empty())?;
                let (mut request, mut asked) = which.get(all).clone();
                if other_group {
                    let number = asked.asks[0].1.group + 10;
                    request.group_id = group(number);
                    asked.asks.iter_mut().for_each(|(_, ask)| ask.group = number);
                }
                Call::Reserve { request, asked }
            }
            Plan::Spend { which, other_group } => {
                let (adder, ids, group) = made.pick(&which)?;
                Call::Spend { adder, ids, group: if other_group { group + 10 } else { group } }
            }
            Plan::Release { which } => {
                let (adder, ids, _) = made.pick(&which)?;
                Call::Release { adder, ids }
            }
            Plan::Revoke { owner, which } => {
                let refs: Vec<_> = made.refs.iter().filter(|(of, _)| *of == owner).collect();
                let pick = |which: Vec<Index>| -> Vec<Vec<u8>> {
                    which.iter().map(|at| at.get(&refs).1.clone()).collect()
                };
                if which.is_some() && refs.is_empty() {
                    return None;
                }
                Call::Revoke { owner, refs: which.map(pick) }
            }
        })
    }

    /// Makes the calls at once, by the two replicas in turn.
    pub(super) async fn call(&self, calls: &[Call]) -> Vec<Answer> {
        let running = calls.iter().enumerate().map(|(n, call)| {
            let replica = if n % 2 == 0 { self.world.a.clone() } else { self.world.b.clone() };
            let (call, adders, owners) = (call.clone(), self.adders.clone(), self.owners.clone());
            spawn(async move { make(&replica, call, &adders, &owners).await })
        });
        join_all(running.collect()).await
    }

    /// Keeps what later steps may pick.
    pub(super) fn remember(&mut self, calls: &[Call], answers: &[Answer]) {
        for pair in calls.iter().zip(answers) {
            match pair {
                (Call::Upload { owner, packages }, Answer::Upload(results)) => {
                    for ((bytes, _), (found, result)) in packages.iter().zip(results) {
                        if *result == Ok(false) {
                            self.made.packages.push((*owner, bytes.clone()));
                            self.made.refs.push((*owner, found.clone()));
                        }
                    }
                }
                (Call::Reserve { request, asked }, Answer::Reserve(results)) => {
                    self.made.reserves.push((request.clone(), asked.clone()));
                    let got = results.iter().flatten().flatten();
                    self.made.held.extend(got.map(|got| Held {
                        id: got.id.clone(),
                        adder: asked.asks[0].1.adder.into(),
                        group: asked.asks[0].1.group,
                    }));
                }
                _ => {}
            }
        }
    }
}

impl Made {
    /// Reservations of one adder for one group.
    fn pick(&self, which: &[Index]) -> Option<(usize, Vec<String>, u8)> {
        let first = Some(&self.held).filter(|held| !held.is_empty())?;
        let first = which[0].get(first);
        let same: Vec<&Held> = self
            .held
            .iter()
            .filter(|held| held.adder == first.adder && held.group == first.group)
            .collect();
        let mut ids = vec![first.id.clone()];
        for other in &which[1..] {
            let other = &other.get(&same).id;
            if !ids.contains(other) {
                ids.push(other.clone());
            }
        }
        Some((first.adder, ids, first.group))
    }
}

async fn make(
    replica: &KeyPool,
    call: Call,
    adders: &[keypool_service::domain::ids::ClientKey],
    owners: &[keypool_service::domain::ids::ClientKey],
) -> Answer {
    match call {
        Call::Upload { owner, packages } => {
            let packages = packages.into_iter().map(|(bytes, _)| bytes).collect();
            let results = replica.upload(&owners[owner], packages, UploadMode::Add).await;
            let refused = |reason| match reason {
                RejectReason::Lifetime => Refused::Lifetime,
                RejectReason::AlreadyUsed => Refused::AlreadyUsed,
                RejectReason::PoolFull => Refused::PoolFull,
                other => panic!("{other:?}"),
            };
            Answer::Upload(
                results
                    .unwrap()
                    .0
                    .into_iter()
                    .map(|result| {
                        let verdict = verdict(&result).map_err(refused);
                        (result.key_package_ref.unwrap().0, verdict)
                    })
                    .collect(),
            )
        }
        Call::Reserve { request, asked } => {
            let adder = &adders[usize::from(asked.asks[0].1.adder)];
            Answer::Reserve(match replica.reserve(adder, &request).await {
                Ok(results) => Ok(results.into_iter().map(|r| got(r.outcome)).collect()),
                Err(Error::PoolExhausted) => Err(Unavailable::Exhausted),
                Err(Error::NoCompatibleKeyPackage) => Err(Unavailable::Incompatible),
                Err(Error::Quota) => Err(Unavailable::Quota),
                Err(Error::RequestIdReused) => Err(Unavailable::RequestIdReused),
                Err(other) => panic!("{other:?}"),
            })
        }
        Call::Spend { adder, ids, group: number } => {
            let spent = replica.spend(&adders[adder], &ids, &group(number)).await;
            Answer::Settle(
                spent.map(|all| all.iter().map(|one| one.already).collect()).map_err(refusal),
            )
        }
        Call::Release { adder, ids } => {
            let released = replica.release(&adders[adder], &ids).await;
            Answer::Settle(
                released.map(|all| all.iter().map(|one| one.already).collect()).map_err(refusal),
            )
        }
        Call::Revoke { owner, refs } => {
            let selection = refs.map_or(Selection::All, |refs| {
                Selection::Refs(refs.into_iter().map(KeyPackageRef).collect())
            });
            let done = replica.revoke(&owners[owner], None, selection).await.unwrap();
            Answer::Revoke(Revoked {
                available: done.available,
                reserved: done.reserved,
                last_resort: done.last_resort,
            })
        }
    }
}

fn got(outcome: Result<pool::Reservation, pool::Unavailable>) -> Result<Got, Unavailable> {
    let start = i64::try_from(NOW).unwrap();
    match outcome {
        Ok(reservation) => Ok(Got {
            id: reservation.id,
            key_package_ref: reservation.key_package_ref.0,
            expires_at: (reservation.expires_at.unix_timestamp() - start).try_into().unwrap(),
            last_resort: reservation.last_resort,
        }),
        Err(pool::Unavailable::PoolExhausted) => Err(Unavailable::Exhausted),
        Err(pool::Unavailable::NoCompatibleKeyPackage) => Err(Unavailable::Incompatible),
        Err(pool::Unavailable::Quota) => Err(Unavailable::Quota),
    }
}

fn refusal(error: Error) -> Refusal {
    match error {
        Error::ReservationLost => Refusal::Lost,
        Error::ReservationNotHeld => Refusal::NotHeld,
        Error::GroupMismatch => Refusal::GroupMismatch,
        other => panic!("{other:?}"),
    }
}
