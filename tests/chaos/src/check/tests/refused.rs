//! Refusals of a Reserve, and of packages.

use keypool_client::v1::RejectReason;

use super::story::{DAY, EXPIRES, LAPSES, SECOND, event, op, package, reserve, spend, story};
use crate::{
    check::Kind,
    history::{Answer, Call, Got, Micros, Offered, Stored},
    run::Evidence,
    tables::{End, EventKind, Live, Tombstone},
};

const QUOTA: Answer = Answer::Refused("QUOTA");
const INCOMPATIBLE: Answer = Answer::Refused("NO_COMPATIBLE_KEY_PACKAGE");
/// While the reservation lives.
const EARLY: Micros = 5 * SECOND / 2;

#[test]
fn a_caller_has_its_share_only_while_it_may_hold_as_much() {
    let one_each = |at, answer| {
        let mut story = story().then(reserve(at, answer));
        story.rules.max_open = 1;
        story
    };
    one_each(EARLY, QUOTA).is_true();
    // As long as the answer may have been made before it expired.
    one_each(EXPIRES - 1, QUOTA).is_true();
    one_each(EXPIRES + 1, QUOTA).breaks(Kind::RefusedWrongly);
    one_each(EXPIRES + 1, Answer::Reserved(vec![Got::Quota])).breaks(Kind::RefusedWrongly);
    one_each(3 * SECOND / 2, QUOTA).breaks(Kind::RefusedWrongly);
    // Of two that it may hold it held one.
    story().then(reserve(EARLY, QUOTA)).breaks(Kind::RefusedWrongly);
    let mut by_another = story().then(reserve(EARLY, QUOTA));
    by_another.rules.max_open = 1;
    by_another.rules.callers.push([1; 16]);
    let Call::Reserve { caller, .. } = &mut by_another.history[2].call else { unreachable!() };
    *caller = 1;
    by_another.breaks(Kind::RefusedWrongly);
}

#[test]
fn what_was_settled_for_sure_is_no_share() {
    let spent = |answer| {
        let story = story().without(EventKind::Lapsed).then(spend(EARLY, answer));
        let mut story = story.with(&[event(EARLY, EventKind::Spent, 1)], |_| {});
        let Live { key, reference, generation, .. } = story.tables.live.remove(0);
        story.tables.tombstones.push(Tombstone { key, reference, generation, state: End::Spent });
        story.rules.max_open = 1;
        story.then(reserve(EARLY + SECOND / 5, QUOTA))
    };
    spent(Answer::Spent(vec![false])).breaks(Kind::RefusedWrongly);
    // It may have been seen later, as nobody had an answer.
    spent(Answer::Unknown("DEADLINE")).is_true();
}

#[test]
fn no_pool_has_packages_of_another_kind_only() {
    story().then(reserve(7 * SECOND, INCOMPATIBLE)).breaks(Kind::RefusedWrongly);
    story().then(reserve(SECOND / 2, INCOMPATIBLE)).breaks(Kind::RefusedWrongly);
    story().then(reserve(7 * SECOND, Answer::Refused("ELSE"))).breaks(Kind::RefusedWrongly);
}

fn offered_again(at: Micros, stored: Stored) -> Evidence {
    let offered = Offered { reference: package(1), not_after: DAY, last_resort: false };
    let call = Call::Upload { pool: 0, packages: vec![offered] };
    let mut story = story().then(op(at, call, Answer::Uploaded(vec![stored])));
    story.rules.hard_cap = 3;
    story
}

#[test]
fn a_package_is_called_used_only_once_it_is() {
    let revoked = |at| {
        let mut story = offered_again(at, Stored::AlreadyUsed);
        story = story.with(&[event(LAPSES + 10 * SECOND, EventKind::Revoked, 1)], |_| {});
        let Live { key, reference, generation, .. } = story.tables.live.remove(0);
        let state = End::Revoked;
        story.tables.tombstones.push(Tombstone { key, reference, generation, state });
        story.tables.suites[0].revoked = 1;
        story
    };
    revoked(LAPSES + 11 * SECOND).is_true();
    revoked(LAPSES + 9 * SECOND).breaks(Kind::RefusedWrongly);
}

#[test]
fn packages_are_not_refused_for_what_is_not_so() {
    let refused = |reason: RejectReason| offered_again(7 * SECOND, Stored::Refused(reason.into()));
    for reason in [RejectReason::Malformed, RejectReason::Lifetime, RejectReason::PoolFull] {
        refused(reason).breaks(Kind::RefusedWrongly);
    }
    let mut full = refused(RejectReason::PoolFull);
    full.rules.hard_cap = 2;
    full.is_true();
    let mut restored = refused(RejectReason::Lifetime);
    restored.rules.erased = Some((6 * SECOND, 6 * SECOND + 1));
    restored.is_true();
}
