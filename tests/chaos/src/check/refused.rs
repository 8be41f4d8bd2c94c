//! A Reserve is refused for a reason that can be true.
//!
//! That a pool is exhausted is judged by what is in it (see `order`).

use std::collections::HashMap;

use super::{Index, Kind, Report};
use crate::{
    history::{Answer, Call, Got, Micros, Op},
    tables::EventKind,
};

/// A reservation was surely not open before `from`, nor after `until`.
struct Open {
    from: Micros,
    until: Micros,
}

/// What each caller had of each pool, in the order of time.
type Holdings = HashMap<([u8; 16], i64), Vec<Open>>;

pub(super) fn check(index: &Index<'_>, report: &mut Report) {
    let holdings = holdings(index);
    for op in index.history.iter().filter(|op| index.rules.lasts(op)) {
        let Call::Reserve { caller, pools, .. } = &op.call else { continue };
        let full = |pool: &u16| has_its_share(index, &holdings, *caller, *pool, op);
        let mut judge = |got: Got, pools: &[u16]| {
            let right = match got {
                Got::Quota => pools.iter().any(full),
                // All packages are of one suite, with the same capabilities.
                Got::Incompatible => false,
                Got::Exhausted | Got::Package { .. } => return,
            };
            report.count("refusals of a Reserve with their reason");
            if !right {
                report.add(Kind::RefusedWrongly, format!("{got:?} of {pools:?} to {op:?}"));
            }
        };
        match &op.answer {
            Answer::Reserved(got) => {
                for (pool, got) in pools.chunks(1).zip(got) {
                    judge(*got, pool);
                }
            }
            // One of the pools is the reason.
            Answer::Refused("QUOTA") => judge(Got::Quota, pools),
            Answer::Refused("NO_COMPATIBLE_KEY_PACKAGE") => judge(Got::Incompatible, pools),
            Answer::Refused("POOL_EXHAUSTED") => judge(Got::Exhausted, pools),
            Answer::Refused(reason) => {
                report.add(Kind::RefusedWrongly, format!("{reason} to {op:?}"));
            }
            _ => {}
        }
    }
}

/// What the log says that each caller reserved.
fn holdings(index: &Index<'_>) -> Holdings {
    let mut holdings = Holdings::new();
    for (slot, holder, from, path) in index.reservations() {
        // Where nobody got the answer, for as long as anybody ever asked.
        let expires_at = index.expiries.get(&slot).copied().unwrap_or(from + index.longest);
        let mut later = path.iter().filter(|e| e.generation == slot.generation);
        let logged = later
            .find(|e| matches!(e.kind, EventKind::Spent | EventKind::Released))
            // It was seen by all some time after it was written.
            .map(|settled| settled.at + index.rules.horizon);
        let settled = index.settled(slot).into_iter().chain(logged).min();
        let until = settled.map_or(expires_at, |settled| settled.min(expires_at));
        holdings.entry((holder, slot.pool)).or_default().push(Open { from, until });
    }
    for opens in holdings.values_mut() {
        opens.sort_unstable_by_key(|open| open.from);
    }
    holdings
}

/// Whether this caller may have held as much of the pool as it may, while it called.
fn has_its_share(index: &Index<'_>, holdings: &Holdings, caller: u16, pool: u16, op: &Op) -> bool {
    let key = index.holder(caller).zip(index.pool_ids.get(&pool).copied());
    let Some(opens) = key.and_then(|key| holdings.get(&key)) else { return false };
    // What began long before is over.
    let oldest = op.begun - index.longest - 1;
    let begin = opens.partition_point(|open| open.from < oldest);
    let end = opens.partition_point(|open| open.from <= op.ended);
    let opens = opens.get(begin..end).unwrap_or_default();
    opens.iter().filter(|open| open.until >= op.begun).count() >= index.rules.max_open
}
