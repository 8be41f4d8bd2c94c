//! The keypool server. `ARCHITECTURE.md` says where things live and who may know whom.

mod certificates;
pub mod check;
pub mod config;
pub mod dev;
pub mod domain;
pub mod grpc;
pub mod metrics;
pub mod operate;
pub mod pool;
pub mod run;
pub mod server;
pub mod store;
pub mod telemetry;
pub mod token;
