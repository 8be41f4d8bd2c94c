//! What was accepted is there or accounted for; what was used does not come back.

use keypool_client::v1::RejectReason;

use super::{Index, Kind, Report, log};
use crate::{
    history::{Answer, Call, Offered, Op, Ref, Stored},
    tables::{Event, EventKind},
};

pub(super) fn check(index: &Index<'_>, report: &mut Report) {
    revoked_for_good(index, report);
    for op in index.history {
        let (Call::Upload { pool, packages }, Answer::Uploaded(stored)) = (&op.call, &op.answer)
        else {
            continue;
        };
        for (package, stored) in packages.iter().zip(stored) {
            match stored {
                Stored::Accepted { .. } => accepted(index, package.reference, op, report),
                Stored::AlreadyUsed => already_used(index, package.reference, op, report),
                Stored::Refused(reason) => refused(index, *pool, package, *reason, op, report),
            }
        }
    }
}

fn accepted(index: &Index<'_>, reference: Ref, op: &Op, report: &mut Report) {
    report.count("accepted packages in the log");
    if index.spent.get(&reference).is_some_and(|&spent| op.begun > spent) {
        report.add(Kind::TombstoneBroken, format!("{reference:?} at {}", op.begun));
    }
    let path = index.keys.get(&reference).map_or(&[][..], |&key| index.path(key));
    let uploaded = path.iter().any(|event| event.kind == EventKind::Uploaded);
    if !uploaded && index.rules.lasts(op) {
        report.add(Kind::UploadLost, format!("{reference:?}"));
    }
}

/// A package ended, or was withdrawn, before it is called used.
fn already_used(index: &Index<'_>, reference: Ref, op: &Op, report: &mut Report) {
    if !index.rules.lasts(op) {
        return;
    }
    report.count("used packages refused");
    let path = index.keys.get(&reference).map_or(&[][..], |&key| index.path(key));
    if !path.iter().any(|event| event.at <= op.ended && ends(event.kind)) {
        let what = format!("{reference:?} called used at {}: {}", op.ended, log::text(path));
        report.add(Kind::RefusedWrongly, what);
    }
}

fn ends(kind: EventKind) -> bool {
    use EventKind as E;
    matches!(kind, E::Spent | E::Burned | E::Revoked | E::Expired)
}

/// All packages are valid, within their lifetime, and fewer than a pool takes.
fn refused(
    index: &Index<'_>,
    pool: u16,
    package: &Offered,
    reason: i32,
    op: &Op,
    report: &mut Report,
) {
    report.count("packages refused for another reason");
    let right = match RejectReason::try_from(reason) {
        // A restored database takes none that may have been issued in the meantime.
        Ok(RejectReason::Lifetime) => {
            index.rules.erased.is_some_and(|(backup, _)| op.ended >= backup)
                || package.not_after - 2 * index.rules.min_lifetime <= op.ended
        }
        Ok(RejectReason::PoolFull) => {
            !index.rules.lasts(op) || may_live(index, pool, op) >= index.rules.hard_cap
        }
        _ => false,
    };
    if !right {
        let what = format!("reason {reason} for {:?} to {op:?}", package.reference);
        report.add(Kind::RefusedWrongly, what);
    }
}

/// How many packages a pool may have had while a call was under way.
fn may_live(index: &Index<'_>, pool: u16, op: &Op) -> usize {
    let id = index.pool_ids.get(&pool);
    let packages = index.packages().filter(|(key, path)| {
        let begun = path.first().is_some_and(|event| event.at <= op.ended);
        // What ended was seen by all some time after.
        let ended = |event: &Event| ends(event.kind) && event.at < op.begun - index.rules.horizon;
        Some(&key.pool) == id && begun && !path.iter().any(ended)
    });
    packages.count()
}

/// What was withdrawn is withdrawn, or ends in another way when its holder is done with it.
fn revoked_for_good(index: &Index<'_>, report: &mut Report) {
    for reference in index.revoked.keys() {
        let Some(&key) = index.keys.get(reference) else { continue };
        let path = index.path(key);
        if index.is_last_resort(path) {
            continue;
        }
        report.count("acknowledged Revokes in the log");
        let stays = log::walk(path).is_ok_and(|(state, _)| {
            let held = log::State::Reserved { revoked: false };
            state == held || matches!(state, log::State::Available | log::State::Lapsed)
        });
        if stays {
            report.add(Kind::RevokeUndone, format!("{key:?}: {}", log::text(path)));
        }
    }
}
