//! Places to work, and a short queue in front of them.
//!
//! A queue that empties now and then takes up bursts, and may be waited in for a while. One that was
//! never empty for that long stands: waiting there longer would make every answer late and no more
//! calls served, so a call is turned away after a moment (Controlled Delay, RFC 8289, as servers
//! apply it to requests).

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout},
};

/// How many may work and wait at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GateLimits {
    /// Places to work.
    pub places: u32,
    /// Places to wait.
    pub queue: u32,
    /// The longest wait for a place.
    pub wait: Duration,
    /// The longest wait while the queue stands.
    pub standing_wait: Duration,
}

/// Why a call got no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::grpc) enum Refused {
    /// Too many wait already.
    Full,
    /// It waited for too long.
    Late,
}

/// See [the module](self).
#[derive(Debug)]
pub(super) struct Gate {
    limits: GateLimits,
    places: Semaphore,
    /// The weight of those that wait.
    waiting: AtomicUsize,
    start: Instant,
    /// When the queue was empty last, in nanoseconds after `start`.
    empty: AtomicU64,
}

impl Gate {
    pub(super) fn new(limits: GateLimits) -> Self {
        Self {
            limits,
            places: Semaphore::new(limits.places as usize),
            waiting: AtomicUsize::new(0),
            start: Instant::now(),
            empty: AtomicU64::new(0),
        }
    }

    /// Whether the next call would be turned away at once. `room` multiplies the queue, for those
    /// that are turned away later than others.
    pub(super) fn is_full(&self, room: usize) -> bool {
        let waiting = self.waiting.load(Ordering::Relaxed);
        waiting > 0 && waiting >= self.queue(room)
    }

    /// Takes as many places as the call is worth, all there are at most; waits for them if need be.
    pub(super) async fn enter(
        &self,
        weight: usize,
        room: usize,
    ) -> Result<SemaphorePermit<'_>, Refused> {
        let places = self.limits.places.max(1);
        let weight = u32::try_from(weight).unwrap_or(places).clamp(1, places);
        // Those that wait come first: while they do, none is free.
        if let Ok(place) = self.places.try_acquire_many(weight) {
            if self.waiting.load(Ordering::Relaxed) == 0 {
                self.note_empty(self.now());
            }
            return Ok(place);
        }
        let waiting = self.wait(weight as usize, room)?;
        let longest = self.longest_wait(self.now());
        let place = timeout(longest, self.places.acquire_many(weight)).await;
        drop(waiting);
        // It is never closed.
        place.map_err(|_| Refused::Late)?.map_err(|_| Refused::Late)
    }

    fn queue(&self, room: usize) -> usize {
        (self.limits.queue as usize).saturating_mul(room)
    }

    /// A place in the queue. An empty queue takes a call of any weight.
    fn wait(&self, weight: usize, room: usize) -> Result<Waiting<'_>, Refused> {
        let queue = self.queue(room);
        let join = |waiting: usize| {
            let fits = waiting == 0 && queue > 0 || waiting.saturating_add(weight) <= queue;
            fits.then_some(waiting + weight)
        };
        // It only counts: no other memory is ordered by it.
        let before = self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, join);
        if before.map_err(|_| Refused::Full)? == 0 {
            self.note_empty(self.now());
        }
        Ok(Waiting { gate: self, weight })
    }

    /// How long a call may wait that comes now.
    fn longest_wait(&self, now: u64) -> Duration {
        let standing_for = now.saturating_sub(self.empty.load(Ordering::Relaxed));
        match Duration::from_nanos(standing_for) > self.limits.wait {
            true => self.limits.standing_wait,
            false => self.limits.wait,
        }
    }

    fn note_empty(&self, now: u64) {
        self.empty.store(now, Ordering::Relaxed);
    }

    /// Nanoseconds after `start`.
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// A place in the queue, left when this is dropped.
struct Waiting<'a> {
    gate: &'a Gate,
    weight: usize,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.gate.waiting.fetch_sub(self.weight, Ordering::Relaxed) == self.weight {
            self.gate.note_empty(self.gate.now());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        pin::{Pin, pin},
        task::{Context, Poll, Waker},
    };

    use super::*;

    /// No wait ends while a test runs.
    const LIMITS: GateLimits = GateLimits {
        places: 10,
        queue: 6,
        wait: Duration::from_secs(3600),
        standing_wait: Duration::from_secs(1800),
    };

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[tokio::test]
    async fn calls_take_places_by_their_weight_and_one_too_many_is_turned_away_at_once() {
        let gate = Gate::new(LIMITS);
        let first = gate.enter(7, 1).await.unwrap();
        let second = gate.enter(3, 1).await.unwrap();
        assert!(!gate.is_full(1));
        let mut third = pin!(gate.enter(4, 1));
        assert!(poll(third.as_mut()).is_pending());
        let mut fourth = pin!(gate.enter(2, 1));
        assert!(poll(fourth.as_mut()).is_pending());
        assert!(gate.is_full(1));
        assert!(matches!(poll(pin!(gate.enter(1, 1))), Poll::Ready(Err(Refused::Full))));
        // Those with more room are not.
        assert!(!gate.is_full(2));
        let mut fifth = pin!(gate.enter(6, 2));
        assert!(poll(fifth.as_mut()).is_pending());
        assert!(gate.is_full(2));

        drop(second);
        assert!(poll(fourth.as_mut()).is_pending(), "first come, first served");
        drop(first);
        let third = poll(third).map(Result::unwrap);
        assert!(third.is_ready());
        assert!(matches!(poll(fourth), Poll::Ready(Ok(_))));
        drop(third);
        assert!(matches!(poll(fifth), Poll::Ready(Ok(_))));
        assert!(!gate.is_full(1));
    }

    #[tokio::test]
    async fn what_is_worth_more_than_all_places_takes_all_of_them() {
        let gate = Gate::new(LIMITS);
        let all = gate.enter(1000, 1).await.unwrap();
        let mut next = pin!(gate.enter(1000, 1));
        assert!(poll(next.as_mut()).is_pending(), "an empty queue takes it");
        assert!(gate.is_full(1));
        drop(all);
        assert!(matches!(poll(next), Poll::Ready(Ok(_))));
    }

    #[tokio::test]
    async fn a_wait_has_a_bound_and_a_call_that_was_dropped_leaves_the_queue() {
        let moment = Duration::from_millis(1);
        let gate = Gate::new(GateLimits { wait: moment, standing_wait: moment, ..LIMITS });
        let _all = gate.enter(10, 1).await.unwrap();
        assert_eq!(gate.enter(6, 1).await.err(), Some(Refused::Late));
        {
            let mut dropped = pin!(gate.enter(6, 1));
            assert!(poll(dropped.as_mut()).is_pending());
            assert!(gate.is_full(1));
        }
        assert!(!gate.is_full(1));
    }

    /// The times are handed in.
    #[tokio::test]
    async fn while_the_queue_stands_nobody_waits_for_long() {
        const HOUR: u64 = 3600 * 1_000_000_000;
        let gate = Gate::new(LIMITS);
        let all = gate.enter(10, 1).await.unwrap();
        let mut waiting = pin!(gate.enter(1, 1));
        assert!(poll(waiting.as_mut()).is_pending());
        // As if that were long ago, and somebody had waited at any time since.
        gate.note_empty(5 * HOUR);
        let mut other = pin!(gate.enter(1, 1));
        assert!(poll(other.as_mut()).is_pending());
        assert_eq!(gate.longest_wait(6 * HOUR), LIMITS.wait);
        assert_eq!(gate.longest_wait(6 * HOUR + 1), LIMITS.standing_wait);
        // Once the queue was empty, a burst may wait again.
        drop(all);
        assert!(matches!(poll(waiting), Poll::Ready(Ok(_))));
        assert_eq!(gate.longest_wait(6 * HOUR + 1), LIMITS.standing_wait, "one waits still");
        assert!(matches!(poll(other), Poll::Ready(Ok(_))));
        assert_eq!(gate.longest_wait(gate.now()), LIMITS.wait);
        gate.note_empty(5 * HOUR);
        drop(gate.enter(1, 1).await);
        assert_eq!(gate.longest_wait(gate.now()), LIMITS.wait);
        assert!(gate.empty.load(Ordering::Relaxed) < 5 * HOUR, "it was empty just now");
    }
}
