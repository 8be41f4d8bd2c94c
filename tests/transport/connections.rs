//! What bounds connections, from both sides of each bound.

use std::time::Duration;

use keypool_client::v1::{GetPoolStatusRequest, WatchPoolStatusRequest};
use keypool_testing::{
    raw::RawConnection,
    server::{Server, until},
    tls::{Ca, TlsFolder},
    tokens::{authorized, token},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::*;

/// Returns once the server has ended the connection.
async fn cut(mut stream: TcpStream) {
    let mut rest = Vec::new();
    // A reset is an end, too.
    let _ = stream.read_to_end(&mut rest).await;
}

#[tokio::test]
async fn a_slow_handshake_is_cut() {
    let (database, ca) = (database().await, Ca::new());
    let files = TlsFolder::of(&ca);
    let impatient = files
        .configure(options())
        .text("server.handshake_timeout", "1s")
        .text("server.idle_timeout", "1h");
    let server = Server::start_with_tls(&database, &impatient, ca.trusted()).await;
    let silent = TcpStream::connect(server.address()).await.unwrap();
    let mut halting = TcpStream::connect(server.address()).await.unwrap();
    // The first bytes of a ClientHello (RFC 8446, section 5.1): the rest never comes.
    halting.write_all(&[22, 3, 1, 2, 0, 1, 0]).await.unwrap();
    cut(silent).await;
    cut(halting).await;
}

#[tokio::test]
async fn a_connection_without_a_call_is_closed_and_no_other() {
    let database = database().await;
    let server = Server::start(&database, &options().text("server.idle_timeout", "2s")).await;
    // Opened first: idle for longer than the others if a stream were nothing.
    let mut grpc = server.grpc().await;
    let watch = authorized(&token("bob", "phone"), WatchPoolStatusRequest {});
    let mut watch = grpc.watch_pool_status(watch).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();

    let used = RawConnection::answered(server.address()).await.unwrap();
    let fresh = RawConnection::to(server.address()).await.unwrap();
    let silent = TcpStream::connect(server.address()).await.unwrap();
    used.ended().await.unwrap();
    fresh.ended().await.unwrap();
    // It says nothing to being sent away, either.
    cut(silent).await;

    // Still the same connection: its stream goes on.
    let status = authorized(&token("bob", "phone"), GetPoolStatusRequest {});
    grpc.get_pool_status(status).await.unwrap();
    let next = tokio::time::timeout(Duration::ZERO, watch.message()).await;
    assert!(next.is_err(), "the stream has ended: {next:?}");
}

#[tokio::test]
async fn one_connection_too_many_is_refused() {
    let database = database().await;
    let server = Server::start(&database, &options().set("server.max_connections", 2)).await;
    // The first look at the server's health may take a place for a moment longer.
    let mut held = Vec::new();
    until(async || {
        held.extend(RawConnection::answered(server.address()).await);
        held.len() == 2
    })
    .await;
    for _ in 0..3 {
        assert!(RawConnection::answered(server.address()).await.is_err());
    }
    server.logged("no more connections are accepted limit=2").await;
    held.pop();
    until(async || {
        held.extend(RawConnection::answered(server.address()).await);
        held.len() == 2
    })
    .await;
}

#[tokio::test]
async fn a_connection_is_told_how_many_calls_it_may_carry() {
    let database = database().await;
    let few = options().set("server.max_streams_per_connection", 3);
    let server = Server::start(&database, &few).await;
    let connection = RawConnection::answered(server.address()).await.unwrap();
    assert_eq!(connection.max_streams(), 3);
}

#[tokio::test]
async fn headers_beyond_the_limit_are_refused() {
    let database = database().await;
    for (limit, size, fits) in
        [(None, 10_000, true), (None, 20_000, false), (Some(40_000), 20_000, true)]
    {
        let options = match limit {
            Some(limit) => options().set("server.max_header_bytes", limit),
            None => options(),
        };
        let server = Server::start(&database, &options).await;
        let mut connection = RawConnection::answered(server.address()).await.unwrap();
        let token = token("bob", "phone");
        for padding in ["x".repeat(size), String::new()] {
            let headers = [("x-padding", &*padding)];
            let mut call = connection.call("GetPoolStatus", Some(&token), &headers).await.unwrap();
            call.send(&GetPoolStatusRequest {});
            let (code, status) = call.answer().await.unwrap();
            if fits || padding.is_empty() {
                assert_eq!(status.unwrap().code(), tonic::Code::Ok, "{limit:?} {size}");
            } else {
                assert_eq!(code.as_u16(), 431, "Request Header Fields Too Large");
            }
        }
    }
}
