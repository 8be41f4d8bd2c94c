use std::fmt;

use bytes::Bytes;
use keypool_proto::v1::UnavailableReason;
use openmls::prelude::KeyPackage;

use crate::Refusal;

/// A client that can be added.
#[non_exhaustive]
pub struct Invitee {
    /// The user.
    pub user_id: String,
    /// The client.
    pub client_id: String,
    /// The package, validated.
    pub key_package: KeyPackage,
    /// Its KeyPackageRef (RFC 9420, section 5.2).
    pub key_package_ref: Bytes,
    /// Whether others may hold the package too (RFC 9420, section 16.8).
    pub last_resort: bool,
}

/// A client that gave no package.
#[derive(Debug)]
#[non_exhaustive]
pub struct Missing {
    /// The user.
    pub user_id: String,
    /// The client; empty when a user has none to reserve from.
    pub client_id: String,
    /// Why.
    pub reason: MissingReason,
}

/// Why a client gave no package.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MissingReason {
    /// No package is left. An unknown user or client answers the same.
    #[error("no package is left")]
    PoolExhausted,
    /// The client has packages, but none of the group's cipher suite and required capabilities.
    #[error("no package fits the group")]
    NoCompatibleKeyPackage,
    /// The caller holds its fair share of this client's pool.
    #[error("the caller holds its fair share")]
    Quota,
    /// The package that the server handed out must not be used. Its reservation is released.
    #[error("its package was refused: {0}")]
    Refused(Refusal),
    /// The client is in the group already. Its reservation is released.
    #[error("it is in the group already")]
    AlreadyMember,
    /// The server gave no answer for this user, or a reason that this build does not know.
    #[error("the server did not answer for it")]
    Unanswered,
}

impl From<Refusal> for MissingReason {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<UnavailableReason> for MissingReason {
    fn from(reason: UnavailableReason) -> Self {
        match reason {
            UnavailableReason::PoolExhausted => Self::PoolExhausted,
            UnavailableReason::NoCompatibleKeyPackage => Self::NoCompatibleKeyPackage,
            UnavailableReason::Quota => Self::Quota,
            UnavailableReason::Unspecified => Self::Unanswered,
        }
    }
}

/// Shows no package.
impl fmt::Debug for Invitee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invitee")
            .field("user_id", &self.user_id)
            .field("client_id", &self.client_id)
            .field("last_resort", &self.last_resort)
            .finish_non_exhaustive()
    }
}
