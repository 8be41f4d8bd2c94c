//! What the server's tables say that a device must hold, and what it may.

use std::collections::{BTreeMap, BTreeSet};

use keypool_client::Bytes;
use time::OffsetDateTime;

use super::*;

/// What a test knows and the server does not.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    /// One-time packages whose Welcome the device has read.
    pub(super) joined: BTreeSet<Bytes>,
    /// Packages whose private keys went with an installation.
    pub(super) lost: BTreeSet<Bytes>,
    /// Packages of earlier credentials, and when they became such.
    pub(super) outdated: BTreeMap<Bytes, u64>,
    /// When what was withdrawn was first seen to be so after a refresh.
    pub(super) withdrawn: BTreeMap<Bytes, u64>,
}

/// The refs of one device's packages, by what became of them.
#[derive(Debug)]
pub(super) struct Truth {
    /// The server may issue it, or somebody holds it and may still invite by it.
    pub(super) issuable: BTreeSet<Bytes>,
    /// Spent, or burned, which may be spent late.
    spent: BTreeSet<Bytes>,
    /// Withdrawn, and when.
    revoked: BTreeMap<Bytes, u64>,
    not_after: BTreeMap<Bytes, u64>,
}

impl World {
    pub(super) async fn truth(&self, device: &Device) -> Truth {
        let user = device.owner.user.as_str();
        let pool = &self.replicas.database.pool;
        let now = OffsetDateTime::from_unix_timestamp(self.now().try_into().unwrap()).unwrap();
        let issuable: Vec<Vec<u8>> = sqlx::query_scalar(
            "SELECT key_package_ref FROM package JOIN pool p USING (bucket, pool_id)
             WHERE p.user_id = $1 AND not_after > $2
               AND (revoked_at IS NULL OR state = 'reserved' AND expires_at > $2)
             UNION ALL
             SELECT key_package_ref FROM last_resort JOIN pool p USING (bucket, pool_id)
             WHERE p.user_id = $1 AND not_after > $2",
        )
        .bind(user)
        .bind(now)
        .fetch_all(pool)
        .await
        .unwrap();
        let events: Vec<(Vec<u8>, String, OffsetDateTime)> = sqlx::query_as(
            "SELECT key_package_ref, kind, at FROM event JOIN pool p USING (bucket, pool_id)
             WHERE p.user_id = $1
               AND kind IN ('spent', 'burned', 'revoked', 'last_resort_issued')",
        )
        .bind(user)
        .fetch_all(pool)
        .await
        .unwrap();
        let not_after: Vec<(Vec<u8>, OffsetDateTime)> = sqlx::query_as(
            "SELECT key_package_ref, not_after FROM published JOIN pool p USING (bucket, pool_id)
             WHERE p.user_id = $1",
        )
        .bind(user)
        .fetch_all(pool)
        .await
        .unwrap();
        let seconds = |at: OffsetDateTime| u64::try_from(at.unix_timestamp()).unwrap();
        let issuable: BTreeSet<Bytes> = issuable.into_iter().map(Bytes::from).collect();
        let mut truth = Truth {
            spent: BTreeSet::new(),
            revoked: BTreeMap::new(),
            not_after: not_after.into_iter().map(|(r, at)| (r.into(), seconds(at))).collect(),
            issuable,
        };
        let mut last_resorts = BTreeSet::new();
        for (key_package_ref, kind, at) in events {
            let key_package_ref = Bytes::from(key_package_ref);
            match kind.as_str() {
                "revoked" => drop(truth.revoked.insert(key_package_ref, seconds(at))),
                "last_resort_issued" => drop(last_resorts.insert(key_package_ref)),
                _ => drop(truth.spent.insert(key_package_ref)),
            }
        }
        // Such a one is waited for until it is replaced, and a day longer, however often used.
        truth.spent.retain(|key_package_ref| !last_resorts.contains(key_package_ref));
        truth
    }

    /// At any time: nobody can be invited in vain. That the device holds the private keys of what
    /// was joined or lost is for its next refresh to see.
    pub(super) async fn check_nothing_is_lost(&self, device: &Device, known: &Known, when: &str) {
        let truth = self.truth(device).await;
        let held = device.held();
        for key_package_ref in self.awaited(&truth, known) {
            assert!(
                held.contains(&key_package_ref)
                    || known.joined.contains(&key_package_ref)
                    || known.lost.contains(&key_package_ref),
                "{when}: the private keys of {key_package_ref:x} are lost"
            );
        }
    }

    /// What a Welcome may come for.
    fn awaited(&self, truth: &Truth, known: &Known) -> BTreeSet<Bytes> {
        let now = self.now();
        let unexpired = |r: &&Bytes| truth.not_after.get(*r).is_some_and(|end| *end > now);
        let recent = truth.revoked.iter().filter(|(_, at)| **at + DAY > now).map(|(r, _)| r);
        let spent = truth.spent.iter();
        let spent = spent.filter(|r| known.outdated.get(*r).is_none_or(|at| at + DAY > now));
        let awaited = truth.issuable.iter().chain(spent).chain(recent);
        awaited.filter(unexpired).cloned().collect()
    }

    /// After a refresh: the device holds what it must and nothing else.
    pub(super) async fn check(&self, device: &Device, known: &mut Known, when: &str) {
        let truth = self.truth(device).await;
        let now = self.now();
        let held = device.held();
        let gone: BTreeSet<Bytes> = known.joined.union(&known.lost).cloned().collect();
        for key_package_ref in &truth.issuable {
            let reserved_and_withdrawn = truth.revoked.contains_key(key_package_ref);
            let joined = known.joined.contains(key_package_ref) && reserved_and_withdrawn;
            let lost = known.lost.contains(key_package_ref) && reserved_and_withdrawn;
            assert!(
                held.contains(key_package_ref) || joined || lost,
                "{when}: {key_package_ref:x} may be issued without private keys"
            );
        }
        let awaited: BTreeSet<Bytes> =
            self.awaited(&truth, known).difference(&gone).cloned().collect();
        let lost: Vec<_> = awaited.difference(&held).collect();
        assert!(lost.is_empty(), "{when}: the private keys of {lost:x?} are lost");
        for key_package_ref in truth.revoked.keys().chain(known.outdated.keys()) {
            known.withdrawn.entry(key_package_ref.clone()).or_insert(now);
        }
        for key_package_ref in held.difference(&awaited) {
            let withdrawn = known.withdrawn.get(key_package_ref).is_some_and(|at| at + DAY > now);
            let end = truth.not_after.get(key_package_ref);
            let ended_just_now = end.is_some_and(|end| *end <= now && end + HOUR > now);
            assert!(
                !gone.contains(key_package_ref) && (withdrawn || ended_just_now),
                "{when}: the private keys of {key_package_ref:x} are kept for nothing"
            );
        }
        let recorded: BTreeSet<Bytes> =
            device.records().into_iter().map(|record| record.key_package_ref).collect();
        assert_eq!(recorded, held, "{when}: the two storages differ");
    }
}
