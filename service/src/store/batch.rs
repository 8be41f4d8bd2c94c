//! Calls that wait for the database go there together.
//!
//! What queues up while statements are in flight goes into the next one: when one of them is done or,
//! where a lane is free, once it is as much as they carry. A call that finds nothing in flight goes at
//! once. Nothing waits for a timer. A statement for many calls costs hardly more than one for a single
//! call, and one commit makes all of them durable.

use std::{
    collections::{HashSet, VecDeque},
    fmt,
    future::Future,
    hash::Hash,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use sqlx::{PgConnection, Postgres, pool::PoolConnection};
use tokio::sync::oneshot;

use super::{Store, is_the_end, lost_race};
use crate::{domain::error::Error, metrics::Batches};

/// How many rows one statement handles, or one call when that is more. What a single core of the
/// database does in some ten milliseconds: beyond that, calls wait longer and nothing is won.
const MAX_ROWS: usize = 128;
/// How many statements of one kind are in flight. One works while another one's commit is written,
/// and while the calls of another one are answered.
const LANES: usize = 2;
/// A statement that has not been answered for so long is slow: what comes then does not wait for it.
const SLOW: Duration = Duration::from_millis(20);
/// How often a batch that lost a race starts over before its calls go one by one.
const MAX_TRIES: u32 = 4;

/// What one call wants of a statement that serves many.
pub(super) trait Job: Send + Sync + Sized + fmt::Debug + 'static {
    /// What the call gets.
    type Answer: Send + fmt::Debug;
    /// What no two calls in one statement may both touch.
    type Claim: Hash + Eq;

    /// The statement's name in the metrics.
    const STATEMENT: &str;

    /// How many rows it is about.
    fn rows(&self) -> usize;

    /// Whether one statement can serve both.
    fn goes_with(&self, other: &Self) -> bool;

    /// What it touches and must not share with another one in its statement.
    fn claims(&self) -> impl Iterator<Item = Self::Claim>;

    /// Runs the statement for all of them: one answer for each.
    fn run(
        store: &Store,
        connection: &mut PgConnection,
        jobs: &[&Self],
    ) -> impl Future<Output = Result<Vec<Self::Answer>, sqlx::Error>> + Send;
}

/// The calls of one kind.
#[derive(Debug)]
pub(super) struct Batcher<J: Job>(Arc<Mutex<Queue<J>>>);

#[derive(Debug)]
struct Queue<J: Job> {
    waiting: VecDeque<Waiting<J>>,
    /// Lanes that are taken, and the calls of their statements.
    lanes: usize,
    in_flight: usize,
    /// When the last statement began.
    began: Instant,
    batches: Batches,
}

/// Where the answer to a call goes.
type Call<J> = oneshot::Sender<Result<<J as Job>::Answer, Arc<sqlx::Error>>>;

#[derive(Debug)]
struct Waiting<J: Job> {
    since: Instant,
    job: J,
    answer: Call<J>,
}

impl<J: Job> Default for Batcher<J> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Queue {
            waiting: VecDeque::new(),
            lanes: 0,
            in_flight: 0,
            began: Instant::now(),
            batches: Batches::new(J::STATEMENT),
        })))
    }
}

impl<J: Job> Clone for Batcher<J> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<J: Job> Batcher<J> {
    /// Does the job, together with others. A call that is dropped while it waits is never sent.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub(super) async fn call(&self, store: &Store, job: J) -> Result<J::Answer, Error> {
        let (answer, answered) = oneshot::channel();
        if self.lock().queue(Waiting { since: Instant::now(), job, answer }) {
            // A task of its own: the others do not depend on whether this call is dropped.
            tokio::spawn(self.clone().fly(store.clone()));
        }
        match answered.await {
            Ok(answer) => answer.map_err(|error| store.error(error)),
            // Its task ended without a word.
            Err(gone) => Err(Error::Internal(gone.into())),
        }
    }

    /// Runs what has queued up, again and again until nothing has.
    async fn fly(self, store: Store) {
        let mut lane = Lane { batcher: &self, calls: 0, free: false };
        loop {
            // First the connection, then the calls: until the very statement begins, a call can
            // be dropped, and others join.
            let connection = store.adder_connection().await;
            let Some(batch) = lane.next() else {
                if let Ok(unused) = connection {
                    store.kept.keep(unused);
                }
                return;
            };
            match connection {
                Ok(mut connection) => {
                    if answer(&store, &mut connection, batch).await {
                        store.kept.keep(connection);
                    }
                }
                Err(error) => fail::<J>(error, batch.into_iter().map(|waiting| waiting.answer)),
            }
            // Takes no connection for nothing.
            if lane.land() {
                return;
            }
        }
    }

    /// Each change of the queue is one call, so a panic elsewhere leaves it whole.
    fn lock(&self) -> MutexGuard<'_, Queue<J>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<J: Job> Queue<J> {
    /// Puts a call into the queue. Whether a lane was taken for it that was free.
    fn queue(&mut self, call: Waiting<J>) -> bool {
        self.waiting.push_back(call);
        let begins = self.lanes < LANES && self.is_due(self.lanes);
        self.lanes += usize::from(begins);
        begins
    }

    /// Whether what waits goes now, while so many lanes are taken by others: when there are none, or
    /// as many calls wait as are in flight. Or else the first few that come back from a large statement
    /// would be the next one, and many statements would be small. Nobody waits beside a statement that
    /// takes long.
    fn is_due(&self, others: usize) -> bool {
        let enough = self.waiting.len() >= self.in_flight || self.began.elapsed() > SLOW;
        !self.waiting.is_empty() && (others == 0 || enough)
    }

    /// The calls that go next, first come, first served; what may not go with them stays, in its
    /// order. What nobody waits for any more is forgotten.
    fn take(&mut self) -> Option<Vec<Waiting<J>>> {
        let mut batch: Vec<Waiting<J>> = Vec::new();
        let mut claimed = HashSet::new();
        let mut rows = 0;
        let mut later = VecDeque::new();
        while let Some(next) = self.waiting.pop_front() {
            if next.answer.is_closed() {
                continue;
            }
            if rows > 0 && rows + next.job.rows() > MAX_ROWS {
                later.push_back(next);
                break;
            }
            let alike = batch.first().is_none_or(|first| first.job.goes_with(&next.job));
            if !alike || next.job.claims().any(|claim| claimed.contains(&claim)) {
                later.push_back(next);
                continue;
            }
            claimed.extend(next.job.claims());
            rows += next.job.rows();
            batch.push(next);
        }
        later.append(&mut self.waiting);
        self.waiting = later;
        if batch.is_empty() {
            return None;
        }
        self.batches.begin(batch.iter().map(|call| call.since.elapsed()));
        Some(batch)
    }
}

/// One of the places for a statement in flight.
struct Lane<'a, J: Job> {
    batcher: &'a Batcher<J>,
    /// The calls of its statement.
    calls: usize,
    free: bool,
}

impl<J: Job> Lane<'_, J> {
    /// The next batch. With none the lane is free, in one step: a call that comes right after
    /// finds it so.
    fn next(&mut self) -> Option<Vec<Waiting<J>>> {
        let mut queue = self.batcher.lock();
        let batch = queue.take();
        match &batch {
            Some(batch) => {
                self.calls = batch.len();
                queue.in_flight += self.calls;
                queue.began = Instant::now();
            }
            None => self.free(&mut queue),
        }
        batch
    }

    /// Its statement is done. Whether nothing is due that it could take next: then it is free, in one
    /// step, too, and what waits is left to another lane.
    fn land(&mut self) -> bool {
        let mut queue = self.batcher.lock();
        queue.in_flight -= std::mem::take(&mut self.calls);
        if !queue.is_due(queue.lanes - 1) {
            self.free(&mut queue);
        }
        self.free
    }

    fn free(&mut self, queue: &mut Queue<J>) {
        queue.lanes -= 1;
        queue.in_flight -= std::mem::take(&mut self.calls);
        self.free = true;
    }
}

impl<J: Job> Drop for Lane<'_, J> {
    /// Also when a statement's answer made it panic. With no lane left nobody would serve who waits:
    /// these calls fail.
    fn drop(&mut self) {
        if self.free {
            return;
        }
        let mut queue = self.batcher.lock();
        self.free(&mut queue);
        if queue.lanes == 0 {
            queue.waiting.clear();
        }
    }
}

/// Runs the statement and hands out the answers. When the statement fails for a reason that may
/// lie in one of the calls, each goes alone, so that none suffers by another. Whether all went
/// well.
async fn answer<J: Job>(
    store: &Store,
    connection: &mut PoolConnection<Postgres>,
    batch: Vec<Waiting<J>>,
) -> bool {
    let (jobs, calls): (Vec<J>, Vec<_>) = batch.into_iter().map(|w| (w.job, w.answer)).unzip();
    let together: Vec<&J> = jobs.iter().collect();
    match run(store, connection, &together).await {
        // Nobody listens when the call was dropped: that is no concern of the others.
        Ok(answers) => {
            calls.into_iter().zip(answers).for_each(|(call, answer)| {
                let _ = call.send(Ok(answer));
            });
            return true;
        }
        Err(error)
            if jobs.len() > 1
                && matches!(error, sqlx::Error::Database(_))
                && !is_the_end(&error) =>
        {
            for (job, call) in jobs.iter().zip(calls) {
                match run(store, connection, &[job]).await {
                    Ok(mut answers) => drop(answers.pop().map(|answer| call.send(Ok(answer)))),
                    Err(error) => fail::<J>(error, [call]),
                }
            }
        }
        Err(error) => fail::<J>(error, calls),
    }
    false
}

fn fail<J: Job>(error: sqlx::Error, calls: impl IntoIterator<Item = Call<J>>) {
    let error = Arc::new(error);
    for call in calls {
        let _ = call.send(Err(error.clone()));
    }
}

/// Postgres gives a statement up by itself. Where not even that is heard, the network swallowed it:
/// then the lane goes on with another connection.
async fn run<J: Job>(
    store: &Store,
    connection: &mut PoolConnection<Postgres>,
    jobs: &[&J],
) -> Result<Vec<J::Answer>, sqlx::Error> {
    let mut tries = 1;
    loop {
        let Ok(answers) =
            tokio::time::timeout(store.patience, J::run(store, connection, jobs)).await
        else {
            connection.close_on_drop();
            return Err(sqlx::Error::Io(io::ErrorKind::TimedOut.into()));
        };
        match answers {
            Err(error) if lost_race(&error) && tries < MAX_TRIES => tries += 1,
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests;
