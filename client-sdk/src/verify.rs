use std::collections::BTreeSet;

use keypool_proto::v1::{RequiredCapabilities, Reservation};
use openmls::prelude::{
    BasicCredential, Ciphersuite, Credential, KeyPackage, KeyPackageIn, KeyPackageVerifyError,
    OpenMlsCrypto, ProtocolVersion, SignaturePublicKey,
    tls_codec::{Deserialize, Serialize as _, VLBytes},
};

use crate::BoxError;

const MLS_10: u16 = 1;
/// Extension type `app_data_dictionary` (draft-ietf-mls-extensions, section 4.6).
const APP_DATA_DICTIONARY: u16 = 0x0006;
/// Component `last_resort_key_package`.
const LAST_RESORT_COMPONENT: u16 = 0x0004;

/// Why a package that the server handed out was refused. The server, whoever can write to its
/// database, or the package's owner made a mistake, or lies.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It does not parse, or bytes follow it.
    #[error("it is not a KeyPackage")]
    Malformed,
    /// It is of another protocol version than mls10 (RFC 9420, section 10.1).
    #[error("it is of protocol version {0}, not mls10")]
    WrongVersion(u16),
    /// It is of another cipher suite than the group (RFC 9420, section 10.1).
    #[error("it is of cipher suite {0:#06x}, not the group's")]
    WrongCipherSuite(u16),
    /// The signature of the leaf node or of the package does not verify (RFC 9420, sections 7.2
    /// and 10).
    #[error("a signature does not verify")]
    InvalidSignature,
    /// It has expired, is not valid yet, or for longer than the maximum (RFC 9420, section 7.2).
    #[error("it is stale, or its lifetime is not acceptable")]
    Lifetime,
    /// It is not the package that the KeyPackageRef names (RFC 9420, section 5.2).
    #[error("its KeyPackageRef is another one")]
    RefMismatch,
    /// The server and the package disagree on whether it is a last resort package (RFC 9420,
    /// section 16.8).
    #[error("the server and the package disagree on whether it is a last resort package")]
    LastResortMismatch,
    /// The package or its leaf node breaks another rule of RFC 9420, sections 7.2, 7.3 and 10.1.
    #[error("it breaks a rule: {0}")]
    Invalid(&'static str),
    /// Its owner's client lacks what the group requires (RFC 9420, section 11.1).
    #[error("its client lacks what the group requires")]
    MissingCapabilities,
    /// The caller's [`CredentialCheck`] refused it: it is someone else's, or not to be believed.
    #[error("its credential was refused")]
    Credential(#[source] BoxError),
    /// It is for a client that was not asked for, or was answered already.
    #[error("it was not asked for")]
    NotAskedFor,
    /// It stands in this invitation for another client too.
    #[error("it is another client's too")]
    Duplicate,
}

/// Whose a package is said to be, and what it says itself.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Presented<'a> {
    /// The user that the package was reserved for.
    pub user_id: &'a str,
    /// The client that the package was reserved for.
    pub client_id: &'a str,
    /// The credential in its leaf node.
    pub credential: &'a Credential,
    /// The key that signed the package.
    pub signature_key: &'a SignaturePublicKey,
}

/// Decides whether a credential and signature key are those of a client: what the Authentication
/// Service is for (RFC 9750, section 4). Nobody else checks it for the adder.
///
/// A closure will do: `|it: &Presented<'_>| known_keys.check(it.user_id, it.signature_key)`.
pub trait CredentialCheck: Send + Sync {
    /// Checks one package's owner.
    ///
    /// # Errors
    /// When the package must not be used.
    fn check(&self, presented: &Presented<'_>) -> Result<(), BoxError>;
}

impl<F: Fn(&Presented<'_>) -> Result<(), BoxError> + Send + Sync> CredentialCheck for F {
    fn check(&self, presented: &Presented<'_>) -> Result<(), BoxError> {
        self(presented)
    }
}

/// The check that a BasicCredential (RFC 9420, section 5.3) has the user_id as its identity. It
/// believes any signature key; compare those with what is known of the user as well.
///
/// # Errors
/// When the credential is of another type or names someone else.
pub fn basic_credential_names_user(presented: &Presented<'_>) -> Result<(), BoxError> {
    let basic = BasicCredential::try_from(presented.credential.clone())?;
    if basic.identity() != presented.user_id.as_bytes() {
        return Err("the credential names someone else".into());
    }
    Ok(())
}

/// What every package of a group's invitation has to meet.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) cipher_suite: Ciphersuite,
    pub(crate) required: RequiredCapabilities,
    pub(crate) max_lifetime_seconds: u64,
}

impl Rules {
    /// Judges a package as if its server were not to be trusted.
    pub(crate) fn verify(
        &self,
        crypto: &impl OpenMlsCrypto,
        reservation: &Reservation,
        (user_id, client_id): (&str, &str),
        check: &dyn CredentialCheck,
    ) -> Result<KeyPackage, Refusal> {
        let bytes = &reservation.key_package;
        let (version, rest) = split_u16(bytes).ok_or(Refusal::Malformed)?;
        let (cipher_suite, _) = split_u16(rest).ok_or(Refusal::Malformed)?;
        if version != MLS_10 {
            return Err(Refusal::WrongVersion(version));
        }
        if cipher_suite != u16::from(self.cipher_suite) {
            return Err(Refusal::WrongCipherSuite(cipher_suite));
        }
        let package = parse::<KeyPackageIn>(bytes)?
            .validate(crypto, ProtocolVersion::Mls10)
            .map_err(refusal)?;
        let key_package_ref =
            package.hash_ref(crypto).map_err(|_| Refusal::Invalid("it cannot be hashed"))?;
        if key_package_ref.as_slice() != reservation.key_package_ref {
            return Err(Refusal::RefMismatch);
        }
        if is_last_resort(&package)? != reservation.last_resort {
            return Err(Refusal::LastResortMismatch);
        }
        let lifetime = package.life_time();
        if lifetime.not_after().saturating_sub(lifetime.not_before()) > self.max_lifetime_seconds {
            return Err(Refusal::Lifetime);
        }
        self.verify_capabilities(&package)?;
        self.verify_keys(crypto, &package)?;
        let leaf = package.leaf_node();
        let (credential, signature_key) = (leaf.credential(), leaf.signature_key());
        check
            .check(&Presented { user_id, client_id, credential, signature_key })
            .map_err(Refusal::Credential)?;
        Ok(package)
    }

    /// What other members will check when they see the Add, but openmls does not (RFC 9420,
    /// sections 7.2 and 7.3), and what the group requires (section 11.1).
    fn verify_capabilities(&self, package: &KeyPackage) -> Result<(), Refusal> {
        let leaf = package.leaf_node();
        let can = leaf.capabilities();
        if !can.versions().contains(&ProtocolVersion::Mls10) {
            return Err(Refusal::Invalid("its capabilities lack its protocol version"));
        }
        if !can.ciphersuites().contains(&self.cipher_suite.into()) {
            return Err(Refusal::Invalid("its capabilities lack its cipher suite"));
        }
        let credentials: BTreeSet<u16> = can.credentials().iter().map(|&it| it.into()).collect();
        if !credentials.contains(&leaf.credential().credential_type().into()) {
            return Err(Refusal::Invalid("its capabilities lack its credential type"));
        }
        let extensions: BTreeSet<u16> = can.extensions().iter().map(|&it| it.into()).collect();
        let covered = |extension: u16| is_default(extension) || extensions.contains(&extension);
        if !leaf.extensions().iter().all(|it| covered(it.extension_type().into())) {
            return Err(Refusal::Invalid("its capabilities lack a leaf extension"));
        }
        let proposals: BTreeSet<u16> = can.proposals().iter().map(|&it| it.into()).collect();
        let has =
            |set: &BTreeSet<u16>, it: u32| u16::try_from(it).is_ok_and(|it| set.contains(&it));
        let default = |it: u32| u16::try_from(it).is_ok_and(is_default);
        let RequiredCapabilities { extension_types, proposal_types, credential_types } =
            &self.required;
        let meets = extension_types.iter().all(|&it| default(it) || has(&extensions, it))
            && proposal_types.iter().all(|&it| is_default_proposal(it) || has(&proposals, it))
            && credential_types.iter().all(|&it| has(&credentials, it));
        if meets { Ok(()) } else { Err(Refusal::MissingCapabilities) }
    }

    /// A Commit and Welcome can be encrypted to it. One package to which they cannot be would
    /// make the whole Commit fail, long after it could be left out.
    fn verify_keys(
        &self,
        crypto: &impl OpenMlsCrypto,
        package: &KeyPackage,
    ) -> Result<(), Refusal> {
        for key in [package.hpke_init_key().as_slice(), &encryption_key(package)] {
            crypto
                .hpke_seal(self.cipher_suite.hpke_config(), key, &[], &[], &[])
                .map_err(|_| Refusal::Invalid("nothing can be encrypted to one of its keys"))?;
        }
        Ok(())
    }
}

fn refusal(error: KeyPackageVerifyError) -> Refusal {
    match error {
        KeyPackageVerifyError::InvalidSignature
        | KeyPackageVerifyError::InvalidLeafNodeSignature => Refusal::InvalidSignature,
        KeyPackageVerifyError::LifetimeError(_) | KeyPackageVerifyError::MissingLifetime => {
            Refusal::Lifetime
        }
        KeyPackageVerifyError::InvalidProtocolVersion => Refusal::WrongVersion(0),
        KeyPackageVerifyError::UnsupportedExtension => {
            Refusal::Invalid("its capabilities lack an extension")
        }
        KeyPackageVerifyError::InvalidLeafNodeSourceType => {
            Refusal::Invalid("its leaf node is not a KeyPackage's")
        }
        KeyPackageVerifyError::InitKeyEqualsEncryptionKey => {
            Refusal::Invalid("its init_key is its encryption_key")
        }
        _ => Refusal::Invalid("openmls refuses it"),
    }
}

/// By its extension, or by the component that draft-ietf-mls-extensions has for it.
fn is_last_resort(package: &KeyPackage) -> Result<bool, Refusal> {
    if package.last_resort() {
        return Ok(true);
    }
    let is_dictionary =
        |it: &&openmls::prelude::Extension| u16::from(it.extension_type()) == APP_DATA_DICTIONARY;
    let Some(extension) = package.extensions().iter().find(is_dictionary) else {
        return Ok(false);
    };
    // From its encoding, as how openmls reads it depends on a feature that the application sets.
    let encoded = extension.tls_serialize_detached().map_err(|_| Refusal::Malformed)?;
    let (_, data) = parse::<(u16, VLBytes)>(&encoded)?;
    let components = parse::<Vec<(u16, VLBytes)>>(data.as_slice())?;
    Ok(components.iter().any(|(component, _)| *component == LAST_RESORT_COMPONENT))
}

/// The public key in the leaf node, which openmls shows as it is encoded only.
pub(crate) fn encryption_key(package: &KeyPackage) -> Vec<u8> {
    let encoded = package.leaf_node().encryption_key().tls_serialize_detached();
    let key = parse::<VLBytes>(&encoded.unwrap_or_default());
    key.map(Into::into).unwrap_or_default() // never empty: what was encoded is a vector
}

/// Reads all of the bytes. By tls_codec's reader, as what it has for slices panics in debug builds
/// when a vector is cut short.
fn parse<T: Deserialize>(mut bytes: &[u8]) -> Result<T, Refusal> {
    let parsed = T::tls_deserialize(&mut bytes).map_err(|_| Refusal::Malformed)?;
    if bytes.is_empty() { Ok(parsed) } else { Err(Refusal::Malformed) }
}

fn split_u16(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((u16::from_be_bytes(*number), rest))
}

/// An extension type that every client supports and none lists (RFC 9420, section 7.2).
fn is_default(extension_type: u16) -> bool {
    (1..=5).contains(&extension_type)
}

/// As [`is_default`], of proposal types.
fn is_default_proposal(proposal_type: u32) -> bool {
    (1..=7).contains(&proposal_type)
}
