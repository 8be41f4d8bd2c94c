//! What bounds the streams, and what they do not take from others.

use std::time::Duration;

use keypool_client::{Client, Code, v1::ErrorReason};
use keypool_service::{
    domain::policy::PoolPolicy,
    grpc::{GateLimits, auth::Scope},
};
use keypool_testing::watching::{Replicas, Watching, client_key, packages, patiently, usual};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

async fn replicas() -> Replicas {
    Replicas::new(PoolPolicy::default()).await
}

#[tokio::test]
async fn a_client_holds_so_many_streams_and_no_more() {
    let replicas = replicas().await;
    let mut options = usual();
    options.limits.watch.per_client = 2;
    let here = replicas.serve_with(options).await;
    let owner = replicas.client(&here, &client_key("bob", "phone")).await;
    let (first, _) = Watching::start(&owner).await;
    let (_second, _) = Watching::start(&owner).await;

    let refused = Watching::open(&owner).await.err().unwrap();
    assert_eq!(refused.reason(), Some(ErrorReason::RateLimited));
    assert_eq!(refused.rejection().unwrap().code, Code::ResourceExhausted);
    assert!(refused.retry_after().is_some_and(|after| after > Duration::ZERO));
    let other = replicas.client(&here, &client_key("bob", "laptop")).await;
    Watching::start(&other).await;

    drop(first);
    // The server hears of it in its own time.
    let reopened = async {
        loop {
            match Watching::open(&owner).await {
                Ok(stream) => break stream,
                Err(error) => assert_eq!(error.reason(), Some(ErrorReason::RateLimited)),
            }
        }
    };
    let _third = patiently(reopened).await;
    assert!(Watching::open(&owner).await.is_err());
}

#[tokio::test]
async fn a_stream_takes_no_place_of_a_call_and_needs_the_scope() {
    let replicas = replicas().await;
    let mut options = usual();
    let none = GateLimits { places: 0, queue: 0, ..options.limits.load.owners };
    options.limits.load.owners = none;
    let here = replicas.serve_with(options).await;
    let bob = client_key("bob", "phone");
    let owner = replicas.client(&here, &bob).await;
    Watching::start(&owner).await;
    let turned_away = owner.pool_status().await.unwrap_err();
    assert_eq!(turned_away.reason(), Some(ErrorReason::Overloaded));

    let token = replicas.token_for(&bob, &[Scope::Reserve, Scope::Audit]);
    let adder = Client::connect(format!("http://{}", here.address), token).await.unwrap();
    let refused = Watching::open(&adder).await.err().unwrap();
    assert_eq!(refused.reason(), Some(ErrorReason::ScopeMissing));
}

#[tokio::test]
async fn a_server_that_stops_ends_its_streams_also_those_that_wait_for_the_database() {
    let replicas = replicas().await;
    let here = replicas.serve().await;
    let owner = replicas.client(&here, &client_key("bob", "phone")).await;
    owner.upload(packages("bob", 1)).await.unwrap();
    let (mut idle, _) = Watching::start(&owner).await;
    let mut lock = replicas.database.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE pool IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await.unwrap();
    // The first two read, the third waits for its turn.
    let mut stuck = Vec::new();
    for _ in 0..3 {
        stuck.push(Watching::open(&owner).await.unwrap());
    }

    here.stop();
    for stream in std::iter::once(&mut idle).chain(&mut stuck) {
        // The SDK takes SHUTTING_DOWN for an end like any other: the next stream is elsewhere.
        assert!(stream.item().await.is_none());
    }
    lock.rollback().await.unwrap();
    here.stopped().await.unwrap();
}

#[tokio::test]
async fn a_stream_ends_well_when_it_is_old() {
    let replicas = replicas().await;
    let mut options = usual();
    options.limits.watch.max_age = Duration::from_millis(50);
    let here = replicas.serve_with(options).await;
    let owner = replicas.client(&here, &client_key("bob", "phone")).await;
    let (mut stream, _) = Watching::start(&owner).await;
    assert!(stream.item().await.is_none(), "OK, and no other state");
    Watching::start(&owner).await;
}

/// A connection that does nothing is told to go (GOAWAY, RFC 9113, section 6.8) and closed.
#[tokio::test]
async fn a_connection_ends_when_it_is_old() {
    const GOAWAY: u8 = 7;
    const PING: u8 = 6;
    let replicas = replicas().await;
    let mut options = usual();
    options.connections.max_age = Duration::from_millis(50);
    let here = replicas.serve_with(options).await;
    let mut connection = TcpStream::connect(here.address).await.unwrap();
    connection.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    connection.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap(); // empty SETTINGS

    let told_to_go = patiently(async {
        let mut told_to_go = false;
        let mut head = [0; 9];
        while connection.read_exact(&mut head).await.is_ok() {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            connection.read_exact(&mut payload).await.unwrap();
            told_to_go |= head[3] == GOAWAY;
            if head[3] == PING && head[4] == 0 {
                // Only then does the server know that the GOAWAY was read.
                let pong = [&[0, 0, 8, PING, 1, 0, 0, 0, 0], &payload[..]].concat();
                connection.write_all(&pong).await.unwrap();
            }
        }
        told_to_go
    });
    assert!(told_to_go.await);
}
