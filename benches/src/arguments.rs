//! The command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Measures keypool beside what plain SQL and openmls do on the same machine, in one run.
#[derive(Debug, Clone, Parser)]
#[command(name = "script/bench", version)]
pub(crate) struct Arguments {
    /// The smallest size: does it work? The figures mean little
    #[arg(long)]
    pub(crate) quick: bool,
    /// Owners in the database; with --growth a list, the smallest first
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    pub(crate) owners: Vec<u32>,
    /// What to measure; all but --growth's rows by default
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) rows: Vec<RowName>,
    /// Connections to measure at
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    pub(crate) connections: Vec<usize>,
    /// How long each stretch of load is, at most, in seconds
    #[arg(long)]
    pub(crate) seconds: Option<f64>,
    /// How often keypool and its reference take turns; the medians count
    #[arg(long)]
    pub(crate) rounds: Option<usize>,
    /// Leave out the second reference, which promises what keypool promises
    #[arg(long)]
    pub(crate) no_promises: bool,
    /// Measure at several sizes, and after churn: long, and needs much disk
    #[arg(long)]
    pub(crate) growth: bool,
    /// Offer ten times the load that can be served, and nothing else: script/overload
    #[arg(long)]
    pub(crate) overload: bool,
    /// Offer half of the best rate for long, and see what grows, and nothing else: script/soak
    #[arg(long)]
    pub(crate) soak: bool,
    /// How long --soak offers it
    #[arg(long, value_name = "M")]
    pub(crate) minutes: Option<f64>,
    /// Clients that one call reserves from, with --overload
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(crate) clients_a_call: usize,
    /// Reserve and Spend pairs before churn is measured
    #[arg(long, value_name = "PAIRS")]
    pub(crate) churn: Option<u64>,
    /// Serve and call over TLS
    #[arg(long)]
    pub(crate) tls: bool,
    /// Settings of the server beside the defaults, as in --set database.max_connections=4
    #[arg(long, value_name = "KEY=TOML")]
    pub(crate) set: Vec<String>,
    /// Settings of Postgres beside the run's own, as in --postgres full_page_writes=off
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) postgres: Vec<String>,
    /// How many draws from each owner --growth makes before it measures
    #[arg(long, value_name = "DRAWS")]
    pub(crate) warm_up: Option<u32>,
    /// Write the rows to this file as JSON too
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write a plot to this file as SVG: throughput and p99 against connections or, with --soak, all
    /// figures over time
    #[arg(long, value_name = "FILE")]
    pub(crate) plot: Option<PathBuf>,
}

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RowName {
    /// Reserve
    Reserve,
    /// Reserve, then Spend by the same caller
    Pairs,
    /// Upload, counted in KeyPackages
    Upload,
    /// All on one pool, beside all on different ones
    HotPool,
    /// One caller, one call after the other
    Idle,
    /// Health checks: what a call costs that asks nothing of keypool
    Transport,
}

impl RowName {
    pub(crate) const ALL: [Self; 6] =
        [Self::Reserve, Self::Pairs, Self::Upload, Self::HotPool, Self::Idle, Self::Transport];
}

impl Arguments {
    /// The sizes in owners, as given or the defaults.
    pub(crate) fn sizes(&self) -> Vec<u32> {
        match (self.owners.is_empty(), self.growth, self.quick) {
            (false, ..) => self.owners.clone(),
            (true, true, true) => vec![100, 300],
            (true, true, false) => vec![3_000, 100_000, 500_000],
            (true, false, true) => vec![300],
            (true, false, false) => vec![3_000],
        }
    }

    /// Settings of Postgres beside those of any run, NAME=VALUE.
    pub(crate) fn postgres_settings(&self) -> Vec<String> {
        // No checkpoint between settling and measuring.
        let room = self.growth.then(|| "max_wal_size=16GB".to_owned());
        room.into_iter().chain(self.postgres.iter().cloned()).collect()
    }

    pub(crate) fn rows(&self) -> Vec<RowName> {
        if self.rows.is_empty() { RowName::ALL.to_vec() } else { self.rows.clone() }
    }

    pub(crate) fn connections(&self) -> Vec<usize> {
        match (self.connections.is_empty(), self.quick) {
            (false, _) => self.connections.clone(),
            (true, true) => vec![1, 16],
            (true, false) => vec![1, 16, 64, 256],
        }
    }

    /// Calls at once among which the best rate of --overload and --soak is looked for.
    pub(crate) fn concurrency(&self) -> Vec<usize> {
        match (self.connections.is_empty(), self.quick) {
            (false, _) => self.connections.clone(),
            (true, true) => vec![4, 8],
            (true, false) => vec![2, 4, 8, 12],
        }
    }

    pub(crate) fn seconds(&self) -> f64 {
        self.seconds.unwrap_or(if self.quick { 0.5 } else { 5.0 })
    }

    pub(crate) fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick { 1 } else { 3 })
    }

    /// Until most of the pages that are written to are in the WAL whole: each owner's packages are on
    /// three or four of them.
    pub(crate) fn warm_up(&self) -> u32 {
        self.warm_up.unwrap_or(if self.quick { 1 } else { 2 })
    }

    pub(crate) fn churn(&self) -> u64 {
        self.churn.unwrap_or(if self.quick { 500 } else { 1_000_000 })
    }
}
