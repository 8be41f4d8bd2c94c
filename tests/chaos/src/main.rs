//! `chaos NAME [--minutes M] [--seed S] [--json FILE]`: see `docs/chaos.md`.

use std::{
    fs,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Parser, ValueEnum as _};
use keypool_chaos::{
    check::{ALWAYS, IN_A_MINUTE},
    cluster::DEADLINE,
    fault::{Scenario, not_run},
    run::{Outcome, Plan, run},
};

/// So many violations are printed of each run.
const SHOWN: usize = 20;

/// Plays what can break around keypool, and checks that no promise does.
#[derive(Debug, Parser)]
#[command(name = "chaos")]
struct Arguments {
    /// A scenario, or `all`.
    #[arg(required_unless_present = "list")]
    name: Option<String>,
    /// Says which scenarios there are.
    #[arg(long)]
    list: bool,
    /// For how long clients work in each scenario.
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// What the random choices come from; a random one unless set.
    #[arg(long)]
    seed: Option<u64>,
    /// Writes what came of it to a file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Keeps histories in this folder. Without it, only those with violations are kept, in target/chaos.
    #[arg(long)]
    histories: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let mut out = io::stdout();
    if arguments.list {
        for scenario in Scenario::value_variants() {
            writeln!(out, "{:<20}{}", scenario.name(), scenario.about())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let name = arguments.name.unwrap_or_default();
    let scenarios = match name.as_str() {
        "all" => Scenario::value_variants().to_vec(),
        name => vec![Scenario::from_str(name, false).map_err(|_| {
            anyhow::anyhow!("there is no scenario {name:?}; --list says which there are")
        })?],
    };
    let length = Duration::try_from_secs_f64(arguments.minutes * 60.0).context("--minutes")?;
    let first_seed = arguments.seed.unwrap_or_else(rand::random);
    let folder = arguments.histories.clone().unwrap_or_else(|| "target/chaos".into());
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;

    let all = scenarios.len() > 1;
    let mut outcomes = Vec::new();
    let (mut missing, mut failed) = (Vec::new(), Vec::new());
    // One seed for each, or else all would have the same lapse policy.
    for (number, scenario) in (0..).zip(scenarios) {
        let seed = first_seed.wrapping_add(number);
        let plan = Plan { scenario, length, least: 0, deadline: DEADLINE, seed };
        let file = folder.join(format!("{}-{}.jsonl", scenario.name(), plan.seed));
        writeln!(out, "{}: seed {}", scenario.name(), plan.seed)?;
        match run(&plan, &file).await {
            Ok(outcome) => {
                show(&mut out, &outcome)?;
                if outcome.violations.is_empty() && arguments.histories.is_none() {
                    fs::remove_file(&file)?;
                } else {
                    writeln!(out, "  history: {}", file.display())?;
                }
                outcomes.push(outcome);
            }
            Err(error) => match not_run(&error) {
                Some(why) => {
                    missing.push(scenario.name());
                    writeln!(out, "  NOT RUN: {why}")?;
                }
                None => {
                    failed.push(scenario.name());
                    writeln!(out, "  FAILED: {error:#}\n  history: {}", file.display())?;
                }
            },
        }
    }
    if let Some(file) = &arguments.json {
        let text = serde_json::to_string_pretty(&outcomes)? + "\n";
        fs::write(file, text).with_context(|| file.display().to_string())?;
    }
    let operations: usize = outcomes.iter().map(|outcome| outcome.operations).sum();
    let violations: usize = outcomes.iter().map(|outcome| outcome.violations.len()).sum();
    let unchecked = if all { unchecked(&outcomes, length) } else { Vec::new() };
    for (what, names) in
        [("FAILED", &failed), ("NOT RUN", &missing), ("nothing was checked of", &unchecked)]
    {
        if !names.is_empty() {
            writeln!(out, "{what}: {}", names.join(", "))?;
        }
    }
    writeln!(out, "{operations} operations, {violations} violations")?;
    let good = violations == 0 && !outcomes.is_empty() && failed.is_empty() && unchecked.is_empty();
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What no run had anything of: a check that looks at nothing finds nothing.
fn unchecked(outcomes: &[Outcome], length: Duration) -> Vec<String> {
    let mut expected = ALWAYS.to_vec();
    if length >= Duration::from_secs(60) {
        expected.extend(IN_A_MINUTE);
    }
    expected.retain(|name| !outcomes.iter().any(|outcome| outcome.checked.contains_key(name)));
    expected.into_iter().map(str::to_owned).collect()
}

fn show(out: &mut impl io::Write, outcome: &Outcome) -> io::Result<()> {
    let recovery = &outcome.recovery;
    writeln!(
        out,
        "  {} operations in {} s, {} faults; lapsed reservations {}",
        outcome.operations,
        outcome.seconds,
        recovery.faults,
        if outcome.burns { "burn" } else { "return" }
    )?;
    for (what, count) in &outcome.checked {
        writeln!(out, "  checked {count:>8} {what}")?;
    }
    for (answer, count) in &outcome.answers {
        writeln!(out, "  {count:>16} {answer}")?;
    }
    if recovery.faults > 0 {
        let spans = outcome.faults.iter().map(|(begin, end)| format!("{begin}-{end}"));
        writeln!(out, "  faults: {}", spans.collect::<Vec<_>>().join(" "))?;
        writeln!(
            out,
            "  all clients served again, median and most: {} and {} ms from the begin of a fault, \
             {} and {} ms from its end",
            recovery.from_begin.median,
            recovery.from_begin.most,
            recovery.from_end.median,
            recovery.from_end.most
        )?;
        writeln!(
            out,
            "  the slowest call answered around a fault: {} and {} ms",
            recovery.slowest.median, recovery.slowest.most
        )?;
    }
    writeln!(out, "  the SDK let {} of {} calls fail", recovery.errors, recovery.calls)?;
    for violation in outcome.violations.iter().take(SHOWN) {
        writeln!(out, "  VIOLATION {violation}")?;
    }
    let more = outcome.violations.len().saturating_sub(SHOWN);
    if more > 0 {
        writeln!(out, "  and {more} more")?;
    }
    writeln!(out, "  {}: {} violations", outcome.scenario, outcome.violations.len())
}
