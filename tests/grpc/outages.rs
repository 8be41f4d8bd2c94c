//! Too much to do, or no database to do it with: refused with when to come back.

use std::time::Duration;

use keypool_client::v1::ErrorReason;
use keypool_testing::proxy::{Proxy, Target};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;

/// One call holds the only connection; another waits for it in vain.
pub(super) async fn refused_for_want_of_a_connection() -> Rejection {
    let one = options().set("database.max_connections", 1);
    refused_beside_another(one.text("database.acquire_timeout", "1s")).await
}

/// Calls while another one waits for a lock in the database.
async fn refused_beside_another(options: ServerOptions) -> Rejection {
    let database = database().await;
    let server = Server::start(&database, &options).await;
    let client = server.client("bob", "phone").await;
    let lock = database.lock_table("pool").await;
    let held = tokio::spawn({
        let client = client.clone();
        async move { client.pool_status().await }
    });
    database.waiting(1).await;
    let refused = rejection(client.pool_status().await);
    lock.release().await;
    held.await.unwrap().unwrap();
    client.pool_status().await.unwrap();
    refused
}

/// A server whose database goes away.
pub(super) async fn refused_without_a_database() -> Rejection {
    let database = database().await;
    let proxy = Proxy::to(database.target()).await;
    let quick = options().text("database.acquire_timeout", "1s");
    let server = Server::on(&database.url_through(&proxy, "password"), &quick).await;
    let client = server.client("bob", "phone").await;
    client.pool_status().await.unwrap();
    proxy.cut();
    rejection(client.pool_status().await)
}

#[tokio::test]
async fn a_call_beyond_the_limit_of_concurrent_ones_is_shed() {
    let refused = refused_beside_another(options().set("server.max_concurrent_requests", 1)).await;
    assert_eq!(refused.reason, Some(ErrorReason::Overloaded));
    assert!(refused.retry_after.is_some_and(|delay| !delay.is_zero()));
}

#[tokio::test]
async fn a_call_without_a_connection_is_shed_and_not_queued_for_ever() {
    let refused = refused_for_want_of_a_connection().await;
    assert_eq!(refused.reason, Some(ErrorReason::Overloaded));
    assert!(refused.retry_after.is_some_and(|delay| !delay.is_zero()));
}

#[tokio::test]
async fn a_call_that_a_lock_holds_up_for_too_long_is_given_up() {
    let database = database().await;
    let quick = options().text("database.statement_timeout", "1s");
    let server = Server::start(&database, &quick).await;
    let client = server.client("bob", "phone").await;
    let lock = database.lock_table("pool").await;
    let refused = rejection(client.pool_status().await);
    assert_eq!(refused.reason, Some(ErrorReason::Overloaded));
    lock.release().await;
    client.pool_status().await.unwrap();
}

/// Nothing but the refused connections tells of it then.
#[tokio::test]
async fn a_database_lost_before_the_first_call_is_not_taken_for_a_busy_one() {
    let database = database().await;
    let proxy = Proxy::to(database.target()).await;
    let quick = options().text("database.acquire_timeout", "1s");
    let server = Server::on(&database.url_through(&proxy, "password"), &quick).await;
    let client = server.client("bob", "phone").await;
    proxy.cut();
    let refused = rejection(client.pool_status().await);
    assert_eq!(refused.reason, Some(ErrorReason::StoreUnavailable), "{refused:?}");
}

/// Also once the connections that broke are used up, and when more calls come than there are
/// connections: refused connections are not mistaken for a busy pool.
#[tokio::test]
async fn without_a_database_every_call_says_so_and_when_it_is_back_they_succeed() {
    let database = database().await;
    let proxy = Proxy::to(database.target()).await;
    let two = options().set("database.max_connections", 2);
    let two = two.text("database.acquire_timeout", "1s");
    let server = Server::on(&database.url_through(&proxy, "password"), &two).await;
    let client = publish_some(&server, "bob", 1).await;
    proxy.cut();
    for _ in 0..4 {
        let refused = rejection(client.pool_status().await);
        assert_eq!(refused.reason, Some(ErrorReason::StoreUnavailable), "{refused:?}");
        assert!(refused.retry_after.is_some_and(|delay| delay > Duration::ZERO));
    }
    let calls: Vec<_> = (0..16)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.pool_status().await })
        })
        .collect();
    for call in calls {
        let refused = rejection(call.await.unwrap());
        assert_eq!(refused.reason, Some(ErrorReason::StoreUnavailable), "{refused:?}");
    }
    proxy.open();
    keypool_testing::server::until(async || client.pool_status().await.is_ok()).await;
    assert_eq!(counts(&client).await.available, 1);
}

/// What a new connection is told by a Postgres whose disk is full: an internal error that ends it.
const CANNOT_BEGIN: &[u8] = b"SFATAL\0VFATAL\0CXX000\0Mcould not write init file\0\0";

/// Something that answers whoever connects as such a Postgres does.
async fn postgres_that_lets_nobody_in() -> Target {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut told = [0; 1024];
            if stream.read(&mut told).await.is_ok_and(|read| read > 0) {
                let length = u32::try_from(CANNOT_BEGIN.len() + 4).unwrap().to_be_bytes();
                let answer = [b"E", &length[..], CANNOT_BEGIN].concat();
                let _ = stream.write_all(&answer).await; // whoever has gone need not know
            }
        }
    });
    Target::Tcp(address)
}

/// Whatever the code of the error: that Postgres ends connections is an outage, and no fault of the
/// service.
#[tokio::test]
async fn a_database_that_ends_new_connections_is_not_taken_for_a_fault() {
    let database = database().await;
    let proxy = Proxy::to(database.target()).await;
    let quick = options().text("database.acquire_timeout", "1s");
    let server = Server::on(&database.url_through(&proxy, "password"), &quick).await;
    let client = publish_some(&server, "bob", 1).await;
    proxy.cut();
    rejection(client.pool_status().await);
    proxy.lead_to(postgres_that_lets_nobody_in().await);
    proxy.open();
    for _ in 0..4 {
        let refused = rejection(client.pool_status().await);
        assert_eq!(refused.reason, Some(ErrorReason::StoreUnavailable), "{refused:?}");
    }
    proxy.lead_to(database.target());
    keypool_testing::server::until(async || client.pool_status().await.is_ok()).await;
}
