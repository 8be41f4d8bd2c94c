//! A lapse while its reservation is being spent, or its package reserved again, has one of two
//! outcomes, and both are consistent.

use keypool_service::domain::error::Error;
use keypool_testing::world::{World, ask, client, group, join, only, run, spawn};

/// The sweeper passes over a package that a Spend holds, by either policy, and the Spend that
/// came first has it.
#[tokio::test]
async fn the_sweeper_does_not_wait_for_a_spend() {
    for world in [World::new().await, World::burning().await] {
        let (bob, alice) = (client("bob", "1"), client("alice", "1"));
        let refs = world.stock(&bob, 2).await;
        let one = world.reserve(&alice, &bob).await;
        let two = world.reserve(&alice, &bob).await;
        world.pass(60);
        let spend = world.by_hand(&["SELECT FROM package WHERE seq = 1 FOR UPDATE"]).await;
        let pool = world.b.clone();
        let sweep = spawn(async move { pool.sweep(&Default::default()).await.unwrap() });
        assert_eq!(join(sweep).await.lapsed, 1);
        assert!(!world.events(&refs[0]).await.contains(&"lapsed".to_owned()));
        // The Spend did not go through after all: the next sweep has it.
        spend.rollback().await.unwrap();
        assert_eq!(world.sweep().await.lapsed, 1);
        world.spend(&alice, &[&one.id, &two.id]).await.unwrap();
        assert_eq!(world.counts(&bob).await.spent, 2);
    }
}

/// The other order: the Spend waits for the sweeper, then it is a late one.
#[tokio::test]
async fn a_spend_that_meets_the_sweeper_is_a_late_one() {
    let burn = "WITH k AS (DELETE FROM package RETURNING *),
         counted AS (UPDATE pool_suite SET burned = burned + 1)
         INSERT INTO tombstone SELECT bucket, pool_id, cipher_suite, seq, key_package_ref,
             'burned', generation, holder, group_id, now() FROM k";
    let give_back = "UPDATE package SET state = 'available', returned = 'lapsed'";
    for (world, sweeper) in [(World::new().await, give_back), (World::burning().await, burn)] {
        let (bob, alice) = (client("bob", "1"), client("alice", "1"));
        world.stock(&bob, 1).await;
        let held = world.reserve(&alice, &bob).await;
        world.pass(60);
        let sweep = world.by_hand(&[sweeper]).await;
        let (pool, alice) = (world.b.clone(), alice.clone());
        let spend = spawn(async move { pool.spend(&alice, &[held.id], &group(1)).await });
        world.until_waiting(1).await;
        sweep.commit().await.unwrap();
        assert!(!join(spend).await.unwrap()[0].already);
        let counts = world.counts(&bob).await;
        assert_eq!((counts.available, counts.spent), (0, 1));
        assert_eq!(world.number("SELECT burned FROM pool_suite").await, 0);
    }
}

/// A Reserve does not take the lapsed package that a Spend holds, nor does it call the pool
/// exhausted or fall back to the last resort for it.
#[tokio::test]
async fn a_reserve_leaves_a_package_to_the_spend_that_holds_it() {
    let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
    let eve = client("eve", "1");
    world.stock(&bob, 1).await;
    world.stock_last_resort(&bob).await;
    let held = world.reserve(&alice, &bob).await;
    world.pass(60);
    let spend = world.by_hand(&["SELECT FROM package FOR UPDATE"]).await;
    assert!(matches!(world.b.reserve(&eve, &ask(&[&bob])).await, Err(Error::Overloaded)));
    assert_eq!(world.number("SELECT count(*) FROM last_resort_grant").await, 0);
    spend.rollback().await.unwrap();
    let taken = world.reserve(&eve, &bob).await;
    assert_eq!(taken.key_package_ref, held.key_package_ref);
    assert!(matches!(world.spend(&alice, &[&held.id]).await, Err(Error::ReservationLost)));
}

/// A draw that another call has locked is neither waited for nor lost.
#[tokio::test]
async fn the_sweeper_does_not_wait_for_a_draw_and_comes_back_to_it() {
    let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
    world.stock(&bob, 2).await;
    world.reserve(&alice, &bob).await;
    let mut longer = ask(&[&bob]);
    longer.ttl = Some(time::Duration::seconds(300));
    only(world.a.reserve(&alice, &longer).await.unwrap());
    world.pass(60);
    let repeated = world.by_hand(&["SELECT FROM draw FOR UPDATE"]).await;
    let pool = world.b.clone();
    let sweep = spawn(async move { pool.sweep(&Default::default()).await.unwrap() });
    assert_eq!(join(sweep).await.lapsed, 1);
    repeated.rollback().await.unwrap();
    world.pass(10);
    assert_eq!(world.sweep().await.lapsed, 0);
    world.pass(230);
    assert_eq!(world.sweep().await.lapsed, 1);
}

/// What counts in several pools does so in the order of the key: while it waits for the first
/// pool, it has none of the others.
#[tokio::test]
async fn burns_and_late_spends_count_in_one_order() {
    let (world, alice) = (World::burning().await, client("alice", "1"));
    let owners: Vec<_> = (0..12).map(|n| client("bob", &n.to_string())).collect();
    let mut ids = Vec::new();
    for owner in &owners {
        world.stock(owner, 1).await;
        ids.push(world.reserve(&alice, owner).await.id);
    }
    ids.sort_unstable();
    world.pass(60);
    let first = "SELECT FROM pool_suite WHERE pool_id = (SELECT min(pool_id) FROM pool) FOR UPDATE";
    let others = "SELECT FROM pool_suite WHERE pool_id > (SELECT min(pool_id) FROM pool)
                  FOR UPDATE NOWAIT";

    let mut by_hand = world.by_hand(&[first]).await;
    let pool = world.b.clone();
    let sweep = spawn(async move { pool.sweep(&Default::default()).await.unwrap().lapsed });
    world.until_waiting(1).await;
    run(&mut by_hand, others).await;
    by_hand.commit().await.unwrap();
    assert_eq!(join(sweep).await, 12);

    let mut by_hand = world.by_hand(&[first]).await;
    let pool = world.b.clone();
    let spend = spawn(async move { pool.spend(&alice, &ids, &group(1)).await.unwrap().len() });
    world.until_waiting(1).await;
    run(&mut by_hand, others).await;
    by_hand.commit().await.unwrap();
    assert_eq!(join(spend).await, 12);
    assert_eq!(world.number("SELECT sum(burned)::bigint FROM pool_suite").await, 0);
}
