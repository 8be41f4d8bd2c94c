//! The chat of one user: its commands, and what it does when it starts.

use std::{fs::File, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use keypool_client::{
    Client, CommitOutcome, Identity, Invites, OwnPool, PoolHealth, Reserve, Running, TokenSource,
    basic_credential_names_user,
};
use openmls_basic_credential::SignatureKeyPair;
use tokio::{sync::watch, time::Instant};

use crate::{
    SUITE,
    delivery::Delivery,
    group::{self, Happened},
    store::{Me, Provider, Store},
};

/// An adder that crashed settles its invitations when it starts again: the longest that the server
/// allows is time for that.
const RESERVED_FOR: Duration = Duration::from_secs(10 * 60);
/// How often a Commit that came second is made anew.
const ATTEMPTS: usize = 5;
/// Between attempts to settle what could not be settled.
const SETTLE_EVERY: Duration = Duration::from_secs(2);

pub(crate) const HELP: &str = "\
/new NAME          a new group
/invite USER...    adds users to the group
/in NAME           goes to another group
/groups            your groups and their members
/history           what was said in the group
/pool              how your pool of KeyPackages stands
/quit
anything else is said in the group";

pub(crate) struct Chat {
    me: Me,
    store: Store,
    delivery: Delivery,
    invites: Invites,
    pool: OwnPool<Provider, SignatureKeyPair>,
    running: Option<Running>,
    /// Where texts go.
    group: Option<String>,
    /// When to look again at invitations that are not settled.
    settle_at: Option<Instant>,
    _lock: File,
}

impl Chat {
    /// Opens the device of a user. The server need not be there.
    pub(crate) fn open(url: &str, token: TokenSource, user: &str, folder: &Path) -> Result<Self> {
        ensure!(
            !user.is_empty()
                && user.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)),
            "a user has a name of letters, digits, - and _"
        );
        let delivery = Delivery::open(folder)?;
        let lock = File::create(folder.join(format!("{user}.lock")))?;
        lock.try_lock().with_context(|| format!("{user} is here already"))?;
        let store = Store::open(folder.join(format!("{user}.sqlite")))?;
        let me = store.me(user)?;

        let client = Client::builder(url, token).connect_lazy()?;
        let metadata = store.metadata()?;
        let again = store.me(user)?; // OwnPool signs too
        let identity = Identity::new(again.signer, again.credential, [SUITE]);
        let pool =
            OwnPool::new(client.clone(), store.provider.clone(), metadata.clone(), identity)?;
        let invites = Invites::new(client, metadata, basic_credential_names_user);
        let (running, group, settle_at) = (None, None, Some(Instant::now()));
        Ok(Self { me, store, delivery, invites, pool, running, group, settle_at, _lock: lock })
    }

    /// First the Welcomes that wait, as the pool deletes private keys that are out of date; then
    /// the invitations that an earlier run left behind; then the pool keeps itself.
    pub(crate) async fn start(&mut self) -> Result<watch::Receiver<PoolHealth>> {
        self.catch_up().await?;
        let health = self.pool.health();
        self.running = Some(self.pool.run()?);
        Ok(health)
    }

    pub(crate) async fn stop(self) {
        if let Some(running) = self.running {
            running.stop().await;
        }
    }

    /// Takes every group's log to its end, and settles what is left to settle.
    pub(crate) async fn catch_up(&mut self) -> Result<()> {
        let mut names = self.store.read(|unit| unit.groups())?;
        names.extend(self.delivery.groups()?);
        names.sort();
        names.dedup();
        for name in names {
            self.advance(&name)?;
        }
        if self.settle_at.is_some_and(|at| at <= Instant::now()) {
            self.settle().await;
        }
        Ok(())
    }

    /// Sends what waits to be sent and processes what others sent, in the order of the log, and
    /// answers what became of a Commit of this user's.
    fn advance(&mut self, name: &str) -> Result<Option<CommitOutcome>> {
        let mut commit = None;
        loop {
            let (position, outgoing) =
                self.store.read(|unit| Ok((unit.position(name)?, unit.outgoing(name)?)))?;
            let next = match &outgoing {
                Some(outgoing) => self.delivery.append(name, position, &outgoing.entry)?,
                None => match self.delivery.read(name, position)? {
                    Some(entry) => Some(entry),
                    None => return Ok(commit),
                },
            };
            let me = &self.me;
            let happened = self.store.transaction(|unit| match (outgoing, &next) {
                (Some(outgoing), None) => group::sent(unit, me, name, &outgoing),
                (Some(outgoing), Some(entry)) => {
                    group::overtaken(unit, me, name, (outgoing, entry))
                }
                (None, Some(entry)) => group::receive(unit, me, name, entry),
                (None, None) => Ok(Happened::default()),
            });
            let happened = match happened {
                Ok(happened) => happened,
                // Without it the log would end here. What it changed was rolled back.
                Err(error) => self.store.transaction(|unit| {
                    unit.set_position(name, position + 1)?;
                    let line = unit.say(name, &format!("entry {position} is lost: {error:#}"))?;
                    Ok(Happened { line: Some(line), ..Happened::default() })
                })?,
            };
            if let Some(line) = happened.line {
                println!("{line}");
            }
            if happened.joined {
                self.group = Some(name.to_owned());
                self.pool.after_welcome();
            }
            commit = happened.commit.or(commit);
        }
    }

    /// Spends or releases what no run has settled. What cannot be settled now is left for later.
    async fn settle(&mut self) {
        let store = &self.store;
        let recovery = self.invites.recover(|commit| {
            let name = String::from_utf8_lossy(&commit.group_id).into_owned();
            let group = store.read(|unit| group::load(unit, &name));
            std::future::ready(match group {
                Ok(Some(group)) => commit.outcome_in(&group),
                Ok(None) => CommitOutcome::Rejected,
                Err(_) => CommitOutcome::Unknown,
            })
        });
        let settled = recovery.await.is_ok_and(|recovery| recovery.unknown == 0);
        self.settle_at = (!settled).then(|| Instant::now() + SETTLE_EVERY);
    }

    pub(crate) async fn command(&mut self, line: &str) -> Result<()> {
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        match (command, rest.trim()) {
            ("", _) => {}
            ("/new", name) => self.create(name)?,
            ("/in", name) => {
                let name = self.find(name)?;
                println!("in {name}");
                self.group = Some(name);
            }
            ("/invite", users) => {
                let users = users.split_whitespace().map(str::to_owned).collect();
                self.invite(users).await?;
            }
            ("/groups", _) => {
                for name in self.groups()? {
                    let group = self.store.read(|unit| group::load(unit, &name))?;
                    println!("{name}: {}", group.as_ref().map(group::members).unwrap_or_default());
                }
            }
            ("/history", _) => {
                let name = self.current()?;
                for line in self.store.read(|unit| unit.history(&name))? {
                    println!("  {line}");
                }
            }
            ("/pool", _) => show(&self.pool.health().borrow()),
            (unknown, _) if unknown.starts_with('/') => println!("{HELP}"),
            _ => {
                let name = self.current()?;
                self.advance(&name)?;
                let me = &self.me;
                self.store.transaction(|unit| group::send(unit, me, &name, line.to_owned()))?;
                self.advance(&name)?;
            }
        }
        Ok(())
    }

    fn create(&mut self, name: &str) -> Result<()> {
        ensure!(
            (1..=32).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()),
            "a group has a name of up to 32 small letters and digits"
        );
        // Others may have chosen the same one.
        let name = format!("{name}-{:08x}", rand::random::<u32>());
        self.store.transaction(|unit| group::create(unit, &self.me, &name))?;
        println!("in {name}, a new group");
        self.group = Some(name);
        Ok(())
    }

    async fn invite(&mut self, users: Vec<String>) -> Result<()> {
        let name = self.current()?;
        ensure!(!users.is_empty(), "/invite USER...");
        for _ in 0..ATTEMPTS {
            self.advance(&name)?;
            match self.invite_once(&name, &users).await {
                Ok(true) => return Ok(()),
                Ok(false) => println!("somebody else's change came first; once more"),
                Err(error) => {
                    self.settle_at = Some(Instant::now() + SETTLE_EVERY);
                    return Err(error);
                }
            }
        }
        bail!("somebody else's change came first, {ATTEMPTS} times")
    }

    /// False when another Commit came first.
    async fn invite_once(&mut self, name: &str, users: &[String]) -> Result<bool> {
        let group = self.store.read(|unit| group::load(unit, name))?.context("no such group")?;
        let ask = users.iter().fold(Reserve::for_group(&group), |ask, user| ask.target(user));
        let crypto = openmls_rust_crypto::RustCrypto::default();
        let mut invitation = self.invites.reserve(&crypto, &ask.ttl(RESERVED_FOR)).await?;
        for missing in invitation.missing() {
            println!("without {}: {}", missing.user_id, missing.reason);
        }
        if invitation.invitees().is_empty() {
            invitation.release().await?;
            return Ok(true);
        }
        // In the journal first, as that is a transaction of its own on the same file.
        invitation.committing(group.epoch().as_u64())?;
        let me = &self.me;
        self.store.transaction(|unit| group::add(unit, me, name, &mut invitation))?;
        if self.advance(name)? == Some(CommitOutcome::Accepted) {
            invitation.spend().await?;
            return Ok(true);
        }
        invitation.release().await?;
        Ok(false)
    }

    /// The groups that this user is in.
    fn groups(&self) -> Result<Vec<String>> {
        self.store.read(|unit| {
            let mut names = unit.groups()?;
            names.retain(|name| group::load(unit, name).is_ok_and(|group| group.is_some()));
            Ok(names)
        })
    }

    fn find(&self, name: &str) -> Result<String> {
        let mut found = self.groups()?;
        found.retain(|it| it == name || it.rsplit_once('-').is_some_and(|(it, _)| it == name));
        match found.as_slice() {
            [name] => Ok(name.clone()),
            [] => bail!("no such group of yours"),
            several => bail!("which one: {}?", several.join(", ")),
        }
    }

    fn current(&self) -> Result<String> {
        self.group.clone().context("in no group; /new, /in, or wait to be invited")
    }
}

fn show(health: &PoolHealth) {
    println!("pool: {}", health.level().as_str_name());
    for suite in health.status.iter().flat_map(|status| &status.cipher_suites) {
        let (available, target, spent) = (suite.available, suite.target, suite.spent);
        println!("  {available} of {target} KeyPackages available, {spent} spent");
    }
}
