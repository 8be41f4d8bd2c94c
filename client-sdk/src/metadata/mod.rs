//! What the SDK remembers on the device between runs: about the KeyPackages that it published, and
//! about the invitations that it has not settled. Nothing secret: private keys live in OpenMLS's
//! storage alone.
//!
//! [`MemoryMetadataStore`] forgets at the end of the process.
#![cfg_attr(feature = "sqlite", doc = "[`SqliteMetadataStore`] keeps everything in a SQLite file.")]

mod memory;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

pub use memory::MemoryMetadataStore;
#[cfg(feature = "sqlite")]
pub use sqlite::SqliteMetadataStore;

use crate::BoxError;

/// Where the SDK keeps its metadata.
///
/// Every method is one transaction: when it returns `Ok`, the change survives the end of the
/// process, and otherwise nothing has changed. The calls are synchronous, as those of OpenMLS's
/// `StorageProvider` are: each is one short statement on a local store of a few hundred rows, which
/// ends in well under a millisecond, and a trait of plain functions can be made into an object and
/// needs no runtime.
///
/// One store belongs to one client (device). The SDK is its only writer.
pub trait MetadataStore: Send + Sync {
    /// All records of this device's KeyPackages, in no particular order.
    ///
    /// # Errors
    /// When the store cannot be read, or holds what it cannot hold.
    fn packages(&self) -> Result<Vec<PackageRecord>, MetadataError>;

    /// Writes these records, each in the place of the one with the same ref; all or none.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn put_packages(&self, records: &[PackageRecord]) -> Result<(), MetadataError>;

    /// Removes the records with these refs; all or none. A ref without a record is passed over.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn remove_packages(&self, refs: &[Bytes]) -> Result<(), MetadataError>;

    /// The journal of invitations, the oldest first.
    ///
    /// # Errors
    /// As [`MetadataStore::packages`].
    fn invitations(&self) -> Result<Vec<InvitationRecord>, MetadataError>;

    /// One entry of the journal.
    ///
    /// # Errors
    /// As [`MetadataStore::packages`].
    fn invitation(&self, invitation_id: Uuid) -> Result<Option<InvitationRecord>, MetadataError>;

    /// Writes an entry of the journal, in the place of the one with the same id.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn put_invitation(&self, record: &InvitationRecord) -> Result<(), MetadataError>;

    /// Removes an entry of the journal, if it is there.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn remove_invitation(&self, invitation_id: Uuid) -> Result<(), MetadataError>;
}

impl<M: MetadataStore + ?Sized> MetadataStore for Arc<M> {
    fn packages(&self) -> Result<Vec<PackageRecord>, MetadataError> {
        (**self).packages()
    }

    fn put_packages(&self, records: &[PackageRecord]) -> Result<(), MetadataError> {
        (**self).put_packages(records)
    }

    fn remove_packages(&self, refs: &[Bytes]) -> Result<(), MetadataError> {
        (**self).remove_packages(refs)
    }

    fn invitations(&self) -> Result<Vec<InvitationRecord>, MetadataError> {
        (**self).invitations()
    }

    fn invitation(&self, invitation_id: Uuid) -> Result<Option<InvitationRecord>, MetadataError> {
        (**self).invitation(invitation_id)
    }

    fn put_invitation(&self, record: &InvitationRecord) -> Result<(), MetadataError> {
        (**self).put_invitation(record)
    }

    fn remove_invitation(&self, invitation_id: Uuid) -> Result<(), MetadataError> {
        (**self).remove_invitation(invitation_id)
    }
}

/// What the device knows of one KeyPackage of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackageRecord {
    /// The KeyPackageRef (RFC 9420, section 5.2), under which OpenMLS stores the private keys.
    pub key_package_ref: Bytes,
    /// The cipher suite (RFC 9420, section 17.1).
    pub cipher_suite: u16,
    /// The end of its lifetime (RFC 9420, section 7.2), in seconds since 1970.
    pub not_after: u64,
    /// Whether it is a last resort package (RFC 9420, section 16.8).
    pub last_resort: bool,
    /// A digest of the signature key and credential in its leaf, by which packages of an earlier
    /// credential are told apart.
    pub identity: Bytes,
    /// How far it has come.
    pub state: PackageState,
}

/// How far a KeyPackage of this device has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackageState {
    /// It was recorded to be made and uploaded. Whether the server has it is unknown.
    Prepared,
    /// The server has taken it: it may be issued, or was.
    Published,
    /// The server does not issue it any more, but a Welcome that uses it may be on its way.
    Retired {
        /// When the private keys go, in seconds since 1970.
        until: u64,
    },
}

/// An invitation that is not settled: an entry of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvitationRecord {
    /// Names the invitation. It is the `request_id` of the Reserve, which can be repeated with it.
    pub invitation_id: Uuid,
    /// The group that the packages are for.
    pub group_id: Bytes,
    /// The group's cipher suite (RFC 9420, section 17.1).
    pub cipher_suite: u16,
    /// The `ReserveKeyPackagesRequest` as it is sent, to send it again when the answer was lost;
    /// empty after [`InvitationState::Reserving`].
    pub request: Bytes,
    /// What was reserved; empty in [`InvitationState::Reserving`].
    pub reservations: Vec<ReservationRecord>,
    /// How far it has come.
    pub state: InvitationState,
    /// When it began, in seconds since 1970.
    pub created_at: u64,
    /// When the first of its reservations lapses, in seconds since 1970; before the answer, when
    /// it will at the latest.
    pub expires_at: u64,
}

/// One reservation of an [`InvitationRecord`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReservationRecord {
    /// What a Spend or Release names.
    pub reservation_id: String,
    /// The KeyPackageRef (RFC 9420, section 5.2) of its package.
    pub key_package_ref: Bytes,
    /// The `encryption_key` of the package's leaf (RFC 9420, section 7.2): a group whose tree has
    /// it took the package in.
    pub encryption_key: Bytes,
}

/// How far an invitation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvitationState {
    /// The Reserve is about to be sent, or was. Its reservations are unknown.
    Reserving,
    /// The reservations are held. No Commit uses them yet.
    Reserved,
    /// A Commit that uses them was made. Spend once the group shows it, release if it never will.
    CommitPending {
        /// The group's epoch that the Commit starts from (RFC 9420, section 8.1).
        epoch: u64,
    },
    /// The Commit was accepted: the Spend is about to be sent, or was.
    Spending,
    /// The packages are not needed: the Release is about to be sent, or was.
    Releasing,
}

/// A [`MetadataStore`] failed.
#[derive(Debug, thiserror::Error)]
#[error("the metadata store failed: {0}")]
pub struct MetadataError(#[source] BoxError);

impl MetadataError {
    /// With what caused it.
    pub fn new(cause: impl Into<BoxError>) -> Self {
        Self(cause.into())
    }
}
