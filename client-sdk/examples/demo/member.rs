//! A chat client's MLS half, on openmls.

use anyhow::{Context as _, Result, bail, ensure};
use keypool_client::v1::Reservation;
use openmls::prelude::{tls_codec::*, *};
use openmls_basic_credential::SignatureKeyPair;
use openmls_rust_crypto::OpenMlsRustCrypto;

pub(crate) const SUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;
const LIFETIME_SECONDS: u64 = 14 * 24 * 60 * 60;

/// One device of a user, with its keys.
pub(crate) struct Member {
    provider: OpenMlsRustCrypto,
    signer: SignatureKeyPair,
    credential: CredentialWithKey,
}

impl Member {
    /// A new device. Its credential's identity is the user_id, which keypool checks.
    pub(crate) fn new(user_id: &str) -> Result<Self> {
        let provider = OpenMlsRustCrypto::default();
        let signer = SignatureKeyPair::new(SUITE.signature_algorithm())?;
        signer.store(provider.storage())?;
        let credential = CredentialWithKey {
            credential: BasicCredential::new(user_id.into()).into(),
            signature_key: signer.public().into(),
        };
        Ok(Self { provider, signer, credential })
    }

    /// Makes KeyPackages and keeps their private keys; what is returned goes to keypool.
    pub(crate) fn one_time_packages(&self, count: usize) -> Result<Vec<Vec<u8>>> {
        (0..count).map(|_| self.publish(KeyPackage::builder())).collect()
    }

    /// Makes the KeyPackage to fall back on when no one-time one is left.
    pub(crate) fn last_resort_package(&self) -> Result<Vec<u8>> {
        self.publish(KeyPackage::builder().mark_as_last_resort())
    }

    fn publish(&self, builder: KeyPackageBuilder) -> Result<Vec<u8>> {
        let capabilities = Capabilities::builder()
            .ciphersuites(vec![SUITE])
            .extensions(vec![ExtensionType::LastResort])
            .build();
        let package = builder
            .leaf_node_capabilities(capabilities)
            .key_package_lifetime(Lifetime::new(LIFETIME_SECONDS))
            .build(SUITE, &self.provider, &self.signer, self.credential.clone())?;
        Ok(package.key_package().tls_serialize_detached()?)
    }

    /// Creates a group with this device as its only member.
    pub(crate) fn create_group(&self) -> Result<MlsGroup> {
        let config = MlsGroupCreateConfig::builder()
            .ciphersuite(SUITE)
            .use_ratchet_tree_extension(true)
            .build();
        Ok(MlsGroup::new(&self.provider, &self.signer, &config, self.credential.clone())?)
    }

    /// Checks a reserved package as an adder should, without trust in the server: signatures
    /// and lifetime, the suite, whose it is, and that it is the one the ref names.
    pub(crate) fn verify(&self, reservation: &Reservation, user_id: &str) -> Result<KeyPackage> {
        let package = KeyPackageIn::tls_deserialize_exact_bytes(&reservation.key_package)?
            .validate(self.provider.crypto(), ProtocolVersion::Mls10)?;
        let owner = BasicCredential::try_from(package.leaf_node().credential().clone())?;
        ensure!(package.ciphersuite() == SUITE, "the package is of another cipher suite");
        ensure!(owner.identity() == user_id.as_bytes(), "the package is not {user_id}'s");
        ensure!(
            package.hash_ref(self.provider.crypto())?.as_slice() == reservation.key_package_ref,
            "the KeyPackageRef is not that of the package"
        );
        ensure!(
            package.last_resort() == reservation.last_resort,
            "the package and the server disagree on whether it is a last resort one"
        );
        Ok(package)
    }

    /// Adds the package's owner; the Commit is taken as accepted at once, as this group has no
    /// other member. Returns the Welcome.
    pub(crate) fn add(&self, group: &mut MlsGroup, package: KeyPackage) -> Result<Vec<u8>> {
        let (_commit, welcome, _) = group.add_members(&self.provider, &self.signer, &[package])?;
        group.merge_pending_commit(&self.provider)?;
        Ok(welcome.tls_serialize_detached()?)
    }

    /// Joins the group that a Welcome invites to.
    pub(crate) fn join(&self, welcome: &[u8]) -> Result<MlsGroup> {
        let message = MlsMessageIn::tls_deserialize_exact_bytes(welcome)?;
        let MlsMessageBodyIn::Welcome(welcome) = message.extract() else {
            bail!("this message is not a Welcome");
        };
        let config = MlsGroupJoinConfig::builder().use_ratchet_tree_extension(true).build();
        Ok(StagedWelcome::new_from_welcome(&self.provider, &config, welcome, None)?
            .into_group(&self.provider)?)
    }

    /// Encrypts a text to the group.
    pub(crate) fn encrypt(&self, group: &mut MlsGroup, text: &str) -> Result<Vec<u8>> {
        let message = group.create_message(&self.provider, &self.signer, text.as_bytes())?;
        Ok(message.tls_serialize_detached()?)
    }

    /// Decrypts a text that another member sent to the group.
    pub(crate) fn decrypt(&self, group: &mut MlsGroup, message: &[u8]) -> Result<String> {
        let message = MlsMessageIn::tls_deserialize_exact_bytes(message)?
            .try_into_protocol_message()
            .context("this message belongs to no group")?;
        match group.process_message(&self.provider, message)?.into_content() {
            ProcessedMessageContent::ApplicationMessage(text) => {
                Ok(String::from_utf8(text.into_bytes())?)
            }
            _ => bail!("this message is not an application message"),
        }
    }
}
