//! What is looked at again and again.

use anyhow::Context as _;
use std::{collections::BTreeMap, fs, time::Duration};

use keypool_testing::scrape::Scrape;

use super::{
    load_figures,
    series::{Group, MIB, Promise, Series},
};
use crate::{machine, sample::Sample, site::Site};

/// Tables that grow by design for a day or more: the log until its partition is dropped, and who
/// drew from which pool until it is a newcomer again.
const LINEAR: [&str; 2] = ["event", "draw"];
/// What is never larger than this is not told of, in MiB.
const SMALL: f64 = 0.1;

/// The looks so far.
pub(super) struct Looks<'a> {
    site: &'a Site,
    at_minutes: Vec<f64>,
    turns: Vec<f64>,
    series: BTreeMap<(Group, String), (Promise, Vec<f64>)>,
}

impl<'a> Looks<'a> {
    pub(super) fn new(site: &'a Site) -> Self {
        Self { site, at_minutes: Vec::new(), turns: Vec::new(), series: BTreeMap::new() }
    }

    pub(super) fn count(&self) -> usize {
        self.turns.len()
    }

    /// Looks at everything, between two stretches of load.
    pub(super) async fn take(
        &mut self,
        since_start: Duration,
        turns: u64,
        sample: &Sample,
    ) -> anyhow::Result<()> {
        let pid = self.site.server.pid();
        let (resident, _) = machine::memory_kib(pid)?;
        let files = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        let scrape = Scrape::of(&self.site.server).await;
        let gauge = |name: &str| scrape.value(name, &[]).with_context(|| format!("no {name}"));
        let memory = Promise::Flat { share: 0.05, slack: 4.0 };
        let few = Promise::Flat { share: 0.05, slack: 4.0 };

        self.add(Group::Memory, "resident", memory, resident as f64 / 1024.0);
        self.add(Group::Files, "open files", few, files as f64);
        self.add(Group::Connections, "to Postgres", few, self.to_postgres().await?);
        self.add(Group::Connections, "of clients", few, gauge("keypool_grpc_connections")?);
        self.add(Group::Connections, "watch streams", few, gauge("keypool_watch_streams")?);
        let [(rate, per_s), (p99, ms)] = load_figures(sample);
        self.add(Group::Load, rate, Promise::Flat { share: 0.2, slack: 0.0 }, per_s);
        self.add(Group::Latency, p99, Promise::Flat { share: 1.0, slack: 10.0 }, ms);
        self.relations().await?;
        self.dead_rows().await?;

        self.at_minutes.push(since_start.as_secs_f64() / 60.0);
        self.turns.push(turns as f64);
        // What was not there at all looks is none of ours, such as a table made meanwhile.
        let count = self.turns.len();
        for (_, values) in self.series.values_mut() {
            values.resize(count, values.last().copied().unwrap_or_default());
        }
        Ok(())
    }

    fn add(&mut self, group: Group, name: impl Into<String>, promise: Promise, value: f64) {
        let before = self.turns.len();
        let key = (group, name.into());
        let (_, values) = self.series.entry(key).or_insert((promise, vec![0.0; before]));
        values.push(value);
    }

    async fn to_postgres(&self) -> anyhow::Result<f64> {
        let count: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity
             WHERE datname = current_database() AND application_name = 'keypool'",
        )
        .fetch_one(&self.site.database.pool)
        .await?;
        Ok(count as f64)
    }

    /// Every table and every index, partitions under the name of what they are parts of.
    async fn relations(&mut self) -> anyhow::Result<()> {
        let rows: Vec<(String, String, bool, i64)> = sqlx::query_as(
            "SELECT coalesce(parent.relname, c.relname)::text, coalesce(whole.relname, t.relname)::text,
                    c.relkind = 'i', sum(pg_table_size(c.oid))::bigint
             FROM pg_class c
             LEFT JOIN pg_index x ON x.indexrelid = c.oid
             JOIN pg_class t ON t.oid = coalesce(x.indrelid, c.oid)
             LEFT JOIN pg_inherits h ON h.inhrelid = c.oid
             LEFT JOIN pg_class parent ON parent.oid = h.inhparent
             LEFT JOIN pg_inherits th ON th.inhrelid = t.oid
             LEFT JOIN pg_class whole ON whole.oid = th.inhparent
             WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'i')
             GROUP BY 1, 2, 3",
        )
        .fetch_all(&self.site.database.pool)
        .await?;
        for (name, table, is_index, bytes) in rows {
            let promise = if LINEAR.contains(&table.as_str()) {
                Promise::Linear { share: 0.25, slack: 1.0 }
            } else {
                Promise::Flat { share: 0.05, slack: 1.0 }
            };
            let group = if is_index { Group::Indexes } else { Group::Tables };
            self.add(group, name, promise, bytes as f64 / MIB);
        }
        Ok(())
    }

    /// A vacuum comes after some thousands of them.
    async fn dead_rows(&mut self) -> anyhow::Result<()> {
        let rows: Vec<(String, i64)> = sqlx::query_as(
            "SELECT coalesce(parent.relname, s.relname)::text, sum(s.n_dead_tup)::bigint
             FROM pg_stat_user_tables s
             LEFT JOIN pg_inherits h ON h.inhrelid = s.relid
             LEFT JOIN pg_class parent ON parent.oid = h.inhparent
             WHERE s.schemaname = 'public'
             GROUP BY 1",
        )
        .fetch_all(&self.site.database.pool)
        .await?;
        for (table, dead) in rows {
            let promise = Promise::Flat { share: 0.5, slack: 20_000.0 };
            self.add(Group::Dead, table, promise, dead as f64);
        }
        Ok(())
    }

    /// Minutes and turns at each look, and what was seen.
    pub(super) fn series(self) -> (Vec<f64>, Vec<f64>, Vec<Series>) {
        let series = self.series.into_iter();
        let series = series.map(|((group, name), (promise, values))| Series {
            group,
            name,
            promise,
            values,
        });
        let told = series.filter(|series| {
            let most = series.values.iter().copied().fold(0.0, f64::max);
            match series.group {
                Group::Tables | Group::Indexes => most > SMALL,
                Group::Dead => most > 0.0,
                _ => true,
            }
        });
        (self.at_minutes, self.turns, told.collect())
    }
}
