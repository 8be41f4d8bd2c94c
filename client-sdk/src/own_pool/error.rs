use crate::{BoxError, Error, MetadataError};

/// Why an [`OwnPool`](crate::OwnPool) could not do what was asked.
///
/// Whatever it is, nothing is lost: what was begun is finished by the next refresh that succeeds.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// The server was not reached, or refused the call.
    #[error(transparent)]
    Service(#[from] Error),

    /// The metadata store failed.
    #[error(transparent)]
    Metadata(#[from] MetadataError),

    /// OpenMLS's storage failed.
    #[error("OpenMLS's storage failed: {0}")]
    Storage(#[source] BoxError),

    /// A KeyPackage could not be made.
    #[error("a KeyPackage could not be made: {0}")]
    KeyPackage(#[source] BoxError),

    /// The server's answer is not one that the contract allows.
    #[error("the server's answer makes no sense: {0}")]
    Answer(&'static str),

    /// The options or the identities do not fit together.
    #[error("{0}")]
    Options(&'static str),

    /// There is no Tokio runtime here.
    #[error("a pool needs a Tokio runtime")]
    NoRuntime,

    /// The refresh panicked, as the MLS provider or the metadata store did.
    #[error("the refresh panicked")]
    Panicked,
}

impl PoolError {
    /// OpenMLS's errors need not be `Send`, so only their text is kept.
    pub(super) fn storage(error: impl std::error::Error) -> Self {
        Self::Storage(error.to_string().into())
    }

    pub(super) fn key_package(error: impl std::error::Error) -> Self {
        Self::KeyPackage(error.to_string().into())
    }
}
