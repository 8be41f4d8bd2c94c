//! The limits of a pool as values and pure functions. `config` fills them in.

use time::{Duration, OffsetDateTime};

use super::pool::{CipherSuiteStatus, Health, PoolStatus, SuiteCounts};

/// A caller who has not drawn from a pool for this long is a newcomer to it again.
pub const NEWCOMER_AFTER: Duration = Duration::hours(24);

/// What becomes of a package whose reservation lapsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LapsePolicy {
    /// It goes back to the pool, to be issued after those that were never issued.
    Return,
    /// It is burned: never issued again, but a late Spend is still recorded.
    Burn,
}

/// How much of one pool a caller may have, so that single use survives those who drain pools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FairShare {
    /// How many reservations of one pool a caller may hold at once.
    pub max_open_reservations: u32,
    /// So many available packages of a cipher suite, the low watermark, go to newcomers only.
    pub spared_for_newcomers: u32,
    /// A caller who has not drawn a one-time package from a pool for this long is a newcomer.
    pub newcomer_after: Duration,
}

/// The limits of every pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolPolicy {
    /// At this many available packages of a cipher suite, or fewer, the pool is low.
    pub low_watermark: u32,
    /// How many available packages of a cipher suite to aim for.
    pub target: u32,
    /// At most this many live packages of a cipher suite are kept.
    pub hard_cap: u32,
    /// A package with less lifetime left is not issued.
    pub min_remaining_lifetime: Duration,
    /// How long a reservation lives when the request does not say.
    pub default_ttl: Duration,
    /// The longest a reservation may live.
    pub max_ttl: Duration,
    /// What becomes of a package whose reservation lapsed.
    pub lapse: LapsePolicy,
    /// A recommended upload is spread over this time.
    pub refill_spread: Duration,
    /// Whether callers are held to their fair share.
    pub fair_share: bool,
    /// How many reservations of one pool a caller may hold at once.
    pub max_open_reservations_per_pool: u32,
}

impl Default for PoolPolicy {
    fn default() -> Self {
        Self {
            low_watermark: 8,
            target: 32,
            hard_cap: 64,
            min_remaining_lifetime: Duration::hours(1),
            default_ttl: Duration::seconds(60),
            max_ttl: Duration::minutes(10),
            lapse: LapsePolicy::Return,
            refill_spread: Duration::minutes(5),
            fair_share: true,
            max_open_reservations_per_pool: 2,
        }
    }
}

impl PoolPolicy {
    /// How long a reservation lives for which `wanted` was asked.
    pub fn ttl(&self, wanted: Option<Duration>) -> Duration {
        wanted.unwrap_or(self.default_ttl).min(self.max_ttl)
    }

    /// What fair share means for a Reserve; none when it is off.
    pub fn fair_share(&self) -> Option<FairShare> {
        self.fair_share.then_some(FairShare {
            max_open_reservations: self.max_open_reservations_per_pool,
            spared_for_newcomers: self.low_watermark,
            newcomer_after: NEWCOMER_AFTER,
        })
    }

    /// How a cipher suite with these many available packages stands.
    pub fn suite_health(&self, available: u32) -> Health {
        match available {
            0 => Health::Exhausted,
            few if few <= self.low_watermark => Health::Low,
            _ => Health::Healthy,
        }
    }

    /// What the owner should do about one cipher suite: fill up to the target once anything is
    /// missing, without going over the hard cap.
    pub fn advise(&self, counts: SuiteCounts) -> CipherSuiteStatus {
        let missing = self.target.saturating_sub(counts.available);
        let room = self.hard_cap.saturating_sub(counts.available.saturating_add(counts.reserved));
        CipherSuiteStatus {
            counts,
            recommended_upload: missing.min(room),
            low_watermark: self.low_watermark,
            target: self.target,
            hard_cap: self.hard_cap,
        }
    }

    /// How a pool with these counts stands. `jitter` is a random number from 0 to 1 that spreads
    /// the refills of a fleet; an exhausted pool does not wait.
    pub fn status(
        &self,
        last_upload: Option<OffsetDateTime>,
        suites: Vec<SuiteCounts>,
        jitter: f64,
    ) -> PoolStatus {
        let health = suites.iter().map(|counts| self.suite_health(counts.available)).max();
        let health = health.unwrap_or(Health::Exhausted);
        let cipher_suites: Vec<_> = suites.into_iter().map(|counts| self.advise(counts)).collect();
        let idle = cipher_suites.iter().all(|suite| suite.recommended_upload == 0);
        let refill_after = if idle || health == Health::Exhausted {
            Duration::ZERO
        } else {
            self.refill_spread * jitter.clamp(0.0, 1.0)
        };
        PoolStatus { cipher_suites, health, last_upload, refill_after }
    }
}
