#![doc = include_str!("../README.md")]

mod builder;
mod client;
mod endpoints;
mod error;
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

pub use crate::{
    builder::Builder,
    client::Client,
    error::{BoxError, Error, FieldViolation, Rejection},
    reserve::Reserve,
    tls::Tls,
    token::TokenSource,
};
