//! In which order packages are issued.

use keypool_service::domain::ids::{ClientKey, KeyPackageRef};
use keypool_testing::{
    forge::NOW,
    world::{World, client, last_resort, package, stored},
};

/// Stores packages with these lifetimes left, in seconds, and answers their refs.
async fn stock(world: &World, owner: &ClientKey, lifetimes: &[u64]) -> Vec<KeyPackageRef> {
    let forged = lifetimes.iter().map(|left| package(owner).lifetime(NOW - 60, NOW + left).build());
    world.upload(owner, forged.collect()).await.into_iter().map(stored).collect()
}

#[tokio::test]
async fn soonest_to_expire_first_among_those_with_enough_lifetime() {
    let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
    let refs = stock(&world, &bob, &[9000, 3599, 7000, 3600, 8000]).await;
    for expected in [3, 2, 4, 0] {
        let got = world.reserve(&alice, &bob).await;
        assert_eq!((got.key_package_ref, got.last_resort), (refs[expected].clone(), false));
    }
    assert_eq!(world.counts(&bob).await.reserved, 4);
}

#[tokio::test]
async fn what_came_back_is_issued_after_what_was_never_issued_and_before_the_last_resort() {
    let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
    let last = world.stock_last_resort(&bob).await;
    let refs = stock(&world, &bob, &[10_000, 10_001, 10_002, 10_003]).await;
    let lapsing = world.reserve(&alice, &bob).await;
    let released = world.reserve(&alice, &bob).await;
    assert_eq!(lapsing.key_package_ref, refs[0]);
    assert_eq!(released.key_package_ref, refs[1]);
    world.release(&alice, &[&released.id]).await.unwrap();
    world.pass(60);

    let mut order = Vec::new();
    for _ in 0..5 {
        order.push(world.reserve(&alice, &bob).await.key_package_ref);
    }
    // The lapsed one comes back whether the sweeper saw it or not.
    assert_eq!(order, [&refs[2], &refs[3], &refs[0], &refs[1], &last].map(Clone::clone));
}

#[tokio::test]
async fn a_swept_lapse_changes_nothing_about_the_order() {
    let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
    let refs = stock(&world, &bob, &[10_000, 10_001]).await;
    world.reserve(&alice, &bob).await;
    world.pass(60);
    assert_eq!(world.sweep().await.lapsed, 1);
    for expected in [1, 0] {
        assert_eq!(world.reserve(&alice, &bob).await.key_package_ref, refs[expected]);
    }
}

#[tokio::test]
async fn too_short_a_lifetime_is_never_issued_whatever_the_role_or_the_history() {
    let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
    stock(&world, &bob, &[3660, 3660, 3660]).await;
    let forged = last_resort(&bob).lifetime(NOW - 60, NOW + 3661).build();
    let last = stored(world.upload(&bob, vec![forged]).await.remove(0));
    let released = world.reserve(&alice, &bob).await;
    let lapsing = world.reserve(&alice, &bob).await;
    world.release(&alice, &[&released.id]).await.unwrap();
    assert!(!lapsing.last_resort);
    // A second short of the minimum: none of the three one-time packages; still the last resort.
    world.pass(61);
    assert_eq!(world.reserve(&alice, &bob).await.key_package_ref, last);
    world.pass(1);
    let refused = world.a.reserve(&alice, &keypool_testing::world::ask(&[&bob])).await;
    assert!(matches!(refused, Err(keypool_service::domain::error::Error::PoolExhausted)));
}
