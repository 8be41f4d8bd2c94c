//! The rules for the leaf node of a KeyPackage (RFC 9420, sections 7.2 and 7.3).

use openmls_traits::types::Ciphersuite;
use time::OffsetDateTime;

use super::{
    extensions::LAST_RESORT,
    policy::UploadPolicy,
    rejection::{RejectReason, Rejection},
    wire::{KeyPackage, LeafNode},
    x509::Chain,
};
use crate::domain::{
    capabilities::{Capabilities, CapabilityKind, is_default_extension, is_default_proposal},
    crypto::{SignatureKey, check_public_key},
    ids::ClientKey,
};

/// The version `mls10` (RFC 9420, section 6).
pub(super) const MLS10: u16 = 1;
/// Extension type `application_id`, the only one of RFC 9420 that belongs into a leaf node.
const APPLICATION_ID: u16 = 1;
const BASIC: u16 = 1;
const X509: u16 = 2;

fn invalid(message: impl Into<String>) -> Rejection {
    Rejection::new(RejectReason::InvalidLeafNode, message)
}

/// RFC 9420, section 7.2: the capabilities list the leaf's own version, cipher suite and
/// credential type, and none of the types that are supported by default.
pub(super) fn check_capabilities(
    leaf: &LeafNode<'_>,
    suite: Ciphersuite,
) -> Result<Capabilities, Rejection> {
    let lists = &leaf.capabilities;
    if !lists.versions.contains(MLS10) {
        return Err(invalid("the capabilities do not list the version mls10"));
    }
    if !lists.cipher_suites.contains(suite.into()) {
        return Err(invalid("the capabilities do not list the package's own cipher suite"));
    }
    if !lists.credentials.contains(leaf.credential.credential_type) {
        return Err(invalid("the capabilities do not list the leaf's own credential type"));
    }
    if let Some(code) = lists.extensions.iter().find(|&code| is_default_extension(code)) {
        return Err(invalid(format!("the capabilities list the default extension {code:#06x}")));
    }
    if let Some(code) = lists.proposals.iter().find(|&code| is_default_proposal(code)) {
        return Err(invalid(format!("the capabilities list the default proposal {code:#06x}")));
    }
    Ok(Capabilities::listed(
        lists.extensions.iter(),
        lists.proposals.iter(),
        lists.credentials.iter(),
    ))
}

/// RFC 9420, sections 7.2 and 10: the capabilities cover the extensions of the leaf node and of
/// the KeyPackage.
pub(super) fn check_extensions_covered(
    package: &KeyPackage<'_>,
    capabilities: &Capabilities,
) -> Result<(), Rejection> {
    let leaf = package.leaf_node.extensions.iter().map(|extension| ("leaf node", extension));
    let own = package.extensions.iter().map(|extension| ("KeyPackage", extension));
    for (place, extension) in leaf.chain(own) {
        let code = extension.extension_type;
        if !is_default_extension(code) && !capabilities.contains(CapabilityKind::Extension, code) {
            return Err(invalid(format!(
                "the capabilities do not list extension {code:#06x} of the {place}"
            )));
        }
    }
    Ok(())
}

/// RFC 9420, section 17.3: which extension types may stand in a leaf node. Unknown ones may.
pub(super) fn check_extension_types(leaf: &LeafNode<'_>) -> Result<(), Rejection> {
    let misplaced = |code| is_default_extension(code) && code != APPLICATION_ID;
    let mut codes = leaf.extensions.iter().map(|extension| extension.extension_type);
    match codes.find(|&code| misplaced(code) || code == LAST_RESORT) {
        Some(code) => Err(invalid(format!("extension {code:#06x} does not belong into a leaf"))),
        None => Ok(()),
    }
}

/// RFC 9420, section 10: the leaf's keys are valid for the cipher suite.
pub(super) fn check_keys(
    leaf: &LeafNode<'_>,
    suite: Ciphersuite,
) -> Result<SignatureKey, Rejection> {
    check_public_key(suite.hpke_kem_algorithm(), leaf.encryption_key)
        .map_err(|defect| invalid(format!("the encryption_key {defect}")))?;
    SignatureKey::parse(suite.signature_algorithm(), leaf.signature_key)
        .map_err(|defect| invalid(format!("the signature_key {defect}")))
}

/// RFC 9420, section 5.3.1: the credential names the client that uploads it. Answers when the
/// certificate of an X.509 credential expires.
pub(super) fn check_credential(
    leaf: &LeafNode<'_>,
    suite: Ciphersuite,
    caller: &ClientKey,
    policy: &UploadPolicy,
    now: OffsetDateTime,
) -> Result<Option<OffsetDateTime>, Rejection> {
    let mismatch = |message: String| Rejection::new(RejectReason::CredentialMismatch, message);
    match leaf.credential.credential_type {
        BASIC if policy.credential_identity.matches(leaf.credential.content, caller) => Ok(None),
        BASIC => Err(mismatch("the identity of the BasicCredential is not the caller's".into())),
        X509 if policy.trust_anchors.is_empty() => {
            Err(mismatch("no trust anchors for X.509 credentials are configured".into()))
        }
        X509 => {
            let chain = Chain::parse(leaf.credential.content)?;
            chain.check_key(suite.signature_algorithm(), leaf.signature_key)?;
            chain.check_name(&policy.credential_identity, caller)?;
            chain.check_path(&policy.trust_anchors, now)?;
            Ok(chain.not_after())
        }
        other => Err(mismatch(format!("credential type {other:#06x} cannot name a caller here"))),
    }
}
