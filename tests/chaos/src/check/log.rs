//! Every package's events are a path through the state machine, and its row is where they end.

use std::collections::{HashMap, HashSet};

use super::{Index, Kind, Report};
use crate::{
    history::{Micros, Ref, Slot},
    tables::{End, Event, EventKind, Key},
};

/// For how long after its end a grant of a last resort package is remembered.
pub(super) const GRANT_KEPT: Micros = 24 * 3600 * 1_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Available,
    Lapsed,
    Reserved { revoked: bool },
    Spent,
    Burned,
    Revoked,
    Expired,
}

pub(super) fn check(index: &Index<'_>, report: &mut Report) {
    let mut known = HashSet::new();
    for (key, path) in index.packages() {
        known.insert(key);
        report.count("packages whose events are a path");
        if index.is_last_resort(path) {
            last_resort(index, key, path, report);
            continue;
        }
        match walk(path) {
            Ok((state, generation)) => compare(index, key, state, generation, report),
            Err(broken) => report.add(broken, format!("{key:?}: {}", text(path))),
        }
        for event in path {
            let slot = Slot {
                pool: key.pool,
                suite: key.suite,
                seq: key.seq,
                generation: event.generation,
            };
            if !matches!(event.kind, EventKind::Lapsed | EventKind::Burned) {
                continue;
            }
            report.count("lapses, each after its time");
            if index.expiries.get(&slot).is_some_and(|&expires_at| event.at < expires_at) {
                report.add(Kind::LapsedEarly, format!("{slot:?} at {}", event.at));
            }
        }
    }
    published(index, report);
    for key in index.live.keys().chain(index.tombstones.keys()) {
        if !known.contains(key) {
            report.add(Kind::EventLogBroken, format!("{key:?} has a row and no events"));
        }
    }
    grants(index, report);
}

/// What was stored stays known by its ref, whatever becomes of it, or it could be stored again.
fn published(index: &Index<'_>, report: &mut Report) {
    let known: HashMap<Ref, Key> =
        index.tables.published.iter().map(|&(key, reference)| (reference, key)).collect();
    for (key, path) in index.packages() {
        let Some(uploaded) = path.first() else { continue };
        let lifetime = index.lifetimes.get(&uploaded.reference);
        if lifetime.is_some_and(|&end| end <= index.tables.taken) {
            continue; // it may be forgotten
        }
        report.count("packages known by their refs");
        if known.get(&uploaded.reference) != Some(&key) {
            let what = format!("{:?} of {key:?} is not known any more", uploaded.reference);
            report.add(Kind::TombstoneBroken, what);
        }
    }
}

/// A grant of a last resort package is issued once and settled at most once, and its row says how.
fn grants(index: &Index<'_>, report: &mut Report) {
    let mut rows: HashMap<Key, &str> =
        index.tables.grants.iter().map(|grant| (grant.key, grant.state.as_str())).collect();
    for (&key, events) in &index.grants {
        report.count("grants of last resort packages beside their rows");
        let row = rows.remove(&key);
        let mut settled = events.iter().filter(|e| e.kind != EventKind::LastResortIssued);
        let (end, more) = (settled.next(), settled.next());
        let state = match end.map(|event| event.kind) {
            None => "reserved",
            Some(EventKind::Spent) => "spent",
            Some(EventKind::Released) => "released",
            Some(_) => "",
        };
        let issued = events.len() == usize::from(end.is_some()) + 1;
        if !issued || more.is_some() || state.is_empty() {
            report.add(Kind::EventLogBroken, format!("grant {key:?}: {}", text(events)));
        } else if row.is_some_and(|row| row != state)
            || row.is_none() && events.iter().all(|e| e.at + GRANT_KEPT > index.tables.taken)
        {
            let what = format!("grant {key:?}: the log says {state}, the row {row:?}");
            report.add(Kind::RowsDisagree, what);
        }
    }
    for (key, row) in rows {
        let what = format!("grant {key:?}: no events, and the row says {row}");
        report.add(Kind::EventLogBroken, what);
    }
}

/// Where the events of a one-time package lead.
pub(super) fn walk(path: &[Event]) -> Result<(State, i32), Kind> {
    use EventKind as E;
    let Some((first, rest)) = path.split_first() else { return Err(Kind::EventLogBroken) };
    if (first.kind, first.generation) != (E::Uploaded, 0) {
        return Err(Kind::EventLogBroken);
    }
    let (mut state, mut generation) = (State::Available, 0);
    for event in rest {
        let next = event.generation == generation + 1;
        let same = event.generation == generation;
        state = match (state, event.kind) {
            (State::Available | State::Lapsed, E::Reserved) if next => {
                State::Reserved { revoked: false }
            }
            (State::Reserved { .. }, E::Reserved) => return Err(Kind::DoubleReservation),
            (State::Spent, E::Reserved) => return Err(Kind::SpentIssuedAgain),
            (State::Spent, E::Spent) => return Err(Kind::SpentTwice),
            (State::Revoked, E::Reserved) => return Err(Kind::RevokeUndone),
            (State::Reserved { .. } | State::Lapsed | State::Burned, E::Spent) if same => {
                State::Spent
            }
            (State::Reserved { revoked: false }, E::Released) if same => State::Available,
            (State::Reserved { revoked: false }, E::Lapsed) if same => State::Lapsed,
            (State::Reserved { revoked: true }, E::Released | E::Lapsed) if same => State::Revoked,
            (State::Reserved { revoked: false }, E::Burned) if same => State::Burned,
            (State::Reserved { revoked: false }, E::Revoked) if same => {
                State::Reserved { revoked: true }
            }
            (State::Available | State::Lapsed, E::Revoked) if same => State::Revoked,
            (State::Available | State::Lapsed | State::Reserved { .. }, E::Expired) if same => {
                State::Expired
            }
            _ => return Err(Kind::EventLogBroken),
        };
        generation = event.generation;
    }
    Ok((state, generation))
}

fn compare(index: &Index<'_>, key: Key, state: State, generation: i32, report: &mut Report) {
    let live = index.live.get(&key).map(|row| {
        let state = match (row.reserved, row.lapsed) {
            (true, _) => State::Reserved { revoked: row.revoked },
            (false, true) => State::Lapsed,
            (false, false) => State::Available,
        };
        (state, row.generation)
    });
    let ended = index.tombstones.get(&key).map(|row| {
        let state = match row.state {
            End::Spent => State::Spent,
            End::Burned => State::Burned,
            End::Revoked => State::Revoked,
        };
        (state, row.generation)
    });
    // What had lapsed when it was revoked ended then; the log does not say whether it had.
    let ended_at_once = (State::Revoked, generation);
    let agrees = match (live, ended) {
        (None, Some(row)) if state == (State::Reserved { revoked: true }) => row == ended_at_once,
        (None, None) => state == State::Expired,
        (Some(row), None) | (None, Some(row)) => row == (state, generation),
        (Some(_), Some(_)) => false,
    };
    if !agrees {
        let kind = match (live, ended, state) {
            (None, None, State::Available | State::Lapsed | State::Reserved { .. }) => {
                Kind::UploadLost
            }
            (None, None, State::Spent) => Kind::SpendUndone,
            _ => Kind::RowsDisagree,
        };
        let what = format!("{key:?}: the log says {state:?}, the rows {live:?} and {ended:?}");
        report.add(kind, what);
    }
}

fn last_resort(index: &Index<'_>, key: Key, path: &[Event], report: &mut Report) {
    use EventKind as E;
    let kinds: Vec<E> = path.iter().map(|event| event.kind).collect();
    let current = index.tables.last_resorts.iter().any(|&(row, _)| row == key);
    match kinds[..] {
        [E::Uploaded] if current => {}
        [E::Uploaded] => {
            report.add(Kind::UploadLost, format!("{key:?}, a last resort package"));
        }
        [E::Uploaded, E::Revoked | E::Expired] if !current => {}
        _ => report.add(Kind::EventLogBroken, format!("{key:?}: {}", text(path))),
    }
}

pub(super) fn text(path: &[Event]) -> String {
    let events = path.iter().map(|e| format!("{:?}/{} at {}", e.kind, e.generation, e.at));
    events.collect::<Vec<_>>().join(", ")
}
