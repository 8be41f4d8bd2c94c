//! Random orders of everything that can happen to a device and its pool.

use keypool_client::Error;
use proptest::{
    prelude::*,
    test_runner::{Config, RngSeed, TestRunner},
};

use super::{truth::Known, *};

#[derive(Debug, Clone)]
enum Step {
    Refresh,
    /// A refresh whose so-manieth write of the metadata fails, before or after it.
    RefreshFailing(usize, bool),
    Rotate,
    Restart,
    Reinstall,
    Reserve,
    Spend(usize),
    Release(usize),
    /// The Welcome for a package that alice got is read.
    Welcome(usize),
    Pass(u64),
    Sweep,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => Just(Step::Refresh),
        5 => (0_usize..7, any::<bool>()).prop_map(|(at, after)| Step::RefreshFailing(at, after)),
        2 => Just(Step::Rotate),
        2 => Just(Step::Restart),
        1 => Just(Step::Reinstall),
        8 => Just(Step::Reserve),
        4 => any::<usize>().prop_map(Step::Spend),
        2 => any::<usize>().prop_map(Step::Release),
        4 => any::<usize>().prop_map(Step::Welcome),
        4 => prop::sample::select(vec![30, 120, HOUR, 20 * HOUR, 5 * DAY, 14 * DAY])
            .prop_map(Step::Pass),
        1 => Just(Step::Sweep),
    ];
    prop::collection::vec(step, 1..40)
}

struct Walk {
    world: World,
    device: Device,
    known: Known,
    /// What alice got, and may spend or release or invite by.
    got: Vec<v1::Reservation>,
}

impl Walk {
    async fn new() -> Self {
        let world = World::new().await;
        let device = world.device("bob").await;
        Self { world, device, known: Known::default(), got: Vec::new() }
    }

    async fn take(mut self, step: Step) -> Self {
        let when = format!("{step:?}");
        match step {
            Step::Refresh => self.refresh().await,
            Step::RefreshFailing(writes, after) => {
                self.device.fail_at(writes, after);
                let done = self.device.pool.refresh().await;
                self.device.fail_no_more();
                if done.is_ok() {
                    self.world.check(&self.device, &mut self.known, "it did not fail").await;
                }
            }
            Step::Rotate => {
                let identity = self.device.next_identity();
                for key_package_ref in self.device.held() {
                    self.known.outdated.entry(key_package_ref).or_insert(self.world.now());
                }
                self.device.pool.rotate_credential(vec![identity]).await.unwrap();
                self.world.check(&self.device, &mut self.known, "rotated").await;
            }
            Step::Restart => self.device = self.device.restart(),
            Step::Reinstall => {
                self.known.lost.extend(self.device.held());
                self.device = self.device.reinstall();
            }
            Step::Reserve => self.got.extend(self.world.try_reserve(&self.device).await),
            Step::Spend(n) => {
                if let Some(got) = self.nth(n) {
                    let spent = self.world.alice.spend(&b"group"[..], [&got.reservation_id]).await;
                    allowed(spent.err());
                }
            }
            Step::Release(n) => {
                if let Some(got) = self.nth(n) {
                    allowed(self.world.alice.release([&got.reservation_id]).await.err());
                }
            }
            Step::Welcome(n) => {
                if let Some(got) = self.nth(n)
                    && !got.last_resort
                    && self.device.held().contains(&got.key_package_ref)
                {
                    self.device.read_welcome(&got.key_package_ref);
                    self.known.joined.insert(got.key_package_ref);
                }
            }
            Step::Pass(seconds) => self.world.pass(seconds),
            Step::Sweep => self.world.replica.sweep().await,
        }
        self.world.check_nothing_is_lost(&self.device, &self.known, &when).await;
        self
    }

    fn nth(&self, n: usize) -> Option<v1::Reservation> {
        self.got.get(n.checked_rem(self.got.len())?).cloned()
    }

    async fn refresh(&mut self) {
        let done = self.device.pool.refresh().await.unwrap();
        assert_eq!(done.refused, []);
        self.world.check(&self.device, &mut self.known, "refreshed").await;
    }
}

/// What became of a reservation may keep it from being settled.
#[track_caller]
fn allowed(error: Option<Error>) {
    use v1::ErrorReason::{ReservationLost, ReservationNotHeld, ReservationUnknown};
    let reason = error.as_ref().and_then(Error::reason);
    let expected = [ReservationLost, ReservationNotHeld, ReservationUnknown];
    assert!(error.is_none() || reason.is_some_and(|r| expected.contains(&r)), "{error:?}");
}

#[test]
fn in_any_order_of_things_the_device_holds_what_the_server_may_issue() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let config = Config {
        cases: 16,
        rng_seed: RngSeed::Fixed(1), // the same walks each time; others with another seed
        failure_persistence: None,
        ..Config::default()
    };
    let walked = TestRunner::new(config).run(&steps(), |steps| {
        runtime.block_on(async {
            let mut walk = Walk::new().await;
            for step in steps {
                walk = walk.take(step).await;
            }
            walk.refresh().await;
            // What was withdrawn by now is not waited for any more.
            walk.world.pass(DAY);
            walk.refresh().await;
        });
        Ok(())
    });
    walked.unwrap();
}
