//! What bounds the load, asked of the real binary: rates, the gate, what requests take up.

mod conversation;
mod hostile;
mod peers;
mod rates;
mod shedding;

use keypool_client::{Client, Error, Reserve};
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

/// With the limits that a server has by default.
fn defaults() -> ServerOptions {
    ServerOptions::default().without("limits.rate_limits")
}

async fn publish(server: &Server, user_id: &str, count: usize) -> Client {
    let now = SystemClock.now().unix_timestamp().try_into().unwrap();
    let packages = (0..count).map(|_| Forge::new(SUITE, user_id).valid_around(now).build());
    let owner = server.client(user_id, "phone").await;
    let answer = owner.upload(packages).await.unwrap();
    assert!(answer.results.iter().all(|result| result.accepted().is_some()));
    owner
}

fn from(user_id: &str) -> Reserve {
    Reserve::new(GROUP, SUITE).target_clients(user_id, ["phone"])
}

async fn reserved(owner: &Client) -> u32 {
    owner.pool_status().await.unwrap().cipher_suites[0].reserved
}

#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, Error>) -> keypool_client::Rejection {
    answer.unwrap_err().rejection().expect("a refusal").clone()
}
