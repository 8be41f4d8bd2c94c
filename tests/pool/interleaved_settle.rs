//! Spend and Release against another settlement of the same reservation, at the worst instant:
//! the other one holds the row, they wait for it, and then it commits.
//!
//! A transaction by hand plays the other one, with the changes that the service's own statements
//! make.

use keypool_service::{
    domain::{error::Error, ids::ClientKey},
    pool::{KeyPool, Released, Reservation, Spent},
};
use keypool_testing::{
    forge::NOW,
    world::{World, client, group, join, package, run, spawn, stored},
};
use tokio::task::JoinHandle;

const SPENT: [&str; 2] = [
    "INSERT INTO tombstone (bucket, pool_id, cipher_suite, seq, key_package_ref, state, generation,
                            holder, group_id, ended_at)
     SELECT bucket, pool_id, cipher_suite, seq, key_package_ref, 'spent', generation, holder,
            group_id, now()
     FROM package WHERE generation > 0",
    "DELETE FROM package WHERE generation > 0",
];
const RELEASED: [&str; 1] = ["UPDATE package SET state = 'available', returned = 'released',
     holder = NULL, group_id = NULL, expires_at = NULL WHERE generation > 0"];
const LAPSED: [&str; 1] =
    ["UPDATE package SET state = 'available', returned = 'lapsed' WHERE generation > 0"];
const RECLAIMED: [&str; 1] = ["UPDATE package SET generation = generation + 1,
     holder = decode(repeat('ee', 16), 'hex') WHERE generation > 0"];
const EXPIRED: [&str; 1] = ["DELETE FROM package WHERE generation > 0"];
const NOTHING: [&str; 1] = ["SELECT FROM package WHERE generation > 0 FOR UPDATE"];

fn spending(world: &World, caller: &ClientKey, id: &str) -> JoinHandle<Result<Vec<Spent>, Error>> {
    let (pool, caller, ids) = (world.b.clone(), caller.clone(), vec![id.to_owned()]);
    spawn(async move { pool.spend(&caller, &ids, &group(1)).await })
}

fn releasing(
    world: &World,
    caller: &ClientKey,
    id: &str,
) -> JoinHandle<Result<Vec<Released>, Error>> {
    let (pool, caller, ids) = (world.b.clone(), caller.clone(), vec![id.to_owned()]);
    spawn(async move { pool.release(&caller, &ids).await })
}

async fn held() -> (World, ClientKey, Reservation) {
    let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
    world.stock(&bob, 1).await;
    let held = world.reserve(&alice, &bob).await;
    (world, alice, held)
}

/// A Spend that waits while somebody does this to the package.
async fn spend_after(other: &[&str]) -> Result<Vec<Spent>, Error> {
    let (world, alice, held) = held().await;
    let by_hand = world.by_hand(other).await;
    let spend = spending(&world, &alice, &held.id);
    world.until_waiting(1).await;
    by_hand.commit().await.unwrap();
    let answer = join(spend).await;
    // What it answered is what there is.
    let spent = world.number("SELECT count(*) FROM tombstone WHERE state = 'spent'").await;
    assert_eq!(answer.is_ok(), spent == 1);
    answer
}

/// A Release that waits while somebody does this to the package.
async fn release_after(other: &[&str]) -> Result<Vec<Released>, Error> {
    let (world, alice, held) = held().await;
    let by_hand = world.by_hand(other).await;
    let release = releasing(&world, &alice, &held.id);
    world.until_waiting(1).await;
    by_hand.commit().await.unwrap();
    join(release).await
}

#[tokio::test]
async fn spend_after_a_spend_finds_it_done() {
    assert!(spend_after(&SPENT).await.unwrap()[0].already);
}

#[tokio::test]
async fn spend_after_a_release_is_not_held() {
    assert!(matches!(spend_after(&RELEASED).await, Err(Error::ReservationNotHeld)));
}

#[tokio::test]
async fn spend_after_a_lapse_is_a_late_one() {
    assert!(!spend_after(&LAPSED).await.unwrap()[0].already);
}

#[tokio::test]
async fn spend_after_a_reserve_that_reclaimed_the_package_is_lost() {
    assert!(matches!(spend_after(&RECLAIMED).await, Err(Error::ReservationLost)));
}

#[tokio::test]
async fn spend_after_the_expiry_is_lost() {
    assert!(matches!(spend_after(&EXPIRED).await, Err(Error::ReservationLost)));
}

#[tokio::test]
async fn spend_after_one_that_was_rolled_back_spends() {
    assert!(!spend_after(&NOTHING).await.unwrap()[0].already);
}

#[tokio::test]
async fn release_after_a_spend_is_not_held() {
    assert!(matches!(release_after(&SPENT).await, Err(Error::ReservationNotHeld)));
}

#[tokio::test]
async fn release_after_another_finds_it_done() {
    for other in [&RELEASED, &LAPSED, &RECLAIMED, &EXPIRED] {
        assert!(release_after(other).await.unwrap()[0].already);
    }
    assert!(!release_after(&NOTHING).await.unwrap()[0].already);
}

/// A late Spend of a burned package that waits while somebody does this to the tombstone.
async fn late_spend_after(other: &str) -> (World, Result<Vec<Spent>, Error>) {
    let (world, bob, alice) = (World::burning().await, client("bob", "1"), client("alice", "1"));
    world.stock(&bob, 1).await;
    let held = world.reserve(&alice, &bob).await;
    world.pass(60);
    assert_eq!(world.sweep().await.lapsed, 1);
    let by_hand = world.by_hand(&[other]).await;
    let spend = spending(&world, &alice, &held.id);
    world.until_waiting(1).await;
    by_hand.commit().await.unwrap();
    let answer = join(spend).await;
    (world, answer)
}

#[tokio::test]
async fn a_late_spend_of_a_burned_package_counts_once() {
    let spent = "WITH spent AS (UPDATE tombstone SET state = 'spent' RETURNING 1)
                 UPDATE pool_suite SET burned = burned - (SELECT count(*) FROM spent)";
    let (world, answer) = late_spend_after(spent).await;
    assert!(answer.unwrap()[0].already);
    assert_eq!(world.counts(&client("bob", "1")).await.spent, 1);
}

#[tokio::test]
async fn a_late_spend_of_a_forgotten_package_is_lost() {
    let (_, answer) = late_spend_after("DELETE FROM tombstone").await;
    assert!(matches!(answer, Err(Error::ReservationLost)));
}

#[tokio::test]
async fn a_grant_is_settled_one_way() {
    let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
    world.stock_last_resort(&bob).await;
    let held = world.reserve(&alice, &bob).await;
    let by_hand = world.by_hand(&["UPDATE last_resort_grant SET state = 'released'"]).await;
    let spend = spending(&world, &alice, &held.id);
    world.until_waiting(1).await;
    by_hand.commit().await.unwrap();
    assert!(matches!(join(spend).await, Err(Error::ReservationNotHeld)));

    let held = world.reserve(&alice, &bob).await;
    let by_hand = world.by_hand(&["UPDATE last_resort_grant SET state = 'spent'"]).await;
    let release = releasing(&world, &alice, &held.id);
    world.until_waiting(1).await;
    by_hand.commit().await.unwrap();
    assert!(matches!(join(release).await, Err(Error::ReservationNotHeld)));
}

/// Settlements of many, as the helper below takes them.
type Settlement = fn(KeyPool, ClientKey, Vec<String>) -> JoinHandle<()>;

const SETTLEMENTS: [Settlement; 2] = [
    |pool, caller, ids| spawn(async move { drop(pool.release(&caller, &ids).await.unwrap()) }),
    |pool, caller, ids| {
        spawn(async move { drop(pool.spend(&caller, &ids, &group(1)).await.unwrap()) })
    },
];

/// Settlements take their locks in the order of the key: while they wait for the first, they hold
/// none of the others.
#[tokio::test]
async fn settlements_of_many_lock_in_one_order() {
    for settle in SETTLEMENTS {
        let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
        // What comes first by its key was uploaded first, but reserved and named last.
        for left in (0..8).rev() {
            let forged = package(&bob).lifetime(NOW - 60, NOW + 10_000 + left);
            stored(world.upload(&bob, vec![forged.build()]).await.remove(0));
        }
        let mut ids = Vec::new();
        for _ in 0..8 {
            ids.push(world.reserve(&alice, &bob).await.id);
        }
        let lock = "SELECT FROM package WHERE seq = 1 FOR UPDATE";
        let mut by_hand = world.by_hand(&[lock]).await;
        let settlement = settle(world.b.clone(), alice.clone(), ids);
        world.until_waiting(1).await;
        run(&mut by_hand, "SELECT FROM package WHERE seq > 1 FOR UPDATE NOWAIT").await;
        by_hand.commit().await.unwrap();
        join(settlement).await;
    }
}

#[tokio::test]
async fn settlements_of_many_grants_lock_in_one_order() {
    for settle in SETTLEMENTS {
        let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
        world.stock_last_resort(&bob).await;
        let mut ids = Vec::new();
        for _ in 0..8 {
            ids.push(world.reserve(&alice, &bob).await.id);
        }
        // The one that comes first by its key is made and named last.
        let first = world.number("SELECT min(grant_id) FROM last_resort_grant").await;
        let made = "SELECT grant_id::text FROM last_resort_grant ORDER BY ctid";
        let place = world.texts(made).await.iter().position(|id| *id == first.to_string());
        ids.rotate_left(place.unwrap() + 1);
        let again = "UPDATE last_resort_grant SET state = state WHERE grant_id =
                     (SELECT min(grant_id) FROM last_resort_grant)";
        world.by_hand(&[again]).await.commit().await.unwrap();

        let lock = format!("SELECT FROM last_resort_grant WHERE grant_id = {first} FOR UPDATE");
        let mut by_hand = world.by_hand(&[&lock]).await;
        let settlement = settle(world.b.clone(), alice.clone(), ids);
        world.until_waiting(1).await;
        let others =
            format!("SELECT FROM last_resort_grant WHERE grant_id > {first} FOR UPDATE NOWAIT");
        run(&mut by_hand, &others).await;
        by_hand.commit().await.unwrap();
        join(settlement).await;
    }
}
