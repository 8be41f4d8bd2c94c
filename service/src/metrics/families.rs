//! Counters and gauges by label.

use std::marker::PhantomData;

use metrics::{Counter, Gauge, counter};

use super::labels::LabelValue;

/// A counter for each value of a label.
#[derive(Debug)]
pub struct Counters<L>(Vec<Counter>, PhantomData<L>);

impl<L: LabelValue> Counters<L> {
    /// Registers them all, so that each is there, as 0, before it is counted.
    pub(super) fn new(name: &'static str, label: &'static str) -> Self {
        let counters = L::VALUES.iter().map(|value| counter!(name, label => *value));
        Self(counters.collect(), PhantomData)
    }

    /// Counts one.
    pub fn count(&self, value: L) {
        self.add(value, 1);
    }

    /// Counts `number`.
    pub fn add(&self, value: L, number: u64) {
        // Always there: a value is its place among all of them.
        if let Some(counter) = self.0.get(value.place()) {
            counter.increment(number);
        }
    }
}

/// How many of something are there now.
#[derive(Debug, Clone)]
pub struct InFlight(pub(super) Gauge);

impl InFlight {
    /// One more, until what this returns is dropped.
    pub fn begin(&self) -> Present {
        self.0.increment(1.0);
        Present(self.0.clone())
    }
}

/// One of those that are there.
#[derive(Debug)]
pub struct Present(Gauge);

impl Drop for Present {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}
