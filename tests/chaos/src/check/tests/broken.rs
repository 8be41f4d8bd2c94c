//! What a broken promise of each kind looks like: a run, changed in one place.

use std::collections::{BTreeSet, HashMap};

use uuid::Uuid;

use crate::{
    check::{Kind, check},
    history::{Answer, Call, Got, Micros, Op, Ref, Slot, Stored, Via},
    run::{Evidence, SHARED, is_ample},
    tables::{Event, EventKind, Key},
};

/// A reservation of a one-time package that was made by a call for one pool.
#[derive(Clone, Copy)]
struct Made {
    /// The place of the call.
    at: usize,
    slot: Slot,
    reference: Ref,
    expires_at: Micros,
}

/// When a reservation was asked for, when it began, and when it ended.
type Times = (Micros, Micros, Micros);

fn key(slot: Slot) -> Key {
    Key { pool: slot.pool, suite: slot.suite, seq: slot.seq }
}

impl Evidence {
    pub(super) fn kinds(&self) -> BTreeSet<Kind> {
        let report = check(&self.history, &self.tables, &self.rules);
        report.violations.iter().map(|violation| violation.kind).collect()
    }

    /// Reservations that were asked for once, and so answered once.
    fn made(&self) -> Vec<Made> {
        let mut made = Vec::new();
        for (at, op) in self.history.iter().enumerate() {
            if let Answer::Reserved(got) = &op.answer
                && let [Got::Package { slot, reference, expires_at, last_resort: false }] = got[..]
            {
                made.push(Made { at, slot, reference, expires_at });
            }
        }
        let request = |op: &Op| match op.call {
            Call::Reserve { request, .. } => Some(request),
            _ => None,
        };
        let mut asked: HashMap<Uuid, usize> = HashMap::new();
        for request in self.history.iter().filter_map(request) {
            *asked.entry(request).or_default() += 1;
        }
        made.retain(|made| request(&self.history[made.at]).is_some_and(|it| asked[&it] == 1));
        made
    }

    /// The calls that settle each reservation, by their places.
    fn settlings(&self) -> HashMap<Slot, Vec<usize>> {
        let mut settlings: HashMap<Slot, Vec<usize>> = HashMap::new();
        for (at, op) in self.history.iter().enumerate() {
            if let Call::Spend { slots, .. } | Call::Release { slots, .. } = &op.call {
                for slot in slots {
                    settlings.entry(*slot).or_default().push(at);
                }
            }
        }
        settlings
    }

    /// The events of each package.
    fn paths(&self) -> HashMap<Key, Vec<Event>> {
        let mut paths: HashMap<Key, Vec<Event>> = HashMap::new();
        for event in &self.tables.events {
            paths.entry(event.key).or_default().push(*event);
        }
        for path in paths.values_mut() {
            path.sort_by_key(|e| (e.at, e.generation, e.kind));
        }
        paths
    }

    /// When a package was last offered and taken, or taken to be there.
    fn accepted_last(&self) -> HashMap<Ref, Micros> {
        let mut last: HashMap<Ref, Micros> = HashMap::new();
        for op in &self.history {
            let (Call::Upload { packages, .. }, Answer::Uploaded(stored)) = (&op.call, &op.answer)
            else {
                continue;
            };
            for (package, _) in packages.iter().zip(stored).filter(|(_, s)| s.is_accepted()) {
                let begun = last.entry(package.reference).or_insert(op.begun);
                *begun = op.begun.max(*begun);
            }
        }
        last
    }

    /// A reservation whose only settling is this one, which is all that came of it and the last thing
    /// that happened to its package: nobody offers that again either.
    fn settled_last(&self, by_spend: bool) -> (Made, usize) {
        let (settlings, paths) = (self.settlings(), self.paths());
        let accepted = self.accepted_last();
        let found = self.made().into_iter().find_map(|made| {
            let &[at] = settlings.get(&made.slot)?.as_slice() else { return None };
            let op = &self.history[at];
            let fits = match (&op.call, &op.answer) {
                (Call::Spend { slots, .. }, Answer::Spent(_)) => by_spend && slots.len() == 1,
                (Call::Release { slots, .. }, Answer::Released(_)) => !by_spend && slots.len() == 1,
                _ => false,
            };
            let wanted = if by_spend { EventKind::Spent } else { EventKind::Released };
            let path = paths[&key(made.slot)].iter().rev();
            let last: Vec<_> = path.take(2).map(|e| (e.kind, e.generation)).collect();
            let generation = made.slot.generation;
            let last_two = [(wanted, generation), (EventKind::Reserved, generation)];
            let offered_again = accepted.get(&made.reference).is_some_and(|&at| at > op.begun);
            (fits && last == last_two && !offered_again).then_some((made, at))
        });
        found.expect("a reservation that was settled once")
    }

    /// The last reservation of a pool with one adder, and always with more than is kept for newcomers,
    /// that nobody settled for a while after it was made.
    fn lone(&self) -> Made {
        let settlings = self.settlings();
        let found = self.made().into_iter().rev().find(|made| {
            let Call::Reserve { pools, .. } = &self.history[made.at].call else { unreachable!() };
            let ended = self.history[made.at].ended;
            let settled = settlings.get(&made.slot).into_iter().flatten();
            pools[0] >= SHARED
                && is_ample(pools[0])
                && made.expires_at > ended + 10
                && settled.clone().all(|&at| self.history[at].begun > ended + 10)
        });
        found.expect("a reservation that was left alone for a while")
    }

    /// Two calls by which a caller got a package each of the same pool, the second while it held the
    /// first.
    fn two_of_a_pool(&self) -> (usize, usize) {
        let (made, settlings) = (self.made(), self.settlings());
        let found = made.iter().find_map(|later| {
            let op = &self.history[later.at];
            let earlier = made.iter().find(|earlier| {
                let asked = &self.history[earlier.at];
                let mut settled = settlings.get(&earlier.slot).into_iter().flatten();
                caller(asked) == caller(op)
                    && earlier.slot.pool == later.slot.pool
                    && asked.ended < op.begun
                    && earlier.expires_at > op.ended
                    && settled.all(|&at| self.history[at].begun > op.ended)
            })?;
            Some((earlier.at, later.at))
        });
        found.expect("a caller that held a package and got another")
    }

    fn add(&mut self, op: Op) {
        self.history.push(op);
        self.history.sort_by_key(|op| op.ended);
    }

    pub(super) fn break_promise(&mut self, kind: Kind) {
        match kind {
            Kind::DoubleReservation => {
                // The Release between two reservations was never asked for.
                let (made, settlings) = (self.made(), self.settlings());
                let pair = made.iter().find_map(|later| {
                    let earlier = made.iter().find(|earlier| {
                        earlier.reference == later.reference
                            && earlier.slot.generation + 1 == later.slot.generation
                    })?;
                    let ttl = ttl(&self.history[later.at]);
                    let at = settlings.get(&earlier.slot)?.clone();
                    let all = at.iter().all(|&at| {
                        matches!(&self.history[at].call, Call::Release { slots, .. } if slots.len() == 1)
                    });
                    (all && earlier.expires_at > later.expires_at - ttl + 1000).then_some(at)
                });
                for at in pair.expect("a package reserved again after a Release").into_iter().rev()
                {
                    self.history.remove(at);
                }
            }
            Kind::SpentTwice => {
                let (made, settlings, paths) = (self.made(), self.settlings(), self.paths());
                let acked = |slot: &Slot| {
                    let acked = |at: &&usize| matches!(self.history[**at].answer, Answer::Spent(_));
                    settlings.get(slot)?.iter().rev().find(acked).copied()
                };
                let (earlier, at) = made
                    .iter()
                    .find_map(|later| {
                        let spent = paths[&key(later.slot)].last()?.kind == EventKind::Spent;
                        let at = acked(&later.slot)?;
                        let earlier = made.iter().find(|earlier| {
                            earlier.reference == later.reference
                                && earlier.slot.generation < later.slot.generation
                        })?;
                        spent.then_some((earlier.slot, at))
                    })
                    .expect("a package that was reserved twice and spent");
                let mut op = self.history[at].clone();
                let Call::Spend { slots, .. } = &mut op.call else { unreachable!() };
                *slots = vec![earlier];
                op.answer = Answer::Spent(vec![false]);
                op.begun = op.ended + 1;
                op.ended += 2;
                self.add(op);
            }
            Kind::SpentIssuedAgain => {
                let (made, at) = self.settled_last(true);
                let spent = self.history[at].ended;
                let mut op = self.history[made.at].clone();
                (op.begun, op.ended) = (spent + 1, spent + 2);
                self.add(op);
            }
            Kind::ReserveUndone => {
                let at = self.lone().at;
                let Call::Reserve { caller, request, .. } = &mut self.history[at].call else {
                    unreachable!()
                };
                *request = Uuid::from_u128(1);
                *caller = u16::MAX;
            }
            Kind::SpendUndone => {
                let (_, at) = self.settled_last(false);
                let op = &mut self.history[at];
                let Call::Release { caller, slots } = op.call.clone() else { unreachable!() };
                op.call = Call::Spend { caller, group: 0, slots };
                op.answer = Answer::Spent(vec![false]);
            }
            Kind::ReleaseUndone => {
                let (_, at) = self.settled_last(true);
                let op = &mut self.history[at];
                let Call::Spend { caller, slots, .. } = op.call.clone() else { unreachable!() };
                op.call = Call::Release { caller, slots };
                op.answer = Answer::Released(vec![false]);
            }
            Kind::RevokeUndone => {
                let (made, _) = self.settled_last(true);
                let mut op = self.history[made.at].clone();
                let before = made.expires_at - ttl(&op) - 10;
                (op.begun, op.ended) = (before - 1, before);
                op.call = Call::Revoke { pool: 0, refs: vec![made.reference] };
                op.answer = Answer::Revoked;
                self.add(op);
            }
            Kind::UploadLost => {
                let packages =
                    self.history.iter_mut().find_map(|op| match (&mut op.call, &op.answer) {
                        (Call::Upload { packages, .. }, Answer::Uploaded(stored))
                            if stored[0] == (Stored::Accepted { already: false })
                                // Otherwise nobody knows of what role it is.
                                && !packages[0].last_resort =>
                        {
                            Some(packages)
                        }
                        _ => None,
                    });
                packages.expect("an upload")[0].reference = Ref([7; 32]);
            }
            Kind::TombstoneBroken => {
                let (made, at) = self.settled_last(true);
                let spent = self.history[at].ended;
                let mut op = self.upload_of(made.reference);
                (op.begun, op.ended) = (spent + 1, spent + 2);
                self.add(op);
            }
            Kind::OrderOfIssue => {
                // Each package that was taken is told to have ended last.
                let taken: BTreeSet<Ref> = self.made().iter().map(|made| made.reference).collect();
                for op in &mut self.history {
                    let Call::Upload { packages, .. } = &mut op.call else { continue };
                    for package in packages.iter_mut().filter(|p| taken.contains(&p.reference)) {
                        package.not_after += 100 * 86_400_000_000;
                    }
                }
            }
            Kind::ExhaustedWithStock => {
                let at = self.lone().at;
                self.history[at].answer = Answer::Refused("POOL_EXHAUSTED");
            }
            Kind::RequestIdBroken => {
                let (earlier, later) = self.two_of_a_pool();
                let Call::Reserve { request: first, .. } = self.history[earlier].call else {
                    unreachable!()
                };
                let Call::Reserve { request, .. } = &mut self.history[later].call else {
                    unreachable!()
                };
                *request = first;
            }
            Kind::FairShareBroken => self.take_one_more(),
            Kind::LapsedEarly => {
                // The last one: it is there for all long after the run. And before the last statuses,
                // which count what lapses beside them.
                let paths = self.paths();
                let lapse = |made: &Made| {
                    paths[&key(made.slot)].windows(2).find_map(|pair| match pair {
                        [a, b]
                            if a.generation == made.slot.generation
                                && a.kind == EventKind::Reserved
                                && matches!(b.kind, EventKind::Lapsed | EventKind::Burned)
                                && b.at < self.rules.quiet_since =>
                        {
                            Some((a.at, *b))
                        }
                        _ => None,
                    })
                };
                let made = self.made();
                let last = made.iter().filter_map(lapse).max_by_key(|(_, lapsed)| lapsed.at);
                let (reserved, lapsed) = last.expect("a lapse");
                let event = self.tables.events.iter_mut().find(|event| **event == lapsed);
                event.expect("the event").at = reserved + 1;
            }
            Kind::RefusedWrongly => {
                let made = self.lone();
                let mut op = self.history[made.at].clone();
                (op.begun, op.ended) = (op.ended + 1, op.ended + 2);
                op.call = Call::Spend { caller: 0, group: 0, slots: vec![made.slot] };
                op.answer = Answer::Refused("RESERVATION_LOST");
                self.add(op);
            }
            Kind::EventLogBroken => {
                let (made, _) = self.settled_last(true);
                let spent = *self.paths()[&key(made.slot)].last().expect("a Spend");
                let expired = Event { at: spent.at + 1, kind: EventKind::Expired, ..spent };
                self.tables.events.push(expired);
            }
            Kind::RowsDisagree => {
                let row = self.tables.live.iter_mut().find(|row| !row.reserved && !row.lapsed);
                row.expect("an available package").lapsed = true;
            }
            Kind::CountsWrong => self.tables.suites[0].revoked += 1,
            Kind::StatusWentBack => {
                let counts = self.history.iter_mut().find_map(|op| match &mut op.answer {
                    Answer::Status(counts) => Some(counts),
                    _ => None,
                });
                counts.expect("a status").spent += 1_000_000;
            }
            Kind::NotHealed => {
                // One replica tells nothing in the end.
                let quiet_since = self.rules.quiet_since;
                self.history.retain(|op| op.begun < quiet_since || op.via != Via::Replica(1));
            }
            Kind::WrongAnswer => {
                let at = self.history.iter().position(|op| matches!(op.call, Call::Status { .. }));
                self.history[at.expect("a status")].answer = Answer::Wrong("another's".into());
            }
            Kind::Internal => {
                self.history[0].answer = Answer::Internal("the cause is in the log".into());
            }
        }
    }

    /// The upload that a package came with, as if of it alone and accepted.
    fn upload_of(&self, reference: Ref) -> Op {
        let found = self.history.iter().find_map(|op| {
            let Call::Upload { pool, packages } = &op.call else { return None };
            let package = packages.iter().find(|package| package.reference == reference)?;
            let call = Call::Upload { pool: *pool, packages: vec![*package] };
            let answer = Answer::Uploaded(vec![Stored::Accepted { already: true }]);
            Some(Op { call, answer, ..op.clone() })
        });
        found.expect("an upload")
    }

    /// While a caller holds as much as it may, somebody else's reservation becomes its own; of
    /// somebody who is no newcomer to the pool without it.
    fn take_one_more(&mut self) {
        let (made, paths) = (self.made(), self.paths());
        let times = |made: &Made| {
            let op = &self.history[made.at];
            let path = &paths[&key(made.slot)];
            let at = |wanted: &[EventKind]| {
                let mut events = path.iter().filter(|e| e.generation == made.slot.generation);
                events.find(|e| wanted.contains(&e.kind)).map(|e| e.at)
            };
            let end = at(&[EventKind::Spent, EventKind::Released]).unwrap_or(Micros::MAX);
            let begin = at(&[EventKind::Reserved]).expect("its event");
            (made.expires_at - ttl(op), begin, end.min(made.expires_at))
        };
        let mut by_pool: HashMap<i64, Vec<(&Made, Times)>> = HashMap::new();
        for one in &made {
            by_pool.entry(one.slot.pool).or_default().push((one, times(one)));
        }
        let found = by_pool.values().flatten().find_map(|(next, (asked, at, _))| {
            let other = caller(&self.history[next.at]);
            let before = by_pool[&next.slot.pool].iter().filter(|(_, (_, begin, _))| begin < at);
            if !before.clone().any(|(one, _)| caller(&self.history[one.at]) == other) {
                return None;
            }
            let mut held: HashMap<u16, usize> = HashMap::new();
            for (one, (_, begin, end)) in &by_pool[&next.slot.pool] {
                if begin < at && end > at && one.expires_at > *asked {
                    *held.entry(caller(&self.history[one.at])).or_default() += 1;
                }
            }
            let full =
                held.into_iter().find(|&(who, count)| who != other && count == self.rules.max_open);
            Some((**next, full?.0))
        });
        let (next, who) = found.expect("a caller that holds its share");
        let holder = self.rules.callers[usize::from(who)];
        let event = self.tables.events.iter_mut().find(|event| {
            event.key == key(next.slot)
                && event.generation == next.slot.generation
                && event.kind == EventKind::Reserved
        });
        event.expect("its event").holder = Some(holder);
        let Call::Reserve { caller, .. } = &mut self.history[next.at].call else { unreachable!() };
        *caller = who;
    }
}

fn ttl(op: &Op) -> Micros {
    let Call::Reserve { ttl, .. } = op.call else { panic!("not a Reserve: {op:?}") };
    ttl
}

fn caller(op: &Op) -> u16 {
    let Call::Reserve { caller, .. } = op.call else { panic!("not a Reserve: {op:?}") };
    caller
}
