//! When calls arrive.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

/// How calls arrive.
#[derive(Debug, Clone, Copy)]
pub(super) enum Arrivals {
    /// So many callers, each with its next call when the last one was answered.
    Closed(usize),
    /// At random, so many a second.
    Open(f64),
}

pub(super) struct Arriving {
    pub(super) receiver: mpsc::UnboundedReceiver<(usize, Instant)>,
    pub(super) closed: Option<usize>,
}

/// The numbers of calls and when they arrive.
pub(super) fn arrive(
    arrivals: Arrivals,
    time: Duration,
    calls: usize,
    start: Instant,
) -> (Arriving, std::thread::JoinHandle<()>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let closed = match arrivals {
        Arrivals::Closed(workers) => Some(workers),
        Arrivals::Open(_) => None,
    };
    // A thread of its own: the runtime's timers tick in milliseconds.
    let pacer = std::thread::spawn(move || {
        let mut arrival = start;
        for number in 0..calls {
            if let Arrivals::Open(rate) = arrivals {
                let gap = -(1.0 - rand::random::<f64>()).ln() / rate;
                arrival += Duration::from_secs_f64(gap);
                if arrival > start + time {
                    break;
                }
                std::thread::sleep(arrival.saturating_duration_since(Instant::now()));
            }
            if sender.send((number, arrival)).is_err() {
                break;
            }
        }
    });
    (Arriving { receiver, closed }, pacer)
}
