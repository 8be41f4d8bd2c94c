//! What was spent stays spent, what was released stays released, and a refusal has its reason.

use std::collections::HashMap;

use super::{Index, Kind, Report, index::key_of};
use crate::{
    history::{Answer, Call, Op, Slot},
    tables::{End, EventKind, Key},
};

pub(super) fn check(index: &Index<'_>, report: &mut Report) {
    let mut spent: HashMap<Key, Slot> = HashMap::new();
    for op in index.history {
        match (&op.call, &op.answer) {
            (Call::Spend { slots, .. }, Answer::Spent(_)) => {
                for &slot in slots {
                    if !index.rules.lasts(op) {
                        continue;
                    }
                    if !slot.is_last_resort() && *spent.entry(key_of(slot)).or_insert(slot) != slot
                    {
                        report.add(Kind::SpentTwice, format!("{slot:?} by {op:?}"));
                    } else {
                        spent_for_good(index, slot, op, report);
                    }
                }
            }
            (Call::Release { slots, .. }, Answer::Released(_)) if index.rules.lasts(op) => {
                for &slot in slots {
                    released_for_good(index, slot, op, report);
                }
            }
            (Call::Spend { slots, .. }, Answer::Refused(reason)) => {
                refused(index, slots, op, reason, report);
            }
            (Call::Release { slots, .. }, Answer::Refused(reason)) => {
                refused(index, slots, op, reason, report);
            }
            _ => {}
        }
    }
}

fn spent_for_good(index: &Index<'_>, slot: Slot, op: &Op, report: &mut Report) {
    report.count("acknowledged Spends in log and tombstones");
    let buried = slot.is_last_resort()
        || index.tombstones.get(&key_of(slot)).is_some_and(|tombstone| {
            tombstone.state == End::Spent && tombstone.generation == slot.generation
        });
    if !buried || !index.happened(slot, &[EventKind::Spent]) {
        report.add(Kind::SpendUndone, format!("{slot:?} by {op:?}"));
    }
}

fn released_for_good(index: &Index<'_>, slot: Slot, op: &Op, report: &mut Report) {
    use EventKind as E;
    report.count("acknowledged Releases in the log");
    // A Release of what has lapsed, or expired, has nothing to do.
    let ends = [E::Released, E::Lapsed, E::Burned, E::Revoked, E::Expired];
    let lapsed_grant =
        slot.is_last_resort() && index.expiries.get(&slot).is_some_and(|end| *end < op.ended);
    let undone = index.happened(slot, &[E::Released]) && index.happened(slot, &[E::Spent]);
    if undone || !(index.happened(slot, &ends) || lapsed_grant) {
        report.add(Kind::ReleaseUndone, format!("{slot:?} by {op:?}"));
    }
}

/// Each of these was reserved by this caller, for this group.
fn refused(index: &Index<'_>, slots: &[Slot], op: &Op, reason: &str, report: &mut Report) {
    report.count("refusals with their reason");
    let lives = |slot: &Slot| {
        index.expiries.get(slot).is_some_and(|&end| end > op.ended)
            && !index.may_be_released(*slot, op.ended)
    };
    let spends = matches!(op.call, Call::Spend { .. });
    let wrong = match reason {
        "RESERVATION_LOST" => slots.iter().all(lives),
        "RESERVATION_NOT_HELD" if spends => {
            slots.iter().all(|slot| !index.may_be_released(*slot, op.ended))
        }
        "RESERVATION_NOT_HELD" => slots.iter().all(|slot| !index.may_be_spent(*slot, op.ended)),
        _ => true,
    };
    // Reservations that a restored backup does not know are lost.
    if wrong && index.rules.lasts(op) && index.rules.erased.is_none() {
        report.add(Kind::RefusedWrongly, format!("{reason} to {op:?}"));
    }
}
