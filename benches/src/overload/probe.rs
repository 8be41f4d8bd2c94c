//! Whether the server can be asked how it is, and how much memory it has, meanwhile.

use std::time::{Duration, Instant};

use http::HeaderValue;
use keypool_testing::scrape::{get, metrics_address};
use tokio::task::JoinHandle;

use crate::{connection::Connection, health::Checker, machine, sample::Sample, site::Site};

/// Between two looks at the health, and at the memory.
const PROBE_INTERVAL: Duration = Duration::from_millis(50);

/// Looks at the health again and again, and at the metrics and the memory.
pub(super) struct Probe(JoinHandle<anyhow::Result<Probed>>, tokio::sync::oneshot::Sender<()>);

#[derive(Debug, Default)]
pub(super) struct Probed {
    pub(super) checks: Sample,
    pub(super) memory_mib: Vec<f64>,
}

impl Probe {
    pub(super) async fn start(site: &Site) -> anyhow::Result<Self> {
        let connection = Connection::open(&site.peer).await?;
        let pid = site.server.pid();
        let metrics = metrics_address(&site.server).await;
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            let checker = Checker::new(connection, HeaderValue::from_static("none"))?;
            let mut probed = Probed::default();
            while stopped.try_recv().is_err() {
                let before = Instant::now();
                if let Err(fault) = checker.check().await {
                    probed.checks.fault(format!("health: {fault:#}"));
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

    pub(super) async fn end(self) -> anyhow::Result<Probed> {
        let _ = self.1.send(()); // it may have failed
        self.0.await?
    }
}
