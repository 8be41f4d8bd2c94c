//! What one stretch of load was answered with, and what it cost.

use std::{collections::BTreeMap, time::Duration};

/// The outcome of one measured stretch.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sample {
    /// What was done: calls, or what a call counts as.
    pub(crate) operations: u64,
    pub(crate) elapsed: Duration,
    /// Of each call, microseconds, in no order.
    pub(crate) latencies: Vec<u32>,
    /// Calls that were refused, as more came at once than the server has places for.
    pub(crate) refused: u64,
    /// What was wrong, and how often.
    pub(crate) faults: BTreeMap<String, u64>,
    /// What the stretch cost with all that was done in it, counted or not.
    pub(crate) cost: Cost,
    /// All that was done in it.
    pub(crate) all_operations: u64,
}

/// What a stretch cost, in all or for each operation.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    /// CPU seconds of keypool, of Postgres, and of what made the load.
    pub(crate) server: f64,
    pub(crate) postgres: f64,
    pub(crate) load: f64,
    pub(crate) wal_bytes: f64,
}

impl Sample {
    pub(crate) fn rate(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { self.operations as f64 / seconds } else { 0.0 }
    }

    /// The latency that `percent` of the calls do not exceed, milliseconds.
    pub(crate) fn percentile(&self, percent: f64) -> f64 {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
        let at = rank.saturating_sub(1).min(sorted.len().saturating_sub(1));
        sorted.get(at).map_or(0.0, |&microseconds| f64::from(microseconds) / 1000.0)
    }

    /// The cost of one operation.
    pub(crate) fn cost_each(&self) -> Cost {
        let operations = self.all_operations.max(1) as f64;
        Cost {
            server: self.cost.server / operations,
            postgres: self.cost.postgres / operations,
            load: self.cost.load / operations,
            wal_bytes: self.cost.wal_bytes / operations,
        }
    }

    pub(crate) fn fault(&mut self, fault: impl Into<String>) {
        *self.faults.entry(fault.into()).or_default() += 1;
    }

    /// The refused calls as faults, where there were to be none.
    pub(crate) fn refusals(&self) -> BTreeMap<String, u64> {
        (self.refused > 0)
            .then(|| ("refused as overloaded".to_owned(), self.refused))
            .into_iter()
            .collect()
    }

    /// Takes what another worker of the same stretch did.
    pub(crate) fn join(&mut self, other: Self) {
        self.operations += other.operations;
        self.all_operations += other.all_operations;
        self.latencies.extend(other.latencies);
        self.refused += other.refused;
        for (fault, times) in other.faults {
            *self.faults.entry(fault).or_default() += times;
        }
    }
}

/// The middle one; of an even number the mean of the two in the middle; of none 0.
pub(crate) fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_unstable_by(f64::total_cmp);
    let upper = figures.len() / 2;
    let lower = figures.len().saturating_sub(1) / 2;
    match (figures.get(lower), figures.get(upper)) {
        (Some(lower), Some(upper)) => f64::midpoint(*lower, *upper),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_latency_that_was_measured() {
        let sample = Sample {
            latencies: (1..=200).rev().map(|ms| ms * 1000).collect(),
            ..Sample::default()
        };
        assert!((sample.percentile(50.0) - 100.0).abs() < 1e-9);
        assert!((sample.percentile(99.0) - 198.0).abs() < 1e-9);
        assert!((sample.percentile(100.0) - 200.0).abs() < 1e-9);
        assert!(Sample::default().percentile(99.0).abs() < 1e-9);
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert!((median([3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median([4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median([]).abs() < 1e-9);
    }
}
