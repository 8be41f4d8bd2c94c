//! A world of pools for tests below gRPC: one database of its own, a clock that stands still, and
//! several replicas of the service.

use std::{collections::BTreeMap, sync::Arc, time::Duration as StdDuration};

use keypool_service::{
    domain::{
        capabilities::Capabilities,
        clock::{Clock as _, ManualClock},
        error::Error,
        ids::{CipherSuite, ClientId, ClientKey, GroupId, KeyPackageRef, RequestId, UserId},
        key_package::{RejectReason, UploadPolicy},
        policy::{LapsePolicy, PoolPolicy},
        pool::SuiteCounts,
    },
    pool::{
        KeyPool, Released, Reservation, ReserveRequest, ReserveResult, Spent, SweepPolicy,
        SweepReport, Target, UploadMode, UploadOutcome, UploadResult,
    },
    store::{MIGRATOR, Store, StoreOptions},
};
use sqlx::{AssertSqlSafe, Postgres, Transaction};
use time::{Duration, OffsetDateTime};
use tokio::task::JoinHandle;

use crate::{
    database::TestDatabase,
    forge::{Forge, NOW},
};

/// The cipher suite of everything here, unless a test says otherwise.
pub const SUITE: CipherSuite = CipherSuite(1);

/// How long a test waits for another statement before it fails instead of hanging.
const PATIENCE: StdDuration = StdDuration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub struct World {
    /// The time of all replicas and their statements.
    pub clock: ManualClock,
    /// What the replicas share.
    pub database: TestDatabase,
    /// The first replica.
    pub a: KeyPool,
    /// The second one.
    pub b: KeyPool,
}

impl World {
    /// Two replicas with the default policy, but without fair share: callers may take all there
    /// is.
    pub async fn new() -> Self {
        Self::with(PoolPolicy::default()).await
    }

    /// Two replicas whose lapsed reservations burn.
    pub async fn burning() -> Self {
        Self::with(PoolPolicy { lapse: LapsePolicy::Burn, ..PoolPolicy::default() }).await
    }

    /// Two replicas with this policy, but without fair share.
    pub async fn with(policy: PoolPolicy) -> Self {
        Self::exactly(PoolPolicy { fair_share: false, ..policy }).await
    }

    /// Two replicas with this policy.
    pub async fn exactly(policy: PoolPolicy) -> Self {
        let database = TestDatabase::migrated(&MIGRATOR).await;
        let now = i64::try_from(NOW).expect("a time");
        let now = OffsetDateTime::from_unix_timestamp(now).expect("a time");
        let clock = ManualClock::at(now);
        let a = replica(&database, &clock, policy.clone(), 8).await;
        let b = replica(&database, &clock, policy, 8).await;
        Self { clock, database, a, b }
    }

    /// One more replica with the default policy, but without fair share, which has so many
    /// connections for adders.
    pub async fn replica(&self, connections: u32) -> KeyPool {
        let policy = PoolPolicy { fair_share: false, ..PoolPolicy::default() };
        replica(&self.database, &self.clock, policy, connections).await
    }

    /// The time in seconds since 1970.
    pub fn now(&self) -> u64 {
        self.clock.now().unix_timestamp().try_into().expect("a time after 1970")
    }

    /// Moves the clock on by seconds.
    pub fn pass(&self, seconds: i64) {
        self.clock.advance(Duration::seconds(seconds));
    }

    /// Uploads one-time packages of suite 1, each expiring a second after the one before, and
    /// answers their refs in that order.
    pub async fn stock(&self, owner: &ClientKey, packages: u64) -> Vec<KeyPackageRef> {
        let not_after = self.now() + 30 * 86_400;
        let forge = |n| package(owner).lifetime(self.now() - 3600, not_after + n).build();
        let results = self.upload(owner, (0..packages).map(forge).collect()).await;
        results.into_iter().map(stored).collect()
    }

    /// Uploads a last resort package of suite 1 and answers its ref.
    pub async fn stock_last_resort(&self, owner: &ClientKey) -> KeyPackageRef {
        let forged = last_resort(owner).valid_around(self.now()).build();
        stored(self.upload(owner, vec![forged]).await.remove(0))
    }

    /// Uploads through the first replica.
    pub async fn upload(&self, owner: &ClientKey, packages: Vec<Vec<u8>>) -> Vec<UploadResult> {
        self.a.upload(owner, packages, UploadMode::Add).await.expect("an upload").0
    }

    /// Reserves one package of a client through the first replica.
    pub async fn reserve(&self, caller: &ClientKey, owner: &ClientKey) -> Reservation {
        only(self.a.reserve(caller, &ask(&[owner])).await.expect("a reservation"))
    }

    /// Spends for [`group`] 1 through the first replica.
    pub async fn spend(&self, caller: &ClientKey, ids: &[&str]) -> Result<Vec<Spent>, Error> {
        self.a.spend(caller, &texts(ids), &group(1)).await
    }

    /// Releases through the first replica.
    pub async fn release(&self, caller: &ClientKey, ids: &[&str]) -> Result<Vec<Released>, Error> {
        self.a.release(caller, &texts(ids)).await
    }

    /// Sweeps through the first replica, with the default policy.
    pub async fn sweep(&self) -> SweepReport {
        self.a.sweep(&SweepPolicy::default()).await.expect("a sweep")
    }

    /// The counts of suite 1 of a pool.
    pub async fn counts(&self, owner: &ClientKey) -> SuiteCounts {
        let status = self.b.status(owner).await.expect("a status");
        let suite = status.cipher_suites.into_iter().find(|s| s.counts.cipher_suite == SUITE);
        suite.expect("the suite").counts
    }

    /// What a query answers: one number.
    pub async fn number(&self, query: &str) -> i64 {
        let query = sqlx::query_scalar(AssertSqlSafe(query.to_owned()));
        query.fetch_one(&self.database.pool).await.expect("a number")
    }

    /// What a query answers: texts.
    pub async fn texts(&self, query: &str) -> Vec<String> {
        let query = sqlx::query_scalar(AssertSqlSafe(query.to_owned()));
        query.fetch_all(&self.database.pool).await.expect("texts")
    }

    /// The kinds of the events about a package, in the order in which they were written.
    pub async fn events(&self, of: &KeyPackageRef) -> Vec<String> {
        sqlx::query_scalar(
            "SELECT kind FROM event WHERE key_package_ref = $1
             ORDER BY at, generation, xmin::text::bigint, ctid",
        )
        .bind(&of.0)
        .fetch_all(&self.database.pool)
        .await
        .expect("events")
    }

    /// A transaction by hand, which plays another replica at an instant of the test's choice.
    pub async fn by_hand(&self, statements: &[&str]) -> Transaction<'static, Postgres> {
        let mut transaction = self.database.pool.begin().await.expect("a transaction");
        for statement in statements {
            run(&mut transaction, statement).await;
        }
        transaction
    }

    /// Returns once this many statements of the replicas wait for a lock.
    pub async fn until_waiting(&self, statements: i64) {
        let looking = async {
            while self
                .number(
                    "SELECT count(*) FROM pg_stat_activity
                     WHERE datname = current_database() AND application_name = 'keypool'
                       AND wait_event_type = 'Lock'",
                )
                .await
                < statements
            {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, looking).await.expect("statements that wait for a lock");
    }
}

async fn replica(
    database: &TestDatabase,
    clock: &ManualClock,
    policy: PoolPolicy,
    max_connections: u32,
) -> KeyPool {
    let options = StoreOptions {
        url: database.url().to_owned(),
        max_connections,
        acquire_timeout: PATIENCE,
        statement_timeout: PATIENCE,
    };
    let clock = Arc::new(clock.clone());
    let store = Store::new(&options, clock.clone()).expect("a store");
    KeyPool::open(store, clock, policy, UploadPolicy::default()).await.expect("a replica")
}

/// Runs a statement by hand; it must change or lock something.
pub async fn run(transaction: &mut Transaction<'static, Postgres>, statement: &str) {
    let done = sqlx::query(AssertSqlSafe(statement.to_owned()))
        .execute(&mut **transaction)
        .await
        .unwrap_or_else(|error| panic!("{statement}: {error}"));
    assert!(done.rows_affected() > 0, "no row: {statement}");
}

/// Runs a call beside the test.
pub fn spawn<T: Send + 'static>(call: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(call)
}

/// What a spawned call answers. It fails, instead of hanging, when the call waits for something
/// that the test still holds.
pub async fn join<T>(call: JoinHandle<T>) -> T {
    tokio::time::timeout(PATIENCE / 2, call).await.expect("an answer in time").expect("an answer")
}

/// All of them at once, in this order.
pub async fn join_all<T>(calls: Vec<JoinHandle<T>>) -> Vec<T> {
    let mut answers = Vec::with_capacity(calls.len());
    for call in calls {
        answers.push(join(call).await);
    }
    answers
}

/// A client by its two ids.
pub fn client(user: &str, client: &str) -> ClientKey {
    ClientKey {
        user: UserId::parse(user).expect("a user id"),
        client: ClientId::parse(client).expect("a client id"),
    }
}

/// A group by a number.
pub fn group(number: u8) -> GroupId {
    GroupId::parse(vec![number; 16]).expect("a group id")
}

/// The recipe of a one-time package of suite 1, valid around [`NOW`].
pub fn package(owner: &ClientKey) -> Forge {
    Forge::new(SUITE.0, owner.user.as_str())
}

/// The recipe of a last resort package of suite 1, valid around [`NOW`].
pub fn last_resort(owner: &ClientKey) -> Forge {
    package(owner).extension(0x000a, b"")
}

/// A fresh request for one package of each of these clients, for [`group`] 1. Clients of one user
/// are one target, at the place of the first.
pub fn ask(clients: &[&ClientKey]) -> ReserveRequest {
    let mut targets: Vec<Target> = Vec::new();
    let mut places = BTreeMap::new();
    for ClientKey { user, client } in clients {
        let place = *places.entry(user).or_insert(targets.len());
        if place == targets.len() {
            targets.push(Target { user: user.clone(), clients: Vec::new() });
        }
        targets[place].clients.push(client.clone());
    }
    ask_targets(targets)
}

/// A fresh request for one package of every client of these users, for [`group`] 1.
pub fn ask_users(users: &[&str]) -> ReserveRequest {
    let user = |user: &&str| UserId::parse(*user).expect("a user id");
    ask_targets(users.iter().map(|u| Target { user: user(u), clients: Vec::new() }).collect())
}

fn ask_targets(targets: Vec<Target>) -> ReserveRequest {
    ReserveRequest {
        request_id: RequestId(uuid::Uuid::new_v4()),
        group_id: group(1),
        cipher_suite: SUITE,
        targets,
        required: Capabilities::default(),
        ttl: None,
        last_resort: true,
        all_or_nothing: false,
    }
}

/// The ref of a package that was stored just now.
#[track_caller]
pub fn stored(result: UploadResult) -> KeyPackageRef {
    assert_eq!(verdict(&result), Ok(false), "{result:?}");
    result.key_package_ref.expect("a ref")
}

/// Whether a package was there already, or why it was refused.
pub fn verdict(result: &UploadResult) -> Result<bool, RejectReason> {
    match result.outcome {
        UploadOutcome::Accepted { already_present, .. } => Ok(already_present),
        UploadOutcome::Rejected { reason, .. } => Err(reason),
    }
}

/// The only reservation.
#[track_caller]
pub fn only(results: Vec<ReserveResult>) -> Reservation {
    let [result]: [ReserveResult; 1] = results.try_into().expect("one result");
    result.outcome.expect("a reservation")
}

/// Every reservation; each client must have given one.
#[track_caller]
pub fn all(results: Vec<ReserveResult>) -> Vec<Reservation> {
    results.into_iter().map(|result| result.outcome.expect("a reservation")).collect()
}

fn texts(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}
