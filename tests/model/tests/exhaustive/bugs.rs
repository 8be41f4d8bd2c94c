//! Each planted mistake is found, by the promise that it breaks.

use std::collections::BTreeSet;

use keypool_model::{Bug, Rules};
use stateright::{Checker as _, HasDiscoveries, Model as _};

use super::{
    BURN, FAIR, FREE,
    promises::{HEALS, ONE_HOLDER, properties},
    scene::{Sizes, World},
};

/// Under which rules a mistake shows, and as what.
fn shows(bug: Bug) -> (Rules, &'static [&'static str]) {
    match bug {
        Bug::TakesWhatIsHeld => (FREE, &["OnlyWhatIsFree", ONE_HOLDER]),
        Bug::LapsesTooEarly => (FREE, &["HeldUntilItEnds"]),
        Bug::SpendsWhatWasIssuedSince => (FREE, &["NobodyElseCanSpend", "SpentOnce"]),
        Bug::ReleasesWhatWasSpent => (FREE, &["SpentMeansSpent"]),
        Bug::ForgetsWhoSpent => (FREE, &["HolderCanSpend"]),
        Bug::IgnoresRequestId => (FREE, &["SameRequestSamePackage"]),
        Bug::UploadsWhatEnded => (FREE, &["EndedIsRefused"]),
        Bug::RevokesWhatIsHeld => (FREE, &["HeldUntilItEnds"]),
        Bug::ForgetsRevocation => (FREE, &["RevokedNeverReturns"]),
        Bug::ReturnsWhatBurned => (BURN, &["OnlyWhatIsFree"]),
        Bug::IssuesReturnedFirst => (FREE, &["OrderOfIssue"]),
        Bug::IssuesYoungestFirst => (FREE, &["OrderOfIssue"]),
        Bug::IssuesLastResortFirst => (FREE, &["LastResortComesLast"]),
        Bug::IssuesWhatExpires => (FREE, &["NothingNearlyExpired"]),
        Bug::IgnoresFairShare => (FAIR, &["FairShare"]),
        Bug::IgnoresNewcomers => (FAIR, &["LastOnesForNewcomers"]),
        Bug::NeverLapses => (FREE, &[HEALS]),
        Bug::LapsesWhatIsToBurn => (BURN, &["BurnedNeverReturns"]),
        Bug::SweepsBackWhatWasSpent => (FREE, &["TerminalStaysTerminal"]),
    }
}

#[test]
fn each_mistake_is_found() {
    for bug in Bug::ALL {
        let (rules, promises) = shows(bug);
        // An adder asks for another package only when it forgot that it has one.
        let sizes = if rules.fair_share.is_some() { Sizes::CRASHES } else { Sizes::REPEATS };
        let world = World::new(Rules { bug: Some(bug), ..rules }, sizes);
        // Not just what is broken first.
        let all = HasDiscoveries::AllOf(promises.iter().copied().collect());
        let found = world.checker().finish_when(all).spawn_bfs().join().discoveries();
        for &promise in promises {
            let path = found.get(promise).unwrap_or_else(|| panic!("{bug:?}: {:?}", found.keys()));
            println!("{bug:?} breaks {promise} by {} steps", path.clone().into_actions().len());
        }
    }
}

/// A promise that nothing breaks is not looked at.
#[test]
fn each_promise_is_broken_by_a_mistake() {
    let broken: BTreeSet<_> = Bug::ALL.into_iter().flat_map(|bug| shows(bug).1).copied().collect();
    let promised: BTreeSet<_> = properties().iter().map(|property| property.name).collect();
    assert_eq!(broken, promised);
}
