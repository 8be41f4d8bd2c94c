//! What is in the tables: filled in, and made as it was.

use anyhow::ensure;
use sqlx::Executor as _;

use super::{DRAWS_EACH, HOT_OWNER, Site};
use crate::{callers::OWNER_PREFIX, packages};

/// One-time packages of each owner.
pub(crate) const PACKAGES_EACH: i64 = 32;
/// Those of the hot pool: as many as an owner can have.
const HOT_PACKAGES: i64 = 64;
/// Owners filled in by one statement.
const FILL_AT_ONCE: u32 = 5_000;
/// What Reserve, Spend and Release write to.
const WRITTEN: [&str; 5] = ["package", "draw", "tombstone", "last_resort_grant", "event"];
/// Days over which the owners' packages were uploaded.
const DAYS: u32 = 14;
/// Clients whose real packages the fill copies.
const TEMPLATE_CLIENTS: usize = 8;

impl Site {
    /// Real packages, uploaded as any are: the fill copies their rows.
    pub(super) async fn take_templates(&mut self) -> anyhow::Result<()> {
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

    pub(super) async fn fill(&mut self) -> anyhow::Result<()> {
        let partitions = format!("SELECT make_event_partitions(current_date - {DAYS}, {DAYS})");
        self.database.run(&[partitions]).await?;
        let mut first = 1;
        while first <= self.owners {
            let last = (first + FILL_AT_ONCE - 1).min(self.owners);
            self.fill_owners(first, last, PACKAGES_EACH).await?;
            first = last + 1;
        }
        self.fill_owners(HOT_OWNER, HOT_OWNER, HOT_PACKAGES).await?;
        self.database.run(&["VACUUM (ANALYZE)".to_owned()]).await?;
        if self.renewable {
            self.database.pool.execute(include_str!("../sql/reference.sql")).await?;
            let copies =
                WRITTEN.map(|table| format!("CREATE TABLE bench.{table} AS TABLE {table}"));
            self.database.run(&copies).await?;
            self.renew_reference().await?;
        }
        // Both sides begin right after a checkpoint: each writes a page whole to the WAL when it first
        // changes it.
        self.database.run(&["CHECKPOINT".to_owned()]).await
    }

    async fn fill_owners(&self, first: u32, last: u32, packages: i64) -> anyhow::Result<()> {
        sqlx::query(include_str!("../sql/fill.sql"))
            .bind(i64::from(first))
            .bind(i64::from(last))
            .bind(packages)
            .bind(OWNER_PREFIX)
            .execute(&self.database.pool)
            .await?;
        Ok(())
    }

    /// Gives each owner as many packages as it had at first, in place of those that were drawn or, with
    /// `all`, of all that it has.
    pub(crate) async fn refill(&mut self, all: bool) -> anyhow::Result<()> {
        self.stretches += 1;
        sqlx::query(include_str!("../sql/refill.sql"))
            .bind(PACKAGES_EACH)
            .bind(i64::try_from(self.stretches)?)
            .bind(all)
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
    pub(super) async fn renew_reference(&mut self) -> anyhow::Result<()> {
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
}
