//! A small terminal chat on openmls: `chat URL TOKEN ME FOLDER`. TOKEN may be `@FILE`, which is
//! read whenever a token is needed.
//!
//! keypool hands out the KeyPackages. Messages go through FOLDER, so all users are on this machine;
//! there, too, each user has an SQLite file with all that the device knows. Any process may be
//! killed at any time: the chat goes on where it was when it starts again. What makes it so is in
//! `chat/group.rs` (each step is one transaction), and in `chat/app.rs` (`start`, `invite_once`).

#![allow(clippy::print_stdout)] // Printing is what it is for.

#[path = "chat/app.rs"]
mod app;
#[path = "chat/delivery.rs"]
mod delivery;
#[path = "chat/fault.rs"]
mod fault;
#[path = "chat/group.rs"]
mod group;
#[path = "chat/store.rs"]
mod store;

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};
use app::Chat;
use keypool_client::{TokenSource, openmls::prelude::Ciphersuite};
use tokio::sync::mpsc;

const SUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;
/// How often to look for messages.
const LOOK_EVERY: Duration = Duration::from_millis(200);

#[tokio::main]
async fn main() -> Result<()> {
    let [url, token, me, folder]: [String; 4] = std::env::args()
        .skip(1)
        .collect::<Vec<_>>()
        .try_into()
        .ok()
        .context("usage: chat URL TOKEN ME FOLDER")?;
    let mut chat = Chat::open(&url, token_source(token), &me, Path::new(&folder))?;
    let mut health = chat.start().await?;
    println!("{me} is here; /help");

    let mut lines = lines();
    let mut look = tokio::time::interval(LOOK_EVERY);
    let mut failing = false;
    loop {
        tokio::select! {
            line = lines.recv() => match line.as_deref().map(str::trim) {
                None | Some("/quit") => break,
                Some(line) => if let Err(error) = chat.command(line).await {
                    println!("! {error:#}");
                },
            },
            _ = look.tick() => chat.catch_up().await?,
            Ok(()) = health.changed() => {
                let failure = health.borrow_and_update().failure.clone();
                match &failure {
                    Some(failure) if !failing => println!("! the pool: {}", failure.cause),
                    None if failing => println!("the pool is kept again"),
                    _ => {}
                }
                failing = failure.is_some();
            }
        }
    }
    chat.stop().await;
    Ok(())
}

fn token_source(token: String) -> TokenSource {
    let Some(file) = token.strip_prefix('@').map(str::to_owned) else { return token.into() };
    TokenSource::provider(move || {
        let file = file.clone();
        async move { Ok(tokio::fs::read_to_string(file).await?.trim().to_owned()) }
    })
}

/// What is typed, until its end.
fn lines() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        let lines = std::io::stdin().lines();
        lines.map_while(Result::ok).try_for_each(|line| sender.blocking_send(line))
    });
    receiver
}
