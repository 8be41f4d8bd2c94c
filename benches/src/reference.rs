//! The references in SQL: pgbench on tables of its own in the same database.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use tokio::process::Command;

use crate::{machine, sample::Sample};

/// What pgbench runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Script {
    /// The bare statement.
    Reserve,
    /// The bare statement, and a bare spend.
    Pairs,
    /// A statement that promises what keypool does: each request once, a fair share, the log.
    ReserveWithPromises,
    /// The same with a spend that is logged.
    PairsWithPromises,
}

impl Script {
    fn text(self) -> &'static str {
        match self {
            Self::Reserve => include_str!("sql/reference_reserve.pgbench"),
            Self::Pairs => include_str!("sql/reference_pairs.pgbench"),
            Self::ReserveWithPromises => include_str!("sql/promises_reserve.pgbench"),
            Self::PairsWithPromises => include_str!("sql/promises_pairs.pgbench"),
        }
    }
}

/// The pgbench of this machine.
#[derive(Debug, Clone)]
pub(crate) struct Pgbench {
    program: PathBuf,
}

/// One run of pgbench.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run<'a> {
    pub(crate) script: Script,
    pub(crate) url: &'a str,
    pub(crate) owners: u32,
    pub(crate) clients: usize,
    /// Transactions of all clients together.
    pub(crate) transactions: u64,
    /// So many a second, arriving at random; `None`: as fast as they are answered.
    pub(crate) rate: Option<f64>,
    /// A folder for its files.
    pub(crate) folder: &'a Path,
}

impl Pgbench {
    /// Looks where keypool looks for Postgres's programs; `None` when it is not installed.
    pub(crate) fn find() -> Option<Self> {
        let chosen = env::var_os("PG_BIN").map(PathBuf::from);
        let path = env::var_os("PATH").unwrap_or_default();
        let mut folders: Vec<PathBuf> = chosen.into_iter().chain(env::split_paths(&path)).collect();
        let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        folders.extend(versions.map(|version| version.path().join("bin")));
        let mut programs = folders.into_iter().map(|folder| folder.join("pgbench"));
        programs.find(|program| program.is_file()).map(|program| Self { program })
    }

    /// Runs a script. Counted is the time from when each client has had its first answer until
    /// the first one is done.
    pub(crate) async fn run(&self, run: &Run<'_>) -> anyhow::Result<Sample> {
        let folder = tempfile::Builder::new()
            .permissions(fs::Permissions::from_mode(0o711))
            .tempdir_in(run.folder)?;
        let script = folder.path().join("script");
        fs::write(&script, run.script.text())?;
        let each = run.transactions.div_ceil(u64::try_from(run.clients)?).max(1);
        let mut command = Command::new(&self.program);
        command
            .args(["--no-vacuum", "--protocol=prepared", "--log"])
            .arg(format!("--log-prefix={}", folder.path().join("log").display()))
            .arg(format!("--client={}", run.clients))
            .arg(format!("--jobs={}", run.clients.min(machine::cores())))
            .arg(format!("--transactions={each}"))
            .arg(format!("--define=owners={}", run.owners))
            .arg("--file")
            .arg(&script)
            .args(run.rate.map(|rate| format!("--rate={rate}")))
            .arg(run.url)
            .env("PGOPTIONS", "-c plan_cache_mode=force_generic_plan")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = command.output().await.context("running pgbench")?;
        ensure!(
            output.status.success(),
            "pgbench: {}",
            String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default()
        );
        let mut answers = Vec::new();
        for entry in fs::read_dir(folder.path())? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("log.")) {
                for line in fs::read_to_string(path)?.lines() {
                    answers.push(Answer::parse(line).context("a line of pgbench's log")?);
                }
            }
        }
        Ok(counted(&answers))
    }
}

/// One transaction of pgbench's log, times in microseconds.
#[derive(Debug, Clone, Copy)]
struct Answer {
    client: u32,
    latency: u32,
    at: u64,
}

impl Answer {
    /// `client_id transaction_no time script_no time_epoch time_us ...`
    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        Some(Self {
            client: u32::try_from(number(0)?).ok()?,
            latency: u32::try_from(number(2)?).unwrap_or(u32::MAX),
            at: number(4)? * 1_000_000 + number(5)?,
        })
    }
}

/// Those answered while all clients were at work. A new connection of Postgres is slow at first.
fn counted(answers: &[Answer]) -> Sample {
    let mut spans = std::collections::HashMap::<u32, (u64, u64)>::new();
    for answer in answers {
        let span = spans.entry(answer.client).or_insert((answer.at, answer.at));
        *span = (span.0.min(answer.at), span.1.max(answer.at));
    }
    let start = spans.values().map(|span| span.0).max().unwrap_or_default();
    let end = spans.values().map(|span| span.1).min().unwrap_or_default();
    let latencies: Vec<u32> = answers
        .iter()
        .filter(|answer| answer.at > start && answer.at <= end)
        .map(|answer| answer.latency)
        .collect();
    Sample {
        operations: latencies.len() as u64,
        elapsed: Duration::from_micros(end.saturating_sub(start)),
        latencies,
        all_operations: answers.len() as u64,
        ..Sample::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_time_in_which_all_clients_work_is_counted() {
        let log = "0 1 500 0 10 100000\n1 1 900 0 10 300000\n0 2 500 0 10 400000\n\
                   1 2 700 0 10 500000 12\n0 3 500 0 10 600000\n1 3 500 0 10 900000";
        let answers: Vec<Answer> = log.lines().map(|line| Answer::parse(line).unwrap()).collect();
        let sample = counted(&answers);
        assert_eq!(sample.latencies, [500, 700, 500]);
        assert_eq!(sample.elapsed, Duration::from_micros(300_000));
        assert!((sample.rate() - 10.0).abs() < 1e-9);
    }

    #[test]
    fn what_is_no_log_line_is_none() {
        assert!(Answer::parse("").is_none());
        assert!(Answer::parse("0 1 2").is_none());
        assert!(Answer::parse("0 1 skipped 0 10 1").is_none());
    }
}
