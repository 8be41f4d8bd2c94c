//! The evidence by what it is about.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use super::Rules;
use crate::{
    history::{Answer, Call, Got, Micros, Op, Ref, Slot},
    tables::{Event, EventKind, Key, Live, Tables, Tombstone},
};

/// A reservation that was answered: one for each answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ack<'a> {
    pub(super) op: &'a Op,
    pub(super) caller: u16,
    pub(super) slot: Slot,
    pub(super) reference: Ref,
    pub(super) expires_at: Micros,
    /// When Postgres made it.
    pub(super) made: Micros,
}

/// See the module.
pub(crate) struct Index<'a> {
    pub(super) history: &'a [Op],
    pub(super) tables: &'a Tables,
    pub(super) rules: &'a Rules,
    /// Events of packages, in the order of packages and of time.
    events: Vec<Event>,
    paths: HashMap<Key, Range<usize>>,
    /// Events of grants of last resort packages.
    pub(super) grants: HashMap<Key, Vec<Event>>,
    pub(super) keys: HashMap<Ref, Key>,
    pub(super) last_resorts: HashSet<Ref>,
    pub(super) live: HashMap<Key, &'a Live>,
    pub(super) tombstones: HashMap<Key, &'a Tombstone>,
    /// The pool numbers of the cast.
    pub(super) pool_ids: HashMap<u16, i64>,
    pub(super) acks: HashMap<Ref, Vec<Ack<'a>>>,
    pub(super) grant_acks: Vec<Ack<'a>>,
    /// When each reservation expires.
    pub(super) expiries: HashMap<Slot, Micros>,
    /// The longest time for which anybody asked a reservation.
    pub(super) longest: Micros,
    /// Reservations that were answered before a backup was restored, which then nobody knows.
    forgotten: HashSet<Slot>,
    pub(super) spends: HashMap<Slot, Vec<&'a Op>>,
    pub(super) releases: HashMap<Slot, Vec<&'a Op>>,
    /// When the first Revoke of a ref was acknowledged.
    pub(super) revoked: HashMap<Ref, Micros>,
    /// When the first Spend of a one-time package was acknowledged.
    pub(super) spent: HashMap<Ref, Micros>,
    /// The end of each offered package's lifetime.
    pub(super) lifetimes: HashMap<Ref, Micros>,
    /// When each caller first took a one-time package from a pool.
    pub(super) first_draws: HashMap<i64, HashMap<[u8; 16], Micros>>,
    /// Which package a reservation held when it was last answered.
    held: HashMap<Slot, Ref>,
}

impl<'a> Index<'a> {
    pub(super) fn new(history: &'a [Op], tables: &'a Tables, rules: &'a Rules) -> Self {
        let (mut events, grant_events): (Vec<Event>, Vec<Event>) =
            tables.events.iter().partition(|event| event.generation > 0 || event.holder.is_none());
        events.sort_unstable_by_key(|e| (e.key, e.at, e.generation, e.kind));
        let mut paths = HashMap::new();
        let mut keys = HashMap::new();
        let mut first = 0;
        for path in events.chunk_by(|a, b| a.key == b.key) {
            paths.insert(path[0].key, first..first + path.len());
            keys.insert(path[0].reference, path[0].key);
            first += path.len();
        }
        let mut grants: HashMap<Key, Vec<Event>> = HashMap::new();
        for event in grant_events {
            grants.entry(event.key).or_default().push(event);
        }
        let cast = rules.pools.iter().zip(0_u16..).map(|((user, client), n)| ((user, client), n));
        let cast: HashMap<_, _> = cast.collect();
        let pools = tables.pools.iter();
        let pool_ids = pools.filter_map(|p| Some((*cast.get(&(&p.user, &p.client))?, p.pool)));
        let mut index = Self {
            history,
            tables,
            rules,
            events,
            paths,
            grants,
            keys,
            last_resorts: tables.last_resorts.iter().map(|&(_, reference)| reference).collect(),
            live: tables.live.iter().map(|row| (row.key, row)).collect(),
            tombstones: tables.tombstones.iter().map(|row| (row.key, row)).collect(),
            pool_ids: pool_ids.collect(),
            acks: HashMap::new(),
            grant_acks: Vec::new(),
            expiries: HashMap::new(),
            longest: 0,
            forgotten: HashSet::new(),
            spends: HashMap::new(),
            releases: HashMap::new(),
            revoked: HashMap::new(),
            spent: HashMap::new(),
            lifetimes: HashMap::new(),
            first_draws: HashMap::new(),
            held: HashMap::new(),
        };
        index.note_draws();
        for op in history {
            index.add(op);
        }
        for acks in index.acks.values_mut() {
            acks.sort_by_key(|ack| (ack.slot.generation, ack.op.begun));
        }
        index
    }

    fn note_draws(&mut self) {
        for event in &self.events {
            if let (EventKind::Reserved, Some(holder)) = (event.kind, event.holder) {
                let draws = self.first_draws.entry(event.key.pool).or_default();
                let first = draws.entry(holder).or_insert(event.at);
                *first = event.at.min(*first);
            }
        }
    }

    fn add(&mut self, op: &'a Op) {
        if let Call::Reserve { ttl, .. } = op.call {
            self.longest = self.longest.max(ttl);
        }
        match (&op.call, &op.answer) {
            (Call::Upload { packages, .. }, _) => {
                let lifetimes = packages.iter().map(|p| (p.reference, p.not_after));
                self.lifetimes.extend(lifetimes);
                let last_resorts = packages.iter().filter(|package| package.last_resort);
                self.last_resorts.extend(last_resorts.map(|package| package.reference));
            }
            (Call::Reserve { caller, ttl, .. }, Answer::Reserved(got)) => {
                for got in got {
                    let &Got::Package { slot, reference, expires_at, .. } = got else { continue };
                    let made = expires_at - ttl;
                    let caller = *caller;
                    let ack = Ack { op, caller, slot, reference, expires_at, made };
                    if slot.is_last_resort() {
                        self.grant_acks.push(ack);
                    } else {
                        self.acks.entry(reference).or_default().push(ack);
                        self.held.insert(slot, reference);
                    }
                    if self.rules.lasts(op) {
                        self.expiries.insert(slot, expires_at);
                    }
                    if self.rules.erased.is_some_and(|(_, restored)| op.begun <= restored) {
                        self.forgotten.insert(slot);
                    }
                }
            }
            (Call::Spend { slots, .. }, answer) => {
                let done = matches!(answer, Answer::Spent(_));
                for &slot in slots {
                    self.spends.entry(slot).or_default().push(op);
                    if let Some(&reference) = self.held.get(&slot).filter(|_| done) {
                        let first = self.spent.entry(reference).or_insert(op.ended);
                        *first = op.ended.min(*first);
                    }
                }
            }
            (Call::Release { slots, .. }, _) => {
                for &slot in slots {
                    self.releases.entry(slot).or_default().push(op);
                }
            }
            (Call::Revoke { refs, .. }, Answer::Revoked) if self.rules.lasts(op) => {
                for &reference in refs {
                    let first = self.revoked.entry(reference).or_insert(op.ended);
                    *first = op.ended.min(*first);
                }
            }
            _ => {}
        }
    }

    /// The events of a package in their order.
    pub(super) fn path(&self, key: Key) -> &[Event] {
        self.paths.get(&key).map_or(&[], |range| &self.events[range.clone()])
    }

    /// Every package that has events.
    pub(super) fn packages(&self) -> impl Iterator<Item = (Key, &[Event])> {
        self.events.chunk_by(|a, b| a.key == b.key).map(|path| (path[0].key, path))
    }

    /// Every reservation that the log has: its holder, when it was made, and all events of its
    /// package or grant.
    pub(super) fn reservations(&self) -> impl Iterator<Item = (Slot, [u8; 16], Micros, &[Event])> {
        let grants = self.grants.iter().map(|(&key, events)| (key, events.as_slice()));
        self.packages().chain(grants).flat_map(|(key, path)| {
            path.iter().filter_map(move |event| {
                let Key { pool, suite, seq } = key;
                let slot = Slot { pool, suite, seq, generation: event.generation };
                let made = matches!(event.kind, EventKind::Reserved | EventKind::LastResortIssued);
                Some((slot, event.holder.filter(|_| made)?, event.at, path))
            })
        })
    }

    /// Whether the package of this key was given out once only.
    pub(super) fn is_last_resort(&self, path: &[Event]) -> bool {
        path.first().is_some_and(|event| self.last_resorts.contains(&event.reference))
    }

    /// What happened to the package of a reservation, or to its grant, until this time.
    pub(super) fn until(&self, slot: Slot, time: Micros) -> impl Iterator<Item = &Event> + Clone {
        let events = if slot.is_last_resort() {
            self.grants.get(&key_of(slot)).map_or(&[][..], Vec::as_slice)
        } else {
            self.path(key_of(slot))
        };
        events.iter().filter(move |event| event.at <= time)
    }

    /// As the log names this caller.
    pub(super) fn holder(&self, caller: u16) -> Option<[u8; 16]> {
        self.rules.callers.get(usize::from(caller)).copied()
    }

    /// Whether a call may name a reservation that went with the database that was lost.
    pub(super) fn may_be_forgotten(&self, slot: Slot, op: &Op) -> bool {
        !self.rules.lasts(op)
            || self.rules.erased.is_some_and(|(_, restored)| op.begun > restored)
                && self.forgotten.contains(&slot)
    }

    /// When the first Spend or Release of a reservation was acknowledged.
    pub(super) fn settled(&self, slot: Slot) -> Option<Micros> {
        let ops = self.spends.get(&slot).into_iter().chain(self.releases.get(&slot)).flatten();
        let done = |op: &&&Op| matches!(op.answer, Answer::Spent(_) | Answer::Released(_));
        ops.filter(done).filter(|op| self.rules.lasts(op)).map(|op| op.ended).min()
    }

    /// Whether somebody may have begun to settle the reservation before this time.
    pub(super) fn may_be_settled(&self, slot: Slot, before: Micros) -> bool {
        begun(self.spends.get(&slot), before) || self.may_be_released(slot, before)
    }

    pub(super) fn may_be_released(&self, slot: Slot, before: Micros) -> bool {
        begun(self.releases.get(&slot), before)
    }
}

fn begun(settlings: Option<&Vec<&Op>>, before: Micros) -> bool {
    let mut all = settlings.into_iter().flatten();
    all.any(|op| op.begun < before && op.may_be_done())
}

/// The package, or the grant, of a reservation.
pub(super) fn key_of(slot: Slot) -> Key {
    Key { pool: slot.pool, suite: slot.suite, seq: slot.seq }
}
