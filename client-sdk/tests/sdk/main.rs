//! The SDK over real tonic and real sockets, against a server that answers as it is told. That
//! it works with keypool itself is tested where keypool is.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod balance;
mod calls;
mod errors;
mod fake;
#[cfg(feature = "sqlite")]
mod metadata;
mod retries;
mod tls;
mod tokens;
