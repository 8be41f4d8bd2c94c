//! What ordinary devices do meets no limit.

use std::pin::pin;

use futures_util::StreamExt as _;

use super::*;

const MEMBERS: usize = 100;

/// In one call, and by a client that knows no calls for many; on a server with the defaults.
#[tokio::test]
async fn a_conversation_of_100_is_created_without_waiting() {
    let database = database().await;
    let server = Server::start(&database, &defaults()).await;
    let members: Vec<String> = (0..MEMBERS).map(|n| format!("member {n}")).collect();
    for member in &members {
        publish(&server, member, 12).await;
    }

    let alice = server.client("alice", "phone").await;
    let all = members.iter().fold(Reserve::new(GROUP, SUITE), |it, user| it.target(user));
    let answer = alice.reserve(&all.all_or_nothing()).await.unwrap();
    let ids: Vec<String> = answer.reservations().map(|it| it.reservation_id.clone()).collect();
    assert_eq!(ids.len(), MEMBERS);
    alice.spend(GROUP, &ids).await.unwrap();

    let carol = server.client("carol", "phone").await;
    let mut ids = Vec::new();
    for member in &members {
        let answer = carol.reserve(&from(member)).await.unwrap();
        ids.extend(answer.reservations().map(|it| it.reservation_id.clone()));
    }
    for id in &ids {
        carol.spend(GROUP, [id]).await.unwrap();
    }
    assert_eq!(ids.len(), MEMBERS);

    // Both at once, as a client may send them.
    let dave = server.client("dave", "phone").await;
    let calls = members.iter().map(|member| {
        let (dave, member) = (dave.clone(), member.clone());
        tokio::spawn(async move { dave.reserve(&from(&member)).await })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap().unwrap();
    }
}

/// A device that starts anew many times in a row, and fills its pool to the brim.
#[tokio::test]
async fn a_device_fills_its_pool_and_looks_at_it() {
    let database = database().await;
    let server = Server::start(&database, &defaults()).await;
    let bob = publish(&server, "bob", 64).await;
    for _ in 0..20 {
        bob.pool_status().await.unwrap();
        let mut watch = pin!(bob.watch_pool_status().await.unwrap());
        watch.next().await.unwrap().unwrap();
        bob.pool_events(Default::default()).await.unwrap();
    }
}
