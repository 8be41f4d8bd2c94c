//! Several replicas.

use std::time::Duration;

use keypool_client::{Client, Code, Error};
use tokio::net::TcpListener;

use crate::{
    fake::{Behaviour, Fake},
    retries::failing,
};

/// An address where nobody listens.
async fn dead() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[tokio::test]
async fn calls_go_round_the_replicas() {
    let fakes = [Fake::serving().await, Fake::serving().await, Fake::serving().await];
    let client = fakes[0].builder().endpoint(fakes[1].url()).endpoint(fakes[2].url());
    let client = client.connect().await.unwrap();
    for _ in 0..9 {
        client.pool_status().await.unwrap();
    }
    assert_eq!(fakes.map(|fake| fake.asked().len()), [3, 3, 3]);
}

#[tokio::test]
async fn a_dead_replica_fails_no_call() {
    let fake = Fake::serving().await;
    let builder = Client::builder(dead().await, "token").endpoint(fake.url()).retries(0);
    for client in [builder.clone().connect().await.unwrap(), builder.connect_lazy().unwrap()] {
        for _ in 0..10 {
            client.pool_status().await.unwrap();
        }
    }
    assert_eq!(fake.asked().len(), 20);
}

#[tokio::test]
async fn a_replica_that_dies_fails_no_call() {
    let [dies, lives] = [Fake::serving().await, Fake::serving().await];
    let client = dies.builder().endpoint(lives.url()).retries(0).connect().await.unwrap();
    for _ in 0..4 {
        client.pool_status().await.unwrap();
    }
    assert_eq!(dies.asked().len(), 2);
    drop(dies);
    for _ in 0..10 {
        client.pool_status().await.unwrap();
    }
}

#[tokio::test]
async fn a_replica_that_shuts_down_sends_its_calls_elsewhere_at_once() {
    let [stops, lives] = [Fake::serving().await, Fake::serving().await];
    stops.behave(failing(Code::Unavailable, "SHUTTING_DOWN", Some(Duration::from_secs(3600))));
    let client = stops.builder().endpoint(lives.url()).retries(0).connect().await.unwrap();
    for _ in 0..6 {
        client.pool_status().await.unwrap();
    }
    assert_eq!((stops.asked().len(), lives.asked().len()), (1, 6), "it is left alone for a while");
}

#[tokio::test]
async fn a_silent_replica_leaves_time_for_another() {
    let [silent, lives] = [Fake::start(Behaviour::Hang).await, Fake::serving().await];
    let builder = silent.builder().endpoint(lives.url()).retries(0);
    let client = builder.deadline(Duration::from_secs(6)).connect().await.unwrap();
    for _ in 0..4 {
        client.pool_status().await.unwrap();
    }
    assert_eq!((silent.asked().len(), lives.asked().len()), (1, 4));
}

#[tokio::test]
async fn without_any_replica_a_call_fails_and_the_next_one_tries_again() {
    let [first, second] = [dead().await, dead().await];
    let builder = Client::builder(first, "token").endpoint(second).retries(0);
    let error = builder.clone().connect().await.unwrap_err();
    assert!(matches!(error, Error::Transport(_)), "{error:?}");
    let client = builder.connect_lazy().unwrap();
    for _ in 0..3 {
        let error = client.pool_status().await.unwrap_err();
        assert!(matches!(error, Error::Transport(_)), "{error:?}");
    }
}

#[tokio::test]
async fn a_name_is_looked_up() {
    let fake = Fake::serving().await;
    let url = format!("http://localhost:{}", fake.port());
    let builder = Client::builder(url, "token").resolve_every(Duration::from_secs(3600));
    for client in [builder.clone().connect().await.unwrap(), builder.connect_lazy().unwrap()] {
        for _ in 0..3 {
            client.pool_status().await.unwrap();
        }
    }
}
