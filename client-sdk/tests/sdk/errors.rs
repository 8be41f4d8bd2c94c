//! Each way a call can fail becomes the error it should be, over real tonic.

use std::{collections::HashMap, time::Duration};

use crate::fake::{Behaviour, Fake, SERVE};
use keypool_client::{Client, Code, Error, Rejection, Reserve, TokenSource, v1::ErrorReason};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt as _};

fn status(code: Code, reason: &str, domain: &str) -> Status {
    let metadata = HashMap::from([("limit".into(), "100".into())]);
    let details = ErrorDetails::with_error_info(reason, domain, metadata);
    Status::with_error_details(code, "what happened", details)
}

async fn error_of(status: Status) -> Error {
    let fake = Fake::start(Behaviour::Fail(status)).await;
    fake.builder().retries(0).connect().await.unwrap().pool_status().await.unwrap_err()
}

async fn rejection_of(status: Status) -> Rejection {
    error_of(status).await.rejection().expect("the server refused").clone()
}

#[tokio::test]
async fn every_reason_arrives_by_name() {
    let fake = Fake::serving().await;
    let client = fake.builder().retries(0).connect().await.unwrap();
    let mut reasons = 0;
    for number in 1.. {
        let Ok(reason) = ErrorReason::try_from(number) else { break };
        fake.behave(Behaviour::Fail(status(
            Code::FailedPrecondition,
            reason.wire_name(),
            "keypool.v1",
        )));
        let error = client.pool_status().await.unwrap_err();
        assert_eq!(error.reason(), Some(reason));
        reasons += 1;
    }
    assert!(reasons >= 20);
}

/// What a program would act on has a variant, and nothing else has.
#[tokio::test]
async fn each_reason_to_act_on_is_an_error_of_its_own() {
    use ErrorReason as R;
    for number in 1.. {
        let Ok(reason) = R::try_from(number) else { break };
        let code = match reason {
            R::StoreUnavailable | R::ShuttingDown => Code::Unavailable,
            _ => Code::FailedPrecondition,
        };
        let error = error_of(status(code, reason.wire_name(), "keypool.v1")).await;
        let fits = match reason {
            R::TokenMissing | R::TokenInvalid => matches!(error, Error::TokenInvalid(_)),
            R::TokenExpired => matches!(error, Error::TokenExpired(_)),
            R::ScopeMissing => matches!(error, Error::ScopeMissing(_)),
            R::NotYourPool => matches!(error, Error::NotYourPool(_)),
            R::PoolExhausted => matches!(error, Error::PoolExhausted(_)),
            R::NoCompatibleKeyPackage => matches!(error, Error::NoCompatibleKeyPackage(_)),
            R::Quota => matches!(error, Error::Quota(_)),
            R::ReservationUnknown => matches!(error, Error::ReservationUnknown(_)),
            R::ReservationLost => matches!(error, Error::ReservationLost(_)),
            R::ReservationNotHeld => matches!(error, Error::ReservationNotHeld(_)),
            R::RateLimited => matches!(error, Error::RateLimited(_)),
            R::Overloaded => matches!(error, Error::Overloaded(_)),
            R::StoreUnavailable | R::ShuttingDown => matches!(error, Error::Unavailable(_)),
            _ => matches!(error, Error::Rejected(_)),
        };
        assert!(fits, "{reason:?}: {error:?}");
        assert_eq!(error.reason(), Some(reason));
    }
}

#[tokio::test]
async fn a_rejection_carries_everything_the_server_said() {
    let mut details = ErrorDetails::with_error_info("OVERLOADED", "keypool.v1", HashMap::new());
    details
        .add_bad_request_violation("targets[0].user_id", "is empty")
        .add_bad_request_violation("group_id", "is 300 bytes long")
        .set_retry_info(Some(Duration::from_millis(1500)));
    let status = Status::with_error_details(Code::ResourceExhausted, "come back", details);
    let error = error_of(status).await;
    assert_eq!(error.retry_after(), Some(Duration::from_millis(1500)));
    assert_eq!(error.to_string(), "come back (ResourceExhausted, OVERLOADED)");
    let rejection = error.rejection().unwrap();
    assert_eq!(rejection.code, Code::ResourceExhausted);
    assert_eq!(rejection.message, "come back");
    let violations: Vec<_> = rejection
        .field_violations
        .iter()
        .map(|violation| (violation.field.as_str(), violation.description.as_str()))
        .collect();
    assert_eq!(violations, [("targets[0].user_id", "is empty"), ("group_id", "is 300 bytes long")]);
    let rejection =
        rejection_of(self::status(Code::InvalidArgument, "BATCH_TOO_LARGE", "keypool.v1")).await;
    assert_eq!(rejection.metadata["limit"], "100");
    assert_eq!(rejection.retry_after, None);
}

#[tokio::test]
async fn an_unknown_reason_is_kept_by_code_and_name() {
    for name in ["FROM_THE_FUTURE", "UNSPECIFIED"] {
        let rejection = rejection_of(status(Code::Aborted, name, "keypool.v1")).await;
        assert_eq!(rejection.reason, None);
        assert_eq!(rejection.reason_name.as_deref(), Some(name));
        assert_eq!(rejection.code, Code::Aborted);
    }
}

#[tokio::test]
async fn another_services_reason_is_not_taken_for_keypools() {
    let rejection = rejection_of(status(Code::NotFound, "POOL_EXHAUSTED", "proxy.example")).await;
    assert_eq!(rejection.reason, None);
    assert_eq!(rejection.reason_name, None);
    assert!(rejection.metadata.is_empty());
}

#[tokio::test]
async fn a_status_without_details_or_with_broken_ones_is_kept_by_code() {
    let bare = Status::unavailable("no upstream");
    let broken = Status::with_details(Code::Unavailable, "no upstream", vec![0xff; 9].into());
    for status in [bare, broken] {
        let rejection = rejection_of(status).await;
        assert_eq!((rejection.reason, rejection.code), (None, Code::Unavailable));
        assert_eq!(rejection.to_string(), "no upstream (Unavailable)");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_a_transport_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = Client::connect(url.clone(), "token").await.unwrap_err();
    assert!(matches!(error, Error::Transport(_)), "{error:?}");
    let lazy = Client::builder(url, "token").retries(0).connect_lazy().unwrap();
    let error = lazy.pool_status().await.unwrap_err();
    assert!(matches!(error, Error::Transport(_)), "{error:?}");
}

#[tokio::test]
async fn a_connection_that_breaks_during_a_call_is_a_transport_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        socket.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap(); // an empty SETTINGS frame
        let mut seen = Vec::new();
        // Until the call itself is here: a HEADERS frame is the first of type 1.
        while !has_headers_frame(&seen) {
            assert_ne!(socket.read_buf(&mut seen).await.unwrap(), 0);
        }
        listener
    });
    let client = Client::builder(url, "token").retries(0).connect_lazy().unwrap();
    let error = client.pool_status().await.unwrap_err();
    assert!(matches!(error, Error::Transport(_)), "{error:?}");
    // The same client connects again once it can.
    let _fake = Fake::start_on(server.await.unwrap(), SERVE);
    client.pool_status().await.unwrap();
}

/// Walks the frames after HTTP/2's client preface (RFC 9113, sections 3.4 and 4.1).
fn has_headers_frame(bytes: &[u8]) -> bool {
    let mut rest = bytes.get(24..).unwrap_or_default();
    while let [a, b, c, kind, _, _, _, _, _, tail @ ..] = rest {
        if *kind == 1 {
            return true;
        }
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        rest = tail.get(length..).unwrap_or_default();
    }
    false
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_a_missed_deadline() {
    let fake = Fake::start(Behaviour::Hang).await;
    let client = fake.builder().deadline(Duration::from_millis(50)).connect_lazy().unwrap();
    let error = client.pool_status().await.unwrap_err();
    assert!(matches!(error, Error::DeadlineExceeded), "{error:?}");

    let said_so = error_of(Status::deadline_exceeded("too late")).await;
    assert!(matches!(said_so, Error::DeadlineExceeded), "{said_so:?}");
}

#[tokio::test]
async fn a_listener_that_never_speaks_is_a_missed_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let client =
        Client::builder(url, "token").deadline(Duration::from_millis(50)).connect_lazy().unwrap();
    let error = client.pool_status().await.unwrap_err();
    assert!(matches!(error, Error::DeadlineExceeded), "{error:?}");
}

#[tokio::test]
async fn the_deadline_holds_for_the_token_too() {
    let fake = Fake::serving().await;
    let never = TokenSource::provider(std::future::pending);
    let client = Client::builder(fake.url(), never)
        .deadline(Duration::from_millis(50))
        .connect_lazy()
        .unwrap();
    let error = client.pool_status().await.unwrap_err();
    assert!(matches!(error, Error::DeadlineExceeded), "{error:?}");
    assert_eq!(fake.asked(), []);
}

#[tokio::test]
async fn no_usable_token_means_no_call() {
    let fake = Fake::serving().await;
    let fails = TokenSource::provider(|| async { Err("signed out".into()) });
    for token in [fails, "two\nlines".into()] {
        let client = Client::connect(fake.url(), token).await.unwrap();
        let error = client.pool_status().await.unwrap_err();
        assert!(matches!(error, Error::Token(_)), "{error:?}");
        assert!(!format!("{error:?}").contains("lines"));
    }
    assert_eq!(fake.asked(), []);
}

#[tokio::test]
async fn an_address_that_will_not_do_is_a_config_error() {
    for address in ["", "127.0.0.1:50051", "http://", "ftp://host", "\n"] {
        let error = Client::builder(address, "token").connect_lazy().unwrap_err();
        assert!(matches!(error, Error::Config(_)), "{address:?}: {error:?}");
    }
}

#[test]
fn without_a_runtime_there_is_an_error_and_no_panic() {
    let error = Client::builder("http://127.0.0.1:1", "token").connect_lazy().unwrap_err();
    assert!(matches!(error, Error::Config(_)), "{error:?}");
}

#[tokio::test]
async fn an_error_does_not_end_the_client() {
    let fake = Fake::start(Behaviour::Fail(Status::internal("oops"))).await;
    let client = fake.builder().connect().await.unwrap();
    let reserve = Reserve::new(&b"group"[..], 1_u16).target("bob");
    client.reserve(&reserve).await.unwrap_err();
    fake.behave(SERVE);
    assert_eq!(client.reserve(&reserve).await.unwrap().reservations().count(), 1);
}
