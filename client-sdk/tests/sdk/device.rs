//! Members of MLS groups, on openmls.

use keypool_client::v1;
use openmls::prelude::{tls_codec::*, *};
use openmls_basic_credential::SignatureKeyPair;
use openmls_rust_crypto::OpenMlsRustCrypto;

pub(crate) const SUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;

/// One client of a user. Its BasicCredential names the user.
pub(crate) struct Device {
    pub(crate) provider: OpenMlsRustCrypto,
    pub(crate) signer: SignatureKeyPair,
    pub(crate) credential: CredentialWithKey,
    pub(crate) suite: Ciphersuite,
}

impl Device {
    pub(crate) fn new(user_id: &str) -> Self {
        Self::of(SUITE, user_id)
    }

    pub(crate) fn of(suite: Ciphersuite, user_id: &str) -> Self {
        let signer = SignatureKeyPair::new(suite.signature_algorithm()).unwrap();
        let credential = CredentialWithKey {
            credential: BasicCredential::new(user_id.into()).into(),
            signature_key: signer.public().into(),
        };
        Self { provider: OpenMlsRustCrypto::default(), signer, credential, suite }
    }

    pub(crate) fn capabilities(&self) -> Capabilities {
        let extensions = vec![ExtensionType::LastResort];
        Capabilities::builder().ciphersuites(vec![self.suite]).extensions(extensions).build()
    }

    pub(crate) fn package(&self) -> KeyPackage {
        self.package_by(|builder| builder)
    }

    pub(crate) fn package_by(
        &self,
        change: impl FnOnce(KeyPackageBuilder) -> KeyPackageBuilder,
    ) -> KeyPackage {
        let builder = KeyPackage::builder()
            .leaf_node_capabilities(self.capabilities())
            .key_package_lifetime(Lifetime::new(14 * 86_400));
        let bundle = change(builder)
            .build(self.suite, &self.provider, &self.signer, self.credential.clone())
            .unwrap();
        bundle.key_package().clone()
    }

    pub(crate) fn group(&self) -> MlsGroup {
        self.group_with(|builder| builder)
    }

    pub(crate) fn group_with(
        &self,
        change: impl FnOnce(MlsGroupCreateConfigBuilder) -> MlsGroupCreateConfigBuilder,
    ) -> MlsGroup {
        let builder = MlsGroupCreateConfig::builder()
            .ciphersuite(self.suite)
            .capabilities(self.capabilities())
            .use_ratchet_tree_extension(true);
        let config = change(builder).build();
        MlsGroup::new(&self.provider, &self.signer, &config, self.credential.clone()).unwrap()
    }

    pub(crate) fn join(&self, welcome: &MlsMessageOut) -> MlsGroup {
        let bytes = welcome.tls_serialize_detached().unwrap();
        let message = MlsMessageIn::tls_deserialize_exact_bytes(&bytes).unwrap();
        let MlsMessageBodyIn::Welcome(welcome) = message.extract() else {
            unreachable!("not a Welcome")
        };
        let config = MlsGroupJoinConfig::builder().use_ratchet_tree_extension(true).build();
        StagedWelcome::new_from_welcome(&self.provider, &config, welcome, None)
            .unwrap()
            .into_group(&self.provider)
            .unwrap()
    }

    /// As the server would hand it out.
    pub(crate) fn reservation(&self, id: &str, package: &KeyPackage) -> v1::Reservation {
        v1::Reservation {
            reservation_id: id.into(),
            key_package_ref: package
                .hash_ref(self.provider.crypto())
                .unwrap()
                .as_slice()
                .to_vec()
                .into(),
            key_package: package.tls_serialize_detached().unwrap().into(),
            expires_at: Some(prost_types::Timestamp { seconds: 2_000_000_000, nanos: 0 }),
            last_resort: package.last_resort(),
            ..Default::default()
        }
    }
}

/// A result that holds a package.
pub(crate) fn held(user_id: &str, reservation: v1::Reservation) -> v1::ReserveResult {
    result(user_id, v1::reserve_result::Outcome::Reservation(reservation))
}

/// A result that holds none.
pub(crate) fn without(user_id: &str, reason: v1::UnavailableReason) -> v1::ReserveResult {
    let unavailable = v1::Unavailable { reason: reason.into() };
    result(user_id, v1::reserve_result::Outcome::Unavailable(unavailable))
}

fn result(user_id: &str, outcome: v1::reserve_result::Outcome) -> v1::ReserveResult {
    v1::ReserveResult { user_id: user_id.into(), client_id: "phone".into(), outcome: Some(outcome) }
}
