#![doc = include_str!("../README.md")]

mod answers;
mod builder;
mod client;
mod clock;
mod endpoints;
mod error;
mod invitation;
mod invite;
mod invitee;
mod journal;
mod metadata;
mod own_pool;
mod recover;
mod reserve;
mod resolve;
mod retry;
mod tls;
mod token;
mod transport;
mod verify;

pub use bytes::Bytes;
/// The messages of the contract, as the calls answer them.
pub use keypool_proto::v1;
/// The version of openmls whose types are in this API.
pub use openmls;
pub use tonic::Code;
pub use uuid::Uuid;

#[cfg(feature = "sqlite")]
pub use crate::metadata::SqliteMetadataStore;
pub use crate::{
    builder::Builder,
    client::Client,
    error::{BoxError, Error, FieldViolation, Rejection},
    invitation::{AddError, AddMessages, Invitation, Settlement},
    invite::{InviteError, Invites},
    invitee::{Invitee, Missing, MissingReason},
    journal::Lost,
    metadata::{
        InvitationRecord, InvitationState, MemoryMetadataStore, MetadataError, MetadataStore,
        PackageRecord, PackageState, ReservationRecord,
    },
    own_pool::{
        Failure, Identity, OwnPool, PoolError, PoolHealth, PoolOptions, Refreshed, RefusedPackage,
        Running,
    },
    recover::{CommitOutcome, OpenCommit, Recovery},
    reserve::Reserve,
    tls::Tls,
    token::TokenSource,
    verify::{CredentialCheck, Presented, Refusal, basic_credential_names_user},
};
#[cfg(feature = "sqlite")]
pub use rusqlite;
