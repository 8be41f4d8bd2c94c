//! What the overload came to, and how that stands to the goals.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::Serialize;

use crate::sample::median;

/// What was measured. Each figure that has a goal is the median of the rounds.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Clients that one call reserves from.
    clients_a_call: usize,
    peak_concurrency: usize,
    rounds: Vec<Round>,
    goodput_ratio: f64,
    p99_ratio: f64,
    memory_growth: f64,
    /// What was wrong, and how often.
    pub(crate) faults: BTreeMap<String, u64>,
}

/// The three ways to offer load, one after the other: what else the machine does falls on all.
#[derive(Debug, Serialize)]
pub(super) struct Round {
    pub(super) peak: Stretch,
    pub(super) unloaded: Stretch,
    pub(super) overload: Stretch,
    /// The server's resident memory over the overload, MiB.
    pub(super) memory_mib: Vec<f64>,
}

/// One stretch of load.
#[derive(Debug, Default, Serialize)]
pub(super) struct Stretch {
    pub(super) offered_per_s: f64,
    pub(super) goodput_per_s: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    /// Refused calls, by what they were told.
    pub(super) shed: BTreeMap<String, u64>,
    pub(super) shed_p99_ms: f64,
    pub(super) health_checks: usize,
    pub(super) health_p99_ms: f64,
    pub(super) server_cpu: f64,
    pub(super) postgres_cpu: f64,
    pub(super) load_cpu: f64,
}

impl Report {
    pub(super) fn new(
        clients_a_call: usize,
        peak_concurrency: usize,
        rounds: Vec<Round>,
        faults: BTreeMap<String, u64>,
    ) -> Self {
        let of_rounds = |figure: &dyn Fn(&Round) -> f64| median(rounds.iter().map(figure));
        // The second half of all the time under overload against the first.
        let memory: Vec<f64> =
            rounds.iter().flat_map(|round| round.memory_mib.iter().copied()).collect();
        let (early, late) = memory.split_at(memory.len() / 2);
        let most = |part: &[f64]| part.iter().copied().fold(0.0, f64::max);
        Self {
            clients_a_call,
            peak_concurrency,
            goodput_ratio: of_rounds(&|it| it.overload.goodput_per_s / it.peak.goodput_per_s),
            p99_ratio: of_rounds(&|it| it.overload.p99_ms / it.unloaded.p99_ms),
            memory_growth: most(late) / most(early),
            rounds,
            faults,
        }
    }

    /// As text, with the goals.
    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            "a call reserves from {} clients\n{:<10} {:>10} {:>10} {:>8} {:>8} {:>9} {:>9} {:>10} {:>7} {:>7} {:>7}\n",
            self.clients_a_call,
            "",
            "offered/s",
            "served/s",
            "p50 ms",
            "p99 ms",
            "shed",
            "shed p99",
            "health p99",
            "srv CPU",
            "pg CPU",
            "load CPU"
        );
        // Writing to a String cannot fail.
        for round in &self.rounds {
            for (name, stretch) in [
                ("peak", &round.peak),
                ("unloaded", &round.unloaded),
                ("10 x peak", &round.overload),
            ] {
                let _ = writeln!(
                    text,
                    "{name:<10} {:>10.0} {:>10.0} {:>8.2} {:>8.2} {:>9} {:>9.2} {:>10.2} {:>7.2} {:>7.2} {:>7.2}",
                    stretch.offered_per_s,
                    stretch.goodput_per_s,
                    stretch.p50_ms,
                    stretch.p99_ms,
                    stretch.shed.values().sum::<u64>(),
                    stretch.shed_p99_ms,
                    stretch.health_p99_ms,
                    stretch.server_cpu,
                    stretch.postgres_cpu,
                    stretch.load_cpu,
                );
            }
        }
        let mut shed = BTreeMap::<&str, u64>::new();
        for (reason, times) in self.rounds.iter().flat_map(|round| &round.overload.shed) {
            *shed.entry(reason).or_default() += times;
        }
        for (reason, times) in shed {
            let _ = writeln!(text, "refused at 10 x peak, {times} times: {reason}");
        }
        let memory = self.rounds.iter().flat_map(|round| &round.memory_mib);
        let memory: Vec<String> = memory.map(|mib| format!("{mib:.0}")).collect();
        let _ = writeln!(text, "the server's memory at 10 x peak, MiB: {}", memory.join(" "));
        for (name, measured, goal, at_least) in [
            ("goodput at 10 x peak by that at the peak", self.goodput_ratio, 0.9, true),
            ("p99 at 10 x peak by the unloaded one", self.p99_ratio, 5.0, false),
            ("memory of the second half by that of the first", self.memory_growth, 1.1, false),
        ] {
            let met = if at_least { measured >= goal } else { measured <= goal };
            let bound = if at_least { "at least" } else { "at most" };
            let verdict = if met { "met" } else { "MISSED" };
            let _ = writeln!(text, "{verdict:<7} {name}: {measured:.2}, {bound} {goal:.2}");
        }
        for (fault, times) in &self.faults {
            let _ = writeln!(text, "WRONG, {times} times: {fault}");
        }
        text
    }
}
