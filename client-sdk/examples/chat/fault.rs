//! For the test that kills this program everywhere (`tests/chat` in the repository): with
//! `CHAT_AT_STEP=KILL:N` it kills itself at the Nth of its steps, as `kill -9` does; with `STOP:N`
//! it stops there until it is told to go on. A step is just before and just after anything that
//! outlives the process is written. A chat of yours needs none of this.

use std::{
    env,
    process::{self, Command},
    sync::{
        LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use rusqlite::Connection;

struct Fault {
    signal: String,
    left: AtomicUsize,
}

static FAULT: LazyLock<Option<Fault>> = LazyLock::new(|| {
    let told = env::var("CHAT_AT_STEP").ok()?;
    let (signal, step) = told.split_once(':')?;
    Some(Fault { signal: signal.into(), left: AtomicUsize::new(step.parse().ok()?) })
});

/// The commits of this connection are steps.
pub(crate) fn watch(connection: &Connection) {
    if FAULT.is_some() {
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
    if let Some(fault) = &*FAULT
        && fault.left.fetch_sub(1, Ordering::SeqCst) == 1
    {
        let me = process::id().to_string();
        drop(Command::new("kill").args(["-s", &fault.signal, &me]).status());
    }
}
