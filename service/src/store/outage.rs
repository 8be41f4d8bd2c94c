//! What one connection learns of the database, for the others.

use std::{
    future::Future,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sqlx::{Connection as _, PgConnection};
use tokio::time::Instant;

/// How long a connection that was left in the middle of a statement gets to answer.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Whether the database is there, and which connections are from before it last was not.
#[derive(Debug, Clone, Default)]
pub(super) struct Outage {
    reachable: Arc<AtomicBool>,
    broke: Arc<Mutex<Option<Instant>>>,
}

impl Outage {
    /// Whether the database was there when last heard of.
    pub(super) fn is_reachable(&self) -> bool {
        self.reachable.load(Ordering::Relaxed)
    }

    /// What was heard of it.
    pub(super) fn note(&self, reachable: bool) {
        self.reachable.store(reachable, Ordering::Relaxed);
    }

    /// A connection broke, or leads to a server that takes no writes any more: so it is with all
    /// that were made before now.
    pub(super) fn broke(&self, now: Instant) {
        *self.broke.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    /// Whether a connection of this age is from before the last outage. One outage would otherwise
    /// fail a statement for each of them.
    pub(super) fn outlived_by(&self, age: Duration, now: Instant) -> bool {
        let broke = *self.broke.lock().unwrap_or_else(PoisonError::into_inner);
        broke.is_some_and(|at| now.saturating_duration_since(at) < age)
    }

    /// Whether a connection that comes back may be used again. While the database is not there, one
    /// whose peer is silent would otherwise be waited for as long as TCP does: minutes.
    pub(super) fn may_return<'c>(
        &self,
        connection: &'c mut PgConnection,
    ) -> impl Future<Output = Result<bool, sqlx::Error>> + Send + use<'c> {
        let reachable = self.is_reachable();
        async move {
            if reachable {
                return Ok(true);
            }
            match tokio::time::timeout(LAST_WORDS, connection.ping()).await {
                Ok(answer) => answer.map(|()| true),
                Err(late) => Err(sqlx::Error::Io(late.into())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_from_before_an_outage_are_told_from_those_after() {
        let (outage, now) = (Outage::default(), Instant::now());
        assert!(!outage.outlived_by(Duration::from_secs(3600), now), "there was none");
        outage.broke(now);
        let later = now + Duration::from_secs(10);
        assert!(outage.outlived_by(Duration::from_secs(11), later));
        assert!(!outage.outlived_by(Duration::from_secs(9), later));
    }
}
