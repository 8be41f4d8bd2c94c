//! Credential rotation never leaves a pool empty, and nothing old is issued after it.

use std::{collections::HashSet, sync::Arc};

use keypool_service::{
    domain::{
        error::Error,
        ids::KeyPackageRef,
        key_package::{IdentityTemplate, RejectReason, UploadPolicy},
        policy::PoolPolicy,
    },
    pool::{KeyPool, ReserveRequest, Selection, UploadMode, UploadOutcome, UploadResult},
};
use keypool_testing::contract::{
    Device, Ground, adder, ask, client, group, refusal, replica, reserve, stored,
};

async fn rotate(pool: &KeyPool, device: &Device, packages: Vec<Vec<u8>>) -> Vec<UploadResult> {
    pool.upload(&device.key, packages, UploadMode::ReplaceOtherCredentials).await.unwrap().0
}

fn one_time(device: &Device) -> ReserveRequest {
    ReserveRequest { last_resort: false, ..ask(&device.key) }
}

#[tokio::test]
async fn to_a_new_signature_key() {
    let ground = Ground::unfair().await;
    let (mut old, mut new) = (Device::new("bob", "phone"), Device::new("bob", "phone"));
    ground.stock(&mut old, 4).await;
    let last_resort = ground.stock_last_resort(&mut old).await;
    let kept = ground.stock(&mut new, 1).await;
    let held = ground.reserve(&adder(0), &old.key).await.unwrap();
    let packages = new.packages(3);
    let mut added: HashSet<KeyPackageRef> =
        rotate(&ground.a, &new, packages).await.iter().map(stored).collect();
    added.extend(kept);
    let counts = ground.counts(&new.key).await;
    assert_eq!((counts.available, counts.reserved, counts.last_resort), (4, 1, None));
    for n in 1..=4 {
        let got = reserve(&ground.b, &adder(n), &one_time(&new)).await.unwrap();
        assert!(added.remove(&got.key_package_ref));
    }
    assert!(matches!(ground.reserve(&adder(5), &new.key).await, Err(Error::PoolExhausted)));
    // What was in flight is still good.
    ground.b.spend(&adder(0), &[held.id], &group()).await.unwrap();
    let revoked: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM event WHERE kind = 'revoked' AND key_package_ref = $1",
    )
    .bind(&last_resort.0)
    .fetch_one(&ground.database.pool)
    .await
    .unwrap();
    assert_eq!(revoked, 1);
}

#[tokio::test]
async fn to_a_new_credential_of_the_same_signature_key() {
    let ground = Ground::unfair().await;
    let mut bob = Device::new("bob", "phone");
    ground.stock(&mut bob, 3).await;
    // The operator has changed what a credential must say.
    let template = IdentityTemplate::parse("{user_id}/{client_id}").unwrap();
    let changed = replica(
        ground.database.url(),
        Arc::new(ground.clock.clone()),
        PoolPolicy { fair_share: false, ..PoolPolicy::default() },
        UploadPolicy { credential_identity: template, ..UploadPolicy::default() },
    )
    .await;
    bob.forge.credential = b"bob/phone".to_vec();
    let packages = bob.packages(2);
    let added: Vec<KeyPackageRef> =
        rotate(&changed, &bob, packages).await.iter().map(stored).collect();
    assert_eq!(ground.counts(&bob.key).await.available, 2);
    for n in 0..2 {
        let got = ground.reserve(&adder(n), &bob.key).await.unwrap();
        assert!(added.contains(&got.key_package_ref));
    }
}

#[tokio::test]
async fn a_full_pool_has_room_for_a_new_one() {
    let ground = Ground::unfair().await;
    let (mut old, mut new) = (Device::new("bob", "phone"), Device::new("bob", "phone"));
    ground.stock(&mut old, 64).await;
    let packages = new.packages(65);
    let (refused, _) =
        ground.a.upload(&new.key, packages[..1].to_vec(), UploadMode::Add).await.unwrap();
    assert_eq!(refusal(&refused[0]), RejectReason::PoolFull);
    let results = rotate(&ground.a, &new, packages).await;
    results[..64].iter().for_each(|result| drop(stored(result)));
    assert_eq!(refusal(&results[64]), RejectReason::PoolFull);
    assert_eq!(ground.counts(&new.key).await.available, 64);
}

#[tokio::test]
async fn nothing_accepted_revokes_nothing() {
    let ground = Ground::unfair().await;
    let (mut old, mut new) = (Device::new("bob", "phone"), Device::new("bob", "phone"));
    let used = new.package();
    let uploaded = ground.a.upload(&new.key, vec![used.clone()], UploadMode::Add).await.unwrap();
    let used_ref = stored(&uploaded.0[0]);
    let selection = Selection::Refs(vec![used_ref]);
    ground.a.revoke(&new.key, None, selection).await.unwrap();
    ground.stock(&mut old, 2).await;
    ground.stock_last_resort(&mut old).await;
    let results = rotate(&ground.a, &new, vec![used, b"garbage".to_vec()]).await;
    assert_eq!(refusal(&results[0]), RejectReason::AlreadyUsed);
    assert_eq!(refusal(&results[1]), RejectReason::Malformed);
    let counts = ground.counts(&old.key).await;
    assert_eq!(counts.available, 2);
    assert!(counts.last_resort.is_some());
}

#[tokio::test]
async fn repeated_it_changes_nothing() {
    let ground = Ground::unfair().await;
    let (mut old, mut new) = (Device::new("bob", "phone"), Device::new("bob", "phone"));
    ground.stock(&mut old, 2).await;
    let packages = new.packages(3);
    rotate(&ground.a, &new, packages.clone()).await.iter().for_each(|r| drop(stored(r)));
    for result in rotate(&ground.b, &new, packages).await {
        let UploadOutcome::Accepted { already_present: true, .. } = result.outcome else {
            panic!("not there already: {result:?}")
        };
    }
    assert_eq!(ground.counts(&new.key).await.available, 3);
}

/// 32 adders reserve again and again while the pool is rotated: each gets a package every time,
/// and what is asked for after the upload was answered is new.
#[tokio::test(flavor = "multi_thread")]
async fn under_32_adders_the_pool_is_never_empty() {
    const ADDERS: usize = 32;
    const ROUNDS: usize = 4;
    let ground = Ground::unfair().await;
    let (mut old, mut new) = (Device::new("bob", "phone"), Device::new("bob", "phone"));
    let old_refs: HashSet<KeyPackageRef> = ground.stock(&mut old, 64).await.into_iter().collect();
    ground.stock_last_resort(&mut old).await;
    let packages = new.packages(64);
    let (rotated, when_rotated) = tokio::sync::watch::channel(false);
    let mut adders = Vec::new();
    for n in 0..ADDERS {
        let pool = if n % 2 == 0 { ground.a.clone() } else { ground.b.clone() };
        let (owner, when_rotated) = (old.key.clone(), when_rotated.clone());
        adders.push(tokio::spawn(async move {
            let mut got = Vec::new();
            for round in 0..ROUNDS {
                let caller = adder(n * ROUNDS + round);
                let after = *when_rotated.borrow();
                let request = ReserveRequest { last_resort: false, ..ask(&owner) };
                let reservation = reserve(&pool, &caller, &request).await;
                let reservation = reservation.expect("never an empty pool");
                // One of each adder's is spent, so that half of either stock outlasts all rounds,
                // however early or late the rotation strikes.
                if round == 1 {
                    pool.spend(&caller, &[reservation.id], &group()).await.unwrap();
                } else {
                    pool.release(&caller, &[reservation.id]).await.unwrap();
                }
                got.push((after, reservation.key_package_ref));
            }
            got
        }));
    }
    let results = rotate(&ground.b, &new, packages).await;
    let new_refs: HashSet<KeyPackageRef> = results.iter().map(stored).collect();
    rotated.send(true).unwrap();
    for adder in adders {
        for (after, got) in adder.await.unwrap() {
            assert!(new_refs.contains(&got) || (!after && old_refs.contains(&got)));
        }
    }
    // Whatever was in flight has ended: nothing old is left in any state.
    let left = ground.counts(&new.key).await.available;
    assert!(left as usize >= 64 - ADDERS, "{left}");
    for n in 0..left {
        let caller = client("late", &n.to_string());
        let got = reserve(&ground.a, &caller, &one_time(&new)).await.unwrap();
        assert!(new_refs.contains(&got.key_package_ref));
    }
}

/// The rotation has stored the new packages and waits, and every old one is locked: a Reserve
/// looks again until it gets one.
#[tokio::test]
async fn a_reserve_waits_for_the_rotation() {
    let ground = Ground::unfair().await;
    let (mut old, mut new) = (Device::new("bob", "phone"), Device::new("bob", "phone"));
    ground.stock(&mut old, 3).await;
    ground.stock_last_resort(&mut old).await;
    let mut holding = ground.database.pool.begin().await.unwrap();
    sqlx::query("SELECT FROM package FOR UPDATE").execute(&mut *holding).await.unwrap();
    let rotating = tokio::spawn({
        let (pool, packages) = (ground.a.clone(), new.packages(3));
        async move { rotate(&pool, &new, packages).await.iter().map(stored).collect::<Vec<_>>() }
    });
    ground.until_waiting(1).await;
    let reserving = tokio::spawn({
        let (pool, request) = (ground.b.clone(), ask(&old.key));
        async move { reserve(&pool, &adder(0), &request).await }
    });
    // It has looked, found all locked, and rests before it looks again.
    ground
        .until(
            "SELECT count(*) >= $1 FROM pg_stat_activity
             WHERE datname = current_database() AND application_name = 'keypool'
               AND state = 'idle' AND query LIKE '-- Reserves one package%'",
            1,
        )
        .await;
    assert!(!reserving.is_finished());
    holding.rollback().await.unwrap();
    let added = rotating.await.unwrap();
    let got = reserving.await.unwrap().unwrap();
    assert!(!got.last_resort);
    for n in 1..4 {
        let next = ground.reserve(&adder(n), &old.key).await;
        assert!(next.is_err() || added.contains(&next.unwrap().key_package_ref));
    }
}

/// However long the rotation takes, its pool is not called exhausted and its last resort is not
/// issued.
#[tokio::test]
async fn a_locked_pool_is_not_an_empty_one() {
    let ground = Ground::unfair().await;
    let mut bob = Device::new("bob", "phone");
    ground.stock(&mut bob, 3).await;
    ground.stock_last_resort(&mut bob).await;
    let mut holding = ground.database.pool.begin().await.unwrap();
    sqlx::query("SELECT FROM package FOR UPDATE").execute(&mut *holding).await.unwrap();
    let request = ask(&bob.key);
    let answer = reserve(&ground.a, &adder(0), &request).await;
    assert!(matches!(answer, Err(Error::Overloaded)), "{answer:?}");
    holding.rollback().await.unwrap();
    assert!(!reserve(&ground.b, &adder(0), &request).await.unwrap().last_resort);
}
