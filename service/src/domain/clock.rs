//! Where the time comes from.
//!
//! In production the database's clock decides about reservations and lifetimes, so that replicas
//! whose clocks differ still agree. Tests impose a time of their own on both.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use time::{Duration, OffsetDateTime};

/// A source of the current time.
pub trait Clock: fmt::Debug + Send + Sync {
    /// The time by this process.
    fn now(&self) -> OffsetDateTime;

    /// The time that the store's statements are to use; `None` leaves it to the database.
    fn imposed(&self) -> Option<OffsetDateTime>;
}

/// The operating system's clock here, the database's own clock in statements.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods)] // the one place that reads the clock
    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }

    fn imposed(&self) -> Option<OffsetDateTime> {
        None
    }
}

/// A clock that stands still until a test moves it. Clones share the time.
#[derive(Debug, Clone)]
pub struct ManualClock(Arc<Mutex<OffsetDateTime>>);

impl ManualClock {
    /// A clock that shows `now`, cut to the microseconds that Postgres keeps.
    pub fn at(now: OffsetDateTime) -> Self {
        Self(Arc::new(Mutex::new(now - Duration::nanoseconds(i64::from(now.nanosecond() % 1000)))))
    }

    /// Moves the clock on.
    pub fn advance(&self, by: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) += by;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> OffsetDateTime {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn imposed(&self) -> Option<OffsetDateTime> {
        Some(self.now())
    }
}
