//! Invites every client of a user to a new group: `invite URL TOKEN ME USER`.
//!
//! The crate's front page explains each step. Nobody delivers the Welcome here.

#![allow(clippy::print_stdout)] // Printing is what it is for.

use anyhow::{Context as _, Result};
use keypool_client::{
    Client, Invites, MemoryMetadataStore, Reserve, basic_credential_names_user, openmls::prelude::*,
};
use openmls_basic_credential::SignatureKeyPair;
use openmls_rust_crypto::OpenMlsRustCrypto;

const SUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: [String; 4] = std::env::args()
        .skip(1)
        .collect::<Vec<_>>()
        .try_into()
        .ok()
        .context("usage: invite URL TOKEN ME USER")?;
    let [url, token, me, user] = arguments;
    let (provider, signer, mut group) = new_group(&me)?;

    let client = Client::connect(url, token).await?;
    let invites = Invites::new(client, MemoryMetadataStore::new(), basic_credential_names_user);
    let ask = Reserve::for_group(&group).target(&user);
    let mut invitation = invites.reserve(provider.crypto(), &ask).await?;
    for missing in invitation.missing() {
        println!("without {}: {}", missing.user_id, missing.reason);
    }
    let messages = invitation.add_to(&mut group, &provider, &signer)?;
    // Send messages.commit; once the Delivery Service has accepted it, messages.welcome:
    group.merge_pending_commit(&provider)?;
    invitation.spend().await?;
    let welcome = messages.welcome.to_bytes()?;
    println!("{} members; a Welcome of {} bytes", group.members().count(), welcome.len());
    Ok(())
}

fn new_group(me: &str) -> Result<(OpenMlsRustCrypto, SignatureKeyPair, MlsGroup)> {
    let (provider, signer) =
        (OpenMlsRustCrypto::default(), SignatureKeyPair::new(SUITE.signature_algorithm())?);
    let credential = CredentialWithKey {
        credential: BasicCredential::new(me.into()).into(),
        signature_key: signer.public().into(),
    };
    let config = MlsGroupCreateConfig::builder().ciphersuite(SUITE).build();
    let group = MlsGroup::new(&provider, &signer, &config, credential)?;
    Ok((provider, signer, group))
}
