//! The same request_id gets the same reservations, whatever replica it reaches.

use keypool_service::{
    domain::{error::Error, ids::CipherSuite},
    pool::Reservation,
};
use keypool_testing::world::{World, all, ask, client, group, join_all, only, spawn};

fn same(one: &Reservation, other: &Reservation) -> bool {
    let facts = |r: &Reservation| {
        let (id, package) = (r.id.clone(), r.key_package.clone());
        (id, package, r.key_package_ref.clone(), r.not_after, r.expires_at, r.last_resort)
    };
    facts(one) == facts(other)
}

#[tokio::test]
async fn a_retry_on_another_replica_burns_nothing() {
    let world = World::new().await;
    let (bob, carol, alice) = (client("bob", "1"), client("carol", "1"), client("alice", "1"));
    world.stock(&bob, 5).await;
    world.stock_last_resort(&carol).await;
    let request = ask(&[&bob, &carol]);
    let first = all(world.a.reserve(&alice, &request).await.unwrap());
    world.pass(59);
    for pool in [&world.b, &world.a] {
        let again = all(pool.reserve(&alice, &request).await.unwrap());
        assert!(first.iter().zip(&again).all(|(one, other)| same(one, other)));
    }
    let counts = world.counts(&bob).await;
    assert_eq!((counts.available, counts.reserved), (4, 1));
    assert_eq!(world.counts(&carol).await.last_resort.unwrap().times_issued, 1);
    let drawn = "SELECT count(*) FROM event WHERE kind IN ('reserved', 'last_resort_issued')";
    assert_eq!(world.number(drawn).await, 2);

    // Another caller's request_id is another request.
    let eve = client("eve", "1");
    let others = all(world.a.reserve(&eve, &request).await.unwrap());
    assert_ne!(others[0].key_package_ref, first[0].key_package_ref);
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_calls_at_once_make_one_reservation() {
    let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
    let carol = client("carol", "1");
    world.stock(&bob, 64).await;
    world.stock_last_resort(&carol).await;
    let request = std::sync::Arc::new(ask(&[&bob, &carol]));
    let calls = (0..64).map(|n| {
        let pool = if n % 2 == 0 { world.a.clone() } else { world.b.clone() };
        let (alice, request) = (alice.clone(), request.clone());
        spawn(async move { all(pool.reserve(&alice, &request).await.unwrap()) })
    });
    let answers = join_all(calls.collect()).await;
    for place in 0..2 {
        assert!(answers.iter().all(|answer| same(&answer[place], &answers[0][place])));
    }
    assert_eq!(world.counts(&bob).await.reserved, 1);
    assert_eq!(world.counts(&carol).await.last_resort.unwrap().times_issued, 1);
}

#[tokio::test]
async fn another_group_or_suite_is_refused_and_reserves_nothing() {
    let world = World::new().await;
    let (bob, carol, alice) = (client("bob", "1"), client("carol", "1"), client("alice", "1"));
    world.stock(&bob, 2).await;
    world.stock(&carol, 1).await;
    let mut request = ask(&[&bob]);
    only(world.a.reserve(&alice, &request).await.unwrap());
    request.targets.extend(ask(&[&carol]).targets);

    request.group_id = group(2);
    let refused = world.b.reserve(&alice, &request).await;
    assert!(matches!(refused, Err(Error::RequestIdReused)));
    request.group_id = group(1);
    request.cipher_suite = CipherSuite(2);
    let refused = world.b.reserve(&alice, &request).await;
    assert!(matches!(refused, Err(Error::RequestIdReused)));
    assert_eq!(world.counts(&carol).await.available, 1);

    // The same id with more targets: what it has, and the rest.
    request.cipher_suite = CipherSuite(1);
    assert_eq!(all(world.b.reserve(&alice, &request).await.unwrap()).len(), 2);
    assert_eq!(world.counts(&bob).await.available, 1);
    // For another pool the id is free.
    request.targets = ask(&[&client("dave", "1")]).targets;
    request.group_id = group(2);
    assert!(matches!(world.a.reserve(&alice, &request).await, Err(Error::PoolExhausted)));
}

#[tokio::test]
async fn once_settled_or_lapsed_the_id_makes_a_new_reservation() {
    for last_resort in [false, true] {
        let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
        if last_resort {
            world.stock_last_resort(&bob).await;
        } else {
            world.stock(&bob, 4).await;
        }
        let request = ask(&[&bob]);
        let reserve = async || only(world.b.reserve(&alice, &request).await.unwrap());
        let mut ids = Vec::new();

        let spent = reserve().await;
        world.spend(&alice, &[&spent.id]).await.unwrap();
        ids.push(spent.id);
        let released = reserve().await;
        world.release(&alice, &[&released.id]).await.unwrap();
        ids.push(released.id);
        let lapsed = reserve().await;
        assert_eq!(reserve().await.id, lapsed.id);
        world.pass(60);
        ids.push(lapsed.id);
        let swept = reserve().await;
        world.pass(60);
        world.sweep().await;
        ids.push(swept.id);
        let last = reserve().await;
        assert_eq!(last.last_resort, last_resort);
        ids.push(last.id);
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 5);
    }
}

#[tokio::test]
async fn a_replaced_last_resort_package_is_not_issued_again_under_the_same_id() {
    let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
    world.stock_last_resort(&bob).await;
    let request = ask(&[&bob]);
    let old = only(world.a.reserve(&alice, &request).await.unwrap());
    let newer = world.stock_last_resort(&bob).await;
    let new = only(world.a.reserve(&alice, &request).await.unwrap());
    assert_eq!(new.key_package_ref, newer);
    world.spend(&alice, &[&old.id, &new.id]).await.unwrap();
}
