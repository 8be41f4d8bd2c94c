//! Applications that make every call through the SDK, over and over, whatever happens to the
//! replicas: what they see of it is what a test is about.

use std::{
    mem,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, future::join_all};
use keypool_client::{Client, Error, Reserve, v1};
use keypool_service::domain::clock::{Clock as _, SystemClock};
use tokio::task::JoinHandle;

use crate::{
    forge::Forge,
    server::{Server, until},
    tokens::token,
};

const SUITE: u16 = 1;
const GROUP: &[u8] = b"the group of the test";

/// So often has each pair called everything once it is said to go on.
const ROUNDS: usize = 2;

/// What the applications saw.
#[derive(Debug, Clone, Default)]
struct Seen {
    failures: Arc<Mutex<Vec<String>>>,
    /// Streams that ended, each opened again.
    resumed: Arc<AtomicUsize>,
}

impl Seen {
    fn took<T>(&self, call: &str, answer: Result<T, Error>) -> Option<T> {
        answer.inspect_err(|error| self.failed(format!("{call}: {error:?}"))).ok()
    }

    fn failed(&self, failure: String) {
        self.failures.lock().expect("whole tests").push(failure);
    }
}

/// Pairs of an owner, who watches its pool, and an adder. Those who begin on the same database are
/// to have names of their own.
#[derive(Debug)]
pub struct Applications {
    seen: Seen,
    rounds: Vec<Arc<AtomicUsize>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Applications {
    /// As many pairs, each of whose members knows all of these servers.
    pub async fn start(name: &str, pairs: usize, servers: &[Server]) -> Self {
        let mut started = Self { seen: Seen::default(), rounds: Vec::new(), tasks: Vec::new() };
        for n in 0..pairs {
            let user = format!("bob-{name}-{n}");
            let owner = client(servers, &user).await;
            let adder = client(servers, &format!("alice-{name}-{n}")).await;
            let (seen, rounds) = (&started.seen, Arc::new(AtomicUsize::new(0)));
            started.rounds.push(rounds.clone());
            started.tasks.push(tokio::spawn(watch(owner.clone(), seen.clone())));
            started.tasks.push(tokio::spawn(call_everything(
                owner,
                adder,
                user,
                seen.clone(),
                rounds,
            )));
        }
        started
    }

    /// Returns once each pair has called everything from now on, or a call has failed.
    pub async fn go_on(&self) {
        let counts = || self.rounds.iter().map(|rounds| rounds.load(Ordering::SeqCst));
        let before: Vec<_> = counts().collect();
        until(async || {
            !self.failures().is_empty()
                || counts().zip(&before).all(|(now, before)| now >= before + ROUNDS)
        })
        .await;
    }

    /// The calls that have failed so far, and the streams.
    pub fn failures(&self) -> Vec<String> {
        self.seen.failures.lock().expect("whole tests").clone()
    }

    /// Ends them, in the middle of whatever they do. What failed, how many rounds they made in
    /// all, and how many streams went on elsewhere.
    pub async fn end(mut self) -> (Vec<String>, usize, usize) {
        let tasks = mem::take(&mut self.tasks);
        tasks.iter().for_each(JoinHandle::abort);
        join_all(tasks).await;
        let rounds = self.rounds.iter().map(|rounds| rounds.load(Ordering::SeqCst)).sum();
        (self.failures(), rounds, self.seen.resumed.load(Ordering::SeqCst))
    }
}

async fn client(servers: &[Server], user: &str) -> Client {
    let mut builder = Client::builder(servers[0].uri(), token(user, "phone"));
    for server in &servers[1..] {
        builder = builder.endpoint(server.uri());
    }
    // The machine of a test may be busy; how long a call takes is not what this is about.
    builder.deadline(Duration::from_secs(100)).connect().await.expect("a connection")
}

/// Counts its rounds. A pool has a package or two at a time.
async fn call_everything(
    owner: Client,
    adder: Client,
    user: String,
    seen: Seen,
    rounds: Arc<AtomicUsize>,
) {
    loop {
        let now = SystemClock.now().unix_timestamp().unsigned_abs();
        let packages: Vec<_> =
            (0..2).map(|_| Forge::new(SUITE, &user).valid_around(now).build()).collect();
        if let Some(answer) = seen.took("Upload", owner.upload(packages).await) {
            let accepted = answer.results.iter().filter(|result| result.accepted().is_some());
            if accepted.count() != 2 {
                return seen.failed(format!("Upload: {:?}", answer.results));
            }
        }
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
        let ask = v1::ListPoolEventsRequest { user_id: user.clone(), ..Default::default() };
        if seen
            .took("ListPoolEvents", owner.pool_events(ask).await)
            .is_some_and(|it| it.events.is_empty())
        {
            return seen.failed("ListPoolEvents: nothing has happened".into());
        }
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
