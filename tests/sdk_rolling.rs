//! Three replicas are replaced one after the other, as a rolling update does, while applications
//! call through the SDK: none of their calls fails, and what they watch goes on.

use keypool_service::store::MIGRATOR;
use keypool_testing::{
    applications::Applications,
    database::TestDatabase,
    server::{Server, ServerOptions},
};

const REPLICAS: usize = 3;
const PAIRS: usize = 2;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_replicas_are_replaced_no_call_fails_and_watches_go_on() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let options = ServerOptions::default().set("pool.fair_share", false);
    let mut servers = Vec::new();
    for _ in 0..REPLICAS {
        servers.push(Server::start(&database, &options).await);
    }
    let applications = Applications::start("rolling", PAIRS, &servers).await;
    applications.go_on().await;
    for _ in 0..REPLICAS {
        let mut server = servers.remove(0);
        let options = options.clone().text("listen", server.address().to_string());
        server.signal("TERM");
        assert_eq!(server.ended().await.code(), Some(0), "{}", server.log());
        applications.go_on().await;
        servers.push(Server::start(&database, &options).await);
        applications.go_on().await;
    }
    let (failures, _, resumed) = applications.end().await;
    assert_eq!(failures, [] as [String; 0]);
    assert!(resumed >= REPLICAS, "every stream was on some replica");
}
