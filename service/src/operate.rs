//! Commands for operators, on the database of a configuration.

pub mod pools;

use std::{
    io::{self, Write as _},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    config::Config,
    domain::clock::SystemClock,
    run::store_options,
    store::{Store, StoreOptions, Withdrawn},
};

/// A statement of an operator may take longer than one of a call.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(600);

fn store(config: &Config) -> anyhow::Result<Store> {
    let options = StoreOptions {
        acquire_timeout: Duration::from_secs(10),
        statement_timeout: STATEMENT_TIMEOUT,
        ..store_options(&config.database)
    };
    Store::for_operator(&options, Arc::new(SystemClock))
}

/// `keypool after-restore`: makes a database safe that was restored from a backup.
///
/// # Errors
/// When a server is connected, the schema is not up to date, or the database cannot do it. What
/// was done so far stays done; until it was run to its end no server starts.
pub async fn after_restore(
    config: &Config,
    packages_from: OffsetDateTime,
    keep_last_resort: bool,
) -> anyhow::Result<()> {
    let store = store(config)?;
    let pending = store.pending_migrations().await.context("cannot read the schema's version")?;
    ensure!(pending.is_empty(), "the schema is not up to date: run `keypool migrate` first");
    let servers = store.connected_servers().await?;
    ensure!(
        servers == 0,
        "keypool servers have {servers} connection(s) to the database: stop them all first"
    );
    let began = store.begin_restoration(packages_from, rand::random()).await;
    let restoration = began.context("it takes the role that migrates")?;
    // One that started in between has the secret of before, and would serve on.
    let servers = store.connected_servers().await?;
    ensure!(servers == 0, "a keypool server has just started: stop it and run this again");
    let Withdrawn { packages, last_resort } = store.withdraw_all(keep_last_resort).await?;
    store.finish_restoration(&restoration).await?;
    store.close().await;
    let mut out = io::stdout();
    writeln!(
        out,
        "{packages} one-time KeyPackages are withdrawn: the lost database may have issued them."
    )?;
    match keep_last_resort {
        true => writeln!(out, "Last resort packages are left in place.")?,
        false => writeln!(out, "{last_resort} last resort packages are withdrawn.")?,
    }
    writeln!(out, "Reservations made before are unknown.")?;
    writeln!(
        out,
        "One-time packages whose lifetime begins before {} are refused.",
        restoration.packages_from.format(&Rfc3339)?
    )?;
    writeln!(out, "Servers may start; owners find their pools empty and refill them.")?;
    Ok(())
}
