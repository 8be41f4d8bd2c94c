//! Each caller has buckets of its own; what is refused says when to come back and did nothing.

use std::time::Duration;

use keypool_client::{Client, Code, Rejection, v1::ErrorReason};
use keypool_testing::tokens::token;

use super::*;

/// Beyond any test: what is taken does not come back.
const SLOW: u32 = 1;

#[track_caller]
fn limited(refused: &Rejection) {
    assert_eq!(refused.code, Code::ResourceExhausted, "{refused:?}");
    assert_eq!(refused.reason, Some(ErrorReason::RateLimited), "{refused:?}");
    let retry_after = refused.retry_after.expect("RetryInfo");
    assert!(retry_after > Duration::ZERO && retry_after <= Duration::from_secs(60));
}

#[tokio::test]
async fn a_caller_that_reserves_too_often_is_refused_and_no_other() {
    let database = database().await;
    let few = defaults().set("limits.reserve_burst", 3).set("limits.reserve_per_minute", SLOW);
    let server = Server::start(&database, &few).await;
    let bob = publish(&server, "bob", 30).await;
    publish(&server, "carol", 30).await;
    let alice = server.client("alice", "phone").await;
    let first = alice.reserve(&from("bob")).await.unwrap();
    alice.reserve(&from("carol").target_clients("bob", ["laptop"])).await.unwrap();
    for _ in 0..5 {
        limited(&refused(alice.reserve(&from("carol")).await));
    }
    assert_eq!(reserved(&bob).await, 1);

    // What it holds it can still settle, and its own pool it can still look after.
    let ids: Vec<String> = first.reservations().map(|it| it.reservation_id.clone()).collect();
    alice.spend(GROUP, &ids).await.unwrap();
    alice.pool_status().await.unwrap();
    for other in ["dave", "erin", "frank"] {
        server.client(other, "phone").await.reserve(&from("bob")).await.unwrap();
    }
    server.client("alice", "laptop").await.reserve(&from("bob")).await.unwrap();
}

#[tokio::test]
async fn clients_that_a_call_did_not_name_are_counted() {
    let database = database().await;
    let few = defaults().set("limits.reserve_burst", 3).set("limits.reserve_per_minute", SLOW);
    let server = Server::start(&database, &few).await;
    let now = SystemClock.now().unix_timestamp().try_into().unwrap();
    for device in ["phone", "laptop", "tablet"] {
        let package = Forge::new(SUITE, "bob").valid_around(now).build();
        server.client("bob", device).await.upload([package]).await.unwrap();
    }
    publish(&server, "carol", 3).await;
    let alice = server.client("alice", "phone").await;
    let answer = alice.reserve(&Reserve::new(GROUP, SUITE).target("bob")).await.unwrap();
    assert_eq!(answer.reservations().count(), 3);
    limited(&refused(alice.reserve(&from("carol")).await));
    // Those too that have nothing left and are not shown.
    let dave = server.client("dave", "phone").await;
    let nothing = refused(dave.reserve(&Reserve::new(GROUP, SUITE).target("bob")).await);
    assert_eq!(nothing.reason, Some(ErrorReason::PoolExhausted));
    limited(&refused(dave.reserve(&from("carol")).await));
}

#[tokio::test]
async fn a_caller_asks_one_user_so_often_and_others_all_the_same() {
    let database = database().await;
    let few = defaults().set("limits.target_burst", 2).set("limits.target_per_minute", SLOW);
    let server = Server::start(&database, &few.set("pool.fair_share", false)).await;
    let bob = publish(&server, "bob", 30).await;
    let carol = publish(&server, "carol", 30).await;
    let alice = server.client("alice", "phone").await;
    for _ in 0..2 {
        alice.reserve(&from("bob")).await.unwrap();
    }
    limited(&refused(alice.reserve(&from("bob")).await));
    // Not from Carol either, in a call that is for both.
    let both = from("carol").target_clients("bob", ["phone"]);
    limited(&refused(alice.reserve(&both).await));
    assert_eq!((reserved(&bob).await, reserved(&carol).await), (2, 0));
    for _ in 0..2 {
        alice.reserve(&from("carol")).await.unwrap();
    }
    server.client("dave", "phone").await.reserve(&from("bob")).await.unwrap();
}

#[tokio::test]
async fn what_owners_do_has_a_bucket_of_its_own() {
    let database = database().await;
    let few = defaults().set("limits.owner_burst", 4).set("limits.owner_per_minute", SLOW);
    let server = Server::start(&database, &few).await;
    // 25 packages cost three.
    let bob = publish(&server, "bob", 25).await;
    bob.pool_status().await.unwrap();
    limited(&refused(bob.pool_status().await));
    limited(&refused(bob.watch_pool_status().await.map(drop)));
    limited(&refused(bob.upload([&b"a package"[..]]).await));
    bob.reserve(&from("nobody")).await.unwrap_err(); // none is left
    assert_eq!(refused(bob.reserve(&from("nobody")).await).code, Code::FailedPrecondition);
    server.client("carol", "phone").await.pool_status().await.unwrap();
    // An auditor reads on and on.
    for _ in 0..10 {
        bob.pool_events(Default::default()).await.unwrap();
    }
}

#[tokio::test]
async fn a_client_that_waits_as_it_is_told_gets_everything_done() {
    let database = database().await;
    let narrow = defaults().set("limits.reserve_burst", 1).set("limits.reserve_per_minute", 600);
    let server = Server::start(&database, &narrow).await;
    for n in 0..8 {
        publish(&server, &format!("user {n}"), 1).await;
    }
    let patient = Client::builder(server.uri(), token("alice", "phone"));
    let patient = patient.retries(20).connect().await.unwrap();
    for n in 0..8 {
        patient.reserve(&from(&format!("user {n}"))).await.unwrap();
    }
}
