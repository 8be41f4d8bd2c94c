//! Every kind of broken promise is found, and called what it is: a real run without violations is
//! changed in one place for each kind.

mod answers;
mod broken;
mod refused;
mod settled;
mod story;
mod withdrawn;

use std::{collections::BTreeSet, time::Duration};

use super::{ALWAYS, IN_A_MINUTE, Kind, check, log::walk};
use crate::{
    fault::Scenario,
    history::Ref,
    run::{Plan, gather},
    tables::{Event, EventKind, Key},
};

#[tokio::test]
async fn every_kind_of_violation_is_found_and_a_clean_run_has_none() {
    let folder = tempfile::tempdir().unwrap();
    let plan = Plan {
        scenario: Scenario::None,
        length: Duration::from_secs(2),
        least: 2000,
        deadline: Duration::from_secs(60),
        seed: 1,
    };
    let clean = gather(&plan, &folder.path().join("history.jsonl")).await.unwrap();
    let report = check(&clean.history, &clean.tables, &clean.rules);
    assert_eq!(report.violations, []);
    let expected = ALWAYS.iter().chain(&IN_A_MINUTE);
    let missing: Vec<_> = expected.filter(|what| !report.checked.contains_key(**what)).collect();
    assert_eq!(missing, [] as [&&str; 0]);
    let lines = std::fs::read_to_string(folder.path().join("history.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), clean.history.len());

    let mut wrong = Vec::new();
    for kind in Kind::ALL {
        let mut broken = clean.clone();
        broken.break_promise(kind);
        let found = broken.kinds();
        if found != BTreeSet::from([kind]) {
            wrong.push((kind, found));
        }
    }
    assert_eq!(wrong, [], "what was broken, and what was found");
}

#[test]
fn impossible_paths_are_called_what_they_are() {
    use EventKind as E;
    let path = |kinds: &[(E, i32)]| {
        let event = |(at, &(kind, generation)): (usize, &(E, i32))| Event {
            at: at.try_into().unwrap(),
            key: Key { pool: 1, suite: 1, seq: 1 },
            generation,
            kind,
            reference: Ref([0; 32]),
            holder: None,
        };
        let uploaded = [(E::Uploaded, 0)];
        let path: Vec<Event> = uploaded.iter().chain(kinds).enumerate().map(event).collect();
        walk(&path).map(|_| ())
    };
    let good: [&[(E, i32)]; 4] = [
        &[(E::Reserved, 1), (E::Spent, 1)],
        &[(E::Reserved, 1), (E::Lapsed, 1), (E::Spent, 1)],
        &[(E::Reserved, 1), (E::Burned, 1), (E::Spent, 1)],
        &[(E::Reserved, 1), (E::Revoked, 1), (E::Released, 1)],
    ];
    for kinds in good {
        assert_eq!(path(kinds), Ok(()), "{kinds:?}");
    }
    let bad: [(&[(E, i32)], Kind); 7] = [
        (&[(E::Reserved, 1), (E::Reserved, 2)], Kind::DoubleReservation),
        (&[(E::Reserved, 1), (E::Spent, 1), (E::Spent, 1)], Kind::SpentTwice),
        (&[(E::Reserved, 1), (E::Spent, 1), (E::Reserved, 2)], Kind::SpentIssuedAgain),
        (&[(E::Revoked, 0), (E::Reserved, 1)], Kind::RevokeUndone),
        (&[(E::Reserved, 2)], Kind::EventLogBroken),
        (&[(E::Reserved, 1), (E::Released, 1), (E::Spent, 1)], Kind::EventLogBroken),
        (&[(E::Expired, 0), (E::Reserved, 1)], Kind::EventLogBroken),
    ];
    for (kinds, kind) in bad {
        assert_eq!(path(kinds), Err(kind), "{kinds:?}");
    }
}
