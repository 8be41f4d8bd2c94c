//! Releases follow each other without a lost call: the schema grows beside replicas that serve.

mod lint;
mod locks;
mod order;
mod previous;

use std::process::Output;

use keypool_testing::server::ServerOptions;

/// Without fair share: applications draw on small pools repeatedly.
fn options() -> ServerOptions {
    ServerOptions::default().set("pool.fair_share", false)
}

/// What a run prints that ends with this code.
#[track_caller]
fn printed(run: &Output, code: i32) -> (&str, &str) {
    assert_eq!(run.status.code(), Some(code), "{run:?}");
    (str::from_utf8(&run.stdout).unwrap(), str::from_utf8(&run.stderr).unwrap())
}
