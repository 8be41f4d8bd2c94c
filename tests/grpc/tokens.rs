//! No call without a good token with the scope it needs, and none for what belongs to others:
//! nothing is done then, and nothing is told.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::FutureExt as _;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use keypool_client::v1::{ErrorReason, RejectReason};
use keypool_service::grpc::auth::Scope;
use keypool_testing::{
    issuer::IssuerKey,
    tokens::{authorized, issuer_private_key, issuer_public_key},
};
use serde_json::{Value, json};
use tonic::Status;

use super::{
    rpcs::{Messages, rpcs, scopes_of},
    *,
};

const AUDIENCE: &str = "the-pool-of-the-test";
const ISSUER: &str = "https://issuer.test";
/// Beyond any leeway.
const HOUR: u64 = 3600;

/// The claims of a good token of alice's phone, with all scopes.
fn claims() -> Value {
    json!({
        "sub": "alice",
        "client_id": "phone",
        "scope": "keypool.publish keypool.reserve keypool.audit",
        "aud": AUDIENCE,
        "iss": ISSUER,
        "exp": now() + HOUR,
    })
}

/// The claims with another value for one of them; without it if that is null.
fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    match value {
        Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
        value => claims[name] = value,
    }
    claims
}

fn sign(claims: &Value) -> String {
    let key = EncodingKey::from_ed_pem(issuer_private_key().as_bytes()).unwrap();
    jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), claims, &key).unwrap()
}

/// A token of a client with these scopes.
pub(super) fn scoped(user_id: &str, client_id: &str, scopes: &[Scope]) -> String {
    let mut claims = with("sub", json!(user_id));
    claims["client_id"] = json!(client_id);
    let names: Vec<&str> = scopes.iter().map(|scope| scope.as_str()).collect();
    claims["scope"] = json!(names.join(" "));
    sign(&claims)
}

/// Tokens that no call may pass with, each with the reason.
fn bad_tokens() -> Vec<(&'static str, Option<String>, ErrorReason)> {
    let good = sign(&claims());
    let [header, payload, signature] = good.split('.').collect::<Vec<&str>>()[..] else {
        panic!("three parts")
    };
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let unsigned = |alg: &str| format!("{}.{payload}.", encode(&json!({ "alg": alg })));
    let hs256 = |secret: &[u8]| {
        let key = EncodingKey::from_secret(secret);
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims(), &key).unwrap()
    };
    let public = issuer_public_key();
    // All that they say is right but who signed them.
    let stranger = IssuerKey::new("stranger");
    let by_stranger = |header: Header| {
        let key = EncodingKey::from_ed_pem(stranger.private_pem().as_bytes()).unwrap();
        jsonwebtoken::encode(&header, &claims(), &key).unwrap()
    };
    let strangers = by_stranger(Header::new(Algorithm::EdDSA));
    let strangers_signature = strangers.rsplit('.').next().unwrap();
    let eve = encode(&with("sub", json!("eve")));
    // What a header says of keys is not believed (RFC 8725, section 3.10).
    let bringing = by_stranger(Header {
        jwk: Some(serde_json::from_value(stranger.jwk()).unwrap()),
        ..Header::new(Algorithm::EdDSA)
    });
    let critical = {
        let key = EncodingKey::from_ed_pem(issuer_private_key().as_bytes()).unwrap();
        let header = Header { crit: Some(vec!["exp".into()]), ..Header::new(Algorithm::EdDSA) };
        jsonwebtoken::encode(&header, &claims(), &key).unwrap()
    };
    let (none, invalid, expired) =
        (ErrorReason::TokenMissing, ErrorReason::TokenInvalid, ErrorReason::TokenExpired);
    let der = pem::parse(public).unwrap();
    let mut bad = vec![
        ("no token", None, none),
        ("an empty one", Some(String::new()), none),
        ("no JWT", Some("nonsense".into()), invalid),
        ("three dots", Some("...".into()), invalid),
        ("without a signature", Some(format!("{header}.{payload}.")), invalid),
        ("with two parts", Some(format!("{header}.{payload}")), invalid),
        ("of another key", Some(strangers.clone()), invalid),
        (
            "with the signature of another key",
            Some(format!("{header}.{payload}.{strangers_signature}")),
            invalid,
        ),
        ("with other claims than signed", Some(format!("{header}.{eve}.{signature}")), invalid),
        ("HS256, the public PEM its secret", Some(hs256(public.as_bytes())), invalid),
        ("HS256, the trimmed PEM its secret", Some(hs256(public.trim().as_bytes())), invalid),
        ("HS256, the public DER its secret", Some(hs256(der.contents())), invalid),
        ("HS256, no secret", Some(hs256(b"")), invalid),
        ("with a critical header", Some(critical), invalid),
        ("bringing its key", Some(bringing), invalid),
        ("longer than 8 KiB", Some(sign(&with("pad", json!("x".repeat(6500))))), invalid),
    ];
    for alg in ["none", "None", "NONE", "HS256", "EdDSA", ""] {
        bad.push(("unsigned", Some(unsigned(alg)), invalid));
    }
    for (what, name, value, reason) in [
        ("expired", "exp", json!(now() - HOUR), expired),
        ("expired in 1970", "exp", json!(0), expired),
        ("not yet valid", "nbf", json!(now() + HOUR), invalid),
        ("without an end", "exp", Value::Null, invalid),
        ("with a text for its end", "exp", json!("never"), invalid),
        ("for another audience", "aud", json!("keypool"), invalid),
        ("for other audiences", "aud", json!(["keypool", "chat"]), invalid),
        ("for no audience", "aud", Value::Null, invalid),
        ("of another issuer", "iss", json!("https://issuer.test.evil"), invalid),
        ("of no issuer", "iss", Value::Null, invalid),
        ("without a user", "sub", Value::Null, invalid),
        ("with an empty user", "sub", json!(""), invalid),
        ("with a control character", "sub", json!("alice\n"), invalid),
        ("with users", "sub", json!(["alice"]), invalid),
        ("without a client", "client_id", Value::Null, invalid),
        ("with a long client", "client_id", json!("x".repeat(256)), invalid),
        ("with a number for its client", "client_id", json!(7), invalid),
    ] {
        bad.push((what, Some(sign(&with(name, value))), reason));
    }
    bad
}

/// Everything that calls can change: all tables but those that the sweeper and the migrations keep.
async fn contents(database: &TestDatabase) -> Vec<String> {
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT relname::text FROM pg_class
         WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
           AND NOT relispartition AND relname NOT IN ('sweep_cursor', '_sqlx_migrations')
         ORDER BY 1",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap();
    assert!(tables.len() >= 10, "{tables:?}");
    let mut contents = Vec::new();
    for table in tables {
        let rows = format!("SELECT '{table}' || t::text FROM {table} t ORDER BY 1");
        let rows = sqlx::query_scalar::<_, String>(sqlx::AssertSqlSafe(rows));
        contents.extend(rows.fetch_all(&database.pool).await.unwrap());
    }
    contents
}

fn strict() -> ServerOptions {
    options().text("auth.audience", AUDIENCE).text("auth.issuer", ISSUER)
}

/// A refusal tells neither who there is, nor what a good token would say.
#[track_caller]
fn assert_silent(status: &Status, what: &str) {
    let mut told = status.message().as_bytes().to_vec();
    told.extend(status.details());
    for value in status.metadata().clone().into_headers().values() {
        told.extend(value.as_bytes());
    }
    let told = String::from_utf8_lossy(&told);
    for secret in ["alice", "bob", "phone", AUDIENCE, ISSUER, "BEGIN", "key.pem", "auth.pub"] {
        assert!(!told.contains(secret), "{what}: {secret} in {told}");
    }
}

#[tokio::test]
async fn no_rpc_is_served_for_a_bad_token_or_a_missing_scope() {
    let database = database().await;
    let server = Server::start(&database, &strict()).await;
    let messages = Messages::prepare(&server).await;
    let mut grpc = server.grpc().await;
    let before = contents(&database).await;
    let bad = bad_tokens();
    for rpc in rpcs() {
        let other_scopes: Vec<Scope> =
            Scope::ALL.into_iter().filter(|scope| !scopes_of(&rpc).contains(scope)).collect();
        let missing = ErrorReason::ScopeMissing;
        let mut unscoped = vec![
            ("with the other scopes", Some(scoped("alice", "phone", &other_scopes)), missing),
            ("without a scope", Some(sign(&with("scope", Value::Null))), missing),
            ("with foreign scopes", Some(sign(&with("scope", json!("admin keypool *")))), missing),
            (
                "with parts of scopes",
                Some(sign(&with("scope", json!("keypool. publish")))),
                missing,
            ),
        ];
        for scope in &other_scopes {
            let token = scoped("alice", "phone", std::slice::from_ref(scope));
            unscoped.push((scope.as_str(), Some(token), missing));
        }
        for (what, token, reason) in bad.iter().chain(&unscoped) {
            let answer = messages.call(&mut grpc, &rpc, token.as_deref()).await;
            let status = answer.expect_err(&format!("{rpc}, {what}"));
            assert_silent(&status, &format!("{rpc}, {what}"));
            let refused = Rejection::from(status);
            assert_eq!(refused.reason, Some(*reason), "{rpc}, {what}: {refused:?}");
        }
        // A good token, but not as the one bearer of the call (RFC 6750, section 2.1).
        let good = sign(&claims());
        let bearer = format!("Bearer {good}");
        let (none, invalid) = (ErrorReason::TokenMissing, ErrorReason::TokenInvalid);
        for (what, headers, reason) in [
            ("Basic", vec![format!("Basic {good}")], none),
            ("no scheme", vec![good.clone()], none),
            ("no space", vec![format!("Bearer{good}")], none),
            ("twice", vec![bearer.clone(), bearer.clone()], invalid),
            ("after a bad one", vec!["Bearer x".into(), bearer.clone()], invalid),
            ("two in one header", vec![format!("{bearer}, {bearer}")], invalid),
        ] {
            let status = messages.call_with(&mut grpc, &rpc, &headers).await.unwrap_err();
            assert_silent(&status, &format!("{rpc}, {what}"));
            assert_eq!(Rejection::from(status).reason, Some(reason), "{rpc}, {what}");
        }
    }
    assert_eq!(contents(&database).await, before, "something was done");

    // None of them would have failed for another reason: with the scope and no other, each passes.
    let mut last = rpcs();
    last.sort_by_key(|rpc| rpc == "RevokeKeyPackages"); // it takes away what others need
    for rpc in last {
        for scope in scopes_of(&rpc) {
            let token = scoped("alice", "phone", &[*scope]);
            messages.call(&mut grpc, &rpc, Some(&token)).await.unwrap();
        }
    }
    assert_ne!(contents(&database).await, before);
}

/// Where a token says that its key is, nobody looks (RFC 8725, section 3.10).
#[tokio::test]
async fn no_key_is_fetched_from_where_a_token_says_that_it_is() {
    let database = database().await;
    let server = Server::start(&database, &strict()).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    let stranger = IssuerKey::new("stranger");
    let key = EncodingKey::from_ed_pem(stranger.private_pem().as_bytes()).unwrap();
    let header = Header {
        jku: Some(url.clone()),
        x5u: Some(url),
        kid: Some("stranger".into()),
        ..Header::new(Algorithm::EdDSA)
    };
    let token = jsonwebtoken::encode(&header, &claims(), &key).unwrap();
    let request = authorized(&token, v1::GetPoolStatusRequest {});
    let status = server.grpc().await.get_pool_status(request).await.unwrap_err();
    assert_eq!(Rejection::from(status).reason, Some(ErrorReason::TokenInvalid));
    assert!(listener.accept().now_or_never().is_none(), "somebody came for the key");
}

/// A good token, for what belongs to another user or to another client of the same user.
#[tokio::test]
async fn what_belongs_to_others_is_out_of_reach() {
    let database = database().await;
    let server = Server::start(&database, &strict()).await;
    let messages = Messages::prepare(&server).await;
    let mut grpc = server.grpc().await;
    let before = contents(&database).await;
    let (unknown, not_yours) = (ErrorReason::ReservationUnknown, ErrorReason::NotYourPool);
    for (user, client) in [("mallory", "phone"), ("bob", "phone"), ("alice", "tablet")] {
        let own = scoped(user, client, &[Scope::Publish, Scope::Reserve]);
        for (rpc, reason) in [
            ("SpendKeyPackages", unknown),
            ("ReleaseReservations", unknown),
            ("ListPoolEvents", not_yours),
        ] {
            let status = messages.call(&mut grpc, rpc, Some(&own)).await.unwrap_err();
            assert_silent(&status, rpc);
            assert_eq!(Rejection::from(status).reason, Some(reason), "{user}/{client} {rpc}");
        }
        let available = |status: v1::PoolStatus| -> u32 {
            status.cipher_suites.iter().map(|suite| suite.available).sum()
        };
        let status = grpc.get_pool_status(authorized(&own, v1::GetPoolStatusRequest {})).await;
        let stream = authorized(&own, v1::WatchPoolStatusRequest {});
        let mut stream = grpc.watch_pool_status(stream).await.unwrap().into_inner();
        for seen in [status.unwrap().into_inner(), stream.message().await.unwrap().unwrap()] {
            assert_eq!(available(seen), if user == "bob" { 2 } else { 0 }, "its own alone");
        }
    }
    assert_eq!(contents(&database).await, before, "something was done");

    // Who repeats another's Reserve, its request_id and all, gets a reservation of its own.
    let alices = scoped("alice", "phone", &[Scope::Reserve]);
    let mut got = Vec::new();
    for token in [&scoped("mallory", "phone", &[Scope::Reserve]), &alices, &alices] {
        let request = authorized(token, messages.reserve.clone());
        let answer = grpc.reserve_key_packages(request).await.unwrap().into_inner();
        got.push(answer.results[0].reservation().unwrap().reservation_id.clone());
    }
    assert!(got[0] != got[1] && got[1] == got[2], "{got:?}");
    let before = contents(&database).await;

    // Packages in alice's name, and a Revoke of the client that has the same id as hers.
    let mallory = scoped("mallory", "phone", &[Scope::Publish]);
    let upload = authorized(&mallory, messages.upload.clone());
    let answer = grpc.upload_key_packages(upload).await.unwrap().into_inner();
    let rejected = answer.results[0].rejected().unwrap();
    assert_eq!(rejected.reason(), RejectReason::CredentialMismatch);
    messages.call(&mut grpc, "RevokeKeyPackages", Some(&mallory)).await.unwrap();
    let after = contents(&database).await;
    let lost: Vec<&String> = before.iter().filter(|row| !after.contains(row)).collect();
    assert!(lost.is_empty(), "{lost:?}");
}
