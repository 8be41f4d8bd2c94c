//! Nothing secret reaches the log, however much is logged, nor the metrics.

use base64::{Engine as _, engine::general_purpose};
use keypool_client::v1::RejectReason;
use keypool_testing::{
    proxy::Proxy,
    scrape::Scrape,
    server::until,
    tokens::{authorized, expired_token, token},
};

use super::*;

const PASSWORD: &str = "correct-horse-battery";
const SECRET_GROUP: &[u8] = b"group that nobody may know";
const OTHER_GROUP: &[u8] = b"some other group of theirs";

/// The forms in which bytes come into logs.
fn forms(bytes: &[u8]) -> Vec<Vec<u8>> {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let list = format!("{bytes:?}");
    let escaped: Vec<u8> = bytes.iter().flat_map(|byte| byte.escape_ascii()).collect();
    vec![
        bytes.to_vec(),
        hex.to_uppercase().into_bytes(),
        hex.into_bytes(),
        list.trim_matches(['[', ']']).as_bytes().to_vec(),
        escaped,
        general_purpose::STANDARD_NO_PAD.encode(bytes).into_bytes(),
        general_purpose::URL_SAFE_NO_PAD.encode(bytes).into_bytes(),
    ]
}

/// Bytes as a text, one character for each, that a search of the standard library goes through fast.
fn latin(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

#[track_caller]
fn assert_absent(told: &str, what: &str, secret: &[u8]) {
    for form in forms(secret) {
        if let Some(at) = told.find(&latin(&form)) {
            let start = told.floor_char_boundary(at.saturating_sub(300));
            let end = told.ceil_char_boundary((at + 100).min(told.len()));
            panic!("{what} is in the log or in the metrics: {}", &told[start..end]);
        }
    }
}

#[tokio::test]
async fn nothing_secret_is_in_the_log_or_the_metrics_of_a_whole_flow() {
    let database = database().await;
    let proxy = Proxy::to(database.target()).await;
    let url = database.url_through(&proxy, PASSWORD);
    let loud = options().text("log.filter", "trace").text("database.acquire_timeout", "1s");
    let server = Server::on(&url, &loud).await;

    // The generated client does not mark its token as sensitive, as many clients do not.
    let mut grpc = server.grpc().await;
    let (bob, alice) = (token("bob", "phone"), token("alice", "phone"));
    let published = packages("bob", 3);
    let mut sent: Vec<Vec<u8>> = published.clone();
    sent.push(package("bob").with(|it| it.signature = Some(vec![0x5a; 64])).build());
    sent.push(package("mallory").build());
    let request = v1::UploadKeyPackagesRequest {
        key_packages: sent.iter().cloned().map(Into::into).collect(),
        mode: 0,
    };
    let answer = grpc.upload_key_packages(authorized(&bob, request)).await.unwrap().into_inner();
    let last = answer.results.last().unwrap().rejected().unwrap();
    assert_eq!(last.reason(), RejectReason::CredentialMismatch);

    let request = Reserve::new(SECRET_GROUP, SUITE).target("bob");
    let mut ids = Vec::new();
    for _ in 0..2 {
        let request = Reserve::new(SECRET_GROUP, SUITE).target("bob").message().clone();
        let answer = grpc.reserve_key_packages(authorized(&alice, request)).await.unwrap();
        ids.push(answer.into_inner().reservations().next().unwrap().reservation_id.clone());
    }
    let spend = |group: &'static [u8]| v1::SpendKeyPackagesRequest {
        reservation_ids: vec![ids[0].clone()],
        group_id: group.into(),
    };
    let mismatch = grpc.spend_key_packages(authorized(&alice, spend(GROUP))).await;
    assert!(mismatch.is_err());
    grpc.spend_key_packages(authorized(&alice, spend(SECRET_GROUP))).await.unwrap();
    let release = v1::ReleaseReservationsRequest { reservation_ids: vec![ids[1].clone()] };
    grpc.release_reservations(authorized(&alice, release)).await.unwrap();
    // The same request_id for another group, and what is no request at all.
    let mut reused = request.message().clone();
    grpc.reserve_key_packages(authorized(&alice, reused.clone())).await.unwrap();
    reused.group_id = OTHER_GROUP.into();
    assert!(grpc.reserve_key_packages(authorized(&alice, reused)).await.is_err());
    let invalid = v1::ReserveKeyPackagesRequest {
        request_id: "none".into(),
        group_id: [SECRET_GROUP, &[7; 300]].concat().into(),
        ..request.message().clone()
    };
    assert!(grpc.reserve_key_packages(authorized(&alice, invalid)).await.is_err());

    // The owner's side: its pool, who was there, and other credentials.
    let renewed = packages("bob", 2);
    let replacing = v1::UploadKeyPackagesRequest {
        key_packages: renewed.iter().cloned().map(Into::into).collect(),
        mode: v1::UploadMode::ReplaceOtherCredentials.into(),
    };
    grpc.upload_key_packages(authorized(&bob, replacing.clone())).await.unwrap();
    grpc.get_pool_status(authorized(&bob, Default::default())).await.unwrap();
    let watching = grpc.watch_pool_status(authorized(&bob, Default::default())).await.unwrap();
    assert!(watching.into_inner().message().await.unwrap().is_some());
    let listed = v1::ListPoolEventsRequest { user_id: "bob".into(), ..Default::default() };
    let events = grpc.list_pool_events(authorized(&bob, listed.clone())).await.unwrap();
    let events = events.into_inner().events;
    assert!(events.iter().any(|event| event.group_id == SECRET_GROUP), "{events:?}");
    let withdrawn = v1::RevokeKeyPackagesRequest { all: true, ..Default::default() };
    grpc.revoke_key_packages(authorized(&bob, withdrawn.clone())).await.unwrap();
    sent.extend(renewed);

    // Tokens that are refused.
    let expired = expired_token("alice", "phone");
    let forged = format!("{}x", token("alice", "laptop"));
    for refused in [&expired, &forged] {
        assert!(grpc.get_pool_status(authorized(refused, Default::default())).await.is_err());
    }

    // Nor when the database fails in the middle of it, whatever is called.
    let reserving = Reserve::new(SECRET_GROUP, SUITE).target("bob").message().clone();
    let release = v1::ReleaseReservationsRequest { reservation_ids: vec![ids[1].clone()] };
    proxy.cut();
    for failed in [
        grpc.upload_key_packages(authorized(&bob, replacing)).await.is_err(),
        grpc.reserve_key_packages(authorized(&alice, reserving)).await.is_err(),
        grpc.spend_key_packages(authorized(&alice, spend(SECRET_GROUP))).await.is_err(),
        grpc.release_reservations(authorized(&alice, release)).await.is_err(),
        grpc.get_pool_status(authorized(&bob, Default::default())).await.is_err(),
        grpc.revoke_key_packages(authorized(&bob, withdrawn)).await.is_err(),
        grpc.list_pool_events(authorized(&bob, listed)).await.is_err(),
    ] {
        assert!(failed, "there was no database");
    }
    proxy.open();
    until(async || server.client("bob", "phone").await.pool_status().await.is_ok()).await;

    let metrics = Scrape::of(&server).await.text;
    for named in ["alice", "bob", "mallory", "phone", "laptop"] {
        assert!(!metrics.contains(named), "metrics name nobody: {named}");
    }
    assert!(metrics.contains("keypool_"), "{metrics}");
    let text = server.log();
    let log = latin(&[server.log_bytes(), metrics.into_bytes()].concat());
    for told in ["TRACE", "GROUP_MISMATCH", "REQUEST_ID_REUSED", "STORE_UNAVAILABLE", "sqlx::query"]
    {
        assert!(text.contains(told), "everything is logged: {told}");
    }
    for rpc in super::rpcs::rpcs() {
        assert!(text.contains(&rpc), "everything is called: {rpc}");
    }
    let secret: Vec<u8> = sqlx::query_scalar("SELECT secret FROM service_secret")
        .fetch_one(&database.pool)
        .await
        .unwrap();
    assert_absent(&log, "the secret of reservation ids", &secret);
    for token in [&bob, &alice, &expired, &forged] {
        let mut parts = token.split('.');
        let (_header, claims, signature) =
            (parts.next(), parts.next().unwrap(), parts.next().unwrap());
        assert_absent(&log, "a token's claims", claims.as_bytes());
        assert_absent(&log, "a token's signature", &signature.as_bytes()[..40]);
    }
    assert_absent(&log, "the group id", SECRET_GROUP);
    assert_absent(&log, "another group id", OTHER_GROUP);
    assert_absent(&log, "the database's password", PASSWORD.as_bytes());
    for id in &ids {
        assert_absent(&log, "a reservation id", id.as_bytes());
    }
    for bytes in &sent {
        // Any part of it would do: keys and signatures are long.
        for part in bytes.chunks_exact(24) {
            assert_absent(&log, "a KeyPackage", part);
        }
    }
}
