//! When the provider of tokens is asked.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::{StreamExt as _, future::join_all};
use keypool_client::{Client, Code, Error, TokenSource};
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::fake::{Behaviour, Fake};

/// Numbered tokens that live so many seconds from now, and how many were given.
fn provider(lifetime: i64) -> (TokenSource, Arc<AtomicUsize>) {
    let given = Arc::new(AtomicUsize::new(0));
    let source = TokenSource::provider({
        let given = given.clone();
        move || {
            let number = given.fetch_add(1, Ordering::SeqCst);
            async move { Ok(token(number, lifetime)) }
        }
    });
    (source, given)
}

#[allow(clippy::disallowed_methods, reason = "a token's end is a date")]
fn token(number: usize, lifetime: i64) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
    let payload = format!(r#"{{"exp":{},"jti":"{number}"}}"#, now + lifetime);
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(payload))
}

fn expired() -> Status {
    let details = ErrorDetails::with_error_info("TOKEN_EXPIRED", "keypool.v1", HashMap::new());
    Status::with_error_details(Code::Unauthenticated, "expired", details)
}

fn distinct(fake: &Fake) -> usize {
    let mut tokens = fake.metadata("authorization");
    tokens.dedup();
    tokens.len()
}

#[tokio::test]
async fn a_token_serves_all_calls_until_it_nears_its_end() {
    let fake = Fake::serving().await;
    let (source, given) = provider(3600);
    let client = Client::connect(fake.url(), source).await.unwrap();
    join_all((0..20).map(|_| client.pool_status()))
        .await
        .into_iter()
        .for_each(|it| drop(it.unwrap()));
    client.clone().pool_status().await.unwrap();
    assert_eq!((given.load(Ordering::SeqCst), distinct(&fake)), (1, 1));
}

#[tokio::test]
async fn a_token_at_its_end_is_replaced_before_the_call() {
    let fake = Fake::serving().await;
    let (source, given) = provider(-1);
    let client = Client::connect(fake.url(), source).await.unwrap();
    for _ in 0..3 {
        client.pool_status().await.unwrap();
    }
    assert_eq!((given.load(Ordering::SeqCst), distinct(&fake)), (3, 3));
}

#[tokio::test]
async fn a_token_that_the_server_calls_expired_is_replaced_once_and_the_call_repeated() {
    let fake = Fake::serving().await;
    let (source, given) = provider(3600);
    let client = Client::builder(fake.url(), source).retries(0).connect().await.unwrap();
    fake.behave_first([Behaviour::Fail(expired())]);
    client.pool_status().await.unwrap();
    assert_eq!((given.load(Ordering::SeqCst), fake.asked().len(), distinct(&fake)), (2, 2, 2));

    fake.behave(Behaviour::Fail(expired()));
    let error = client.pool_status().await.unwrap_err();
    assert!(matches!(error, Error::TokenExpired(_)), "{error:?}");
    assert_eq!((given.load(Ordering::SeqCst), fake.asked().len()), (3, 4));
}

#[tokio::test]
async fn a_fixed_token_that_has_expired_is_an_error_at_once() {
    let fake = Fake::start(Behaviour::Fail(expired())).await;
    let client = fake.builder().connect().await.unwrap();
    let error = client.pool_status().await.unwrap_err();
    assert!(matches!(error, Error::TokenExpired(_)), "{error:?}");
    assert_eq!(fake.asked().len(), 1);
}

#[tokio::test]
async fn after_a_token_expired_during_a_stream_the_next_one_has_a_new_token() {
    let fake = Fake::serving().await;
    fake.end_streams_with(expired());
    let (source, given) = provider(3600);
    let client = Client::connect(fake.url(), source).await.unwrap();
    let states: Vec<_> = client.watch_pool_status().await.unwrap().collect().await;
    assert!(matches!(states.last(), Some(Err(Error::TokenExpired(_)))), "{states:?}");
    assert_eq!(given.load(Ordering::SeqCst), 1);
    let _resumed = client.watch_pool_status().await.unwrap();
    assert_eq!((given.load(Ordering::SeqCst), distinct(&fake)), (2, 2));
}
