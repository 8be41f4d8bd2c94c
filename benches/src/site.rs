//! A keypool under load: a database filled with owners, `keypool serve` on it, and the tables of
//! the references beside.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use keypool_service::store::MIGRATOR;
use keypool_testing::server::{Server, ServerOptions};
use sqlx::Executor as _;

use crate::{
    callers::{
        Adder, Callers, OWNER_PREFIX, Then, Uploader, Uploads, authorization, handed_out_twice,
    },
    connection::Connection,
    load::{self, Stretch},
    machine,
    packages::{self, Publisher},
    postgres::{Database, Postgres},
    reference::{Pgbench, Run, Script},
    sample::{Cost, Sample},
};

/// One-time packages of each owner.
pub(crate) const PACKAGES_EACH: i64 = 32;
/// After so many draws from each owner the tables are made anew: no pool comes to its low
/// watermark, and none of pgbench's, which draws at random, runs out.
const DRAWS_EACH: u64 = 12;
/// The owner of the hot pool: another number than any other's, and as many packages as an owner
/// can have.
const HOT_OWNER: u32 = 999_999;
const HOT_PACKAGES: i64 = 64;
/// Owners filled in by one statement.
const FILL_AT_ONCE: u32 = 5_000;
/// What an owner takes on disk, with its history, its events and all indexes, bytes: measured.
const OWNER_BYTES: u64 = 46_000;
/// What the WAL takes at most: Postgres's max_wal_size.
const MAX_WAL_BYTES: u64 = 8 << 30;
/// What Reserve, Spend and Release write to.
const WRITTEN: [&str; 5] = ["package", "draw", "tombstone", "last_resort_grant", "event"];
/// Clients whose real packages the fill copies.
const TEMPLATE_CLIENTS: usize = 8;

/// How a site is set up.
#[derive(Debug, Clone)]
pub(crate) struct Plan<'a> {
    pub(crate) owners: u32,
    /// Whether the tables are filled anew when stock runs low, for which they are kept twice, and
    /// whether there are tables for the references.
    pub(crate) renewable: bool,
    /// Settings of the server, KEY=TOML.
    pub(crate) settings: &'a [String],
}

pub(crate) struct Site {
    pub(crate) database: Database,
    pub(crate) server: Server,
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
        let server = Server::on(&database.service_url(), &options).await;
        let stock = u64::from(plan.owners) * DRAWS_EACH;
        let mut site = Self {
            database,
            server,
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

    /// Real packages, uploaded as any are: the fill copies their rows.
    async fn take_templates(&mut self) -> anyhow::Result<()> {
        let publishers = packages::publishers("model-", TEMPLATE_CLIENTS, 32)?;
        let sample = self.upload(publishers, 2).await?;
        ensure!(sample.faults.is_empty(), "uploading: {:?}", sample.faults);
        self.database
            .run(&[
                "CREATE SCHEMA bench".to_owned(),
                "CREATE TABLE bench.template AS
                 SELECT row_number() OVER () - 1 AS number, key_package, not_after, capabilities,
                        signature_key_digest, credential_digest
                 FROM package"
                    .to_owned(),
            ])
            .await?;
        self.forget_uploads().await
    }

    async fn fill(&mut self) -> anyhow::Result<()> {
        let mut first = 1;
        while first <= self.owners {
            let last = (first + FILL_AT_ONCE - 1).min(self.owners);
            self.fill_owners(first, last, PACKAGES_EACH).await?;
            first = last + 1;
        }
        self.fill_owners(HOT_OWNER, HOT_OWNER, HOT_PACKAGES).await?;
        self.database.run(&["VACUUM (ANALYZE)".to_owned()]).await?;
        if self.renewable {
            self.database.pool.execute(include_str!("sql/reference.sql")).await?;
            let mut statements = WRITTEN
                .map(|table| format!("CREATE TABLE bench.{table} AS TABLE {table}"))
                .to_vec();
            statements.push("CHECKPOINT".to_owned());
            self.database.run(&statements).await?;
            // Both after the checkpoint: neither pays for whole pages in the WAL.
            self.renew().await?;
            self.renew_reference().await?;
        }
        Ok(())
    }

    async fn fill_owners(&self, first: u32, last: u32, packages: i64) -> anyhow::Result<()> {
        sqlx::query(include_str!("sql/fill.sql"))
            .bind(i64::from(first))
            .bind(i64::from(last))
            .bind(packages)
            .bind(OWNER_PREFIX)
            .execute(&self.database.pool)
            .await?;
        Ok(())
    }

    /// Gives each owner as many packages as it had at first, in place of those that were drawn.
    pub(crate) async fn refill(&mut self) -> anyhow::Result<()> {
        self.stretches += 1;
        sqlx::query(include_str!("sql/refill.sql"))
            .bind(PACKAGES_EACH)
            .bind(i64::try_from(self.stretches)?)
            .execute(&self.database.pool)
            .await?;
        self.stock = u64::from(self.owners) * DRAWS_EACH;
        Ok(())
    }

    /// Makes keypool's tables as they were after the fill.
    pub(crate) async fn renew(&mut self) -> anyhow::Result<()> {
        ensure!(self.renewable, "the stock of {} owners is used up", self.owners);
        // Foreign keys are not looked up: the rows were checked when they first came.
        let mut statements = vec!["SET session_replication_role = replica".to_owned()];
        for table in WRITTEN {
            statements.push(format!("TRUNCATE {table}"));
            statements.push(format!("INSERT INTO {table} SELECT * FROM bench.{table}"));
        }
        statements.push("RESET session_replication_role".to_owned());
        statements.extend(WRITTEN.map(|table| format!("VACUUM (ANALYZE) {table}")));
        self.database.run(&statements).await?;
        self.stock = u64::from(self.owners) * DRAWS_EACH;
        Ok(())
    }

    /// Makes the references' tables anew: the same packages of the same owners.
    async fn renew_reference(&mut self) -> anyhow::Result<()> {
        self.database
            .run(&[
                "TRUNCATE bench.live, bench.drawn, bench.log".to_owned(),
                "INSERT INTO bench.live (owner, seq, key_package_ref, key_package, not_after)
                 SELECT right(p.user_id, 6)::bigint, k.seq, k.key_package_ref, k.key_package,
                        k.not_after
                 FROM bench.package k JOIN pool p USING (bucket, pool_id)
                 ORDER BY 1, 2"
                    .to_owned(),
                // History, as keypool's tables have it.
                "INSERT INTO bench.drawn
                 SELECT owner, -seq, 0, 0, now() - interval '1 hour'
                 FROM bench.live WHERE seq <= 8"
                    .to_owned(),
                "INSERT INTO bench.log
                 SELECT owner, now(), seq, 'uploaded', key_package_ref, 'owner', 0, '' FROM bench.live"
                    .to_owned(),
                "VACUUM (ANALYZE) bench.live, bench.drawn, bench.log".to_owned(),
            ])
            .await?;
        self.reference_stock = u64::from(self.owners) * DRAWS_EACH;
        Ok(())
    }

    /// Takes out what was uploaded by others than the filled-in owners.
    pub(crate) async fn forget_uploads(&mut self) -> anyhow::Result<()> {
        let mut statements = vec![format!(
            "CREATE TEMPORARY TABLE guest AS
             SELECT bucket, pool_id FROM pool WHERE user_id NOT LIKE '{OWNER_PREFIX}%'"
        )];
        for table in ["event", "published", "package", "last_resort", "pool_suite", "pool"] {
            statements.push(format!(
                "DELETE FROM {table} t USING guest g
                 WHERE t.bucket = g.bucket AND t.pool_id = g.pool_id"
            ));
        }
        statements.push("DROP TABLE guest".to_owned());
        for table in ["published", "package", "pool_suite", "pool", "event"] {
            statements.push(format!("VACUUM (ANALYZE) {table}"));
        }
        self.database.run(&statements).await
    }

    /// Reserves, and what comes then, on so many connections; at `rate` calls a second or, with
    /// `None`, as fast as they are answered.
    pub(crate) async fn adders(
        &mut self,
        connections: usize,
        time: Duration,
        then: Then,
        rate: Option<f64>,
    ) -> anyhow::Result<Sample> {
        if self.stock < u64::from(self.owners) * DRAWS_EACH / 2 {
            self.renew().await?;
        }
        let owners: Vec<u32> = (1..=self.owners).collect();
        let calls_each = owners.len();
        let callers = connections + usize::try_from(self.stock)? / calls_each + 1;
        let stretch = Stretch { time, operations: self.stock };
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
            let connection = Connection::open(self.server.address()).await?;
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
            let connection = Connection::open(self.server.address()).await?;
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
