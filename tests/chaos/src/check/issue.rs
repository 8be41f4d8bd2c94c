//! Reservations: one at a time, none of what is spent, the same for the same request, and no more
//! than a fair share.

use std::collections::HashMap;

use uuid::Uuid;

use super::{Index, Kind, Report, index::Ack};
use crate::{
    history::{Answer, Call, Got, Micros, Op, Slot},
    tables::EventKind,
};

/// What times of one clock may differ by, because one of them was rounded.
const ROUNDING: Micros = 1;

pub(super) fn check(index: &Index<'_>, report: &mut Report) {
    for (reference, acks) in &index.acks {
        one_at_a_time(index, acks, report);
        let spent = index.spent.get(reference);
        for ack in acks {
            recorded(index, ack, report);
            of_its_pool(index, ack, report);
            if spent.is_some_and(|&spent| ack.op.begun > spent) {
                report.add(Kind::SpentIssuedAgain, format!("{:?} to {:?}", ack.slot, ack.op));
            }
            let revoked = index.revoked.get(&ack.reference);
            if revoked.is_some_and(|&revoked| ack.made > revoked) {
                report.add(Kind::RevokeUndone, format!("{:?} to {:?}", ack.slot, ack.op));
            }
        }
    }
    for ack in &index.grant_acks {
        recorded(index, ack, report);
        of_its_pool(index, ack, report);
    }
    same_request(index, report);
    fair_share(index, report);
}

fn recorded(index: &Index<'_>, ack: &Ack<'_>, report: &mut Report) {
    if !index.rules.lasts(ack.op) {
        return;
    }
    report.count("acknowledged reservations in the log");
    let holder = index.holder(ack.caller);
    let there = index.until(ack.slot, ack.op.ended).any(|event| {
        matches!(event.kind, EventKind::Reserved | EventKind::LastResortIssued)
            && event.generation == ack.slot.generation
            && event.holder == holder
            && event.reference == ack.reference
    });
    if !there {
        report.add(Kind::ReserveUndone, format!("{:?} to {:?}", ack.slot, ack.op));
    }
}

/// The package is one of the pool that was asked at its place in the call.
fn of_its_pool(index: &Index<'_>, ack: &Ack<'_>, report: &mut Report) {
    let (Call::Reserve { pools, .. }, Answer::Reserved(got)) = (&ack.op.call, &ack.op.answer)
    else {
        return;
    };
    // The pool may have been made after a backup, and again when that was restored.
    if !index.rules.lasts(ack.op) {
        return;
    }
    report.count("packages of the pool that was asked");
    let is_here = |got: &Got| matches!(got, Got::Package { slot, .. } if *slot == ack.slot);
    let mut asked = pools.iter().zip(got).filter(|(_, got)| is_here(got));
    if !asked.any(|(pool, _)| index.pool_ids.get(pool) == Some(&ack.slot.pool)) {
        report.add(Kind::WrongAnswer, format!("{:?} to {:?}", ack.slot, ack.op));
    }
}

/// By Postgres's time: what a later reservation takes has lapsed by then, or its holder had begun to
/// hand it back.
fn one_at_a_time(index: &Index<'_>, acks: &[Ack<'_>], report: &mut Report) {
    let generations: Vec<_> =
        acks.chunk_by(|a, b| a.slot.generation == b.slot.generation).collect();
    for same in &generations {
        report.count("reservations, one at a time");
        let asked = |ack: &Ack<'_>| match &ack.op.call {
            Call::Reserve { caller, request, .. } => Some((*caller, *request)),
            _ => None,
        };
        if same.iter().any(|ack| asked(ack) != asked(&same[0])) {
            report.add(Kind::DoubleReservation, format!("{:?} to several", same[0].slot));
        }
    }
    for pair in generations.windows(2) {
        let (earlier, later) = (&pair[0][0], &pair[1][0]);
        if !(index.rules.lasts(earlier.op) && index.rules.lasts(later.op)) {
            continue;
        }
        let lapsed = earlier.expires_at <= later.made + ROUNDING;
        let first_answer = pair[1].iter().map(|ack| ack.op.ended).min().unwrap_or_default();
        if !lapsed && !index.may_be_released(earlier.slot, first_answer) {
            let what = format!(
                "{:?} until {}, and {:?} from {}",
                earlier.slot, earlier.expires_at, later.slot, later.made
            );
            report.add(Kind::DoubleReservation, what);
        }
    }
}

/// The same request_id gets the same reservation while that lives.
fn same_request(index: &Index<'_>, report: &mut Report) {
    let mut requests: HashMap<(u16, Uuid), Vec<&Op>> = HashMap::new();
    for op in index.history {
        if let (Call::Reserve { caller, request, .. }, Answer::Reserved(_) | Answer::Refused(_)) =
            (&op.call, &op.answer)
        {
            requests.entry((*caller, *request)).or_default().push(op);
        }
    }
    for ops in requests.values_mut().filter(|ops| ops.len() > 1) {
        ops.sort_by_key(|op| op.begun);
        for pair in ops.windows(2) {
            same(index, pair[0], pair[1], report);
        }
    }
}

fn same(index: &Index<'_>, earlier: &Op, later: &Op, report: &mut Report) {
    let (Call::Reserve { ttl, .. }, Answer::Reserved(first)) = (&later.call, &earlier.answer)
    else {
        return;
    };
    let one_era = index.rules.lasts(earlier) && index.rules.lasts(later);
    if earlier.ended > later.begun || !one_era {
        return;
    }
    // All or nothing: what one pool cannot give again is taken anew, and if that cannot be, there
    // is nothing of the others either.
    let changed = |got: &Got| match *got {
        Got::Package { slot, expires_at, .. } => {
            slot.is_last_resort()
                || expires_at <= later.ended
                || index.may_be_settled(slot, later.ended)
        }
        _ => true,
    };
    if matches!(later.answer, Answer::Refused(_)) && first.iter().any(changed) {
        return;
    }
    for (place, got) in first.iter().enumerate() {
        let &Got::Package { slot, expires_at, .. } = got else { continue };
        report.count("requests repeated");
        let again = match &later.answer {
            Answer::Reserved(again) => again.get(place),
            _ => None,
        };
        let lapsed = match again {
            Some(Got::Package { slot: again, .. }) if *again == slot => continue,
            Some(&Got::Package { expires_at: until, .. }) => expires_at <= until - ttl + ROUNDING,
            _ => expires_at <= later.ended,
        };
        // A last resort package that was withdrawn meanwhile cannot be given again.
        if !lapsed && !index.may_be_settled(slot, later.ended) && !slot.is_last_resort() {
            report.add(Kind::RequestIdBroken, format!("{slot:?}, then {later:?}"));
        }
    }
}

/// What a caller took from a pool.
struct Held {
    slot: Slot,
    at: Micros,
    settled: Option<Micros>,
}

/// No statement gave a caller a package while it knew of as many live ones as it may hold.
fn fair_share(index: &Index<'_>, report: &mut Report) {
    let mut made = HashMap::new();
    for ack in index.acks.values().flatten().chain(&index.grant_acks) {
        // A place that was lost may be another reservation's by now.
        if index.rules.lasts(ack.op) {
            made.insert(ack.slot, ack.made);
        }
    }
    let mut holders: HashMap<([u8; 16], i64), Vec<Held>> = HashMap::new();
    for (slot, holder, at, path) in index.reservations() {
        let settled = path.iter().find(|e| {
            e.generation == slot.generation
                && matches!(e.kind, EventKind::Released | EventKind::Spent)
        });
        let settled = settled.map(|event| event.at);
        // A restored database is made to forget who drew.
        let forgotten = index.rules.erased.map(|(_, restored)| restored);
        let settled = settled.or(forgotten.filter(|&restored| at < restored));
        holders.entry((holder, slot.pool)).or_default().push(Held { slot, at, settled });
    }
    for held in holders.values_mut() {
        held.sort_by_key(|held| held.at);
        let mut open: Vec<&Held> = Vec::new();
        for next in held.iter() {
            report.count("reservations within a fair share");
            let expiry = |held: &Held| index.expiries.get(&held.slot).copied();
            // A statement may have begun a while before it wrote.
            open.retain(|held| {
                held.settled.is_none_or(|settled| settled > next.at)
                    && expiry(held).is_some_and(|end| end > next.at - index.rules.horizon)
            });
            if let Some(&made) = made.get(&next.slot) {
                let live = open.iter().filter(|held| expiry(held).is_some_and(|end| end > made));
                if live.count() >= index.rules.max_open {
                    let slots: Vec<_> = open.iter().map(|held| held.slot).collect();
                    let what = format!("{:?} beside {slots:?}", next.slot);
                    report.add(Kind::FairShareBroken, what);
                }
            }
            open.push(next);
        }
    }
}
