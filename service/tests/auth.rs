//! Which tokens are accepted, and why the others are not.
#![allow(clippy::panic, clippy::unwrap_used)] // clippy knows only `#[test]` functions as tests

mod key_files;
mod keys;

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use keypool_service::{
    config::AuthSection,
    domain::{clock::ManualClock, error::Error},
    grpc::auth::{Authenticator, Caller, KeySet, Scope},
    token::SigningKey,
};
use keys::Pair;
use serde_json::{Value, json};
use tempfile::TempDir;
use time::OffsetDateTime;

const NOW: i64 = 1_800_000_000;
const LEEWAY: i64 = 30;

fn section(keys: Vec<PathBuf>) -> AuthSection {
    let leeway = Duration::from_secs(LEEWAY as u64);
    AuthSection { keys, leeway, ..AuthSection::for_audience("keypool") }
}

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::at(OffsetDateTime::from_unix_timestamp(NOW).unwrap()))
}

/// An authenticator that reads these texts from files.
fn trusting(texts: &[&str]) -> anyhow::Result<Authenticator> {
    let folder = TempDir::new().unwrap();
    let write = |(index, text): (usize, &&str)| {
        let path = folder.path().join(index.to_string());
        fs::write(&path, text).unwrap();
        path
    };
    let paths = texts.iter().enumerate().map(write).collect();
    Authenticator::from_config(&section(paths), clock())
}

fn refusal(texts: &[&str]) -> String {
    format!("{:#}", trusting(texts).unwrap_err())
}

fn claims() -> Value {
    json!({
        "sub": "bob",
        "client_id": "phone",
        "scope": "openid keypool.publish",
        "aud": "keypool",
        "exp": NOW + 60,
    })
}

/// The claims with another value for one of them; none if it is null.
fn claims_with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    match value {
        Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
        value => claims[name] = value,
    }
    claims
}

fn encoding_key(pair: &Pair) -> EncodingKey {
    let pem = pair.private.as_bytes();
    match pair.algorithm {
        Algorithm::EdDSA => EncodingKey::from_ed_pem(pem),
        Algorithm::ES256 => EncodingKey::from_ec_pem(pem),
        _ => EncodingKey::from_rsa_pem(pem),
    }
    .unwrap()
}

fn sign_with(pair: &Pair, header: &Header, claims: &Value) -> String {
    jsonwebtoken::encode(header, claims, &encoding_key(pair)).unwrap()
}

fn sign(pair: &Pair, claims: &Value) -> String {
    sign_with(pair, &Header::new(pair.algorithm), claims)
}

fn named(pair: &Pair, id: &str) -> Header {
    Header { kid: Some(id.into()), ..Header::new(pair.algorithm) }
}

fn headers(value: &str) -> HeaderMap {
    HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(value).unwrap())])
}

fn call(authenticator: &Authenticator, token: &str) -> Result<Caller, Error> {
    authenticator.authenticate(&headers(&format!("Bearer {token}")))
}

/// The reason for which a token is not valid.
fn invalid(result: Result<Caller, Error>) -> &'static str {
    match result {
        Err(Error::TokenInvalid(reason)) => reason,
        other => panic!("not TokenInvalid: {other:?}"),
    }
}

fn jwk(pair: &Pair, id: Option<&str>) -> Value {
    let mut jwk = Jwk::from_encoding_key(&encoding_key(pair), pair.algorithm).unwrap();
    jwk.common.key_id = id.map(Into::into);
    serde_json::to_value(jwk).unwrap()
}

fn jwks(keys: Value) -> String {
    json!({ "keys": keys }).to_string()
}

#[test]
fn each_algorithm_from_pem_and_jwks() {
    for pair in [keys::ed25519(), keys::p256(), keys::rsa()] {
        for text in [pair.public.clone(), jwks(json!([jwk(&pair, Some("one"))]))] {
            let authenticator = trusting(&[&text]).unwrap();
            let caller = call(&authenticator, &sign(&pair, &claims())).unwrap();
            assert_eq!(caller.key.user.as_str(), "bob");
            assert_eq!(caller.key.client.as_str(), "phone");
            caller.require(Scope::Publish).unwrap();
            call(&authenticator, &sign_with(&pair, &named(&pair, "one"), &claims())).unwrap();
        }
        let signing = SigningKey::from_pem(&pair.private).unwrap();
        let keys = KeySet::new(vec![signing.verifying_key().unwrap()]).unwrap();
        let authenticator = Authenticator::new(keys, &section(vec![]), clock());
        call(&authenticator, &sign(&pair, &claims())).unwrap();
    }
}

#[test]
fn no_token() {
    let pair = keys::ed25519();
    let authenticator = trusting(&[&pair.public]).unwrap();
    let token = sign(&pair, &claims());
    assert!(matches!(authenticator.authenticate(&HeaderMap::new()), Err(Error::TokenMissing)));
    for value in ["", "Bearer", "Bearer ", "Basic Ym9iOnB3", &token] {
        let result = authenticator.authenticate(&headers(value));
        assert!(matches!(result, Err(Error::TokenMissing)), "{value}: {result:?}");
    }
    for scheme in ["bearer", "BEARER", "Bearer"] {
        authenticator.authenticate(&headers(&format!("{scheme} {token}"))).unwrap();
    }
}

#[test]
fn two_headers() {
    let pair = keys::ed25519();
    let authenticator = trusting(&[&pair.public]).unwrap();
    let mut headers = headers(&format!("Bearer {}", sign(&pair, &claims())));
    authenticator.authenticate(&headers).unwrap();
    headers.append(AUTHORIZATION, headers[AUTHORIZATION].clone());
    assert_eq!(invalid(authenticator.authenticate(&headers)), "more than one authorization header");
}

#[test]
fn malformed() {
    let pair = keys::ed25519();
    let authenticator = trusting(&[&pair.public]).unwrap();
    let token = sign(&pair, &claims());
    let [header, payload, signature] = token.split('.').collect::<Vec<_>>()[..] else {
        panic!("three parts")
    };
    for bad in [
        "x".into(),
        "..".into(),
        format!("{header}.{payload}"),
        format!("{header}.{payload}."),
        format!("{header}.{payload}.{signature}.x"),
        format!("{header}.{payload}.{signature}="),
        format!("{header}.{payload}. {signature}"),
        format!(" {token}"),
        format!("{}.{payload}.{signature}", URL_SAFE_NO_PAD.encode("[]")),
    ] {
        invalid(call(&authenticator, &bad));
    }
    let mut binary = HeaderMap::new();
    binary.insert(AUTHORIZATION, HeaderValue::from_bytes(b"Bearer \xff").unwrap());
    invalid(authenticator.authenticate(&binary));
}

#[test]
fn every_changed_letter_is_noticed() {
    let pair = keys::ed25519();
    let authenticator = trusting(&[&pair.public]).unwrap();
    let token = sign(&pair, &claims());
    call(&authenticator, &token).unwrap();
    for index in 0..token.len() {
        let mut forged = token.clone().into_bytes();
        forged[index] = if forged[index] == b'A' { b'B' } else { b'A' };
        invalid(call(&authenticator, &String::from_utf8(forged).unwrap()));
    }
}

#[test]
fn too_long() {
    let pair = keys::ed25519();
    let authenticator = trusting(&[&pair.public]).unwrap();
    let of_length = |length: usize| {
        let token = sign(&pair, &claims_with("pad", json!("x".repeat(length))));
        call(&authenticator, &token)
    };
    of_length(5_000).unwrap();
    assert_eq!(invalid(of_length(6_500)), "longer than 8 KiB");
}

#[test]
fn a_wrong_key() {
    for (pair, other) in [
        (keys::ed25519(), keys::ed25519()),
        (keys::p256(), keys::p256()),
        (keys::rsa(), keys::rsa()),
    ] {
        let authenticator = trusting(&[&pair.public]).unwrap();
        let reason = invalid(call(&authenticator, &sign(&other, &claims())));
        assert_eq!(reason, "the signature does not verify");
    }
}

#[test]
fn the_algorithm_is_the_keys() {
    for pair in [keys::ed25519(), keys::p256(), keys::rsa()] {
        let authenticator = trusting(&[&pair.public]).unwrap();
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        for alg in ["none", "None", "NONE", ""] {
            let token = format!("{}.{}.", encode(&json!({ "alg": alg })), encode(&claims()));
            invalid(call(&authenticator, &token));
        }
        let der = pem::parse(&pair.public).unwrap();
        for secret in [pair.public.as_bytes(), pair.public.trim().as_bytes(), der.contents()] {
            let key = EncodingKey::from_secret(secret);
            let header = Header::new(Algorithm::HS256);
            let token = jsonwebtoken::encode(&header, &claims(), &key).unwrap();
            let reason = invalid(call(&authenticator, &token));
            assert_eq!(reason, "no key for its algorithm and key id");
        }
    }
    // A key serves one algorithm, not its family.
    let pair = keys::rsa();
    let authenticator = trusting(&[&pair.public]).unwrap();
    for algorithm in [Algorithm::RS512, Algorithm::PS256] {
        invalid(call(&authenticator, &sign_with(&pair, &Header::new(algorithm), &claims())));
    }
}

#[test]
fn the_token_brings_no_key() {
    let (pair, own) = (keys::ed25519(), keys::ed25519());
    let authenticator = trusting(&[&pair.public]).unwrap();
    let header = Header {
        jwk: Some(serde_json::from_value(jwk(&own, None)).unwrap()),
        ..Header::new(Algorithm::EdDSA)
    };
    invalid(call(&authenticator, &sign_with(&own, &header, &claims())));
    let header = Header { crit: Some(vec!["exp".into()]), ..Header::new(Algorithm::EdDSA) };
    let reason = invalid(call(&authenticator, &sign_with(&pair, &header, &claims())));
    assert_eq!(reason, "a critical header is not supported");
}

#[test]
fn key_ids() {
    let (one, two, free) = (keys::ed25519(), keys::ed25519(), keys::ed25519());
    let set = jwks(json!([jwk(&one, Some("one")), jwk(&two, Some("two"))]));
    let authenticator = trusting(&[&set]).unwrap();
    for (pair, id) in [(&one, "one"), (&two, "two")] {
        call(&authenticator, &sign_with(pair, &named(pair, id), &claims())).unwrap();
        call(&authenticator, &sign(pair, &claims())).unwrap();
    }
    for (pair, id, reason) in [
        (&one, "two", "the signature does not verify"),
        (&one, "three", "no key for its algorithm and key id"),
        (&free, "one", "the signature does not verify"),
    ] {
        let token = sign_with(pair, &named(pair, id), &claims());
        assert_eq!(invalid(call(&authenticator, &token)), reason);
    }
    // A key without an id may have signed with any.
    let authenticator = trusting(&[&set, &free.public]).unwrap();
    call(&authenticator, &sign_with(&free, &named(&free, "any"), &claims())).unwrap();
    call(&authenticator, &sign_with(&one, &named(&one, "one"), &claims())).unwrap();
}

#[test]
fn audiences() {
    let pair = keys::ed25519();
    let authenticator = trusting(&[&pair.public]).unwrap();
    let with = |aud: Value| call(&authenticator, &sign(&pair, &claims_with("aud", aud)));
    with(json!("keypool")).unwrap();
    with(json!(["other", "keypool"])).unwrap();
    for aud in [json!("other"), json!("Keypool"), json!(["other"]), json!([]), json!("")] {
        assert_eq!(invalid(with(aud)), "for another audience");
    }
    assert_eq!(invalid(with(Value::Null)), "no aud claim");
    for aud in [json!(5), json!([5, "keypool"]), json!({ "keypool": 1 })] {
        invalid(with(aud));
    }
}

#[test]
fn issuers() {
    let pair = keys::ed25519();
    let keys = || {
        let signing = SigningKey::from_pem(&pair.private).unwrap();
        KeySet::new(vec![signing.verifying_key().unwrap()]).unwrap()
    };
    let picky = AuthSection { issuer: Some("us".into()), ..section(vec![]) };
    let picky = Authenticator::new(keys(), &picky, clock());
    let with = |iss: Value| call(&picky, &sign(&pair, &claims_with("iss", iss)));
    with(json!("us")).unwrap();
    for iss in [json!("them"), Value::Null] {
        assert_eq!(invalid(with(iss)), "of another issuer");
    }
    invalid(with(json!(["us"])));
    let open = Authenticator::new(keys(), &section(vec![]), clock());
    call(&open, &sign(&pair, &claims_with("iss", json!("them")))).unwrap();
}

#[test]
fn times() {
    let pair = keys::ed25519();
    let authenticator = trusting(&[&pair.public]).unwrap();
    let with =
        |name: &str, value: Value| call(&authenticator, &sign(&pair, &claims_with(name, value)));
    for exp in [
        json!(NOW - LEEWAY + 1),
        json!((NOW + 5) as f64 + 0.5),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(1e300),
    ] {
        with("exp", exp).unwrap();
    }
    for exp in [json!(NOW - LEEWAY), json!(0), json!(-5), json!(i64::MIN), json!(-1e300)] {
        let result = with("exp", exp.clone());
        assert!(matches!(result, Err(Error::TokenExpired)), "{exp}: {result:?}");
    }
    assert_eq!(invalid(with("exp", Value::Null)), "no exp claim");
    for exp in [json!("1900000000"), json!(true), json!([NOW + 60])] {
        invalid(with("exp", exp));
    }
    for nbf in [json!(NOW + LEEWAY), json!(0), json!(i64::MIN)] {
        with("nbf", nbf).unwrap();
    }
    for nbf in [json!(NOW + LEEWAY + 1), json!(i64::MAX), json!(u64::MAX), json!(1e300)] {
        assert_eq!(invalid(with("nbf", nbf)), "not yet valid");
    }
    invalid(with("nbf", json!("0")));
}

#[test]
fn the_clock_is_passed_in() {
    let pair = keys::ed25519();
    let signing = SigningKey::from_pem(&pair.private).unwrap();
    let keys = KeySet::new(vec![signing.verifying_key().unwrap()]).unwrap();
    let clock = clock();
    let authenticator = Authenticator::new(keys, &section(vec![]), clock.clone());
    let token = sign(&pair, &claims());
    call(&authenticator, &token).unwrap();
    clock.advance(time::Duration::seconds(60 + LEEWAY));
    assert!(matches!(call(&authenticator, &token), Err(Error::TokenExpired)));
}

#[test]
fn identities() {
    let pair = keys::ed25519();
    let authenticator = trusting(&[&pair.public]).unwrap();
    let with =
        |name: &str, value: Value| call(&authenticator, &sign(&pair, &claims_with(name, value)));
    assert_eq!(invalid(with("sub", Value::Null)), "no sub claim");
    assert_eq!(invalid(with("client_id", Value::Null)), "no client_id claim");
    for id in ["", "bob\n", "\u{0}", "b\u{7f}b", &"x".repeat(256)] {
        assert_eq!(invalid(with("sub", json!(id))), "the sub claim is no user id");
        assert_eq!(invalid(with("client_id", json!(id))), "the client_id claim is no client id");
    }
    invalid(with("sub", json!(7)));
    with("sub", json!("Bäb 🦀")).unwrap();

    let twice = claims().to_string().replacen('{', "{\"sub\":\"eve\",", 1);
    let header = URL_SAFE_NO_PAD.encode(json!({ "alg": "EdDSA" }).to_string());
    let message = format!("{header}.{}", URL_SAFE_NO_PAD.encode(twice));
    let key = encoding_key(&pair);
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, pair.algorithm).unwrap();
    invalid(call(&authenticator, &format!("{message}.{signature}")));
}

#[test]
fn scopes() {
    let pair = keys::ed25519();
    let authenticator = trusting(&[&pair.public]).unwrap();
    let allowed = |scope: Value| {
        let caller = call(&authenticator, &sign(&pair, &claims_with("scope", scope))).unwrap();
        Scope::ALL.map(|scope| match caller.require(scope) {
            Ok(()) => true,
            Err(Error::ScopeMissing(name)) => {
                assert_eq!(name, scope.as_str());
                false
            }
            Err(other) => panic!("{other:?}"),
        })
    };
    assert_eq!(allowed(json!("keypool.publish")), [true, false, false]);
    assert_eq!(allowed(json!("a keypool.audit  keypool.reserve")), [false, true, true]);
    for nothing in [
        Value::Null,
        json!(""),
        json!("keypool"),
        json!("keypool.publishx"),
        json!("KEYPOOL.AUDIT"),
    ] {
        assert_eq!(allowed(nothing), [false; 3]);
    }
    let list = claims_with("scope", json!(["keypool.publish"]));
    invalid(call(&authenticator, &sign(&pair, &list)));
}
