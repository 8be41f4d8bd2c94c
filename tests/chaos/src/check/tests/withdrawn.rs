//! What was withdrawn while it was reserved is not there again when its reservation ends.

use uuid::Uuid;

use crate::{
    check::{Kind, Rules, check},
    history::{Answer, Call, Got, Micros, Offered, Op, Ref, Slot, Stored, Via},
    tables::{Event, EventKind, Key, Pool, Tables},
};

const SECOND: Micros = 1_000_000;
const DAY: Micros = 86_400 * SECOND;
const SOONER: Ref = Ref([1; 32]);
const LATER: Ref = Ref([2; 32]);

fn slot(seq: i64, generation: i32) -> Slot {
    Slot { pool: 7, suite: 1, seq, generation }
}

fn op(at: Micros, call: Call, answer: Answer) -> Op {
    let (begun, ended) = (at, at + SECOND / 10);
    Op { worker: 0, via: Via::Replica(0), begun, ended, call, answer }
}

fn reserve(at: Micros, seq: i64, generation: i32, reference: Ref) -> Op {
    let ttl = SECOND;
    let (pools, request) = (vec![0], Uuid::from_u128(at.unsigned_abs().into()));
    let call = Call::Reserve { caller: 0, request, group: 0, ttl, all: false, pools };
    let expires_at = at + SECOND / 20 + ttl;
    let slot = slot(seq, generation);
    let got = Got::Package { slot, reference, expires_at, last_resort: false };
    op(at, call, Answer::Reserved(vec![got]))
}

fn release(at: Micros, seq: i64, generation: i32) -> Op {
    let call = Call::Release { caller: 0, slots: vec![slot(seq, generation)] };
    op(at, call, Answer::Released(vec![false]))
}

/// Two packages were reserved; the one that ends sooner came back by `ends`, perhaps after it was
/// withdrawn, the other was released; a minute later the other is reserved again.
fn is_out_of_order(is_withdrawn: bool, ends: EventKind) -> bool {
    use EventKind as E;
    let offered = |reference, not_after| Offered { reference, not_after, last_resort: false };
    let packages = vec![offered(SOONER, DAY), offered(LATER, 2 * DAY)];
    let stored = vec![Stored::Accepted { already: false }; 2];
    let mut history = vec![
        op(SECOND, Call::Upload { pool: 0, packages }, Answer::Uploaded(stored)),
        reserve(2 * SECOND, 1, 1, SOONER),
        reserve(3 * SECOND, 2, 1, LATER),
        release(5 * SECOND, 2, 1),
        reserve(60 * SECOND, 2, 2, LATER),
    ];
    if ends == E::Released {
        history.insert(4, release(6 * SECOND, 1, 1));
    }
    let event = |seq, at, kind, generation| Event {
        at: at + SECOND / 20,
        key: Key { pool: 7, suite: 1, seq },
        generation,
        kind,
        reference: if seq == 1 { SOONER } else { LATER },
        holder: (kind == E::Reserved).then_some([0; 16]),
    };
    let mut events = vec![
        event(1, SECOND, E::Uploaded, 0),
        event(2, SECOND, E::Uploaded, 0),
        event(1, 2 * SECOND, E::Reserved, 1),
        event(2, 3 * SECOND, E::Reserved, 1),
        event(2, 5 * SECOND, E::Released, 1),
        event(1, 6 * SECOND, ends, 1),
        event(2, 60 * SECOND, E::Reserved, 2),
    ];
    if is_withdrawn {
        events.push(event(1, 4 * SECOND, E::Revoked, 1));
    }
    let pools = vec![Pool { pool: 7, user: "owner".into(), client: "phone".into() }];
    let tables = Tables { pools, events, ..Tables::default() };
    let rules = Rules {
        pools: vec![("owner".into(), "phone".into())],
        callers: vec![[0; 16]],
        max_open: 2,
        ..Rules::default()
    };
    let report = check(&history, &tables, &rules);
    report.violations.iter().any(|violation| violation.kind == Kind::OrderOfIssue)
}

#[test]
fn what_was_withdrawn_while_it_was_reserved_is_not_there_afterwards() {
    for ends in [EventKind::Lapsed, EventKind::Released] {
        assert!(is_out_of_order(false, ends), "{ends:?}");
        assert!(!is_out_of_order(true, ends), "{ends:?}");
    }
}
