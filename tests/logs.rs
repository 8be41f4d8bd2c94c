//! The level of the logs changes while the server runs.

use keypool_service::store::MIGRATOR;
use keypool_testing::{
    database::TestDatabase,
    server::{Server, ServerOptions},
};

/// One line, with the id that the answer carries, however the call failed.
#[tokio::test]
async fn a_failed_call_is_one_line_with_its_request_id() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let server = Server::start(&database, &ServerOptions::default()).await;
    let mut grpc = server.grpc().await;
    let refused = grpc.get_pool_status(keypool_client::v1::GetPoolStatusRequest {}).await;
    let status = refused.unwrap_err();
    let id = status.metadata().get("x-request-id").unwrap().to_str().unwrap();
    let log = server.log();
    let about: Vec<&str> = log.lines().filter(|line| line.contains(id)).collect();
    assert_eq!(about.len(), 1, "{log}");
    assert!(about[0].contains("TOKEN_MISSING"), "{log}");
}

#[tokio::test]
async fn the_filter_is_read_again_at_sighup() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let options = ServerOptions::default().text("log.filter", "info").text("log.format", "text");
    let server = Server::start(&database, &options).await;
    let fail = async || {
        let mut grpc = server.grpc().await;
        grpc.get_pool_status(keypool_client::v1::GetPoolStatusRequest {}).await.unwrap_err();
        server.log().matches("TOKEN_MISSING").count()
    };
    assert_eq!(fail().await, 1);
    server.reconfigure(&options.clone().text("log.filter", "error"));
    server.signal("HUP");
    server.logged("log.filter was read again").await;
    assert_eq!(fail().await, 1, "of a level that is not logged any more");
    server.reconfigure(&options.clone().text("log.filter", "no,=such"));
    server.signal("HUP");
    server.logged("log.filter cannot be read again").await;
    assert_eq!(fail().await, 1);
    server.reconfigure(&options);
    server.signal("HUP");
    keypool_testing::server::until(async || fail().await > 1).await;
}
