//! What applications that use the SDK notice of outages: nothing, where their deadline allows.

use std::time::Duration;

use keypool_client::v1::PoolStatus;
use keypool_testing::{proxy::Proxy, server::ServerOptions};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    cluster::{Cluster, Layout},
    database::Database,
    fault::Scenario,
    run::{Plan, run},
};

/// Longer than a restart or a failover takes on a machine with much else to do.
const DEADLINE: Duration = Duration::from_secs(90);

/// Plays a scenario until enough calls were made, and asserts that the SDK let none fail.
async fn no_error_reaches_the_application(scenario: Scenario) {
    let folder = tempfile::tempdir().unwrap();
    let length = Duration::from_secs(1);
    let plan = Plan { scenario, length, least: 300, deadline: DEADLINE, seed: 1 };
    let outcome = run(&plan, &folder.path().join("history.jsonl")).await.unwrap();
    assert_eq!(outcome.violations, [] as [String; 0]);
    assert!(outcome.recovery.faults > 0 && outcome.recovery.calls > 0, "{outcome:?}");
    assert_eq!(outcome.recovery.errors, 0, "{outcome:?}");
}

#[tokio::test]
async fn a_postgres_that_is_killed_and_recovers_fails_no_call_of_the_sdk() {
    no_error_reaches_the_application(Scenario::KillPostgres).await;
}

#[tokio::test]
async fn a_failover_to_a_synchronous_standby_fails_no_call_of_the_sdk() {
    no_error_reaches_the_application(Scenario::Failover).await;
}

fn poll(cluster: &Cluster, stop: &CancellationToken) -> JoinHandle<Option<PoolStatus>> {
    let client = cluster.sdk("owner", "phone").unwrap();
    let stop = stop.clone();
    tokio::spawn(async move {
        let mut last = None;
        while !stop.is_cancelled() {
            last = Some(client.pool_status().await.unwrap());
        }
        last
    })
}

/// As when a firewall forgets connections: nobody is told, and TCP would wait for minutes.
#[tokio::test]
async fn database_connections_that_fell_silent_are_replaced() {
    let folder = tempfile::Builder::new().prefix("keypool-chaos-").tempdir().unwrap();
    let database = Database::create(&folder.path().join("0"), &[("fsync", "off")]).await.unwrap();
    let options = ServerOptions::default()
        .text("database.statement_timeout", "1s")
        .text("server.request_timeout", "4s")
        .set("pool.fair_share", false);
    let layout = Layout { proxy_database: true, options, ..Layout::default() };
    let mut cluster = Cluster::start(database, 1, layout).await.unwrap();
    cluster.deadline = DEADLINE;

    // Owners and adders have connections of their own.
    let stop = CancellationToken::new();
    let polls: Vec<_> = (0..8).map(|_| poll(&cluster, &stop)).collect();
    let adder = cluster.sdk("adder", "phone").unwrap();
    let wish = || keypool_client::Reserve::new(&b"group"[..], 1_u16).target("owner");
    let exhausted = async || {
        let refused = adder.reserve(&wish()).await.unwrap_err();
        assert!(matches!(refused, keypool_client::Error::PoolExhausted(_)), "{refused:?}");
    };
    exhausted().await;
    for _ in 0..2 {
        cluster.proxy.as_ref().map(Proxy::strand).unwrap();
        exhausted().await;
        cluster.sdk("owner", "phone").unwrap().pool_status().await.unwrap();
    }
    stop.cancel();
    for poll in polls {
        poll.await.unwrap();
    }
    cluster.replicas.clear();
}
