//! Two adders, an owner, a network that loses and repeats, and a pool.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use keypool_model::{
    Adder, Ask, Group, Id, Item, Package, Pool, Request, Reserved, Rules, Settled, State, Time,
};
use stateright::{Model, Property};

use super::promises::{self, Outcome, Promise};

/// For how long a reservation lives.
pub(super) const TTL: Time = 2;

/// How much happens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// How many packages an adder asks for, one after the other; one more when it crashed.
    pub(super) requests: Request,
    /// How often some adder sends a call again.
    pub(super) repeats: u8,
    /// How often some adder forgets everything.
    pub(super) crashes: u8,
    /// When time ends.
    pub(super) end: Time,
}

impl Sizes {
    /// Some call is sent twice: its answer was lost, or late.
    pub(super) const REPEATS: Self = Self { requests: 1, repeats: 1, crashes: 0, end: 4 };
    /// An adder forgets what it does.
    pub(super) const CRASHES: Self = Self { requests: 1, repeats: 0, crashes: 1, end: 3 };
    /// Both; a minute or more.
    pub(super) const WIDE: Self = Self { requests: 1, repeats: 1, crashes: 1, end: 5 };
}

/// See the module.
#[derive(Debug)]
pub(super) struct World {
    rules: Rules,
    sizes: Sizes,
    /// What has happened in some state: no part of it, so that it does not multiply them.
    happened: Arc<Mutex<BTreeSet<Event>>>,
}

/// All there is at one instant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Scene {
    pub(super) pool: Pool,
    pub(super) adders: [Person; 2],
    /// What was sent and may arrive at any time, or never.
    wire: Vec<(Adder, Call)>,
    /// Whether the owner has revoked already.
    revoked: bool,
    /// How often this can happen yet.
    repeats: u8,
    crashes: u8,
    /// By whom each package was spent, as a caller was told.
    pub(super) spent: [Option<(Adder, u8)>; 2],
    pub(super) broken: Option<Promise>,
}

/// What makes a pool hard. Each is to happen somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Event {
    BothSpent,
    LostAnswerRepeated,
    LateSpend,
    RevokedSpent,
    LastResortSpent,
    ExpiredWhileHeld,
    IssuedAgain,
}

/// An adder, as it knows itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Person {
    pub(super) step: Step,
    request: Request,
    /// After how many requests it is done.
    last: Request,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Step {
    Idle,
    Reserving,
    Holding(Got),
    Spending(Got),
    Releasing(Got),
}

/// A reservation as its holder knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Got {
    pub(super) id: Id,
    pub(super) expires_at: Time,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Call {
    Reserve(Request),
    Spend(Id, Group),
    Release(Id),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Action {
    /// An adder begins.
    Ask(Adder),
    /// Its Commit was accepted.
    Spend(Adder),
    /// Its Commit was not.
    Release(Adder),
    /// It has waited for too long.
    Repeat(Adder),
    /// It has waited for its Spend for too long, and would rather not have the package.
    GiveUp(Adder),
    /// It forgets everything.
    Crash(Adder),
    /// A call arrives and its answer too.
    Call(usize),
    /// A call arrives; the server dies before it answers, or the answer is lost.
    CallAnswerLost(usize),
    UploadAgain(Item),
    RevokeAll,
    Sweep,
    Pass,
}

fn group(adder: Adder, request: Request) -> Group {
    adder * 10 + u8::try_from(request).unwrap()
}

impl World {
    pub(super) fn new(rules: Rules, sizes: Sizes) -> Self {
        Self { rules, sizes, happened: Arc::default() }
    }

    /// What has happened, once the states have been listed.
    pub(super) fn happened(&self) -> Arc<Mutex<BTreeSet<Event>>> {
        self.happened.clone()
    }

    pub(super) fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Notes what a step has made happen.
    fn note(&self, before: &Pool, outcome: &Outcome, after: &Pool) {
        let mut events = Vec::new();
        let spent = |p: &Package| matches!(p.state, State::Spent(_));
        match outcome {
            Outcome::Spend(Id::Package(at, _), _, Ok(Settled { already: false })) => {
                events.extend(after.packages.iter().all(spent).then_some(Event::BothSpent));
                events.extend(match before.packages[*at].state {
                    State::Lapsed(_) | State::Burned(_) => Some(Event::LateSpend),
                    State::Reserved { revoked: true, .. } => Some(Event::RevokedSpent),
                    _ => None,
                });
            }
            Outcome::Spend(Id::Grant(_), _, Ok(_)) => events.push(Event::LastResortSpent),
            Outcome::Reserve(_, Ok(Reserved { again: true, .. })) => {
                events.push(Event::LostAnswerRepeated);
            }
            Outcome::Reserve(_, Ok(Reserved { id: Id::Package(_, 2..), .. })) => {
                events.push(Event::IssuedAgain);
            }
            _ => {}
        }
        let held = |p: &Package| matches!(p.state, State::Reserved { .. });
        let mut both = before.packages.iter().zip(&after.packages);
        if both.any(|(old, new)| held(old) && new.state == State::Expired) {
            events.push(Event::ExpiredWhileHeld);
        }
        if !events.is_empty() {
            self.happened.lock().unwrap().extend(events);
        }
    }

    fn first(&self) -> Scene {
        let mut pool = Pool::default();
        pool.upload(&self.rules, 1, 3).unwrap();
        pool.upload(&self.rules, 1, 6).unwrap();
        pool.upload_last_resort(1, 6).unwrap();
        let person = Person { step: Step::Idle, request: 0, last: self.sizes.requests };
        Scene {
            pool,
            adders: [person.clone(), person],
            wire: Vec::new(),
            revoked: false,
            repeats: self.sizes.repeats,
            crashes: self.sizes.crashes,
            spent: [None; 2],
            broken: None,
        }
    }

    /// The server answers a call.
    fn call(&self, scene: &mut Scene, adder: Adder, call: Call) -> Outcome {
        let pool = &mut scene.pool;
        match call {
            Call::Reserve(request) => {
                let ask = Ask {
                    adder,
                    request: u16::from(adder) * 10 + request,
                    group: group(adder, request),
                    suite: 1,
                    ttl: TTL,
                    last_resort: true,
                };
                Outcome::Reserve(ask, pool.reserve(&self.rules, &ask))
            }
            Call::Spend(id, group) => {
                let settled = pool.spend(&self.rules, id, group);
                if let (Id::Package(at, generation), Ok(_)) = (id, settled) {
                    let by = scene.spent[at].get_or_insert((adder, generation));
                    if *by != (adder, generation) {
                        scene.broken = Some(Promise::SpentOnce);
                    }
                }
                Outcome::Spend(id, group, settled)
            }
            Call::Release(id) => Outcome::Release(id, pool.release(&self.rules, id)),
        }
    }

    /// The answer reaches who waits for it.
    fn answered(&self, person: &mut Person, outcome: &Outcome) {
        match (person.step, outcome) {
            (Step::Reserving, Outcome::Reserve(ask, answer))
                if ask.request % 10 == person.request =>
            {
                match answer {
                    Ok(got) => {
                        let got = Got { id: got.id, expires_at: got.expires_at };
                        person.step = Step::Holding(got);
                    }
                    Err(_) => person.next(),
                }
            }
            (Step::Spending(got), Outcome::Spend(id, ..)) if got.id == *id => person.next(),
            (Step::Releasing(got), Outcome::Release(id, _)) if got.id == *id => person.next(),
            _ => {}
        }
    }
}

impl Person {
    fn next(&mut self) {
        self.request += 1;
        self.step = Step::Idle;
    }

    /// What it waits for an answer to.
    fn waits_for(&self, adder: Adder) -> Option<Call> {
        match self.step {
            Step::Idle | Step::Holding(_) => None,
            Step::Reserving => Some(Call::Reserve(self.request)),
            Step::Spending(got) => Some(Call::Spend(got.id, group(adder, self.request))),
            Step::Releasing(got) => Some(Call::Release(got.id)),
        }
    }
}

impl Scene {
    fn send(&mut self, adder: Adder) {
        if let Some(call) = self.adders[usize::from(adder)].waits_for(adder) {
            self.wire.push((adder, call));
            self.wire.sort_unstable();
        }
    }
}

impl Model for World {
    type State = Scene;
    type Action = Action;

    fn init_states(&self) -> Vec<Scene> {
        vec![self.first()]
    }

    fn actions(&self, scene: &Scene, actions: &mut Vec<Action>) {
        if scene.broken.is_some() {
            return;
        }
        let begun = scene.adders[0].request > 0 || scene.adders[0].step != Step::Idle;
        for (adder, person) in (0..).zip(&scene.adders) {
            match person.step {
                // Which of the two begins makes no difference.
                Step::Idle if person.request < person.last && (adder == 0 || begun) => {
                    actions.push(Action::Ask(adder));
                }
                Step::Holding(_) => actions.extend([Action::Spend(adder), Action::Release(adder)]),
                _ => {}
            }
            if person.waits_for(adder).is_some() && scene.repeats > 0 {
                actions.push(Action::Repeat(adder));
                if matches!(person.step, Step::Spending(_)) {
                    actions.push(Action::GiveUp(adder));
                }
            }
            if person.step != Step::Idle && scene.crashes > 0 {
                actions.push(Action::Crash(adder));
            }
        }
        for at in 0..scene.wire.len() {
            // Two copies of one call are the same.
            if at == 0 || scene.wire[at] != scene.wire[at - 1] {
                actions.extend([Action::Call(at), Action::CallAnswerLost(at)]);
            }
        }
        actions.extend((0..2).map(|at| Action::UploadAgain(Item::Package(at))));
        if !scene.revoked {
            actions.push(Action::RevokeAll);
        }
        actions.push(Action::Sweep);
        if scene.pool.now < self.sizes.end {
            actions.push(Action::Pass);
        }
    }

    fn next_state(&self, before: &Scene, action: Action) -> Option<Scene> {
        let mut scene = before.clone();
        let person = |adder: Adder| usize::from(adder);
        let outcome = match action {
            Action::Ask(adder) => {
                scene.adders[person(adder)].step = Step::Reserving;
                scene.send(adder);
                Outcome::None
            }
            Action::Spend(adder) | Action::Release(adder) => {
                let Step::Holding(got) = scene.adders[person(adder)].step else { return None };
                scene.adders[person(adder)].step = match action {
                    Action::Spend(_) => Step::Spending(got),
                    _ => Step::Releasing(got),
                };
                scene.send(adder);
                Outcome::None
            }
            Action::Repeat(adder) => {
                scene.repeats -= 1;
                scene.send(adder);
                Outcome::None
            }
            Action::GiveUp(adder) => {
                let Step::Spending(got) = scene.adders[person(adder)].step else { return None };
                scene.repeats -= 1;
                scene.adders[person(adder)].step = Step::Releasing(got);
                scene.send(adder);
                Outcome::None
            }
            Action::Crash(adder) => {
                scene.crashes -= 1;
                scene.adders[person(adder)].last += 1;
                scene.adders[person(adder)].next();
                Outcome::None
            }
            Action::Call(at) | Action::CallAnswerLost(at) => {
                let (adder, call) = scene.wire.remove(at);
                let outcome = self.call(&mut scene, adder, call);
                if matches!(action, Action::Call(_)) {
                    self.answered(&mut scene.adders[person(adder)], &outcome);
                }
                outcome
            }
            Action::UploadAgain(item) => {
                Outcome::Upload(item, scene.pool.upload_again(&self.rules, item))
            }
            Action::RevokeAll => {
                scene.revoked = true;
                scene.pool.revoke(&self.rules, None);
                Outcome::None
            }
            Action::Sweep => {
                scene.pool.sweep(&self.rules);
                Outcome::None
            }
            Action::Pass => {
                scene.pool.pass(1);
                Outcome::None
            }
        };
        self.note(&before.pool, &outcome, &scene.pool);
        let broken = promises::broken_by(&self.rules, before, &outcome, &scene);
        scene.broken = scene.broken.or(broken);
        (scene != *before).then_some(scene)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        promises::properties()
    }
}
