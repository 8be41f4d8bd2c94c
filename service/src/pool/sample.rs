//! Counting packages and pools for the metrics.

use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::KeyPool;
use crate::{domain::error::Error, metrics::metrics, store::Sample};

impl KeyPool {
    /// Counts packages and pools again and again until told to stop, and shows the counts in the
    /// metrics. What fails is logged and tried again at its next turn.
    pub async fn run_sampler(&self, interval: Duration, stop: CancellationToken) {
        loop {
            let began = Instant::now();
            match stop.run_until_cancelled(self.sample()).await {
                None => return,
                Some(Ok(sample)) => show(&sample, self.clock.now(), began.elapsed()),
                Some(Err(error)) => {
                    let cause = &error as &dyn std::error::Error;
                    tracing::warn!(error = cause, "packages and pools could not be counted");
                }
            }
            // Replicas that started together do not count together for long.
            let pause = tokio::time::sleep(interval.mul_f64(rand::random_range(0.9..1.1)));
            if stop.run_until_cancelled(pause).await.is_none() {
                return;
            }
        }
    }

    /// Counts packages and pools by state. What it reads is bounded, however many there are.
    ///
    /// # Errors
    /// When the store cannot do it.
    pub async fn sample(&self) -> Result<Sample, Error> {
        self.store.sample(self.policy.lapse, self.policy.low_watermark).await
    }
}

fn show(sample: &Sample, now: OffsetDateTime, took: Duration) {
    let metrics = metrics();
    for (state, count) in sample.packages {
        metrics.set("keypool_packages", &[("state", state)], count);
    }
    for (health, count) in sample.pools {
        metrics.set("keypool_pools", &[("health", health)], count);
    }
    metrics.set("keypool_sweeper_lag_seconds", &[], sample.sweeper_lag);
    let days = sample.partition_days.map_or(-1.0, f64::from);
    metrics.set("keypool_event_partition_days_ahead", &[], days);
    let now = now.unix_timestamp() as f64;
    metrics.set("keypool_sample_timestamp_seconds", &[], now);
    metrics.set("keypool_sample_duration_seconds", &[], took.as_secs_f64());
}
