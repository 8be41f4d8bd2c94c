//! What was spent stays spent, what was released stays released, and a refusal has its reason.
//!
//! Whatever a call did, or found done, is in the log with a time before its answer: a transaction is
//! visible to others once it is durable, and takes its times before that.

use std::collections::HashMap;

use super::{Index, Kind, Report, index::key_of, log::GRANT_KEPT};
use crate::{
    history::{Answer, Call, Micros, Op, Slot},
    tables::{End, Event, EventKind, Key},
};

pub(super) fn check(index: &Index<'_>, report: &mut Report) {
    let mut spent: HashMap<Key, Slot> = HashMap::new();
    for op in index.history {
        match (&op.call, &op.answer) {
            (Call::Spend { caller, slots, .. }, Answer::Spent(_)) if index.rules.lasts(op) => {
                for &slot in slots {
                    if !slot.is_last_resort() && *spent.entry(key_of(slot)).or_insert(slot) != slot
                    {
                        report.add(Kind::SpentTwice, format!("{slot:?} by {op:?}"));
                    } else {
                        spent_for_good(index, *caller, slot, op, report);
                    }
                }
            }
            (Call::Release { caller, slots }, Answer::Released(_)) if index.rules.lasts(op) => {
                for &slot in slots {
                    released_for_good(index, *caller, slot, op, report);
                }
            }
            (Call::Spend { slots, .. } | Call::Release { slots, .. }, Answer::Refused(reason)) => {
                refused(index, slots, op, reason, report);
            }
            _ => {}
        }
    }
}

/// Whether the log says that this caller ended the reservation so, before it was answered.
fn is_in_the_log(index: &Index<'_>, caller: u16, slot: Slot, op: &Op, kind: EventKind) -> bool {
    let holder = index.holder(caller);
    index.until(slot, op.ended).any(|event| {
        event.generation == slot.generation && event.kind == kind && event.holder == holder
    })
}

fn spent_for_good(index: &Index<'_>, caller: u16, slot: Slot, op: &Op, report: &mut Report) {
    report.count("acknowledged Spends in log and tombstones");
    let buried = slot.is_last_resort()
        || index.tombstones.get(&key_of(slot)).is_some_and(|tombstone| {
            tombstone.state == End::Spent && tombstone.generation == slot.generation
        });
    if !buried || !is_in_the_log(index, caller, slot, op, EventKind::Spent) {
        report.add(Kind::SpendUndone, format!("{slot:?} by {op:?}"));
    }
}

fn released_for_good(index: &Index<'_>, caller: u16, slot: Slot, op: &Op, report: &mut Report) {
    use EventKind as E;
    report.count("acknowledged Releases in the log");
    let released = is_in_the_log(index, caller, slot, op, E::Released);
    let spent = index.until(slot, Micros::MAX);
    let mut spent = spent.filter(|e| e.generation == slot.generation && e.kind == E::Spent);
    let undone = released && spent.next().is_some();
    if undone || !(released || had_ended(index, slot, op)) {
        report.add(Kind::ReleaseUndone, format!("{slot:?} by {op:?}"));
    }
}

/// Whether a Release had nothing to do, as the reservation had ended before it was answered.
fn had_ended(index: &Index<'_>, slot: Slot, op: &Op) -> bool {
    use EventKind as E;
    let Some(&expires_at) = index.expiries.get(&slot) else { return false };
    let lapsed = expires_at <= op.ended;
    // A grant that lapsed may be forgotten. What is to burn does not come back, and may not have
    // burned yet.
    if lapsed && (slot.is_last_resort() || index.rules.burns) {
        return true;
    }
    index.until(slot, op.ended).filter(|e| e.generation == slot.generation).any(|e| match e.kind {
        E::Lapsed | E::Burned => lapsed,
        // What is withdrawn while it is held stays held.
        E::Revoked => expires_at <= e.at,
        E::Expired => true,
        _ => false,
    })
}

/// Each of these was reserved by this caller, for this group.
fn refused(index: &Index<'_>, slots: &[Slot], op: &Op, reason: &str, report: &mut Report) {
    if slots.iter().any(|&slot| index.may_be_forgotten(slot, op)) {
        return;
    }
    report.count("refusals with their reason");
    let by = |slot: Slot, kind: EventKind| {
        let mut events = index.until(slot, op.ended);
        events.any(|event| event.generation == slot.generation && event.kind == kind)
    };
    let right = |&slot: &Slot| match (reason, &op.call) {
        ("RESERVATION_LOST", Call::Spend { .. }) => is_lost(index, slot, op),
        ("RESERVATION_NOT_HELD", Call::Spend { .. }) => by(slot, EventKind::Released),
        ("RESERVATION_NOT_HELD", _) => by(slot, EventKind::Spent),
        _ => false,
    };
    if !slots.iter().any(right) {
        report.add(Kind::RefusedWrongly, format!("{reason} to {op:?}"));
    }
}

/// Whether nobody can spend this reservation any more: somebody else got the package, or it ended.
/// That it lapsed or burned is no reason.
fn is_lost(index: &Index<'_>, slot: Slot, op: &Op) -> bool {
    use EventKind as E;
    let expires_at = index.expiries.get(&slot).copied().unwrap_or(Micros::MIN);
    if slot.is_last_resort() {
        return expires_at + GRANT_KEPT <= op.ended;
    }
    let events = index.until(slot, op.ended);
    let ends = |e: &Event| matches!(e.kind, E::Lapsed | E::Released);
    let mut revoked = events.clone().filter(|event| event.kind == E::Revoked);
    events.clone().any(|e| e.generation > slot.generation || e.kind == E::Expired)
        // What was withdrawn while it was held ends with its reservation.
        || revoked.any(|revoked| {
            expires_at <= revoked.at || events.clone().any(|e| e.at >= revoked.at && ends(e))
        })
}
