//! Whether the promises were kept: pure code over a history and what the database holds.
//!
//! Each check says nothing where concurrency leaves more than one answer right, so that what it
//! says is a broken promise. `docs/chaos.md` lists them.

mod counts;
mod heal;
mod index;
mod issue;
mod log;
mod order;
mod refused;
mod settle;
#[cfg(test)]
mod tests;
mod uploads;

use std::{collections::BTreeMap, fmt};

use crate::{
    history::{Answer, Micros, Op},
    tables::Tables,
};

pub(crate) use index::Index;

/// A promise that was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Two live reservations held one package.
    DoubleReservation,
    /// Two reservations of one package were spent.
    SpentTwice,
    /// A package was given out although its Spend had been acknowledged.
    SpentIssuedAgain,
    /// A Reserve was acknowledged and is not in the log.
    ReserveUndone,
    /// A Spend was acknowledged and is not in log and tombstones.
    SpendUndone,
    /// A Release was acknowledged and is not in the log, or the package was spent all the same.
    ReleaseUndone,
    /// A Revoke was acknowledged and a package it names was given out after.
    RevokeUndone,
    /// An accepted package is neither live nor accounted for.
    UploadLost,
    /// A spent package was accepted again.
    TombstoneBroken,
    /// A package was given out though one before it in the order of issue was there.
    OrderOfIssue,
    /// A pool was called exhausted, or gave its last resort package, with stock for this caller.
    ExhaustedWithStock,
    /// The same request_id got something else while its reservation lived.
    RequestIdBroken,
    /// A caller held more of a pool than its fair share.
    FairShareBroken,
    /// A reservation lapsed before its time.
    LapsedEarly,
    /// A call was refused for a reason that cannot be true.
    RefusedWrongly,
    /// A package's events are no path through the state machine.
    EventLogBroken,
    /// A package's row is not where its events end.
    RowsDisagree,
    /// Counters or a status are not what the rows say.
    CountsWrong,
    /// What a status counts as spent became less.
    StatusWentBack,
    /// Somebody was not served again after a fault, or a replica does not serve in the end.
    NotHealed,
    /// An answer is none to the question: another pool's, or of another package.
    WrongAnswer,
    /// The service failed and could not say why.
    Internal,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 22] = [
        Self::DoubleReservation,
        Self::SpentTwice,
        Self::SpentIssuedAgain,
        Self::ReserveUndone,
        Self::SpendUndone,
        Self::ReleaseUndone,
        Self::RevokeUndone,
        Self::UploadLost,
        Self::TombstoneBroken,
        Self::OrderOfIssue,
        Self::ExhaustedWithStock,
        Self::RequestIdBroken,
        Self::FairShareBroken,
        Self::LapsedEarly,
        Self::RefusedWrongly,
        Self::EventLogBroken,
        Self::RowsDisagree,
        Self::CountsWrong,
        Self::StatusWentBack,
        Self::NotHealed,
        Self::WrongAnswer,
        Self::Internal,
    ];
}

/// Where a promise was broken.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// Which.
    pub kind: Kind,
    /// By what.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.what)
    }
}

/// What the checker has to know of a run.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// User and client of each pool in the cast.
    pub pools: Vec<(String, String)>,
    /// The digest of each caller in the cast.
    pub callers: Vec<[u8; 16]>,
    /// The service's low watermark.
    pub low_watermark: usize,
    /// How many reservations of a pool a caller may hold.
    pub max_open: usize,
    /// How many live packages a pool takes.
    pub hard_cap: usize,
    /// A package with less lifetime than this may be passed over.
    pub min_lifetime: Micros,
    /// Lapsed reservations burn.
    pub burns: bool,
    /// How long a call whose end is unknown may still be under way after it was given up.
    pub horizon: Micros,
    /// When faults struck, from begin to end.
    pub faults: Vec<(Micros, Micros)>,
    /// How many replicas there are.
    pub replicas: u8,
    /// Nothing was broken after this, and nobody worked but those who asked whether all replicas serve.
    pub calm_since: Micros,
    /// Nobody worked after this but those who asked for the last statuses.
    pub quiet_since: Micros,
    /// A backup's begin and the end of its restoration: what was answered in between may be undone.
    pub erased: Option<(Micros, Micros)>,
}

impl Rules {
    /// Whether what this call did must still be there.
    fn lasts(&self, op: &Op) -> bool {
        self.erased.is_none_or(|(backup, restored)| op.ended < backup || op.begun > restored)
    }
}

/// What checks report to, and how many of each thing they looked at.
#[derive(Debug, Default)]
pub struct Report {
    /// What is wrong, in the order of its kind.
    pub violations: Vec<Violation>,
    /// How many instances each check looked at.
    pub checked: BTreeMap<&'static str, usize>,
}

impl Report {
    fn add(&mut self, kind: Kind, what: String) {
        self.violations.push(Violation { kind, what });
    }

    fn count(&mut self, name: &'static str) {
        *self.checked.entry(name).or_default() += 1;
    }
}

/// What is looked at in every run of some seconds, whatever breaks.
pub const ALWAYS: [&str; 16] = [
    "accepted packages in the log",
    "acknowledged Releases in the log",
    "acknowledged Spends in log and tombstones",
    "acknowledged reservations in the log",
    "counters",
    "packages known by their refs",
    "packages of the pool that was asked",
    "packages whose events are a path",
    "pools called exhausted",
    "refusals of a Reserve with their reason",
    "replicas that reserve in the end",
    "reservations within a fair share",
    "reservations, one at a time",
    "statuses beside the rows",
    "statuses in a row",
    "statuses told by everybody in the end",
];

/// What is looked at in every run of a minute.
pub const IN_A_MINUTE: [&str; 7] = [
    "acknowledged Revokes in the log",
    "grants of last resort packages beside their rows",
    "lapses, each after its time",
    "packages in the order of issue",
    "refusals with their reason",
    "requests repeated",
    "used packages refused",
];

/// Looks at all of it.
pub fn check(history: &[Op], tables: &Tables, rules: &Rules) -> Report {
    let mut report = Report::default();
    let index = Index::new(history, tables, rules);
    for op in history {
        match &op.answer {
            Answer::Internal(why) => report.add(Kind::Internal, format!("{why}, to {op:?}")),
            Answer::Wrong(how) => report.add(Kind::WrongAnswer, format!("{how}, to {op:?}")),
            _ => {}
        }
    }
    log::check(&index, &mut report);
    issue::check(&index, &mut report);
    refused::check(&index, &mut report);
    settle::check(&index, &mut report);
    uploads::check(&index, &mut report);
    order::check(&index, &mut report);
    counts::check(&index, &mut report);
    heal::check(&index, &mut report);
    report.violations.sort();
    report
}
