//! Prints a new KeyPackage of a user in base64, to try keypool with grpcurl.
//!
//! Its private keys are gone when this ends, so nobody can join by it.

#![allow(clippy::print_stdout)] // Printing is what it is for.

use anyhow::{Context as _, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use openmls::prelude::{tls_codec::*, *};
use openmls_basic_credential::SignatureKeyPair;
use openmls_rust_crypto::OpenMlsRustCrypto;

fn main() -> Result<()> {
    let user = std::env::args().nth(1).context("usage: key_package USER")?;
    let suite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;
    let provider = OpenMlsRustCrypto::default();
    let signer = SignatureKeyPair::new(suite.signature_algorithm())?;
    let credential = CredentialWithKey {
        credential: BasicCredential::new(user.into_bytes()).into(),
        signature_key: signer.public().into(),
    };
    let package = KeyPackage::builder()
        .leaf_node_capabilities(Capabilities::builder().ciphersuites(vec![suite]).build())
        .build(suite, &provider, &signer, credential)?;
    println!("{}", STANDARD.encode(package.key_package().tls_serialize_detached()?));
    Ok(())
}
