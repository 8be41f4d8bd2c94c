//! Pools that several replicas share, for tests of revocation, rotation, the log and fair share.

use std::{sync::Arc, time::Duration as StdDuration};

use keypool_client::Client;
use keypool_service::{
    config::{AuthSection, LimitsSection, ServerSection, SweeperSection},
    domain::{
        capabilities::Capabilities,
        clock::{Clock, ManualClock, SystemClock},
        error::Error,
        ids::{CipherSuite, ClientId, ClientKey, GroupId, KeyPackageRef, RequestId, UserId},
        key_package::{RejectReason, UploadPolicy},
        policy::PoolPolicy,
        pool::SuiteCounts,
    },
    grpc::{
        CallLimits,
        auth::{Authenticator, KeySet, Scope},
    },
    pool::{
        KeyPool, Reservation, ReserveRequest, SweepPolicy, SweepReport, Target, UploadMode,
        UploadOutcome, UploadResult, WatchLimits,
    },
    run::server_options,
    server::{self, ServerOptions},
    store::{MIGRATOR, Store, StoreOptions},
    token::{SigningKey, TokenRequest},
};
use openmls_traits::types::HpkeKemType;
use time::{Duration, OffsetDateTime};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    database::TestDatabase,
    forge::{Forge, NOW, hpke_public_key},
};

/// How long a test waits for something before it fails instead of hanging.
pub const PATIENCE: StdDuration = StdDuration::from_secs(60);

/// Two replicas on one database, with one clock that stands still.
#[derive(Debug)]
pub struct Ground {
    /// The time of the replicas and of their statements.
    pub clock: ManualClock,
    /// What the replicas share.
    pub database: TestDatabase,
    /// The first replica.
    pub a: KeyPool,
    /// The second one.
    pub b: KeyPool,
}

impl Ground {
    /// With this policy.
    pub async fn new(policy: PoolPolicy) -> Self {
        let database = TestDatabase::migrated(&MIGRATOR).await;
        let now = OffsetDateTime::from_unix_timestamp(i64::try_from(NOW).expect("a time"));
        let clock = ManualClock::at(now.expect("a time"));
        let open = || {
            let clock = Arc::new(clock.clone());
            replica(database.url(), clock, policy.clone(), UploadPolicy::default())
        };
        let (a, b) = (open().await, open().await);
        Self { clock, database, a, b }
    }

    /// With a policy that keeps nobody from draining a pool.
    pub async fn unfair() -> Self {
        Self::new(PoolPolicy { fair_share: false, ..PoolPolicy::default() }).await
    }

    /// Moves the clock on.
    pub fn pass(&self, by: Duration) {
        self.clock.advance(by);
    }

    /// Uploads fresh one-time packages, all of which are stored; their refs.
    pub async fn stock(&self, device: &mut Device, packages: usize) -> Vec<KeyPackageRef> {
        let packages = device.packages(packages);
        let uploaded = self.a.upload(&device.key, packages, UploadMode::Add).await;
        uploaded.expect("an upload").0.iter().map(stored).collect()
    }

    /// Uploads a last resort package; its ref.
    pub async fn stock_last_resort(&self, device: &mut Device) -> KeyPackageRef {
        let packages = vec![device.last_resort()];
        let uploaded = self.a.upload(&device.key, packages, UploadMode::Add).await;
        stored(&uploaded.expect("an upload").0[0])
    }

    /// Reserves one package of one client, through the first replica.
    pub async fn reserve(
        &self,
        caller: &ClientKey,
        owner: &ClientKey,
    ) -> Result<Reservation, Error> {
        reserve(&self.a, caller, &ask(owner)).await
    }

    /// Sweeps through the second replica.
    pub async fn sweep(&self) -> SweepReport {
        self.b.sweep(&SweepPolicy::default()).await.expect("a sweep")
    }

    /// The counts of suite 1 of a pool.
    pub async fn counts(&self, owner: &ClientKey) -> SuiteCounts {
        let status = self.b.status(owner).await.expect("a status");
        status.cipher_suites.into_iter().next().expect("a suite").counts
    }

    /// Returns once this many statements of the replicas wait for a lock.
    pub async fn until_waiting(&self, statements: i64) {
        self.until(
            "SELECT count(*) >= $1 FROM pg_stat_activity
             WHERE datname = current_database() AND application_name = 'keypool'
               AND wait_event_type = 'Lock'",
            statements,
        )
        .await;
    }

    /// Returns once the query, which takes a number, answers true.
    pub async fn until(&self, query: &'static str, number: i64) {
        let looking = async {
            let holds =
                || sqlx::query_scalar::<_, bool>(query).bind(number).fetch_one(&self.database.pool);
            while !holds().await.expect("a look at the database") {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, looking).await.expect("what was waited for");
    }
}

/// A replica on the database at `url`.
pub async fn replica(
    url: &str,
    clock: Arc<dyn Clock>,
    policy: PoolPolicy,
    upload: UploadPolicy,
) -> KeyPool {
    let options = StoreOptions {
        url: url.to_owned(),
        max_connections: 10,
        acquire_timeout: PATIENCE,
        statement_timeout: PATIENCE,
    };
    let store = Store::new(&options, clock.clone()).expect("a store");
    KeyPool::open(store, clock, policy, upload).await.expect("a replica")
}

/// A client that publishes packages of suite 1, all signed by one key.
#[derive(Debug)]
pub struct Device {
    /// The user and client.
    pub key: ClientKey,
    /// The recipe of its packages.
    pub forge: Forge,
}

impl Device {
    /// A client with a fresh signature key, whose credential names the user; its packages are
    /// valid around [`NOW`].
    pub fn new(user: &str, client_id: &str) -> Self {
        Self { key: client(user, client_id), forge: Forge::new(1, user) }
    }

    /// A fresh one-time package.
    pub fn package(&mut self) -> Vec<u8> {
        self.forge.init_key = hpke_public_key(HpkeKemType::DhKem25519);
        self.forge.build()
    }

    /// Fresh one-time packages.
    pub fn packages(&mut self, number: usize) -> Vec<Vec<u8>> {
        (0..number).map(|_| self.package()).collect()
    }

    /// A fresh last resort package.
    pub fn last_resort(&mut self) -> Vec<u8> {
        self.forge.extensions.push((0x000a, Vec::new()));
        self.forge.capabilities.extensions.push(0x000a);
        let package = self.package();
        self.forge.extensions.pop();
        self.forge.capabilities.extensions.pop();
        package
    }
}

/// A client by its two ids.
pub fn client(user: &str, client: &str) -> ClientKey {
    ClientKey {
        user: UserId::parse(user).expect("a user id"),
        client: ClientId::parse(client).expect("a client id"),
    }
}

/// The n-th of many clients, each of another user.
pub fn adder(number: usize) -> ClientKey {
    client(&format!("adder-{number}"), "laptop")
}

/// The group of every request here.
pub fn group() -> GroupId {
    GroupId::parse(b"the group".to_vec()).expect("a group id")
}

/// A fresh request for one package of one client.
pub fn ask(owner: &ClientKey) -> ReserveRequest {
    ReserveRequest {
        request_id: RequestId(uuid::Uuid::new_v4()),
        group_id: group(),
        cipher_suite: CipherSuite(1),
        targets: vec![Target { user: owner.user.clone(), clients: vec![owner.client.clone()] }],
        required: Capabilities::default(),
        ttl: None,
        last_resort: true,
        all_or_nothing: false,
    }
}

/// A request for one client, answered by its reservation or why there is none.
pub async fn reserve(
    pool: &KeyPool,
    caller: &ClientKey,
    request: &ReserveRequest,
) -> Result<Reservation, Error> {
    let mut results = pool.reserve(caller, request).await?;
    results.remove(0).outcome.map_err(Error::from)
}

/// The ref of a package that was stored just now.
#[track_caller]
pub fn stored(result: &UploadResult) -> KeyPackageRef {
    let UploadOutcome::Accepted { already_present: false, .. } = result.outcome else {
        panic!("not stored: {result:?}");
    };
    result.key_package_ref.clone().expect("a ref")
}

/// Why a package was refused.
#[track_caller]
pub fn refusal(result: &UploadResult) -> RejectReason {
    match result.outcome {
        UploadOutcome::Rejected { reason, .. } => reason,
        UploadOutcome::Accepted { .. } => panic!("not refused: {result:?}"),
    }
}

/// A server of this process, on a port of its own.
#[derive(Debug)]
pub struct Served {
    uri: String,
    key: SigningKey,
    stop: CancellationToken,
}

impl Served {
    /// Serves `pool`, without a sweeper that would be heard of.
    pub async fn start(pool: KeyPool) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let key = SigningKey::load_or_create(&dir.path().join("key.pem")).expect("a key");
        let keys = KeySet::new(vec![key.verifying_key().expect("its public half")]);
        let section = AuthSection::for_audience("keypool");
        let authenticator =
            Authenticator::new(keys.expect("keys"), &section, Arc::new(SystemClock));
        let default = server_options(
            &ServerSection::default(),
            &LimitsSection { rate_limits: false, ..LimitsSection::default() },
            &SweeperSection::default(),
        );
        let options = ServerOptions {
            limits: CallLimits {
                timeout: PATIENCE,
                watch: WatchLimits { per_client: 1, max_age: PATIENCE },
                ..default.limits
            },
            drain_timeout: PATIENCE,
            sweep: SweepPolicy { interval: Duration::DAY, ..SweepPolicy::default() },
            ..default
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let uri = format!("http://{}", listener.local_addr().expect("an address"));
        let stop = CancellationToken::new();
        tokio::spawn(server::serve(listener, pool, authenticator, options, stop.clone()));
        Self { uri, key, stop }
    }

    /// A client whose token says so.
    pub async fn client(&self, key: &ClientKey, scopes: &[Scope]) -> Client {
        let request = TokenRequest {
            key: key.clone(),
            scopes: scopes.to_vec(),
            ttl: PATIENCE,
            audience: "keypool".to_owned(),
            issuer: None,
            key_id: None,
        };
        let token = self.key.mint(&request, SystemClock.now()).expect("a token");
        Client::builder(&self.uri, token).retries(0).connect().await.expect("a connection")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
