use std::fmt;

use bytes::Bytes;
use openmls::prelude::{
    Capabilities, Ciphersuite, CredentialWithKey, ExtensionType, KeyPackageBuilder,
    OpenMlsCrypto as _, OpenMlsProvider, tls_codec::Serialize as _,
};
use openmls_traits::types::HashType;

use super::PoolError;

/// Who the KeyPackages of a pool speak for: a credential, the key that signs for it, and the
/// cipher suites to publish packages of.
pub struct Identity<S> {
    pub(super) signer: S,
    pub(super) credential: CredentialWithKey,
    pub(super) cipher_suites: Vec<Ciphersuite>,
    template: Option<KeyPackageBuilder>,
}

impl<S> Identity<S> {
    /// `signer` signs for `credential`; its signature scheme is that of each of the cipher
    /// suites.
    pub fn new(
        signer: S,
        credential: CredentialWithKey,
        cipher_suites: impl IntoIterator<Item = Ciphersuite>,
    ) -> Self {
        let cipher_suites = cipher_suites.into_iter().collect();
        Self { signer, credential, cipher_suites, template: None }
    }

    /// What each package starts from: set capabilities and extensions here. The lifetime and the
    /// last resort mark are the pool's to set. The capabilities must list
    /// `ExtensionType::LastResort` unless the pool keeps no last resort package.
    ///
    /// Unless set: the cipher suites that the provider supports, the credential's type, and the
    /// last resort extension.
    #[must_use]
    pub fn template(mut self, template: KeyPackageBuilder) -> Self {
        self.template = Some(template);
        self
    }

    pub(super) fn builder(&self, provider: &impl OpenMlsProvider) -> KeyPackageBuilder {
        self.template.clone().unwrap_or_else(|| {
            let suites = provider.crypto().supported_ciphersuites();
            let capabilities = Capabilities::builder()
                .ciphersuites(suites)
                .extensions(vec![ExtensionType::LastResort])
                .credentials(vec![self.credential.credential.credential_type()])
                .build();
            KeyPackageBuilder::new().leaf_node_capabilities(capabilities)
        })
    }

    /// A digest of signature key and credential: what the server tells identities apart by.
    pub(super) fn digest(&self, provider: &impl OpenMlsProvider) -> Result<Bytes, PoolError> {
        let mut input = Vec::new();
        let key = self.credential.signature_key.as_slice();
        input.extend((key.len() as u64).to_be_bytes()); // so that no two pairs are one text
        input.extend(key);
        let credential = self.credential.credential.tls_serialize_detached();
        input.extend(credential.map_err(PoolError::key_package)?);
        let digest = provider.crypto().hash(HashType::Sha2_256, &input);
        Ok(digest.map_err(PoolError::key_package)?.into())
    }
}

impl<S> fmt::Debug for Identity<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("cipher_suites", &self.cipher_suites)
            .finish_non_exhaustive()
    }
}
