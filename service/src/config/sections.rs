//! `[auth]`, `[sweeper]`, `[server]`, `[health]` and `[log]`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use http::Uri;
use tracing_subscriber::EnvFilter;

use super::source::{DAY, HOUR, MILLISECOND, MINUTE, SECOND, Source, YEAR};

/// `[auth]`: whose tokens are accepted.
#[derive(Debug, Clone, PartialEq)]
pub struct AuthSection {
    /// `keys`: files with public keys, PEM or JWKS; a JWKS file starts with `{`. Required, but
    /// where there is a `jwks_url`.
    pub keys: Vec<PathBuf>,
    /// `reload_interval`: the files are looked at again after this time. Default 10s.
    pub reload_interval: Duration,
    /// `jwks_url` and what goes with it.
    pub jwks: Option<JwksSection>,
    /// `audience`: what the `aud` of a token must name. Required.
    pub audience: String,
    /// `issuer`: what the `iss` of a token must be. Not checked by default.
    pub issuer: Option<String>,
    /// `leeway`: how far the issuer's clock and this one may differ. Default 30s.
    pub leeway: Duration,
}

impl AuthSection {
    /// The defaults for an audience, with no key file.
    pub fn for_audience(audience: impl Into<String>) -> Self {
        Self {
            keys: Vec::new(),
            reload_interval: 10 * SECOND,
            jwks: None,
            audience: audience.into(),
            issuer: None,
            leeway: 30 * SECOND,
        }
    }

    pub(super) fn read(source: &mut Source) -> Option<Self> {
        if !source.is_given("auth.keys") && !source.is_given("auth.jwks_url") {
            let what = "or auth.jwks_url is required: where the public keys of tokens are";
            source.report("auth.keys", what);
        }
        if !source.is_given("auth.audience") {
            source.report("auth.audience", "is required: what the `aud` of a token must name");
        }
        let keys = source.read("auth.keys", |given| {
            let paths = given.list()?.into_iter().map(|path| path.text().map(PathBuf::from));
            let paths = paths.collect::<Result<Vec<PathBuf>, String>>()?;
            if paths.is_empty() { Err("must name at least one file".into()) } else { Ok(paths) }
        });
        let audience = source.read("auth.audience", |given| given.text());
        let issuer = source.read("auth.issuer", |given| given.text());
        let leeway = source.duration("auth.leeway", 30 * SECOND, Duration::ZERO..=5 * MINUTE);
        let reload_interval =
            source.duration("auth.reload_interval", 10 * SECOND, SECOND / 100..=HOUR);
        let jwks = JwksSection::read(source);
        Some(Self {
            keys: keys.unwrap_or_default(),
            reload_interval,
            jwks,
            audience: audience?,
            issuer,
            leeway,
        })
    }
}

/// The keys that an issuer of tokens publishes.
#[derive(Debug, Clone, PartialEq)]
pub struct JwksSection {
    /// `jwks_url`: an `https://` URL with a JWKS document (RFC 7517, section 5).
    pub url: Uri,
    /// `jwks_ca`: a PEM file with the CAs of that server, instead of those that browsers trust.
    pub ca: Option<PathBuf>,
    /// `jwks_refresh_interval`: the keys are fetched again after this time. Default 5m.
    pub refresh_interval: Duration,
    /// `jwks_min_refresh_interval`: and at once when a token names a key that is not among them,
    /// or when they could not be fetched, but not before this time. Default 10s.
    pub min_refresh_interval: Duration,
    /// `jwks_max_age`: keys that could not be fetched again for this long are not trusted any
    /// more. Default 1h.
    pub max_age: Duration,
}

impl JwksSection {
    fn read(source: &mut Source) -> Option<Self> {
        let given = source.is_given("auth.jwks_url");
        if source.is_given("auth.jwks_ca") && !given {
            source.report("auth.jwks_ca", "needs auth.jwks_url");
        }
        let url = source.read("auth.jwks_url", |given| {
            let url: Option<Uri> = given.text()?.parse().ok();
            let url = url.filter(|url| url.scheme_str() == Some("https") && url.host().is_some());
            // Credentials in it would be shown in logs, and are not sent.
            let url =
                url.filter(|url| !url.authority().is_some_and(|it| it.as_str().contains('@')));
            url.ok_or_else(|| "must be a URL as in https://login.example.org/keys".into())
        });
        let ca = source.read("auth.jwks_ca", |given| given.text().map(PathBuf::from));
        let mut duration = |key, default, least| source.duration(key, default, least..=DAY);
        let refresh_interval = duration("auth.jwks_refresh_interval", 5 * MINUTE, 10 * MILLISECOND);
        let min_refresh_interval =
            duration("auth.jwks_min_refresh_interval", 10 * SECOND, 10 * MILLISECOND);
        let max_age = duration("auth.jwks_max_age", HOUR, 10 * MILLISECOND);
        if given && max_age <= refresh_interval {
            source.report("auth.jwks_max_age", "must exceed auth.jwks_refresh_interval");
        }
        Some(Self { url: url?, ca, refresh_interval, min_refresh_interval, max_age })
    }
}

/// `[sweeper]`: the background work that reclaims lapsed reservations and drops what is over.
#[derive(Debug, Clone, PartialEq)]
pub struct SweeperSection {
    /// `interval`: between two rounds. Default 10s.
    pub interval: Duration,
    /// `batch`: rows that one statement takes at most. Default 500.
    pub batch: u32,
    /// `tombstone_retention`: how long a spent package is remembered past its `not_after`.
    /// Default 24h.
    pub tombstone_retention: Duration,
    /// `event_retention`: how long events are kept, in whole days. At least 7d. Default 90d.
    pub event_retention: Duration,
}

impl Default for SweeperSection {
    fn default() -> Self {
        Self {
            interval: 10 * SECOND,
            batch: 500,
            tombstone_retention: DAY,
            event_retention: 90 * DAY,
        }
    }
}

impl SweeperSection {
    pub(super) fn read(source: &mut Source) -> Self {
        let default = Self::default();
        Self {
            interval: source.duration("sweeper.interval", default.interval, SECOND..=HOUR),
            batch: source.number("sweeper.batch", default.batch, 1..=10_000),
            tombstone_retention: source.duration(
                "sweeper.tombstone_retention",
                default.tombstone_retention,
                Duration::ZERO..=YEAR,
            ),
            event_retention: source.duration(
                "sweeper.event_retention",
                default.event_retention,
                7 * DAY..=10 * YEAR,
            ),
        }
    }
}

/// `[server]`: bounds of the gRPC server.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerSection {
    /// `drain_timeout`: after SIGTERM, calls in flight get this long to finish. Default 25s.
    pub drain_timeout: Duration,
    /// `max_concurrent_requests`: how many requests may be under way, those that have not arrived
    /// yet too; one more is refused as OVERLOADED. Default 4096.
    pub max_concurrent_requests: u32,
    /// `request_timeout`: a call may take this long to arrive, and as long again to be answered.
    /// Default 10s.
    pub request_timeout: Duration,
    /// `max_request_bytes`: the message of a request may be this large. Default 4 MiB: 100
    /// packages of 20 KiB, or a Reserve with 1,000 long ids, with room.
    pub max_request_bytes: u32,
    /// `max_header_bytes`: the headers of a call may be this large, as HTTP/2 counts it. Default
    /// 16 KiB.
    pub max_header_bytes: u32,
    /// `max_connections`: one more is closed at once. Default 16384.
    pub max_connections: u32,
    /// `max_streams_per_connection`: how many calls and streams one connection may carry at
    /// once. Default 256.
    pub max_streams_per_connection: u32,
    /// `handshake_timeout`: how long a TLS handshake may take. Default 10s.
    pub handshake_timeout: Duration,
    /// `idle_timeout`: a connection that carries no call for this long is closed. Default 5m.
    pub idle_timeout: Duration,
    /// `max_connection_age`: connections and streams are closed after about this time, so that
    /// clients find new replicas. Default 30m.
    pub max_connection_age: Duration,
    /// `max_watches_per_client`: how many WatchPoolStatus streams one client may hold on a
    /// replica. Default 4.
    pub max_watches_per_client: u32,
    /// `plaintext`: serve without TLS; `[tls]` must be left out. Default false.
    pub plaintext: bool,
}

impl Default for ServerSection {
    fn default() -> Self {
        Self {
            drain_timeout: 25 * SECOND,
            max_concurrent_requests: 4096,
            request_timeout: 10 * SECOND,
            max_request_bytes: 4 * 1024 * 1024,
            max_header_bytes: 16 * 1024,
            max_connections: 16_384,
            max_streams_per_connection: 256,
            handshake_timeout: 10 * SECOND,
            idle_timeout: 5 * MINUTE,
            max_connection_age: 30 * MINUTE,
            max_watches_per_client: 4,
            plaintext: false,
        }
    }
}

impl ServerSection {
    pub(super) fn read(source: &mut Source) -> Self {
        let default = Self::default();
        Self {
            drain_timeout: source.duration(
                "server.drain_timeout",
                default.drain_timeout,
                Duration::ZERO..=10 * MINUTE,
            ),
            max_concurrent_requests: source.number(
                "server.max_concurrent_requests",
                default.max_concurrent_requests,
                1..=1_000_000,
            ),
            request_timeout: source.duration(
                "server.request_timeout",
                default.request_timeout,
                MILLISECOND..=10 * MINUTE,
            ),
            max_request_bytes: source.number(
                "server.max_request_bytes",
                default.max_request_bytes,
                64 * 1024..=64 * 1024 * 1024,
            ),
            max_header_bytes: source.number(
                "server.max_header_bytes",
                default.max_header_bytes,
                1024..=1024 * 1024,
            ),
            max_connections: source.number(
                "server.max_connections",
                default.max_connections,
                1..=1_000_000,
            ),
            max_streams_per_connection: source.number(
                "server.max_streams_per_connection",
                default.max_streams_per_connection,
                1..=100_000,
            ),
            handshake_timeout: source.duration(
                "server.handshake_timeout",
                default.handshake_timeout,
                MILLISECOND..=MINUTE,
            ),
            idle_timeout: source.duration(
                "server.idle_timeout",
                default.idle_timeout,
                MILLISECOND..=7 * DAY,
            ),
            max_connection_age: source.duration(
                "server.max_connection_age",
                default.max_connection_age,
                SECOND..=7 * DAY,
            ),
            max_watches_per_client: source.number(
                "server.max_watches_per_client",
                default.max_watches_per_client,
                1..=1000,
            ),
            plaintext: source
                .read("server.plaintext", |given| given.boolean())
                .unwrap_or(default.plaintext),
        }
    }
}

/// `[health]`: a port for probes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HealthSection {
    /// `listen`: the address that grpc.health.v1 alone is served on, without TLS, for probes that
    /// speak none. None by default: health is then served with the calls only.
    pub listen: Option<SocketAddr>,
}

impl HealthSection {
    pub(super) fn read(source: &mut Source) -> Self {
        Self { listen: source.address("health.listen") }
    }
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for machines.
    Json,
}

/// `[log]`: what is logged to standard error, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct LogSection {
    /// `format`: "text" or "json". Default "text".
    pub format: LogFormat,
    /// `filter`: a level, or levels by module as in `info,keypool_service=debug`. Default "info".
    pub filter: String,
    /// `reload_interval`: the configuration file is looked at again after this time, for its
    /// `log.filter`. Default 10s.
    pub reload_interval: Duration,
}

impl Default for LogSection {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info".into(), reload_interval: 10 * SECOND }
    }
}

impl LogSection {
    pub(super) fn read(source: &mut Source) -> Self {
        let default = Self::default();
        Self {
            format: source
                .read("log.format", |given| match given.text().as_deref() {
                    Ok("text") => Ok(LogFormat::Text),
                    Ok("json") => Ok(LogFormat::Json),
                    _ => Err("must be \"text\" or \"json\"".into()),
                })
                .unwrap_or(default.format),
            filter: source
                .read("log.filter", |given| {
                    let filter = given.text()?;
                    let parsed = EnvFilter::builder().parse(&filter).map(drop);
                    parsed.map_err(|_| "must be levels, as in \"info,sqlx=warn\"")?;
                    Ok(filter)
                })
                .unwrap_or(default.filter),
            reload_interval: source.duration(
                "log.reload_interval",
                default.reload_interval,
                SECOND / 100..=HOUR,
            ),
        }
    }
}
