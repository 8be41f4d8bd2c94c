//! Invites every client of a user to a new group: `invite URL TOKEN ME USER`.
//!
//! The crate's front page explains each step. Nobody delivers the Commit and the Welcome here.

#![allow(clippy::print_stdout)] // Printing is what it is for.

use anyhow::{Context as _, Result};
use keypool_client::{
    Client, Invites, MemoryMetadataStore, Reserve, basic_credential_names_user, openmls::prelude::*,
};
use openmls_basic_credential::SignatureKeyPair;
use openmls_rust_crypto::OpenMlsRustCrypto;

const SUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;

async fn invite(client: Client, Me { provider, signer, group }: &mut Me, user: &str) -> Result<()> {
    let invites = Invites::new(client, MemoryMetadataStore::new(), basic_credential_names_user);
    let ask = Reserve::for_group(group).target(user);
    let mut invitation = invites.reserve(provider.crypto(), &ask).await?;
    for missing in invitation.missing() {
        println!("without {}: {}", missing.user_id, missing.reason);
    }
    let messages = invitation.add_to(group, provider, signer)?;
    // Send messages.commit; once the Delivery Service has accepted it, messages.welcome:
    group.merge_pending_commit(provider)?;
    invitation.spend().await?;
    println!("a Welcome of {} bytes", messages.welcome.to_bytes()?.len());
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [url, token, me, user] =
        arguments.try_into().ok().context("usage: invite URL TOKEN ME USER")?;
    let mut me = Me::with_new_group(&me)?;
    invite(Client::connect(url, token).await?, &mut me, &user).await?;
    println!("{} members", me.group.members().count());
    Ok(())
}

/// A member of a group.
struct Me {
    provider: OpenMlsRustCrypto,
    signer: SignatureKeyPair,
    group: MlsGroup,
}

impl Me {
    fn with_new_group(name: &str) -> Result<Self> {
        let provider = OpenMlsRustCrypto::default();
        let signer = SignatureKeyPair::new(SUITE.signature_algorithm())?;
        let credential = CredentialWithKey {
            credential: BasicCredential::new(name.into()).into(),
            signature_key: signer.public().into(),
        };
        let config = MlsGroupCreateConfig::builder().ciphersuite(SUITE).build();
        let group = MlsGroup::new(&provider, &signer, &config, credential)?;
        Ok(Self { provider, signer, group })
    }
}
