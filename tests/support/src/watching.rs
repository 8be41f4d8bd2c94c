//! Replicas that serve one database, and owners that watch their pools.

use std::{future::Future, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt as _, stream};
use keypool_client::{Client, Error, Reserve, v1};
use keypool_service::{
    config::{AuthSection, LimitsSection, ServerSection, SweeperSection},
    domain::{
        clock::ManualClock,
        ids::{ClientId, ClientKey, UserId},
        key_package::UploadPolicy,
        policy::PoolPolicy,
    },
    grpc::{
        CallLimits,
        auth::{Authenticator, KeySet, Scope},
    },
    pool::{KeyPool, SweepPolicy, WatchLimits},
    run::server_options,
    server::{ConnectionLimits, ServerOptions, serve},
    store::{MIGRATOR, Store, StoreOptions},
    token::{SigningKey, TokenRequest},
};
use sqlx::postgres::PgListener;
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    database::TestDatabase,
    forge::{Forge, NOW},
};

/// The cipher suite of all packages here.
pub const SUITE: u16 = 1;
/// What a test waits for comes at once, or it is missing.
const PATIENCE: Duration = Duration::from_secs(60);
const AUDIENCE: &str = "keypool";

/// One database and one clock for all replicas.
#[derive(Debug)]
pub struct Replicas {
    /// The database.
    pub database: TestDatabase,
    /// The time of all replicas and their statements.
    pub clock: ManualClock,
    /// The limits of every pool.
    pub policy: PoolPolicy,
    key: SigningKey,
    _key_dir: TempDir,
}

/// One server.
#[derive(Debug)]
pub struct Replica {
    /// Where it serves.
    pub address: SocketAddr,
    /// Its use cases, behind gRPC.
    pub pool: KeyPool,
    stop: CancellationToken,
    served: JoinHandle<anyhow::Result<()>>,
}

impl Replicas {
    /// A fresh database. Callers have no fair share, so that one of them may drain a pool.
    pub async fn new(policy: PoolPolicy) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let now = OffsetDateTime::from_unix_timestamp(NOW as i64).expect("a date");
        Self {
            database: TestDatabase::migrated(&MIGRATOR).await,
            clock: ManualClock::at(now),
            policy: PoolPolicy { fair_share: false, ..policy },
            key: SigningKey::load_or_create(&dir.path().join("key.pem")).expect("a key"),
            _key_dir: dir,
        }
    }

    /// A store on the database, by this URL.
    pub fn store_at(&self, url: &str) -> Store {
        let options = StoreOptions {
            url: url.to_owned(),
            max_connections: 8,
            acquire_timeout: PATIENCE,
            statement_timeout: PATIENCE,
        };
        Store::new(&options, Arc::new(self.clock.clone())).expect("a store")
    }

    /// Starts a server with the usual bounds. It sweeps only when it is told to.
    pub async fn serve(&self) -> Replica {
        self.serve_with(usual()).await
    }

    /// Starts a server with these bounds.
    pub async fn serve_with(&self, options: ServerOptions) -> Replica {
        let clock = Arc::new(self.clock.clone());
        let store = self.store_at(&self.database.service_url());
        let pool =
            KeyPool::open(store, clock.clone(), self.policy.clone(), UploadPolicy::default());
        let pool = pool.await.expect("the pools");
        let keys = vec![self.key.verifying_key().expect("a public key")];
        let keys = KeySet::new(keys).expect("a key");
        let auth = AuthSection::for_audience(AUDIENCE);
        let authenticator = Authenticator::new(keys, &auth, clock);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let stop = CancellationToken::new();
        let served =
            tokio::spawn(serve(listener, pool.clone(), authenticator, options, stop.clone()));
        Replica { address, pool, stop, served }
    }

    /// A token for all that a client may do to its own pool and to those of others.
    pub fn token(&self, owner: &ClientKey) -> String {
        self.token_for(owner, &[Scope::Publish, Scope::Reserve])
    }

    /// A token with these scopes; it outlives every test.
    pub fn token_for(&self, owner: &ClientKey, scopes: &[Scope]) -> String {
        let request = TokenRequest {
            key: owner.clone(),
            scopes: scopes.to_vec(),
            ttl: Duration::from_secs(10 * 365 * 86_400),
            audience: AUDIENCE.to_owned(),
            issuer: None,
            key_id: None,
        };
        let now = OffsetDateTime::from_unix_timestamp(NOW as i64).expect("a date");
        self.key.mint(&request, now).expect("a token")
    }

    /// A connection to a replica as this client.
    pub async fn client(&self, replica: &Replica, owner: &ClientKey) -> Client {
        let uri = format!("http://{}", replica.address);
        let builder = Client::builder(uri, self.token(owner)).deadline(PATIENCE).retries(0);
        builder.connect().await.expect("a connection")
    }

    /// Hears what the replicas tell each other, besides [`Replicas::told`].
    pub async fn listen(&self) -> PgListener {
        let mut listener = PgListener::connect(self.database.url()).await.expect("a listener");
        listener.listen_all(["keypool_pool", "until_here"]).await.expect("to listen");
        listener
    }

    /// How often the replicas told each other of a pool until now.
    pub async fn told(&self, listener: &mut PgListener) -> usize {
        sqlx::query("NOTIFY until_here").execute(&self.database.pool).await.expect("to notify");
        let mut told = 0;
        while patiently(listener.recv()).await.expect("a connection").channel() != "until_here" {
            told += 1;
        }
        told
    }
}

impl Replica {
    /// Tells it to stop.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// How it ended, once it was told to stop.
    pub async fn stopped(self) -> anyhow::Result<()> {
        patiently(self.served).await.expect("no panic")
    }

    /// Ends what time has ended.
    pub async fn sweep(&self) {
        self.pool.sweep(&SweepPolicy::default()).await.expect("a sweep");
    }
}

/// Bounds that no test meets by accident.
pub fn usual() -> ServerOptions {
    let hour = Duration::from_secs(3600);
    let default = server_options(
        &ServerSection::default(),
        &LimitsSection { rate_limits: false, ..LimitsSection::default() },
        &SweeperSection::default(),
    );
    ServerOptions {
        limits: CallLimits {
            timeout: PATIENCE,
            watch: WatchLimits { per_client: 4, max_age: hour },
            ..default.limits
        },
        drain_timeout: PATIENCE,
        connections: ConnectionLimits { max_age: hour, ..default.connections },
        sweep: SweepPolicy { interval: time::Duration::hours(24), ..SweepPolicy::default() },
        tls: None,
        metrics: default.metrics,
    }
}

/// A client of a user.
pub fn client_key(user: &str, client: &str) -> ClientKey {
    ClientKey {
        user: UserId::parse(user).expect("a user id"),
        client: ClientId::parse(client).expect("a client id"),
    }
}

/// Fresh packages of this user.
pub fn packages(user: &str, count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|_| Forge::new(SUITE, user).build()).collect()
}

/// A fresh last resort package of this user.
pub fn last_resort(user: &str) -> Vec<u8> {
    Forge::new(SUITE, user).extension(0x000a, &[]).build()
}

/// Reserves this many packages of one client, one after the other.
pub async fn reserve(adder: &Client, owner: &ClientKey, count: usize) {
    for _ in 0..count {
        adder.reserve(&one_of(owner)).await.expect("a reservation");
    }
}

/// Asks for one package of one client.
pub fn one_of(owner: &ClientKey) -> Reserve {
    Reserve::new(&b"group"[..], SUITE)
        .target_clients(owner.user.as_str(), [owner.client.as_str()])
        .ttl(Duration::from_secs(600))
}

/// Waits for what must come soon.
pub async fn patiently<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("what is waited for never came")
}

/// An owner's stream.
pub struct Watching(Pin<Box<dyn Stream<Item = Result<v1::PoolStatus, Error>> + Send>>);

impl Watching {
    /// Opens a stream.
    pub async fn open(owner: &Client) -> Result<Self, Error> {
        Ok(Self(Box::pin(owner.watch_pool_status().await?)))
    }

    /// Opens a stream, and answers its first state too.
    pub async fn start(owner: &Client) -> (Self, v1::PoolStatus) {
        let mut watching = Self::open(owner).await.expect("a stream");
        let first = watching.next().await;
        (watching, first)
    }

    /// The next state.
    pub async fn next(&mut self) -> v1::PoolStatus {
        self.item().await.expect("no end of the stream").expect("a state")
    }

    /// The next state of the one cipher suite.
    pub async fn next_suite(&mut self) -> v1::CipherSuiteStatus {
        let [suite] = self.next().await.cipher_suites.try_into().expect("one cipher suite");
        suite
    }

    /// The next state or how the stream ends.
    pub async fn item(&mut self) -> Option<Result<v1::PoolStatus, Error>> {
        patiently(self.0.next()).await
    }
}

/// Does this for each number up to `count`, some at once.
pub async fn each<T, F: Future<Output = T>>(count: usize, work: impl FnMut(usize) -> F) -> Vec<T> {
    stream::iter((0..count).map(work)).buffer_unordered(16).collect().await
}
