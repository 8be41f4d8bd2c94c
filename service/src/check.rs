//! `keypool check`: what is wrong with the configuration and with what it points to.

use std::{
    io::{self, Write},
    path::Path,
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::{
    config::{Config, Finding},
    domain::clock::{Clock as _, SystemClock},
    grpc::auth::KeySet,
    run,
    server::Tls,
    store::{Diagnosis, Store},
    telemetry::traces,
};

/// What the migrations and statements were written for.
const OLDEST_POSTGRES: i32 = 150_000;
/// A certificate that ends sooner is warned of.
const SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);
/// Clocks that differ by more are warned of: tokens are judged by this one, packages by the other.
const CLOCK_DIFFERENCE: f64 = 1.0;
/// A sweeper that is later than so many intervals is warned of.
const LATE_INTERVALS: f64 = 6.0;

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// What keeps `serve` from working.
    pub problems: Vec<Finding>,
    /// What does not, and should be looked at.
    pub warnings: Vec<Finding>,
    /// What was seen besides.
    pub facts: Vec<Finding>,
}

impl Report {
    fn problem(&mut self, subject: &str, message: impl Into<String>) {
        self.problems.push(Finding::new(subject, message));
    }

    fn warn(&mut self, subject: &str, message: impl Into<String>) {
        self.warnings.push(Finding::new(subject, message));
    }

    fn fact(&mut self, subject: &str, message: impl Into<String>) {
        self.facts.push(Finding::new(subject, message));
    }

    /// For people: a line each; facts when there is no problem.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &Path, mut out: impl Write) -> io::Result<()> {
        for problem in &self.problems {
            writeln!(out, "{problem}")?;
        }
        for warning in &self.warnings {
            writeln!(out, "warning: {warning}")?;
        }
        if self.problems.is_empty() {
            for fact in &self.facts {
                writeln!(out, "{fact}")?;
            }
            writeln!(out, "{}: no problem found", path.display())?;
        }
        Ok(())
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let list = |findings: &[Finding]| {
            let finding = |it: &Finding| json!({"subject": it.subject, "message": it.message});
            Value::from_iter(findings.iter().map(finding))
        };
        json!({
            "ok": self.problems.is_empty(),
            "problems": list(&self.problems),
            "warnings": list(&self.warnings),
            "facts": list(&self.facts),
        })
    }
}

/// Looks at all that a valid configuration points to.
pub async fn all(config: &Config) -> Report {
    let mut report = Report::default();
    files(config, &mut report);
    if let Some(section) = &config.auth.jwks {
        match KeySet::fetch(section).await {
            Ok(keys) => report.fact("auth.jwks_url", format!("publishes {} key(s)", keys.count())),
            Err(error) => report.problem("auth.jwks_url", format!("{error:#}")),
        }
    }
    database(config, &mut report).await;
    report
}

fn files(config: &Config, report: &mut Report) {
    if !config.auth.keys.is_empty() {
        match KeySet::load(&config.auth.keys) {
            Ok(keys) => report.fact("auth.keys", format!("hold {} key(s)", keys.count())),
            Err(error) => report.problem("auth.keys", format!("{error:#}")),
        }
    }
    match config.tls.as_ref().map(run::load_tls) {
        Some(Ok(tls)) => certificate(&tls, report),
        Some(Err(error)) => report.problem("tls", format!("{error:#}")),
        None => {}
    }
    if let Err(error) = traces::tls(&config.traces) {
        report.problem("traces.ca", format!("{error:#}"));
    }
    if let Err(error) = run::load_trust_anchors(&config.upload.trust_anchors) {
        report.problem("upload.trust_anchors", format!("{error:#}"));
    }
}

fn certificate(tls: &Tls, report: &mut Report) {
    let now = SystemClock.now();
    let end = OffsetDateTime::UNIX_EPOCH.saturating_add(span(tls.not_after()));
    if end <= now {
        report.problem("tls.certificate", format!("has expired on {}", end.date()));
    } else if end < now.saturating_add(span(SOON)) {
        report.warn("tls.certificate", format!("expires on {}", end.date()));
    } else {
        report.fact("tls.certificate", format!("is valid until {}", end.date()));
    }
}

fn span(duration: Duration) -> time::Duration {
    time::Duration::try_from(duration).unwrap_or(time::Duration::MAX)
}

async fn database(config: &Config, report: &mut Report) {
    let missing = run::check_database(config).await;
    if !missing.is_empty() {
        return report.problems.extend(missing);
    }
    let options = run::store_options(&config.database);
    let store = match Store::for_operator(&options, Arc::new(SystemClock)) {
        Ok(store) => store,
        Err(error) => return report.problem("database", format!("{error:#}")),
    };
    match store.diagnose().await {
        Ok(diagnosis) => judge(&diagnosis, config, SystemClock.now(), report),
        Err(error) => report.problem("database", format!("{:#}", anyhow::Error::new(error))),
    }
    store.close().await;
}

/// What a diagnosis means, made while this clock showed `now`.
fn judge(diagnosis: &Diagnosis, config: &Config, now: OffsetDateTime, report: &mut Report) {
    let Diagnosis { version, version_number, .. } = diagnosis;
    if *version_number < OLDEST_POSTGRES {
        report.problem("database", format!("is PostgreSQL {version}; it takes 15 or newer"));
    } else {
        report.fact("database", format!("is PostgreSQL {version}"));
    }
    if diagnosis.standby {
        report.problem("database", "is a standby, which takes no writes");
    }
    if diagnosis.unfinished_restoration {
        let what = "was restored and is not safe yet: run `keypool after-restore`";
        report.problem("database", what);
    }
    if !diagnosis.lacking.is_empty() {
        let lacking = diagnosis.lacking.join(", ");
        let what =
            format!("the role may not do all it has to: grant it keypool_service; {lacking}");
        report.problem("database", what);
    }
    if diagnosis.may_change_events {
        let what = "the role may change the event log: let it be a member of keypool_service only";
        report.warn("database", what);
    }
    if !diagnosis.newer_migrations.is_empty() {
        let newer = diagnosis.newer_migrations.len();
        report.warn("database", format!("has {newer} migration(s) of a newer keypool"));
    }
    let difference = (diagnosis.now - now).as_seconds_f64();
    if difference.abs() > CLOCK_DIFFERENCE {
        report.warn("database", format!("its clock differs from this one by {difference:.1} s"));
    }
    match diagnosis.partition_days {
        Some(days) if days >= 1 => {
            report.fact("database", format!("the event log has its partitions for {days} days"));
        }
        _ => report.warn("database", "the event log lacks the partition of tomorrow"),
    }
    if diagnosis.events_without_partition {
        report.warn("database", "events are, or were, in the log's default partition");
    }
    let usual = config.sweeper.interval.as_secs_f64() * LATE_INTERVALS;
    match diagnosis.sweeper_lag {
        Some(late) if late > usual => {
            let what = format!("the sweeper is {late:.0} s late; does a server run?");
            report.warn("database", what);
        }
        Some(late) => report.fact("database", format!("the sweeper was there {late:.0} s ago")),
        None => report.fact("database", "the sweeper has not run yet"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "database.url = \"postgres://localhost/keypool\"\n\
        auth.keys = [\"key.pem\"]\nauth.audience = \"keypool\"\nserver.plaintext = true\n";

    fn judged(change: impl FnOnce(&mut Diagnosis)) -> Report {
        let now = SystemClock.now();
        let mut diagnosis = Diagnosis {
            version: "17.2".into(),
            version_number: 170_002,
            now,
            standby: false,
            lacking: Vec::new(),
            may_change_events: false,
            unfinished_restoration: false,
            events_without_partition: false,
            sweeper_lag: Some(3.0),
            partition_days: Some(7),
            newer_migrations: Vec::new(),
        };
        change(&mut diagnosis);
        let mut report = Report::default();
        judge(&diagnosis, &Config::parse(CONFIG, []).unwrap(), now, &mut report);
        report
    }

    #[test]
    fn a_good_database_is_found_good() {
        let report = judged(|_| {});
        assert!(report.problems.is_empty() && report.warnings.is_empty(), "{report:?}");
        assert_eq!(report.facts.len(), 3, "{report:?}");
    }

    #[test]
    fn each_problem_is_told() {
        let problems: [fn(&mut Diagnosis); 4] = [
            |it| it.version_number = 140_000,
            |it| it.standby = true,
            |it| it.unfinished_restoration = true,
            |it| it.lacking = vec!["draw (DELETE)".into()],
        ];
        for change in problems {
            let report = judged(change);
            assert_eq!((report.problems.len(), report.warnings.len()), (1, 0), "{report:?}");
            assert_eq!(report.to_json()["ok"], false);
        }
    }

    #[test]
    fn each_oddity_is_warned_of() {
        let oddities: [fn(&mut Diagnosis); 7] = [
            |it| it.may_change_events = true,
            |it| it.newer_migrations = vec![9999],
            |it| it.now += time::Duration::seconds(5),
            |it| it.now -= time::Duration::seconds(5),
            |it| it.partition_days = Some(0),
            |it| it.events_without_partition = true,
            |it| it.sweeper_lag = Some(1000.0),
        ];
        for change in oddities {
            let report = judged(change);
            assert_eq!((report.problems.len(), report.warnings.len()), (0, 1), "{report:?}");
            assert_eq!(report.to_json()["ok"], true);
        }
    }
}
