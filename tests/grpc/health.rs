//! Health (grpc.health.v1): the service follows the database, the process as a whole does not,
//! so that nobody restarts a server because its database is away.

use keypool_testing::{
    proxy::Proxy,
    server::{SERVICE, until},
};
use tonic_health::pb::health_check_response::ServingStatus;

use super::*;

#[tokio::test]
async fn health_follows_the_database() {
    let database = database().await;
    let proxy = Proxy::to(database.target()).await;
    let server = Server::on(&database.url_through(&proxy, "password"), &options()).await;
    let mut service = server.health(SERVICE).await;
    assert_eq!(service.next().await, ServingStatus::Serving);
    for lose in [Proxy::cut, Proxy::hold_answers] {
        lose(&proxy);
        assert_eq!(service.next().await, ServingStatus::NotServing);
        assert_eq!(server.health("").await.next().await, ServingStatus::Serving);
        proxy.open();
        assert_eq!(service.next().await, ServingStatus::Serving);
    }
}

#[tokio::test]
async fn a_busy_database_is_a_healthy_one() {
    let database = database().await;
    let busy = options().set("database.max_connections", 1).text("database.acquire_timeout", "1s");
    let server = Server::start(&database, &busy).await;
    let lock = database.lock_table("pool").await;
    let client = server.client("bob", "phone").await;
    let call = tokio::spawn(async move { client.pool_status().await });
    database.waiting(1).await;
    // When it asks a second time, it has judged the first answer.
    for _ in 0..2 {
        asked_anew(&database).await;
    }
    assert_eq!(server.health(SERVICE).await.next().await, ServingStatus::Serving);
    lock.release().await;
    call.await.unwrap().unwrap();
}

/// Returns once the server has asked the database from now on.
async fn asked_anew(database: &TestDatabase) {
    let last = async || -> i64 {
        let asked = "SELECT (extract(epoch FROM max(query_start)) * 1000)::bigint
                     FROM pg_stat_activity
                     WHERE datname = current_database() AND query = 'SELECT 1'";
        let at: Option<i64> = sqlx::query_scalar(asked).fetch_one(&database.pool).await.unwrap();
        at.unwrap_or_default()
    };
    let before = last().await;
    until(async || last().await > before).await;
}
