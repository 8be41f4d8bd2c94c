//! What the commands of `keypool` do once their arguments and configuration are read.

use std::{
    fs,
    io::{self, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{
        AuthSection, Config, DatabaseSection, Finding, LimitsSection, MetricsSection, Secret,
        ServerSection, SweeperSection, TlsSection, UploadSection,
    },
    dev::{EmbeddedPostgres, PostgresOptions},
    domain::{
        clock::SystemClock,
        key_package::{IdentityTemplate, TrustAnchors, UploadPolicy},
        policy::PoolPolicy,
    },
    grpc::{
        CallLimits, GateLimits, LoadLimits, Rate, RateLimits, RequestLimits,
        auth::{Authenticator, KeySet},
    },
    pool::{KeyPool, SweepPolicy, WatchLimits},
    server::{self, ConnectionLimits, Listeners, MetricsOptions, ServerOptions, Tls, TlsFiles},
    store::{Store, StoreOptions, newest_migration},
    token::SigningKey,
};

pub use crate::store::LockPatience;

/// The audience of the tokens that `keypool dev` accepts and `keypool token` makes by default.
const DEV_AUDIENCE: &str = "keypool";

/// Between two looks of `keypool wait` at the database.
const WAIT_INTERVAL: Duration = Duration::from_secs(1);

/// A peer is asked at this interval whether it is still there.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// A peer that does not answer that in time is gone.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// `keypool serve`: serves until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// When the database or the address cannot be used, the schema is not up to date, or calls in
/// flight outlive the drain timeout.
pub async fn serve(config: Config) -> anyhow::Result<()> {
    let stop = stop_on_signal()?;
    let clock = Arc::new(SystemClock);
    let authenticator = Authenticator::from_config(&config.auth, clock.clone())?;
    let tls = config.tls.as_ref().map(load_tls).transpose()?;
    let store = Store::new(&store_options(&config.database), clock.clone())?;
    let faults = store.role_faults().await.context("cannot read what the database role may do")?;
    ensure!(faults.is_empty(), "{}", unfit(&faults));
    let pending = store.pending_migrations().await.context("cannot read the schema's version")?;
    ensure!(
        pending.is_empty(),
        "the database lacks {} migration(s): run `keypool migrate`",
        pending.len()
    );
    let upload = upload_policy(&config.upload)?;
    let pool = KeyPool::open(store, clock, config.pool.clone(), upload).await?;
    let calls = bind(config.listen).await?;
    let probes = match config.health.listen {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    if let Some(probes) = &probes {
        tracing::info!(address = %probes.local_addr()?, "answering probes");
    }
    tracing::info!(address = %calls.local_addr()?, tls = tls.is_some(), "serving");
    let listeners = Listeners { calls, probes };
    let options = ServerOptions {
        tls,
        metrics: MetricsOptions {
            listen: config.metrics.listen,
            sample_interval: config.metrics.sample_interval,
        },
        ..server_options(&config.server, &config.limits, &config.sweeper)
    };
    server::serve(listeners, pool, authenticator, options, stop).await?;
    tracing::info!("stopped");
    Ok(())
}

/// `keypool migrate`: brings the schema up to date.
///
/// # Errors
/// When the database cannot be reached, a migration fails, or gets no lock in time.
pub async fn migrate(config: &Config, patience: LockPatience) -> anyhow::Result<()> {
    let store = Store::new(&store_options(&config.database), Arc::new(SystemClock))?;
    let pending = store.pending_migrations().await?;
    store.migrate(patience).await?;
    let newest = store.applied_migrations().await?.into_iter().max();
    store.close().await;
    let state = match newest > Some(newest_migration()) {
        true => "newer than this version of keypool, which can work on it",
        false => "up to date",
    };
    writeln!(io::stdout(), "{} migration(s) applied; the schema is {state}", pending.len())?;
    Ok(())
}

/// `keypool wait`: waits until the database answers and its schema is up to date.
///
/// # Errors
/// What is still missing once `timeout` has passed.
pub async fn wait(config: &Config, timeout: Duration) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now().checked_add(timeout);
    let mut said = None;
    loop {
        let missing = check_database(config).await;
        let Some(first) = missing.into_iter().next() else { break };
        if deadline.is_some_and(|deadline| deadline <= tokio::time::Instant::now()) {
            bail!("not ready after {}: {first}", humantime::format_duration(timeout));
        }
        if said.as_ref() != Some(&first) {
            tracing::info!("waiting: {first}");
            said = Some(first);
        }
        tokio::time::sleep(WAIT_INTERVAL).await;
    }
    writeln!(io::stdout(), "the database answers and its schema is up to date")?;
    Ok(())
}

/// What is wrong with the database that a valid configuration names. None: it can serve.
pub async fn check_database(config: &Config) -> Vec<Finding> {
    let problems = match database_problems(config).await {
        Ok(problems) => problems,
        Err(error) => vec![format!("{error:#}")],
    };
    problems.into_iter().map(|problem| Finding::new("database", problem)).collect()
}

async fn database_problems(config: &Config) -> anyhow::Result<Vec<String>> {
    let store = Store::new(&store_options(&config.database), Arc::new(SystemClock))?;
    let (faults, mut problems) = (store.role_faults().await?, Vec::new());
    if !faults.is_empty() {
        problems.push(unfit(&faults));
    }
    match store.pending_migrations().await {
        Ok(pending) if pending.is_empty() => {}
        Ok(pending) => {
            problems.push(format!("lacks {} migration(s): run `keypool migrate`", pending.len()));
        }
        // A role that may not ask has been told so.
        Err(_) if !problems.is_empty() => {}
        Err(error) => return Err(error.into()),
    }
    Ok(problems)
}

/// Why a role with these faults is not to serve as.
fn unfit(faults: &[String]) -> String {
    format!(
        "the role of the database's URL {}: serve as one that was granted keypool_service and nothing \
         else (docs/database-roles.md)",
        faults.join(", and ")
    )
}

/// `keypool dev`: a whole keypool in one folder, with a Postgres of its own.
///
/// # Errors
/// When Postgres or the server cannot run.
pub async fn dev(data: &Path, listen: SocketAddr) -> anyhow::Result<()> {
    let stop = stop_on_signal()?;
    let postgres = EmbeddedPostgres::start(data, PostgresOptions::default()).await?;
    let served = dev_on(&postgres, data, listen, stop).await;
    let stopped = postgres.stop().await;
    served.and(stopped)
}

async fn dev_on(
    postgres: &EmbeddedPostgres,
    data: &Path,
    listen: SocketAddr,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let clock = Arc::new(SystemClock);
    let key_file = data.join("dev-key.pem");
    let keys = KeySet::new(vec![SigningKey::load_or_create(&key_file)?.verifying_key()?])?;
    let auth = AuthSection::for_audience(DEV_AUDIENCE);
    let authenticator = Authenticator::new(keys, &auth, clock.clone());
    let database = DatabaseSection::at(Secret::new(postgres.url()));
    let store = Store::new(&store_options(&database), clock.clone())?;
    store.migrate(LockPatience::default()).await?;
    let upload = upload_policy(&UploadSection::default())?;
    let pool = KeyPool::open(store, clock, PoolPolicy::default(), upload).await?;
    let listener = bind(listen).await?;
    greet(listener.local_addr()?, &key_file)?;
    let limits = LimitsSection::default();
    let options = server_options(&ServerSection::default(), &limits, &SweeperSection::default());
    server::serve(listener, pool, authenticator, options, stop).await
}

fn greet(address: SocketAddr, key_file: &Path) -> io::Result<()> {
    let key = key_file.display();
    writeln!(
        io::stdout(),
        "keypool serves on {address}; Ctrl-C stops it.\n\nTo try next:\n\
         \x20 grpcurl -plaintext {address} describe keypool.v1.KeyPackageService\n\
         \x20 TOKEN=$(keypool token --user bob --client phone --key {key})\n\
         \x20 grpcurl -plaintext -H \"authorization: Bearer $TOKEN\" {address} \
         keypool.v1.KeyPackageService/GetPoolStatus\n"
    )?;
    io::stdout().flush()
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

/// Cancelled by the first SIGTERM or SIGINT; the second one ends the process as it would without
/// this.
fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let told = stop.clone();
    tokio::spawn(async move {
        for told_twice in [false, true] {
            tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
            if told_twice {
                tracing::warn!("told to stop twice: calls in flight are cut off");
                std::process::exit(130);
            }
            told.cancel();
        }
    });
    Ok(stop)
}

pub(crate) fn store_options(section: &DatabaseSection) -> StoreOptions {
    StoreOptions {
        url: section.url.expose().to_owned(),
        max_connections: section.max_connections,
        acquire_timeout: section.acquire_timeout,
        statement_timeout: section.statement_timeout,
    }
}

/// How a server behaves that is configured so, but for its certificate: it serves plaintext.
pub fn server_options(
    server: &ServerSection,
    limits: &LimitsSection,
    sweeper: &SweeperSection,
) -> ServerOptions {
    // Numbers and times are bounded by the configuration, so that none is out of range.
    let days = sweeper.event_retention.as_secs() / (24 * 60 * 60);
    let span = |given: Duration| time::Duration::try_from(given).unwrap_or(time::Duration::MAX);
    let size = |given: u32| usize::try_from(given).unwrap_or(usize::MAX);
    ServerOptions {
        limits: CallLimits {
            load: load_limits(limits, size(server.max_concurrent_requests)),
            timeout: server.request_timeout,
            max_request_bytes: size(server.max_request_bytes),
            watch: WatchLimits {
                per_client: size(server.max_watches_per_client),
                max_age: server.max_connection_age,
            },
        },
        connections: ConnectionLimits {
            max_connections: size(server.max_connections),
            max_streams: server.max_streams_per_connection,
            max_header_bytes: server.max_header_bytes,
            handshake_timeout: server.handshake_timeout,
            idle_timeout: server.idle_timeout,
            keepalive_interval: KEEPALIVE_INTERVAL,
            keepalive_timeout: KEEPALIVE_TIMEOUT,
            max_age: server.max_connection_age,
        },
        tls: None,
        drain_timeout: server.drain_timeout,
        sweep: SweepPolicy {
            interval: span(sweeper.interval),
            batch: sweeper.batch,
            tombstone_retention: span(sweeper.tombstone_retention),
            event_retention_days: u16::try_from(days).unwrap_or(u16::MAX),
            ..SweepPolicy::default()
        },
        metrics: MetricsOptions {
            listen: None,
            sample_interval: MetricsSection::default().sample_interval,
        },
    }
}

fn load_limits(section: &LimitsSection, requests: usize) -> LoadLimits {
    // Owners come seldom and in the background: they may wait longer.
    const OWNERS_WAIT: u32 = 10;
    let size = |given: u32| usize::try_from(given).unwrap_or(usize::MAX);
    let rate = |burst, per_minute| Rate { burst, per_minute };
    let gate = |places, queue, times| GateLimits {
        places,
        queue,
        wait: section.max_wait * times,
        standing_wait: section.standing_wait * times,
    };
    LoadLimits {
        rates: section.rate_limits.then(|| RateLimits {
            reserve: rate(section.reserve_burst, section.reserve_per_minute),
            target: rate(section.target_burst, section.target_per_minute),
            owner: rate(section.owner_burst, section.owner_per_minute),
        }),
        requests: RequestLimits {
            requests,
            requests_per_caller: size(section.max_requests_per_caller),
            bytes: size(section.max_bytes),
            bytes_per_caller: size(section.max_bytes_per_caller),
        },
        adders: gate(section.adder_places, section.adder_queue, 1),
        owners: gate(section.owner_places, section.owner_queue, OWNERS_WAIT),
    }
}

fn upload_policy(section: &UploadSection) -> anyhow::Result<UploadPolicy> {
    Ok(UploadPolicy {
        cipher_suites: section.cipher_suites.clone(),
        max_lifetime: section.max_lifetime.try_into()?,
        clock_skew: section.clock_skew.try_into()?,
        credential_identity: IdentityTemplate::parse(&section.credential_identity)?,
        trust_anchors: load_trust_anchors(&section.trust_anchors)?,
        ..UploadPolicy::default()
    })
}

/// Reads the files that `[tls]` names.
pub(crate) fn load_tls(section: &TlsSection) -> anyhow::Result<Tls> {
    let TlsSection { certificate, key, client_ca, reload_interval } = section.clone();
    Tls::load(TlsFiles { certificate, key, client_ca }, reload_interval)
}

/// Reads the CA certificates of PEM files.
pub(crate) fn load_trust_anchors(files: &[PathBuf]) -> anyhow::Result<TrustAnchors> {
    let mut anchors = TrustAnchors::default();
    for path in files {
        let added = fs::read(path).map_err(anyhow::Error::new);
        let added = added.and_then(|file| Ok(anchors.add_pem(&file)?));
        added.with_context(|| path.display().to_string())?;
    }
    Ok(anchors)
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

    use super::*;

    #[test]
    fn the_upload_policy_has_the_trust_anchors_of_every_file() {
        let folder = tempfile::tempdir().unwrap();
        let [one, two] = ["one.pem", "two.pem"].map(|name| {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            let file = pem::encode(&pem::Pem::new("CERTIFICATE", &certificate.der()[..]));
            fs::write(folder.path().join(name), &file).unwrap();
            file
        });
        let mut anchors = TrustAnchors::default();
        anchors.add_pem((one + &two).as_bytes()).unwrap();
        let files = ["one.pem", "two.pem"].map(|name| folder.path().join(name));
        let section = UploadSection { trust_anchors: files.into(), ..UploadSection::default() };
        assert_eq!(upload_policy(&section).unwrap().trust_anchors, anchors);
        assert_eq!(
            upload_policy(&UploadSection::default()).unwrap().trust_anchors,
            TrustAnchors::default()
        );
    }
}
