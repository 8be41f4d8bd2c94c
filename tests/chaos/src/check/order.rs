//! The order of issue, where it can be told from outside.
//!
//! A Reserve passes over what another statement has locked at that moment, and what committed a
//! moment later. So a package counts as there only when the call that put it there was answered
//! before the Reserve began, and nothing happened to it before the Reserve was answered. The order is
//! judged for Reserves that were alone at their pool; that a pool is not exhausted, for all.

use std::collections::{BTreeSet, HashMap};

use super::{
    Index, Kind, Report,
    index::{Ack, key_of},
};
use crate::{
    history::{Answer, Call, Got, Micros, Op, Ref, Slot, Via},
    tables::{EventKind, Key},
};

/// How long after its event a lapse is taken to be known to all.
const SETTLED: Micros = 15_000_000;

/// The place of a package in the order of issue: what was issued before comes later.
type Place = (bool, Micros, i64);

/// A span in which a package was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct There {
    from: Micros,
    until: Micros,
    place: Place,
}

/// A call at a pool.
#[derive(Clone, Copy)]
struct Visit<'a> {
    op: &'a Op,
    got: Option<Got>,
    /// That this pool, or another that was asked, was exhausted.
    whole: bool,
    /// When it was surely over.
    over: Micros,
}

/// Of a call that was refused as a whole, how many of its pools had enough: by who made it, and when.
type Plenty = HashMap<(u16, Micros), usize>;

pub(super) fn check(index: &Index<'_>, report: &mut Report) {
    let stored = stored(index);
    let released = released(index);
    let mut there: HashMap<i64, Vec<There>> = HashMap::new();
    for (key, path) in index.packages() {
        if !index.is_last_resort(path) {
            spans(index, key, &stored, &released, there.entry(key.pool).or_default());
        }
    }
    let mut visits: HashMap<u16, Vec<Visit<'_>>> = HashMap::new();
    for op in index.history {
        visit(index, op, &mut visits);
    }
    let mut plenty = Plenty::new();
    for (pool, mut visits) in visits {
        let Some(mut there) = index.pool_ids.get(&pool).and_then(|id| there.remove(id)) else {
            continue;
        };
        there.sort_unstable();
        visits.sort_by_key(|visit| visit.op.begun);
        judge(index, pool, &there, &visits, &mut plenty, report);
    }
    for op in index.history.iter().filter(|op| is_whole(op)) {
        report.count("calls refused as a whole");
        let Call::Reserve { pools, .. } = &op.call else { continue };
        if plenty.get(&(op.worker, op.begun)) == Some(&pools.len()) {
            report.add(Kind::ExhaustedWithStock, format!("none of the pools of {op:?} was"));
        }
    }
}

/// Whether one of several pools is called exhausted, and nobody knows which.
fn is_whole(op: &Op) -> bool {
    matches!((&op.call, &op.answer),
        (Call::Reserve { pools, .. }, Answer::Refused("POOL_EXHAUSTED")) if pools.len() > 1)
}

/// When the first upload of each ref was acknowledged, and the end of its lifetime.
fn stored(index: &Index<'_>) -> HashMap<Ref, (Micros, Micros)> {
    let mut stored = HashMap::new();
    for op in index.history {
        let (Call::Upload { packages, .. }, Answer::Uploaded(outcomes)) = (&op.call, &op.answer)
        else {
            continue;
        };
        for (package, outcome) in packages.iter().zip(outcomes) {
            if outcome.is_accepted() && index.rules.lasts(op) {
                let first = stored.entry(package.reference);
                let first: &mut (Micros, Micros) = first.or_insert((op.ended, package.not_after));
                first.0 = first.0.min(op.ended);
            }
        }
    }
    stored
}

/// When the first Release of each reservation was acknowledged.
fn released(index: &Index<'_>) -> HashMap<Slot, Micros> {
    let acked = |op: &&&Op| matches!(op.answer, Answer::Released(_)) && index.rules.lasts(op);
    let first = |(&slot, ops): (&Slot, &Vec<&Op>)| {
        Some((slot, ops.iter().filter(acked).map(|op| op.ended).min()?))
    };
    index.releases.iter().filter_map(first).collect()
}

/// When a package was surely there for all.
fn spans(
    index: &Index<'_>,
    key: Key,
    stored: &HashMap<Ref, (Micros, Micros)>,
    released: &HashMap<Slot, Micros>,
    spans: &mut Vec<There>,
) {
    let path = index.path(key);
    let Some(&(uploaded, not_after)) = path.first().and_then(|e| stored.get(&e.reference)) else {
        return;
    };
    for (at, event) in path.iter().enumerate() {
        // What was withdrawn while it was reserved ends with its reservation.
        if event.kind == EventKind::Revoked {
            break;
        }
        let slot =
            Slot { pool: key.pool, suite: key.suite, seq: key.seq, generation: event.generation };
        let from = match event.kind {
            EventKind::Uploaded => uploaded,
            EventKind::Released => match released.get(&slot) {
                Some(&acked) => acked,
                None => continue,
            },
            EventKind::Lapsed => event.at + SETTLED,
            _ => continue,
        };
        // Too short a lifetime, with as much again to spare, is as good as none.
        let usable = not_after - 2 * index.rules.min_lifetime;
        let until = path.get(at + 1).map_or(Micros::MAX, |next| next.at).min(usable);
        if from < until {
            spans.push(There { from, until, place: (event.generation > 0, not_after, key.seq) });
        }
    }
}

fn visit<'a>(index: &Index<'_>, op: &'a Op, visits: &mut HashMap<u16, Vec<Visit<'a>>>) {
    let over = over(index, op);
    let pools_of = |slots: &[Slot]| -> Vec<u16> {
        let here = |pool: i64| index.pool_ids.iter().find(|(_, id)| **id == pool);
        slots.iter().filter_map(|slot| here(slot.pool)).map(|(&pool, _)| pool).collect()
    };
    match &op.call {
        Call::Reserve { pools, .. } => {
            for (place, &pool) in pools.iter().enumerate() {
                let got = match &op.answer {
                    Answer::Reserved(got) => got.get(place).copied(),
                    Answer::Refused("POOL_EXHAUSTED") if pools.len() == 1 => Some(Got::Exhausted),
                    _ => None,
                };
                let whole = is_whole(op);
                visits.entry(pool).or_default().push(Visit { op, got, whole, over });
            }
        }
        Call::Upload { pool, .. } | Call::Revoke { pool, .. } => {
            visits.entry(*pool).or_default().push(Visit { op, got: None, whole: false, over });
        }
        Call::Spend { slots, .. } | Call::Release { slots, .. } => {
            for pool in pools_of(slots) {
                visits.entry(pool).or_default().push(Visit { op, got: None, whole: false, over });
            }
        }
        Call::Status { .. } => {}
    }
}

/// When a call can have no more effect.
fn over(index: &Index<'_>, op: &Op) -> Micros {
    if op.answered() && op.via != Via::Sdk {
        return op.ended;
    }
    // An attempt of the SDK that was given up may still be under way, too.
    let struck = index.rules.faults.iter();
    let struck = struck.filter(|fault| fault.0 <= op.ended && fault.1 >= op.begun);
    struck.map(|fault| fault.1).max().unwrap_or(op.ended).max(op.ended) + index.rules.horizon
}

fn judge(
    index: &Index<'_>,
    pool: u16,
    there: &[There],
    visits: &[Visit<'_>],
    plenty: &mut Plenty,
    report: &mut Report,
) {
    let first_draws = index.pool_ids.get(&pool).and_then(|id| index.first_draws.get(id));
    let mut now: BTreeSet<(Place, Micros)> = BTreeSet::new();
    let mut coming = there.iter().peekable();
    let mut latest_over = Micros::MIN;
    for (at, visit) in visits.iter().enumerate() {
        let (begun, ended) = (visit.op.begun, visit.op.ended);
        while let Some(span) = coming.next_if(|span| span.from < begun) {
            now.insert((span.place, span.until));
        }
        let next = visits.get(at + 1).map_or(Micros::MAX, |next| next.op.begun);
        let alone = latest_over < begun && next > ended && visit.op.via != Via::Sdk;
        latest_over = latest_over.max(visit.over);
        now.retain(|&(_, until)| until > begun);
        let got = visit.got.or(visit.whole.then_some(Got::Exhausted));
        let Some(got) = got.filter(|_| index.rules.lasts(visit.op)) else { continue };
        let Call::Reserve { caller, ttl, .. } = visit.op.call else { continue };
        let caller = index.rules.callers.get(usize::from(caller)).copied();
        let stays = || now.iter().filter(|&&(_, until)| until > ended).map(|&(place, _)| place);
        let place = match got {
            Got::Package { slot, .. } if !slot.is_last_resort() => {
                if let Some(place) = place_of(index, slot, visit) { Some(place) } else { continue }
            }
            // What an earlier call had got is no word on the pool of now.
            Got::Package { expires_at, .. } if expires_at - ttl < begun => continue,
            Got::Package { .. } | Got::Exhausted => None,
            Got::Incompatible | Got::Quota => continue,
        };
        if let Some(place) = place {
            if alone {
                report.count("packages in the order of issue");
                if let Some(better) = stays().find(|better| *better < place) {
                    let what = format!("{place:?} though {better:?} was there, to {:?}", visit.op);
                    report.add(Kind::OrderOfIssue, what);
                }
            }
            continue;
        }
        report.count("pools called exhausted");
        let newcomer = caller.is_some_and(|caller| {
            first_draws.and_then(|draws| draws.get(&caller)).is_none_or(|&first| first > ended)
        });
        let spared = if newcomer { 0 } else { index.rules.low_watermark };
        let stock = stays().count();
        if visit.whole {
            let pools = plenty.entry((visit.op.worker, visit.op.begun)).or_default();
            *pools += usize::from(stock > spared);
        } else if stock > spared {
            report.add(Kind::ExhaustedWithStock, format!("{stock} were there, {:?}", visit.op));
        }
    }
}

/// Where the package stood that this call took; `None` when an earlier call had taken it.
fn place_of(index: &Index<'_>, slot: Slot, visit: &Visit<'_>) -> Option<Place> {
    let path = index.path(key_of(slot));
    let taken =
        path.iter().find(|e| e.kind == EventKind::Reserved && e.generation == slot.generation)?;
    let acks: &Vec<Ack<'_>> = index.acks.get(&taken.reference)?;
    let first = acks.iter().filter(|ack| ack.slot == slot).map(|ack| ack.op.begun).min()?;
    let not_after = *index.lifetimes.get(&taken.reference)?;
    (first == visit.op.begun && taken.at >= first).then_some((
        slot.generation > 1,
        not_after,
        slot.seq,
    ))
}
