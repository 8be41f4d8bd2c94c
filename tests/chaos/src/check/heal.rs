//! Whatever broke, everybody is served again.

use super::{Index, Kind, Report};
use crate::{
    history::{Call, Op, Via},
    recovery::unserved,
};

pub(super) fn check(index: &Index<'_>, report: &mut Report) {
    for (worker, fault) in unserved(index.history, &index.rules.faults, index.rules.quiet_since) {
        let what = format!("worker {worker} was not served again after the fault at {fault}");
        report.add(Kind::NotHealed, what);
    }
    let replicas = || (0..index.rules.replicas).map(Via::Replica);
    for replica in replicas() {
        report.count("replicas that reserve in the end");
        let reserves = |op: &Op| {
            let now = (index.rules.calm_since..index.rules.quiet_since).contains(&op.begun);
            now && matches!(op.call, Call::Reserve { .. })
        };
        if !answers(index, replica, reserves) {
            report.add(Kind::NotHealed, format!("no Reserve is answered by {replica:?}"));
        }
    }
    // Without replicas there was nobody to ask.
    for way in replicas().chain((index.rules.replicas > 0).then_some(Via::Sdk)) {
        for (pool, _) in (0..).zip(&index.rules.pools) {
            report.count("statuses told by everybody in the end");
            let tells =
                |op: &Op| op.begun >= index.rules.quiet_since && op.call == Call::Status { pool };
            if !answers(index, way, tells) {
                let what = format!("no status of pool {pool} is answered by {way:?}");
                report.add(Kind::NotHealed, what);
            }
        }
    }
}

fn answers(index: &Index<'_>, way: Via, is_asked: impl Fn(&Op) -> bool) -> bool {
    // The last calls: from the end they are found at once.
    index.history.iter().rev().any(|op| op.via == way && op.answered() && is_asked(op))
}
