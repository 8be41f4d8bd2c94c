//! Peers that are gone without a word, or do not take what they asked for, are cut.

use std::time::Duration;

use keypool_client::Client;
use keypool_service::domain::policy::PoolPolicy;
use keypool_testing::{
    proxy::{Proxy, Target},
    raw::RawConnection,
    server::SERVICE,
    watching::{Replicas, Watching, client_key, patiently, usual},
};

use super::*;

const MOMENT: Duration = Duration::from_millis(100);

/// Half-open: the connection is there for the server, and nobody at its other end.
#[tokio::test]
async fn a_peer_that_does_not_answer_is_cut_with_its_streams() {
    let replicas = Replicas::new(PoolPolicy::default()).await;
    let mut options = usual();
    options.connections.keepalive_interval = MOMENT;
    options.connections.keepalive_timeout = MOMENT;
    options.limits.watch.per_client = 1;
    let here = replicas.serve_with(options).await;
    let bob = client_key("bob", "phone");
    let proxy = Proxy::to(Target::Tcp(here.address)).await;
    let far = Client::builder(format!("http://{}", proxy.address()), replicas.token(&bob));
    let far = far.retries(0).connect().await.unwrap();
    let (_stream, _) = Watching::start(&far).await;
    let near = replicas.client(&here, &bob).await;
    assert!(Watching::open(&near).await.is_err(), "one stream is all it may have");
    proxy.hold_answers();
    patiently(async { while Watching::open(&near).await.is_err() {} }).await;
}

/// Its answer is larger than what it lets the server send.
#[tokio::test]
async fn a_caller_that_does_not_take_its_answer_is_cut() {
    let replicas = Replicas::new(PoolPolicy::default()).await;
    let mut options = usual();
    options.connections.idle_timeout = MOMENT;
    let here = replicas.serve_with(options).await;
    const DEVICES: usize = 30;
    for n in 0..DEVICES {
        let large = Forge::new(SUITE, "bob").extension(0xf0aa, &vec![7; 19_000]).build();
        let owner = replicas.client(&here, &client_key("bob", &format!("device {n}"))).await;
        let answer = owner.upload([large]).await.unwrap();
        assert!(answer.results[0].accepted().is_some(), "{answer:?}");
    }
    let alice = client_key("alice", "phone");
    let reader = replicas.client(&here, &alice).await;
    let all = Reserve::new(GROUP, SUITE).target("bob").all_or_nothing();
    assert_eq!(reader.reserve(&all).await.unwrap().reservations().count(), DEVICES);
    let mut connection = RawConnection::to(here.address).await.unwrap();
    let token = replicas.token(&alice);
    let mut unread = connection.call("ReserveKeyPackages", Some(&token), &[]).await.unwrap();
    unread.send(all.message());
    let _ = patiently(connection.ended()).await;
}

/// Streams that never end by themselves, for which no token is needed.
#[tokio::test]
async fn a_stream_of_health_does_not_keep_a_server_that_stops() {
    let database = database().await;
    let mut server = Server::start(&database, &ServerOptions::default()).await;
    let mut health = server.health(SERVICE).await;
    health.next().await;
    server.signal("TERM");
    assert_eq!(server.ended().await.code(), Some(0), "{}", server.log());
    drop(health);
}
