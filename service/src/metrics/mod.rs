//! What is measured, for Prometheus. `docs/metrics.md` names and explains all of it, and is where
//! the descriptions come from.
//!
//! One registry a process. What calls touch is registered once, so that counting is one addition:
//! no lock, no allocation. Whoever counts writes one line: `metrics().issued.count(Issued::OneTime)`.

mod catalogue;
mod families;
mod http;
mod labels;
mod rpc;

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram, with_local_recorder};
use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};

pub use families::{Counters, InFlight, Present};
pub use http::serve;
pub use labels::*;
pub use rpc::{Call, Calls, OpenStream, code_name};

/// Seconds: from half a millisecond, which a Reserve takes at best, to longer than a call may take.
const SECONDS: &[f64] = &[
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5,
    5.0, 10.0,
];
/// How many calls a statement served.
const CALLS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

/// How often what was recorded is sorted into buckets when nobody asks, so that it takes no room.
pub const UPKEEP: Duration = Duration::from_secs(5);

static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// The metrics of this process.
pub fn metrics() -> &'static Metrics {
    &METRICS
}

/// The metrics of a process. See `docs/metrics.md` for what each means.
#[allow(missing_docs)] // each field is a row of that table
#[derive(Debug)]
pub struct Metrics {
    pub calls: Calls,
    pub token_failures: Counters<TokenFailure>,
    pub rate_limited: Counters<RateLimit>,
    pub shed: Counters<Shed>,
    pub connections: InFlight,
    pub connections_refused: Counters<RefusedConnection>,
    pub issued: Counters<Issued>,
    pub unavailable: Counters<NotReserved>,
    pub settled: Counters<Settlement>,
    pub uploaded: Counters<Upload>,
    pub revoked: Counter,
    pub low_pool_notices: Counter,
    pub watch_streams: InFlight,
    pub watch_statuses: Counter,
    pub database_up: Gauge,
    pub pending_connections: [InFlight; Connections::ALL.len()],
    pub connection_waits: [Histogram; Connections::ALL.len()],
    pub connection_timeouts: Counters<Connections>,
    pub swept: Counters<Swept>,
    pub sweeps: Counters<Outcome>,
    pub sweep_duration: Histogram,
    recorder: Arc<PrometheusRecorder>,
    handle: PrometheusHandle,
    process: metrics_process::Collector,
}

impl Metrics {
    fn new() -> Self {
        let mut builder = PrometheusBuilder::new();
        for (name, buckets) in [
            ("rpc_server_call_duration_seconds", SECONDS),
            ("db_client_connection_wait_time_seconds", SECONDS),
            ("keypool_batch_wait_seconds", SECONDS),
            ("keypool_sweeper_run_duration_seconds", SECONDS),
            ("keypool_batch_size", CALLS),
        ] {
            // Only no buckets at all would be an error.
            let with_buckets = builder.set_buckets_for_metric(Matcher::Full(name.into()), buckets);
            builder = with_buckets.unwrap_or_default();
        }
        let recorder = Arc::new(builder.build_recorder());
        with_local_recorder(&*recorder, || {
            catalogue::describe();
            let of = |name: &'static str, pool: Connections| {
                (name, [("db_client_connection_pool_name", pool.as_str())])
            };
            let pending = |pool| {
                let (name, labels) = of("db_client_connection_pending_requests", pool);
                InFlight(gauge!(name, &labels))
            };
            let waits = |pool| {
                let (name, labels) = of("db_client_connection_wait_time_seconds", pool);
                histogram!(name, &labels)
            };
            Self {
                calls: Calls::default(),
                token_failures: Counters::new("keypool_token_failures_total", "kind"),
                rate_limited: Counters::new("keypool_rate_limited_total", "limit"),
                shed: Counters::new("keypool_shed_total", "cause"),
                connections: InFlight(gauge!("keypool_grpc_connections")),
                connections_refused: Counters::new(
                    "keypool_grpc_connections_refused_total",
                    "cause",
                ),
                issued: Counters::new("keypool_packages_issued_total", "kind"),
                unavailable: Counters::new("keypool_reserve_unavailable_total", "reason"),
                settled: Counters::new("keypool_packages_settled_total", "outcome"),
                uploaded: Counters::new("keypool_packages_uploaded_total", "outcome"),
                revoked: counter!("keypool_packages_revoked_total"),
                low_pool_notices: counter!("keypool_low_pool_notices_total"),
                watch_streams: InFlight(gauge!("keypool_watch_streams")),
                watch_statuses: counter!("keypool_watch_statuses_total"),
                database_up: gauge!("keypool_database_up"),
                pending_connections: Connections::ALL.map(pending),
                connection_waits: Connections::ALL.map(waits),
                connection_timeouts: Counters::new(
                    "db_client_connection_timeouts_total",
                    "db_client_connection_pool_name",
                ),
                swept: Counters::new("keypool_sweeper_rows_total", "work"),
                sweeps: Counters::new("keypool_sweeper_runs_total", "outcome"),
                sweep_duration: histogram!("keypool_sweeper_run_duration_seconds"),
                handle: recorder.handle(),
                recorder: recorder.clone(),
                process: metrics_process::Collector::default(),
            }
        })
    }

    /// Registers what is not worth a field: off the paths of calls, or not there from the start.
    pub fn with<T>(&self, register: impl FnOnce() -> T) -> T {
        with_local_recorder(&*self.recorder, register)
    }

    /// Counts a rejected package of an upload, by its reason in the contract's words.
    pub fn upload_rejected(&self, reason: &'static str) {
        self.uploaded.count(Upload::Rejected);
        self.with(|| counter!("keypool_upload_rejections_total", "reason" => reason).increment(1));
    }

    /// Sets a gauge that is not on the path of a call.
    pub fn set(&self, name: &'static str, labels: &[(&'static str, &'static str)], value: f64) {
        self.with(|| gauge!(name, labels).set(value));
    }

    /// Says which build this is: the last migration that it knows.
    pub fn tell_build(&self, schema: i64) {
        let labels =
            [("version", env!("CARGO_PKG_VERSION").to_owned()), ("schema", schema.to_string())];
        self.with(|| gauge!("keypool_build_info", &labels).set(1.0));
    }

    /// Sorts what was recorded since into buckets.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// All of it in the text format of Prometheus.
    fn render(&self) -> String {
        self.with(|| self.process.collect());
        self.handle.render()
    }
}

/// What is measured of the statements of one kind that serve many calls.
#[derive(Debug)]
pub struct Batches {
    size: Histogram,
    wait: Histogram,
}

impl Batches {
    /// For the statement of this name.
    pub fn new(statement: &'static str) -> Self {
        metrics().with(|| Self {
            size: histogram!("keypool_batch_size", "statement" => statement),
            wait: histogram!("keypool_batch_wait_seconds", "statement" => statement),
        })
    }

    /// A statement begins; each call has waited so long.
    pub fn begin(&self, waited: impl ExactSizeIterator<Item = Duration>) {
        // Never more than a batch holds.
        self.size.record(waited.len() as f64);
        waited.for_each(|waited| self.wait.record(waited));
    }
}

/// Waits for a connection of a pool, and measures it.
pub async fn waiting_for_connection<T>(pool: Connections, acquire: impl Future<Output = T>) -> T {
    let metrics = metrics();
    let began = std::time::Instant::now();
    let acquired = {
        let _pending = metrics.pending_connections[pool as usize].begin();
        acquire.await
    };
    metrics.connection_waits[pool as usize].record(began.elapsed());
    acquired
}
