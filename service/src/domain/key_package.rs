//! From bytes to a KeyPackage that may be handed out: every rule that the bytes alone decide.
//!
//! A package that breaks one rule gets that rule's reason: the encoding is judged first, then
//! what the fields say, and the signatures, which cost the most, at the end, those of several
//! packages together. Unknown and GREASE values get no treatment of their own (RFC 9420,
//! section 13.5).

mod extensions;
mod identity;
mod leaf_node;
mod lifetime;
mod policy;
mod rejection;
mod trust_anchors;
mod wire;
mod x509;

use openmls::prelude::KeyPackageIn;
use openmls_traits::types::Ciphersuite;
use time::OffsetDateTime;
use tls_codec::Deserialize as _;

pub use self::{
    identity::{IdentityTemplate, InvalidTemplate},
    policy::UploadPolicy,
    rejection::{RejectReason, Rejection},
    trust_anchors::{InvalidTrustAnchors, TrustAnchors},
};
use self::{
    leaf_node::MLS10,
    wire::{KeyPackage, LeafNodeSource, malformed},
};
use super::{
    crypto::{self, Claim, SignatureKey, all_hold, check_public_key},
    ids::{CipherSuite, ClientKey, KeyPackageRef, short_digest},
};

/// A KeyPackage that keeps every rule, and what the pool needs to know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValidatedKeyPackage {
    /// The KeyPackageRef (RFC 9420, section 5.2).
    pub key_package_ref: KeyPackageRef,
    /// The TLS encoding, without an MLSMessage around it.
    pub bytes: Vec<u8>,
    /// The cipher suite.
    pub cipher_suite: CipherSuite,
    /// The end of the lifetime, or of the X.509 certificate when that comes first.
    pub not_after: OffsetDateTime,
    /// Whether it is marked as a last resort package.
    pub last_resort: bool,
    /// Stands for the init_key.
    pub init_key_digest: [u8; 16],
    /// Stands for the leaf's signature_key.
    pub signature_key_digest: [u8; 16],
    /// Stands for the TLS encoding of the leaf's credential.
    pub credential_digest: [u8; 16],
    /// See [`Capabilities`](super::capabilities::Capabilities).
    pub capabilities: Vec<i32>,
}

/// Packages whose signatures are judged together: with more, a signature costs hardly less, and a wrong
/// one means that all of them are verified alone.
const TOGETHER: usize = 16;

/// Judges TLS encodings of KeyPackages, or of MLSMessages that wrap one, which `caller` uploads at the
/// time `now`. One result for each, in their order: what the pool needs to know, or the rule that it
/// breaks; when it breaks several, one of them.
pub fn validate_all(
    packages: &[Vec<u8>],
    caller: &ClientKey,
    policy: &UploadPolicy,
    now: OffsetDateTime,
) -> Vec<Result<ValidatedKeyPackage, Rejection>> {
    packages.chunks(TOGETHER).flat_map(|some| validate_some(some, caller, policy, now)).collect()
}

fn validate_some(
    packages: &[Vec<u8>],
    caller: &ClientKey,
    policy: &UploadPolicy,
    now: OffsetDateTime,
) -> Vec<Result<ValidatedKeyPackage, Rejection>> {
    let unsigned: Vec<_> =
        packages.iter().map(|bytes| Unsigned::judge(bytes, caller, policy, now)).collect();
    let together = |unsigned: &&Unsigned<'_>| unsigned.signature_key.goes_together();
    let claims: Vec<Claim<'_>> =
        unsigned.iter().flatten().filter(together).flat_map(Unsigned::claims).collect();
    let they_hold = all_hold(&claims);
    drop(claims);
    unsigned
        .into_iter()
        .map(|unsigned| {
            let unsigned = unsigned?;
            if !(they_hold && together(&&unsigned)) {
                unsigned.check_signatures()?;
            }
            Ok(unsigned.validated)
        })
        .collect()
}

/// A KeyPackage that keeps every rule but, so far, those for its signatures.
struct Unsigned<'a> {
    package: KeyPackage<'a>,
    signature_key: SignatureKey,
    validated: ValidatedKeyPackage,
}

impl<'a> Unsigned<'a> {
    fn judge(
        bytes: &'a [u8],
        caller: &ClientKey,
        policy: &UploadPolicy,
        now: OffsetDateTime,
    ) -> Result<Self, Rejection> {
        check_size(bytes, policy)?;
        let package = KeyPackage::parse(bytes)?;
        match judge(&package, caller, policy, now) {
            Ok((validated, signature_key)) => Ok(Self { package, signature_key, validated }),
            Err(rejection) => {
                let suite = Ciphersuite::try_from(package.cipher_suite).ok();
                let key_package_ref = suite.map(|suite| key_package_ref(&package, suite));
                Err(Rejection { key_package_ref, ..rejection })
            }
        }
    }

    /// That of the leaf node and that of the KeyPackage around it.
    fn claims(&self) -> [Claim<'_>; 2] {
        let leaf = &self.package.leaf_node;
        let claim =
            |label, content, signature| Claim::new(&self.signature_key, label, content, signature);
        [
            claim("LeafNodeTBS", leaf.signed, leaf.signature),
            claim("KeyPackageTBS", self.package.signed, self.package.signature),
        ]
    }

    /// RFC 9420, sections 7.3 and 10.1: both signatures verify under the leaf's signature_key.
    fn check_signatures(&self) -> Result<(), Rejection> {
        let [leaf_node, key_package] = self.claims();
        let both = [("the leaf node", leaf_node), ("the KeyPackage", key_package)];
        let Some((broken, _)) = both.iter().find(|(_, claim)| !claim.holds()) else {
            return Ok(());
        };
        let message = format!("the signature of {broken} does not verify");
        let key_package_ref = Some(self.validated.key_package_ref.clone());
        Err(Rejection {
            key_package_ref,
            ..Rejection::new(RejectReason::InvalidSignature, message)
        })
    }
}

/// Every rule but those for the signatures; the key that they are to verify under.
fn judge(
    package: &KeyPackage<'_>,
    caller: &ClientKey,
    policy: &UploadPolicy,
    now: OffsetDateTime,
) -> Result<(ValidatedKeyPackage, SignatureKey), Rejection> {
    let leaf = &package.leaf_node;
    check_version(package)?;
    let suite = check_cipher_suite(package, policy)?;
    extensions::check_list(&package.extensions)?;
    extensions::check_list(&leaf.extensions)?;
    extensions::check_key_package_types(&package.extensions)?;
    let last_resort = extensions::is_last_resort(&package.extensions)?;
    let (not_before, not_after) = check_source(package)?;
    let capabilities = leaf_node::check_capabilities(leaf, suite)?;
    leaf_node::check_extension_types(leaf)?;
    leaf_node::check_extensions_covered(package, &capabilities)?;
    let signature_key = leaf_node::check_keys(leaf, suite)?;
    check_init_key(package, suite)?;
    let certified_until = leaf_node::check_credential(leaf, suite, caller, policy, now)?;
    let not_after = lifetime::check(not_before, not_after, last_resort, policy, now)?;
    check_openmls_reads_it(package)?;
    let validated = ValidatedKeyPackage {
        key_package_ref: key_package_ref(package, suite),
        bytes: package.bytes.to_vec(),
        cipher_suite: CipherSuite(suite.into()),
        not_after: certified_until.map_or(not_after, |end| end.min(not_after)),
        last_resort,
        init_key_digest: short_digest(package.init_key),
        signature_key_digest: short_digest(leaf.signature_key),
        credential_digest: short_digest(leaf.credential.bytes),
        capabilities: capabilities.into_codes(),
    };
    Ok((validated, signature_key))
}

/// MakeKeyPackageRef (RFC 9420, section 5.2).
fn key_package_ref(package: &KeyPackage<'_>, suite: Ciphersuite) -> KeyPackageRef {
    const LABEL: &[u8] = b"MLS 1.0 KeyPackage Reference";
    let label_len = crypto::vector_header(LABEL.len());
    let value_len = crypto::vector_header(package.bytes.len());
    let input = [label_len.as_ref(), LABEL, value_len.as_ref(), package.bytes];
    KeyPackageRef(crypto::hash(suite.hash_algorithm(), &input))
}

fn check_size(bytes: &[u8], policy: &UploadPolicy) -> Result<(), Rejection> {
    let most = policy.max_key_package_bytes;
    match bytes.len() {
        0 => Err(malformed("is empty")),
        len if len > most => Err(malformed(&format!("has {len} bytes, more than {most}"))),
        _ => Ok(()),
    }
}

/// RFC 9420, section 10.1.
fn check_version(package: &KeyPackage<'_>) -> Result<(), Rejection> {
    match package.version {
        MLS10 => Ok(()),
        other => Err(Rejection::new(
            RejectReason::UnsupportedVersion,
            format!("protocol version {other:#06x} is not mls10"),
        )),
    }
}

/// RFC 9420, section 10.1: the suites of the groups that this service serves.
fn check_cipher_suite(
    package: &KeyPackage<'_>,
    policy: &UploadPolicy,
) -> Result<Ciphersuite, Rejection> {
    let suite = CipherSuite(package.cipher_suite);
    let algorithms = crypto::servable(suite).filter(|_| policy.cipher_suites.contains(&suite));
    algorithms.ok_or_else(|| {
        let message = format!("cipher suite {suite} is not on this server's list");
        Rejection::new(RejectReason::UnsupportedCipherSuite, message)
    })
}

/// RFC 9420, sections 7.3 and 10: a leaf node that was made for a KeyPackage. Answers its
/// lifetime.
fn check_source(package: &KeyPackage<'_>) -> Result<(u64, u64), Rejection> {
    let found = match package.leaf_node.source {
        LeafNodeSource::KeyPackage { not_before, not_after } => return Ok((not_before, not_after)),
        LeafNodeSource::Update => "update",
        LeafNodeSource::Commit => "commit",
    };
    Err(Rejection::new(
        RejectReason::InvalidLeafNode,
        format!("leaf_node_source is {found}, not key_package"),
    ))
}

/// RFC 9420, sections 10 and 10.1: a public key of the suite, other than the encryption_key.
fn check_init_key(package: &KeyPackage<'_>, suite: Ciphersuite) -> Result<(), Rejection> {
    let invalid = |message| Rejection::new(RejectReason::InvalidInitKey, message);
    check_public_key(suite.hpke_kem_algorithm(), package.init_key)
        .map_err(|defect| invalid(format!("the init_key {defect}")))?;
    if package.init_key == package.leaf_node.encryption_key {
        return Err(invalid("the init_key equals the encryption_key".to_owned()));
    }
    Ok(())
}

/// What openmls cannot read would fail whoever adds the client with it.
fn check_openmls_reads_it(package: &KeyPackage<'_>) -> Result<(), Rejection> {
    // From a reader: the crate's readers of slices fail an assertion of a debug build when a vector
    // in the package is cut short. What follows was looked for before.
    KeyPackageIn::tls_deserialize(&mut &*package.bytes)
        .map(drop)
        .map_err(|_| malformed("an extension does not parse"))
}
