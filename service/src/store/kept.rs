//! Connections that go from one statement to the next.
//!
//! The pool asks the database about each connection that comes back, and hands out the one that
//! has rested longest. Where one statement follows another, both would cost as much as a small
//! statement: the question is one more way there and back, and the connection that has just worked
//! has its memory at hand.

use std::{
    future::Future,
    ops::{Deref, DerefMut},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sqlx::{Postgres, pool::PoolConnection};
use tokio::time::Instant;

use super::outage::Outage;

/// How long a connection stays away from the pool at most, which knows when it has had its time.
const AWAY: Duration = Duration::from_secs(1);

/// A connection of the pool. When it is dropped, the pool looks at it; with [`Kept::keep`] it does
/// not.
#[derive(Debug)]
pub(super) struct Lent {
    connection: PoolConnection<Postgres>,
    /// Since before it was taken from the pool.
    since: Instant,
}

impl Lent {
    fn may_stay(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) < AWAY
    }
}

impl Deref for Lent {
    type Target = PoolConnection<Postgres>;

    fn deref(&self) -> &Self::Target {
        &self.connection
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.connection
    }
}

/// The connections that wait for the next statement.
#[derive(Debug)]
pub(super) struct Kept(Mutex<State>);

#[derive(Debug)]
struct State {
    /// The one that worked last is the last one.
    connections: Vec<Lent>,
    /// How many may be here; the others are left to whoever asks the pool itself.
    most: usize,
    /// How many wait for the pool: they come before the next statement of those that have had one.
    waiting: usize,
}

impl Kept {
    /// Of so many connections that there may be, half are kept.
    pub(super) fn of(connections: u32) -> Self {
        let most = usize::try_from(connections / 2).unwrap_or(usize::MAX);
        Self(Mutex::new(State { connections: Vec::new(), most, waiting: 0 }))
    }

    /// One that was kept or, when there is none, what `acquire` takes from the pool.
    pub(super) async fn or_from_pool(
        &self,
        outage: &Outage,
        acquire: impl Future<Output = Result<PoolConnection<Postgres>, sqlx::Error>>,
    ) -> Result<Lent, sqlx::Error> {
        let _waits = match self.take(outage) {
            Ok(kept) => return Ok(kept),
            Err(waits) => waits,
        };
        let since = Instant::now();
        Ok(Lent { connection: acquire.await?, since })
    }

    /// For the next statement: a connection whose last one has been answered.
    pub(super) fn keep(&self, connection: Lent) {
        let mut state = self.lock();
        let room = state.waiting == 0 && state.connections.len() < state.most;
        if room && connection.may_stay(Instant::now()) {
            state.connections.push(connection);
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.lock().connections.len()
    }

    /// Gives all back to the pool, and keeps none any more.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.most = 0;
        state.connections.clear();
    }

    fn take(&self, outage: &Outage) -> Result<Lent, Waits<'_>> {
        let now = Instant::now();
        let mut state = self.lock();
        while let Some(kept) = state.connections.pop() {
            let age = now.saturating_duration_since(kept.since);
            if kept.may_stay(now) && !outage.outlived_by(age, now) {
                return Ok(kept);
            }
        }
        state.waiting += 1;
        Err(Waits(self))
    }

    /// Each change of the state is one call, so a panic elsewhere leaves it whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Kept {
    /// There may be no runtime any more in which the pool could look at them.
    fn drop(&mut self) {
        for kept in self.lock().connections.drain(..) {
            drop(kept.connection.detach());
        }
    }
}

/// Somebody who waits for the pool.
struct Waits<'a>(&'a Kept);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
    }
}
