//! `[metrics]`.

use std::{net::SocketAddr, time::Duration};

use super::source::{DAY, MINUTE, SECOND, Source};

/// `[metrics]`: where Prometheus finds the metrics.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricsSection {
    /// `listen`: the address that they are served on, or "off". Default 127.0.0.1:9464.
    pub listen: Option<SocketAddr>,
    /// `sample_interval`: how often packages and pools are counted, by a sample. Default 60s.
    pub sample_interval: Duration,
}

impl Default for MetricsSection {
    fn default() -> Self {
        Self { listen: Some(SocketAddr::from(([127, 0, 0, 1], 9464))), sample_interval: MINUTE }
    }
}

impl MetricsSection {
    pub(super) fn read(source: &mut Source) -> Self {
        let default = Self::default();
        Self {
            listen: source
                .read("metrics.listen", |given| match given.text()?.as_str() {
                    "off" => Ok(None),
                    address => address.parse().map(Some).map_err(|_| {
                        "must be an address, as in \"0.0.0.0:9464\", or \"off\"".into()
                    }),
                })
                .unwrap_or(default.listen),
            sample_interval: source.duration(
                "metrics.sample_interval",
                default.sample_interval,
                SECOND / 10..=DAY,
            ),
        }
    }
}
