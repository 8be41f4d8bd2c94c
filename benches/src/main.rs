//! `script/bench`: measures keypool, as it would be deployed, beside what plain SQL and openmls do
//! on the same machine. `docs/performance.md` says what the rows mean.

#![allow(clippy::print_stdout)] // what it is for
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "figures are shown with four digits"
)]

mod arguments;
mod callers;
mod connection;
mod growth;
mod health;
mod load;
mod machine;
mod overload;
mod packages;
mod plot;
mod postgres;
mod reference;
mod report;
mod rows;
mod sample;
mod site;
mod soak;

use std::{fs, path::PathBuf, process::ExitCode, time::Instant};

use anyhow::Context as _;
use clap::Parser as _;

use crate::{
    arguments::Arguments,
    postgres::Postgres,
    reference::Pgbench,
    report::Row,
    rows::Bench,
    site::{Plan, Site},
};

// One thread: it shares the cores with what it measures.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let start = Instant::now();
    let pgbench = Pgbench::find();
    if pgbench.is_none() {
        eprintln!("pgbench is not installed: there are no references in SQL");
    }
    let postgres = Postgres::start(&arguments.postgres_settings()).await?;
    println!(
        "PostgreSQL {}, durable; {} cores for it, keypool and the load; {} build of keypool",
        postgres.version,
        machine::cores(),
        if cfg!(debug_assertions) { "debug" } else { "release" },
    );
    let tls = arguments.tls.then(|| "TLS".to_owned());
    for setting in arguments.postgres_settings().iter().chain(&arguments.set).chain(&tls) {
        println!("not as usual: {setting}");
    }
    if arguments.overload {
        let report = overload::measure(&arguments, &postgres).await;
        postgres.stop().await?;
        let report = report?;
        println!("\n{}", report.text());
        keep(arguments.json.as_ref(), || Ok(serde_json::to_string_pretty(&report)? + "\n"))?;
        let wrong = !report.faults.is_empty();
        return Ok(if wrong { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    }
    if arguments.soak {
        let report = soak::measure(&arguments, &postgres).await;
        postgres.stop().await?;
        let report = report?;
        println!("\n{}", report.text());
        keep(arguments.json.as_ref(), || Ok(serde_json::to_string_pretty(&report)? + "\n"))?;
        keep(arguments.plot.as_ref(), || Ok(report.svg()))?;
        return Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let measured = measure(&arguments, &postgres, pgbench.as_ref()).await;
    postgres.stop().await?;
    let rows = measured?;
    println!("\n{}\n{}", report::table(&rows), report::goals(&rows));
    println!("{:.0} seconds in all", start.elapsed().as_secs_f64());
    keep(arguments.json.as_ref(), || Ok(serde_json::to_string_pretty(&rows)? + "\n"))?;
    keep(arguments.plot.as_ref(), || Ok(plot::svg(&rows)))?;
    let wrong = rows.iter().any(|row| !row.faults.is_empty());
    Ok(if wrong { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn measure(
    arguments: &Arguments,
    postgres: &Postgres,
    pgbench: Option<&Pgbench>,
) -> anyhow::Result<Vec<Row>> {
    if arguments.growth {
        return growth::rows(arguments, postgres).await;
    }
    let owners = arguments.sizes().first().copied().context("a size")?;
    let plan = Plan { owners, renewable: true, settings: &arguments.set, tls: arguments.tls };
    let mut site = Site::open(postgres, "keypool", &plan).await?;
    eprintln!("{owners} owners are there");
    let mut bench = Bench { arguments, postgres, pgbench, site: &mut site };
    let rows = bench.rows().await?;
    let (resident, most) = machine::memory_kib(site.server.pid())?;
    println!("keypool's memory: {} MiB now, {} MiB at most", resident / 1024, most / 1024);
    Ok(rows)
}

/// Writes a file, where one is asked for.
fn keep(
    path: Option<&PathBuf>,
    contents: impl FnOnce() -> anyhow::Result<String>,
) -> anyhow::Result<()> {
    let Some(path) = path else { return Ok(()) };
    fs::write(path, contents()?).with_context(|| path.display().to_string())
}
