//! The port for probes: grpc.health.v1 and nothing else, without TLS, for the kubelet speaks none.

use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_health::pb::health_server::{Health, HealthServer};
use tower::ServiceBuilder;

use super::connections::{self, ConnectionLimits};
use crate::grpc::DeadlineLayer;

/// How long a probe may take to arrive, and again to be answered.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A probe of the kubelet is a connection of its own with one call.
const LIMITS: ConnectionLimits = ConnectionLimits {
    max_connections: 64,
    max_streams: 8,
    max_header_bytes: 4096,
    handshake_timeout: TIMEOUT,
    idle_timeout: Duration::from_secs(60),
    keepalive_interval: TIMEOUT,
    keepalive_timeout: TIMEOUT,
    max_age: Duration::from_secs(600),
};

/// Answers probes until told to stop.
pub(super) async fn serve<H: Health>(
    listener: TcpListener,
    health: HealthServer<H>,
    stop: CancellationToken,
) {
    let stack = ServiceBuilder::new()
        .layer(DeadlineLayer::new(TIMEOUT))
        .service(Routes::new(health).prepare());
    connections::serve(listener, None, LIMITS, stack, stop).await;
}
