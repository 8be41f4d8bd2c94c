//! Three replicas are replaced one after the other, as a rolling update does, while applications
//! call through the SDK: none of their calls fails, and what they watch goes on.

use std::{
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, future::join_all};
use keypool_client::{Client, Reserve, v1};
use keypool_service::{
    domain::clock::{Clock as _, SystemClock},
    store::MIGRATOR,
};
use keypool_testing::{
    database::TestDatabase,
    forge::Forge,
    server::{Server, ServerOptions, token, until},
};

const SUITE: u16 = 1;
const GROUP: &[u8] = b"the group of the test";
const REPLICAS: usize = 3;
const PAIRS: usize = 2;
/// So often each pair of an owner and an adder has called everything before the next replica goes.
const ROUNDS: usize = 2;

/// What the applications saw.
#[derive(Clone, Default)]
struct Seen {
    failures: Arc<Mutex<Vec<String>>>,
    /// Streams that ended, each opened again.
    resumed: Arc<AtomicUsize>,
}

impl Seen {
    fn took<T>(&self, call: &str, answer: Result<T, keypool_client::Error>) -> Option<T> {
        answer.inspect_err(|error| self.failed(format!("{call}: {error:?}"))).ok()
    }

    fn failed(&self, failure: String) {
        self.failures.lock().unwrap().push(failure);
    }
}

/// Calls everything, over and over, and counts the rounds. A pool has a package or two at a time.
async fn call_everything(
    owner: Client,
    adder: Client,
    n: usize,
    seen: Seen,
    rounds: Arc<AtomicUsize>,
) {
    let user = format!("bob{n}");
    loop {
        let now = SystemClock.now().unix_timestamp().try_into().unwrap();
        let packages: Vec<_> =
            (0..2).map(|_| Forge::new(SUITE, &user).valid_around(now).build()).collect();
        seen.took("Upload", owner.upload(packages).await);
        for spend in [true, false] {
            let ask = Reserve::new(GROUP, SUITE).target_clients(&user, ["phone"]);
            let Some(answer) = seen.took("Reserve", adder.reserve(&ask).await) else { return };
            let ids = answer.reservations().map(|it| it.reservation_id.clone());
            let ids: Vec<_> = ids.collect();
            if ids.len() != 1 {
                return seen.failed(format!("Reserve: {} packages of two", ids.len()));
            }
            if spend {
                seen.took("Spend", adder.spend(GROUP, ids).await);
            } else {
                seen.took("Release", adder.release(ids).await);
            }
        }
        seen.took("GetPoolStatus", owner.pool_status().await);
        // So that no pool ever fills up.
        let all = v1::RevokeKeyPackagesRequest { all: true, ..Default::default() };
        seen.took("Revoke", owner.revoke(all).await);
        rounds.fetch_add(1, Ordering::SeqCst);
    }
}

/// Watches a pool, opening the next stream whenever one has ended.
async fn watch(owner: Client, seen: Seen) {
    loop {
        let Some(statuses) = seen.took("Watch", owner.watch_pool_status().await) else { return };
        let mut statuses = pin!(statuses);
        while let Some(status) = statuses.next().await {
            if seen.took("what a watch tells", status).is_none() {
                return;
            }
        }
        seen.resumed.fetch_add(1, Ordering::SeqCst);
    }
}

async fn client(servers: &[Server], user: &str) -> Client {
    let mut builder = Client::builder(servers[0].uri(), token(user, "phone"));
    for server in &servers[1..] {
        builder = builder.endpoint(server.uri());
    }
    // The machine of a test may be busy; how long a call takes is not what this is about.
    builder.deadline(Duration::from_secs(100)).connect().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_replicas_are_replaced_no_call_fails_and_watches_go_on() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let options = ServerOptions::default().set("pool.fair_share", false);
    let mut servers = Vec::new();
    for _ in 0..REPLICAS {
        servers.push(Server::start(&database, &options).await);
    }
    let seen = Seen::default();
    let mut tasks = Vec::new();
    let mut rounds = Vec::new();
    for n in 0..PAIRS {
        let owner = client(&servers, &format!("bob{n}")).await;
        let adder = client(&servers, &format!("alice{n}")).await;
        let of_pair = Arc::new(AtomicUsize::new(0));
        rounds.push(of_pair.clone());
        tasks.push(tokio::spawn(watch(owner.clone(), seen.clone())));
        tasks.push(tokio::spawn(call_everything(owner, adder, n, seen.clone(), of_pair)));
    }
    let all_go_on = async || {
        let before: Vec<_> = rounds.iter().map(|rounds| rounds.load(Ordering::SeqCst)).collect();
        until(async || {
            let failed = !seen.failures.lock().unwrap().is_empty();
            let each = rounds.iter().zip(&before);
            failed
                || each
                    .into_iter()
                    .all(|(now, before)| now.load(Ordering::SeqCst) >= before + ROUNDS)
        })
        .await;
    };
    all_go_on().await;
    for _ in 0..REPLICAS {
        let mut server = servers.remove(0);
        let options = options.clone().text("listen", server.address().to_string());
        server.signal("TERM");
        assert_eq!(server.ended().await.code(), Some(0), "{}", server.log());
        all_go_on().await;
        servers.push(Server::start(&database, &options).await);
        all_go_on().await;
    }
    for task in &tasks {
        task.abort();
    }
    join_all(tasks).await;
    assert_eq!(*seen.failures.lock().unwrap(), [] as [String; 0]);
    assert!(seen.resumed.load(Ordering::SeqCst) >= REPLICAS, "every stream was on some replica");
}
