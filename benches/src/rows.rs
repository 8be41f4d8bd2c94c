//! How each row is measured: keypool and its references take turns, so that what else the machine
//! does falls on both.

use std::{collections::BTreeMap, time::Duration};

use anyhow::ensure;

use crate::{
    arguments::{Arguments, RowName},
    callers::Then,
    load::Stretch,
    machine,
    packages::{self, Publisher},
    postgres::Postgres,
    reference::{Pgbench, Script},
    report::Row,
    sample::Sample,
    site::Site,
};

/// Where goals are set.
const BUSY: usize = 64;
/// Packages in one Upload: what a client that starts publishes.
const PACKAGES_A_CALL: usize = 32;

pub(crate) struct Bench<'a> {
    pub(crate) arguments: &'a Arguments,
    pub(crate) postgres: &'a Postgres,
    pub(crate) pgbench: Option<&'a Pgbench>,
    pub(crate) site: &'a mut Site,
}

/// The rounds of one row at one number of connections.
#[derive(Debug, Default)]
struct Rounds {
    keypool: Vec<Sample>,
    reference: Vec<Sample>,
    promises: Vec<Sample>,
}

impl Bench<'_> {
    pub(crate) async fn rows(&mut self) -> anyhow::Result<Vec<Row>> {
        let mut rows = Vec::new();
        for row in self.arguments.rows() {
            rows.extend(match row {
                RowName::Reserve => self.reserve().await?,
                RowName::Pairs => {
                    let scripts = (Script::Pairs, Script::PairsWithPromises);
                    self.beside("pairs", Then::Spend, scripts).await?
                }
                RowName::Upload => self.upload().await?,
                RowName::HotPool => self.hot_pool().await?,
                RowName::Idle => self.idle().await?,
                RowName::Transport => self.transport().await?,
            });
        }
        Ok(rows)
    }

    fn time(&self) -> Duration {
        Duration::from_secs_f64(self.arguments.seconds())
    }

    async fn reserve(&mut self) -> anyhow::Result<Vec<Row>> {
        let scripts = (Script::Reserve, Script::ReserveWithPromises);
        let mut rows = self.beside("reserve", Then::Keep, scripts).await?;
        rows.extend(self.half_peak(&rows).await?);
        Ok(rows)
    }

    /// Keypool, the bare statement and the one with the same promises, in turn.
    async fn beside(
        &mut self,
        name: &str,
        then: Then,
        (bare, promises): (Script, Script),
    ) -> anyhow::Result<Vec<Row>> {
        let promises = (!self.arguments.no_promises).then_some(promises);
        let mut measured = BTreeMap::<usize, Rounds>::new();
        let connections = self.arguments.connections();
        // The first round warms up and does not count.
        for round in 0..=self.arguments.rounds() {
            let time = if round == 0 { self.time() / 4 } else { self.time() };
            for &connections in &connections {
                let rounds = measured.entry(connections).or_default();
                // With many clients too few transactions have no rate: all have to be there at once.
                let rate = |samples: &[Sample]| {
                    samples.last().map(Sample::rate).filter(|rate| *rate > 0.0)
                };
                for (script, samples) in
                    [(Some(bare), &mut rounds.reference), (promises, &mut rounds.promises)]
                {
                    if let (Some(script), Some(pgbench)) = (script, self.pgbench) {
                        let per_second = rate(samples).unwrap_or(10_000.0);
                        let transactions = (per_second * time.as_secs_f64()) as u64;
                        let folder = self.postgres.folder();
                        samples.push(
                            self.site
                                .reference(pgbench, folder, script, connections, transactions, None)
                                .await?,
                        );
                    }
                }
                rounds
                    .keypool
                    .push(self.site.adders(connections, Stretch::lasting(time), then, None).await?);
            }
            eprintln!("{name}: round {round} of {}", self.arguments.rounds());
        }
        let rows = measured.into_iter().map(|(connections, rounds)| {
            let [keypool, reference, promises] =
                [&rounds.keypool, &rounds.reference, &rounds.promises]
                    .map(|samples| samples.get(1..).unwrap_or_default());
            Row::new(name, connections, keypool, reference).beside_promises(promises)
        });
        Ok(rows.collect())
    }

    /// Reserve at half of the rate that was reached at best, and the bare statement at half of
    /// what it reached at best.
    async fn half_peak(&mut self, rows: &[Row]) -> anyhow::Result<Option<Row>> {
        let Some(connections) =
            self.arguments.connections().into_iter().filter(|n| *n <= BUSY).max()
        else {
            return Ok(None);
        };
        // One a second is slow enough, should nothing have been answered.
        let best =
            |rates: &mut dyn Iterator<Item = f64>| (rates.fold(0.0, f64::max) / 2.0).max(1.0);
        let rate = best(&mut rows.iter().map(|row| row.keypool.ops_per_s));
        let reference_rate =
            best(&mut rows.iter().filter_map(|row| Some(row.reference.as_ref()?.ops_per_s)));
        let mut rounds = Rounds::default();
        for _ in 0..self.arguments.rounds() {
            if let Some(pgbench) = self.pgbench {
                let transactions = (reference_rate * self.arguments.seconds()) as u64;
                let folder = self.postgres.folder();
                let (script, rate) = (Script::Reserve, Some(reference_rate));
                rounds.reference.push(
                    self.site
                        .reference(pgbench, folder, script, connections, transactions, rate)
                        .await?,
                );
            }
            let stretch = Stretch::lasting(self.time());
            let sample = self.site.adders(connections, stretch, Then::Keep, Some(rate)).await?;
            rounds.keypool.push(sample);
        }
        eprintln!("reserve: at half of the peak");
        Ok(Some(Row::new("reserve_half_peak", connections, &rounds.keypool, &rounds.reference)))
    }

    /// New clients with packages of their own, beside openmls's own check of the same packages on
    /// the same cores; and keypool's check alone beside it.
    async fn upload(&mut self) -> anyhow::Result<Vec<Row>> {
        let clients = if self.arguments.quick { 4 } else { 1_500 };
        let publishers = packages::publishers("guest-", clients, PACKAGES_A_CALL)?;
        let mut measured = BTreeMap::<usize, Rounds>::new();
        let mut judged = Rounds::default();
        for round in 0..self.arguments.rounds() {
            judged.reference.push(timed(&publishers, packages::validate)?);
            judged.keypool.push(timed(&publishers, packages::judge)?);
            for connections in self.arguments.connections() {
                let rounds = measured.entry(connections).or_default();
                rounds.reference.push(timed(&publishers, packages::validate)?);
                rounds.keypool.push(self.site.upload(publishers.clone(), connections).await?);
                self.site.forget_uploads().await?;
            }
            eprintln!("upload: round {} of {}", round + 1, self.arguments.rounds());
        }
        let rows = measured.into_iter().map(|(connections, rounds)| {
            Row::new("upload", connections, &rounds.keypool, &rounds.reference)
        });
        let judged = Row::new("validation", 0, &judged.keypool, &judged.reference);
        Ok(rows.chain([judged]).collect())
    }

    /// Callers who reserve and release, all on one pool with as many packages as there can be,
    /// beside as many who do the same on all other pools.
    async fn hot_pool(&mut self) -> anyhow::Result<Vec<Row>> {
        let connections = if self.arguments.quick { 16 } else { BUSY };
        let mut rounds = Rounds::default();
        let mut calls = if self.arguments.quick { 500 } else { 2_000 };
        for round in 0..=self.arguments.rounds() {
            let cold = self.site.newcomers(connections, self.time(), calls, false).await?;
            let hot = self.site.newcomers(connections, self.time(), calls, true).await?;
            // Enough callers to last, and no more tokens than that.
            let fastest = f64::max(cold.rate(), hot.rate());
            calls = ((fastest * self.arguments.seconds()) as usize).clamp(500, 100_000);
            if round > 0 {
                rounds.reference.push(cold);
                rounds.keypool.push(hot);
            }
            eprintln!("hot_pool: round {round} of {}", self.arguments.rounds());
        }
        Ok(vec![Row::new("hot_pool", connections, &rounds.keypool, &rounds.reference)])
    }

    /// One caller, nobody else.
    async fn idle(&mut self) -> anyhow::Result<Vec<Row>> {
        let mut rounds = Rounds::default();
        let time = self.time().min(Duration::from_secs(2));
        for round in 0..=self.arguments.rounds() {
            let keypool = self.site.one_caller(time).await?;
            let calls = keypool.operations;
            if round > 0 {
                rounds.keypool.push(keypool);
            }
            if let Some(pgbench) = self.pgbench {
                let folder = self.postgres.folder();
                let sample =
                    self.site.reference(pgbench, folder, Script::Reserve, 1, calls, None).await?;
                if round > 0 {
                    rounds.reference.push(sample);
                }
            }
        }
        eprintln!("idle: done");
        Ok(vec![Row::new("idle", 1, &rounds.keypool, &rounds.reference)])
    }

    /// Health checks on as many connections as Reserves: nothing is reserved, so this is the part
    /// of a Reserve that HTTP/2, gRPC and the load take.
    async fn transport(&mut self) -> anyhow::Result<Vec<Row>> {
        let connections = if self.arguments.quick { 16 } else { BUSY };
        let mut samples = Vec::new();
        for round in 0..=self.arguments.rounds() {
            let sample = self.site.checks(connections, self.time()).await?;
            if round > 0 {
                samples.push(sample);
            }
        }
        eprintln!("transport: done");
        Ok(vec![Row::new("transport", connections, &samples, &[])])
    }
}

/// A check of all packages as a sample. A latency of one package is not known.
fn timed(
    publishers: &[Publisher],
    check: impl FnOnce(&[Publisher]) -> anyhow::Result<Duration>,
) -> anyhow::Result<Sample> {
    let operations: usize = publishers.iter().map(|publisher| publisher.packages.len()).sum();
    ensure!(operations > 0, "no packages");
    let before = machine::cpu_times(std::process::id())?.own;
    let elapsed = check(publishers)?;
    let operations = u64::try_from(operations)?;
    let mut sample =
        Sample { operations, all_operations: operations, elapsed, ..Sample::default() };
    sample.cost.load = machine::cpu_times(std::process::id())?.own - before;
    Ok(sample)
}
