//! How long it takes until calls succeed again, as applications see it through the SDK.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::history::{Micros, Op, Via};

/// A call that failed so long after a fault was mended failed because of it.
const AFTERMATH: Micros = 10_000_000;

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
            let answered = || after.iter().filter(|op| op.answered());
            first =
                first.max(answered().find(|op| op.begun >= begin).map_or(0, |op| op.ended - begin));
            back = back.max(answered().find(|op| op.ended >= end).map_or(0, |op| op.ended - end));
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

fn span(mut all: Vec<i64>) -> Span {
    all.sort_unstable();
    let median = all.get(all.len() / 2).copied().unwrap_or_default();
    Span { median, most: all.last().copied().unwrap_or_default() }
}
