//! Uploads of one client take turns; an upload and the sweeper end a package once.

use keypool_service::{
    domain::{ids::ClientKey, key_package::RejectReason, policy::PoolPolicy},
    pool::{UploadMode, UploadResult},
};
use keypool_testing::{
    forge::{Forge, NOW},
    world::{World, client, join, last_resort, package, run, spawn, stored, verdict},
};
use tokio::task::JoinHandle;

fn uploading(
    world: &World,
    owner: &ClientKey,
    packages: Vec<Vec<u8>>,
) -> JoinHandle<Vec<UploadResult>> {
    uploading_as(UploadMode::Add, world, owner, packages)
}

fn uploading_as(
    mode: UploadMode,
    world: &World,
    owner: &ClientKey,
    packages: Vec<Vec<u8>>,
) -> JoinHandle<Vec<UploadResult>> {
    let (pool, owner) = (world.b.clone(), owner.clone());
    spawn(async move { pool.upload(&owner, packages, mode).await.unwrap().0 })
}

#[tokio::test]
async fn uploads_of_one_client_take_turns_and_keep_to_the_cap() {
    let (world, bob) = (World::new().await, client("bob", "1"));
    world.stock(&bob, 1).await;
    let by_hand = world.by_hand(&["SELECT FROM pool FOR UPDATE"]).await;
    let batch = || (0..40).map(|_| package(&bob).build()).collect();
    let calls = [uploading(&world, &bob, batch()), uploading(&world, &bob, batch())];
    world.until_waiting(2).await;
    // Another client's upload is not held up.
    stored(world.upload(&client("bob", "2"), vec![package(&bob).build()]).await.remove(0));
    by_hand.commit().await.unwrap();
    let [one, other] = calls;
    let results = [join(one).await, join(other).await].into_iter().flatten();
    assert_eq!(results.filter(|r| verdict(r) == Ok(false)).count(), 63);
    assert_eq!(world.counts(&bob).await.available, 64);
}

#[tokio::test]
async fn the_same_batch_twice_at_once_is_stored_once() {
    let (world, bob) = (World::new().await, client("bob", "1"));
    world.stock(&bob, 1).await;
    let batch = vec![package(&bob).build(), last_resort(&bob).build()];
    let by_hand = world.by_hand(&["SELECT FROM pool FOR UPDATE"]).await;
    let calls = [(); 2].map(|()| uploading(&world, &bob, batch.clone()));
    world.until_waiting(2).await;
    by_hand.commit().await.unwrap();
    let [one, other] = calls;
    let mut verdicts = [join(one).await, join(other).await]
        .map(|results| results.iter().map(verdict).collect::<Vec<_>>());
    verdicts.sort_unstable_by_key(|v| v[0].unwrap());
    assert_eq!(verdicts, [[Ok(false); 2], [Ok(true); 2]]);
}

/// A last resort package that the sweeper ends while an upload replaces it ends once.
#[tokio::test]
async fn a_last_resort_package_ends_once() {
    let (world, bob) = (World::new().await, client("bob", "1"));
    let forged = last_resort(&bob).lifetime(NOW - 60, NOW + 60).build();
    let old = stored(world.upload(&bob, vec![forged]).await.remove(0));
    world.pass(60);
    // The sweeper was first.
    let sweeper = world
        .by_hand(&["WITH gone AS (DELETE FROM last_resort RETURNING *)
            INSERT INTO event (bucket, pool_id, at, cipher_suite, seq, generation, kind,
                               key_package_ref)
            SELECT bucket, pool_id, not_after, cipher_suite, seq, 0, 'expired', key_package_ref
            FROM gone"])
        .await;
    let newer = last_resort(&bob).lifetime(NOW - 60, NOW + 120).build();
    let upload = uploading(&world, &bob, vec![newer]);
    world.until_waiting(1).await;
    sweeper.commit().await.unwrap();
    let newer = stored(join(upload).await.remove(0));
    assert_eq!(world.events(&old).await, ["uploaded", "expired"]);

    // The upload was first: the sweeper does not wait for it.
    world.pass(60);
    let upload = world.by_hand(&["SELECT FROM last_resort FOR UPDATE"]).await;
    let pool = world.b.clone();
    let sweep = spawn(async move { pool.sweep(&Default::default()).await.unwrap() });
    assert_eq!(join(sweep).await.expired, 0);
    upload.commit().await.unwrap();
    assert_eq!(world.sweep().await.expired, 1);
    assert_eq!(world.events(&newer).await, ["uploaded", "expired"]);
}

/// An upload that ends expired packages of one suite and stores some of another counts in the
/// order of the suites, as the sweeper does.
#[tokio::test]
async fn an_upload_counts_in_the_order_of_the_suites() {
    let (world, bob) = (World::new().await, client("bob", "1"));
    let expiring = Forge::new(2, "bob").lifetime(NOW - 60, NOW + 60).build();
    for result in world.upload(&bob, vec![expiring, package(&bob).build()]).await {
        stored(result);
    }
    world.pass(60);
    let first = "SELECT FROM pool_suite WHERE cipher_suite = 1 FOR UPDATE";
    let mut sweeper = world.by_hand(&[first]).await;
    let upload = uploading(&world, &bob, vec![package(&bob).build()]);
    world.until_waiting(1).await;
    let second = "SELECT FROM pool_suite WHERE cipher_suite = 2 FOR UPDATE NOWAIT";
    run(&mut sweeper, second).await;
    sweeper.commit().await.unwrap();
    stored(join(upload).await.remove(0));
    let status = world.a.status(&bob).await.unwrap();
    let counts = status.cipher_suites.iter().map(|s| (s.counts.available, s.counts.expired));
    assert_eq!(counts.collect::<Vec<_>>(), [(2, 0), (0, 1)]);
}

/// An upload that replaces packages waits for those that others hold before it counts anything,
/// for the others count after they have locked a package.
#[tokio::test]
async fn a_replacing_upload_locks_packages_before_it_counts() {
    let (world, bob) = (World::new().await, client("bob", "1"));
    world.stock(&bob, 2).await;
    let mut sweeper = world.by_hand(&["SELECT FROM package WHERE seq = 2 FOR UPDATE"]).await;
    let replace = UploadMode::ReplaceOtherCredentials;
    let upload = uploading_as(replace, &world, &bob, vec![package(&bob).build()]);
    world.until_waiting(1).await;
    run(&mut sweeper, "SELECT FROM pool_suite FOR UPDATE NOWAIT").await;
    sweeper.commit().await.unwrap();
    stored(join(upload).await.remove(0));
    assert_eq!(world.counts(&bob).await.available, 1);
    assert_eq!(world.number("SELECT revoked FROM pool_suite").await, 2);
}

/// Whoever settles what has expired has it locked: it is not ended then, and takes no room.
#[tokio::test]
async fn what_expired_takes_no_room_while_somebody_looks_at_it() {
    let world = World::with(PoolPolicy { hard_cap: 2, ..PoolPolicy::default() }).await;
    let bob = client("bob", "1");
    world.stock(&bob, 2).await;
    world.pass(31 * 86_400);
    let by_hand = world.by_hand(&["SELECT FROM package FOR UPDATE"]).await;
    let fresh = || package(&bob).valid_around(world.now()).build();
    let results = world.upload(&bob, vec![fresh(), fresh(), fresh()]).await;
    assert_eq!(
        results.iter().map(verdict).collect::<Vec<_>>(),
        [Ok(false), Ok(false), Err(RejectReason::PoolFull)]
    );
    by_hand.commit().await.unwrap();
    assert_eq!(world.sweep().await.expired, 2);
}
