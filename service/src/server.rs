//! The server: the ordered stack on one screen, health, graceful shutdown.

mod calls;
mod connections;
mod probes;
mod tls;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use http::{HeaderName, Request};
use keypool_proto::{FILE_DESCRIPTOR_SET, v1::key_package_service_server::KeyPackageServiceServer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_health::server::HealthReporter;
use tower::{ServiceBuilder, util::MapResponseLayer};
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};
use tower_http::trace::TraceLayer;

pub use connections::ConnectionLimits;
pub use tls::{Tls, TlsFiles};

use crate::{
    domain::error::Error,
    grpc::{
        self, Admit, CallLimits, DeadlineLayer, GrpcService, Limits, MeasureLayer, ShedLayer,
        auth::Authenticator,
    },
    metrics::{self, metrics},
    pool::{KeyPool, SweepPolicy},
    store::{self, Store},
    telemetry::traces,
};

/// How often the database is asked whether it answers.
const HEALTH_INTERVAL: Duration = Duration::from_secs(2);

/// A caller's own request id is logged when it is no longer than this.
const MAX_REQUEST_ID: usize = 64;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

type Service = KeyPackageServiceServer<GrpcService>;

/// Where the server listens.
#[derive(Debug)]
pub struct Listeners {
    /// For calls.
    pub calls: TcpListener,
    /// For probes of its health that speak no TLS; they are served nothing else.
    pub probes: Option<TcpListener>,
}

impl From<TcpListener> for Listeners {
    fn from(calls: TcpListener) -> Self {
        Self { calls, probes: None }
    }
}

/// How the server behaves.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// What bounds the calls.
    pub limits: CallLimits,
    /// What bounds the connections.
    pub connections: ConnectionLimits,
    /// The certificate to serve TLS with; without, it is plaintext.
    pub tls: Option<Tls>,
    /// How long calls in flight may take to finish once the server is told to stop.
    pub drain_timeout: Duration,
    /// How the sweeper works.
    pub sweep: SweepPolicy,
    /// What is served and counted for Prometheus.
    pub metrics: MetricsOptions,
}

/// What is served and counted for Prometheus.
#[derive(Debug, Clone, Copy)]
pub struct MetricsOptions {
    /// Where; without, nothing is served.
    pub listen: Option<SocketAddr>,
    /// How often packages and pools are counted.
    pub sample_interval: Duration,
}

impl MetricsOptions {
    async fn bind(&self) -> anyhow::Result<Option<TcpListener>> {
        let Some(address) = self.listen else { return Ok(None) };
        let listener = TcpListener::bind(address).await;
        let listener = listener.with_context(|| format!("metrics.listen: cannot use {address}"))?;
        tracing::info!(address = %listener.local_addr()?, "metrics");
        Ok(Some(listener))
    }
}

/// Serves calls until told to stop, then refuses new ones and finishes those in flight.
///
/// # Errors
/// When the server cannot run, or calls in flight outlive the drain timeout.
pub async fn serve(
    listeners: impl Into<Listeners>,
    pool: KeyPool,
    authenticator: Authenticator,
    options: ServerOptions,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let listeners = listeners.into();
    let metrics_listener = options.metrics.bind().await?;
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_not_serving::<Service>().await; // until the database has answered
    let load = Arc::new(Limits::new(options.limits.load));
    let service = GrpcService::new(pool.clone(), options.limits, load.clone(), stop.clone());
    let service = Service::new(service).max_decoding_message_size(options.limits.max_request_bytes);
    let background = tokio::spawn(watch_health(health, pool.store().clone(), stop.clone()));
    let sweeper = tokio::spawn({
        let (pool, policy, stop) = (pool.clone(), options.sweep.clone(), stop.clone());
        async move { pool.run_sweeper(policy, stop).await }
    });
    let watching = tokio::spawn({
        let (pool, stop) = (pool.clone(), stop.clone());
        async move { pool.run_watch(stop).await }
    });
    let certificates = tokio::spawn({
        let (tls, stop) = (options.tls.clone(), stop.clone());
        async move {
            if let Some(tls) = tls {
                tls.follow(stop).await;
            }
        }
    });

    let authenticator = Arc::new(authenticator);
    let keys = tokio::spawn({
        let (authenticator, stop) = (authenticator.clone(), stop.clone());
        async move { authenticator.keep_keys(stop).await }
    });

    let drained = CancellationToken::new();
    let probes = tokio::spawn({
        let (health, drained) = (health_service.clone(), drained.clone());
        async move {
            if let Some(listener) = listeners.probes {
                probes::serve(listener, health, drained).await;
            }
        }
    });
    metrics().tell_build(store::newest_migration());
    let exposing = tokio::spawn({
        let (pool, keys, tls) = (pool.clone(), authenticator.clone(), options.tls.clone());
        let look = move || {
            pool.store().measure_connections();
            keys.measure();
            tls.iter().for_each(Tls::measure);
        };
        metrics::serve(metrics_listener, look, stop.clone())
    });
    let sampling = tokio::spawn({
        let (pool, stop) = (pool.clone(), stop.clone());
        async move { pool.run_sampler(options.metrics.sample_interval, stop).await }
    });

    let refusals = tokio::spawn(grpc::tell_refused(stop.clone()));

    let max_request_bytes = options.limits.max_request_bytes;
    let stack = ServiceBuilder::new()
        .layer(ShedLayer::new(load.clone()))
        .layer(MeasureLayer)
        .layer(SetRequestIdLayer::new(REQUEST_ID, MakeRequestUuid))
        .layer(
            TraceLayer::new_for_grpc()
                .make_span_with(span)
                .on_request(())
                .on_response(())
                .on_body_chunk(())
                .on_eos(())
                .on_failure(()),
        )
        .layer(PropagateRequestIdLayer::new(REQUEST_ID))
        .layer(MapResponseLayer::new(move |response| {
            grpc::explain_unread(response, max_request_bytes)
        }))
        .layer(DeadlineLayer::new(options.limits.timeout))
        .service(
            Routes::new(reflection_v1()?)
                .add_service(reflection_v1alpha()?)
                .add_service(health_service)
                .add_service(Admit::new(service, authenticator, load, stop.clone()))
                .prepare(),
        );
    let serving =
        connections::serve(listeners.calls, options.tls, options.connections, stack, stop.clone());
    let whole = async {
        serving.await;
        for task in
            [background, sweeper, watching, certificates, keys, exposing, sampling, refusals]
        {
            task.await.context("a background task failed")?;
        }
        pool.store().close().await;
        drained.cancel(); // probes are answered until there is nothing left to probe
        probes.await.context("the listener for probes failed")?;
        Ok(())
    };
    // All of it has to end in time: closing waits for the statement of every call.
    let too_late = async {
        stop.cancelled().await;
        tokio::time::sleep(options.drain_timeout).await;
    };
    tokio::select! {
        served = whole => served,
        () = too_late => Err(anyhow::anyhow!(
            "calls were still in flight after {:?}", options.drain_timeout)),
    }
}

/// The span of one call. Carries nothing that the caller sent but the name of the method and the
/// request id.
fn span<B>(request: &Request<B>) -> tracing::Span {
    let request_id = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok());
    let request_id = request_id.filter(|id| id.len() <= MAX_REQUEST_ID);
    let path = request.uri().path();
    match traces::is_on() {
        true => traces::call(metrics().calls.method(path), request_id, request.headers()),
        false => tracing::info_span!("call", method = path, request_id),
    }
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

fn reflection_v1() -> anyhow::Result<
    tonic_reflection::server::v1::ServerReflectionServer<
        impl tonic_reflection::server::v1::ServerReflection,
    >,
> {
    reflection().build_v1().context("the contract cannot be reflected")
}

fn reflection_v1alpha() -> anyhow::Result<
    tonic_reflection::server::v1alpha::ServerReflectionServer<
        impl tonic_reflection::server::v1alpha::ServerReflection,
    >,
> {
    reflection().build_v1alpha().context("the contract cannot be reflected")
}

/// Serving while the database answers, not serving while it does not or once the server stops.
async fn watch_health(health: HealthReporter, store: Store, stop: CancellationToken) {
    let mut serving = None;
    while !stop.is_cancelled() {
        let answer = store.ping().await;
        if serving != Some(answer.is_ok()) {
            serving = Some(answer.is_ok());
            metrics().database_up.set(f64::from(u8::from(answer.is_ok())));
            report(answer);
            match serving {
                Some(true) => health.set_serving::<Service>().await,
                _ => health.set_not_serving::<Service>().await,
            }
        }
        stop.run_until_cancelled(tokio::time::sleep(HEALTH_INTERVAL)).await;
    }
    health.set_not_serving::<Service>().await;
}

fn report(answer: Result<(), Error>) {
    match answer {
        Ok(()) => tracing::info!("the database answers"),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "the database does not answer")
        }
    }
}
