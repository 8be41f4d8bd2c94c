//! `drain-attack [--json FILE]`: plays the attack of `docs/fair-share.md` with 1, 4, 16 and 64
//! attackers, fair share on and off, the owner online and offline, and prints what the honest
//! newcomers got.

use std::{
    env, fs,
    io::{self, Write as _},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, bail};
use keypool_testing::drain::{Attack, Report};

const HEAD: &str = "\
| attackers | owner | fair share | newcomers with a one-time package | turned away | slowest newcomer \
| attackers took | owner added |
|--:|---|---|--:|--:|--:|--:|--:|";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    let json = match &arguments[..] {
        [] => None,
        [flag, file] if flag == "--json" => Some(PathBuf::from(file)),
        _ => bail!("usage: drain-attack [--json FILE]"),
    };
    let mut out = io::stdout();
    writeln!(out, "{HEAD}")?;
    let mut rows = Vec::new();
    for owner_online in [true, false] {
        for fair_share in [true, false] {
            for attackers in [1, 4, 16, 64] {
                let attack = Attack {
                    attackers,
                    newcomers: 20,
                    owner_online,
                    fair_share,
                    length: Duration::from_secs(5),
                    after_first_refusals: false,
                    refill_spread: Duration::from_millis(250),
                    seed: 1,
                };
                let report = attack.run().await?;
                writeln!(out, "{}", line(&report))?;
                rows.push(report.row);
            }
        }
    }
    if let Some(file) = json {
        let text = serde_json::to_string_pretty(&rows)? + "\n";
        fs::write(&file, text).with_context(|| file.display().to_string())?;
    }
    Ok(())
}

fn line(report: &Report) -> String {
    let Report { row, turned_away, slowest_newcomer, taken, refilled } = report;
    format!(
        "| {} | {} | {} | {} of {} ({} %) | {turned_away} | {} ms | {taken} | {refilled} |",
        row.attackers,
        if row.owner_online { "online" } else { "offline" },
        if row.fair_share { "on" } else { "off" },
        row.one_time,
        row.newcomers,
        row.one_time * 100 / row.newcomers,
        slowest_newcomer.as_millis(),
    )
}
