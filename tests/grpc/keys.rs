//! The keys of tokens change without a restart: in files, and where an issuer publishes them.

use std::{fs, path::PathBuf};

use keypool_client::v1::{ErrorReason, GetPoolStatusRequest};
use keypool_testing::{
    issuer::{Issuer, IssuerKey},
    server::{ConfigFile, until},
    tokens::{authorized, issuer_public_key, token},
};
use serde_json::json;
use tempfile::TempDir;

use super::*;

/// `Ok`, or why a token is refused.
async fn verdict(server: &Server, token: &str) -> Result<(), Option<ErrorReason>> {
    let request = authorized(token, GetPoolStatusRequest {});
    match server.grpc().await.get_pool_status(request).await {
        Ok(_) => Ok(()),
        Err(status) => Err(Rejection::from(status).reason),
    }
}

const INVALID: Result<(), Option<ErrorReason>> = Err(Some(ErrorReason::TokenInvalid));
const UNAVAILABLE: Result<(), Option<ErrorReason>> = Err(Some(ErrorReason::KeysUnavailable));

fn replace(file: &PathBuf, text: &str) {
    let new = file.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, file).unwrap();
}

#[tokio::test]
async fn key_files_are_read_again_and_old_keys_are_forgotten() {
    let database = database().await;
    let server = Server::start(&database, &options().text("auth.reload_interval", "20ms")).await;
    let new_key = IssuerKey::new("new");
    let new_token = new_key.token("bob", "phone");
    let old_token = token("bob", "phone");
    assert_eq!(verdict(&server, &old_token).await, Ok(()));
    assert_eq!(verdict(&server, &new_token).await, INVALID);

    // What cannot be used changes nothing, and is told once.
    let complaints = || server.log().matches("the new key files cannot be used").count();
    replace(&server.key_file(), "no key");
    until(async || complaints() == 1).await;
    fs::remove_file(server.key_file()).unwrap();
    until(async || complaints() == 2).await;
    assert_eq!(verdict(&server, &old_token).await, Ok(()));

    replace(&server.key_file(), &json!({ "keys": [new_key.jwk()] }).to_string());
    until(async || verdict(&server, &new_token).await == Ok(())).await;
    assert_eq!(verdict(&server, &old_token).await, INVALID, "it was good a moment ago");

    replace(&server.key_file(), issuer_public_key());
    until(async || verdict(&server, &old_token).await == Ok(())).await;
    assert_eq!(verdict(&server, &new_token).await, INVALID);
    assert_eq!(complaints(), 2);
}

#[tokio::test]
async fn a_token_of_a_new_key_does_not_wait_for_the_next_refresh() {
    let (database, folder) = (database().await, TempDir::new().unwrap());
    let [one, two] = ["one", "two"].map(IssuerKey::new);
    let issuer = Issuer::publishing(&[&one]).await;
    // Nothing but an unknown key has the keys fetched again.
    let eager = issuer
        .configure(options(), &folder.path().join("ca.pem"))
        .text("auth.jwks_refresh_interval", "12h")
        .text("auth.jwks_min_refresh_interval", "10ms")
        .text("auth.jwks_max_age", "1day");
    let server = Server::start(&database, &eager).await;
    assert_eq!(verdict(&server, &one.token("bob", "phone")).await, Ok(()));
    let before = issuer.asked();
    issuer.publish(&[&two]);
    // Its first call may come within the shortest time between two fetches.
    until(async || verdict(&server, &two.token("bob", "phone")).await == Ok(())).await;
    assert!(issuer.asked() > before);
    assert_eq!(verdict(&server, &one.token("bob", "phone")).await, INVALID, "withdrawn");
}

#[tokio::test]
async fn unknown_keys_make_keypool_ask_once_in_a_while_and_no_more() {
    let (database, folder) = (database().await, TempDir::new().unwrap());
    let [one, two] = ["one", "two"].map(IssuerKey::new);
    let issuer = Issuer::publishing(&[&one]).await;
    let calm = issuer
        .configure(options(), &folder.path().join("ca.pem"))
        .text("auth.jwks_refresh_interval", "12h")
        .text("auth.jwks_min_refresh_interval", "6h")
        .text("auth.jwks_max_age", "1day");
    let server = Server::start(&database, &calm).await;
    assert_eq!(verdict(&server, &one.token("bob", "phone")).await, Ok(()));
    issuer.publish(&[&two]);
    for attempt in 0..20 {
        let unknown = IssuerKey::new(&format!("unknown {attempt}"));
        assert_eq!(verdict(&server, &unknown.token("bob", "phone")).await, INVALID);
        assert_eq!(verdict(&server, &two.token("bob", "phone")).await, INVALID);
    }
    assert_eq!(issuer.asked(), 1);
    assert_eq!(verdict(&server, &one.token("bob", "phone")).await, Ok(()));
}

#[tokio::test]
async fn keys_that_cannot_be_fetched_are_trusted_for_a_bounded_time() {
    let (database, folder) = (database().await, TempDir::new().unwrap());
    let one = IssuerKey::new("one");
    let issuer = Issuer::publishing(&[&one]).await;
    let ca = folder.path().join("ca.pem");
    let base = || {
        issuer
            .configure(options(), &ca)
            .text("auth.jwks_refresh_interval", "20ms")
            .text("auth.jwks_min_refresh_interval", "20ms")
    };
    let failures = |server: &Server| server.log().matches("could not be fetched").count();
    let good = one.token("bob", "phone");

    let patient = Server::start(&database, &base().text("auth.jwks_max_age", "1h")).await;
    let strict = Server::start(&database, &base().text("auth.jwks_max_age", "1s")).await;
    for server in [&patient, &strict] {
        until(async || verdict(server, &good).await == Ok(())).await;
    }
    for (code, body) in [(503, "{}"), (200, "no JWKS"), (200, "{\"keys\":[]}"), (302, "")] {
        issuer.answer_with(code, body);
        let before = failures(&patient);
        until(async || failures(&patient) > before + 1).await;
        assert_eq!(verdict(&patient, &good).await, Ok(()), "{code} {body}");
    }
    until(async || verdict(&strict, &good).await == UNAVAILABLE).await;
    assert_eq!(verdict(&strict, "no.token.atall").await, INVALID, "that needs no key");
    issuer.publish(&[&one]);
    until(async || verdict(&strict, &good).await == Ok(())).await;
}

#[tokio::test]
async fn an_issuer_that_is_not_the_one_meant_is_not_believed() {
    let (database, folder) = (database().await, TempDir::new().unwrap());
    let one = IssuerKey::new("one");
    let issuer = Issuer::publishing(&[&one]).await;
    let ca = folder.path().join("ca.pem");
    let other = issuer
        .configure(options(), &ca)
        .set("auth.keys", format!("[{:?}]", folder.path().join("key.pem")));
    // A server with the right name, but of another CA.
    fs::write(&ca, keypool_testing::tls::Ca::new().pem).unwrap();
    fs::write(folder.path().join("key.pem"), issuer_public_key()).unwrap();
    let server = Server::start(&database, &other).await;
    assert_eq!(verdict(&server, &one.token("bob", "phone")).await, UNAVAILABLE);
    assert_eq!(issuer.asked(), 0);
    assert_eq!(verdict(&server, &token("bob", "phone")).await, Ok(()), "keys of files stay good");
    let check = ConfigFile::new(&database.service_url(), &other).run("check").await;
    let told = String::from_utf8(check.stdout).unwrap();
    assert!(told.starts_with("auth.jwks_url: no TLS: "), "{told}");
}

/// An issuer out of reach from the start.
pub(super) async fn refused_without_keys() -> Rejection {
    let (database, folder) = (database().await, TempDir::new().unwrap());
    let one = IssuerKey::new("one");
    let issuer = Issuer::publishing(&[]).await;
    issuer.answer_with(503, "");
    let options = issuer.configure(options(), &folder.path().join("ca.pem"));
    let server = Server::start(&database, &options).await;
    let client = Client::connect(server.uri(), one.token("bob", "phone")).await.unwrap();
    rejection(client.pool_status().await)
}
