//! The model and keypool, on the same walks: random calls, one by one and at once, by two adders
//! on two pools. Answers and rows must be those of the model or, for calls at once, of the model
//! in some order of them. What fails is made as short as it can be.
//!
//! `KEYPOOL_WALKS=1000 script/test walk` takes that many walks, from another start each time.

mod calls;
mod explain;
mod invariants;
mod rows;

use keypool_model::{FairShare, Lapse, Rules, Time};
use keypool_service::domain::{
    ids::ClientKey,
    policy::{LapsePolicy, NEWCOMER_AFTER, PoolPolicy},
};
use keypool_testing::world::{World, client};
use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};

use calls::{Call, LONGEST_TTL, Made, Step};
use explain::Known;

/// Walks of each kind, unless `KEYPOOL_WALKS` says otherwise: some ten seconds.
const WALKS: u32 = 12;

struct Walk {
    world: World,
    adders: [ClientKey; 2],
    owners: [ClientKey; 2],
    rules: Rules,
    known: Known,
    /// What adders asked for and got, in that order.
    made: Made,
}

impl Walk {
    async fn new(policy: PoolPolicy) -> Self {
        let seconds = |d: time::Duration| u32::try_from(d.whole_seconds()).unwrap();
        let rules = Rules {
            lapse: match policy.lapse {
                LapsePolicy::Return => Lapse::Return,
                LapsePolicy::Burn => Lapse::Burn,
            },
            fair_share: policy.fair_share.then_some(FairShare {
                max_open: policy.max_open_reservations_per_pool as usize,
                spared: policy.low_watermark as usize,
                newcomer_after: seconds(NEWCOMER_AFTER),
            }),
            min_remaining: seconds(policy.min_remaining_lifetime),
            hard_cap: policy.hard_cap as usize,
            retention: 24 * 3600,
            bug: None,
        };
        Self {
            world: World::exactly(policy).await,
            adders: [client("alice", "1"), client("eve", "1")],
            owners: [client("bob", "1"), client("carol", "1")],
            rules,
            known: Known::default(),
            made: Made::default(),
        }
    }

    fn clock_now(&self) -> time::OffsetDateTime {
        keypool_service::domain::clock::Clock::now(&self.world.clock)
    }

    fn pass(&mut self, seconds: Time) {
        self.world.pass(seconds.into());
        self.known.pools.iter_mut().for_each(|pool| pool.pass(seconds));
    }

    async fn sweep(&mut self) {
        self.world.sweep().await;
        self.known.pools.iter_mut().for_each(|pool| pool.sweep(&self.rules));
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Pass(seconds) => self.pass(seconds),
            Step::Sweep => self.sweep().await,
            Step::Lapse => {
                self.pass(LONGEST_TTL);
                self.sweep().await;
            }
            Step::Calls(calls) => {
                let calls: Vec<Call> = calls.into_iter().filter_map(|c| self.prepare(c)).collect();
                let answers = self.call(&calls).await;
                let rows = self.rows().await;
                let known = explain::explain(&self.rules, &self.known, &calls, &answers, |known| {
                    self.rows_of(known) == rows
                });
                self.known = known.unwrap_or_else(|why| panic!("{calls:#?}\n{answers:#?}\n{why}"));
                self.remember(&calls, &answers);
                return;
            }
        }
        assert_eq!(self.rows().await, self.rows_of(&self.known));
    }
}

/// Takes walks until one fails, and shows the shortest that fails.
fn walks(policy: &PoolPolicy, at_once: usize) {
    let asked = std::env::var("KEYPOOL_WALKS").ok().map(|walks| walks.parse().unwrap());
    let config = Config {
        cases: asked.unwrap_or(WALKS),
        // The same walks each time, but for one who asks for many.
        rng_seed: asked.map_or(RngSeed::Fixed(1), |_| RngSeed::Random),
        failure_persistence: None,
        max_shrink_iters: 400,
        ..Config::default()
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let walked = TestRunner::new(config).run(&calls::steps(at_once), |steps| {
        runtime.block_on(async {
            let mut walk = Walk::new(policy.clone()).await;
            for step in steps {
                walk.take(step).await;
                // Calls at once may be logged in another order than they took effect.
                walk.check(policy.lapse == LapsePolicy::Burn, at_once == 1).await;
            }
        });
        Ok(())
    });
    match walked {
        Ok(()) => {}
        Err(TestError::Fail(why, steps)) => {
            let steps: String = steps.iter().map(|step| format!("  {step:?}\n")).collect();
            panic!("{why}\nthe shortest walk that fails:\n{steps}");
        }
        Err(aborted) => panic!("{aborted}"),
    }
}

fn small() -> PoolPolicy {
    PoolPolicy { hard_cap: 6, low_watermark: 2, fair_share: false, ..PoolPolicy::default() }
}

#[test]
fn one_by_one_where_lapsed_reservations_return() {
    walks(&small(), 1);
}

#[test]
fn one_by_one_where_lapsed_reservations_burn() {
    walks(&PoolPolicy { lapse: LapsePolicy::Burn, ..small() }, 1);
}

#[test]
fn one_by_one_with_a_fair_share() {
    walks(&PoolPolicy { fair_share: true, ..small() }, 1);
}

#[test]
fn at_once_where_lapsed_reservations_return() {
    walks(&small(), 4);
}

#[test]
fn at_once_where_lapsed_reservations_burn() {
    walks(&PoolPolicy { lapse: LapsePolicy::Burn, ..small() }, 4);
}
