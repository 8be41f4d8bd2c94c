//! The private keys of this device's KeyPackages, in OpenMLS's storage and nowhere else.
//!
//! OpenMLS stores a KeyPackage, its init key and its encryption key as one entry under the
//! KeyPackageRef, and takes the entry out as it reads a Welcome, unless it is a last resort one.

use bytes::Bytes;
use openmls::prelude::{
    Ciphersuite, KeyPackageBundle, KeyPackageRef, Lifetime, OpenMlsProvider,
    tls_codec::{DeserializeBytes as _, Serialize as _, VLByteSlice},
};
use openmls_memory_storage::MemoryStorage;
use openmls_traits::{signatures::Signer, storage::StorageProvider as _};

use super::{Identity, PoolError};

/// A KeyPackage with its private keys, which are not stored yet.
pub(super) struct Made {
    key_package_ref: KeyPackageRef,
    bundle: KeyPackageBundle,
}

impl Made {
    /// Makes a KeyPackage whose private keys are in memory only, so that its ref can be recorded
    /// before they are stored.
    pub(super) fn new(
        provider: &impl OpenMlsProvider,
        identity: &Identity<impl Signer>,
        cipher_suite: Ciphersuite,
        lifetime: Lifetime,
        last_resort: bool,
    ) -> Result<Self, PoolError> {
        let mut builder = identity.builder(provider).key_package_lifetime(lifetime);
        if last_resort {
            builder = builder.mark_as_last_resort();
        }
        let unstored = Unstored { provider, storage: MemoryStorage::default() };
        let credential = identity.credential.clone();
        let bundle = builder
            .build(cipher_suite, &unstored, &identity.signer, credential)
            .map_err(PoolError::key_package)?;
        let key_package_ref = bundle.key_package().hash_ref(provider.crypto());
        Ok(Self { key_package_ref: key_package_ref.map_err(PoolError::key_package)?, bundle })
    }

    pub(super) fn key_package_ref(&self) -> Bytes {
        Bytes::copy_from_slice(self.key_package_ref.as_slice())
    }

    /// What is uploaded.
    pub(super) fn encoding(&self) -> Result<Bytes, PoolError> {
        encoding(&self.bundle)
    }

    pub(super) fn store(&self, provider: &impl OpenMlsProvider) -> Result<(), PoolError> {
        let stored = provider.storage().write_key_package(&self.key_package_ref, &self.bundle);
        stored.map_err(PoolError::storage)
    }
}

/// The encoding of a KeyPackage whose private keys are stored; `None` when they are not.
pub(super) fn stored(
    provider: &impl OpenMlsProvider,
    key_package_ref: &[u8],
) -> Result<Option<Bytes>, PoolError> {
    let found = provider.storage().key_package(&named(key_package_ref)?);
    let found: Option<KeyPackageBundle> = found.map_err(PoolError::storage)?;
    found.as_ref().map(encoding).transpose()
}

/// Deletes the private keys of a KeyPackage, if they are stored.
pub(super) fn delete(
    provider: &impl OpenMlsProvider,
    key_package_ref: &[u8],
) -> Result<(), PoolError> {
    let deleted = provider.storage().delete_key_package(&named(key_package_ref)?);
    deleted.map_err(PoolError::storage)
}

/// OpenMLS reads refs from messages only, where each is a vector (RFC 9420, section 5.2).
fn named(key_package_ref: &[u8]) -> Result<KeyPackageRef, PoolError> {
    VLByteSlice(key_package_ref)
        .tls_serialize_detached()
        .and_then(|encoding| KeyPackageRef::tls_deserialize_exact_bytes(&encoding))
        .map_err(PoolError::key_package)
}

fn encoding(bundle: &KeyPackageBundle) -> Result<Bytes, PoolError> {
    let encoding = bundle.key_package().tls_serialize_detached();
    Ok(encoding.map_err(PoolError::key_package)?.into())
}

/// A provider whose storage is a heap of its own.
struct Unstored<'a, P> {
    provider: &'a P,
    storage: MemoryStorage,
}

impl<P: OpenMlsProvider> OpenMlsProvider for Unstored<'_, P> {
    type CryptoProvider = P::CryptoProvider;
    type RandProvider = P::RandProvider;
    type StorageProvider = MemoryStorage;

    fn storage(&self) -> &Self::StorageProvider {
        &self.storage
    }

    fn crypto(&self) -> &Self::CryptoProvider {
        self.provider.crypto()
    }

    fn rand(&self) -> &Self::RandProvider {
        self.provider.rand()
    }
}
