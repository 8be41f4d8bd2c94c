//! Every state that a small pool can come into, and the promises that hold in each.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, clippy::print_stdout)]

#[path = "exhaustive/bugs.rs"]
mod bugs;
#[path = "exhaustive/promises.rs"]
mod promises;
#[path = "exhaustive/scene.rs"]
mod scene;

use std::collections::BTreeSet;

use keypool_model::{FairShare, Lapse, Rules};
use stateright::{Checker as _, Model as _};

use scene::{Event, Sizes, World};

/// Adders may take all there is.
const FREE: Rules = Rules {
    lapse: Lapse::Return,
    fair_share: None,
    min_remaining: 1,
    hard_cap: 2,
    retention: 1,
    bug: None,
};
const BURN: Rules = Rules { lapse: Lapse::Burn, ..FREE };
const FAIR: Rules =
    Rules { fair_share: Some(FairShare { max_open: 1, spared: 1, newcomer_after: 3 }), ..FREE };

/// Lists every state, and says how many there are. Each promise must hold in all of them, and each
/// of the things that make a pool hard must happen somewhere.
fn all_states(name: &str, rules: Rules, expected: &[Event]) {
    let mut sizes = vec![("a call is repeated", Sizes::REPEATS), ("a crash", Sizes::CRASHES)];
    if std::env::var_os("KEYPOOL_MODEL_WIDE").is_some() {
        sizes.push(("both", Sizes::WIDE));
    }
    let mut happened = BTreeSet::new();
    for (what, sizes) in sizes {
        let world = World::new(rules, sizes);
        let events = world.happened();
        let checker = world.checker().threads(2).spawn_bfs().join();
        println!(
            "{name}, {what}: {} states by {} steps, none further than {} from the first",
            checker.unique_state_count(),
            checker.state_count(),
            checker.max_depth(),
        );
        if let Some((promise, path)) = checker.discoveries().into_iter().next() {
            panic!("{promise} is broken by:\n{path}");
        }
        assert!(checker.is_done());
        happened.append(&mut events.lock().unwrap());
    }
    for event in expected {
        assert!(happened.contains(event), "{event:?} never happened");
    }
}

const USUAL: [Event; 5] = [
    Event::LostAnswerRepeated,
    Event::LateSpend,
    Event::RevokedSpent,
    Event::LastResortSpent,
    Event::ExpiredWhileHeld,
];

#[test]
fn lapsed_reservations_return() {
    let more = [Event::BothSpent, Event::IssuedAgain];
    all_states("return", FREE, &[&USUAL[..], &more].concat());
}

#[test]
fn lapsed_reservations_burn() {
    all_states("burn", BURN, &USUAL);
}

#[test]
fn adders_have_a_fair_share() {
    all_states("fair share", FAIR, &USUAL);
}
