//! The keypool server. `ARCHITECTURE.md` says where things live and who may know whom.

pub mod dev;
pub mod domain;
