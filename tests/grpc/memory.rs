//! An idle server is small.

use std::fs;

use super::*;

#[tokio::test]
async fn an_idle_server_holds_less_than_40_mb() {
    let database = database().await;
    let server = Server::start(&database, &options()).await;
    // It has served before it is idle.
    publish_some(&server, "bob", 20).await;
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let kib = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches("kB").trim().parse().unwrap()
    };
    let (all, own) = (kib("VmRSS:"), kib("RssAnon:"));
    assert!(all * 1024 < 40_000_000, "VmRSS {all} KiB, of it {own} KiB anonymous");
}
