//! The sweeper ends what time has ended: all of it, once each, in bounded batches.

use keypool_service::pool::{SweepPolicy, SweepReport};
use keypool_testing::{
    forge::NOW,
    world::{World, ask, client, join_all, last_resort, only, package, spawn},
};
use time::Duration;

const DAY: i64 = 86_400;

/// Batches that every test here fills more than once.
fn small_batches() -> SweepPolicy {
    SweepPolicy { batch: 3, ..SweepPolicy::default() }
}

#[tokio::test]
async fn more_lapsed_reservations_than_a_batch() {
    for world in [World::new().await, World::burning().await] {
        let bob = client("bob", "1");
        world.stock(&bob, 40).await;
        for n in 0..20 {
            let adder = client(&format!("adder-{n}"), "1");
            world.reserve(&adder, &bob).await;
            world.reserve(&adder, &bob).await;
            // Some expire at the same instant, some do not.
            world.pass(i64::from(n % 4 == 0));
        }
        world.pass(60);
        assert_eq!(world.a.sweep(&small_batches()).await.unwrap().lapsed, 40);
        assert_eq!(world.a.sweep(&small_batches()).await.unwrap(), SweepReport::default());
        let ended = "SELECT count(*) FROM event WHERE kind IN ('lapsed', 'burned')";
        assert_eq!(world.number(ended).await, 40);
    }
}

#[tokio::test]
async fn one_batch_is_bounded() {
    let (world, bob) = (World::new().await, client("bob", "1"));
    world.stock(&bob, 8).await;
    world.pass(31 * DAY);
    for left in [5, 2, 0] {
        let swept = world.a.store().sweep_expired(3).await.unwrap();
        assert_eq!(swept.more, left > 0);
        assert_eq!(world.number("SELECT count(*) FROM package").await, left);
    }
    world.pass(DAY);
    for left in [5, 2, 0] {
        let swept = world.a.store().forget_packages(3, Duration::days(1)).await.unwrap();
        assert_eq!((swept.more, swept.ended), (left > 0, if left > 0 { 3 } else { 2 }));
        assert_eq!(world.number("SELECT count(*) FROM published").await, left);
    }
}

#[tokio::test]
async fn expired_packages_and_last_resorts_end_and_are_counted() {
    let world = World::new().await;
    let alice = client("alice", "1");
    let owners: Vec<_> = (0..4).map(|n| client("bob", &n.to_string())).collect();
    let mut spent = 0;
    for owner in &owners {
        world.stock(owner, 5).await;
        world.stock_last_resort(owner).await;
        let held = world.reserve(&alice, owner).await;
        world.spend(&alice, &[&held.id]).await.unwrap();
        world.reserve(&alice, owner).await;
        spent += 1;
    }
    world.pass(29 * DAY + 3);
    assert_eq!(world.sweep().await.expired, 0);
    let counts = world.counts(&owners[0]).await;
    assert_eq!((counts.available, counts.expiring_soon), (4, 4));
    world.pass(DAY);
    // Before the sweep the status says the same as after it.
    for swept in [false, true] {
        if swept {
            assert_eq!(world.a.sweep(&small_batches()).await.unwrap().expired, 4 * 3 + 4);
        }
        let counts = world.counts(&owners[0]).await;
        assert_eq!((counts.available, counts.reserved, counts.expired), (1, 0, 3), "{swept}");
        assert_eq!((counts.spent, counts.last_resort), (1, None), "{swept}");
    }
    let events = "SELECT count(*) FROM event WHERE kind = 'expired'";
    assert_eq!(world.number(events).await, 4 * 3 + 4);
    assert_eq!(world.number("SELECT count(*) FROM tombstone").await, spent);
}

#[tokio::test]
async fn refs_and_tombstones_are_forgotten_a_day_after_not_after() {
    let (world, bob, alice) = (World::burning().await, client("bob", "1"), client("alice", "1"));
    let one_time = package(&bob).lifetime(NOW - 60, NOW + 10_000).build();
    world.upload(&bob, vec![one_time.clone()]).await;
    world.stock(&bob, 8).await;
    world.stock_last_resort(&bob).await;
    for n in 0..6 {
        let held = world.reserve(&alice, &bob).await;
        if n < 4 {
            world.spend(&alice, &[&held.id]).await.unwrap();
        }
    }
    world.pass(9_999 + DAY);
    let report = world.sweep().await;
    assert_eq!((report.lapsed, report.forgotten), (2, 0));
    world.pass(1);
    assert_eq!(world.sweep().await.forgotten, 1);
    let counts = world.counts(&bob).await;
    assert_eq!((counts.available, counts.spent, counts.expired), (3, 3, 0));

    world.pass(31 * DAY);
    let report = world.a.sweep(&small_batches()).await.unwrap();
    assert_eq!((report.expired, report.forgotten), (3 + 1, 8 + 1));
    for table in ["published", "tombstone", "package", "last_resort"] {
        assert_eq!(world.number(&format!("SELECT count(*) FROM {table}")).await, 0, "{table}");
    }
    let suite =
        "SELECT format('%s %s %s %s', uploaded, expired, burned, forgotten) FROM pool_suite";
    assert_eq!(world.texts(suite).await, ["9 3 2 4"]);
    assert_eq!(world.counts(&bob).await.spent, 0);
    assert_eq!(world.sweep().await, SweepReport::default());
}

#[tokio::test]
async fn draws_and_grants_are_forgotten_and_what_was_issued_stays_counted() {
    let (world, bob) = (World::new().await, client("bob", "1"));
    let forged = last_resort(&bob).lifetime(NOW - 60, NOW + 60 * 86_400).build();
    world.upload(&bob, vec![forged]).await;
    for n in 0..7 {
        world.reserve(&client(&format!("adder-{n}"), "1"), &bob).await;
    }
    world.pass(59 + DAY);
    assert_eq!(world.sweep().await.forgotten_draws, 0);
    // One comes back in time and is remembered for another day.
    world.reserve(&client("adder-0", "1"), &bob).await;
    world.pass(1);
    let report = world.a.sweep(&small_batches()).await.unwrap();
    assert_eq!(report.forgotten_draws, 6 + 7);
    assert_eq!(world.number("SELECT count(*) FROM draw").await, 1);
    assert_eq!(world.counts(&bob).await.last_resort.unwrap().times_issued, 8);
    world.pass(60 + DAY);
    assert_eq!(world.sweep().await.forgotten_draws, 1 + 1);
    assert_eq!(world.counts(&bob).await.last_resort.unwrap().times_issued, 8);
}

#[tokio::test]
async fn a_draw_with_reservations_of_different_expiry_is_found_for_each() {
    for world in [World::new().await, World::burning().await] {
        let (bob, alice) = (client("bob", "1"), client("alice", "1"));
        world.stock(&bob, 4).await;
        // Given in an order that is not that of their expiry.
        for ttl in [120, 60, 180] {
            let mut request = ask(&[&bob]);
            request.ttl = Some(Duration::seconds(ttl));
            only(world.a.reserve(&alice, &request).await.unwrap());
        }
        for _ in 0..3 {
            world.pass(60);
            assert_eq!(world.sweep().await.lapsed, 1);
        }
    }
}

#[tokio::test]
async fn a_caller_that_keeps_reserving_does_not_keep_what_lapsed() {
    let (world, bob, alice) = (World::burning().await, client("bob", "1"), client("alice", "1"));
    world.stock(&bob, 64).await;
    let mut lapsed = 0;
    for _ in 0..30 {
        world.reserve(&alice, &bob).await;
        world.pass(40);
        lapsed += world.sweep().await.lapsed;
    }
    assert_eq!(lapsed, 29);
    assert_eq!(world.counts(&bob).await.reserved, 1);
    // The draw does not grow with what is over.
    world.reserve(&alice, &bob).await;
    assert_eq!(world.number("SELECT cardinality(open)::bigint FROM draw").await, 2);
}

/// A sweeper that was cut off for a while finds what lapsed before, and a draw that was renewed
/// after the last sweep with an unsettled reservation from before it.
#[tokio::test]
async fn what_lapsed_long_ago_is_found_when_its_draw_is_renewed() {
    let (world, bob, alice) = (World::burning().await, client("bob", "1"), client("alice", "1"));
    world.stock(&bob, 3).await;
    world.reserve(&alice, &bob).await;
    world.pass(61);
    // In other hands whenever the sweeper looks, until it looks there no more.
    let others = world.by_hand(&["SELECT FROM package WHERE generation > 0 FOR UPDATE"]).await;
    for _ in 0..3 {
        assert_eq!(world.sweep().await.lapsed, 0);
        world.pass(61);
    }
    others.rollback().await.unwrap();
    assert_eq!(world.sweep().await.lapsed, 0);
    world.reserve(&alice, &bob).await;
    world.pass(1);
    assert_eq!(world.sweep().await.lapsed, 1);
    world.pass(60);
    assert_eq!(world.sweep().await.lapsed, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sweepers_at_once_end_everything_once() {
    for world in [World::new().await, World::burning().await] {
        let alice = client("alice", "1");
        let owners: Vec<_> = (0..6).map(|n| client(&format!("bob-{n}"), "1")).collect();
        for owner in &owners {
            world.stock(owner, 12).await;
            world.stock_last_resort(owner).await;
            for _ in 0..6 {
                world.reserve(&alice, owner).await;
            }
        }
        let mut total = SweepReport::default();
        for pass in [60, 31 * DAY, DAY] {
            world.pass(pass);
            let sweeps = (0..6).map(|n| {
                let pool = if n % 2 == 0 { world.a.clone() } else { world.b.clone() };
                spawn(async move { pool.sweep(&small_batches()).await.unwrap() })
            });
            // What one passed over, another had in hand.
            for report in join_all(sweeps.collect()).await {
                total.lapsed += report.lapsed;
                total.expired += report.expired;
                total.forgotten += report.forgotten;
            }
        }
        let rest = world.sweep().await;
        let kinds = "SELECT count(*) FROM event WHERE kind IN ('lapsed', 'burned')";
        assert_eq!((total.lapsed, world.number(kinds).await), (36, 36));
        let expired = world.number("SELECT count(*) FROM event WHERE kind = 'expired'").await;
        assert_eq!((total.expired + rest.expired) as i64, expired);
        assert_eq!(total.forgotten + rest.forgotten, 6 * 13);
        for owner in &owners {
            let counts = world.counts(owner).await;
            assert_eq!((counts.available, counts.reserved, counts.spent), (0, 0, 0));
        }
        let sums = "SELECT sum(uploaded - expired - burned)::bigint FROM pool_suite";
        assert_eq!(world.number(sums).await, 0);
    }
}
