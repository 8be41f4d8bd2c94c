//! What is repeated, and what is not.

use std::{collections::HashMap, time::Duration};

use futures_util::future::join_all;
use keypool_client::{Client, Code, Error, Reserve};
use tokio::net::TcpListener;
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::fake::{Asked, Behaviour, Fake, SERVE};

/// Fails for a reason of keypool's, with RetryInfo when that is given.
pub(crate) fn failing(code: Code, reason: &str, retry_after: Option<Duration>) -> Behaviour {
    let mut details = ErrorDetails::with_error_info(reason, "keypool.v1", HashMap::new());
    details.set_retry_info(retry_after);
    Behaviour::Fail(Status::with_error_details(code, "not now", details))
}

#[tokio::test]
async fn what_passes_is_repeated_with_the_same_message() {
    let fake = Fake::serving().await;
    let client = fake.builder().connect().await.unwrap();
    let reserve = Reserve::new(&b"group"[..], 1_u16).target("bob");
    let soon = Some(Duration::from_millis(1));
    fake.behave_first([
        failing(Code::Unavailable, "STORE_UNAVAILABLE", soon),
        failing(Code::ResourceExhausted, "OVERLOADED", soon),
        failing(Code::ResourceExhausted, "RATE_LIMITED", soon),
        failing(Code::Unavailable, "SHUTTING_DOWN", None),
        Behaviour::Fail(Status::unavailable("a proxy without upstream")),
    ]);
    client.reserve(&reserve).await.unwrap();
    assert_eq!(fake.asked(), vec![Asked::Reserve(reserve.message().clone()); 6]);
}

#[tokio::test]
async fn what_will_not_pass_or_is_the_callers_to_mend_is_not_repeated() {
    let cases = [
        (Code::Internal, "INTERNAL"),
        (Code::FailedPrecondition, "POOL_EXHAUSTED"),
        (Code::InvalidArgument, "INVALID_ARGUMENT"),
        (Code::Unauthenticated, "TOKEN_INVALID"),
        (Code::DeadlineExceeded, "FROM_THE_FUTURE"),
    ];
    for (code, reason) in cases {
        let fake = Fake::start(failing(code, reason, Some(Duration::from_millis(1)))).await;
        let client = fake.builder().connect().await.unwrap();
        let error = client.pool_status().await.unwrap_err();
        assert_eq!(error.rejection().unwrap().reason_name.as_deref(), Some(reason));
        assert_eq!(fake.asked().len(), 1, "{reason}");
    }
}

#[tokio::test]
async fn a_call_too_many_is_repeated_only_when_the_server_says_when() {
    let fake = Fake::start(failing(Code::ResourceExhausted, "RATE_LIMITED", None)).await;
    let client = fake.builder().connect().await.unwrap();
    let error = client.pool_status().await.unwrap_err();
    assert!(matches!(error, Error::RateLimited(_)), "{error:?}");
    assert_eq!(fake.asked().len(), 1);
}

#[tokio::test]
async fn a_call_is_repeated_as_often_as_it_was_told() {
    for retries in [0, 1, 3] {
        let fake = Fake::start(Behaviour::Fail(Status::unavailable("down"))).await;
        let client = fake.builder().retries(retries).connect().await.unwrap();
        let error = client.pool_status().await.unwrap_err();
        assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
        assert_eq!(fake.asked().len(), 1 + retries as usize);
    }
}

#[tokio::test]
async fn a_pause_that_would_miss_the_deadline_is_not_begun() {
    let pause = Some(Duration::from_secs(3600));
    for reason in ["OVERLOADED", "RATE_LIMITED"] {
        let fake = Fake::start(failing(Code::ResourceExhausted, reason, pause)).await;
        let client = fake.builder().deadline(Duration::from_secs(600)).connect().await.unwrap();
        let error = client.pool_status().await.unwrap_err();
        let rejection = error.rejection().unwrap();
        assert_eq!(rejection.reason_name.as_deref(), Some(reason));
        assert_eq!(error.retry_after(), pause);
        assert_eq!(fake.asked().len(), 1);
    }
}

#[tokio::test]
async fn while_all_calls_fail_the_budget_ends_their_retries() {
    let fake = Fake::start(Behaviour::Fail(Status::unavailable("down"))).await;
    let client = fake.builder().connect().await.unwrap();
    for answer in join_all((0..40).map(|_| client.pool_status())).await {
        assert!(matches!(answer, Err(Error::Unavailable(_))));
    }
    // 40 calls, and retries until half of a budget of 20 is used: not 40 times 5.
    assert_eq!(fake.asked().len(), 40 + 9);
}

#[tokio::test]
async fn a_watch_is_opened_again_like_a_call() {
    let fake = Fake::serving().await;
    fake.behave_first([Behaviour::Fail(Status::unavailable("down"))]);
    let client = fake.builder().connect().await.unwrap();
    drop(client.watch_pool_status().await.unwrap());
    assert_eq!(fake.asked(), [Asked::Watch, Asked::Watch]);
    assert_eq!(fake.metadata("grpc-timeout"), [None, None], "a stream has no deadline");
}

#[tokio::test]
async fn a_call_outlives_a_server_that_is_gone_and_back() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let client = Client::builder(url, "token").connect_lazy().unwrap();
    let call = tokio::spawn(async move { client.pool_status().await });
    drop(listener.accept().await.unwrap()); // gone
    let fake = Fake::start_on(listener, SERVE);
    call.await.unwrap().unwrap();
    assert_eq!(fake.asked(), [Asked::Status]);
}
