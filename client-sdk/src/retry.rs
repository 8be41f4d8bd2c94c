use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use keypool_proto::v1::ErrorReason;

use crate::Error;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What may make a failed call succeed.
#[derive(Debug, PartialEq)]
pub(crate) enum Remedy {
    /// Another endpoint, at once.
    Elsewhere,
    /// The same again after a pause.
    Later,
    /// The same again when the server says, for as long as it takes.
    WhenAsked,
    /// A newer token, at once.
    NewToken,
    /// Nothing that can be done here.
    None,
}

impl Remedy {
    /// Every call may be repeated, by the contract; the question is whether it would help.
    pub(crate) fn of(error: &Error) -> Self {
        match error {
            Error::TokenExpired(_) => Self::NewToken,
            Error::Overloaded(_) => Self::Later,
            // Else it is for the caller to end what there is too much of.
            Error::RateLimited(rejection) if rejection.retry_after.is_some() => Self::Later,
            // All endpoints share the database.
            Error::Unavailable(rejection)
                if rejection.reason == Some(ErrorReason::StoreUnavailable) =>
            {
                Self::WhenAsked
            }
            Error::Unavailable(_) | Error::Transport(_) => Self::Elsewhere,
            _ => Self::None,
        }
    }
}

/// The pause before a retry, numbered from 0: full jitter below a bound that doubles, on top of
/// what the server asked for.
pub(crate) fn pause(retry: u32, asked: Option<Duration>) -> Duration {
    let bound = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(retry)).min(LONGEST_PAUSE);
    asked.unwrap_or_default().saturating_add(bound.mul_f64(rand::random()))
}

/// The pause before a retry that the server asked for and paces: up to half as long again, so that
/// not all come at once.
pub(crate) fn pause_as_asked(asked: Option<Duration>) -> Duration {
    let asked = asked.unwrap_or(LONGEST_PAUSE).max(FIRST_PAUSE);
    asked.saturating_add(asked.mul_f64(0.5 * rand::random::<f64>()))
}

/// Keeps the clients of an ailing server from multiplying its load (gRFC A6): a failure takes a
/// token, a success gives a tenth back, and there are retries while more than half are left.
#[derive(Debug)]
pub(crate) struct Budget(AtomicU32);

impl Budget {
    const FULL: u32 = 200;
    const FAILURE: u32 = 10;
    const SUCCESS: u32 = 1;

    pub(crate) fn full() -> Self {
        Self(AtomicU32::new(Self::FULL))
    }

    pub(crate) fn succeeded(&self) {
        self.change(|left| (left + Self::SUCCESS).min(Self::FULL));
    }

    /// Notes a failure; says whether to retry it.
    pub(crate) fn failed(&self) -> bool {
        self.change(|left| left.saturating_sub(Self::FAILURE)) > Self::FULL / 2
    }

    fn change(&self, change: impl Fn(u32) -> u32) -> u32 {
        // It only counts: no other memory is ordered by it.
        let changed = |left| Some(change(left));
        let before = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, changed);
        change(before.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_below_a_bound_that_doubles_and_beyond_what_the_server_asked() {
        for (retry, bound) in [(0, 100), (1, 200), (3, 800), (30, 5000), (u32::MAX, 5000)] {
            for _ in 0..100 {
                assert!(pause(retry, None) <= Duration::from_millis(bound));
                let asked = Duration::from_secs(7);
                let told = pause(retry, Some(asked));
                assert!(told >= asked && told <= asked + Duration::from_millis(bound));
            }
        }
        assert_eq!(pause(0, Some(Duration::MAX)), Duration::MAX);
    }

    #[test]
    fn a_pause_that_is_asked_for_is_kept_and_little_more() {
        for _ in 0..100 {
            let asked = Duration::from_secs(1);
            let pause = pause_as_asked(Some(asked));
            assert!(pause >= asked && pause <= asked.mul_f64(1.5));
            assert!(pause_as_asked(Some(Duration::ZERO)) >= FIRST_PAUSE);
        }
    }

    #[test]
    fn pauses_are_spread() {
        let mut pauses: Vec<_> = (0..100).map(|_| pause(5, None)).collect();
        pauses.sort();
        pauses.dedup();
        assert!(pauses.len() > 90);
        assert!(pauses[0] < Duration::from_millis(800) && pauses[99 - 10] > pauses[0]);
    }

    #[test]
    fn the_budget_ends_retries_when_most_calls_fail_and_successes_fill_it() {
        let budget = Budget::full();
        let allowed = (0..100).take_while(|_| budget.failed()).count();
        assert_eq!(allowed, 9);
        assert!(!budget.failed());
        for _ in 0..40 {
            budget.succeeded();
        }
        assert!(budget.failed(), "after successes there are retries again");
        for _ in 0..10_000 {
            budget.succeeded();
        }
        assert_eq!((0..100).take_while(|_| budget.failed()).count(), 9, "it is never over-full");
    }
}
