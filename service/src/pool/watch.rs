//! Owners hear how their pools stand, whatever replica the event happened on.
//!
//! A call that leaves a pool near its low watermark only notes the pool's name in memory. A
//! background task looks at the noted pools together, and tells all replicas of those that are
//! low. Each replica wakes the streams it has of such a pool, and each stream reads the state
//! anew when its reader is ready for it: a slow reader gets the newest state, and no queue grows.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{Stream, stream};
use tokio::{
    sync::{Notify, Semaphore},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::KeyPool;
use crate::{
    domain::{
        error::Error,
        ids::{ClientDigest, ClientKey},
        policy::PoolPolicy,
        pool::PoolStatus,
    },
    metrics::{Present, RateLimit, metrics},
    store::{ReserveOutcome, Store},
};

/// A pool is looked at when a Reserve leaves it this near its low watermark: more Reserves than
/// that are not under way on one pool at once.
const MARGIN: u32 = 8;
/// Noted pools are looked at together after this time.
const GATHER: Duration = Duration::from_millis(50);
/// How many noted pools one statement looks at.
const TOLD_AT_ONCE: usize = 1000;
/// How many pools may be noted. More than that would have to change within [`GATHER`].
const MAX_NOTED: usize = 100_000;
/// How many streams read the state of their pools at once, so that waking all of them leaves
/// connections for calls.
const READERS: usize = 2;
/// The rest after the database failed.
const RETRY: Duration = Duration::from_secs(1);
/// A connection that listens is asked whether it lives after this long without a word.
const SILENCE: Duration = Duration::from_secs(15);

/// Bounds of the streams.
#[derive(Debug, Clone, Copy)]
pub struct WatchLimits {
    /// How many streams one client may hold on this replica.
    pub per_client: usize,
    /// A stream ends after about this time, so that a rollout and the balancing of load reach it.
    pub max_age: Duration,
}

/// The streams of this replica, and the pools that are to be looked at.
#[derive(Debug)]
pub(super) struct Hub {
    streams: Mutex<HashMap<ClientDigest, Vec<Arc<Notify>>>>,
    noted: Mutex<HashMap<ClientKey, bool>>,
    anything_noted: Notify,
    readers: Semaphore,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            streams: Mutex::default(),
            noted: Mutex::default(),
            anything_noted: Notify::new(),
            readers: Semaphore::new(READERS),
        }
    }
}

/// A panic elsewhere while the lock was held leaves the map whole: each change is one call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// Notes a pool: its owner is told when it is low, or `anyway`.
    pub(super) fn touch(&self, owner: &ClientKey, anyway: bool) {
        let mut noted = lock(&self.noted);
        if let Some(noted) = noted.get_mut(owner) {
            *noted |= anyway;
        } else if noted.len() < MAX_NOTED {
            noted.insert(owner.clone(), anyway);
            self.anything_noted.notify_one();
        }
    }

    /// Notes the pools that a Reserve may have left low.
    pub(super) fn touch_all<'a>(
        &self,
        policy: &PoolPolicy,
        outcomes: impl Iterator<Item = (&'a ClientKey, &'a ReserveOutcome)>,
    ) {
        let near = policy.low_watermark.saturating_add(MARGIN);
        for (owner, outcome) in outcomes {
            match outcome {
                ReserveOutcome::Reserved(got) if got.locator.is_last_resort() => {
                    self.touch(owner, true);
                }
                ReserveOutcome::Reserved(got) if got.left.is_some_and(|left| left <= near) => {
                    self.touch(owner, false);
                }
                ReserveOutcome::Exhausted => self.touch(owner, false),
                _ => {}
            }
        }
    }

    fn subscribe(self: &Arc<Self>, owner: &ClientKey, most: usize) -> Result<Subscription, Error> {
        let digest = owner.digest();
        let mut streams = lock(&self.streams);
        let own = streams.entry(digest).or_default();
        if own.len() >= most {
            metrics().rate_limited.count(RateLimit::Streams);
            return Err(Error::rate_limited("streams of one client"));
        }
        let woken = Arc::new(Notify::new());
        own.push(woken.clone());
        let _counted = metrics().watch_streams.begin();
        Ok(Subscription { hub: self.clone(), digest, woken, _counted })
    }

    fn wake(&self, owner: ClientDigest) {
        lock(&self.streams).get(&owner).into_iter().flatten().for_each(|s| s.notify_one());
    }

    fn wake_all(&self) {
        lock(&self.streams).values().flatten().for_each(|stream| stream.notify_one());
    }

    /// The pools noted so far, some of them; the others stay.
    fn take_noted(&self) -> Vec<(ClientKey, bool)> {
        let mut noted = lock(&self.noted);
        let some: Vec<ClientKey> = noted.keys().take(TOLD_AT_ONCE).cloned().collect();
        let taken = some.iter().filter_map(|owner| noted.remove_entry(owner)).collect();
        if !noted.is_empty() {
            self.anything_noted.notify_one();
        }
        taken
    }

    /// Looks at noted pools and tells all replicas of those that are low.
    async fn tell(&self, store: &Store, policy: &PoolPolicy) {
        self.anything_noted.notified().await;
        tokio::time::sleep(GATHER).await;
        let noted = self.take_noted();
        match store.tell(&noted, policy.lapse, policy.low_watermark).await {
            Ok(told) => metrics().low_pool_notices.increment(told),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot tell of low pools"
                );
                noted.iter().for_each(|(owner, anyway)| self.touch(owner, *anyway));
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// Hears what the replicas tell, until the connection fails.
    async fn hear(&self, store: &Store) -> Result<(), Error> {
        let mut listener = store.listen(SILENCE).await?;
        // Whatever was told before is lost.
        self.wake_all();
        loop {
            self.wake(listener.next().await?);
        }
    }
}

/// A stream's place among those to be woken.
#[derive(Debug)]
struct Subscription {
    hub: Arc<Hub>,
    digest: ClientDigest,
    woken: Arc<Notify>,
    _counted: Present,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut streams = lock(&self.hub.streams);
        if let Some(own) = streams.get_mut(&self.digest) {
            own.retain(|stream| !Arc::ptr_eq(stream, &self.woken));
            if own.is_empty() {
                streams.remove(&self.digest);
            }
        }
    }
}

/// One stream.
struct Watch {
    pool: KeyPool,
    owner: ClientKey,
    subscription: Subscription,
    /// What was sent last, to send nothing twice.
    sent: Option<u64>,
    ends_at: Instant,
    /// Whether that is the caller's deadline.
    is_overdue_then: bool,
    stop: CancellationToken,
}

impl Watch {
    /// The next state to send; none when the stream has lived long enough.
    async fn next(&mut self) -> Option<Result<PoolStatus, Error>> {
        let (ends_at, stop) = (self.ends_at, self.stop.clone());
        tokio::select! {
            next = self.changed() => Some(next),
            () = tokio::time::sleep_until(ends_at) => {
                self.is_overdue_then.then_some(Err(Error::DeadlineExceeded))
            }
            () = stop.cancelled() => Some(Err(Error::ShuttingDown)),
        }
    }

    /// The first state, or the next one that differs from what was sent. May be dropped at any
    /// await: `sent` is empty until there was a first state.
    async fn changed(&mut self) -> Result<PoolStatus, Error> {
        loop {
            if self.sent.is_some() {
                self.subscription.woken.notified().await;
            }
            let status = match self.read().await {
                Ok(status) => status,
                // Were each stream to end, all owners would come at once when the database is
                // back.
                Err(Error::Overloaded | Error::StoreUnavailable(_)) if self.sent.is_some() => {
                    self.subscription.woken.notify_one();
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let seen = fingerprint(&status);
            if self.sent.replace(seen) != Some(seen) {
                metrics().watch_statuses.increment(1);
                return Ok(status);
            }
        }
    }

    async fn read(&self) -> Result<PoolStatus, Error> {
        // Never closed.
        let _turn = self.subscription.hub.readers.acquire().await;
        self.pool.status(&self.owner).await
    }
}

/// The same for two states that differ in nothing but the jitter of their advice.
fn fingerprint(status: &PoolStatus) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&status.cipher_suites, status.health, status.last_upload).hash(&mut hasher);
    hasher.finish()
}

impl KeyPool {
    /// How the pool of `owner` stands: now, and again whenever it is low and has changed, was
    /// issued its last resort package, or has packages that expire soon. At least once, the
    /// newest state only. Ends by itself after about `limits.max_age`; with
    /// [`Error::DeadlineExceeded`] after `deadline`, if that is sooner; with
    /// [`Error::ShuttingDown`] when told to stop; with an error when the first state cannot be
    /// read. A reader that opens another stream then has missed nothing.
    ///
    /// # Errors
    /// [`Error::RateLimited`] when the client holds too many streams.
    pub fn watch(
        &self,
        owner: &ClientKey,
        limits: WatchLimits,
        deadline: Option<Duration>,
        stop: CancellationToken,
    ) -> Result<impl Stream<Item = Result<PoolStatus, Error>> + Send + use<>, Error> {
        let subscription = self.watch.subscribe(owner, limits.per_client)?;
        // Streams that were opened together do not end together.
        let age = limits.max_age.mul_f64(rand::random_range(0.9..1.1));
        let deadline = deadline.filter(|deadline| *deadline < age);
        let watch = Watch {
            pool: self.clone(),
            owner: owner.clone(),
            subscription,
            sent: None,
            ends_at: Instant::now() + deadline.unwrap_or(age),
            is_overdue_then: deadline.is_some(),
            stop,
        };
        Ok(stream::unfold(Some(watch), async |watch| {
            let mut watch = watch?;
            let next = watch.next().await?;
            let more = next.is_ok().then_some(watch);
            Some((next, more))
        }))
    }

    /// Tells of low pools and hears of them, until told to stop.
    pub async fn run_watch(&self, stop: CancellationToken) {
        let telling = async {
            loop {
                self.watch.tell(&self.store, &self.policy).await;
            }
        };
        let hearing = async {
            loop {
                if let Err(error) = self.watch.hear(&self.store).await {
                    let error: Box<dyn std::error::Error + Send + Sync> = error.into();
                    tracing::warn!(error, "cannot hear of low pools");
                }
                tokio::time::sleep(RETRY).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            never = async { tokio::join!(telling, hearing) } => match never {},
        }
    }
}
