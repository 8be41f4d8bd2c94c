//! What keypool's own tests share. Panics where a test should fail.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

pub mod applications;
pub mod built;
pub mod contract;
pub mod database;
pub mod drain;
pub mod forge;
#[cfg(feature = "fuzz")]
pub mod fuzz;
pub mod issuer;
pub mod login;
pub mod member;
pub mod plans;
pub mod proxy;
pub mod raw;
pub mod replicas;
pub mod scrape;
pub mod server;
pub mod test_server;
pub mod tls;
pub mod tokens;
pub mod watching;
pub mod world;
pub mod x509;
