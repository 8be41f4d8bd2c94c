//! What an upload may hold.

use std::collections::BTreeSet;

use time::{Duration, OffsetDateTime};

use super::{identity::IdentityTemplate, trust_anchors::TrustAnchors};
use crate::domain::ids::CipherSuite;

/// The limits of an upload. `config` fills them in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadPolicy {
    /// The cipher suites that are accepted, of
    /// [`servable_cipher_suites`](crate::domain::crypto::servable_cipher_suites). Any other is
    /// refused even when it stands here.
    pub cipher_suites: BTreeSet<CipherSuite>,
    /// The longest time between not_before and not_after (RFC 9420, section 7.2).
    pub max_lifetime: Duration,
    /// How far not_before may lie in the future.
    pub clock_skew: Duration,
    /// One-time packages whose lifetime begins before this are refused: they may have been issued
    /// by a database that was lost. None where none was.
    pub made_since: Option<OffsetDateTime>,
    /// What the identity of a BasicCredential, or a subject alternative name of an X.509
    /// credential, must be.
    pub credential_identity: IdentityTemplate,
    /// Whose X.509 credentials are accepted: by default, nobody's.
    pub trust_anchors: TrustAnchors,
    /// The longest encoding that is read, in bytes.
    pub max_key_package_bytes: usize,
}

impl Default for UploadPolicy {
    fn default() -> Self {
        Self {
            cipher_suites: BTreeSet::from([CipherSuite(1), CipherSuite(2), CipherSuite(3)]),
            max_lifetime: Duration::days(90),
            clock_skew: Duration::minutes(5),
            made_since: None,
            credential_identity: IdentityTemplate::default(),
            trust_anchors: TrustAnchors::default(),
            max_key_package_bytes: 20 * 1024,
        }
    }
}
