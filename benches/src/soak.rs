//! `script/soak`: half of the best rate for an hour, and whether anything grows.

mod adders;
mod look;
mod picture;
mod series;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::{
    arguments::Arguments,
    load::{self, Stretch},
    postgres::Postgres,
    sample::Sample,
    site::{Plan, Site},
};

use adders::{Adder, World, watch};
use look::Looks;
use series::{Series, Verdict};

/// The share of the best rate that is offered.
const SHARE: f64 = 0.5;
/// Connections of adders under the offered load.
const CONNECTIONS: usize = 32;
/// Open streams of owners who watch their pools.
const WATCHES: usize = 16;
/// Between two looks, at most.
const INTERVAL: Duration = Duration::from_secs(15);
/// KeyPackages live for so much of the run, so that what remembers them until their end is flat
/// over its second half, too; and for as long as this, and no longer than that.
const LIFETIME_SHARE: u32 = 8;
const MIN_LIFETIME: Duration = Duration::from_secs(60);
const MAX_LIFETIME: Duration = Duration::from_secs(600);
/// A shorter run shows whether it works: caches are not full, and Postgres has hardly vacuumed.
const JUDGED: Duration = Duration::from_secs(600);
/// The share of what is offered that has to be served, too.
const SERVED: f64 = 0.98;

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    minutes: f64,
    owners: u32,
    /// Those who are added to groups under the offered load.
    active_owners: usize,
    lifetime_s: u64,
    /// Turns a second: a Reserve, and what became of it.
    peak_per_s: f64,
    peak_concurrency: usize,
    offered_per_s: f64,
    served_per_s: f64,
    /// Calls by their method.
    calls: BTreeMap<&'static str, u64>,
    /// Statuses that were pushed to owners, and streams that were opened for it.
    pushes: u64,
    /// Whether the run was long enough to say what grows.
    judged: bool,
    /// Turns from the beginning, at each look.
    turns: Vec<f64>,
    /// Minutes from the beginning, at each look.
    at_minutes: Vec<f64>,
    series: Vec<Series>,
    /// Those that grow; of a short run, those that seem to.
    grows: Vec<String>,
    /// What was wrong, and how often.
    faults: BTreeMap<String, u64>,
}

/// Measures.
pub(crate) async fn measure(arguments: &Arguments, postgres: &Postgres) -> anyhow::Result<Report> {
    let minutes = arguments.minutes.unwrap_or(if arguments.quick { 0.1 } else { 60.0 });
    let time = Duration::try_from_secs_f64(minutes * 60.0)?;
    let interval = INTERVAL.min(time / 16);
    let lifetime = (time / LIFETIME_SHARE).clamp(MIN_LIFETIME, MAX_LIFETIME);
    let default_owners = if arguments.quick { 20 } else { 1000 };
    let owners = arguments.owners.first().copied().unwrap_or(default_owners);
    let mut settings = settings();
    settings.extend(arguments.set.iter().cloned());
    let plan = Plan { owners, renewable: false, settings: &settings, tls: arguments.tls };
    let site = Site::open(postgres, "keypool", &plan).await?;
    eprintln!("{owners} owners are there");
    let world = World::new(owners, lifetime)?;

    let (peak_per_s, peak_concurrency, mut faults) = peak(arguments, &site, &world).await?;
    let rate = peak_per_s * SHARE;
    let active = world.keep_busy(rate);
    eprintln!(
        "the peak is {peak_per_s:.0} turns/s; {rate:.0} are offered for {minutes} minutes to {active} \
         owners"
    );
    let watches = watch(&world, &site.peer, WATCHES).await?;
    let mut adders = Adder::several(&world, &site.peer, CONNECTIONS).await?;
    let mut looks = Looks::new(&site);
    let (start, mut turns) = (Instant::now(), 0);
    while start.elapsed() < time {
        let stretch = Stretch { time: interval, operations: u64::MAX };
        let sample = load::open_loop(&mut adders, stretch, rate).await?;
        turns += sample.operations;
        add(&mut faults, &sample.faults);
        add(&mut faults, &sample.refusals());
        looks.take(start.elapsed(), turns, &sample).await?;
        if looks.count().is_multiple_of(20) {
            eprintln!("{:.0} minutes, {turns} turns", start.elapsed().as_secs_f64() / 60.0);
        }
    }
    let served_per_s = turns as f64 / start.elapsed().as_secs_f64();
    drop(adders);
    let (pushes, wrong) = watches.end().await?;
    add(&mut faults, &wrong);
    if served_per_s < rate * SERVED && time >= JUDGED {
        *faults.entry("less was served than offered".to_owned()).or_default() += 1;
    }
    let (at_minutes, turns, series) = looks.series();
    Ok(Report {
        minutes,
        owners,
        active_owners: active,
        lifetime_s: lifetime.as_secs(),
        peak_per_s,
        peak_concurrency,
        offered_per_s: rate,
        served_per_s,
        calls: world.calls(),
        pushes,
        judged: time >= JUDGED,
        at_minutes,
        grows: series
            .iter()
            .filter(|series| matches!(series.verdict(&turns), Verdict::Grows(_)))
            .map(|series| format!("{}: {}", series.group.title(), series.name))
            .collect(),
        turns,
        series,
        faults,
    })
}

/// What is not as by default: rates that nobody meets, and what shortens the time for which the
/// service remembers, as far as its configuration lets it.
fn settings() -> Vec<String> {
    let mut settings: Vec<String> = ["reserve", "target", "owner"]
        .iter()
        .flat_map(|of| ["burst", "per_minute"].map(|it| format!("limits.{of}_{it}=1000000")))
        .collect();
    for setting in [
        "limits.rate_limits=true",
        "pool.default_ttl=\"10s\"",
        "pool.max_ttl=\"10s\"",
        "pool.min_remaining_lifetime=\"10s\"",
        "sweeper.tombstone_retention=\"0s\"",
        // Each connection is replaced several times.
        "server.max_connection_age=\"5m\"",
    ] {
        settings.push(setting.to_owned());
    }
    settings
}

/// The most turns a second, and at which concurrency.
async fn peak(
    arguments: &Arguments,
    site: &Site,
    world: &std::sync::Arc<World>,
) -> anyhow::Result<(f64, usize, BTreeMap<String, u64>)> {
    let time = Duration::from_secs_f64(arguments.seconds());
    let (mut peak, mut faults) = ((0.0, 0), BTreeMap::new());
    // The first warms up: tokens are verified, plans are made.
    for workers in std::iter::once(4).chain(arguments.concurrency()) {
        let mut adders = Adder::several(world, &site.peer, workers).await?;
        let stretch = Stretch { time, operations: u64::MAX >> 1 };
        let sample = load::closed_loop(&mut adders, stretch).await?;
        eprintln!("{workers} at once: {:.0} turns/s", sample.rate());
        add(&mut faults, &sample.faults);
        add(&mut faults, &sample.refusals());
        if sample.rate() > peak.0 {
            peak = (sample.rate(), workers);
        }
    }
    anyhow::ensure!(peak.0 > 0.0, "no turn was served: {faults:?}");
    Ok((peak.0, peak.1, faults))
}

fn add(faults: &mut BTreeMap<String, u64>, more: &BTreeMap<String, u64>) {
    for (fault, times) in more {
        *faults.entry(fault.clone()).or_default() += times;
    }
}

impl Report {
    /// Whether no call failed and, if the run was long enough to tell, nothing grows.
    pub(crate) fn is_good(&self) -> bool {
        self.faults.is_empty() && (self.grows.is_empty() || !self.judged)
    }

    /// As text, a line a series.
    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            "{} turns in {:.1} minutes: {:.0} a second, of {:.0} offered; the peak was {:.0}, at {} \
             at once\n{} of {} owners were added to groups; their KeyPackages live for {} s\ncalls: ",
            self.turns.last().copied().unwrap_or_default(),
            self.at_minutes.last().copied().unwrap_or_default(),
            self.served_per_s,
            self.offered_per_s,
            self.peak_per_s,
            self.peak_concurrency,
            self.active_owners,
            self.owners,
            self.lifetime_s
        );
        let calls: Vec<String> =
            self.calls.iter().map(|(method, times)| format!("{times} {method}")).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}; {} statuses were pushed\n", calls.join(", "), self.pushes);
        text += &picture::text(&self.series, &self.turns, self.judged);
        if !self.judged {
            let _ = writeln!(
                text,
                "NOT JUDGED: a run of less than {} minutes cannot tell what grows",
                JUDGED.as_secs() / 60
            );
        }
        for (fault, times) in &self.faults {
            let _ = writeln!(text, "WRONG, {times} times: {fault}");
        }
        let verdict = match (self.is_good(), self.judged) {
            (true, true) => "no call failed, nothing grows",
            (true, false) => "no call failed",
            (false, _) => "NOT GOOD",
        };
        text + verdict
    }

    /// As a picture.
    pub(crate) fn svg(&self) -> String {
        picture::svg(&self.series, &self.at_minutes)
    }
}

/// What one look at the load says.
fn load_figures(sample: &Sample) -> [(&'static str, f64); 2] {
    [("turns a second", sample.rate()), ("p99 of a turn, ms", sample.percentile(99.0))]
}
