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

#[test]
fn a_call_goes_at_once_when_nothing_is_in_flight() {
    let mut calls = Calls::default();
    assert!(calls.more(1));
    let batcher = calls.batcher.clone();
    let mut lane = lane(&batcher);
    assert_eq!(lane.next().unwrap().len(), 1);
    assert!(lane.land());
    assert!(calls.more(1));
}

#[test]
fn a_statement_that_has_not_begun_takes_who_comes() {
    let mut calls = Calls::default();
    assert!(calls.more(1));
    assert!(!calls.more(9));
    let batcher = calls.batcher.clone();
    assert_eq!(lane(&batcher).next().unwrap().len(), 10);
}

#[test]
fn the_second_statement_is_as_large_as_the_one_in_flight() {
    let mut calls = Calls::default();
    assert!(calls.more(1));
    assert!(!calls.more(9));
    let batcher = calls.batcher.clone();
    let (mut first, mut second) = (lane(&batcher), lane(&batcher));
    assert_eq!(first.next().unwrap().len(), 10);
    assert!(calls.more(10));
    assert_eq!(second.next().unwrap().len(), 10);
    // Both lanes are taken.
    assert!(!calls.more(30));
    assert!(!first.land());
    assert_eq!(first.next().unwrap().len(), 30);
    // Fewer than are in flight wait for as many, or for its end.
    assert!(!calls.more(29));
    assert!(second.land());
    assert!(!first.land());
    assert_eq!(first.next().unwrap().len(), 29);
    assert!(first.land());
    assert_eq!(batcher.lock().lanes, 0);
    assert_eq!(batcher.lock().in_flight, 0);
}

#[test]
fn a_lane_that_is_lost_is_free() {
    let mut calls = Calls::default();
    assert!(calls.more(1));
    let batcher = calls.batcher.clone();
    let mut first = lane(&batcher);
    assert_eq!(first.next().unwrap().len(), 1);
    drop(first);
    assert_eq!(batcher.lock().in_flight, 0);
    assert!(calls.more(1));
}
