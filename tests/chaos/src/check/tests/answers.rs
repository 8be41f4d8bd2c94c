//! Answers about another pool than the one that was asked, and repeated requests.

use super::story::{SECOND, event, reserve, slot, story};
use crate::{
    check::Kind,
    history::{Answer, Call, Got, Op, Slot},
    run::Evidence,
    tables::{Event, EventKind, Grant, Pool},
};

#[test]
fn a_package_of_another_pool_is_no_answer() {
    let mut wrong = story();
    wrong.rules.pools.push(("other".into(), "phone".into()));
    wrong.tables.pools.push(Pool { pool: 8, user: "other".into(), client: "phone".into() });
    let Call::Reserve { pools, .. } = &mut wrong.history[1].call else { unreachable!() };
    *pools = vec![1];
    wrong.breaks(Kind::WrongAnswer);
}

/// The same request once more, while its reservations live: it got `also` besides.
fn refused_again(also: &[Got]) -> Evidence {
    let mut story = story();
    story.rules.low_watermark = 2; // What is there is for newcomers.
    let first = &mut story.history[1];
    let (Call::Reserve { pools, all, .. }, Answer::Reserved(got)) =
        (&mut first.call, &mut first.answer)
    else {
        unreachable!()
    };
    *all = true;
    pools.extend(also.iter().map(|_| 0));
    got.extend(also);
    let begun = 5 * SECOND / 2;
    let answer = Answer::Refused("POOL_EXHAUSTED");
    let again = Op { begun, ended: begun + SECOND / 10, answer, ..first.clone() };
    story.then(again)
}

#[test]
fn a_request_that_is_repeated_is_refused_only_when_a_pool_cannot_give_again_what_it_gave() {
    refused_again(&[]).breaks(Kind::RequestIdBroken);
    // A last resort package that was replaced meanwhile.
    let grant = Slot { generation: 0, ..slot() };
    let reference = event(SECOND, EventKind::Uploaded, 0).reference;
    let expires_at = 3 * SECOND;
    let got = Got::Package { slot: grant, reference, expires_at, last_resort: true };
    let mut renewed = refused_again(&[got]);
    let at = 2 * SECOND + SECOND / 20;
    let issued = event(2 * SECOND, EventKind::LastResortIssued, 0);
    let holder = Some(super::story::HOLDER);
    renewed.tables.events.push(Event { at, holder, ..issued });
    renewed.tables.grants.push(Grant { key: issued.key, state: "reserved".into() });
    renewed.is_true();
}

#[test]
fn a_call_is_refused_as_a_whole_only_where_some_pool_is_exhausted() {
    let refused = |low_watermark| {
        let mut refused = story().then(reserve(30 * SECOND, Answer::Refused("POOL_EXHAUSTED")));
        refused.rules.low_watermark = low_watermark;
        let Call::Reserve { pools, all, .. } = &mut refused.history[2].call else { unreachable!() };
        (*pools, *all) = (vec![0, 0], true);
        refused
    };
    refused(1).breaks(Kind::ExhaustedWithStock);
    refused(2).is_true();
}
