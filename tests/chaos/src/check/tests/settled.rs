//! Releases that were lost, and Spends that were refused without a reason.

use super::story::{HOLDER, LAPSES, SECOND, event, release, spend, story};
use crate::{
    check::Kind,
    history::{Answer, Call},
    tables::{End, Event, EventKind, Grant, Key, Live, Tombstone},
};

fn released() -> Answer {
    Answer::Released(vec![false])
}

const LOST: Answer = Answer::Refused("RESERVATION_LOST");
const NOT_HELD: Answer = Answer::Refused("RESERVATION_NOT_HELD");
/// Before the reservation expires.
const EARLY: i64 = 5 * SECOND / 2;

#[test]
fn a_release_that_was_lost_is_found_although_the_reservation_lapses_later() {
    story().then(release(EARLY, released())).breaks(Kind::ReleaseUndone);
    // Expired, and still its holder's: a Release hands it back.
    story().then(release(4 * SECOND, released())).breaks(Kind::ReleaseUndone);
    story().then(release(7 * SECOND, released())).is_true();
}

#[test]
fn a_release_in_the_log_has_to_be_the_callers() {
    let back = |row: &mut Live| row.lapsed = false;
    let logged = event(EARLY, EventKind::Released, 1);
    let kept = || story().without(EventKind::Lapsed).then(release(EARLY, released()));
    kept().with(&[logged], back).is_true();
    kept().with(&[Event { holder: Some([0; 16]), ..logged }], back).breaks(Kind::ReleaseUndone);
    // Somebody else did it, later.
    kept().with(&[Event { at: logged.at + SECOND, ..logged }], back).breaks(Kind::ReleaseUndone);
    assert_eq!(logged.holder, Some(HOLDER));
}

#[test]
fn what_burns_needs_no_release_once_it_has_expired() {
    let mut burns = story().then(release(4 * SECOND, released()));
    burns.rules.burns = true;
    burns.is_true();
    let mut burns = story().then(release(EARLY, released()));
    burns.rules.burns = true;
    burns.breaks(Kind::ReleaseUndone);
}

#[test]
fn a_late_spend_is_lost_only_when_somebody_else_got_the_package_or_it_ended() {
    let at = LAPSES + 4 * SECOND;
    story().then(spend(at, LOST)).breaks(Kind::RefusedWrongly);
    story().then(spend(EARLY, LOST)).breaks(Kind::RefusedWrongly);
    let again = |at| {
        story().with(&[event(at, EventKind::Reserved, 2)], |row| {
            (row.generation, row.reserved, row.lapsed) = (2, true, false);
        })
    };
    again(at - SECOND).then(spend(at, LOST)).is_true();
    again(at + SECOND).then(spend(at, LOST)).breaks(Kind::RefusedWrongly);
}

#[test]
fn what_was_withdrawn_while_it_was_held_is_lost_when_its_reservation_ends() {
    let withdrawn = || {
        let mut story = story();
        story.tables.events.insert(3, event(EARLY, EventKind::Revoked, 1));
        let row = story.tables.live.remove(0);
        story.tables.suites[0].revoked = 1;
        story.tables.tombstones.push(Tombstone {
            key: row.key,
            reference: row.reference,
            generation: 1,
            state: End::Revoked,
        });
        story
    };
    withdrawn().then(spend(LAPSES + SECOND, LOST)).is_true();
    withdrawn().then(spend(LAPSES - SECOND, LOST)).breaks(Kind::RefusedWrongly);
}

#[test]
fn what_is_not_held_was_settled_before() {
    story().then(spend(7 * SECOND, NOT_HELD)).breaks(Kind::RefusedWrongly);
    story().then(release(7 * SECOND, NOT_HELD)).breaks(Kind::RefusedWrongly);
    let back = |row: &mut Live| row.lapsed = false;
    let kept = story().without(EventKind::Lapsed);
    let kept = kept.with(&[event(EARLY, EventKind::Released, 1)], back);
    kept.then(release(EARLY, released())).then(spend(7 * SECOND, NOT_HELD)).is_true();
}

#[test]
fn a_grant_of_a_last_resort_package_ends_as_its_row_says() {
    let granted = |kind, state: &str| {
        let mut story = story();
        let key = Key { seq: 99, ..event(0, EventKind::Reserved, 1).key };
        let holder = Some(HOLDER);
        let events = [EventKind::LastResortIssued, kind];
        story.tables.events.extend(events.map(|kind| Event {
            key,
            holder,
            ..event(EARLY, kind, 0)
        }));
        story.tables.grants.push(Grant { key, state: state.into() });
        let mut spent = spend(EARLY, Answer::Spent(vec![false]));
        let Call::Spend { slots, .. } = &mut spent.call else { unreachable!() };
        (slots[0].seq, slots[0].generation) = (99, 0);
        story.then(spent)
    };
    granted(EventKind::Spent, "spent").is_true();
    granted(EventKind::Spent, "reserved").breaks(Kind::RowsDisagree);
    granted(EventKind::Released, "released").breaks(Kind::SpendUndone);
    let mut gone = granted(EventKind::Spent, "spent");
    gone.tables.grants.clear();
    gone.breaks(Kind::RowsDisagree);
}

#[test]
fn what_was_stored_stays_known() {
    let mut unknown = story();
    unknown.tables.published.pop();
    unknown.breaks(Kind::TombstoneBroken);
}
