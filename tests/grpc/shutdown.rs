//! SIGTERM: calls in flight finish, new ones are refused, and the process ends.

use keypool_client::v1::ErrorReason;
use keypool_testing::{
    proxy::Proxy,
    server::{SERVICE, Server},
    tokens::token,
};
use tonic_health::pb::health_check_response::ServingStatus;

use super::*;

/// A client whose connection was there before its server is told to stop. That it was told is kept
/// from the client, which would call elsewhere otherwise.
struct Latecomer {
    proxy: Proxy,
    client: Client,
}

impl Latecomer {
    async fn at(server: &Server) -> Self {
        let proxy = Proxy::to(server.target()).await;
        let uri = format!("http://{}", proxy.address());
        let builder = Client::builder(uri, token("bob", "phone")).retries(0);
        let client = builder.connect().await.unwrap();
        client.pool_status().await.unwrap();
        proxy.hold_answers();
        Self { proxy, client }
    }

    /// What its next call is answered.
    async fn refused_by(self, server: &Server) -> Rejection {
        let Self { proxy, client } = self;
        let call = tokio::spawn(async move { client.pool_status().await });
        server.logged("SHUTTING_DOWN").await;
        proxy.open();
        rejection(call.await.unwrap())
    }
}

/// A call that reaches a server which was told to stop.
pub(super) async fn refused_while_stopping() -> Rejection {
    let database = database().await;
    let mut server = Server::start(&database, &options()).await;
    let latecomer = Latecomer::at(&server).await;
    server.signal("TERM");
    server.refuses_connections().await;
    let refused = latecomer.refused_by(&server).await;
    assert_eq!(server.ended().await.code(), Some(0));
    refused
}

/// Balancers hear of it first; then what is under way ends well while what comes late is sent
/// elsewhere; then the process is gone.
#[tokio::test]
async fn health_says_that_it_goes_while_calls_end_well() {
    let database = database().await;
    let mut server = Server::start(&database, &options()).await;
    let latecomer = Latecomer::at(&server).await;
    let mut health = server.health(SERVICE).await;
    assert_eq!(health.next().await, ServingStatus::Serving);
    let client = server.client("alice", "phone").await;
    let lock = database.lock_table("pool").await;
    let under_way = tokio::spawn(async move { client.pool_status().await });
    database.waiting(1).await;

    server.signal("TERM");
    assert_eq!(health.next().await, ServingStatus::NotServing);
    let refused = latecomer.refused_by(&server).await;
    assert_eq!(refused.reason, Some(ErrorReason::ShuttingDown));
    assert!(!under_way.is_finished());
    lock.release().await;
    under_way.await.unwrap().unwrap();
    // Though somebody still watches its health.
    assert_eq!(server.ended().await.code(), Some(0), "{}", server.log());
}

#[tokio::test]
async fn calls_in_flight_finish_and_new_ones_are_refused() {
    let database = database().await;
    let mut server = Server::start(&database, &options()).await;
    let bob = publish_some(&server, "bob", 4).await;
    let alice = server.client("alice", "phone").await;
    let first = reserve_one(&alice, &one_of("bob")).await;

    let lock = database.lock_table("pool").await;
    let status = tokio::spawn(async move { bob.pool_status().await });
    let reserve = tokio::spawn({
        let (alice, second) = (alice.clone(), one_of("bob"));
        async move { alice.reserve(&second).await }
    });
    database.waiting(2).await;
    server.signal("TERM");
    server.refuses_connections().await;
    // As the connection is told to go away, the client looks for a new one and finds none.
    keypool_testing::server::until(async || {
        match alice.spend(GROUP, [&first.reservation_id]).await {
            Ok(_) => false,
            Err(Error::Transport(_)) => true,
            Err(other) => other.reason() == Some(ErrorReason::ShuttingDown),
        }
    })
    .await;
    assert!(!status.is_finished() && !reserve.is_finished());
    lock.release().await;
    status.await.unwrap().unwrap();
    let second = reserve.await.unwrap().unwrap().results[0].reservation().unwrap().clone();
    assert_eq!(server.ended().await.code(), Some(0), "{}", server.log());
    assert!(server.log().contains("stopped"));

    let server = Server::start(&database, &options()).await;
    let alice = server.client("alice", "phone").await;
    let both = [first.reservation_id, second.reservation_id];
    assert_eq!(alice.spend(GROUP, both).await.unwrap().len(), 2);
}

#[tokio::test]
async fn ctrl_c_stops_it_too() {
    let database = database().await;
    let mut server = Server::start(&database, &options()).await;
    let _idle = publish_some(&server, "bob", 1).await;
    server.signal("INT");
    assert_eq!(server.ended().await.code(), Some(0), "{}", server.log());
}

#[tokio::test]
async fn calls_that_do_not_finish_in_time_are_cut_off() {
    let database = database().await;
    let patient = options()
        .text("server.drain_timeout", "50ms")
        .text("server.request_timeout", "10m")
        .text("database.statement_timeout", "5m");
    let mut server = Server::start(&database, &patient).await;
    let client = server.client("bob", "phone").await;
    let lock = database.lock_table("pool").await;
    let call = tokio::spawn(async move { client.pool_status().await });
    database.waiting(1).await;
    server.signal("TERM");
    assert_eq!(server.ended().await.code(), Some(1));
    assert!(server.log().contains("calls were still in flight after 50ms"), "{}", server.log());
    assert!(matches!(call.await.unwrap(), Err(Error::Transport(_))));
    lock.release().await;
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let database = database().await;
    let mut server = Server::start(&database, &options()).await;
    let client = server.client("bob", "phone").await;
    let lock = database.lock_table("pool").await;
    let call = tokio::spawn(async move { client.pool_status().await });
    database.waiting(1).await;
    server.signal("INT");
    server.refuses_connections().await;
    server.signal("INT");
    assert_eq!(server.ended().await.code(), Some(130));
    assert!(call.await.unwrap().is_err());
    lock.release().await;
}
