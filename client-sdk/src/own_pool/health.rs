use std::sync::Arc;

use super::{PoolError, Refreshed, RefusedPackage};
use crate::v1;

/// How a pool does, for the application to show or act on.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct PoolHealth {
    /// The pool as the server last told it; `None` before the first answer.
    pub status: Option<v1::PoolStatus>,
    /// When a refresh last succeeded, in seconds since 1970.
    pub refreshed_at: Option<u64>,
    /// What that refresh had refused. As long as it is not empty, the identity, its capabilities
    /// or the device's clock do not suit the server.
    pub refused: Vec<RefusedPackage>,
    /// Why refreshes fail at present; `None` when the last one succeeded.
    pub failure: Option<Failure>,
}

/// Refreshes that fail one after another.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Failure {
    /// How many in a row.
    pub attempts: u32,
    /// When the first of them did, in seconds since 1970.
    pub since: u64,
    /// Why the last of them did.
    pub cause: Arc<str>,
}

impl PoolHealth {
    /// The worst of the cipher suites; unspecified before the server's first answer.
    pub fn level(&self) -> v1::Health {
        self.status.as_ref().map_or(v1::Health::Unspecified, v1::PoolStatus::health)
    }

    pub(super) fn record(&mut self, refreshed: &Result<Refreshed, PoolError>, now: u64) {
        match refreshed {
            Ok(refreshed) => {
                self.status = Some(refreshed.status.clone());
                self.refreshed_at = Some(now);
                self.refused.clone_from(&refreshed.refused);
                self.failure = None;
            }
            Err(error) => {
                let (attempts, since) =
                    self.failure.as_ref().map_or((0, now), |f| (f.attempts, f.since));
                self.failure = Some(Failure {
                    attempts: attempts.saturating_add(1),
                    since,
                    cause: error.to_string().into(),
                });
            }
        }
    }
}
