//! For the test that kills this program everywhere (`tests/chat` in the repository): with
//! `CHAT_DIES_AT=N` it kills itself at the Nth of its steps, as `kill -9` does. A step is just
//! before and just after anything that outlives the process is written. A chat of yours needs none
//! of this.

use std::{
    env,
    process::{self, Command},
    sync::{
        LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use rusqlite::Connection;

static LEFT: LazyLock<Option<AtomicUsize>> =
    LazyLock::new(|| Some(AtomicUsize::new(env::var("CHAT_DIES_AT").ok()?.parse().ok()?)));

/// The commits of this connection are steps.
pub(crate) fn watch(connection: &Connection) {
    if LEFT.is_some() {
        connection.commit_hook(Some(|| {
            step();
            false
        }));
        connection.wal_hook(Some(|_, _| {
            step();
            Ok(())
        }));
    }
}

pub(crate) fn step() {
    if LEFT.as_ref().is_some_and(|left| left.fetch_sub(1, Ordering::SeqCst) == 1) {
        let me = process::id().to_string();
        drop(Command::new("kill").args(["-s", "KILL", &me]).status());
        loop {
            thread::park();
        }
    }
}
