//! Keeps a client's pool of KeyPackages full until it is interrupted: `publish URL TOKEN ME`.
//!
//! The private keys are in memory here and end with the process, so nobody should be invited by
//! these packages. A chat client has its OpenMLS storage in a file, and the metadata with it:
//! `SqliteMetadataStore`.

#![allow(clippy::print_stdout)] // Printing is what it is for.

use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result};
use keypool_client::{Client, Identity, MemoryMetadataStore, OwnPool, openmls::prelude::*};
use openmls_basic_credential::SignatureKeyPair;
use openmls_rust_crypto::OpenMlsRustCrypto;

const SUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;

async fn publish(client: Client, me: Identity<SignatureKeyPair>) -> Result<()> {
    let provider = Arc::new(Mutex::new(OpenMlsRustCrypto::default()));
    let pool = OwnPool::new(client, provider, MemoryMetadataStore::new(), me)?;
    let mut health = pool.health();
    let _running = pool.run()?; // until it is dropped
    while health.changed().await.is_ok() {
        let health = health.borrow_and_update();
        match &health.failure {
            Some(failure) => println!("failed {} times: {}", failure.attempts, failure.cause),
            None => println!("{}", health.level().as_str_name()),
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [url, token, me] = arguments.try_into().ok().context("usage: publish URL TOKEN ME")?;
    publish(Client::connect(url, token).await?, identity(me)?).await
}

fn identity(me: String) -> Result<Identity<SignatureKeyPair>> {
    let signer = SignatureKeyPair::new(SUITE.signature_algorithm())?;
    let credential = CredentialWithKey {
        credential: BasicCredential::new(me.into()).into(),
        signature_key: signer.public().into(),
    };
    Ok(Identity::new(signer, credential, [SUITE]))
}
