//! `keypool pool show` and `keypool pool top`.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::store;
use crate::{
    config::Config,
    domain::{
        clock::{Clock as _, SystemClock},
        event::Event,
        ids::{ClientId, ClientKey, UserId},
        pool::{CipherSuiteStatus, Health, PoolStatus},
    },
    store::{EventPools, EventQuery, LowPool, PoolCounts, Store},
};

/// How many clients of a user are shown at most.
const MAX_CLIENTS: usize = 100;
/// How far back events are looked for.
const OLDEST: time::Duration = time::Duration::days(90);

/// What to show of pools.
#[derive(Debug, Clone)]
pub struct Show {
    /// Whose.
    pub user: UserId,
    /// Of one client; of all without.
    pub client: Option<ClientId>,
    /// How many of its last events.
    pub events: u32,
    /// Whether events name the groups they are about.
    pub groups: bool,
    /// For programs.
    pub json: bool,
}

/// `keypool pool show`: how the pools of a user stand, and what happened to them last.
///
/// # Errors
/// When the database cannot do it, or there is no such pool.
pub async fn show(config: &Config, show: &Show) -> anyhow::Result<()> {
    let store = store(config)?;
    let clients = match &show.client {
        Some(client) => vec![client.clone()],
        None => {
            let mut found = store.clients_of(&[&show.user], MAX_CLIENTS).await?;
            found.remove(&show.user).unwrap_or_default()
        }
    };
    let mut shown = Vec::new();
    for client in clients {
        let owner = ClientKey { user: show.user.clone(), client };
        let PoolCounts { last_upload, suites } = store.status(&owner, config.pool.lapse).await?;
        if last_upload.is_some() {
            // No jitter: nobody refills by this.
            let status = config.pool.status(last_upload, suites, 0.0);
            let events = events(&store, &owner, show.events).await?;
            shown.push((owner, status, events));
        }
    }
    store.close().await;
    if shown.is_empty() {
        bail!("no pool of that user and client: nothing was ever uploaded");
    }
    let mut out = io::stdout();
    if show.json {
        let pools =
            shown.iter().map(|(owner, status, events)| as_json(owner, status, events, show));
        writeln!(out, "{}", Value::from_iter(pools))?;
        return Ok(());
    }
    for (owner, status, events) in &shown {
        write(&mut out, owner, status, events, show)?;
    }
    Ok(())
}

async fn events(store: &Store, owner: &ClientKey, limit: u32) -> anyhow::Result<Vec<Event>> {
    if limit == 0 {
        return Ok(Vec::new());
    }
    let now = SystemClock.now();
    let query = EventQuery {
        pools: EventPools::Client(owner.clone()),
        from: now - OLDEST,
        before: now + time::Duration::DAY,
        key_package_ref: None,
        after: None,
        limit,
    };
    Ok(store.events(&query).await?)
}

fn write(
    out: &mut impl io::Write,
    owner: &ClientKey,
    status: &PoolStatus,
    events: &[Event],
    show: &Show,
) -> anyhow::Result<()> {
    let uploaded = status.last_upload.map(instant).transpose()?;
    writeln!(
        out,
        "{} / {}: {}, last upload {}",
        owner.user,
        owner.client,
        health(status.health),
        uploaded.as_deref().unwrap_or("never")
    )?;
    writeln!(out, "  suite  available  reserved  spent  expired  expiring  upload  last resort")?;
    for CipherSuiteStatus { counts, recommended_upload, .. } in &status.cipher_suites {
        let last_resort = match &counts.last_resort {
            Some(it) => {
                format!("until {}, issued {} times", instant(it.not_after)?, it.times_issued)
            }
            None => "none".to_owned(),
        };
        writeln!(
            out,
            "  {:>5}  {:>9}  {:>8}  {:>5}  {:>7}  {:>8}  {:>6}  {last_resort}",
            counts.cipher_suite.0,
            counts.available,
            counts.reserved,
            counts.spent,
            counts.expired,
            counts.expiring_soon,
            recommended_upload,
        )?;
    }
    for event in events {
        let actor = match &event.actor {
            Some(actor) => format!(" by {} / {}", actor.user, actor.client),
            None => String::new(),
        };
        let group = match &event.group_id {
            Some(group) if show.groups => format!(" for group {}", hex(group)),
            Some(_) => " for a group".to_owned(),
            None => String::new(),
        };
        writeln!(
            out,
            "  {}  {:<18}  {}{actor}{group}",
            instant(event.key.at)?,
            event.key.kind.as_str(),
            hex(event.key_package_ref.0.get(..8).unwrap_or_default()),
        )?;
    }
    Ok(())
}

fn as_json(owner: &ClientKey, status: &PoolStatus, events: &[Event], show: &Show) -> Value {
    let at = |at: OffsetDateTime| instant(at).ok();
    let suites = status.cipher_suites.iter().map(|suite| {
        let counts = &suite.counts;
        json!({
            "cipher_suite": counts.cipher_suite.0,
            "available": counts.available,
            "reserved": counts.reserved,
            "spent": counts.spent,
            "expired": counts.expired,
            "expiring_soon": counts.expiring_soon,
            "recommended_upload": suite.recommended_upload,
            "last_resort": counts.last_resort.as_ref().map(|it| json!({
                "not_after": at(it.not_after),
                "times_issued": it.times_issued,
            })),
        })
    });
    let events = events.iter().map(|event| {
        let group = event.group_id.as_ref().filter(|_| show.groups);
        json!({
            "time": at(event.key.at),
            "kind": event.key.kind.as_str(),
            "cipher_suite": event.key.locator.suite.cipher_suite.0,
            "key_package_ref": hex(&event.key_package_ref.0),
            "actor_user_id": event.actor.as_ref().map(|actor| actor.user.as_str()),
            "actor_client_id": event.actor.as_ref().map(|actor| actor.client.as_str()),
            "group_id": group.map(|group| hex(group)),
        })
    });
    json!({
        "user_id": owner.user.as_str(),
        "client_id": owner.client.as_str(),
        "health": health(status.health),
        "last_upload": status.last_upload.and_then(at),
        "cipher_suites": Value::from_iter(suites),
        "events": Value::from_iter(events),
    })
}

/// `keypool pool top`: the lowest of the pools that were drawn from last, again and again.
///
/// # Errors
/// When the database cannot do it.
pub async fn top(config: &Config, lines: u32, interval: Option<Duration>) -> anyhow::Result<()> {
    let store = store(config)?;
    loop {
        let pools = store.lowest(config.pool.lapse, lines).await?;
        let table = table(&pools, config.pool.low_watermark)?;
        let mut out = io::stdout();
        let Some(interval) = interval else {
            out.write_all(table.as_bytes())?;
            store.close().await;
            return Ok(());
        };
        // Clears the terminal first.
        write!(out, "\x1b[2J\x1b[H{table}")?;
        out.flush()?;
        tokio::time::sleep(interval).await;
    }
}

fn table(pools: &[LowPool], low_watermark: u32) -> anyhow::Result<String> {
    let mut table =
        "available  reserved  callers  last resort  suite  last upload           pool\n".to_owned();
    for pool in pools {
        let mark = if pool.available <= low_watermark { '!' } else { ' ' };
        let line = format!(
            "{mark}{:>8}  {:>8}  {:>7}  {:<11}  {:>5}  {}  {} / {}\n",
            pool.available,
            pool.reserved,
            pool.callers,
            if pool.last_resort { "yes" } else { "no" },
            pool.cipher_suite.0,
            instant(pool.last_upload)?,
            pool.owner.user,
            pool.owner.client,
        );
        table.push_str(&line);
    }
    Ok(table)
}

fn health(health: Health) -> &'static str {
    match health {
        Health::Healthy => "healthy",
        Health::Low => "low",
        Health::Exhausted => "exhausted",
    }
}

/// To the second.
fn instant(at: OffsetDateTime) -> anyhow::Result<String> {
    at.replace_nanosecond(0)?.format(&Rfc3339).context("a time")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
