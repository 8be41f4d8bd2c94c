//! A Postgres of one's own, for `keypool dev` and for the tests: a real server as a child process,
//! reached by a Unix socket only. It knows nothing of keypool's tables.

mod account;
mod binaries;
mod cluster;
mod postgres;
#[cfg(test)]
mod tests;

pub use postgres::{EmbeddedPostgres, PostgresOptions};
