//! keypool under faults: clients work while things break, and a checker looks for broken promises.
//! `docs/chaos.md` says what is played and what is checked.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // as in a test

pub mod check;
pub mod cluster;
pub mod database;
mod farewell;
pub mod fault;
pub mod history;
pub mod packages;
pub mod party;
pub mod recovery;
#[cfg(test)]
mod ride_out;
pub mod run;
pub mod tables;
mod verify;
mod work;
