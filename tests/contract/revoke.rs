//! What is revoked is not issued any more; what is reserved stays its holder's until it ends.

use std::sync::Arc;

use keypool_service::{
    domain::{
        clock::Clock as _,
        error::Error,
        ids::{ClientKey, KeyPackageRef},
        key_package::{RejectReason, UploadPolicy},
        policy::{LapsePolicy, PoolPolicy},
    },
    pool::{KeyPool, Selection, UploadMode},
    store::Revoked,
};
use keypool_testing::contract::{
    Device, Ground, adder, ask, client, group, refusal, replica, reserve,
};
use time::Duration;

/// So many of each state.
fn counts(available: u32, reserved: u32, last_resort: u32) -> Revoked {
    Revoked { available, reserved, last_resort }
}

async fn revoke(pool: &KeyPool, owner: &ClientKey, selection: Selection) -> Revoked {
    pool.revoke(owner, None, selection).await.unwrap()
}

fn refs(refs: &[KeyPackageRef]) -> Selection {
    Selection::Refs(refs.to_vec())
}

/// The kinds of the events about a package, in their order.
async fn history(ground: &Ground, of: &KeyPackageRef) -> Vec<String> {
    let kinds = "SELECT kind FROM event WHERE key_package_ref = $1 ORDER BY at, generation,
                 array_position(ARRAY['uploaded', 'reserved', 'revoked'], kind) NULLS LAST";
    sqlx::query_scalar(kinds).bind(&of.0).fetch_all(&ground.database.pool).await.unwrap()
}

#[tokio::test]
async fn by_refs_those_and_no_others() {
    let ground = Ground::unfair().await;
    let mut bob = Device::new("bob", "phone");
    let stock = ground.stock(&mut bob, 5).await;
    let unknown = KeyPackageRef(vec![7; 32]);
    let chosen = refs(&[stock[1].clone(), stock[3].clone(), stock[3].clone(), unknown]);
    assert_eq!(revoke(&ground.a, &bob.key, chosen).await, counts(2, 0, 0));
    assert_eq!(ground.counts(&bob.key).await.available, 3);
    let mut issued = Vec::new();
    for n in 0..3 {
        issued.push(ground.reserve(&adder(n), &bob.key).await.unwrap().key_package_ref);
    }
    issued.sort();
    let mut left = vec![stock[0].clone(), stock[2].clone(), stock[4].clone()];
    left.sort();
    assert_eq!(issued, left);
    assert!(matches!(ground.reserve(&adder(3), &bob.key).await, Err(Error::PoolExhausted)));
    // Spent they are not, and neither counted as such.
    assert_eq!(ground.counts(&bob.key).await.spent, 0);
    assert_eq!(revoke(&ground.b, &bob.key, refs(&stock[1..2])).await, counts(0, 0, 0));
}

#[tokio::test]
async fn all_of_a_client_with_its_last_resort_and_nothing_of_another() {
    let ground = Ground::unfair().await;
    let (mut phone, mut tablet) = (Device::new("bob", "phone"), Device::new("bob", "tablet"));
    ground.stock(&mut phone, 4).await;
    ground.stock_last_resort(&mut phone).await;
    ground.stock(&mut tablet, 2).await;
    ground.reserve(&adder(0), &phone.key).await.unwrap();
    assert_eq!(revoke(&ground.a, &phone.key, Selection::All).await, counts(3, 1, 1));
    let left = ground.counts(&phone.key).await;
    assert_eq!((left.available, left.reserved, left.last_resort), (0, 1, None));
    assert_eq!(ground.counts(&tablet.key).await.available, 2);
    assert!(matches!(ground.reserve(&adder(1), &phone.key).await, Err(Error::PoolExhausted)));
    assert_eq!(revoke(&ground.a, &phone.key, Selection::All).await, counts(0, 0, 0));
}

#[tokio::test]
async fn all_but_one_signature_key() {
    let ground = Ground::unfair().await;
    let mut old = Device::new("bob", "phone");
    let mut new = Device::new("bob", "phone");
    ground.stock(&mut old, 3).await;
    ground.stock_last_resort(&mut old).await;
    let kept = ground.stock(&mut new, 2).await;
    let but_new = Selection::AllExceptSignatureKey(new.forge.signature_key.clone());
    assert_eq!(revoke(&ground.a, &new.key, but_new).await, counts(3, 0, 1));
    for n in 0..2 {
        let got = ground.reserve(&adder(n), &new.key).await.unwrap();
        assert!(kept.contains(&got.key_package_ref));
    }
}

#[tokio::test]
async fn of_another_client_of_the_same_user_and_of_nobody_else() {
    let ground = Ground::unfair().await;
    let mut lost = Device::new("bob", "phone");
    let mut stranger = Device::new("eve", "phone");
    let stock = ground.stock(&mut lost, 3).await;
    ground.stock(&mut stranger, 3).await;
    let tablet = client("bob", "tablet");
    let of_lost = |selection| ground.a.revoke(&tablet, Some(lost.key.client.clone()), selection);
    assert_eq!(of_lost(refs(&stock[..1])).await.unwrap(), counts(1, 0, 0));
    assert_eq!(of_lost(Selection::All).await.unwrap(), counts(2, 0, 0));
    assert_eq!(ground.counts(&stranger.key).await.available, 3);
    // Its own pool, which does not exist, and a client that does not.
    assert_eq!(revoke(&ground.a, &tablet, Selection::All).await, counts(0, 0, 0));
    let nobody = Some(client("bob", "fridge").client);
    let none = ground.a.revoke(&tablet, nobody, Selection::All).await.unwrap();
    assert_eq!(none, counts(0, 0, 0));
    // The log names who did it.
    let by: Vec<(String, String)> = sqlx::query_as(
        "SELECT DISTINCT actor_user, actor_client FROM event WHERE kind = 'revoked'",
    )
    .fetch_all(&ground.database.pool)
    .await
    .unwrap();
    assert_eq!(by, [("bob".to_owned(), "tablet".to_owned())]);
}

#[tokio::test]
async fn a_reserved_one_may_still_be_spent() {
    let ground = Ground::unfair().await;
    let mut bob = Device::new("bob", "phone");
    let stock = ground.stock(&mut bob, 1).await;
    let got = ground.reserve(&adder(0), &bob.key).await.unwrap();
    assert_eq!(revoke(&ground.a, &bob.key, refs(&stock)).await, counts(0, 1, 0));
    assert_eq!(revoke(&ground.a, &bob.key, refs(&stock)).await, counts(0, 0, 0));
    assert_eq!(ground.counts(&bob.key).await.reserved, 1);
    ground.b.spend(&adder(0), &[got.id], &group()).await.unwrap();
    let left = ground.counts(&bob.key).await;
    assert_eq!((left.available, left.reserved, left.spent), (0, 0, 1));
    assert_eq!(history(&ground, &stock[0]).await, ["uploaded", "reserved", "revoked", "spent"]);
}

#[tokio::test]
async fn a_reserved_one_ends_as_revoked_when_it_is_released() {
    let ground = Ground::unfair().await;
    let mut bob = Device::new("bob", "phone");
    let stock = ground.stock(&mut bob, 1).await;
    let got = ground.reserve(&adder(0), &bob.key).await.unwrap();
    revoke(&ground.a, &bob.key, Selection::All).await;
    let ids = [got.id];
    assert!(!ground.a.release(&adder(0), &ids).await.unwrap()[0].already);
    assert!(ground.b.release(&adder(0), &ids).await.unwrap()[0].already);
    ends_revoked(&ground, &bob, &stock[0], &ids).await;
    assert_eq!(history(&ground, &stock[0]).await, ["uploaded", "reserved", "revoked", "released"]);
}

#[tokio::test]
async fn a_reserved_one_ends_as_revoked_when_it_lapses_whatever_the_policy() {
    for lapse in [LapsePolicy::Return, LapsePolicy::Burn] {
        let policy = PoolPolicy { lapse, fair_share: false, ..PoolPolicy::default() };
        let ground = Ground::new(policy).await;
        let mut bob = Device::new("bob", "phone");
        let stock = ground.stock(&mut bob, 1).await;
        let got = ground.reserve(&adder(0), &bob.key).await.unwrap();
        revoke(&ground.a, &bob.key, Selection::All).await;
        ground.pass(Duration::seconds(60));
        // Lapsed, and not swept yet.
        assert!(matches!(ground.reserve(&adder(1), &bob.key).await, Err(Error::PoolExhausted)));
        assert_eq!(ground.counts(&bob.key).await.available, 0);
        assert_eq!(ground.sweep().await.lapsed, 1);
        ends_revoked(&ground, &bob, &stock[0], &[got.id]).await;
        let history = history(&ground, &stock[0]).await;
        assert_eq!(history, ["uploaded", "reserved", "revoked", "lapsed"], "{lapse:?}");
    }
}

async fn ends_revoked(ground: &Ground, owner: &Device, of: &KeyPackageRef, ids: &[String]) {
    let spent = ground.a.spend(&adder(0), ids, &group()).await;
    assert!(matches!(spent, Err(Error::ReservationLost)), "{spent:?}");
    let left = ground.counts(&owner.key).await;
    assert_eq!((left.available, left.reserved, left.spent), (0, 0, 0));
    let states: Vec<String> =
        sqlx::query_scalar("SELECT state FROM tombstone WHERE key_package_ref = $1")
            .bind(&of.0)
            .fetch_all(&ground.database.pool)
            .await
            .unwrap();
    assert_eq!(states, ["revoked"]);
    assert!(matches!(ground.reserve(&adder(2), &owner.key).await, Err(Error::PoolExhausted)));
}

#[tokio::test]
async fn what_was_revoked_is_refused_at_upload_also_while_it_is_held() {
    let ground = Ground::unfair().await;
    let mut bob = Device::new("bob", "phone");
    let mut packages = bob.packages(2);
    packages.push(bob.last_resort());
    ground.a.upload(&bob.key, packages.clone(), UploadMode::Add).await.unwrap();
    ground.reserve(&adder(0), &bob.key).await.unwrap();
    assert_eq!(revoke(&ground.a, &bob.key, Selection::All).await, counts(1, 1, 1));
    let (again, _) = ground.b.upload(&bob.key, packages, UploadMode::Add).await.unwrap();
    let reasons: Vec<RejectReason> = again.iter().map(refusal).collect();
    assert_eq!(reasons, [RejectReason::AlreadyUsed; 3]);
}

/// A Reserve that goes first is still in its transaction when the revocation comes.
#[tokio::test]
async fn one_that_is_being_reserved_is_revoked_too() {
    let ground = Ground::unfair().await;
    let mut bob = Device::new("bob", "phone");
    let stock = ground.stock(&mut bob, 1).await;
    let mut reserving = ground.database.pool.begin().await.unwrap();
    sqlx::query(
        "UPDATE package SET state = 'reserved', generation = 1, holder = $1, group_id = $2,
                            expires_at = $3",
    )
    .bind(&adder(0).digest().0[..])
    .bind(group().as_bytes())
    .bind(ground.clock.now() + Duration::minutes(1))
    .execute(&mut *reserving)
    .await
    .unwrap();
    let revoking = tokio::spawn({
        let (pool, owner) = (ground.a.clone(), bob.key.clone());
        async move { revoke(&pool, &owner, Selection::All).await }
    });
    ground.until_waiting(1).await;
    reserving.commit().await.unwrap();
    assert_eq!(revoking.await.unwrap(), counts(0, 1, 0));
    ground.pass(Duration::minutes(2));
    assert!(matches!(ground.reserve(&adder(1), &bob.key).await, Err(Error::PoolExhausted)));
    assert_eq!(history(&ground, &stock[0]).await, ["uploaded", "revoked"]);
}

/// The other way round: a Release goes first, and what it hands back is revoked.
#[tokio::test]
async fn one_that_is_being_released_is_revoked_too() {
    let ground = Ground::unfair().await;
    let mut bob = Device::new("bob", "phone");
    ground.stock(&mut bob, 1).await;
    ground.reserve(&adder(0), &bob.key).await.unwrap();
    let mut releasing = ground.database.pool.begin().await.unwrap();
    sqlx::query(
        "UPDATE package SET state = 'available', returned = 'released', holder = NULL,
                            group_id = NULL, expires_at = NULL",
    )
    .execute(&mut *releasing)
    .await
    .unwrap();
    let revoking = tokio::spawn({
        let (pool, owner) = (ground.a.clone(), bob.key.clone());
        async move { revoke(&pool, &owner, Selection::All).await }
    });
    ground.until_waiting(1).await;
    releasing.commit().await.unwrap();
    assert_eq!(revoking.await.unwrap(), counts(1, 0, 0));
    assert!(matches!(ground.reserve(&adder(1), &bob.key).await, Err(Error::PoolExhausted)));
}

/// The revocation goes first, while the holder releases: both take effect.
#[tokio::test]
async fn one_that_is_being_revoked_can_be_released() {
    let ground = Ground::unfair().await;
    let mut bob = Device::new("bob", "phone");
    ground.stock(&mut bob, 1).await;
    let got = ground.reserve(&adder(0), &bob.key).await.unwrap();
    let mut revoking = ground.database.pool.begin().await.unwrap();
    sqlx::query("UPDATE package SET revoked_at = $1")
        .bind(ground.clock.now())
        .execute(&mut *revoking)
        .await
        .unwrap();
    let releasing = tokio::spawn({
        let (pool, ids) = (ground.a.clone(), vec![got.id.clone()]);
        async move { pool.release(&adder(0), &ids).await.unwrap()[0].already }
    });
    ground.until_waiting(1).await;
    revoking.commit().await.unwrap();
    assert!(!releasing.await.unwrap());
    ends_revoked(&ground, &bob, &got.key_package_ref, &[got.id]).await;
}

/// A revocation and an upload that block each other: Postgres ends one, and it starts over.
#[tokio::test]
async fn a_deadlock_fails_nobody() {
    let ground = Ground::unfair().await;
    let mut bob = Device::new("bob", "phone");
    ground.stock(&mut bob, 1).await;
    // By hand, an upload that has the counters and wants the last row that a revocation locks.
    let mut uploading = ground.database.pool.begin().await.unwrap();
    let patience = "SET LOCAL deadlock_timeout = '1min'";
    sqlx::query(patience).execute(&mut *uploading).await.unwrap();
    sqlx::query("SELECT FROM pool_suite FOR UPDATE").execute(&mut *uploading).await.unwrap();
    let url = ground.database.url();
    let separator = if url.contains('?') { '&' } else { '?' };
    let url = format!("{url}{separator}options[deadlock_timeout]=3s");
    let clock = Arc::new(ground.clock.clone());
    let pool = replica(&url, clock, PoolPolicy::default(), UploadPolicy::default()).await;
    let owner = bob.key.clone();
    let revoking = tokio::spawn(async move { pool.revoke(&owner, None, Selection::All).await });
    ground.until_waiting(1).await;
    // The revocation looks for a deadlock first, and is ended.
    sqlx::query("SELECT FROM package FOR UPDATE").execute(&mut *uploading).await.unwrap();
    uploading.commit().await.unwrap();
    assert_eq!(revoking.await.unwrap().unwrap(), counts(1, 0, 0));
}

#[tokio::test]
async fn a_revoked_one_is_spent_by_the_call_that_reserved_it_and_by_no_repeat() {
    let ground = Ground::unfair().await;
    let mut bob = Device::new("bob", "phone");
    ground.stock(&mut bob, 2).await;
    let request = ask(&bob.key);
    let got = reserve(&ground.a, &adder(0), &request).await.unwrap();
    revoke(&ground.a, &bob.key, Selection::All).await;
    // While it lives, a repeated request gets the same one.
    assert_eq!(reserve(&ground.b, &adder(0), &request).await.unwrap().id, got.id);
    ground.pass(Duration::seconds(60));
    let repeated = reserve(&ground.b, &adder(0), &request).await;
    assert!(matches!(repeated, Err(Error::PoolExhausted)), "{repeated:?}");
}
