//! What was accepted is there or accounted for; what was used does not come back.

use super::{Index, Kind, Report, log};
use crate::{
    history::{Answer, Call, Stored},
    tables::EventKind,
};

pub(super) fn check(index: &Index<'_>, report: &mut Report) {
    revoked_for_good(index, report);
    for op in index.history {
        let (Call::Upload { packages, .. }, Answer::Uploaded(stored)) = (&op.call, &op.answer)
        else {
            continue;
        };
        for (package, stored) in packages.iter().zip(stored) {
            let key = index.keys.get(&package.reference);
            match stored {
                Stored::Accepted { .. } => {
                    report.count("accepted packages in the log");
                    let spent = index.spent.get(&package.reference);
                    if spent.is_some_and(|&spent| op.begun > spent) {
                        let what = format!("{:?} at {}", package.reference, op.begun);
                        report.add(Kind::TombstoneBroken, what);
                    }
                    let uploaded = key.is_some_and(|&key| {
                        index.path(key).iter().any(|event| event.kind == EventKind::Uploaded)
                    });
                    if !uploaded && index.rules.lasts(op) {
                        report.add(Kind::UploadLost, format!("{:?}", package.reference));
                    }
                }
                Stored::AlreadyUsed => {
                    report.count("used packages refused");
                    let used = key.is_some_and(|&key| {
                        let path = index.path(key);
                        index.is_last_resort(path)
                            || log::walk(path).map_or(true, |(state, _)| {
                                !matches!(state, log::State::Available | log::State::Lapsed)
                            })
                    });
                    if !used && index.rules.erased.is_none() {
                        let what = format!("{:?} called used", package.reference);
                        report.add(Kind::RefusedWrongly, what);
                    }
                }
                Stored::Refused(_) => {}
            }
        }
    }
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
