//! Prints how a client's own pool stands, now and when it matters: `watch URL TOKEN`.

#![allow(clippy::print_stdout)] // Printing is what it is for.

use std::pin::pin;

use anyhow::{Context as _, Result};
use futures_util::StreamExt as _;
use keypool_client::Client;

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(url), Some(token)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: watch URL TOKEN");
    };
    let client = Client::connect(url, token).await?;
    // The server ends a stream from time to time: `OwnPool::run` opens the next one by itself.
    let mut statuses = pin!(client.watch_pool_status().await?);
    while let Some(status) = statuses.next().await {
        let status = status.context("the stream broke")?;
        println!("{}", status.health().as_str_name());
        for suite in &status.cipher_suites {
            let (suite, available, target) = (suite.cipher_suite, suite.available, suite.target);
            println!("  cipher suite {suite}: {available} of {target} packages available");
        }
    }
    Ok(())
}
