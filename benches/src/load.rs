//! Load: calls that workers make one after the other, as fast as they are answered or at a rate.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::{Mutex, mpsc},
    task::JoinSet,
};

use crate::{connection::is_refused, sample::Sample};

/// What one connection does over and over.
pub(crate) trait Work: Send + 'static {
    /// One operation; answers what it counts as. An error is a fault of what is measured, such as a
    /// wrong answer, unless the server [refused](is_refused) it.
    fn operate(&mut self) -> impl Future<Output = anyhow::Result<u64>> + Send;
}

/// How long a stretch is: it ends at whichever comes first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stretch {
    pub(crate) time: Duration,
    /// As many operations at most.
    pub(crate) operations: u64,
}

impl Stretch {
    /// One that only time ends.
    pub(crate) fn lasting(time: Duration) -> Self {
        Self { time, operations: u64::MAX >> 1 }
    }

    /// One that only its operations end.
    pub(crate) fn of(operations: u64) -> Self {
        Self { time: Duration::from_secs(24 * 60 * 60), operations }
    }
}

/// Each worker makes its next call when the last one was answered.
pub(crate) async fn closed_loop<W: Work>(
    workers: &mut Vec<W>,
    stretch: Stretch,
) -> anyhow::Result<Sample> {
    let start = Instant::now();
    let end = start + stretch.time;
    let left = Arc::new(AtomicI64::new(i64::try_from(stretch.operations)?));
    let mut running = JoinSet::new();
    for mut worker in workers.drain(..) {
        let left = left.clone();
        running.spawn(async move {
            let mut sample = Sample::default();
            loop {
                let before = Instant::now();
                if before >= end || left.fetch_sub(1, Ordering::Relaxed) <= 0 {
                    return (worker, sample);
                }
                let outcome = worker.operate().await;
                record(&mut sample, outcome, before);
            }
        });
    }
    gather(workers, running, start).await
}

/// Calls arrive at random, so many a second on average, however long the answers take; a worker
/// that is free takes the next one. A latency counts from the arrival.
pub(crate) async fn open_loop<W: Work>(
    workers: &mut Vec<W>,
    stretch: Stretch,
    rate: f64,
) -> anyhow::Result<Sample> {
    let (sender, arrivals) = mpsc::unbounded_channel();
    let arrivals = Arc::new(Mutex::new(arrivals));
    let start = Instant::now();
    // A thread of its own: the runtime's timers tick in milliseconds.
    let pacer = std::thread::spawn(move || {
        let mut arrival = start;
        for _ in 0..stretch.operations {
            let gap = -(1.0 - rand::random::<f64>()).ln() / rate;
            arrival += Duration::from_secs_f64(gap);
            if arrival > start + stretch.time {
                break;
            }
            std::thread::sleep(arrival.saturating_duration_since(Instant::now()));
            if sender.send(arrival).is_err() {
                break;
            }
        }
    });
    let mut running = JoinSet::new();
    for mut worker in workers.drain(..) {
        let arrivals = arrivals.clone();
        running.spawn(async move {
            let mut sample = Sample::default();
            loop {
                let arrival = arrivals.lock().await.recv().await;
                let Some(arrival) = arrival else { return (worker, sample) };
                let outcome = worker.operate().await;
                record(&mut sample, outcome, arrival);
            }
        });
    }
    let sample = gather(workers, running, start).await;
    drop(pacer.join());
    sample
}

fn record(sample: &mut Sample, outcome: anyhow::Result<u64>, since: Instant) {
    match outcome {
        Ok(operations) => {
            sample.operations += operations;
            sample.all_operations += operations;
            let microseconds = since.elapsed().as_micros();
            sample.latencies.push(u32::try_from(microseconds).unwrap_or(u32::MAX));
        }
        Err(refusal) if is_refused(&refusal) => sample.refused += 1,
        Err(fault) => sample.fault(format!("{fault:#}")),
    }
}

async fn gather<W: Work>(
    workers: &mut Vec<W>,
    mut running: JoinSet<(W, Sample)>,
    start: Instant,
) -> anyhow::Result<Sample> {
    let mut all = Sample::default();
    while let Some(done) = running.join_next().await {
        let (worker, sample) = done?;
        workers.push(worker);
        all.join(sample);
    }
    all.elapsed = start.elapsed();
    Ok(all)
}
