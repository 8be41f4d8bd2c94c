//! The table, the JSON rows, and how they stand to the goals.

use std::{collections::BTreeMap, fmt::Write as _};

use keypool_service::config::LimitsSection;
use serde::Serialize;

use crate::sample::{Sample, median};

/// One row: what was measured, beside what it is compared with.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) connections: usize,
    /// What a growth row was measured with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) owners: Option<u32>,
    #[serde(flatten)]
    pub(crate) keypool: Figures,
    #[serde(flatten, with = "reference")]
    pub(crate) reference: Option<Figures>,
    /// Keypool's rate by the reference's; of `idle`, which is about time, its median latency by
    /// the reference's.
    pub(crate) ratio: Option<f64>,
    /// The rate of the second reference, and keypool's by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) promises_ops_per_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) promises_ratio: Option<f64>,
    pub(crate) rounds: usize,
    /// Calls that were refused, where there were more callers than places.
    #[serde(skip_serializing_if = "is_none")]
    pub(crate) refused: u64,
    /// What was wrong, and how often.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) faults: BTreeMap<String, u64>,
}

/// The medians of some rounds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Figures {
    pub(crate) ops_per_s: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// CPU microseconds of each operation.
    pub(crate) server_cpu_us: f64,
    pub(crate) postgres_cpu_us: f64,
    pub(crate) load_cpu_us: f64,
    pub(crate) wal_bytes_per_op: f64,
}

impl Figures {
    pub(crate) fn of(samples: &[Sample]) -> Option<Self> {
        if samples.is_empty() {
            return None;
        }
        let of = |figure: &dyn Fn(&Sample) -> f64| round(median(samples.iter().map(figure)));
        Some(Self {
            ops_per_s: of(&Sample::rate),
            p50_ms: of(&|sample| sample.percentile(50.0)),
            p99_ms: of(&|sample| sample.percentile(99.0)),
            server_cpu_us: of(&|sample| sample.cost_each().server * 1e6),
            postgres_cpu_us: of(&|sample| sample.cost_each().postgres * 1e6),
            load_cpu_us: of(&|sample| sample.cost_each().load * 1e6),
            wal_bytes_per_op: of(&|sample| sample.cost_each().wal_bytes),
        })
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // what serde calls it with
fn is_none(count: &u64) -> bool {
    *count == 0
}

/// The reference's figures have its name before theirs.
mod reference {
    use serde::{Serialize, Serializer, ser::SerializeMap as _};

    use super::Figures;

    pub(super) fn serialize<S: Serializer>(
        figures: &Option<Figures>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Prefixed {
            reference_ops_per_s: f64,
            reference_p50_ms: f64,
            reference_p99_ms: f64,
            reference_postgres_cpu_us: f64,
            reference_load_cpu_us: f64,
            reference_wal_bytes_per_op: f64,
        }
        let Some(figures) = figures else { return serializer.serialize_map(Some(0))?.end() };
        Prefixed {
            reference_ops_per_s: figures.ops_per_s,
            reference_p50_ms: figures.p50_ms,
            reference_p99_ms: figures.p99_ms,
            reference_postgres_cpu_us: figures.postgres_cpu_us,
            reference_load_cpu_us: figures.load_cpu_us,
            reference_wal_bytes_per_op: figures.wal_bytes_per_op,
        }
        .serialize(serializer)
    }
}

/// Four digits that count; more would pretend.
fn round(figure: f64) -> f64 {
    if figure == 0.0 || !figure.is_finite() {
        return 0.0;
    }
    let scale = 10_f64.powi(3 - figure.abs().log10().floor() as i32);
    (figure * scale).round() / scale
}

impl Row {
    /// A row of the rounds of keypool and of its reference.
    pub(crate) fn new(
        name: &str,
        connections: usize,
        keypool: &[Sample],
        reference: &[Sample],
    ) -> Self {
        // Where there is a place for each caller, nobody is to be refused.
        let has_places = connections <= LimitsSection::default().adder_places as usize;
        let mut faults = BTreeMap::new();
        for sample in keypool {
            let refusals = if has_places { sample.refusals() } else { BTreeMap::new() };
            for (fault, times) in sample.faults.iter().chain(&refusals) {
                *faults.entry(fault.clone()).or_default() += times;
            }
        }
        let figures = Figures::of(keypool).unwrap_or_default();
        let reference = Figures::of(reference);
        let ratio = reference.map(|reference| match name {
            "idle" => round(figures.p50_ms / reference.p50_ms),
            _ => round(figures.ops_per_s / reference.ops_per_s),
        });
        Self {
            name: name.to_owned(),
            connections,
            owners: None,
            keypool: figures,
            reference,
            ratio,
            promises_ops_per_s: None,
            promises_ratio: None,
            rounds: keypool.len(),
            refused: if has_places { 0 } else { keypool.iter().map(|sample| sample.refused).sum() },
            faults,
        }
    }

    /// Adds the second reference.
    #[must_use]
    pub(crate) fn beside_promises(mut self, promises: &[Sample]) -> Self {
        if let Some(figures) = Figures::of(promises) {
            self.promises_ops_per_s = Some(figures.ops_per_s);
            self.promises_ratio = Some(round(self.keypool.ops_per_s / figures.ops_per_s));
        }
        self
    }

    pub(crate) fn at(mut self, owners: u32) -> Self {
        self.owners = Some(owners);
        self
    }
}

/// All rows as text.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<18} {:>5} {:>9} {:>9} {:>6}  {:>8} {:>8} {:>8} {:>8}  {:>9} {:>6}  {:>6} {:>6} {:>6} {:>7} {:>7} {:>7}\n",
        "",
        "conns",
        "ops/s",
        "ref",
        "ratio",
        "p50 ms",
        "p99 ms",
        "ref p50",
        "ref p99",
        "promises",
        "ratio",
        "srv us",
        "pg us",
        "load us",
        "WAL B",
        "ref pg",
        "ref WAL"
    );
    for row in rows {
        let name = match row.owners {
            Some(owners) => format!("{} {owners}", row.name),
            None => row.name.clone(),
        };
        let (keypool, reference) = (&row.keypool, row.reference.as_ref());
        let of = |figure: fn(&Figures) -> f64| reference.map(figure);
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{name:<18} {:>5} {:>9.0} {:>9} {:>6}  {:>8.2} {:>8.2} {:>8} {:>8}  {:>9} {:>6}  {:>6.0} {:>6.0} {:>6.0} {:>7.0} {:>7} {:>7}",
            row.connections,
            keypool.ops_per_s,
            shown(of(|f| f.ops_per_s), 0),
            shown(row.ratio, 2),
            keypool.p50_ms,
            keypool.p99_ms,
            shown(of(|f| f.p50_ms), 2),
            shown(of(|f| f.p99_ms), 2),
            shown(row.promises_ops_per_s, 0),
            shown(row.promises_ratio, 2),
            keypool.server_cpu_us,
            keypool.postgres_cpu_us,
            keypool.load_cpu_us,
            keypool.wal_bytes_per_op,
            shown(of(|f| f.postgres_cpu_us), 0),
            shown(of(|f| f.wal_bytes_per_op), 0),
        );
        if row.refused > 0 {
            let _ = writeln!(text, "    refused as overloaded, {} times", row.refused);
        }
        for (fault, times) in &row.faults {
            let _ = writeln!(text, "    WRONG, {times} times: {fault}");
        }
    }
    text
}

fn shown(figure: Option<f64>, digits: usize) -> String {
    figure.map_or_else(|| "-".to_owned(), |figure| format!("{figure:.digits$}"))
}

/// The goals for the rows that were measured, and whether they are met.
pub(crate) fn goals(rows: &[Row]) -> String {
    let row = |name: &str, connections: Option<usize>| {
        let same =
            |row: &&Row| connections.is_none_or(|connections| row.connections == connections);
        rows.iter().filter(|row| row.name == name).rfind(same)
    };
    let ratio = |name, connections| row(name, connections).and_then(|row| row.ratio);
    let p99 = row("reserve_half_peak", None)
        .and_then(|row| Some(row.keypool.p99_ms / row.reference.as_ref()?.p99_ms));
    let at_least = |goal: f64| (goal, true);
    let at_most = |goal: f64| (goal, false);
    let goals = [
        (
            "Reserve at 64 connections, by the bare statement",
            ratio("reserve", Some(64)),
            at_least(1.3),
        ),
        (
            "Reserve and Spend at 64 connections, by the bare ones",
            ratio("pairs", Some(64)),
            at_least(1.5),
        ),
        ("p99 of Reserve at half of the peak, by the bare one's", p99, at_most(2.0)),
        (
            "median of an idle caller's Reserve, by the bare one's",
            ratio("idle", None),
            at_most(1.5),
        ),
        (
            "Upload at 64 connections, by openmls's validation",
            ratio("upload", Some(64)),
            at_least(0.7),
        ),
        ("hot pool, by cold ones", ratio("hot_pool", None), at_least(0.5)),
        (
            "Reserve at the largest size, by the smallest",
            ratio("growth_reserve", None),
            at_least(0.85),
        ),
        ("Reserve after churn, by before", ratio("churn_reserve", None), at_least(0.85)),
    ];
    let mut text = String::new();
    for (name, measured, (goal, at_least)) in goals {
        let Some(measured) = measured else { continue };
        let met = if at_least { measured >= goal } else { measured <= goal };
        let bound = if at_least { "at least" } else { "at most" };
        let verdict = if met { "met" } else { "MISSED" };
        let _ = writeln!(text, "{verdict:<7} {name}: {measured:.2}, {bound} {goal:.2}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_a_fault_unless_there_are_more_callers_than_places() {
        let samples = [Sample { refused: 3, ..Sample::default() }, Sample::default()];
        let row = |connections| Row::new("reserve", connections, &samples, &[]);
        assert_eq!(row(128).faults.values().collect::<Vec<_>>(), [&3]);
        assert_eq!(row(128).refused, 0);
        assert!(row(129).faults.is_empty());
        assert_eq!(row(129).refused, 3);
    }
}
