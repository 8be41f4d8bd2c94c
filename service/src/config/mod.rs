//! The configuration: a TOML file and the environment, checked once and typed ever after.
//!
//! A variable stands for a key and wins over the file: `KEYPOOL_DATABASE__MAX_CONNECTIONS` is
//! `max_connections` of `[database]`. What is not known is refused. `keypool.sample.toml` shows
//! every key.

mod database;
mod limits;
mod metrics;
mod packages;
mod reference;
mod secret;
mod sections;
mod source;
#[cfg(test)]
mod tests;
mod tls;
mod traces;

use std::{ffi::OsString, fmt, fs, net::SocketAddr, path::Path};

pub use database::DatabaseSection;
pub use limits::LimitsSection;
pub use metrics::MetricsSection;
pub use packages::UploadSection;
pub use reference::reference;
pub use secret::Secret;
pub use sections::{
    AuthSection, HealthSection, JwksSection, LogFormat, LogSection, ServerSection, SweeperSection,
};
use source::Source;
pub use tls::TlsSection;
pub use traces::TracesSection;

use crate::domain::policy::PoolPolicy;

/// Something that is wrong with the configuration, or with what it points to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The key, variable or file.
    pub subject: String,
    /// What is wrong with it. Carries no secret.
    pub message: String,
}

impl Finding {
    /// `message` says what is wrong with `subject`.
    pub fn new(subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self { subject: subject.into(), message: message.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.message)
    }
}

/// Everything that is wrong with a configuration.
#[derive(Debug)]
pub struct ConfigError {
    /// At least one.
    pub findings: Vec<Finding>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let findings: Vec<String> = self.findings.iter().map(Finding::to_string).collect();
        f.write_str(&findings.join("; "))
    }
}

impl std::error::Error for ConfigError {}

impl From<Finding> for ConfigError {
    fn from(finding: Finding) -> Self {
        Self { findings: vec![finding] }
    }
}

/// The whole configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `listen`: the address that gRPC is served on. Default 127.0.0.1:50051.
    pub listen: SocketAddr,
    /// `[database]`
    pub database: DatabaseSection,
    /// `[auth]`
    pub auth: AuthSection,
    /// `[pool]`. Defaults: `low_watermark` 8, `target` 32, `hard_cap` 64 (each a number of
    /// KeyPackages of one cipher suite), `min_remaining_lifetime` 1h, `default_ttl` 60s,
    /// `max_ttl` 10m, `lapse` "return", `refill_spread` 5m, `fair_share` true,
    /// `max_open_reservations_per_pool` 2.
    pub pool: PoolPolicy,
    /// `[upload]`
    pub upload: UploadSection,
    /// `[sweeper]`
    pub sweeper: SweeperSection,
    /// `[server]`
    pub server: ServerSection,
    /// `[limits]`
    pub limits: LimitsSection,
    /// `[tls]`; none where `server.plaintext` is true.
    pub tls: Option<TlsSection>,
    /// `[health]`
    pub health: HealthSection,
    /// `[metrics]`
    pub metrics: MetricsSection,
    /// `[traces]`
    pub traces: TracesSection,
    /// `[log]`
    pub log: LogSection,
}

impl Config {
    /// Reads the file at `path` and the variables; `environment` is `std::env::vars_os()`.
    ///
    /// # Errors
    /// All that is wrong, at once.
    pub fn load(
        path: &Path,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path)
            .map_err(|error| Finding::new(path.display().to_string(), error.to_string()))?;
        Self::parse(&text, environment).map_err(|mut error| {
            if let [finding] = &mut error.findings[..]
                && finding.subject == SYNTAX
            {
                finding.subject = path.display().to_string();
            }
            error
        })
    }

    /// As [`Config::load`], from the text of a file.
    ///
    /// # Errors
    /// All that is wrong, at once.
    pub fn parse(
        text: &str,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let file = toml::from_str(text).map_err(|error| syntax_finding(text, &error))?;
        let mut source = Source::new(file, environment);
        let config = Self::read(&mut source);
        let findings = source.finish();
        match config {
            Some(config) if findings.is_empty() => Ok(config),
            _ => Err(ConfigError { findings }),
        }
    }

    /// `None` only when a finding says why.
    fn read(source: &mut Source) -> Option<Self> {
        let listen = source.address("listen");
        // Every section is read before any is missed, so that all problems are found.
        let (database, auth) = (DatabaseSection::read(source), AuthSection::read(source));
        let pool = packages::read_pool(source);
        let upload = UploadSection::read(source);
        let server = ServerSection::read(source);
        let tls = TlsSection::read(source, server.plaintext);
        let config = Self {
            listen: listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 50051))),
            pool,
            upload,
            sweeper: SweeperSection::read(source),
            server,
            limits: LimitsSection::read(source),
            tls,
            health: HealthSection::read(source),
            metrics: MetricsSection::read(source),
            traces: TracesSection::read(source),
            log: LogSection::read(source),
            database: database?,
            auth: auth?,
        };
        if source.is_clean() {
            check_together(&config, source);
        }
        Some(config)
    }
}

/// The rules between keys.
fn check_together(config: &Config, source: &mut Source) {
    let Config { pool, upload, database, server, limits, .. } = config;
    for (holds, key, message) in [
        (pool.low_watermark < pool.target, "pool.low_watermark", "must be below pool.target"),
        (pool.target <= pool.hard_cap, "pool.target", "must not exceed pool.hard_cap"),
        (pool.default_ttl <= pool.max_ttl, "pool.default_ttl", "must not exceed pool.max_ttl"),
        (
            pool.max_ttl <= pool.min_remaining_lifetime,
            "pool.max_ttl",
            "must not exceed pool.min_remaining_lifetime: a package must outlive its reservation",
        ),
        (
            pool.min_remaining_lifetime < upload.max_lifetime,
            "pool.min_remaining_lifetime",
            "must be below upload.max_lifetime: else nothing is ever issued",
        ),
        (
            database.statement_timeout <= server.request_timeout,
            "database.statement_timeout",
            "must not exceed server.request_timeout",
        ),
        (
            server.max_request_bytes <= limits.max_bytes_per_caller,
            "limits.max_bytes_per_caller",
            "must not be below server.max_request_bytes",
        ),
        (
            limits.max_bytes_per_caller <= limits.max_bytes,
            "limits.max_bytes_per_caller",
            "must not exceed limits.max_bytes",
        ),
        (
            limits.standing_wait <= limits.max_wait,
            "limits.standing_wait",
            "must not exceed limits.max_wait",
        ),
    ] {
        if !holds {
            source.report(key, message);
        }
    }
}

const SYNTAX: &str = "syntax";

/// Says where the file is no TOML, without showing the line: it may hold a secret.
fn syntax_finding(text: &str, error: &toml::de::Error) -> Finding {
    let before = error.span().and_then(|span| text.get(..span.start));
    let line = before.map(|before| format!("line {}: ", before.matches('\n').count() + 1));
    Finding::new(SYNTAX, format!("{}{}", line.unwrap_or_default(), error.message()))
}
