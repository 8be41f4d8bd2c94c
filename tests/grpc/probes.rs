//! The port for probes: health without TLS, whatever the calls are served with, and nothing else.

use keypool_client::v1::{
    GetPoolStatusRequest, key_package_service_client::KeyPackageServiceClient,
};
use keypool_testing::{
    proxy::Proxy,
    server::{HealthWatch, SERVICE, Server},
    tls::{Ca, TlsFolder},
    tokens::{authorized, token},
};
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::health_check_response::ServingStatus;

use super::*;

fn probed() -> ServerOptions {
    options().text("health.listen", "127.0.0.1:0")
}

async fn connection(server: &Server) -> Channel {
    Endpoint::from_shared(server.probes()).unwrap().connect().await.unwrap()
}

/// What a probe is answered that connects now, as the kubelet's does.
async fn probe(server: &Server, service: &str) -> ServingStatus {
    HealthWatch::of(connection(server).await, service).await.next().await
}

#[tokio::test]
async fn a_server_with_tls_is_probed_without() {
    let (database, ca) = (database().await, Ca::new());
    let files = TlsFolder::of(&ca);
    let options = files.configure(probed());
    let server = Server::start_with_tls(&database, &options, ca.trusted()).await;
    for service in [SERVICE, ""] {
        assert_eq!(probe(&server, service).await, ServingStatus::Serving, "{service:?}");
    }
}

#[tokio::test]
async fn the_port_for_probes_serves_no_calls() {
    let database = database().await;
    let server = Server::start(&database, &probed()).await;
    let request = authorized(&token("bob", "phone"), GetPoolStatusRequest {});
    let mut client = KeyPackageServiceClient::new(connection(&server).await);
    let refused = client.get_pool_status(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
}

#[tokio::test]
async fn readiness_follows_the_database_and_liveness_does_not() {
    let database = database().await;
    let proxy = Proxy::to(database.target()).await;
    let server = Server::on(&database.url_through(&proxy, "password"), &probed()).await;
    let mut ready = HealthWatch::of(connection(&server).await, SERVICE).await;
    assert_eq!(ready.next().await, ServingStatus::Serving);
    proxy.cut();
    assert_eq!(ready.next().await, ServingStatus::NotServing);
    assert_eq!(probe(&server, "").await, ServingStatus::Serving);
    proxy.open();
    assert_eq!(ready.next().await, ServingStatus::Serving);
}

/// Else the kubelet would take a replica that drains for one that hangs.
#[tokio::test]
async fn probes_are_answered_while_calls_finish() {
    let database = database().await;
    let mut server = Server::start(&database, &probed()).await;
    let lock = database.lock_table("pool").await;
    let client = server.client("bob", "phone").await;
    let call = tokio::spawn(async move { client.pool_status().await });
    database.waiting(1).await;
    server.signal("TERM");
    server.refuses_connections().await;
    assert_eq!(probe(&server, "").await, ServingStatus::Serving);
    assert_eq!(probe(&server, SERVICE).await, ServingStatus::NotServing);
    lock.release().await;
    call.await.unwrap().unwrap();
    assert_eq!(server.ended().await.code(), Some(0));
}
