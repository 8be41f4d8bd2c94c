//! What keypool promises, said once more, by what is seen from outside of a call.

use keypool_model::{
    Ask, Group, Id, Item, Lapse, Package, Pool, Refusal, Refused, Reservation, Reserved, Rules,
    Settled, State, Unavailable, Uploaded,
};
use stateright::Property;

use super::scene::{Got, Scene, Step, TTL, World};

/// The promises about single calls, and a property for each: that it was never broken.
macro_rules! promises {
    ($($promise:ident),+ $(,)?) => {
        /// A promise.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub(super) enum Promise {
            $($promise),+
        }

        fn never_broken() -> Vec<Property<World>> {
            vec![$(Property::always(stringify!($promise), |_, scene: &Scene| {
                scene.broken != Some(Promise::$promise)
            })),+]
        }
    };
}

promises!(
    SpentOnce,
    TerminalStaysTerminal,
    RevokedNeverReturns,
    BurnedNeverReturns,
    HeldUntilItEnds,
    HolderCanSpend,
    NobodyElseCanSpend,
    SpentMeansSpent,
    SameRequestSamePackage,
    OrderOfIssue,
    LastResortComesLast,
    NothingNearlyExpired,
    FairShare,
    LastOnesForNewcomers,
    EndedIsRefused,
    OnlyWhatIsFree,
);

/// What a call answered.
#[derive(Debug)]
pub(super) enum Outcome {
    None,
    Reserve(Ask, Result<Reserved, Unavailable>),
    Spend(Id, Group, Result<Settled, Refusal>),
    Release(Id, Result<Settled, Refusal>),
    Upload(Item, Result<Uploaded, Refused>),
}

/// The promises that are about single states.
pub(super) const ONE_HOLDER: &str = "no package has two holders";
pub(super) const HEALS: &str = "once time has passed, nobody keeps a package";

/// One for each promise.
pub(super) fn properties() -> Vec<Property<World>> {
    let mut properties = never_broken();
    properties.push(Property::always(ONE_HOLDER, |_, scene: &Scene| {
        let held = scene.adders.each_ref().map(|person| match person.step {
            Step::Holding(Got { id: Id::Package(at, _), expires_at })
            | Step::Spending(Got { id: Id::Package(at, _), expires_at })
                if expires_at > scene.pool.now
                    && !matches!(scene.pool.packages[at].state, State::Spent(_)) =>
            {
                Some(at)
            }
            _ => None,
        });
        held[0].is_none() || held[0] != held[1]
    }));
    properties.push(Property::always(HEALS, |world: &World, scene: &Scene| {
        let mut pool = scene.pool.clone();
        pool.pass(TTL);
        pool.sweep(world.rules());
        !pool.packages.iter().any(|package| matches!(package.state, State::Reserved { .. }))
    }));
    properties
}

fn live_holder<'a>(pool: &Pool, package: &'a Package) -> Option<&'a Reservation> {
    match &package.state {
        State::Reserved { by, .. } if by.expires_at > pool.now => Some(by),
        _ => None,
    }
}

/// Whether the contract lets a Reserve have it.
fn free(rules: &Rules, pool: &Pool, package: &Package) -> bool {
    let unheld = match &package.state {
        State::Available | State::Lapsed(_) => true,
        State::Reserved { by, revoked: false } => {
            rules.lapse == Lapse::Return && by.expires_at <= pool.now
        }
        _ => false,
    };
    unheld && package.not_after - rules.min_remaining >= pool.now
}

/// The promise that a step has broken.
pub(super) fn broken_by(
    rules: &Rules,
    before: &Scene,
    outcome: &Outcome,
    after: &Scene,
) -> Option<Promise> {
    let (before, after) = (&before.pool, &after.pool);
    let answered = match outcome {
        Outcome::Reserve(ask, Ok(got)) => broken_by_reserve(rules, before, ask, got),
        Outcome::Spend(id, group, answer) => broken_by_spend(before, *id, *group, answer, after),
        Outcome::Release(Id::Package(at, generation), Ok(_)) => {
            let package = &before.packages[*at];
            let spent = matches!(package.state, State::Spent(_));
            (spent && package.generation == *generation).then_some(Promise::SpentMeansSpent)
        }
        Outcome::Upload(Item::Package(at), Ok(_)) => {
            let live = matches!(
                before.packages[*at].state,
                State::Available | State::Lapsed(_) | State::Reserved { revoked: false, .. }
            );
            (!live).then_some(Promise::EndedIsRefused)
        }
        _ => None,
    };
    let both = before.packages.iter().zip(&after.packages).enumerate();
    answered.or_else(|| {
        both.into_iter()
            .find_map(|(at, (old, new))| broken_for(rules, before, outcome, at, old, new))
    })
}

/// What may become of a package by one step.
fn broken_for(
    rules: &Rules,
    before: &Pool,
    outcome: &Outcome,
    at: usize,
    old: &Package,
    new: &Package,
) -> Option<Promise> {
    let same = new.state == old.state && new.generation == old.generation;
    let forgotten = new.state == State::Forgotten;
    let becomes_spent = matches!(new.state, State::Spent(_));
    match &old.state {
        State::Spent(_) | State::Revoked | State::Expired | State::Forgotten
            if !same && !forgotten =>
        {
            return Some(Promise::TerminalStaysTerminal);
        }
        State::Burned(_) if !same && !forgotten && !becomes_spent => {
            return Some(Promise::BurnedNeverReturns);
        }
        State::Reserved { revoked: true, .. } => match &new.state {
            State::Spent(_) | State::Revoked | State::Expired | State::Forgotten => {}
            _ if same => {}
            _ => return Some(Promise::RevokedNeverReturns),
        },
        State::Reserved { .. }
            if rules.lapse == Lapse::Burn && matches!(new.state, State::Lapsed(_)) =>
        {
            return Some(Promise::BurnedNeverReturns);
        }
        _ => {}
    }
    let by_holder = match outcome {
        Outcome::Spend(id, ..) | Outcome::Release(id, _) => *id == Id::Package(at, old.generation),
        _ => false,
    };
    let expired = forgotten || new.state == State::Expired;
    if live_holder(before, old).is_some() && !by_holder && !expired {
        let held = new.generation == old.generation && matches!(new.state, State::Reserved { .. });
        if !held {
            return Some(Promise::HeldUntilItEnds);
        }
    }
    None
}

fn broken_by_reserve(rules: &Rules, before: &Pool, ask: &Ask, got: &Reserved) -> Option<Promise> {
    let mine = |by: &Reservation| by.holder.adder == ask.adder && by.expires_at > before.now;
    let repeated = before.packages.iter().enumerate().find_map(|(at, package)| {
        let by = live_holder(before, package)?;
        let same = mine(by) && by.request == ask.request;
        same.then_some((Id::Package(at, package.generation), by.expires_at))
    });
    if let Some(first) = repeated {
        let again = (got.id, got.expires_at) == first;
        return (!again).then_some(Promise::SameRequestSamePackage);
    }
    if got.again {
        return None; // of a last resort grant
    }
    let stock: Vec<_> = before.packages.iter().filter(|p| free(rules, before, p)).collect();
    let drew = before.drawn.get(&ask.adder);
    let mut spared = 0;
    if let Some(share) = rules.fair_share {
        let held = before.packages.iter().filter_map(|package| live_holder(before, package));
        if held.filter(|by| mine(by)).count() >= share.max_open {
            return Some(Promise::FairShare);
        }
        if drew.is_some_and(|at| before.now - at < share.newcomer_after) {
            spared = share.spared;
        }
    }
    match got.id {
        Id::Grant(_) => (stock.len() > spared).then_some(Promise::LastResortComesLast),
        Id::Package(at, _) => {
            let package = &before.packages[at];
            let rank = |package: &Package| (package.generation > 0, package.not_after);
            if package.not_after - rules.min_remaining < before.now {
                return Some(Promise::NothingNearlyExpired);
            }
            if !free(rules, before, package) {
                return Some(Promise::OnlyWhatIsFree);
            }
            if stock.len() <= spared {
                return Some(Promise::LastOnesForNewcomers);
            }
            let earlier = stock.iter().any(|other| rank(other) < rank(package));
            earlier.then_some(Promise::OrderOfIssue)
        }
    }
}

fn broken_by_spend(
    before: &Pool,
    id: Id,
    group: Group,
    answer: &Result<Settled, Refusal>,
    after: &Pool,
) -> Option<Promise> {
    let Id::Package(at, generation) = id else { return None };
    let (old, new) = (&before.packages[at], &after.packages[at]);
    let holder = match old.state {
        State::Reserved { by, .. } => Some(by.holder),
        State::Lapsed(holder) | State::Burned(holder) | State::Spent(holder) => Some(holder),
        _ => None,
    };
    let mine = old.generation == generation && holder.is_some_and(|h| h.group == group);
    match (mine, answer) {
        (true, Err(_)) => Some(Promise::HolderCanSpend),
        (false, Ok(_)) => Some(Promise::NobodyElseCanSpend),
        (true, Ok(_)) => {
            let spent = holder.is_some_and(|h| new.state == State::Spent(h));
            (!spent).then_some(Promise::SpentMeansSpent)
        }
        (false, Err(_)) => None,
    }
}
