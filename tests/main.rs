//! What keypool promises, one module a promise.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // here they fail a test

mod grpc;
mod contract;
mod validation;
mod watch;
