//! `script/overload`: what becomes of the calls that are served when ten times as many come.

mod report;

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::{HeaderValue, Uri};
use keypool_proto::v1::{
    ReserveKeyPackagesRequest, ReserveKeyPackagesResponse, Target, reserve_result,
};
use keypool_testing::scrape::{get, metrics_address};
use tokio::{
    sync::{Mutex, mpsc},
    task::{JoinHandle, JoinSet},
};
use uuid::Uuid;

use report::{Report, Round, Stretch};

use crate::{
    arguments::Arguments,
    callers::{GROUP_ID, OWNER_PREFIX, TTL, authorization},
    connection::{Connection, Refusal, frame},
    machine,
    packages::CIPHER_SUITE,
    postgres::Postgres,
    sample::Sample,
    site::{Plan, Site},
};

/// How many times the best rate is offered.
const TIMES: f64 = 10.0;
/// The share of the best rate at which a call meets hardly another one.
const UNLOADED: f64 = 0.1;
/// Callers, as many as the server remembers the tokens of. A prime: none meets an owner twice.
const CALLERS: usize = 1009;
const CONNECTIONS: usize = 16;
/// Calls under way at once, at most, in an open loop.
const IN_FLIGHT: usize = 512;
/// Between two looks at the health, and at the memory.
const PROBE_INTERVAL: Duration = Duration::from_millis(50);

/// Calls that are made before they are needed: the load shares the cores with the server.
struct Calls {
    tokens: Vec<HeaderValue>,
    frames: Vec<(HeaderValue, Bytes, usize)>,
    clients: usize,
    blocks: usize,
    made: usize,
}

impl Calls {
    fn new(owners: u32, clients: usize) -> anyhow::Result<Self> {
        let token = |n| authorization(&format!("caller-{n}"));
        let tokens = (0..CALLERS).map(token).collect::<anyhow::Result<_>>()?;
        let blocks = usize::try_from(owners)? / clients;
        ensure!(blocks > 0, "fewer owners than a call reserves from");
        Ok(Self { tokens, frames: Vec::new(), clients, blocks, made: 0 })
    }

    /// The next so many calls.
    fn make(&mut self, count: usize) -> anyhow::Result<Arc<[(HeaderValue, Bytes, usize)]>> {
        self.frames.clear();
        for _ in 0..count {
            let token = self.tokens.get(self.made % CALLERS).context("a token")?.clone();
            let block = self.made % self.blocks;
            let owner = |n: usize| format!("{OWNER_PREFIX}{:06}", block * self.clients + n + 1);
            let request = ReserveKeyPackagesRequest {
                request_id: Uuid::new_v4().to_string(),
                group_id: GROUP_ID.into(),
                cipher_suite: CIPHER_SUITE.into(),
                targets: (0..self.clients)
                    .map(|n| Target { user_id: owner(n), client_ids: vec!["phone".into()] })
                    .collect(),
                ttl: Some(TTL.try_into()?),
                ..ReserveKeyPackagesRequest::default()
            };
            self.frames.push((token, frame(&request)?, block));
            self.made += 1;
        }
        Ok(std::mem::take(&mut self.frames).into())
    }
}

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

/// Makes one call and looks at its answer.
async fn reserve(
    connection: &Connection,
    uri: &Uri,
    call: &(HeaderValue, Bytes, usize),
    clients: usize,
) -> anyhow::Result<Vec<Bytes>> {
    let (token, frame, block) = call;
    let answer: ReserveKeyPackagesResponse = connection.send(uri, token, frame.clone()).await?;
    ensure!(answer.results.len() == clients, "{} results", answer.results.len());
    let mut refs = Vec::with_capacity(clients);
    for (n, result) in answer.results.into_iter().enumerate() {
        let owner = result.user_id.strip_prefix(OWNER_PREFIX).context("another user")?;
        ensure!(owner.parse::<usize>()? == block * clients + n + 1, "another user's package");
        let Some(reserve_result::Outcome::Reservation(reservation)) = result.outcome else {
            anyhow::bail!("no reservation: {:?}", result.outcome);
        };
        ensure!(!reservation.last_resort, "a last resort package while stock was left");
        refs.push(reservation.key_package_ref);
    }
    Ok(refs)
}

/// Looks at the health again and again, and at the metrics and the memory.
struct Probe(JoinHandle<anyhow::Result<Probed>>, tokio::sync::oneshot::Sender<()>);

#[derive(Debug, Default)]
struct Probed {
    checks: Sample,
    memory_mib: Vec<f64>,
}

impl Probe {
    async fn start(site: &Site) -> anyhow::Result<Self> {
        let connection = Connection::open(site.server.address()).await?;
        let pid = site.server.pid();
        let metrics = metrics_address(&site.server).await;
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            let uri = connection.uri("/grpc.health.v1.Health/Check")?;
            let none = HeaderValue::from_static("none");
            let mut probed = Probed::default();
            while stopped.try_recv().is_err() {
                let before = Instant::now();
                let check = frame(&HealthCheck { service: SERVICE.into() })?;
                match connection.send::<Health>(&uri, &none, check).await {
                    Ok(Health { status: 1 }) => {}
                    other => probed.checks.fault(format!("health: {other:?}")),
                }
                let took = u32::try_from(before.elapsed().as_micros())?;
                probed.checks.latencies.push(took);
                probed.checks.operations += 1;
                if probed.checks.operations % 10 == 1 {
                    let (resident, _) = machine::memory_kib(pid)?;
                    probed.memory_mib.push(resident as f64 / 1024.0);
                    let (head, text) = get(metrics, "/metrics").await;
                    if !(head.starts_with("HTTP/1.1 200") && text.contains("keypool_shed_total")) {
                        probed.checks.fault(format!("metrics: {head}"));
                    }
                }
                tokio::time::sleep(PROBE_INTERVAL).await;
            }
            Ok(probed)
        });
        Ok(Self(task, stop))
    }

    async fn end(self) -> anyhow::Result<Probed> {
        let _ = self.1.send(()); // it may have failed
        self.0.await?
    }
}

const SERVICE: &str = "keypool.v1.KeyPackageService";

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheck {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`; 1 is SERVING.
#[derive(Clone, PartialEq, prost::Message)]
struct Health {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// How calls arrive.
#[derive(Debug, Clone, Copy)]
enum Arrivals {
    /// So many callers, each with its next call when the last one was answered.
    Closed(usize),
    /// At random, so many a second.
    Open(f64),
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
            connections.push(Connection::open(self.site.server.address()).await?);
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

struct Arriving {
    receiver: mpsc::UnboundedReceiver<(usize, Instant)>,
    closed: Option<usize>,
}

/// The numbers of calls and when they arrive.
fn arrive(
    arrivals: Arrivals,
    time: Duration,
    calls: usize,
    start: Instant,
) -> (Arriving, std::thread::JoinHandle<()>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let closed = match arrivals {
        Arrivals::Closed(workers) => Some(workers),
        Arrivals::Open(_) => None,
    };
    // A thread of its own: the runtime's timers tick in milliseconds.
    let pacer = std::thread::spawn(move || {
        let mut arrival = start;
        for number in 0..calls {
            if let Arrivals::Open(rate) = arrivals {
                let gap = -(1.0 - rand::random::<f64>()).ln() / rate;
                arrival += Duration::from_secs_f64(gap);
                if arrival > start + time {
                    break;
                }
                std::thread::sleep(arrival.saturating_duration_since(Instant::now()));
            }
            if sender.send((number, arrival)).is_err() {
                break;
            }
        }
    });
    (Arriving { receiver, closed }, pacer)
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
    let plan = Plan { owners, renewable: true, settings: &settings };
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
