//! Two replicas on one database are one keypool.

use std::collections::HashSet;

use keypool_client::v1::ErrorReason;

use super::*;

async fn replicas(database: &TestDatabase) -> [Server; 2] {
    let options = options();
    let (one, two) =
        tokio::join!(Server::start(database, &options), Server::start(database, &options));
    [one, two]
}

#[tokio::test]
async fn what_one_replica_reserved_the_other_spends() {
    let database = database().await;
    let [one, two] = replicas(&database).await;
    let bob = publish_some(&one, "bob", 2).await;
    let alice = [one.client("alice", "phone").await, two.client("alice", "phone").await];
    let reservation = reserve_one(&alice[0], &one_of("bob")).await;
    let id = [&reservation.reservation_id];
    assert!(!alice[1].spend(GROUP, id).await.unwrap()[0].already_spent);
    assert!(alice[0].spend(GROUP, id).await.unwrap()[0].already_spent);
    let counts = counts(&bob).await;
    assert_eq!((counts.available, counts.reserved, counts.spent), (1, 0, 1));

    let returned = reserve_one(&alice[1], &one_of("bob")).await;
    let id = [&returned.reservation_id];
    assert!(!alice[0].release(id).await.unwrap()[0].already_released);
    assert!(alice[1].release(id).await.unwrap()[0].already_released);
}

#[tokio::test]
async fn a_retry_on_another_replica_burns_nothing() {
    let database = database().await;
    let [one, two] = replicas(&database).await;
    let bob = publish_some(&one, "bob", 8).await;
    let alice = [one.client("alice", "phone").await, two.client("alice", "phone").await];
    let request = one_of("bob");
    let first = reserve_one(&alice[0], &request).await;
    assert_eq!(reserve_one(&alice[1], &request).await, first);

    // At the same time on both, again and again.
    let request = one_of("bob");
    let calls: Vec<_> = (0..32)
        .map(|n| {
            let (alice, request) = (alice[n % 2].clone(), request.clone());
            tokio::spawn(async move { reserve_one(&alice, &request).await })
        })
        .collect();
    let mut got = HashSet::new();
    for call in calls {
        got.insert(call.await.unwrap().reservation_id);
    }
    assert_eq!(got.len(), 1);
    let counts = counts(&bob).await;
    assert_eq!((counts.available, counts.reserved), (6, 2));
}

#[tokio::test]
async fn concurrent_adders_get_different_packages_whatever_replica_they_ask() {
    let database = database().await;
    let [one, two] = replicas(&database).await;
    let bob = publish_some(&one, "bob", 64).await;
    let mut calls = Vec::new();
    for n in 0..64 {
        let server = if n % 2 == 0 { &one } else { &two };
        let adder = server.client(&format!("adder {n}"), "phone").await;
        calls.push(tokio::spawn(async move { reserve_one(&adder, &one_of("bob")).await }));
    }
    let mut refs = HashSet::new();
    for call in calls {
        refs.insert(call.await.unwrap().key_package_ref);
    }
    assert_eq!(refs.len(), 64);
    assert_eq!(counts(&bob).await.reserved, 64);
    let late = two.client("late", "phone").await;
    let refused = rejection(late.reserve(&one_of("bob")).await);
    assert_eq!(refused.reason, Some(ErrorReason::PoolExhausted));
}
