//! Why a KeyPackage was refused.

use crate::domain::ids::KeyPackageRef;

/// Why a KeyPackage was refused, for programs. The contract's `RejectReason` says more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RejectReason {
    /// Does not parse, has trailing bytes, is empty or over the size limit.
    Malformed,
    /// The protocol version is not mls10.
    UnsupportedVersion,
    /// The cipher suite is not on this server's list.
    UnsupportedCipherSuite,
    /// The signature of the leaf node or of the KeyPackage does not verify.
    InvalidSignature,
    /// The leaf node breaks RFC 9420, sections 7.2 and 7.3.
    InvalidLeafNode,
    /// The init_key is not a public key, equals the encryption_key, or was used before.
    InvalidInitKey,
    /// The credential does not name the caller, or no trust anchor vouches for it.
    CredentialMismatch,
    /// Expired, not yet valid, or valid for too long.
    Lifetime,
    /// The package is spent, burned, revoked or replaced.
    AlreadyUsed,
    /// Another client has published this package.
    OwnedByAnotherClient,
    /// The pool holds its hard cap.
    PoolFull,
    /// The package, or its init_key, stands earlier in the request.
    DuplicateInRequest,
}

impl RejectReason {
    /// Its name in the contract, without the enum's prefix.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "MALFORMED",
            Self::UnsupportedVersion => "UNSUPPORTED_VERSION",
            Self::UnsupportedCipherSuite => "UNSUPPORTED_CIPHER_SUITE",
            Self::InvalidSignature => "INVALID_SIGNATURE",
            Self::InvalidLeafNode => "INVALID_LEAF_NODE",
            Self::InvalidInitKey => "INVALID_INIT_KEY",
            Self::CredentialMismatch => "CREDENTIAL_MISMATCH",
            Self::Lifetime => "LIFETIME",
            Self::AlreadyUsed => "ALREADY_USED",
            Self::OwnedByAnotherClient => "OWNED_BY_ANOTHER_CLIENT",
            Self::PoolFull => "POOL_FULL",
            Self::DuplicateInRequest => "DUPLICATE_IN_REQUEST",
        }
    }
}

/// A KeyPackage that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The ref, whenever the package parses and its cipher suite's hash is known.
    pub key_package_ref: Option<KeyPackageRef>,
    /// Why, for programs.
    pub reason: RejectReason,
    /// Why, for people: which rule, and what was found. Carries no bytes of the package.
    pub message: String,
}

impl Rejection {
    /// A package without a ref that was refused.
    pub fn new(reason: RejectReason, message: impl Into<String>) -> Self {
        Self { key_package_ref: None, reason, message: message.into() }
    }
}
