//! How long it takes until calls succeed again, as applications see it through the SDK.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::history::{Micros, Op, Via};

/// A call that failed so long after a fault was mended failed because of it.
const AFTERMATH: Micros = 10_000_000;

/// Whoever still calls so long after a fault was mended has been served again: an application's
/// deadline.
const HEALED_WITHIN: Micros = 30_000_000;

/// What applications noticed of the faults of a run, in milliseconds: the median and the most.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Recovery {
    /// How many faults struck.
    pub faults: usize,
    /// From the begin of a fault until every client had an answer to a call that it made after.
    pub from_begin: Span,
    /// From the end of a fault until every client had an answer.
    pub from_end: Span,
    /// The slowest call that was answered around a fault.
    pub slowest: Span,
    /// Calls that failed in spite of the SDK.
    pub errors: usize,
    /// Calls by the SDK.
    pub calls: usize,
}

/// The median and the most, in milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Span {
    /// Half of them are no longer.
    pub median: i64,
    /// None is longer.
    pub most: i64,
}

/// Looks at the faults, each from begin to end, and at what clients did until `quiet_since`.
pub fn recovery(history: &[Op], faults: &[(Micros, Micros)], quiet_since: Micros) -> Recovery {
    let mut clients: BTreeMap<u16, Vec<&Op>> = BTreeMap::new();
    for op in history.iter().filter(|op| op.via == Via::Sdk && op.begun < quiet_since) {
        clients.entry(op.worker).or_default().push(op);
    }
    let (mut from_begin, mut from_end, mut slowest) = (Vec::new(), Vec::new(), Vec::new());
    let mut failed = BTreeSet::new();
    for &(begin, end) in faults {
        let (mut first, mut back, mut slow) = (0, 0, 0);
        for ops in clients.values() {
            // In the order of their answers: a client makes one call after the other.
            let after = &ops[ops.partition_point(|op| op.ended < begin)..];
            first = first.max(served(after, begin, |op| op.begun >= begin));
            back = back.max(served(after, end, |op| op.ended >= end));
            for op in after.iter().take_while(|op| op.begun < end + AFTERMATH) {
                if !op.answered() {
                    failed.insert((op.worker, op.begun));
                } else if op.begun <= end {
                    slow = slow.max(op.ended - op.begun);
                }
            }
        }
        from_begin.push(first / 1000);
        from_end.push(back / 1000);
        slowest.push(slow / 1000);
    }
    Recovery {
        faults: faults.len(),
        from_begin: span(from_begin),
        from_end: span(from_end),
        slowest: span(slowest),
        errors: failed.len(),
        calls: clients.values().map(Vec::len).sum(),
    }
}

/// How long after `since` a client had the first answer to such a call. Without one, for how long it
/// tried: when the run ends before, nobody knows how long it would have been.
fn served(ops: &[&Op], since: Micros, is_meant: impl Fn(&Op) -> bool) -> Micros {
    let meant = || ops.iter().filter(|op| is_meant(op));
    let answer = meant().find(|op| op.answered()).or_else(|| meant().last());
    answer.map_or(0, |op| op.ended - since)
}

/// Who called long after a fault was mended, and had no answer from then on; and when it began.
pub(crate) fn unserved(
    history: &[Op],
    faults: &[(Micros, Micros)],
    quiet_since: Micros,
) -> Vec<(u16, Micros)> {
    // When each client made its last call, and when it had its last answer.
    let mut last: BTreeMap<u16, (Micros, Micros)> = BTreeMap::new();
    for op in history.iter().filter(|op| op.begun < quiet_since) {
        let (called, served) = last.entry(op.worker).or_insert((Micros::MIN, Micros::MIN));
        *called = op.begun.max(*called);
        if op.answered() {
            *served = op.ended.max(*served);
        }
    }
    let mut unserved = Vec::new();
    for (worker, (called, served)) in last {
        let mut missed =
            faults.iter().filter(|&&(_, end)| served < end && called > end + HEALED_WITHIN);
        unserved.extend(missed.next().map(|&(begin, _)| (worker, begin)));
    }
    unserved
}

fn span(mut all: Vec<i64>) -> Span {
    all.sort_unstable();
    let median = all.get(all.len() / 2).copied().unwrap_or_default();
    Span { median, most: all.last().copied().unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Answer, Call, Counts};

    const SECOND: Micros = 1_000_000;
    /// From second 10 to 12.
    const FAULT: (Micros, Micros) = (10 * SECOND, 12 * SECOND);

    fn call(begun: Micros, ended: Micros, answer: Answer) -> Op {
        let (begun, ended) = (begun * SECOND, ended * SECOND);
        Op { worker: 0, via: Via::Sdk, begun, ended, call: Call::Status { pool: 0 }, answer }
    }

    fn told(begun: Micros, ended: Micros) -> Op {
        call(begun, ended, Answer::Status(Counts::default()))
    }

    fn failed(begun: Micros, ended: Micros) -> Op {
        call(begun, ended, Answer::Unknown("DEADLINE"))
    }

    fn from_end(history: &[Op]) -> i64 {
        recovery(history, &[FAULT], 1000 * SECOND).from_end.most
    }

    fn is_unserved(history: &[Op]) -> bool {
        !unserved(history, &[FAULT], 1000 * SECOND).is_empty()
    }

    #[test]
    fn who_is_served_again_says_how_long_it_took() {
        let history = [told(1, 2), failed(9, 11), failed(11, 13), told(14, 15)];
        let found = recovery(&history, &[FAULT], 1000 * SECOND);
        assert_eq!((found.from_begin.most, found.from_end.most), (5000, 3000));
        assert_eq!((found.errors, found.calls, found.slowest.most), (2, 4, 0));
        assert!(!is_unserved(&history));
    }

    #[test]
    fn who_is_never_served_again_counts_for_as_long_as_it_tried() {
        let history = [told(1, 2), failed(11, 20), failed(20, 30), failed(43, 50)];
        assert_eq!(from_end(&history), 38_000);
        assert!(is_unserved(&history));
        // By another replica, perhaps, but not for good.
        assert!(!is_unserved(&[&history[..], &[told(51, 52)]].concat()));
    }

    #[test]
    fn a_run_that_ends_says_nothing_of_who_was_not_served_yet() {
        assert!(!is_unserved(&[told(1, 2), failed(11, 20)]));
        assert_eq!(from_end(&[told(1, 2)]), 0);
    }
}
