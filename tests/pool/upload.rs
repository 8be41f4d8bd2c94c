//! What a pool takes in, given what was published before.

use keypool_service::{
    domain::{
        ids::CipherSuite,
        key_package::RejectReason::{
            AlreadyUsed, DuplicateInRequest, InvalidInitKey, OwnedByAnotherClient, PoolFull,
        },
        policy::PoolPolicy,
    },
    pool::UploadMode,
};
use keypool_testing::{
    forge::{Forge, NOW},
    world::{World, ask, client, join_all, last_resort, package, spawn, stored, verdict},
};

#[tokio::test]
async fn a_retry_finds_everything_already_present() {
    let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
    let batch = vec![package(&bob).build(), package(&bob).build(), last_resort(&bob).build()];
    for result in world.upload(&bob, batch.clone()).await {
        stored(result);
    }
    world.reserve(&alice, &bob).await;
    let again = world.b.upload(&bob, batch, UploadMode::Add).await.unwrap().0;
    assert_eq!(again.iter().map(verdict).collect::<Vec<_>>(), [Ok(true); 3]);
    assert_eq!(world.number("SELECT count(*) FROM event WHERE kind = 'uploaded'").await, 3);
    let counts = world.counts(&bob).await;
    assert_eq!((counts.available, counts.reserved), (1, 1));
}

#[tokio::test]
async fn what_ended_never_comes_back() {
    let (world, bob, alice) = (World::burning().await, client("bob", "1"), client("alice", "1"));
    let batch = vec![
        package(&bob).lifetime(NOW - 60, NOW + 10_000).build(),
        package(&bob).lifetime(NOW - 60, NOW + 10_001).build(),
        last_resort(&bob).build(),
    ];
    for result in world.upload(&bob, batch.clone()).await {
        stored(result);
    }
    let spent = world.reserve(&alice, &bob).await;
    world.spend(&alice, &[&spent.id]).await.unwrap();
    let _burned = world.reserve(&alice, &bob).await;
    world.pass(60);
    assert_eq!(world.sweep().await.lapsed, 1);
    world.stock_last_resort(&bob).await;

    let again = world.upload(&bob, batch).await;
    assert_eq!(again.iter().map(verdict).collect::<Vec<_>>(), [Err(AlreadyUsed); 3]);
    assert_eq!(world.counts(&bob).await.available, 0);
}

#[tokio::test]
async fn a_package_belongs_to_the_client_that_published_it_first() {
    let world = World::new().await;
    let (phone, laptop) = (client("bob", "phone"), client("bob", "laptop"));
    let batch = vec![package(&phone).build(), last_resort(&phone).build()];
    world.upload(&phone, batch.clone()).await;
    let stolen = world.upload(&laptop, batch).await;
    assert_eq!(stolen.iter().map(verdict).collect::<Vec<_>>(), [Err(OwnedByAnotherClient); 2]);
    assert_eq!(world.number("SELECT count(*) FROM published").await, 2);
}

#[tokio::test]
async fn an_init_key_serves_once_in_whatever_role_and_suite_stock() {
    let world = World::new().await;
    let (phone, laptop) = (client("bob", "phone"), client("bob", "laptop"));
    let one_time = package(&phone);
    let last = last_resort(&phone);
    let with_key = |forge: Forge, key: &Forge| forge.with(|f| f.init_key = key.init_key.clone());
    let init_keys = [one_time.build(), last.build()];
    for result in world.upload(&phone, init_keys.to_vec()).await {
        stored(result);
    }
    let reused = [with_key(package(&phone), &one_time), with_key(last_resort(&phone), &one_time)];
    let also_reused = [with_key(package(&phone), &last), with_key(last_resort(&phone), &last)];
    for batch in [&reused[..1], &reused[1..], &also_reused[..1], &also_reused[1..]] {
        let results = world.upload(&phone, batch.iter().map(Forge::build).collect()).await;
        assert_eq!(verdict(&results[0]), Err(InvalidInitKey));
    }
    // Per client: nobody can block another's keys, which are public.
    let others = world.upload(&laptop, vec![with_key(package(&laptop), &one_time).build()]).await;
    assert_eq!(verdict(&others[0]), Ok(false));

    // Spent, its init_key is still used up.
    let alice = client("alice", "1");
    let got = world.reserve(&alice, &phone).await;
    world.spend(&alice, &[&got.id]).await.unwrap();
    let late = world.upload(&phone, vec![with_key(package(&phone), &one_time).build()]).await;
    assert_eq!(verdict(&late[0]), Err(InvalidInitKey));
}

#[tokio::test]
async fn the_hard_cap_holds_for_each_suite_and_leaves_the_last_resort_out() {
    let world = World::with(PoolPolicy { hard_cap: 3, ..PoolPolicy::default() }).await;
    let (bob, alice) = (client("bob", "1"), client("alice", "1"));
    world.stock(&bob, 2).await;
    world.reserve(&alice, &bob).await; // reserved ones count
    let other_suite = || Forge::new(2, "bob").build();
    let batch = vec![
        last_resort(&bob).build(),
        package(&bob).build(),
        other_suite(),
        package(&bob).build(),
        other_suite(),
        other_suite(),
        other_suite(),
    ];
    let results = world.upload(&bob, batch).await;
    let full = Err(PoolFull);
    assert_eq!(
        results.iter().map(verdict).collect::<Vec<_>>(),
        [Ok(false), Ok(false), Ok(false), full, Ok(false), Ok(false), full]
    );
    // The last resort package may still be replaced, and a retry is still a success.
    world.stock_last_resort(&bob).await;
    // What expired makes room, swept or not.
    world.pass(31 * 86_400);
    let forged = package(&bob).valid_around(world.now()).build();
    let results = world.upload(&bob, vec![forged]).await;
    assert_eq!(verdict(&results[0]), Ok(false));
    let counts = world.counts(&bob).await;
    assert_eq!((counts.available, counts.expired, counts.spent), (1, 3, 0));
}

#[tokio::test]
async fn duplicates_and_refusals_leave_the_valid_ones_stored() {
    let (world, bob) = (World::new().await, client("bob", "1"));
    let one = package(&bob);
    let same_key = package(&bob).with(|f| f.init_key = one.init_key.clone());
    let expired = package(&bob).lifetime(0, 1).build();
    let batch = vec![
        one.build(),
        b"garbage".to_vec(),
        one.build(),
        same_key.build(),
        expired,
        package(&bob).build(),
    ];
    let results = world.upload(&bob, batch).await;
    let verdicts: Vec<_> = results.iter().map(verdict).collect();
    assert_eq!(verdicts[0], Ok(false));
    assert_eq!(verdicts[2..4], [Err(DuplicateInRequest); 2]);
    assert!(verdicts[1].is_err() && verdicts[4].is_err());
    assert_eq!(verdicts[5], Ok(false));
    assert_eq!(world.counts(&bob).await.available, 2);
}

#[tokio::test]
async fn a_newer_last_resort_replaces_the_older_one_at_once() {
    let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
    let first = world.stock_last_resort(&bob).await;
    let held = world.reserve(&alice, &bob).await;
    assert_eq!(world.counts(&bob).await.last_resort.unwrap().times_issued, 1);
    // Two in one request: the later one stays.
    let batch = vec![last_resort(&bob).build(), last_resort(&bob).build()];
    let refs: Vec<_> = world.upload(&bob, batch).await.into_iter().map(stored).collect();

    let status = world.counts(&bob).await.last_resort.unwrap();
    assert_eq!((&status.key_package_ref, status.times_issued), (&refs[1], 0));
    assert_eq!(world.reserve(&alice, &bob).await.key_package_ref, refs[1]);
    assert_eq!(world.number("SELECT count(*) FROM last_resort").await, 1);
    assert_eq!(world.events(&first).await, ["uploaded", "last_resort_issued", "revoked"]);
    assert_eq!(world.events(&refs[0]).await, ["uploaded", "revoked"]);
    // What was granted may still be spent.
    let spent = world.spend(&alice, &[&held.id]).await.unwrap();
    assert_eq!(spent[0].key_package_ref, first);
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_of_one_client_at_once_keep_to_the_cap_and_to_one_of_each() {
    let (world, bob) = (World::new().await, client("bob", "1"));
    let packages: Vec<Vec<u8>> = (0..80).map(|_| package(&bob).build()).collect();
    let uploads = (0..8).map(|n| {
        let pool = if n % 2 == 0 { world.a.clone() } else { world.b.clone() };
        let (bob, mut packages) = (bob.clone(), packages.clone());
        packages.rotate_left(n * 10);
        spawn(async move { pool.upload(&bob, packages, UploadMode::Add).await.unwrap().0 })
    });
    let results = join_all(uploads.collect()).await;
    let fresh = results.iter().flatten().filter(|r| verdict(r) == Ok(false)).count();
    assert_eq!(fresh, 64);
    let full = results.iter().flatten().filter(|r| verdict(r) == Err(PoolFull)).count();
    assert_eq!(full, 8 * 16);
    assert_eq!(world.counts(&bob).await.available, 64);
    assert_eq!(world.number("SELECT count(*) FROM published").await, 64);
    assert_eq!(world.number("SELECT last_seq FROM pool_suite").await, 64);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clients_of_one_user_never_both_get_the_same_package() {
    let world = World::new().await;
    let (phone, laptop) = (client("bob", "phone"), client("bob", "laptop"));
    let mut packages: Vec<Vec<u8>> = (0..20).map(|_| package(&phone).build()).collect();
    let mut calls = Vec::new();
    for (pool, owner) in [(&world.a, &phone), (&world.b, &laptop)] {
        let (pool, owner, packages) = (pool.clone(), owner.clone(), packages.clone());
        calls.push(spawn(async move {
            pool.upload(&owner, packages, UploadMode::Add).await.unwrap().0
        }));
    }
    packages.reverse();
    for (pool, owner) in [(&world.b, &phone), (&world.a, &laptop)] {
        let (pool, owner, packages) = (pool.clone(), owner.clone(), packages.clone());
        calls.push(spawn(async move {
            pool.upload(&owner, packages, UploadMode::Add).await.unwrap().0
        }));
    }
    let results = join_all(calls).await;
    let verdicts = || results.iter().flatten().map(verdict);
    assert_eq!(verdicts().filter(|v| *v == Ok(false)).count(), 20);
    assert_eq!(verdicts().filter(|v| *v == Ok(true)).count(), 20);
    assert_eq!(verdicts().filter(|v| *v == Err(OwnedByAnotherClient)).count(), 40);
    assert_eq!(world.number("SELECT count(DISTINCT pool_id) FROM package").await, 1);
    assert_eq!(world.number("SELECT count(*) FROM package").await, 20);
}

#[tokio::test]
async fn the_status_has_each_suite_and_the_packages_do_not_mix() {
    let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
    world.stock(&bob, 1).await;
    world.upload(&bob, vec![Forge::new(2, "bob").build(), Forge::new(2, "bob").build()]).await;
    let mut request = ask(&[&bob]);
    request.cipher_suite = CipherSuite(2);
    world.a.reserve(&alice, &request).await.unwrap();
    let status = world.a.status(&bob).await.unwrap();
    let counts = status
        .cipher_suites
        .iter()
        .map(|s| (s.counts.cipher_suite.0, s.counts.available, s.counts.reserved));
    assert_eq!(counts.collect::<Vec<_>>(), [(1, 1, 0), (2, 1, 1)]);
}

/// Packages of one call follow each other, also where one of them is there already.
#[tokio::test]
async fn a_last_resort_that_the_same_call_replaced_is_not_present() {
    let (world, bob) = (World::new().await, client("bob", "1"));
    let (old, new, newest) = (last_resort(&bob), last_resort(&bob), last_resort(&bob));
    stored(world.upload(&bob, vec![old.build()]).await.remove(0));
    let verdicts = async |packages: [&Forge; 2]| {
        let packages = packages.map(Forge::build).to_vec();
        world.upload(&bob, packages).await.iter().map(verdict).collect::<Vec<_>>()
    };
    for _ in 0..2 {
        let again = verdicts([&new, &old]).await;
        assert_eq!(again[1], Err(AlreadyUsed));
        assert!(again[0].is_ok());
    }
    assert_eq!(verdicts([&new, &newest]).await, [Ok(true), Ok(false)]);
}
