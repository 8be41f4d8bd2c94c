use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::PoolError;
use crate::clock;

const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How many packages make a pool full, as long as nobody says otherwise.
pub(super) const DEFAULT_TARGET: u32 = 32;

/// How an [`OwnPool`](crate::OwnPool) keeps itself. The numbers are for each cipher suite.
#[derive(Clone)]
#[must_use]
pub struct PoolOptions {
    pub(super) target: Option<u32>,
    pub(super) low_watermark: u32,
    pub(super) hard_cap: u32,
    pub(super) max_held: usize,
    pub(super) lifetime: Duration,
    pub(super) last_resort: bool,
    pub(super) welcome_grace: Duration,
    pub(super) expiry_grace: Duration,
    pub(super) interval: Duration,
    clock: Arc<dyn Fn() -> SystemTime + Send + Sync>,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self {
            target: None,
            low_watermark: 8,
            hard_cap: 64,
            max_held: 1_000,
            lifetime: 14 * DAY,
            last_resort: true,
            welcome_grace: DAY,
            expiry_grace: HOUR,
            interval: HOUR,
            clock: Arc::new(clock::now),
        }
    }
}

impl PoolOptions {
    /// How many one-time packages a refresh fills the pool up to. Unless set: as many as the
    /// server recommends, and 32 before it does.
    pub fn target(mut self, packages: u32) -> Self {
        self.target = Some(packages);
        self
    }

    /// At this many one-time packages or fewer, [`OwnPool::run`](crate::OwnPool::run) refreshes
    /// without waiting for its timer: 8 unless set.
    pub fn low_watermark(mut self, packages: u32) -> Self {
        self.low_watermark = packages;
        self
    }

    /// More one-time packages than this are never on the server, reserved ones included: 64
    /// unless set. The server's own cap holds too.
    pub fn hard_cap(mut self, packages: u32) -> Self {
        self.hard_cap = packages;
        self
    }

    /// More private keys than this are never on the device: 1,000 unless set. What was issued
    /// counts until its Welcome comes or it expires; a device that is near this number is being
    /// drained, and leaves it to its last resort package.
    pub fn max_held(mut self, packages: usize) -> Self {
        self.max_held = packages;
        self
    }

    /// How long a package is valid (RFC 9420, section 7.2): 14 days unless set.
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// Whether to keep a last resort package (RFC 9420, section 16.8): yes unless set.
    pub fn last_resort(mut self, keep: bool) -> Self {
        self.last_resort = keep;
        self
    }

    /// How long the private keys of a package stay after it was withdrawn, since a Welcome that
    /// uses it may be on its way: a day unless set. This is so for packages of an earlier
    /// credential, and for a last resort package that another one replaced.
    pub fn welcome_grace(mut self, grace: Duration) -> Self {
        self.welcome_grace = grace;
        self
    }

    /// How long the private keys of a package stay after its lifetime: an hour unless set, for
    /// clocks that differ. Whoever was invited shortly before joins only within this time, so
    /// fetch the waiting Welcomes before the first refresh.
    pub fn expiry_grace(mut self, grace: Duration) -> Self {
        self.expiry_grace = grace;
        self
    }

    /// How often [`OwnPool::run`](crate::OwnPool::run) refreshes when nothing happens, give or
    /// take a tenth at random: every hour unless set.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Where the time comes from: the system's clock unless set. For tests.
    pub fn clock(mut self, now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.clock = Arc::new(now);
        self
    }

    /// Seconds since 1970.
    pub(super) fn now(&self) -> u64 {
        clock::unix_seconds((self.clock)())
    }

    pub(super) fn check(&self) -> Result<(), PoolError> {
        let target = self.target.unwrap_or(DEFAULT_TARGET);
        if target == 0 || self.target.is_some_and(|target| target > self.hard_cap) {
            return Err(PoolError::Options("the target must be from 1 to the hard cap"));
        }
        if self.low_watermark >= target {
            return Err(PoolError::Options("the low watermark must be below the target"));
        }
        if self.lifetime < HOUR || self.lifetime > 400 * DAY {
            return Err(PoolError::Options("the lifetime must be from an hour to 400 days"));
        }
        if self.interval.is_zero() {
            return Err(PoolError::Options("the interval must be above zero"));
        }
        Ok(())
    }
}

impl fmt::Debug for PoolOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolOptions")
            .field("target", &self.target)
            .field("low_watermark", &self.low_watermark)
            .field("hard_cap", &self.hard_cap)
            .field("max_held", &self.max_held)
            .field("lifetime", &self.lifetime)
            .field("last_resort", &self.last_resort)
            .field("welcome_grace", &self.welcome_grace)
            .field("expiry_grace", &self.expiry_grace)
            .field("interval", &self.interval)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_that_are_documented() {
        let options = PoolOptions::default();
        assert_eq!((options.target, DEFAULT_TARGET), (None, 32));
        assert_eq!((options.low_watermark, options.hard_cap, options.max_held), (8, 64, 1_000));
        assert_eq!((options.lifetime, options.interval), (14 * DAY, HOUR));
        assert_eq!((options.welcome_grace, options.expiry_grace), (DAY, HOUR));
        assert!(options.last_resort && options.check().is_ok());
    }
}
