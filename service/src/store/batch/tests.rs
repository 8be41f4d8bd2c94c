//! When a statement begins, and with how many calls.

use super::*;

#[derive(Debug)]
struct Any;

impl Job for Any {
    type Answer = ();
    type Claim = ();

    const STATEMENT: &str = "any";

    fn rows(&self) -> usize {
        1
    }

    fn goes_with(&self, _: &Self) -> bool {
        true
    }

    fn claims(&self) -> impl Iterator<Item = ()> {
        std::iter::empty()
    }

    async fn run(_: &Store, _: &mut PgConnection, jobs: &[&Self]) -> Result<Vec<()>, sqlx::Error> {
        Ok(jobs.iter().map(|_| ()).collect())
    }
}

/// Calls that nobody gives up.
#[derive(Default)]
struct Calls {
    batcher: Batcher<Any>,
    listening: Vec<oneshot::Receiver<Result<(), Arc<sqlx::Error>>>>,
}

impl Calls {
    /// Whether the last of so many more calls takes a lane; the others do not.
    fn more(&mut self, count: usize) -> bool {
        let took: Vec<bool> = (0..count)
            .map(|_| {
                let (answer, listening) = oneshot::channel();
                self.listening.push(listening);
                self.batcher.lock().queue(Waiting { since: Instant::now(), job: Any, answer })
            })
            .collect();
        let (last, others) = took.split_last().unwrap();
        assert!(!others.contains(&true), "{took:?}");
        *last
    }
}

fn lane(batcher: &Batcher<Any>) -> Lane<'_, Any> {
    Lane { batcher, calls: 0, free: false }
}

/// The calls of the lane's next statement, which is not slow, however slow this test is.
fn begin(lane: &mut Lane<'_, Any>) -> usize {
    let calls = lane.next().unwrap().len();
    lane.batcher.lock().began += Duration::from_secs(3600);
    calls
}

/// Both lanes, each with a statement for one call.
fn two_statements<'a>(calls: &mut Calls, batcher: &'a Batcher<Any>) -> [Lane<'a, Any>; 2] {
    [(); 2].map(|()| {
        assert!(calls.more(1));
        let mut lane = lane(batcher);
        assert_eq!(begin(&mut lane), 1);
        lane
    })
}

#[test]
fn a_call_goes_at_once_when_nothing_is_in_flight() {
    let mut calls = Calls::default();
    assert!(calls.more(1));
    let batcher = calls.batcher.clone();
    let mut lane = lane(&batcher);
    assert_eq!(begin(&mut lane), 1);
    assert!(lane.land());
    assert!(calls.more(1));
}

#[test]
fn the_second_statement_is_as_large_as_the_one_in_flight() {
    let mut calls = Calls::default();
    // Both lanes are taken while neither has a connection.
    assert!(calls.more(1));
    assert!(calls.more(1));
    let batcher = calls.batcher.clone();
    let (mut first, mut second) = (lane(&batcher), lane(&batcher));
    assert!(!calls.more(8));
    assert_eq!(begin(&mut first), 10);
    assert!(second.next().is_none());
    assert!(calls.more(10));
    let mut second = lane(&batcher);
    assert_eq!(begin(&mut second), 10);
    assert!(!calls.more(30));
    assert!(!first.land());
    assert_eq!(begin(&mut first), 30);
    // Fewer than are in flight wait for as many, or for its end.
    assert!(!calls.more(29));
    assert!(second.land());
    assert!(!first.land());
    assert_eq!(begin(&mut first), 29);
    assert!(first.land());
    assert_eq!(batcher.lock().lanes, 0);
    assert_eq!(batcher.lock().in_flight, 0);
}

#[test]
fn nobody_waits_beside_a_statement_that_is_slow() {
    let mut calls = Calls::default();
    let batcher = calls.batcher.clone();
    let [mut first, mut second] = two_statements(&mut calls, &batcher);
    assert!(!calls.more(5));
    assert!(!first.land());
    assert_eq!(begin(&mut first), 5);
    assert!(!calls.more(2));
    assert!(second.land());
    batcher.lock().began -= Duration::from_secs(3601);
    assert!(calls.more(1));
}

#[test]
fn a_lane_that_is_lost_is_free() {
    let mut calls = Calls::default();
    let batcher = calls.batcher.clone();
    let [first, second] = two_statements(&mut calls, &batcher);
    assert!(!calls.more(1));
    drop(first);
    assert_eq!(batcher.lock().waiting.len(), 1, "the other one takes it");
    drop(second);
    assert_eq!(batcher.lock().in_flight, 0);
    let gone = calls.listening.last_mut().unwrap().try_recv().unwrap_err();
    assert_eq!(gone, oneshot::error::TryRecvError::Closed, "nobody is left who would");
    assert!(calls.more(1));
}
