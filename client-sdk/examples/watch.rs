//! Prints how a client's own pool stands, now and when it matters: `watch URL TOKEN`.

#![allow(clippy::print_stdout)] // Printing is what it is for.

use std::pin::pin;

use anyhow::Result;
use futures_util::StreamExt as _;
use keypool_client::Client;

async fn watch(client: Client) -> Result<()> {
    // The server ends a stream from time to time: `OwnPool::run` opens the next one by itself.
    let mut statuses = pin!(client.watch_pool_status().await?);
    while let Some(status) = statuses.next().await.transpose()? {
        println!("{}", status.health().as_str_name());
        for suite in status.cipher_suites {
            println!("  suite {}: {} of {}", suite.cipher_suite, suite.available, suite.target);
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(url), Some(token)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: watch URL TOKEN");
    };
    watch(Client::connect(url, token).await?).await
}
