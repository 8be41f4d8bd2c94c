#![doc = include_str!("../README.md")]

mod builder;
mod client;
mod endpoints;
mod error;
mod metadata;
mod reserve;
mod resolve;
mod retry;
mod tls;
mod token;
mod transport;

pub use bytes::Bytes;
/// The messages of the contract, as the calls answer them.
pub use keypool_proto::v1;
pub use tonic::Code;
pub use uuid::Uuid;

#[cfg(feature = "sqlite")]
pub use crate::metadata::SqliteMetadataStore;
pub use crate::{
    builder::Builder,
    client::Client,
    error::{BoxError, Error, FieldViolation, Rejection},
    metadata::{
        InvitationRecord, InvitationState, MemoryMetadataStore, MetadataError, MetadataStore,
        PackageRecord, PackageState, ReservationRecord,
    },
    reserve::Reserve,
    tls::Tls,
    token::TokenSource,
};
#[cfg(feature = "sqlite")]
pub use rusqlite;
