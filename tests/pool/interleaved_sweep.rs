//! The sweeper passes over what other statements have in hand, and finds it the next time.

use keypool_service::pool::{KeyPool, SweepPolicy, SweepReport};
use keypool_testing::world::{World, client, join, run, spawn};
use tokio::task::JoinHandle;

const DAY: i64 = 86_400;

fn sweeping(pool: &KeyPool) -> JoinHandle<SweepReport> {
    let pool = pool.clone();
    spawn(async move { pool.sweep(&SweepPolicy::default()).await.unwrap() })
}

/// Sweeps while somebody has these rows locked, then when they have not.
async fn sweep_around(world: &World, lock: &str) -> [SweepReport; 2] {
    let by_hand = world.by_hand(&[lock]).await;
    let first = join(sweeping(&world.b)).await;
    by_hand.rollback().await.unwrap();
    [first, join(sweeping(&world.b)).await]
}

#[tokio::test]
async fn an_expired_package_that_is_being_spent_is_passed_over() {
    let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
    world.stock(&bob, 3).await;
    world.reserve(&alice, &bob).await;
    world.pass(31 * DAY);
    let lock = "SELECT FROM package WHERE generation > 0 FOR UPDATE";
    let [first, second] = sweep_around(&world, lock).await;
    assert_eq!((first.expired, second.expired), (2, 1));
    assert_eq!(world.counts(&bob).await.expired, 3);
}

#[tokio::test]
async fn refs_that_another_sweeper_forgets_are_passed_over() {
    let (world, bob) = (World::new().await, client("bob", "1"));
    world.stock(&bob, 3).await;
    world.pass(32 * DAY);
    world.sweep().await;
    world.stock(&bob, 3).await;
    world.pass(32 * DAY);
    let lock = "SELECT FROM published WHERE seq = 4 FOR UPDATE";
    let [first, second] = sweep_around(&world, lock).await;
    assert_eq!((first.forgotten, second.forgotten), (2, 1));
    assert_eq!(world.number("SELECT count(*) FROM published").await, 0);
}

#[tokio::test]
async fn draws_and_grants_in_use_are_passed_over() {
    let (world, bob) = (World::new().await, client("bob", "1"));
    world.stock_last_resort(&bob).await;
    for n in 0..3 {
        world.reserve(&client(&format!("adder-{n}"), "1"), &bob).await;
    }
    world.pass(2 * DAY);
    let lock = "WITH d AS (SELECT FROM draw LIMIT 1 FOR UPDATE),
                     g AS (SELECT FROM last_resort_grant LIMIT 2 FOR UPDATE)
                SELECT FROM d, g";
    let [first, second] = sweep_around(&world, lock).await;
    assert_eq!((first.forgotten_draws, second.forgotten_draws), (2 + 1, 1 + 2));
    assert_eq!(world.counts(&bob).await.last_resort.unwrap().times_issued, 3);
}

/// Grants that are forgotten while a newer package replaces theirs are not counted for the newer
/// one.
#[tokio::test]
async fn forgotten_grants_are_counted_for_their_own_package() {
    let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
    world.stock_last_resort(&bob).await;
    world.reserve(&alice, &bob).await;
    world.pass(2 * DAY);
    let replaced = "UPDATE last_resort SET key_package_ref = decode(repeat('ab', 32), 'hex')";
    let upload = world.by_hand(&[replaced]).await;
    let sweep = sweeping(&world.b);
    world.until_waiting(1).await;
    upload.commit().await.unwrap();
    join(sweep).await;
    assert_eq!(world.number("SELECT forgotten_grants FROM last_resort").await, 0);
    assert_eq!(world.number("SELECT count(*) FROM last_resort_grant").await, 0);
}

/// Whatever counts in several pools does so in the order of the key: while it waits for the first
/// pool, it has none of the others.
#[tokio::test]
async fn expiries_and_forgotten_packages_count_in_one_order() {
    let (world, alice) = (World::new().await, client("alice", "1"));
    for n in 0..12 {
        let owner = client("bob", &n.to_string());
        world.stock(&owner, 2).await;
        world.stock_last_resort(&owner).await;
        let held = world.reserve(&alice, &owner).await;
        world.spend(&alice, &[&held.id]).await.unwrap();
    }
    let lowest = "(SELECT min(pool_id) FROM pool)";
    let first = format!("SELECT FROM pool_suite WHERE pool_id = {lowest} FOR UPDATE");
    let others = format!("SELECT FROM pool_suite WHERE pool_id > {lowest} FOR UPDATE NOWAIT");
    for days in [30, 1] {
        world.pass(days * DAY + 3600);
        let mut by_hand = world.by_hand(&[&first]).await;
        let sweep = sweeping(&world.b);
        world.until_waiting(1).await;
        run(&mut by_hand, &others).await;
        by_hand.commit().await.unwrap();
        join(sweep).await;
    }
    let sums = "SELECT (sum(expired) * 100 + sum(forgotten))::bigint FROM pool_suite";
    assert_eq!(world.number(sums).await, 12 * 100 + 12);
}

#[tokio::test]
async fn forgotten_grants_count_in_one_order() {
    let (world, alice) = (World::new().await, client("alice", "1"));
    for n in 0..12 {
        let owner = client("bob", &n.to_string());
        world.stock_last_resort(&owner).await;
        world.reserve(&alice, &owner).await;
    }
    world.pass(2 * DAY);
    let first =
        "SELECT FROM last_resort WHERE pool_id = (SELECT min(pool_id) FROM pool) FOR UPDATE";
    let others = "SELECT FROM last_resort WHERE pool_id > (SELECT min(pool_id) FROM pool)
                  FOR UPDATE NOWAIT";
    let mut by_hand = world.by_hand(&[first]).await;
    let sweep = sweeping(&world.b);
    world.until_waiting(1).await;
    run(&mut by_hand, others).await;
    by_hand.commit().await.unwrap();
    join(sweep).await;
    assert_eq!(world.number("SELECT sum(forgotten_grants)::bigint FROM last_resort").await, 12);
}
