//! Each reason to refuse a call, provoked, and answered in the one form.

use std::time::Duration;

use keypool_client::{Code, Uuid, v1::ErrorReason};
use keypool_service::grpc::auth::Scope;
use keypool_testing::tokens::{expired_token, token_with};

use super::*;

/// A call that is refused for `reason`; or why there is none.
async fn provoke(reason: ErrorReason, server: &Server) -> Result<Rejection, &'static str> {
    let user = format!("user of {}", reason.as_str_name());
    let owner = publish_some(server, &user, 1).await;
    let [adder, other] =
        [server.client("adder", "phone").await, server.client("other", "phone").await];
    let with_token = async |token: String| {
        let client = Client::connect(server.uri(), token).await.unwrap();
        rejection(client.pool_status().await)
    };
    Ok(match reason {
        ErrorReason::Unspecified => return Err("it is never sent"),
        ErrorReason::NotYourPool => {
            let token = token_with("other", "phone", &[Scope::Publish]);
            let client = Client::connect(server.uri(), token).await.unwrap();
            let request = v1::ListPoolEventsRequest { user_id: user, ..Default::default() };
            rejection(client.pool_events(request).await)
        }
        ErrorReason::Quota => {
            let database = database().await;
            let fair = options().set("pool.fair_share", true);
            let server = Server::start(&database, &fair).await;
            publish_some(&server, &user, 20).await;
            let greedy = server.client("greedy", "phone").await;
            for _ in 0..2 {
                reserve_one(&greedy, &one_of(&user)).await;
            }
            rejection(greedy.reserve(&one_of(&user)).await)
        }
        ErrorReason::RateLimited => {
            let mut streams = Vec::new();
            loop {
                match owner.watch_pool_status().await {
                    Ok(stream) => streams.push(stream),
                    refused => break rejection(refused.map(drop)),
                }
                assert!(streams.len() <= 4, "more than the default");
            }
        }
        ErrorReason::Internal => {
            // A database that is not as it was migrated is a fault that no caller can cause.
            let database = database().await;
            let server = Server::start(&database, &options()).await;
            let rename = "ALTER TABLE pool RENAME TO hidden_away";
            sqlx::query(rename).execute(&database.pool).await.unwrap();
            let refused = rejection(server.client("bob", "phone").await.pool_status().await);
            assert_eq!(refused.message, "internal error", "the cause is for the log alone");
            assert!(server.log().contains("does not exist"), "and the log has it");
            refused
        }
        ErrorReason::InvalidArgument => {
            rejection(adder.reserve(&Reserve::new(&b""[..], SUITE).target(&user)).await)
        }
        ErrorReason::BatchTooLarge => rejection(owner.upload(vec![&b"x"[..]; 101]).await),
        ErrorReason::TokenMissing => {
            let answer = server.grpc().await.get_pool_status(v1::GetPoolStatusRequest {}).await;
            answer.unwrap_err().into()
        }
        ErrorReason::TokenInvalid => with_token("no.such.token".into()).await,
        ErrorReason::TokenExpired => with_token(expired_token("bob", "phone")).await,
        ErrorReason::ScopeMissing => {
            with_token(token_with("bob", "phone", &[Scope::Reserve, Scope::Audit])).await
        }
        ErrorReason::ReservationUnknown => {
            let reserved = reserve_one(&adder, &one_of(&user)).await;
            rejection(other.spend(GROUP, [reserved.reservation_id]).await)
        }
        ErrorReason::RequestIdReused => {
            let first = one_of(&user).request_id(Uuid::from_u128(7));
            reserve_one(&adder, &first).await;
            let second = Reserve::new(&b"another group"[..], SUITE).target(&user);
            rejection(adder.reserve(&second.request_id(Uuid::from_u128(7))).await)
        }
        ErrorReason::PoolExhausted => {
            reserve_one(&other, &one_of(&user)).await;
            rejection(adder.reserve(&one_of(&user)).await)
        }
        ErrorReason::NoCompatibleKeyPackage => {
            rejection(adder.reserve(&Reserve::new(GROUP, 2_u16).target(&user)).await)
        }
        ErrorReason::ReservationLost => {
            let lapses = one_of(&user).ttl(Duration::from_millis(1));
            let lost = reserve_one(&adder, &lapses).await;
            keypool_testing::server::until(async || other.reserve(&one_of(&user)).await.is_ok())
                .await;
            rejection(adder.spend(GROUP, [lost.reservation_id]).await)
        }
        ErrorReason::ReservationNotHeld => {
            let released = reserve_one(&adder, &one_of(&user)).await;
            adder.release([&released.reservation_id]).await.unwrap();
            rejection(adder.spend(GROUP, [released.reservation_id]).await)
        }
        ErrorReason::GroupMismatch => {
            let reserved = reserve_one(&adder, &one_of(&user)).await;
            rejection(adder.spend(&b"another group"[..], [reserved.reservation_id]).await)
        }
        ErrorReason::Overloaded => super::outages::refused_for_want_of_a_connection().await,
        ErrorReason::StoreUnavailable => super::outages::refused_without_a_database().await,
        ErrorReason::KeysUnavailable => super::keys::refused_without_keys().await,
        ErrorReason::DeadlineExceeded => crate::transport::refused_past_its_deadline().await,
        ErrorReason::ShuttingDown => super::shutdown::refused_while_stopping().await,
    })
}

/// The code that comes with a reason, as the contract has it.
fn code(reason: ErrorReason) -> Code {
    match reason {
        ErrorReason::Unspecified => Code::Unknown,
        ErrorReason::InvalidArgument | ErrorReason::BatchTooLarge => Code::InvalidArgument,
        ErrorReason::TokenMissing | ErrorReason::TokenInvalid | ErrorReason::TokenExpired => {
            Code::Unauthenticated
        }
        ErrorReason::ScopeMissing | ErrorReason::NotYourPool => Code::PermissionDenied,
        ErrorReason::ReservationUnknown => Code::NotFound,
        ErrorReason::RequestIdReused => Code::AlreadyExists,
        ErrorReason::PoolExhausted
        | ErrorReason::NoCompatibleKeyPackage
        | ErrorReason::Quota
        | ErrorReason::ReservationLost
        | ErrorReason::ReservationNotHeld
        | ErrorReason::GroupMismatch => Code::FailedPrecondition,
        ErrorReason::RateLimited | ErrorReason::Overloaded => Code::ResourceExhausted,
        ErrorReason::StoreUnavailable
        | ErrorReason::KeysUnavailable
        | ErrorReason::ShuttingDown => Code::Unavailable,
        ErrorReason::DeadlineExceeded => Code::DeadlineExceeded,
        ErrorReason::Internal => Code::Internal,
    }
}

fn metadata(reason: ErrorReason) -> Vec<(&'static str, &'static str)> {
    match reason {
        ErrorReason::BatchTooLarge => vec![("field", "key_packages"), ("limit", "100")],
        ErrorReason::ScopeMissing => vec![("scope", "keypool.publish")],
        _ => vec![],
    }
}

#[tokio::test]
async fn every_reason_comes_with_its_code_and_details() {
    let database = database().await;
    let server = Server::start(&database, &options()).await;
    let mut unprovoked = Vec::new();
    for reason in (0..).map_while(|number| ErrorReason::try_from(number).ok()) {
        let refused = match provoke(reason, &server).await {
            Ok(refused) => refused,
            Err(_) => {
                unprovoked.push(reason);
                continue;
            }
        };
        // The SDK reads the reason only from an ErrorInfo of the right domain.
        assert_eq!(refused.reason, Some(reason), "{refused:?}");
        assert_eq!(refused.code, code(reason), "{refused:?}");
        assert!(!refused.message.is_empty());
        let retry = matches!(refused.code, Code::ResourceExhausted | Code::Unavailable);
        assert_eq!(refused.retry_after.is_some(), retry, "{refused:?}");
        let violations = reason == ErrorReason::InvalidArgument;
        assert_eq!(!refused.field_violations.is_empty(), violations, "{refused:?}");
        let expected = metadata(reason).into_iter().map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(refused.metadata, expected.collect(), "{refused:?}");
    }
    assert_eq!(unprovoked, [ErrorReason::Unspecified]);
}

#[tokio::test]
async fn several_clients_get_their_reasons_side_by_side() {
    let database = database().await;
    let server = Server::start(&database, &options()).await;
    let bob = publish_some(&server, "bob", 2).await;
    let alice = server.client("alice", "phone").await;
    let request = one_of("bob").target("nobody").target_clients("bo", ["phone"]);
    let answer = alice.reserve(&request.clone()).await.unwrap();
    let reasons: Vec<Option<v1::UnavailableReason>> =
        answer.results.iter().map(|it| it.unavailable().map(v1::Unavailable::reason)).collect();
    let exhausted = Some(v1::UnavailableReason::PoolExhausted);
    assert_eq!(reasons, [None, exhausted, exhausted], "no one learns who exists");

    let carol = server.client("carol", "phone").await;
    let refused = rejection(carol.reserve(&request.all_or_nothing()).await);
    assert_eq!(refused.reason, Some(ErrorReason::PoolExhausted));
    let counts = counts(&bob).await;
    assert_eq!((counts.available, counts.reserved), (1, 1), "all or nothing");
}
