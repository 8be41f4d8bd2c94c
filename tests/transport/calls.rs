//! A call ends with its deadline, or when its caller cancels it, and its work with it.

use std::pin::pin;

use keypool_client::{
    Client, Code, Error, Rejection, Reserve,
    v1::{ErrorReason, GetPoolStatusRequest, WatchPoolStatusRequest},
};
use keypool_service::domain::clock::{Clock as _, SystemClock};
use keypool_testing::{
    forge::Forge,
    raw::RawConnection,
    server::{Server, until},
    tokens::token,
};
use tokio::task::JoinHandle;

use super::*;

const GROUP: &[u8] = b"the group of the test";

/// A call whose deadline passes while it waits for a lock in the database.
pub(crate) async fn refused_past_its_deadline() -> Rejection {
    let database = database().await;
    let server = Server::start(&database, &options()).await;
    let mut connection = RawConnection::to(server.address()).await.unwrap();
    let lock = database.lock_table("pool").await;
    let token = token("bob", "phone");
    let deadline = [("grpc-timeout", "50m")];
    let mut call = connection.call("GetPoolStatus", Some(&token), &deadline).await.unwrap();
    call.send(&GetPoolStatusRequest {});
    let (_, status) = call.answer().await.unwrap();
    server.logged("DEADLINE_EXCEEDED").await;
    lock.release().await;
    status.unwrap().into()
}

#[tokio::test]
async fn the_deadline_of_the_caller_is_kept() {
    let refused = refused_past_its_deadline().await;
    assert_eq!(refused.code, Code::DeadlineExceeded);
    assert_eq!(refused.reason, Some(ErrorReason::DeadlineExceeded));
}

/// That of a stream, too, whose client does not end it.
#[tokio::test]
async fn a_stream_ends_with_the_deadline_of_its_caller() {
    let database = database().await;
    let server = Server::start(&database, &options()).await;
    let mut connection = RawConnection::to(server.address()).await.unwrap();
    let (token, deadline) = (token("bob", "phone"), [("grpc-timeout", "300m")]);
    let mut call = connection.call("WatchPoolStatus", Some(&token), &deadline).await.unwrap();
    call.send(&WatchPoolStatusRequest {});
    let (_, status) = call.answer().await.unwrap();
    let refused = Rejection::from(status.unwrap());
    assert_eq!(refused.reason, Some(ErrorReason::DeadlineExceeded));
}

#[tokio::test]
async fn a_request_that_does_not_arrive_is_not_waited_for() {
    let database = database().await;
    let impatient = options()
        .text("server.request_timeout", "500ms")
        .text("database.statement_timeout", "500ms");
    let server = Server::start(&database, &impatient).await;
    let mut connection = RawConnection::to(server.address()).await.unwrap();
    let token = token("bob", "phone");
    let mut call = connection.call("GetPoolStatus", Some(&token), &[]).await.unwrap();
    let (_, status) = call.answer().await.unwrap();
    assert_eq!(status.unwrap().code(), tonic::Code::DeadlineExceeded);
}

#[tokio::test]
async fn a_message_beyond_the_limit_is_refused_with_its_reason() {
    let database = database().await;
    let small = options().set("server.max_request_bytes", 65_536);
    let server = Server::start(&database, &small).await;
    let bob = server.client("bob", "phone").await;
    let upload = async |bytes| bob.upload([vec![7; bytes]]).await;
    upload(60_000).await.unwrap();
    match upload(65_536).await.unwrap_err() {
        Error::Rejected(refused) => {
            assert_eq!(refused.reason, Some(ErrorReason::InvalidArgument));
            let told = &refused.field_violations[0].description;
            assert_eq!(told, "must have at most 65536 bytes");
        }
        other => panic!("{other:?}"),
    }
}

async fn publish(server: &Server, count: usize) -> Client {
    let bob = server.client("bob", "phone").await;
    let now = SystemClock.now().unix_timestamp().try_into().unwrap();
    let packages = (0..count).map(|_| Forge::new(1, "bob").valid_around(now).build());
    let answer = bob.upload(packages).await.unwrap();
    assert!(answer.results.iter().all(|result| result.accepted().is_some()));
    bob
}

fn ask() -> Reserve {
    Reserve::new(GROUP, 1_u16).target_clients("bob", ["phone"])
}

async fn reserved(bob: &Client) -> u32 {
    bob.pool_status().await.unwrap().cipher_suites[0].reserved
}

/// Calls, as often as it is turned away, and cancels once `ripe`; returns once the server has given
/// the call up.
async fn cancel(server: &Server, request: &Reserve, ripe: impl Future<Output = ()>) {
    let given_up = || server.log().matches("call given up").count();
    let before = given_up();
    let mut connection = RawConnection::to(server.address()).await.unwrap();
    let token = token("alice", "phone");
    let mut ripe = pin!(ripe);
    loop {
        let mut call = connection.call("ReserveKeyPackages", Some(&token), &[]).await.unwrap();
        call.send(request.message());
        tokio::select! {
            answer = call.answer() => {
                let (_, status) = answer.unwrap();
                assert_eq!(status.unwrap().code(), tonic::Code::ResourceExhausted);
            }
            () = ripe.as_mut() => {
                call.cancel();
                break;
            }
        }
    }
    until(async || given_up() > before).await;
}

/// Returns once as many calls are worked on as may be.
async fn full(bob: &Client) {
    until(async || match bob.pool_status().await {
        Ok(_) => false,
        Err(refused) => refused.reason() == Some(ErrorReason::Overloaded),
    })
    .await;
}

/// Reserves, as often as it is turned away.
fn insist(client: Client) -> JoinHandle<()> {
    let request = ask();
    tokio::spawn(async move {
        while let Err(refused) = client.reserve(&request).await {
            assert_eq!(refused.reason(), Some(ErrorReason::Overloaded), "{refused:?}");
        }
    })
}

/// Cancelled before its statement began: it never begins.
#[tokio::test]
async fn a_cancelled_call_that_waits_for_a_connection_has_no_effect() {
    let database = database().await;
    let narrow = options()
        .set("database.max_connections", 1)
        .text("database.acquire_timeout", "1m")
        .text("database.statement_timeout", "1m")
        .text("server.request_timeout", "1m")
        .set("server.max_concurrent_requests", 2);
    let server = Server::start(&database, &narrow).await;
    let bob = publish(&server, 3).await;
    let [carol, dave] =
        [server.client("carol", "phone").await, server.client("dave", "phone").await];
    let lock = database.lock_table("draw").await;
    let held = insist(carol);
    // Who waits there has the only connection.
    database.waiting(1).await;
    // A third call is turned away once two are worked on: carol's and the one to cancel.
    let ripe = full(&bob);
    cancel(&server, &ask(), ripe).await;
    let behind = insist(dave);
    lock.release().await;
    held.await.unwrap();
    // The connection goes to those who wait in their order: alice's turn would have come.
    behind.await.unwrap();
    assert_eq!(reserved(&bob).await, 2, "carol's and dave's");
}

/// Cancelled while its statement runs: as if its answer were lost. A repeat gets what it reserved.
#[tokio::test]
async fn a_call_that_is_cancelled_in_its_statement_reserves_at_most_what_a_repeat_gets() {
    let database = database().await;
    let patient =
        options().text("database.statement_timeout", "1m").text("server.request_timeout", "1m");
    let server = Server::start(&database, &patient).await;
    let bob = publish(&server, 3).await;
    let lock = database.lock_table("draw").await;
    let request = ask();
    cancel(&server, &request, database.waiting(1)).await;
    lock.release().await;
    let alice = server.client("alice", "phone").await;
    let answer = alice.reserve(&request).await.unwrap();
    let got = answer.results[0].reservation().unwrap();
    assert_eq!(reserved(&bob).await, 1);
    alice.spend(GROUP, [got.reservation_id.clone()]).await.unwrap();
    assert_eq!(reserved(&bob).await, 0);
}
