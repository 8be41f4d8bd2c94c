use std::collections::{BTreeMap, HashSet};

use keypool_proto::v1::{self, ReserveResult, Target};
use openmls::prelude::KeyPackage;

use crate::{
    Invitee, Missing, MissingReason, Refusal, ReservationRecord, journal::as_received,
    verify::encryption_key,
};

/// What one call gave.
#[derive(Default)]
pub(crate) struct Judged {
    pub(crate) invitees: Vec<Invitee>,
    pub(crate) missing: Vec<Missing>,
    pub(crate) held: Vec<ReservationRecord>,
    pub(crate) refused: Vec<ReservationRecord>,
    /// When the first of those held lapses, in seconds since 1970.
    pub(crate) expires_at: u64,
}

/// What was seen in an invitation so far.
#[derive(Default)]
pub(crate) struct Answers {
    clients: HashSet<(String, String)>,
    /// Keys that may stand in a group's tree, or in a Welcome, once.
    keys: HashSet<Vec<u8>>,
}

impl Answers {
    pub(crate) fn judge(
        &mut self,
        targets: &[Target],
        results: Vec<ReserveResult>,
        admit: impl Fn(&v1::Reservation, (&str, &str)) -> Result<KeyPackage, MissingReason>,
    ) -> Judged {
        let mut judged = Judged { expires_at: u64::MAX, ..Judged::default() };
        let asked: BTreeMap<&str, &[String]> =
            targets.iter().map(|it| (it.user_id.as_str(), it.client_ids.as_slice())).collect();
        for ReserveResult { user_id, client_id, outcome } in results {
            let asked_for = asked
                .get(user_id.as_str())
                .is_some_and(|clients| clients.is_empty() || clients.contains(&client_id));
            let first = self.clients.insert((user_id.clone(), client_id.clone()));
            let reservation = match outcome {
                Some(v1::reserve_result::Outcome::Reservation(reservation)) => reservation,
                Some(v1::reserve_result::Outcome::Unavailable(unavailable)) => {
                    if asked_for && first {
                        let reason = unavailable.reason().into();
                        judged.missing.push(Missing { user_id, client_id, reason });
                    }
                    continue;
                }
                None => {
                    let reason = MissingReason::Unanswered;
                    judged.missing.push(Missing { user_id, client_id, reason });
                    continue;
                }
            };
            let package = if asked_for && first {
                admit(&reservation, (&user_id, &client_id)).and_then(|package| {
                    let fresh = self.take_keys(&package);
                    if fresh { Ok(package) } else { Err(Refusal::Duplicate.into()) }
                })
            } else {
                Err(Refusal::NotAskedFor.into())
            };
            let mut record = as_received(&reservation);
            match package {
                Ok(key_package) => {
                    record.encryption_key = encryption_key(&key_package).into();
                    let expires = reservation.expires_at.map_or(0, |time| time.seconds);
                    let expires = u64::try_from(expires).unwrap_or_default();
                    judged.expires_at = judged.expires_at.min(expires);
                    judged.held.push(record);
                    judged.invitees.push(Invitee {
                        user_id,
                        client_id,
                        key_package,
                        key_package_ref: reservation.key_package_ref,
                        last_resort: reservation.last_resort,
                    });
                }
                Err(reason) => {
                    judged.refused.push(record);
                    judged.missing.push(Missing { user_id, client_id, reason });
                }
            }
        }
        judged.missing.extend(self.unanswered(targets));
        judged
    }

    /// False when a key of the package stands in the invitation already: one group cannot have
    /// both (RFC 9420, section 7.3).
    fn take_keys(&mut self, package: &KeyPackage) -> bool {
        let keys = [
            package.leaf_node().signature_key().as_slice().to_vec(),
            encryption_key(package),
            package.hpke_init_key().as_slice().to_vec(),
        ];
        let fresh = !keys.iter().any(|key| self.keys.contains(key));
        if fresh {
            self.keys.extend(keys);
        }
        fresh
    }

    /// Targets of which the answer says nothing.
    fn unanswered(&self, targets: &[Target]) -> Vec<Missing> {
        let users: HashSet<&str> = self.clients.iter().map(|(user, _)| user.as_str()).collect();
        let missing = |user_id: &String, client_id: &str| Missing {
            user_id: user_id.clone(),
            client_id: client_id.to_owned(),
            reason: MissingReason::Unanswered,
        };
        let mut unanswered = Vec::new();
        for Target { user_id, client_ids } in targets {
            if client_ids.is_empty() && !users.contains(user_id.as_str()) {
                unanswered.push(missing(user_id, ""));
            }
            for client_id in client_ids {
                if !self.clients.contains(&(user_id.clone(), client_id.clone())) {
                    unanswered.push(missing(user_id, client_id));
                }
            }
        }
        unanswered
    }
}
