#![doc = include_str!("../README.md")]

mod client;
mod error;
mod reserve;
mod token;

pub use bytes::Bytes;
/// The messages of the contract, as the calls answer them.
pub use keypool_proto::v1;
pub use tonic::Code;
pub use uuid::Uuid;

pub use crate::{
    client::{Builder, Client},
    error::{BoxError, Error, FieldViolation, Rejection},
    reserve::Reserve,
    token::TokenSource,
};
