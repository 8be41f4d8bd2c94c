//! The SDK over real tonic and real sockets, against a server that answers as it is told. That
//! it works with keypool itself is tested where keypool is.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod balance;
mod calls;
mod device;
mod errors;
mod fake;
mod invite;
mod lies;
#[cfg(feature = "sqlite")]
mod metadata;
mod retries;
mod tls;
mod tokens;
