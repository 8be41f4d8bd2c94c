//! `script/overload`: what becomes of the calls that are served when ten times as many come.

mod arrivals;
mod calls;
mod probe;
mod report;

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::Bytes;
use tokio::{sync::Mutex, task::JoinSet};

use arrivals::{Arrivals, arrive};
use calls::{Calls, reserve};
use probe::Probe;
use report::{Report, Round, Stretch};

use crate::{
    arguments::Arguments,
    connection::{Connection, Refusal},
    postgres::Postgres,
    sample::Sample,
    site::{Plan, Site},
};

/// How many times the best rate is offered.
const TIMES: f64 = 10.0;
/// The share of the best rate at which a call meets hardly another one.
const UNLOADED: f64 = 0.1;
const CONNECTIONS: usize = 16;
/// Calls under way at once, at most, in an open loop.
const IN_FLIGHT: usize = 512;

/// What the calls of a stretch came to.
#[derive(Debug, Default)]
struct Outcome {
    served: Sample,
    shed: Sample,
    by_reason: BTreeMap<String, u64>,
    refs: Vec<Bytes>,
}

impl Outcome {
    fn note(&mut self, answer: anyhow::Result<Vec<Bytes>>, since: Instant) {
        let took = u32::try_from(since.elapsed().as_micros()).unwrap_or(u32::MAX);
        match answer {
            Ok(refs) => {
                self.served.operations += 1;
                self.served.latencies.push(took);
                self.refs.extend(refs);
            }
            Err(error) => match error.downcast_ref::<Refusal>() {
                Some(refusal) if refusal.is_exhausted() => {
                    self.shed.operations += 1;
                    self.shed.latencies.push(took);
                    *self.by_reason.entry(refusal.message().replace("%20", " ")).or_default() += 1;
                }
                _ => self.served.fault(format!("{error:#}")),
            },
        }
    }

    fn join(&mut self, other: Self) {
        self.served.join(other.served);
        self.shed.join(other.shed);
        self.refs.extend(other.refs);
        for (reason, times) in other.by_reason {
            *self.by_reason.entry(reason).or_default() += times;
        }
    }
}

struct Bench {
    site: Site,
    calls: Calls,
    clients: usize,
    refs: HashSet<Bytes>,
    faults: BTreeMap<String, u64>,
}

impl Bench {
    async fn stretch(
        &mut self,
        arrivals: Arrivals,
        time: Duration,
    ) -> anyhow::Result<(Stretch, Vec<f64>)> {
        let calls = match arrivals {
            Arrivals::Open(rate) => (rate * time.as_secs_f64() * 1.1) as usize + 100,
            Arrivals::Closed(_) => (self.most_a_second() * time.as_secs_f64()) as usize + 100,
        };
        let calls = self.calls.make(calls)?;
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            connections.push(Connection::open(&self.site.peer).await?);
        }
        let probe = Probe::start(&self.site).await?;
        let before = self.site.spent().await?;
        let start = Instant::now();
        let (arrivals, pacer) = arrive(arrivals, time, calls.len(), start);
        let workers = match arrivals.closed {
            Some(workers) => workers,
            None => IN_FLIGHT,
        };
        let arriving = Arc::new(Mutex::new(arrivals.receiver));
        let mut running = JoinSet::new();
        for worker in 0..workers {
            let connection = connections.get(worker % CONNECTIONS).context("a connection")?.clone();
            let (calls, clients) = (calls.clone(), self.clients);
            let (arriving, end) = (arriving.clone(), start + time);
            let closed = arrivals.closed.is_some();
            running.spawn(async move {
                let uri = connection.uri("/keypool.v1.KeyPackageService/ReserveKeyPackages")?;
                let mut outcome = Outcome::default();
                loop {
                    let next = arriving.lock().await.recv().await;
                    let Some((number, arrival)) = next else { break };
                    let arrival = if closed { Instant::now() } else { arrival };
                    if closed && arrival >= end {
                        break;
                    }
                    let call = calls.get(number).context("a call")?;
                    let answer = reserve(&connection, &uri, call, clients).await;
                    outcome.note(answer, arrival);
                }
                anyhow::Ok(outcome)
            });
        }
        let mut all = Outcome::default();
        while let Some(done) = running.join_next().await {
            all.join(done??);
        }
        let elapsed = start.elapsed();
        drop(pacer.join());
        let cost = self.site.spent().await?.since(before);
        let probed = probe.end().await?;
        all.served.elapsed = elapsed;
        for reference in all.refs {
            if !self.refs.insert(reference) {
                all.served.fault("a package was handed out twice");
            }
        }
        for (fault, times) in all.served.faults.iter().chain(&probed.checks.faults) {
            *self.faults.entry(fault.clone()).or_default() += times;
        }
        let offered = all.served.operations + all.shed.operations;
        let seconds = elapsed.as_secs_f64();
        let stretch = Stretch {
            offered_per_s: offered as f64 / seconds,
            goodput_per_s: all.served.rate(),
            p50_ms: all.served.percentile(50.0),
            p99_ms: all.served.percentile(99.0),
            shed: all.by_reason,
            shed_p99_ms: all.shed.percentile(99.0),
            health_checks: probed.checks.latencies.len(),
            health_p99_ms: probed.checks.percentile(99.0),
            server_cpu: cost.server / seconds,
            postgres_cpu: cost.postgres / seconds,
            load_cpu: cost.load / seconds,
        };
        Ok((stretch, probed.memory_mib))
    }

    /// Makes the tables as they were: what was handed out may be so again.
    async fn renew(&mut self) -> anyhow::Result<()> {
        self.refs.clear();
        self.site.renew().await
    }

    /// More calls than can be answered in a second.
    fn most_a_second(&self) -> f64 {
        100_000.0 / self.clients as f64 + 1000.0
    }
}

/// Measures.
pub(crate) async fn measure(arguments: &Arguments, postgres: &Postgres) -> anyhow::Result<Report> {
    let owners = match (arguments.owners.first(), arguments.quick) {
        (Some(owners), _) => *owners,
        (None, true) => 640,
        (None, false) => 8_000,
    };
    let seconds = arguments.seconds.unwrap_or(if arguments.quick { 0.5 } else { 3.0 });
    let time = Duration::from_secs_f64(seconds);
    let clients = arguments.clients_a_call;
    // Callers are held to rates, but to none that they meet.
    let mut settings: Vec<String> = ["reserve", "target"]
        .iter()
        .flat_map(|of| ["burst", "per_minute"].map(|it| format!("limits.{of}_{it}=1000000")))
        .collect();
    settings.push("limits.rate_limits=true".to_owned());
    settings.extend(arguments.set.iter().cloned());
    let plan = Plan { owners, renewable: true, settings: &settings, tls: arguments.tls };
    let site = Site::open(postgres, "keypool", &plan).await?;
    eprintln!("{owners} owners are there");
    let calls = Calls::new(owners, clients)?;
    let (refs, faults) = (HashSet::new(), BTreeMap::new());
    let mut bench = Bench { site, calls, clients, refs, faults };

    // The first round warms up: tokens are verified, plans are made.
    bench.stretch(Arrivals::Closed(4), time).await?;
    let mut best = (0.0, 1);
    for workers in arguments.concurrency() {
        bench.renew().await?;
        let (stretch, _) = bench.stretch(Arrivals::Closed(workers), time).await?;
        eprintln!(
            "{workers} at once: {:.0} calls/s, p99 {:.1} ms",
            stretch.goodput_per_s, stretch.p99_ms
        );
        if stretch.goodput_per_s > best.0 {
            best = (stretch.goodput_per_s, workers);
        }
    }
    let peak_concurrency = best.1;
    let mut rounds = Vec::new();
    for round in 1..=arguments.rounds() {
        bench.renew().await?;
        let (peak, _) = bench.stretch(Arrivals::Closed(peak_concurrency), time).await?;
        bench.renew().await?;
        let quiet = Arrivals::Open(peak.goodput_per_s * UNLOADED);
        let (unloaded, _) = bench.stretch(quiet, time * 4).await?;
        bench.renew().await?;
        let flood = Arrivals::Open(peak.goodput_per_s * TIMES);
        let (overload, memory_mib) = bench.stretch(flood, time * 2).await?;
        rounds.push(Round { peak, unloaded, overload, memory_mib });
        eprintln!("round {round} of {}", arguments.rounds());
    }
    Ok(Report::new(clients, peak_concurrency, rounds, bench.faults))
}
