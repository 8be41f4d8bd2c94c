//! The sweeper: ends what time has ended.

use std::time::Duration as StdDuration;

use time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::KeyPool;
use crate::{
    domain::{error::Error, policy::NEWCOMER_AFTER},
    metrics::{Outcome, Swept, metrics},
    store,
};

/// How many days ahead the event log has its partitions.
const PARTITIONS_AHEAD: u16 = 7;
/// How often the log's partitions are looked after.
const TEND_INTERVAL: StdDuration = StdDuration::from_secs(3600);

/// How the sweeper works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SweepPolicy {
    /// How long it rests between two sweeps.
    pub interval: Duration,
    /// How many rows one statement ends at most.
    pub batch: u32,
    /// How long refs and tombstones stay known after not_after.
    pub tombstone_retention: Duration,
    /// How long it is known who drew from which pool, and how last resort grants ended.
    pub draw_retention: Duration,
    /// How many days events are kept; at least 7.
    pub event_retention_days: u16,
}

impl Default for SweepPolicy {
    fn default() -> Self {
        Self {
            interval: Duration::seconds(10),
            batch: 500,
            tombstone_retention: Duration::hours(24),
            draw_retention: NEWCOMER_AFTER,
            event_retention_days: 90,
        }
    }
}

/// What one sweep ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// Reservations that lapsed.
    pub lapsed: u64,
    /// Packages that expired, last resort ones among them.
    pub expired: u64,
    /// Packages that came near their not_after.
    pub expiring: u64,
    /// Refs and tombstones that are forgotten.
    pub forgotten: u64,
    /// Draws and last resort grants that are forgotten.
    pub forgotten_draws: u64,
}

fn measure(swept: &Result<SweepReport, Error>, took: StdDuration) {
    let metrics = metrics();
    metrics.sweep_duration.record(took);
    metrics.sweeps.count(if swept.is_ok() { Outcome::Ok } else { Outcome::Failed });
    let Ok(report) = swept else { return };
    for (work, rows) in [
        (Swept::Lapsed, report.lapsed),
        (Swept::Expired, report.expired),
        (Swept::Expiring, report.expiring),
        (Swept::Forgotten, report.forgotten),
        (Swept::ForgottenDraws, report.forgotten_draws),
    ] {
        metrics.swept.add(work, rows);
    }
}

impl KeyPool {
    /// Ends everything that is due now, in bounded batches. Safe beside other replicas' sweeps.
    ///
    /// # Errors
    /// When the store cannot do it. What was ended so far stays so.
    pub async fn sweep(&self, policy: &SweepPolicy) -> Result<SweepReport, Error> {
        let (store, batch) = (&self.store, policy.batch);
        let (remembered, drawn) = (policy.tombstone_retention, policy.draw_retention);
        Ok(SweepReport {
            lapsed: store.sweep_lapsed(batch, self.policy.lapse).await?,
            expired: self.drain(|| store.sweep_expired(batch)).await?,
            expiring: self.drain(|| store.sweep_expiring(batch)).await?,
            forgotten: self.drain(|| store.forget_packages(batch, remembered)).await?,
            forgotten_draws: self.drain(|| store.forget_draws(batch, drawn)).await?
                + self.drain(|| store.forget_grants(batch, drawn)).await?,
        })
    }

    /// Repeats a pass until nothing more is due, and lets the owners it names hear of it.
    async fn drain<P>(&self, pass: impl Fn() -> P) -> Result<u64, Error>
    where
        P: Future<Output = Result<store::Swept, Error>>,
    {
        let mut total = 0;
        loop {
            let store::Swept { ended, owners, more } = pass().await?;
            total += ended;
            owners.iter().for_each(|owner| self.watch.touch(owner, true));
            if !more {
                return Ok(total);
            }
        }
    }

    /// Makes the event log's partitions of the next days, and drops those that are too old.
    ///
    /// # Errors
    /// When the store cannot do it.
    pub async fn tend_log(&self, policy: &SweepPolicy) -> Result<(), Error> {
        self.store.tend_event_partitions(PARTITIONS_AHEAD, policy.event_retention_days).await
    }

    /// Sweeps again and again until told to stop, and tends the log once an hour. What fails is
    /// logged and tried again at its next turn.
    pub async fn run_sweeper(&self, policy: SweepPolicy, stop: CancellationToken) {
        let rest = StdDuration::try_from(policy.interval).unwrap_or_default();
        // Replicas that start together do not sweep together.
        let mut pause = rest.mul_f64(rand::random());
        let mut tend_at = Instant::now();
        while stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
            pause = rest;
            let began = Instant::now();
            let swept = self.sweep(&policy).await;
            measure(&swept, began.elapsed());
            match swept {
                Ok(report) if report == SweepReport::default() => {}
                Ok(report) => tracing::info!(?report, "swept"),
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "the sweep failed");
                }
            }
            if Instant::now() < tend_at {
                continue;
            }
            // Whatever it meets: sweeps go on, and it does not make writers wait at every turn.
            tend_at = Instant::now() + TEND_INTERVAL;
            if let Err(error) = self.tend_log(&policy).await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the partitions of the log were not tended"
                );
            }
        }
    }
}
