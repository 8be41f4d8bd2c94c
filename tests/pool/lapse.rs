//! What becomes of reservations whose time is over, by either policy.

use keypool_service::domain::error::Error;
use keypool_testing::world::{World, client, group};

#[tokio::test]
async fn by_policy_return_the_holder_may_spend_until_the_package_is_issued_again() {
    for swept in [false, true] {
        let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
        let eve = client("eve", "1");
        let refs = world.stock(&bob, 2).await;
        let one = world.reserve(&alice, &bob).await;
        let two = world.reserve(&alice, &bob).await;
        world.pass(60);
        let counts = world.counts(&bob).await;
        assert_eq!((counts.available, counts.reserved), (2, 0));
        if swept {
            assert_eq!(world.sweep().await.lapsed, 2);
            assert_eq!(world.sweep().await.lapsed, 0);
        }
        // Late, for its group alone.
        let refused = world.a.spend(&alice, std::slice::from_ref(&one.id), &group(2)).await;
        assert!(matches!(refused, Err(Error::GroupMismatch)));
        assert!(!world.spend(&alice, &[&one.id]).await.unwrap()[0].already);
        assert!(world.spend(&alice, &[&one.id]).await.unwrap()[0].already);
        let taken = world.reserve(&eve, &bob).await;
        assert_eq!(taken.key_package_ref, refs[1]);
        assert!(matches!(world.spend(&alice, &[&two.id]).await, Err(Error::ReservationLost)));
        world.spend(&eve, &[&taken.id]).await.unwrap();
        assert!(matches!(world.spend(&alice, &[&two.id]).await, Err(Error::ReservationLost)));

        let first = ["uploaded", "reserved", "lapsed", "spent"].map(str::to_owned);
        let first: Vec<_> = first.into_iter().filter(|kind| swept || kind != "lapsed").collect();
        assert_eq!(world.events(&refs[0]).await, first);
        assert_eq!(
            world.events(&refs[1]).await,
            ["uploaded", "reserved", "lapsed", "reserved", "spent"]
        );
        assert_eq!(world.counts(&bob).await.spent, 2);
    }
}

#[tokio::test]
async fn by_policy_burn_nobody_gets_it_and_a_late_spend_is_recorded() {
    let (world, bob, alice) = (World::burning().await, client("bob", "1"), client("alice", "1"));
    let eve = client("eve", "1");
    let refs = world.stock(&bob, 3).await;
    let one = world.reserve(&alice, &bob).await;
    let two = world.reserve(&alice, &bob).await;
    let three = world.reserve(&alice, &bob).await;
    world.pass(60);
    let refused = world.a.reserve(&eve, &keypool_testing::world::ask(&[&bob])).await;
    assert!(matches!(refused, Err(Error::PoolExhausted)));
    // Before the sweeper came, and after.
    assert!(!world.spend(&alice, &[&one.id]).await.unwrap()[0].already);
    assert_eq!(world.sweep().await.lapsed, 2);
    let counts = world.counts(&bob).await;
    assert_eq!((counts.available, counts.reserved, counts.spent), (0, 0, 1));
    let refused = world.a.spend(&alice, std::slice::from_ref(&two.id), &group(2)).await;
    assert!(matches!(refused, Err(Error::GroupMismatch)));
    assert!(!world.spend(&alice, &[&two.id]).await.unwrap()[0].already);
    assert!(world.spend(&alice, &[&two.id]).await.unwrap()[0].already);
    assert_eq!(world.counts(&bob).await.spent, 2);
    // To release what burned does nothing.
    assert!(world.release(&alice, &[&three.id]).await.unwrap()[0].already);
    assert_eq!(world.events(&refs[0]).await, ["uploaded", "reserved", "spent"]);
    assert_eq!(world.events(&refs[1]).await, ["uploaded", "reserved", "burned", "spent"]);
    assert_eq!(world.events(&refs[2]).await, ["uploaded", "reserved", "burned"]);
    assert_eq!(world.number("SELECT burned FROM pool_suite").await, 1);
}

#[tokio::test]
async fn by_policy_burn_a_release_after_the_lapse_brings_nothing_back() {
    let (world, bob, alice) = (World::burning().await, client("bob", "1"), client("alice", "1"));
    world.stock(&bob, 1).await;
    let held = world.reserve(&alice, &bob).await;
    world.pass(60);
    assert!(world.release(&alice, &[&held.id]).await.unwrap()[0].already);
    assert_eq!(world.counts(&bob).await.available, 0);
    assert_eq!(world.sweep().await.lapsed, 1);
}

#[tokio::test]
async fn a_reservation_lives_to_the_instant_of_its_expiry() {
    let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
    world.stock(&bob, 1).await;
    let held = world.reserve(&alice, &bob).await;
    world.pass(59);
    assert_eq!(world.sweep().await.lapsed, 0);
    assert_eq!(world.counts(&bob).await.reserved, 1);
    let request = keypool_testing::world::ask(&[&bob]);
    let refused = world.a.reserve(&client("eve", "1"), &request).await;
    assert!(matches!(refused, Err(Error::PoolExhausted)));
    world.pass(1);
    assert_eq!(world.sweep().await.lapsed, 1);
    assert_eq!(world.counts(&bob).await.available, 1);
    world.spend(&alice, &[&held.id]).await.unwrap();
}

#[tokio::test]
async fn an_expired_package_cannot_be_spent_once_it_was_swept() {
    let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
    let refs = world.stock(&bob, 2).await;
    let one = world.reserve(&alice, &bob).await;
    let two = world.reserve(&alice, &bob).await;
    world.pass(31 * 86_400);
    world.spend(&alice, &[&one.id]).await.unwrap();
    assert_eq!(world.sweep().await.expired, 1);
    assert!(matches!(world.spend(&alice, &[&two.id]).await, Err(Error::ReservationLost)));
    assert!(world.release(&alice, &[&two.id]).await.unwrap()[0].already);
    assert_eq!(world.events(&refs[1]).await.last().unwrap(), "expired");
}
