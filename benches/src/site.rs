//! A keypool under load: a database filled with owners, `keypool serve` on it, and the tables of
//! the references beside.

mod tables;

use std::{path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use keypool_service::store::MIGRATOR;
use keypool_testing::{
    server::{Server, ServerOptions},
    tls::{Ca, SERVER_NAME, TlsFolder},
};

use crate::{
    callers::{Adder, Callers, Then, Uploader, Uploads, authorization, handed_out_twice},
    connection::{Connection, Peer},
    health::Checker,
    load::{self, Stretch},
    machine,
    packages::Publisher,
    postgres::{Database, Postgres},
    reference::{Pgbench, Run, Script},
    sample::{Cost, Sample},
};

pub(crate) use tables::PACKAGES_EACH;

/// After so many draws from each owner the tables are made anew: no pool comes to its low
/// watermark, and none of pgbench's, which draws at random, runs out.
const DRAWS_EACH: u64 = 12;
/// The owner of the hot pool: another number than any other's.
const HOT_OWNER: u32 = 999_999;
/// What an owner takes on disk, with its history, its events and all indexes, bytes: measured.
const OWNER_BYTES: u64 = 46_000;
/// What the WAL takes at most: Postgres's max_wal_size.
const MAX_WAL_BYTES: u64 = 8 << 30;
/// What the image tells the server besides where its configuration is.
const ENVIRONMENT: [(&str, &str); 2] =
    [("MALLOC_ARENA_MAX", "1"), ("MALLOC_MMAP_THRESHOLD_", "131072")];

/// How a site is set up.
#[derive(Debug, Clone)]
pub(crate) struct Plan<'a> {
    pub(crate) owners: u32,
    /// Whether the tables are filled anew when stock runs low, for which they are kept twice, and
    /// whether there are tables for the references.
    pub(crate) renewable: bool,
    /// Settings of the server, KEY=TOML.
    pub(crate) settings: &'a [String],
    pub(crate) tls: bool,
}

pub(crate) struct Site {
    pub(crate) database: Database,
    pub(crate) server: Server,
    pub(crate) peer: Peer,
    /// The server's certificate, where it has one.
    _certificate: Option<TlsFolder>,
    pub(crate) owners: u32,
    renewable: bool,
    postmaster: u32,
    /// How many more packages may be drawn from keypool's pools, and from the reference's.
    stock: u64,
    reference_stock: u64,
    stretches: u64,
}

impl Site {
    /// A database with the owners in it and a server on it.
    pub(crate) async fn open(
        postgres: &Postgres,
        name: &str,
        plan: &Plan<'_>,
    ) -> anyhow::Result<Self> {
        let copies = if plan.renewable { 3 } else { 1 };
        let tables = u64::from(plan.owners) * OWNER_BYTES * copies;
        let needed = tables + tables.min(MAX_WAL_BYTES);
        let free = machine::free_bytes(postgres.folder())?;
        ensure!(
            free >= needed,
            "{} owners need some {} GB of disk in {}, and {} GB are free: see --owners",
            plan.owners,
            needed.div_ceil(1 << 30),
            postgres.folder().display(),
            free >> 30
        );
        let database = postgres.create(name).await?;
        MIGRATOR.run(&database.pool).await.context("migrating")?;
        let mut options = ServerOptions::default();
        for setting in plan.settings {
            let (key, value) = setting.split_once('=').context("--set takes KEY=TOML")?;
            options = options.set(String::leak(key.to_owned()), value);
        }
        let url = database.service_url();
        let (server, peer, certificate) = if plan.tls {
            let ca = Ca::new();
            let folder = TlsFolder::of(&ca);
            let options = folder.configure(options).text("tls.reload_interval", "1m");
            let server = Server::with_tls_on(&url, &options, ca.trusted(), &ENVIRONMENT).await;
            let peer = Peer::secured(server.address(), SERVER_NAME, &ca.pem)?;
            (server, peer, Some(folder))
        } else {
            let server = Server::on_with_environment(&url, &options, &ENVIRONMENT).await;
            let peer = Peer::plain(server.address());
            (server, peer, None)
        };
        let stock = u64::from(plan.owners) * DRAWS_EACH;
        let mut site = Self {
            database,
            server,
            peer,
            _certificate: certificate,
            owners: plan.owners,
            renewable: plan.renewable,
            postmaster: postgres.postmaster,
            stock,
            reference_stock: 0,
            stretches: 0,
        };
        site.take_templates().await?;
        site.fill().await?;
        Ok(site)
    }

    /// Reserves, and what comes then, on so many connections, for as long as `stretch` says and there
    /// is stock; at `rate` calls a second or, with `None`, as fast as they are answered.
    pub(crate) async fn adders(
        &mut self,
        connections: usize,
        stretch: Stretch,
        then: Then,
        rate: Option<f64>,
    ) -> anyhow::Result<Sample> {
        if self.stock < u64::from(self.owners) * DRAWS_EACH / 2 {
            self.renew().await?;
        }
        let owners: Vec<u32> = (1..=self.owners).collect();
        let calls_each = owners.len();
        let callers = connections + usize::try_from(self.stock)? / calls_each + 1;
        let stretch = Stretch { operations: stretch.operations.min(self.stock), ..stretch };
        let callers = Callers::new(&self.caller_prefix(), callers, owners, calls_each)?;
        let mut adders = self.connect_adders(connections, &callers, then).await?;
        let sample = self.measured(&mut adders, stretch, rate).await?;
        self.stock -= sample.operations.min(self.stock);
        Ok(sample)
    }

    /// One caller, one call after the other, as many as there are owners at most.
    pub(crate) async fn one_caller(&mut self, time: Duration) -> anyhow::Result<Sample> {
        if self.stock < u64::from(self.owners) * 2 {
            self.renew().await?;
        }
        let owners: Vec<u32> = (1..=self.owners).collect();
        let stretch = Stretch { time, operations: u64::from(self.owners) };
        let callers = Callers::new(&self.caller_prefix(), 1, owners, usize::MAX)?;
        let mut adders = self.connect_adders(1, &callers, Then::Keep).await?;
        let sample = self.measured(&mut adders, stretch, None).await?;
        self.stock -= sample.operations.min(self.stock);
        Ok(sample)
    }

    /// Reserve and Release, each pair by a caller who never called before; all on the hot pool, or
    /// on all the others.
    pub(crate) async fn newcomers(
        &mut self,
        connections: usize,
        time: Duration,
        calls: usize,
        hot: bool,
    ) -> anyhow::Result<Sample> {
        let owners = if hot { vec![HOT_OWNER] } else { (1..=self.owners).collect() };
        let callers = Callers::new(&self.caller_prefix(), calls, owners, 1)?;
        let mut adders = self.connect_adders(connections, &callers, Then::Release).await?;
        let stretch = Stretch { time, operations: u64::try_from(calls)? };
        self.measured(&mut adders, stretch, None).await
    }

    /// Health checks on so many connections, each with a token of its own as Reserves have.
    pub(crate) async fn checks(
        &mut self,
        connections: usize,
        time: Duration,
    ) -> anyhow::Result<Sample> {
        let mut checkers = Vec::new();
        for n in 0..connections {
            let connection = Connection::open(&self.peer).await?;
            checkers.push(Checker::new(connection, authorization(&format!("checker-{n}"))?)?);
        }
        let before = self.spent().await?;
        let mut sample = load::closed_loop(&mut checkers, Stretch::lasting(time)).await?;
        sample.cost = self.spent().await?.since(before);
        Ok(sample)
    }

    /// Uploads, each owner's packages in one call, counted in packages.
    pub(crate) async fn upload(
        &mut self,
        publishers: Vec<Publisher>,
        connections: usize,
    ) -> anyhow::Result<Sample> {
        let operations = u64::try_from(publishers.len())?;
        let publishers = publishers
            .into_iter()
            .map(|publisher| Ok((authorization(&publisher.user_id)?, publisher)))
            .collect::<anyhow::Result<_>>()?;
        let uploads = std::sync::Arc::new(Uploads { publishers, next: 0.into() });
        let mut uploaders = Vec::new();
        for _ in 0..connections {
            let connection = Connection::open(&self.peer).await?;
            uploaders.push(Uploader { connection, uploads: uploads.clone() });
        }
        let stretch = Stretch { time: Duration::from_secs(600), operations };
        let before = self.spent().await?;
        let mut sample = load::closed_loop(&mut uploaders, stretch).await?;
        sample.cost = self.spent().await?.since(before);
        Ok(sample)
    }

    /// Runs a script of the reference for about so long.
    pub(crate) async fn reference(
        &mut self,
        pgbench: &Pgbench,
        folder: &Path,
        script: Script,
        clients: usize,
        transactions: u64,
        rate: Option<f64>,
    ) -> anyhow::Result<Sample> {
        if self.reference_stock < transactions {
            self.renew_reference().await?;
        }
        let transactions = transactions.min(self.reference_stock);
        let url = &self.database.url;
        let run = Run { script, url, owners: self.owners, clients, transactions, rate, folder };
        let before = self.spent().await?;
        let mut sample = pgbench.run(&run).await?;
        let cost = self.spent().await?.since(before);
        // What made the load here was pgbench, not this process.
        sample.cost = Cost { server: 0.0, ..cost };
        self.reference_stock -= sample.all_operations.min(self.reference_stock);
        Ok(sample)
    }

    fn caller_prefix(&mut self) -> String {
        self.stretches += 1;
        format!("adder-{}", self.stretches)
    }

    async fn connect_adders(
        &self,
        connections: usize,
        callers: &std::sync::Arc<Callers>,
        then: Then,
    ) -> anyhow::Result<Vec<Adder>> {
        let mut adders = Vec::new();
        for _ in 0..connections {
            let connection = Connection::open(&self.peer).await?;
            adders.push(Adder::new(connection, callers.clone(), then));
        }
        Ok(adders)
    }

    async fn measured(
        &self,
        adders: &mut Vec<Adder>,
        stretch: Stretch,
        rate: Option<f64>,
    ) -> anyhow::Result<Sample> {
        let before = self.spent().await?;
        let mut sample = match rate {
            None => load::closed_loop(adders, stretch).await?,
            Some(rate) => load::open_loop(adders, stretch, rate).await?,
        };
        sample.cost = self.spent().await?.since(before);
        for _ in 0..handed_out_twice(adders) {
            sample.fault("a package was handed out twice");
        }
        Ok(sample)
    }

    /// What all that takes part has cost so far.
    pub(crate) async fn spent(&self) -> anyhow::Result<Cost> {
        let load = machine::cpu_times(std::process::id())?;
        Ok(Cost {
            server: machine::cpu_times(self.server.pid())?.own,
            postgres: machine::family_cpu(self.postmaster)?,
            load: load.own + load.ended_children,
            wal_bytes: self.database.wal_bytes().await? as f64,
        })
    }
}

impl Cost {
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            server: self.server - before.server,
            postgres: self.postgres - before.postgres,
            load: self.load - before.load,
            wal_bytes: self.wal_bytes - before.wal_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_is_measured_in_the_environment_of_the_image() {
        let dockerfile = include_str!("../../deploy/Dockerfile");
        let set: Vec<_> = dockerfile
            .lines()
            .filter_map(|line| line.strip_prefix("ENV ")?.split_once('='))
            .filter(|(name, _)| *name != "KEYPOOL_CONFIG")
            .collect();
        assert_eq!(set, ENVIRONMENT);
    }
}
