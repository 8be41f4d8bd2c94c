//! The pool on its own: what makes it refresh, and when.

use std::{pin::Pin, time::Duration};

use futures_util::{Stream, StreamExt as _};
use openmls::prelude::{OpenMlsProvider, OpenMlsRand as _};
use openmls_traits::signatures::Signer;
use tokio::{sync::oneshot, task::JoinHandle, time::Instant};

use super::{Inner, OwnPool, PoolError};
use crate::{Error, v1};

/// Welcomes within this time after the first are one occasion.
const WELCOME_DELAY: Duration = Duration::from_secs(1);
/// The server's advice when to refill is followed up to this delay.
const MAX_REFILL_DELAY: Duration = Duration::from_secs(60 * 60);
/// After a failure: up to this, doubled with each further one, up to the maximum.
const FIRST_BACK_OFF: Duration = Duration::from_secs(1);
const MAX_BACK_OFF: Duration = Duration::from_secs(5 * 60);
/// A watch that lived this long did not fail: the server ends each from time to time.
const LONG_LIVED: Duration = Duration::from_secs(60);

/// A pool that keeps itself, until this is dropped.
#[derive(Debug)]
#[must_use = "the pool keeps itself as long as this is held"]
pub struct Running {
    _stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Running {
    /// Stops it and returns once nothing of it runs any more: a refresh that has begun goes on to
    /// its end.
    pub async fn stop(self) {
        let Self { _stop, task } = self;
        drop(_stop);
        // It does not panic, nor does anyone abort it; either would leave nothing that runs.
        let _ = task.await;
    }
}

impl<P, S> OwnPool<P, S>
where
    P: OpenMlsProvider + Send + 'static,
    S: Signer + Send + Sync + 'static,
{
    /// Refreshes now, then on a timer ([`PoolOptions::interval`](crate::PoolOptions::interval)),
    /// when the server says that the pool runs low or that its last resort package was issued,
    /// and [after each Welcome](OwnPool::after_welcome), until what is returned is dropped.
    ///
    /// What fails is repeated, with delays that grow up to five minutes, and is told by
    /// [`OwnPool::health`]. Nothing that happens in it panics here.
    ///
    /// # Errors
    /// [`PoolError::NoRuntime`] outside of a Tokio runtime.
    pub fn run(&self) -> Result<Running, PoolError> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| PoolError::NoRuntime)?;
        let (stop, mut stopped) = oneshot::channel();
        let pool = self.clone();
        let task = runtime.spawn(async move {
            let mut keeper = Keeper::new(pool);
            loop {
                tokio::select! {
                    biased;
                    _ = &mut stopped => break,
                    occasion = keeper.next() => if occasion == Occasion::Refresh {
                        keeper.refresh().await;
                    },
                }
            }
        });
        Ok(Running { _stop: stop, task })
    }
}

type Statuses = Pin<Box<dyn Stream<Item = Result<v1::PoolStatus, Error>> + Send>>;

#[derive(PartialEq, Eq)]
enum Occasion {
    Refresh,
    Other,
}

struct Keeper<P, S> {
    pool: OwnPool<P, S>,
    refresh_at: Instant,
    refresh_failures: u32,
    watch: Option<Statuses>,
    /// When the watch was opened, or else when to open the next.
    watch_at: Instant,
    watch_failures: u32,
}

impl<P, S> Keeper<P, S>
where
    P: OpenMlsProvider + Send + 'static,
    S: Signer + Send + Sync + 'static,
{
    fn new(pool: OwnPool<P, S>) -> Self {
        let now = Instant::now();
        Self {
            pool,
            refresh_at: now,
            refresh_failures: 0,
            watch: None,
            watch_at: now,
            watch_failures: 0,
        }
    }

    /// Waits for whatever comes first. It may be dropped at any time, and nothing is lost.
    async fn next(&mut self) -> Occasion {
        let inner = &self.pool.inner;
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(self.refresh_at) => return Occasion::Refresh,
            () = inner.nudge.notified() => self.refresh_within(WELCOME_DELAY),
            status = next_status(&mut self.watch), if self.watch.is_some() => {
                self.heard(status);
            }
            () = tokio::time::sleep_until(self.watch_at), if self.watch.is_none() => {
                self.open().await;
            }
        }
        Occasion::Other
    }

    async fn refresh(&mut self) {
        let refreshed = self.pool.refresh().await;
        let delay = match &refreshed {
            Ok(_) => {
                self.refresh_failures = 0;
                let interval = self.pool.inner.options.interval;
                interval.mul_f64(0.9 + 0.2 * self.pool.inner.random())
            }
            Err(error) => {
                self.refresh_failures = self.refresh_failures.saturating_add(1);
                let retry_after = match error {
                    PoolError::Service(error) => error.retry_after(),
                    _ => None,
                };
                self.back_off(self.refresh_failures).max(retry_after.unwrap_or_default())
            }
        };
        self.refresh_at = Instant::now() + delay;
    }

    fn refresh_within(&mut self, delay: Duration) {
        self.refresh_at = self.refresh_at.min(Instant::now() + delay);
    }

    async fn open(&mut self) {
        match self.pool.inner.client.watch_pool_status().await {
            Ok(statuses) => {
                self.watch = Some(Box::pin(statuses));
                self.watch_at = Instant::now();
            }
            Err(_) => self.watch_later(),
        }
    }

    /// The next stream begins with how things are then.
    fn watch_later(&mut self) {
        let lived = self.watch.take().is_some() && self.watch_at.elapsed() >= LONG_LIVED;
        self.watch_failures = if lived { 1 } else { self.watch_failures.saturating_add(1) };
        self.watch_at = Instant::now() + self.back_off(self.watch_failures);
    }

    fn heard(&mut self, status: Option<Result<v1::PoolStatus, Error>>) {
        let Some(Ok(status)) = status else { return self.watch_later() };
        let inner = &self.pool.inner;
        if inner.needs_refresh(&status) && self.refresh_failures == 0 {
            let advised = status.refill_after.and_then(|delay| Duration::try_from(delay).ok());
            self.refresh_within(advised.unwrap_or_default().min(MAX_REFILL_DELAY));
        }
        self.pool.inner.health.send_modify(|health| health.status = Some(status));
    }

    /// A random delay up to one that doubles with each failure ("full jitter").
    fn back_off(&self, failures: u32) -> Duration {
        let doubled = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        let most = FIRST_BACK_OFF.saturating_mul(doubled).min(MAX_BACK_OFF);
        most.mul_f64(self.pool.inner.random())
    }
}

impl<P, S> Inner<P, S>
where
    P: OpenMlsProvider + Send + 'static,
    S: Send + Sync + 'static,
{
    fn needs_refresh(&self, status: &v1::PoolStatus) -> bool {
        status.cipher_suites.is_empty()
            || status.cipher_suites.iter().any(|suite| {
                suite.available <= self.options.low_watermark
                    || suite.available <= suite.low_watermark
                    || suite.expiring_soon > 0
                    || self.options.last_resort
                        && suite.last_resort.as_ref().is_none_or(|it| it.times_issued > 0)
            })
    }

    /// From 0 up to 1.
    fn random(&self) -> f64 {
        let random = self.with_provider(|provider| provider.rand().random_array::<4>());
        // Without randomness no package can be made either: a refresh reports it.
        random.map_or(0.5, |bytes| f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX))
    }
}

async fn next_status(statuses: &mut Option<Statuses>) -> Option<Result<v1::PoolStatus, Error>> {
    match statuses {
        Some(statuses) => statuses.next().await,
        None => std::future::pending().await,
    }
}
