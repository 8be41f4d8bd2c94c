//! Real members of MLS groups, on openmls.

use keypool_service::domain::ids::{ClientId, ClientKey, UserId};
use openmls::prelude::{
    BasicCredential, Capabilities, Ciphersuite, Credential, CredentialType, CredentialWithKey,
    ExtensionType, KeyPackage, KeyPackageIn, Lifetime, MlsGroup, MlsGroupCreateConfig,
    MlsGroupJoinConfig, MlsMessageBodyIn, MlsMessageIn, OpenMlsCrypto as _, OpenMlsProvider,
    ProcessedMessageContent, ProtocolVersion, StagedWelcome,
};
use openmls_basic_credential::SignatureKeyPair;
pub use openmls_libcrux_crypto::Provider as Libcrux;
pub use openmls_rust_crypto::OpenMlsRustCrypto as RustCrypto;
use tls_codec::{DeserializeBytes as _, Serialize as _};

use crate::x509::{ClientPublicKey, certificates};

/// One client of a user, in at most one group. Its BasicCredential names the user, unless it is
/// [certified](Member::certified).
#[derive(Debug)]
pub struct Member<P = RustCrypto> {
    /// The user and client.
    pub client: ClientKey,
    provider: P,
    signer: SignatureKeyPair,
    credential: CredentialWithKey,
    suite: Ciphersuite,
    group: Option<MlsGroup>,
}

/// What an adder sends after [`Member::add`].
#[derive(Debug, Clone)]
pub struct Invitation {
    /// For the members that were in the group before: an MLSMessage.
    pub commit: Vec<u8>,
    /// For those that were added: an MLSMessage.
    pub welcome: Vec<u8>,
}

impl Member {
    /// A client on openmls_rust_crypto, with a fresh signature key.
    pub fn new(user_id: &str, client_id: &str, cipher_suite: u16) -> Self {
        Self::on(RustCrypto::default(), user_id, client_id, cipher_suite)
    }
}

impl<P: OpenMlsProvider> Member<P> {
    /// A client on another provider, with a fresh signature key.
    pub fn on(provider: P, user_id: &str, client_id: &str, cipher_suite: u16) -> Self {
        let suite = Ciphersuite::try_from(cipher_suite).expect("a suite that openmls knows");
        provider.crypto().supports(suite).expect("a suite that the provider knows");
        let signer = SignatureKeyPair::new(suite.signature_algorithm()).expect("a signature key");
        let credential = CredentialWithKey {
            credential: BasicCredential::new(user_id.as_bytes().to_vec()).into(),
            signature_key: signer.to_public_vec().into(),
        };
        let client = ClientKey {
            user: UserId::parse(user_id).expect("a user id"),
            client: ClientId::parse(client_id).expect("a client id"),
        };
        Self { client, provider, signer, credential, suite, group: None }
    }

    /// Gives it an X.509 credential (RFC 9420, section 5.3) instead: the chain that `certify`
    /// makes for its signature key.
    #[must_use]
    pub fn certified(mut self, certify: impl FnOnce(&ClientPublicKey) -> Vec<Vec<u8>>) -> Self {
        let key = ClientPublicKey::new(self.suite.into(), self.credential.signature_key.as_slice());
        let chain = certificates(&certify(&key));
        self.credential.credential = Credential::new(CredentialType::X509, chain);
        self
    }

    /// A fresh KeyPackage, its private keys kept for a Welcome.
    pub fn key_package(&self, last_resort: bool, lifetime: Lifetime) -> Vec<u8> {
        let builder = KeyPackage::builder()
            .leaf_node_capabilities(self.capabilities())
            .key_package_lifetime(lifetime);
        let builder = if last_resort { builder.mark_as_last_resort() } else { builder };
        builder
            .build(self.suite, &self.provider, &self.signer, self.credential.clone())
            .expect("a KeyPackage")
            .key_package()
            .tls_serialize_detached()
            .expect("its encoding")
    }

    /// Founds a group with this member alone, and answers its id.
    pub fn create_group(&mut self) -> Vec<u8> {
        let config = MlsGroupCreateConfig::builder()
            .ciphersuite(self.suite)
            .capabilities(self.capabilities())
            .use_ratchet_tree_extension(true)
            .build();
        let group = MlsGroup::new(&self.provider, &self.signer, &config, self.credential.clone())
            .expect("a group");
        self.group.insert(group).group_id().to_vec()
    }

    /// The group, and what it takes to act in it, for calls of openmls's own.
    pub fn group(&mut self) -> (&mut MlsGroup, &P, &SignatureKeyPair) {
        (self.group.as_mut().expect("a group"), &self.provider, &self.signer)
    }

    /// Commits the addition of the owners of these KeyPackages, each validated again. The commit
    /// is pending until [`Member::merge_commit`].
    pub fn add(&mut self, key_packages: &[Vec<u8>]) -> Invitation {
        let packages: Vec<KeyPackage> = key_packages
            .iter()
            .map(|bytes| {
                KeyPackageIn::tls_deserialize_exact_bytes(bytes)
                    .expect("a KeyPackage")
                    .validate(self.provider.crypto(), ProtocolVersion::Mls10)
                    .expect("a valid KeyPackage")
            })
            .collect();
        let group = self.group.as_mut().expect("a group");
        let (commit, welcome, _) =
            group.add_members(&self.provider, &self.signer, &packages).expect("a commit");
        Invitation {
            commit: commit.tls_serialize_detached().expect("its encoding"),
            welcome: welcome.tls_serialize_detached().expect("its encoding"),
        }
    }

    /// The Delivery Service took this member's commit.
    pub fn merge_commit(&mut self) {
        let group = self.group.as_mut().expect("a group");
        group.merge_pending_commit(&self.provider).expect("a pending commit");
    }

    /// Joins by a Welcome, and answers the id of the group.
    pub fn join(&mut self, welcome: &[u8]) -> Vec<u8> {
        let message = MlsMessageIn::tls_deserialize_exact_bytes(welcome).expect("an MLSMessage");
        let MlsMessageBodyIn::Welcome(welcome) = message.extract() else {
            panic!("not a Welcome");
        };
        let config = MlsGroupJoinConfig::builder().use_ratchet_tree_extension(true).build();
        let group = StagedWelcome::new_from_welcome(&self.provider, &config, welcome, None)
            .expect("a Welcome for one of this member's KeyPackages")
            .into_group(&self.provider)
            .expect("a group");
        self.group.insert(group).group_id().to_vec()
    }

    /// Encrypts an application message to the group.
    pub fn send(&mut self, text: &[u8]) -> Vec<u8> {
        let group = self.group.as_mut().expect("a group");
        let message = group.create_message(&self.provider, &self.signer, text).expect("a message");
        message.tls_serialize_detached().expect("its encoding")
    }

    /// Reads a message of another member: the text of an application message; `None` for a
    /// commit, which is merged.
    pub fn receive(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        let message = MlsMessageIn::tls_deserialize_exact_bytes(message).expect("an MLSMessage");
        let message = message.try_into_protocol_message().expect("a message for a group");
        let group = self.group.as_mut().expect("a group");
        let message =
            group.process_message(&self.provider, message).expect("a message for this group");
        match message.into_content() {
            ProcessedMessageContent::ApplicationMessage(text) => Some(text.into_bytes()),
            ProcessedMessageContent::StagedCommitMessage(commit) => {
                group.merge_staged_commit(&self.provider, *commit).expect("a commit that fits");
                None
            }
            other => panic!("neither application message nor commit: {other:?}"),
        }
    }

    /// What the provider can do, the last resort mark, and GREASE (RFC 9420, section 13.5).
    fn capabilities(&self) -> Capabilities {
        Capabilities::builder()
            .ciphersuites(vec![self.suite])
            .extensions(vec![ExtensionType::LastResort])
            .credentials(vec![self.credential.credential.credential_type()])
            .build()
            .with_grease(self.provider.rand())
    }
}
