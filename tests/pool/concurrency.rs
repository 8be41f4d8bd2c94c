//! Many adders at once, over two replicas.

use std::collections::HashSet;

use keypool_service::{
    domain::{error::Error, ids::ClientKey},
    pool::Reservation,
};
use keypool_testing::world::{World, all, ask, client, join_all, only, spawn};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};

/// One Reserve by each of so many adders at once, of one package of `owner`.
async fn adders(
    world: &World,
    number: usize,
    owner: &ClientKey,
) -> Vec<Result<Reservation, Error>> {
    let calls = (0..number).map(|n| {
        let pool = if n % 2 == 0 { world.a.clone() } else { world.b.clone() };
        let owner = owner.clone();
        spawn(async move {
            pool.reserve(&client(&format!("adder-{n}"), "1"), &ask(&[&owner])).await.map(only)
        })
    });
    join_all(calls.collect()).await
}

fn refs(got: &[Result<Reservation, Error>]) -> HashSet<Vec<u8>> {
    got.iter().map(|r| r.as_ref().unwrap().key_package_ref.0.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_adders_get_sixty_four_packages_and_the_next_gets_none() {
    let (world, bob) = (World::new().await, client("bob", "1"));
    world.stock(&bob, 64).await;
    assert_eq!(refs(&adders(&world, 64, &bob).await).len(), 64);
    assert!(matches!(adders(&world, 1, &bob).await[..], [Err(Error::PoolExhausted)]));
    let last = world.stock_last_resort(&bob).await;
    assert_eq!(adders(&world, 1, &bob).await.remove(0).unwrap().key_package_ref, last);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_resort_never_fails_and_never_comes_before_the_stock_is_gone() {
    let (world, bob) = (World::new().await, client("bob", "1"));
    for round in 1..=4 {
        world.stock(&bob, 16).await;
        let last = world.stock_last_resort(&bob).await;
        let got = adders(&world, 64, &bob).await;
        let one_time: Vec<_> =
            got.iter().map(|r| r.as_ref().unwrap()).filter(|r| !r.last_resort).collect();
        assert_eq!(one_time.len(), 16, "round {round}");
        assert_eq!(refs(&got).len(), 17);
        assert!(refs(&got).contains(&last.0));
        assert_eq!(world.counts(&bob).await.last_resort.unwrap().times_issued, 48);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_caller_with_sixty_four_requests_at_once_gets_sixty_four_packages() {
    let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
    world.stock(&bob, 60).await;
    world.stock_last_resort(&bob).await;
    let calls = (0..64).map(|n| {
        let pool = if n % 2 == 0 { world.a.clone() } else { world.b.clone() };
        let (bob, alice) = (bob.clone(), alice.clone());
        spawn(async move { pool.reserve(&alice, &ask(&[&bob])).await.map(only) })
    });
    let got = join_all(calls.collect()).await;
    assert_eq!(refs(&got).len(), 61);
    // All of them stay known to the caller's draw: the sweeper finds every one.
    world.pass(60);
    assert_eq!(world.sweep().await.lapsed, 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_two_live_reservations_hold_the_same_package_while_lapsed_ones_are_reclaimed() {
    let (world, bob) = (World::new().await, client("bob", "1"));
    world.stock(&bob, 32).await;
    let mut before = HashSet::new();
    for _ in 0..4 {
        // Adders and two sweepers at once, all after the same lapsed packages.
        let sweeps = [&world.a, &world.b].map(|pool| {
            let pool = pool.clone();
            spawn(async move { pool.sweep(&Default::default()).await })
        });
        let got = adders(&world, 32, &bob).await;
        for sweep in join_all(sweeps.into()).await {
            sweep.unwrap();
        }
        assert_eq!(refs(&got).len(), 32);
        let ids: HashSet<_> = got.into_iter().map(|r| r.unwrap().id).collect();
        assert!(before.is_disjoint(&ids));
        before = ids;
        world.pass(60);
    }
    // Each lapse is written once, by whoever saw it.
    let lapses = "SELECT count(*) FROM event WHERE kind = 'lapsed'";
    assert_eq!(world.number(lapses).await, 3 * 32);
}

#[tokio::test(flavor = "multi_thread")]
async fn overlapping_batches_in_any_order_neither_deadlock_nor_fail() {
    const OWNERS: usize = 12;
    const CALLS: usize = 48;
    let world = World::new().await;
    let owners: Vec<ClientKey> = (0..OWNERS).map(|n| client(&format!("owner-{n}"), "1")).collect();
    for owner in &owners {
        world.stock(owner, 64).await;
    }
    let mut random = StdRng::seed_from_u64(7);
    let calls = (0..CALLS).map(|n| {
        let pool = if n % 2 == 0 { world.a.clone() } else { world.b.clone() };
        let caller = client(&format!("caller-{}", n % 4), "1");
        let mut targets = owners.clone();
        targets.shuffle(&mut random);
        targets.truncate(random.random_range(6..=OWNERS));
        let settle = n % 3;
        spawn(async move {
            let targets: Vec<&ClientKey> = targets.iter().collect();
            let got = all(pool.reserve(&caller, &ask(&targets)).await.unwrap());
            let ids: Vec<String> = got.iter().map(|r| r.id.clone()).collect();
            match settle {
                0 => drop(
                    pool.spend(&caller, &ids, &keypool_testing::world::group(1)).await.unwrap(),
                ),
                1 => drop(pool.release(&caller, &ids).await.unwrap()),
                _ => {}
            }
            let held = if settle == 2 { got } else { Vec::new() };
            held.into_iter().map(|r| r.key_package_ref.0).collect::<Vec<_>>()
        })
    });
    let calls: Vec<_> = calls.collect();
    let held: Vec<_> = join_all(calls).await.into_iter().flatten().collect();
    let distinct: HashSet<_> = held.iter().collect();
    assert_eq!(distinct.len(), held.len());
    let reserved = "SELECT count(*) FROM package WHERE state = 'reserved'";
    assert_eq!(world.number(reserved).await, held.len() as i64);
}
