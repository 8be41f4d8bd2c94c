//! What keypool promises, one module a promise.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // here they fail a test

mod chat;
mod contract;
mod drain;
mod fuzz;
mod grpc;
mod limits;
mod logs;
mod metrics;
mod operators;
mod pool;
mod restore;
mod sdk_invite;
mod sdk_own_pool;
mod sdk_rolling;
mod traces;
mod transport;
mod upgrade;
mod validation;
mod watch;
