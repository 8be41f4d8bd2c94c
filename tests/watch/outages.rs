//! What happens while a replica cannot hear is seen afterwards.

use std::time::Duration;

use keypool_client::{Client, v1::ErrorReason};
use keypool_service::domain::{error::Error, ids::ClientKey, policy::PoolPolicy};
use keypool_testing::watching::{
    Replicas, Watching, client_key, each, one_of, packages, patiently,
};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Executor as _, postgres::PgConnectOptions};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, UnixStream},
};

fn low_at_two() -> PoolPolicy {
    PoolPolicy { low_watermark: 2, ..PoolPolicy::default() }
}

/// Whether the database lets anyone in who is not in already.
async fn let_in(replicas: &Replicas, allowed: bool) {
    let options: PgConnectOptions = replicas.database.url().parse().unwrap();
    let name = options.get_database().unwrap().to_owned();
    let mut elsewhere = options.database("postgres").connect().await.unwrap();
    let statement = format!(r#"ALTER DATABASE "{name}" ALLOW_CONNECTIONS {allowed}"#);
    elsewhere.execute(AssertSqlSafe(statement)).await.unwrap();
}

async fn end_backends(replicas: &Replicas, whose: &'static str) -> usize {
    let ended: Vec<bool> =
        sqlx::query_scalar(whose).fetch_all(&replicas.database.pool).await.unwrap();
    ended.len()
}

const LISTENING: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'keypool'
      AND query LIKE 'LISTEN%'";
const ALL: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'keypool'";

/// Waits until this many replicas listen.
async fn listening(replicas: &Replicas, count: i64) {
    let listen = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'keypool'
          AND query LIKE 'LISTEN%' AND state = 'idle'";
    patiently(async {
        while sqlx::query_scalar::<_, i64>(listen).fetch_one(&replicas.database.pool).await.unwrap()
            != count
        {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_told_while_nobody_listens_is_pushed_after_the_reconnect() {
    let replicas = Replicas::new(low_at_two()).await;
    let (here, there) = (replicas.serve().await, replicas.serve().await);
    let bob = client_key("bob", "phone");
    let owner = replicas.client(&here, &bob).await;
    owner.upload(packages("bob", 8)).await.unwrap();
    let adder = replicas.client(&there, &client_key("alice", "phone")).await;
    let mut heard = replicas.listen().await;
    listening(&replicas, 2).await;
    let (mut stream, _) = Watching::start(&owner).await;
    // The other replica has the connections that it needs, one for Reserves among them.
    each(16, |_| async { adder.pool_status().await.unwrap() }).await;
    drop(adder.reserve(&one_of(&client_key("nobody", "phone"))).await.unwrap_err());

    let_in(&replicas, false).await;
    assert_eq!(end_backends(&replicas, LISTENING).await, 2);
    for _ in 0..6 {
        reserve_at_last(&adder, &bob).await; // one connection goes from statement to statement
    }
    let told = patiently(heard.recv()).await.unwrap();
    assert_eq!(told.channel(), "keypool_pool", "told while nobody could listen");
    let_in(&replicas, true).await;

    assert_eq!(stream.next_suite().await.available, 2);
}

#[tokio::test]
async fn streams_outlive_a_database_that_ends_all_connections() {
    let replicas = Replicas::new(low_at_two()).await;
    let (here, there) = (replicas.serve().await, replicas.serve().await);
    let bob = client_key("bob", "phone");
    let owner = replicas.client(&here, &bob).await;
    owner.upload(packages("bob", 8)).await.unwrap();
    let adder = replicas.client(&there, &client_key("alice", "phone")).await;
    let (mut stream, _) = Watching::start(&owner).await;
    // Connections that are dead when they are next used.
    each(16, |_| async { owner.pool_status().await.unwrap() }).await;

    assert!(end_backends(&replicas, ALL).await > 2);
    for _ in 0..6 {
        reserve_at_last(&adder, &bob).await;
    }
    while stream.next_suite().await.available != 2 {}

    // One who comes anew sees the same.
    let (_stream, state) = patiently(async {
        loop {
            let mut again = Watching::open(&owner).await.unwrap();
            if let Some(Ok(state)) = again.item().await {
                break (again, state);
            }
        }
    })
    .await;
    assert_eq!(state.cipher_suites[0].available, 2);
}

/// Repeats a Reserve until the database is back.
async fn reserve_at_last(adder: &Client, owner: &ClientKey) {
    let reserve = one_of(owner);
    patiently(async {
        while let Err(error) = adder.reserve(&reserve).await {
            assert_eq!(error.reason(), Some(ErrorReason::StoreUnavailable), "{error}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_died_without_a_word_is_noticed() {
    let replicas = Replicas::new(PoolPolicy::default()).await;
    let options: PgConnectOptions = replicas.database.url().parse().unwrap();
    let socket =
        options.get_socket().map(|folder| folder.join(format!(".s.PGSQL.{}", options.get_port())));
    let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = front.local_addr().unwrap();
    let (freeze, mut frozen) = tokio::sync::oneshot::channel::<()>();
    let network = tokio::spawn(async move {
        let (mut near, _) = front.accept().await.unwrap();
        match socket {
            Some(socket) => {
                let mut far = UnixStream::connect(socket).await.unwrap();
                tokio::select! {
                    _ = copy_bidirectional(&mut near, &mut far) => {}
                    _ = &mut frozen => {}
                }
            }
            None => unreachable!("the test server has a socket"),
        }
        // Neither end hears that the other is gone.
        std::future::pending::<()>().await;
        drop(near);
    });
    let name = options.get_database().unwrap();
    let url = format!("postgres://postgres@{address}/{name}?sslmode=disable");
    let store = replicas.store_at(&url);

    let mut listener = store.listen(Duration::from_millis(500)).await.unwrap();
    let bob = client_key("bob", "phone");
    let payload = format!("{:032x}", u128::from_be_bytes(bob.digest().0));
    let told_after_silence = async {
        let proved = "SELECT EXISTS (SELECT FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'keypool'
              AND query = 'SELECT 1' AND state = 'idle')";
        while !sqlx::query_scalar::<_, bool>(proved)
            .fetch_one(&replicas.database.pool)
            .await
            .unwrap()
        {
            tokio::task::yield_now().await;
        }
        let tell = sqlx::query("SELECT pg_notify('keypool_pool', $1)").bind(payload);
        tell.execute(&replicas.database.pool).await.unwrap();
    };
    let (heard, ()) = tokio::join!(patiently(listener.next()), patiently(told_after_silence));
    assert_eq!(heard.unwrap(), bob.digest(), "silence is no end");

    freeze.send(()).unwrap();
    assert!(matches!(patiently(listener.next()).await, Err(Error::StoreUnavailable(_))));
    network.abort();
}
