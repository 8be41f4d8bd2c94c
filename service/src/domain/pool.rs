//! A pool and how it stands.

use time::{Duration, OffsetDateTime};

use super::ids::{CipherSuite, KeyPackageRef};

/// How a pool stands, as its worst cipher suite does. Ordered from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Health {
    /// Every cipher suite is above its low watermark.
    Healthy,
    /// A cipher suite is at or below its low watermark.
    Low,
    /// A cipher suite has nothing available, or nothing was ever published.
    Exhausted,
}

/// The pool of one client, and what its owner should do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PoolStatus {
    /// One entry for each cipher suite, ascending.
    pub cipher_suites: Vec<CipherSuiteStatus>,
    /// The worst of them.
    pub health: Health,
    /// When the client last uploaded.
    pub last_upload: Option<OffsetDateTime>,
    /// How long to wait before the recommended upload.
    pub refill_after: Duration,
}

/// What the store counts for one cipher suite of a pool. Counts are of one-time packages.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SuiteCounts {
    /// The cipher suite.
    pub cipher_suite: CipherSuite,
    /// Ready to be reserved.
    pub available: u32,
    /// Held by a live reservation.
    pub reserved: u32,
    /// Spent and remembered.
    pub spent: u64,
    /// Reached not_after unspent, since the pool began.
    pub expired: u64,
    /// Available ones that expire within 48 hours.
    pub expiring_soon: u32,
    /// The last resort package.
    pub last_resort: Option<LastResortStatus>,
}

/// The counts of one cipher suite, and what its owner should do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CipherSuiteStatus {
    /// The counts.
    pub counts: SuiteCounts,
    /// How many packages to upload now.
    pub recommended_upload: u32,
    /// At this many available packages or fewer the pool is low.
    pub low_watermark: u32,
    /// How many available packages to aim for.
    pub target: u32,
    /// At most this many live packages are kept.
    pub hard_cap: u32,
}

/// The last resort package of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LastResortStatus {
    /// Its ref.
    pub key_package_ref: KeyPackageRef,
    /// The end of its lifetime.
    pub not_after: OffsetDateTime,
    /// How often it was handed out.
    pub times_issued: u64,
}
