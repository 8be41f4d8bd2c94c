//! What keypool promises over gRPC, asked of the real binary on a real database.

mod bad_requests;
mod commands;
mod crash;
mod health;
mod keys;
mod limits;
mod main_job;
mod memory;
mod oracle;
mod outages;
mod probes;
mod reasons;
mod reflection;
mod refusals;
mod replicas;
mod roles;
mod rpcs;
mod secrecy;
mod shutdown;
mod tokens;
mod uploads;

use keypool_client::{Client, Error, Rejection, Reserve, v1};
use keypool_service::{
    domain::clock::{Clock as _, SystemClock},
    store::MIGRATOR,
};
use keypool_testing::{
    database::TestDatabase,
    forge::Forge,
    server::{Server, ServerOptions},
};

const SUITE: u16 = 1;
const GROUP: &[u8] = b"the group of the test";

async fn database() -> TestDatabase {
    TestDatabase::migrated(&MIGRATOR).await
}

/// Without fair share, which its own tests are about: others draw on small pools repeatedly.
fn options() -> ServerOptions {
    ServerOptions::default().set("pool.fair_share", false)
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemClock.now().unix_timestamp().try_into().unwrap()
}

/// A good KeyPackage of a user, valid now.
fn package(user_id: &str) -> Forge {
    Forge::new(SUITE, user_id).valid_around(now())
}

fn packages(user_id: &str, count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|_| package(user_id).build()).collect()
}

/// Uploads packages, all of which are accepted.
async fn publish(client: &Client, packages: Vec<Vec<u8>>) -> v1::PoolStatus {
    let answer = client.upload(packages).await.unwrap();
    for result in &answer.results {
        assert!(result.accepted().is_some(), "{result:?}");
    }
    answer.status.unwrap()
}

/// Publishes some packages of the phone of a user.
async fn publish_some(server: &Server, user_id: &str, count: usize) -> Client {
    let client = server.client(user_id, "phone").await;
    publish(&client, packages(user_id, count)).await;
    client
}

fn one_of(user_id: &str) -> Reserve {
    Reserve::new(GROUP, SUITE).target_clients(user_id, ["phone"])
}

async fn reserve_one(client: &Client, request: &Reserve) -> v1::Reservation {
    let answer = client.reserve(request).await.unwrap();
    assert_eq!(answer.results.len(), 1);
    answer.results[0].reservation().expect("a reservation").clone()
}

/// The one cipher suite of a pool.
async fn counts(client: &Client) -> v1::CipherSuiteStatus {
    let status = client.pool_status().await.unwrap();
    assert_eq!(status.cipher_suites.len(), 1);
    status.cipher_suites.into_iter().next().unwrap()
}

#[track_caller]
fn rejection<T: std::fmt::Debug>(answer: Result<T, Error>) -> Rejection {
    match answer {
        Err(error) => error.rejection().expect("a refusal").clone(),
        Ok(answer) => panic!("not refused: {answer:?}"),
    }
}
