//! More than the database can do is refused early, adders before owners, and did nothing.

use keypool_client::{
    Code,
    v1::{self, ErrorReason},
};
use keypool_testing::{raw::RawConnection, server::SERVICE};
use tokio::task::{JoinHandle, JoinSet};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::*;

/// Calls that wait do so for as long as the test runs.
fn patient() -> ServerOptions {
    ServerOptions::default()
        .text("database.statement_timeout", "1m")
        .text("server.request_timeout", "1m")
        .text("limits.max_wait", "1m")
        .text("limits.standing_wait", "30s")
}

#[track_caller]
fn overloaded<T: std::fmt::Debug>(answer: Result<T, Error>) {
    let refused = refused(answer);
    assert_eq!(refused.reason, Some(ErrorReason::Overloaded), "{refused:?}");
    assert_eq!(refused.code, Code::ResourceExhausted);
    assert!(refused.retry_after.is_some_and(|delay| !delay.is_zero()));
}

async fn adder(
    server: &Server,
    user_id: &str,
) -> JoinHandle<Result<v1::ReserveKeyPackagesResponse, Error>> {
    let client = server.client(user_id, "phone").await;
    tokio::spawn(async move { client.reserve(&from("bob")).await })
}

#[tokio::test]
async fn one_reserve_too_many_is_refused_at_once_and_owners_are_served() {
    let database = database().await;
    let narrow = patient().set("limits.adder_places", 2).set("limits.adder_queue", 1);
    let server = Server::start(&database, &narrow).await;
    let bob = publish(&server, "bob", 20).await;
    let zoe = server.client("zoe", "phone").await;
    let held = zoe.reserve(&from("bob")).await.unwrap();
    let held: Vec<String> = held.reservations().map(|it| it.reservation_id.clone()).collect();

    let lock = database.lock_table("draw").await;
    let mut calls = JoinSet::new();
    for user in ["alice", "carol", "dave", "erin"] {
        let client = server.client(user, "phone").await;
        calls.spawn(async move { client.reserve(&from("bob")).await });
    }
    // Two have places, one waits, and nobody gets on before the lock is gone.
    overloaded(calls.join_next().await.unwrap().unwrap());
    let frank = server.client("frank", "phone").await;
    for _ in 0..20 {
        overloaded(frank.reserve(&from("bob")).await);
    }
    // Before its message is there, and before anything is known of the caller.
    let mut connection = RawConnection::to(server.address()).await.unwrap();
    let mut unsent = connection.call("ReserveKeyPackages", None, &[]).await.unwrap();
    let (_, status) = unsent.answer().await.unwrap();
    overloaded::<()>(Err(status.unwrap().into()));

    // Owners and health are none the worse.
    publish(&server, "carol", 3).await;
    assert_eq!(reserved(&bob).await, 1);
    let mut health = HealthClient::new(server.channel().await);
    let request = HealthCheckRequest { service: SERVICE.into() };
    health.check(request).await.unwrap();
    // Who settles has more room to wait.
    let settling = tokio::spawn({
        let (zoe, held) = (zoe.clone(), held.clone());
        async move { zoe.spend(GROUP, &held).await }
    });

    lock.release().await;
    while let Some(served) = calls.join_next().await {
        served.unwrap().unwrap();
    }
    settling.await.unwrap().unwrap();
    frank.reserve(&from("bob")).await.unwrap();
    assert_eq!(reserved(&bob).await, 4);
}

#[tokio::test]
async fn an_owner_too_many_is_refused_and_adders_are_served() {
    let database = database().await;
    let narrow = patient().set("limits.owner_places", 1).set("limits.owner_queue", 1);
    let server = Server::start(&database, &narrow).await;
    publish(&server, "bob", 20).await;
    let lock = database.lock_table("pool_suite").await;
    let mut calls = JoinSet::new();
    for _ in 0..3 {
        let owner = server.client("bob", "phone").await;
        calls.spawn(async move { owner.pool_status().await });
    }
    overloaded(calls.join_next().await.unwrap().unwrap());
    server.client("alice", "phone").await.reserve(&from("bob")).await.unwrap();
    lock.release().await;
    while let Some(served) = calls.join_next().await {
        served.unwrap().unwrap();
    }
}

#[tokio::test]
async fn what_waited_for_too_long_is_refused_and_not_done() {
    let database = database().await;
    let narrow = patient()
        .set("limits.adder_places", 1)
        .set("limits.adder_queue", 8)
        .text("limits.max_wait", "50ms")
        .text("limits.standing_wait", "50ms");
    let server = Server::start(&database, &narrow).await;
    let bob = publish(&server, "bob", 20).await;
    let lock = database.lock_table("draw").await;
    let first = adder(&server, "alice").await;
    database.waiting(1).await;
    let mut late = Vec::new();
    for user in ["carol", "dave", "erin", "frank"] {
        late.push(adder(&server, user).await);
    }
    for late in late {
        overloaded(late.await.unwrap());
    }
    assert!(!first.is_finished());
    lock.release().await;
    first.await.unwrap().unwrap();
    assert_eq!(reserved(&bob).await, 1, "alice's alone");
    adder(&server, "carol").await.await.unwrap().unwrap();
}

/// A large call takes the places of many small ones.
#[tokio::test]
async fn places_are_for_packages_and_not_for_calls() {
    let database = database().await;
    let narrow = patient().set("limits.adder_places", 3).set("limits.adder_queue", 0);
    let server = Server::start(&database, &narrow).await;
    for user in ["bob", "carol", "dave"] {
        publish(&server, user, 5).await;
    }
    let lock = database.lock_table("draw").await;
    let large = tokio::spawn({
        let alice = server.client("alice", "phone").await;
        let all = from("bob").target_clients("carol", ["phone"]).target_clients("dave", ["phone"]);
        async move { alice.reserve(&all).await }
    });
    database.waiting(1).await;
    overloaded(server.client("erin", "phone").await.reserve(&from("bob")).await);
    lock.release().await;
    assert_eq!(large.await.unwrap().unwrap().reservations().count(), 3);
    server.client("erin", "phone").await.reserve(&from("bob")).await.unwrap();
}
