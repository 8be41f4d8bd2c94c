//! Each planted mistake is found, by the promise that it breaks.

use keypool_model::{Bug, Rules};
use stateright::{Checker as _, HasDiscoveries, Model as _};

use super::{
    BURN, FAIR, FREE,
    promises::HEALS,
    scene::{Sizes, World},
};

/// Under which rules a mistake shows, and as what.
fn shows(bug: Bug) -> (Rules, &'static str) {
    match bug {
        Bug::TakesWhatIsHeld => (FREE, "OnlyWhatIsFree"),
        Bug::LapsesTooEarly => (FREE, "HeldUntilItEnds"),
        Bug::SpendsWhatWasIssuedSince => (FREE, "NobodyElseCanSpend"),
        Bug::ReleasesWhatWasSpent => (FREE, "SpentMeansSpent"),
        Bug::ForgetsWhoSpent => (FREE, "HolderCanSpend"),
        Bug::IgnoresRequestId => (FREE, "SameRequestSamePackage"),
        Bug::UploadsWhatEnded => (FREE, "EndedIsRefused"),
        Bug::RevokesWhatIsHeld => (FREE, "HeldUntilItEnds"),
        Bug::ForgetsRevocation => (FREE, "RevokedNeverReturns"),
        Bug::ReturnsWhatBurned => (BURN, "OnlyWhatIsFree"),
        Bug::IssuesReturnedFirst => (FREE, "OrderOfIssue"),
        Bug::IssuesYoungestFirst => (FREE, "OrderOfIssue"),
        Bug::IssuesLastResortFirst => (FREE, "LastResortComesLast"),
        Bug::IssuesWhatExpires => (FREE, "NothingNearlyExpired"),
        Bug::IgnoresFairShare => (FAIR, "FairShare"),
        Bug::IgnoresNewcomers => (FAIR, "LastOnesForNewcomers"),
        Bug::NeverLapses => (FREE, HEALS),
    }
}

#[test]
fn each_mistake_is_found() {
    for bug in Bug::ALL {
        let (rules, promise) = shows(bug);
        // An adder asks for another package only when it forgot that it has one.
        let sizes = if rules.fair_share.is_some() { Sizes::CRASHES } else { Sizes::REPEATS };
        let world = World::new(Rules { bug: Some(bug), ..rules }, sizes);
        let checker = world.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
        let found = checker.discoveries();
        let path = found.get(promise).unwrap_or_else(|| panic!("{bug:?}: {:?}", found.keys()));
        println!("{bug:?} breaks {promise} by {} steps", path.clone().into_actions().len());
    }
}
