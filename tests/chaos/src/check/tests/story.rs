//! A short history that is true, for tests to change: the owner of one pool uploads two packages, an
//! adder reserves the first for a second, and it lapses.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use crate::{
    check::{Kind, Rules},
    history::{Answer, Call, Got, Micros, Offered, Op, Ref, Slot, Stored, Via},
    run::Evidence,
    tables::{Event, EventKind, Key, Live, Pool, Suite, Tables},
};

pub(super) const SECOND: Micros = 1_000_000;
pub(super) const DAY: Micros = 86_400 * SECOND;
/// When the reservation that the story is about ends.
pub(super) const EXPIRES: Micros = 3 * SECOND;
/// When the sweeper finds it.
pub(super) const LAPSES: Micros = 6 * SECOND;
/// The caller's name in the log.
pub(super) const HOLDER: [u8; 16] = [9; 16];

/// The reservation that the story is about.
pub(super) fn slot() -> Slot {
    Slot { pool: 7, suite: 1, seq: 1, generation: 1 }
}

pub(super) fn package(seq: i64) -> Ref {
    Ref([u8::try_from(seq).unwrap(); 32])
}

/// A call that took a tenth of a second.
pub(super) fn op(at: Micros, call: Call, answer: Answer) -> Op {
    Op { worker: 0, via: Via::Replica(0), begun: at, ended: at + SECOND / 10, call, answer }
}

pub(super) fn spend(at: Micros, answer: Answer) -> Op {
    op(at, Call::Spend { caller: 0, group: 0, slots: vec![slot()] }, answer)
}

pub(super) fn release(at: Micros, answer: Answer) -> Op {
    op(at, Call::Release { caller: 0, slots: vec![slot()] }, answer)
}

pub(super) fn reserve(at: Micros, answer: Answer) -> Op {
    let request = Uuid::from_u128(at.unsigned_abs().into());
    let (ttl, pools) = (SECOND, vec![0]);
    let call = Call::Reserve { caller: 0, request, group: 0, ttl, all: false, pools };
    op(at, call, answer)
}

/// What happened to the package, by the call that began then.
pub(super) fn event(at: Micros, kind: EventKind, generation: i32) -> Event {
    let holder = (generation > 0).then_some(HOLDER);
    let key = Key { pool: 7, suite: 1, seq: 1 };
    Event { at: at + SECOND / 20, key, generation, kind, reference: package(1), holder }
}

pub(super) fn story() -> Evidence {
    let offered = |seq| Offered { reference: package(seq), not_after: DAY, last_resort: false };
    let upload = Call::Upload { pool: 0, packages: vec![offered(1), offered(2)] };
    let stored = vec![Stored::Accepted { already: false }; 2];
    let got = Got::Package {
        slot: slot(),
        reference: package(1),
        expires_at: EXPIRES,
        last_resort: false,
    };
    let history = vec![
        op(SECOND, upload, Answer::Uploaded(stored)),
        reserve(2 * SECOND, Answer::Reserved(vec![got])),
    ];
    let uploaded = event(SECOND, EventKind::Uploaded, 0);
    let other = Key { seq: 2, ..uploaded.key };
    let events = vec![
        uploaded,
        Event { key: other, reference: package(2), ..uploaded },
        event(2 * SECOND, EventKind::Reserved, 1),
        event(LAPSES, EventKind::Lapsed, 1),
    ];
    let lapsed = Live {
        key: uploaded.key,
        reference: package(1),
        generation: 1,
        reserved: false,
        lapsed: true,
        revoked: false,
        expires_at: Some(EXPIRES),
        not_after: DAY,
    };
    let fresh = Live {
        key: other,
        reference: package(2),
        generation: 0,
        lapsed: false,
        expires_at: None,
        ..lapsed
    };
    let suite =
        Suite { pool: 7, suite: 1, uploaded: 2, expired: 0, revoked: 0, burned: 0, forgotten: 0 };
    let tables = Tables {
        pools: vec![Pool { pool: 7, user: "owner".into(), client: "phone".into() }],
        suites: vec![suite],
        live: vec![lapsed, fresh],
        published: vec![(uploaded.key, package(1)), (other, package(2))],
        events,
        ..Tables::default()
    };
    let rules = Rules {
        pools: vec![("owner".into(), "phone".into())],
        callers: vec![HOLDER],
        max_open: 2,
        horizon: 20 * SECOND,
        quiet_since: DAY,
        ..Rules::default()
    };
    Evidence { history, tables, rules, answers: BTreeMap::new() }
}

impl Evidence {
    /// The story with one call more.
    pub(super) fn then(mut self, op: Op) -> Self {
        self.history.push(op);
        self
    }

    /// The package as it is after the events with which the story goes on.
    pub(super) fn with(mut self, events: &[Event], row: impl FnOnce(&mut Live)) -> Self {
        self.tables.events.extend(events);
        row(&mut self.tables.live[0]);
        self
    }

    pub(super) fn without(mut self, kind: EventKind) -> Self {
        self.tables.events.retain(|event| event.kind != kind);
        self
    }

    pub(super) fn is_true(&self) {
        assert_eq!(self.kinds(), BTreeSet::new());
    }

    pub(super) fn breaks(&self, kind: Kind) {
        assert_eq!(self.kinds(), BTreeSet::from([kind]));
    }
}

#[test]
fn the_story_is_true() {
    story().is_true();
}
