//! Counters, and the status that is told, are what the rows say.

use std::collections::HashMap;

use super::{Index, Kind, Report, log};
use crate::{
    history::{Answer, Call, Counts, Micros, Op},
    tables::{End, EventKind},
};

/// What one pool's suite comes to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sum {
    uploaded: i64,
    expired: i64,
    revoked: i64,
    burned: i64,
    spent: i64,
    live: i64,
}

pub(super) fn check(index: &Index<'_>, report: &mut Report) {
    counters(index, report);
    let mut statuses: HashMap<u16, Vec<(&Op, Counts)>> = HashMap::new();
    for op in index.history {
        if let (Call::Status { pool }, Answer::Status(counts)) = (&op.call, &op.answer) {
            statuses.entry(*pool).or_default().push((op, *counts));
        }
    }
    for (pool, statuses) in &mut statuses {
        never_back(index, statuses, report);
        for (op, counts) in statuses.iter().filter(|(op, _)| op.begun >= index.rules.quiet_since) {
            as_the_rows(index, *pool, op, counts, report);
        }
    }
}

fn counters(index: &Index<'_>, report: &mut Report) {
    let mut by_rows: HashMap<(i64, u16), Sum> = HashMap::new();
    for row in &index.tables.live {
        by_rows.entry((row.key.pool, row.key.suite)).or_default().live += 1;
    }
    for row in &index.tables.tombstones {
        let sum = by_rows.entry((row.key.pool, row.key.suite)).or_default();
        match row.state {
            End::Spent => sum.spent += 1,
            End::Burned => sum.burned += 1,
            End::Revoked => sum.revoked += 1,
        }
    }
    for (key, path) in index.packages().filter(|(_, path)| !index.is_last_resort(path)) {
        let sum = by_rows.entry((key.pool, key.suite)).or_default();
        sum.uploaded += 1;
        sum.expired += i64::from(log::walk(path).is_ok_and(|(end, _)| end == log::State::Expired));
    }
    for suite in &index.tables.suites {
        report.count("counters");
        let rows = by_rows.get(&(suite.pool, suite.suite)).copied().unwrap_or_default();
        let told = Sum {
            uploaded: suite.uploaded,
            expired: suite.expired,
            revoked: suite.revoked,
            burned: suite.burned,
            spent: suite.uploaded
                - suite.expired
                - suite.revoked
                - suite.burned
                - suite.forgotten
                - rows.live,
            live: rows.live,
        };
        if told != rows {
            report.add(Kind::CountsWrong, format!("{suite:?} tells {told:?}, rows {rows:?}"));
        }
    }
}

/// A status that began when another had ended cannot know of fewer Spends.
fn never_back(index: &Index<'_>, statuses: &mut [(&Op, Counts)], report: &mut Report) {
    // What was spent before a backup was made is in it.
    let lasting = || statuses.iter().filter(|(op, _)| index.rules.lasts(op));
    let mut ended: Vec<(Micros, i64)> =
        lasting().map(|(op, counts)| (op.ended, counts.spent)).collect();
    ended.sort_unstable();
    statuses.sort_by_key(|(op, _)| op.begun);
    let (mut before, mut most) = (ended.into_iter().peekable(), 0);
    for (op, counts) in statuses.iter() {
        while let Some((_, spent)) = before.next_if(|(ended, _)| *ended < op.begun) {
            most = most.max(spent);
        }
        report.count("statuses in a row");
        if counts.spent < most && index.rules.lasts(op) {
            report.add(Kind::StatusWentBack, format!("{} after {most}, {op:?}", counts.spent));
        }
    }
}

/// When nobody works any more, only time changes what a status says.
fn as_the_rows(index: &Index<'_>, pool: u16, op: &Op, told: &Counts, report: &mut Report) {
    let Some(&id) = index.pool_ids.get(&pool) else { return };
    report.count("statuses beside the rows");
    let at = |now: Micros| {
        let mut counts = Counts::default();
        for row in index.tables.live.iter().filter(|row| row.key.pool == id) {
            let held = row.reserved && row.expires_at.is_some_and(|end| end > now);
            if row.not_after <= now {
                counts.expired += 1;
            } else if held {
                counts.reserved += 1;
            } else if !(row.reserved && (row.revoked || index.rules.burns)) {
                counts.available += 1;
            }
        }
        counts
    };
    let tombstones = index.tables.tombstones.iter();
    let spent = tombstones.filter(|row| row.key.pool == id && row.state == End::Spent).count();
    // What the sweeper returned between the status and the dump was held at the status.
    let lapsed = index.tables.events.iter().filter(|event| {
        event.key.pool == id
            && matches!(event.kind, EventKind::Lapsed | EventKind::Burned)
            && event.at >= op.begun
    });
    let lapsed = i64::try_from(lapsed.count()).unwrap_or(i64::MAX);
    let (early, late) = (at(op.begun), at(op.ended));
    let total = |counts: &Counts| counts.available + counts.reserved;
    let suites = index.tables.suites.iter().filter(|suite| suite.pool == id);
    let expired: i64 = suites.map(|suite| suite.expired).sum();
    let swept = index.tables.events.iter().filter(|event| {
        event.key.pool == id && event.kind == EventKind::Expired && event.at >= op.begun
    });
    // What the sweeper ended between the status and the dump need not have been due at the status.
    let swept = i64::try_from(swept.count()).unwrap_or(i64::MAX);
    let (least, most) = (early.expired + expired - swept, late.expired + expired);
    let right = told.spent == i64::try_from(spent).unwrap_or(i64::MAX)
        && (least..=most).contains(&told.expired)
        && (late.reserved..=early.reserved + lapsed).contains(&told.reserved)
        && (early.available - lapsed..=late.available).contains(&told.available)
        && (lapsed > 0 || total(told) == total(&early) || total(told) == total(&late));
    if !right {
        let what = format!("{op:?} tells {told:?}, rows {early:?} to {late:?}, {spent} spent");
        report.add(Kind::CountsWrong, what);
    }
}
