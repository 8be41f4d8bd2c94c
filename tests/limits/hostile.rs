//! Those who send slowly, not at all, too much or too often take nothing from others.

use futures_util::future::select_all;
use keypool_client::{
    Code, Rejection,
    v1::{self, ErrorReason, GetPoolStatusRequest},
};
use keypool_testing::{
    raw::{RawCall, RawConnection},
    server::until,
    tokens::{authorized, token},
};
use prost::Message as _;

use super::*;

const MIB: usize = 1024 * 1024;

/// The head of a message of so many bytes, as gRPC frames it, and the bytes that are sent of it.
fn part_of_message(compressed: bool, length: usize, sent: usize) -> Vec<u8> {
    let mut bytes = vec![u8::from(compressed)];
    bytes.extend(u32::try_from(length).unwrap().to_be_bytes());
    bytes.resize(bytes.len() + sent, 7);
    bytes
}

async fn rejected(call: &mut RawCall) -> Rejection {
    let (_, status) = call.answer().await.unwrap();
    status.expect("a status of gRPC").into()
}

/// The most memory that the server ever had, in bytes.
fn memory(server: &Server) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().trim().parse::<usize>().unwrap() * 1024
}

/// Slow loris: requests that begin and do not end. That they are given up in the end is the matter of
/// `transport::calls`.
#[tokio::test]
async fn requests_that_arrive_slowly_take_no_place() {
    let database = database().await;
    let few = ServerOptions::default()
        .set("limits.max_requests_per_caller", 5)
        .set("limits.owner_places", 1)
        .set("limits.owner_queue", 1)
        .text("server.request_timeout", "1m");
    let server = Server::start(&database, &few).await;
    let bob = publish(&server, "bob", 3).await;
    let mut connection = RawConnection::answered(server.address()).await.unwrap();
    let mallory = token("mallory", "phone");
    let mut slow = Vec::new();
    for n in [0, 3, 5, 10, 25, 0] {
        let mut call = connection.call("UploadKeyPackages", Some(&mallory), &[]).await.unwrap();
        // Nothing; a part of the head; the head; some of the message.
        if n > 0 {
            let sent = part_of_message(false, 1000, 20)[..n].to_vec();
            // It may be the one that is turned away.
            let _ = call.send_bytes(sent, false);
        }
        slow.push(call);
    }
    // One of the six is turned away, whichever comes last: then the other five are there. To ask by
    // another call of the caller's would take one of their places.
    let (refused, at, _) = select_all(slow.iter_mut().map(|call| Box::pin(rejected(call)))).await;
    assert_eq!(refused.reason, Some(ErrorReason::RateLimited), "{refused:?}");
    slow.remove(at);
    let others = server.client("mallory", "phone").await;
    let refused = others.pool_status().await.unwrap_err();
    assert_eq!(refused.reason(), Some(ErrorReason::RateLimited), "{refused:?}");
    // There is one place for owners, and it is free.
    for _ in 0..20 {
        bob.pool_status().await.unwrap();
    }
    slow.iter_mut().for_each(RawCall::cancel);
    until(async || others.pool_status().await.is_ok()).await;
}

/// Messages that arrive but for their last bytes would fill the memory.
#[tokio::test]
async fn the_bytes_of_unfinished_messages_have_a_bound() {
    let database = database().await;
    let small = ServerOptions::default()
        .set("server.max_request_bytes", MIB)
        .set("limits.max_bytes_per_caller", MIB)
        .set("limits.max_bytes", 2 * MIB);
    let server = Server::start(&database, &small).await;
    let bob = publish(&server, "bob", 3).await;
    let mut connections = Vec::new();
    let mut unfinished = Vec::new();
    let mut send = async |user: &str| {
        let mut connection = RawConnection::to(server.address()).await.unwrap();
        let token = token(user, "phone");
        let mut call = connection.call("UploadKeyPackages", Some(&token), &[]).await.unwrap();
        call.send_bytes(part_of_message(false, MIB - 10, MIB * 9 / 10), false).unwrap();
        connections.push(connection);
        call
    };
    // Of two of one caller's, one is refused; of three callers' as well.
    let [mut first, mut second] = [send("mallory").await, send("mallory").await];
    let refused = tokio::select! {
        refused = rejected(&mut first) => { unfinished.push(second); refused }
        refused = rejected(&mut second) => { unfinished.push(first); refused }
    };
    assert_eq!(refused.reason, Some(ErrorReason::RateLimited), "{refused:?}");
    let [mut first, mut second] = [send("oscar").await, send("trudy").await];
    let refused = tokio::select! {
        refused = rejected(&mut first) => { unfinished.push(second); refused }
        refused = rejected(&mut second) => { unfinished.push(first); refused }
    };
    assert_eq!(refused.reason, Some(ErrorReason::Overloaded), "{refused:?}");
    assert_eq!(refused.code, Code::ResourceExhausted);
    for mut call in unfinished {
        call.cancel();
    }
    until(async || bob.upload([vec![7; MIB * 9 / 10]]).await.is_ok()).await;
    let alice = server.client("alice", "phone").await;
    alice.upload([vec![7; MIB * 9 / 10]]).await.unwrap();
}

/// What a message says of its length, or of what it is once it is unpacked, is not believed.
#[tokio::test]
async fn compressed_messages_and_boasting_lengths_are_refused_unread() {
    let database = database().await;
    let server = Server::start(&database, &ServerOptions::default()).await;
    let bob = token("bob", "phone");
    let mut connection = RawConnection::answered(server.address()).await.unwrap();
    let before = memory(&server);
    for _ in 0..50 {
        for (encoding, compressed, length, code) in [
            (None, false, u32::MAX as usize, Code::InvalidArgument),
            (None, true, 1000, Code::InvalidArgument),
            (Some("gzip"), true, 1000, Code::Unimplemented),
            (Some("deflate"), true, 1000, Code::Unimplemented),
            (Some("zstd"), false, 1000, Code::Unimplemented),
            (Some("identity"), false, u32::MAX as usize, Code::InvalidArgument),
        ] {
            let headers: Vec<_> =
                encoding.iter().map(|encoding| ("grpc-encoding", *encoding)).collect();
            let call = connection.call("UploadKeyPackages", Some(&bob), &headers).await;
            let mut call = call.unwrap();
            // The server may be done with it already.
            let _ = call.send_bytes(part_of_message(compressed, length, 500), false);
            let refused = rejected(&mut call).await;
            assert_eq!(refused.code, code, "{encoding:?} {compressed} {length}: {refused:?}");
        }
    }
    assert!(memory(&server) < before + 64 * MIB);
    let status = authorized(&bob, GetPoolStatusRequest {});
    server.grpc().await.get_pool_status(status).await.unwrap();
}

/// A small bomb in the headers' own compression (HPACK): one long value, named again and again.
#[tokio::test]
async fn headers_that_unpack_to_much_are_refused() {
    let database = database().await;
    let server = Server::start(&database, &ServerOptions::default()).await;
    let bob = token("bob", "phone");
    let mut connection = RawConnection::answered(server.address()).await.unwrap();
    let long = "x".repeat(3000);
    // The first is sent whole, each of the others as the byte that names it.
    let headers = vec![("x-bomb", &*long); 5000];
    match connection.call("GetPoolStatus", Some(&bob), &headers).await {
        Ok(mut call) => match call.answer().await {
            Ok((code, _)) => assert_eq!(code.as_u16(), 431),
            Err(ended) => {
                assert!(ended.is_go_away() || ended.is_reset() || ended.is_io(), "{ended}")
            }
        },
        Err(ended) => assert!(ended.is_go_away() || ended.is_reset() || ended.is_io(), "{ended}"),
    }
    server.client("bob", "phone").await.pool_status().await.unwrap();
}

#[tokio::test]
async fn a_flood_of_tiny_calls_is_limited_for_its_caller_alone_and_fills_no_log() {
    const CALLS: usize = 4000;
    let database = database().await;
    // What the bucket lets through may wait for a machine that is busy.
    let patient = defaults().text("limits.max_wait", "10s").text("limits.standing_wait", "10s");
    let server = Server::start(&database, &patient).await;
    let bob = publish(&server, "bob", 1).await;
    let mallory = token("mallory", "phone");
    let mut connection = RawConnection::answered(server.address()).await.unwrap();
    let (memory_before, log_before) = (memory(&server), server.log_bytes().len());
    let (mut served, mut limited) = (0, 0);
    for _ in 0..CALLS / 100 {
        let mut calls = Vec::new();
        for _ in 0..100 {
            let call = connection.call("GetPoolStatus", Some(&mallory), &[]).await;
            let mut call = call.unwrap();
            call.send(&GetPoolStatusRequest {});
            calls.push(call);
        }
        for mut call in calls {
            let (_, status) = call.answer().await.unwrap();
            let status = status.unwrap();
            if status.code() == tonic::Code::Ok {
                served += 1;
                continue;
            }
            let refused = Rejection::from(status);
            assert_eq!(refused.reason, Some(ErrorReason::RateLimited), "{refused:?}");
            limited += 1;
        }
    }
    bob.pool_status().await.unwrap();
    assert_eq!(served + limited, CALLS);
    assert!(served >= 120, "what the bucket held: {served}");
    assert!(limited > CALLS / 2, "{limited}");
    assert!(memory(&server) < memory_before + 64 * MIB);
    server.logged("calls were refused rate_limited=").await;
    let lines = server.log_bytes().len() - log_before;
    assert!(lines < 100_000, "{lines} bytes of log");
}

/// Streams that are reset as soon as they begin (CVE-2023-44487).
#[tokio::test]
async fn a_flood_of_resets_ends_its_connection_and_no_other() {
    let database = database().await;
    let server = Server::start(&database, &ServerOptions::default()).await;
    let bob = publish(&server, "bob", 1).await;
    let mallory = token("mallory", "phone");
    let mut connection = RawConnection::answered(server.address()).await.unwrap();
    let before = memory(&server);
    let mut ended = false;
    for _ in 0..100_000 {
        match connection.call("GetPoolStatus", Some(&mallory), &[]).await {
            Ok(mut call) => call.cancel(),
            Err(_) => {
                ended = true;
                break;
            }
        }
    }
    bob.pool_status().await.unwrap();
    assert!(ended || connection.ended().await.is_err(), "it may go on for ever");
    assert!(memory(&server) < before + 64 * MIB);
}

/// Calls without a token, or with a bad one, take nobody's place.
#[tokio::test]
async fn a_flood_without_tokens_takes_no_place() {
    let database = database().await;
    let narrow = ServerOptions::default()
        .set("limits.owner_places", 1)
        .set("limits.owner_queue", 0)
        .set("server.max_concurrent_requests", 3);
    let server = Server::start(&database, &narrow).await;
    let bob = publish(&server, "bob", 1).await;
    let mut connection = RawConnection::answered(server.address()).await.unwrap();
    let mut open = Vec::new();
    for n in 0..100 {
        let bad = ["no.such.token"][..n % 2].first().copied();
        let mut call = connection.call("UploadKeyPackages", bad, &[]).await.unwrap();
        call.send_bytes(part_of_message(false, 1000, 10), false).unwrap();
        open.push(call);
    }
    for _ in 0..20 {
        bob.pool_status().await.unwrap();
    }
    for mut call in open {
        assert_eq!(rejected(&mut call).await.code, Code::Unauthenticated);
    }
}

/// A message with many more items than it may have costs no more than its bytes.
#[tokio::test]
async fn a_message_of_nothing_but_items_is_refused() {
    let database = database().await;
    let server = Server::start(&database, &ServerOptions::default()).await;
    let bob = token("bob", "phone");
    let before = memory(&server);
    let mut connection = RawConnection::answered(server.address()).await.unwrap();
    let items = 2 * MIB - 100;
    let bomb = v1::UploadKeyPackagesRequest { key_packages: vec![vec![].into(); items], mode: 0 };
    assert!(bomb.encoded_len() < 4 * MIB);
    for _ in 0..3 {
        let mut call = connection.call("UploadKeyPackages", Some(&bob), &[]).await.unwrap();
        call.send(&bomb);
        let refused = rejected(&mut call).await;
        assert_eq!(refused.reason, Some(ErrorReason::BatchTooLarge), "{refused:?}");
        // Before it was decoded, or else it would be the field that is told.
        assert_eq!(refused.metadata["field"], "request");
    }
    assert!(memory(&server) < before + 256 * MIB);
}
