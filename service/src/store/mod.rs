//! The only place with SQL: one file a verb here, its statements in `sql/`.
//!
//! Every statement takes the time as its first parameter: null in production, where the
//! database's clock decides for all replicas alike.

mod batch;
mod diagnose;
mod events;
mod kept;
mod lowest;
mod migrate;
mod outage;
mod reserve;
mod reserve_jobs;
mod restore;
mod revoke;
mod role;
mod row;
mod sample;
mod settle;
mod settle_jobs;
mod status;
mod sweep;
mod upload;
mod watch;

use std::{future::Future, str::FromStr as _, sync::Arc, time::Duration};

use sqlx::{
    PgPool,
    error::DatabaseError,
    postgres::{PgConnectOptions, PgDatabaseError, PgPoolOptions, PgSeverity},
};
use time::OffsetDateTime;
use tokio::{sync::Mutex, time::Instant};

use crate::{
    domain::{clock::Clock, error::Error, policy::LapsePolicy},
    metrics::{Connections, metrics, waiting_for_connection},
};

use batch::Batcher;
use kept::{Kept, Lent};
use outage::Outage;
use reserve_jobs::{ClientsOf, ReserveFresh, ReserveRound};
use settle_jobs::{ReleaseCall, SpendCall, SpendHeld};

pub use diagnose::Diagnosis;
pub use events::{EventPools, EventQuery};
pub use lowest::LowPool;
pub use migrate::{LockPatience, MIGRATOR, newest_migration};
pub use reserve::{ReserveAsk, ReserveBatch, ReserveOutcome, Reserved};
pub use restore::{Restoration, Withdrawn};
pub use revoke::{Revocation, Revoked, Signer};
pub use sample::Sample;
pub use settle::{SettleBatch, Settled};
pub use status::PoolCounts;
pub use sweep::Swept;
pub use upload::{StoreOutcome, UploadLimits};
pub use watch::Listener;

/// As servers call themselves to the database.
const NAME: &str = "keypool";
/// As the commands of operators do.
const OPERATOR: &str = "keypool operator";

/// How often a statement starts over because another one came in between, before the caller is
/// told to come back. Each start sees what the other one did, so more than a few mean a pool
/// under very many hands.
const MAX_ROUNDS: u32 = 64;

/// A database that takes longer to answer nothing at all is not there.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// How to reach the database.
#[derive(Clone)]
pub struct StoreOptions {
    /// A `postgres://` URL. Holds a password, perhaps.
    pub url: String,
    /// The most connections this process opens for the calls of adders. Owners have half as many
    /// of their own, and one that listens.
    pub max_connections: u32,
    /// How long a call waits for one of them before it is turned away.
    pub acquire_timeout: Duration,
    /// How long a statement may run.
    pub statement_timeout: Duration,
}

/// The state of all pools, in Postgres.
#[derive(Debug, Clone)]
pub struct Store {
    pool: PgPool,
    /// Connections for owners and the watch: however many Reserves wait for the others, an owner
    /// hears of it and can refill its pool.
    owner_pool: PgPool,
    /// One connection that asks whether the database answers, however busy the others are.
    side_pool: PgPool,
    /// Of adders and of owners, the connections between two statements.
    kept: Arc<Kept>,
    owners_kept: Arc<Kept>,
    clock: Arc<dyn Clock>,
    outage: Outage,
    /// After this a statement that was sent is not waited for any more: its connection is dead.
    patience: Duration,
    /// When it last answered [`Store::why_late`]; locked while it is asked.
    answered: Arc<Mutex<Option<Instant>>>,
    clients: Batcher<ClientsOf>,
    fresh: Batcher<ReserveFresh>,
    reserves: Batcher<ReserveRound>,
    spends_held: Batcher<SpendHeld>,
    spends: Batcher<SpendCall>,
    releases: Batcher<ReleaseCall>,
}

impl Store {
    /// A store whose connections are opened when they are needed.
    ///
    /// # Errors
    /// When the URL is not one.
    pub fn new(options: &StoreOptions, clock: Arc<dyn Clock>) -> anyhow::Result<Self> {
        Self::named(NAME, options, clock)
    }

    /// As [`Store::new`], for a command that an operator runs: one connection, and it is no server
    /// to [`Store::connected_servers`].
    ///
    /// # Errors
    /// When the URL is not one.
    pub fn for_operator(options: &StoreOptions, clock: Arc<dyn Clock>) -> anyhow::Result<Self> {
        let options = StoreOptions { max_connections: 1, ..options.clone() };
        Self::named(OPERATOR, &options, clock)
    }

    fn named(name: &str, options: &StoreOptions, clock: Arc<dyn Clock>) -> anyhow::Result<Self> {
        let connect = PgConnectOptions::from_str(&options.url)
            .map_err(|_| anyhow::anyhow!("the database URL is not a postgres:// URL"))?
            .application_name(name)
            .options([
                // Planning costs as much as the work, and no plan depends on the values.
                ("plan_cache_mode", "force_generic_plan".to_owned()),
                // A plan made while a table was empty would read all of it when it no longer is.
                ("enable_seqscan", "off".to_owned()),
                // By the price that this puts on the one table that is only read whole, a statement
                // over the catalogue would be worth compiling, which takes a second.
                ("jit", "off".to_owned()),
                ("statement_timeout", options.statement_timeout.as_millis().to_string()),
                // A replica that was cut off must not hold its locks for long.
                ("idle_in_transaction_session_timeout", "10000".to_owned()),
            ]);
        let outage = Outage::default();
        let connections = |most| {
            let (connected, taken, returned) = (outage.clone(), outage.clone(), outage.clone());
            PgPoolOptions::new()
                .max_connections(most)
                .acquire_timeout(options.acquire_timeout)
                // A dead connection fails its statement, and that is answered as such; a ping
                // before each statement would double the round trips.
                .test_before_acquire(false)
                .after_connect(move |_, _| {
                    connected.note(true);
                    Box::pin(async { Ok(()) })
                })
                .before_acquire(move |_, meta| {
                    let usable = !taken.outlived_by(meta.age, Instant::now());
                    Box::pin(async move { Ok(usable) })
                })
                .after_release(move |connection, _| Box::pin(returned.may_return(connection)))
        };
        let most = options.max_connections;
        let pool = connections(most).connect_lazy_with(connect.clone());
        let owners = (most / 2).max(1);
        let owner_pool = connections(owners).connect_lazy_with(connect.clone());
        let side_pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(options.acquire_timeout)
            .connect_lazy_with(connect);
        Ok(Self {
            pool,
            owner_pool,
            side_pool,
            kept: Arc::new(Kept::of(most)),
            owners_kept: Arc::new(Kept::of(owners)),
            clock,
            outage,
            patience: options.statement_timeout + PING_TIMEOUT,
            answered: Arc::default(),
            clients: Batcher::default(),
            fresh: Batcher::default(),
            reserves: Batcher::default(),
            spends_held: Batcher::default(),
            spends: Batcher::default(),
            releases: Batcher::default(),
        })
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// [`Error::StoreUnavailable`].
    pub async fn ping(&self) -> Result<(), Error> {
        let answer = async {
            let mut connection = self.side_pool.acquire().await?;
            let ping = sqlx::query("SELECT 1").execute(&mut *connection);
            match tokio::time::timeout(PING_TIMEOUT, ping).await {
                Ok(answer) => answer.map(drop),
                Err(late) => {
                    // Nobody is to wait for it again.
                    connection.close_on_drop();
                    self.outage.broke(Instant::now());
                    Err(sqlx::Error::Io(late.into()))
                }
            }
        };
        let answer = answer.await.map_err(|error| Error::StoreUnavailable(error.into()));
        self.outage.note(answer.is_ok());
        answer
    }

    /// Why a call got no connection in time. That all were busy and that none could be made looks
    /// the same to it, so the database is asked: once for all calls that were waiting meanwhile.
    pub async fn why_late(&self) -> Error {
        let mut answered = self.answered.lock().await;
        let waited = self.pool.options().get_acquire_timeout();
        if !self.outage.is_reachable() {
            return self.error(sqlx::Error::PoolTimedOut);
        }
        if answered.is_some_and(|at| at.elapsed() < waited) {
            return Error::Overloaded;
        }
        match self.ping().await {
            Ok(()) => {
                *answered = Some(Instant::now());
                Error::Overloaded
            }
            Err(gone) => gone,
        }
    }

    /// The secret behind reservation ids. The first replica to ask makes `fresh` the secret of
    /// all.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn reservation_secret(&self, fresh: [u8; 32]) -> Result<[u8; 32], Error> {
        sqlx::query!(
            "INSERT INTO service_secret (name, secret) VALUES ('reservation', $1)
             ON CONFLICT (name) DO NOTHING",
            &fresh[..]
        )
        .execute(&self.pool)
        .await
        .map_err(|error| self.error(error))?;
        let secret =
            sqlx::query_scalar!("SELECT secret FROM service_secret WHERE name = 'reservation'")
                .fetch_one(&self.pool)
                .await
                .map_err(|error| self.error(error))?;
        secret.try_into().map_err(|_| row::impossible("a secret that is not 32 bytes"))
    }

    /// Sets the gauges of the connections.
    pub fn measure_connections(&self) {
        for (name, pool, kept) in [
            (Connections::Adders, &self.pool, self.kept.len()),
            (Connections::Owners, &self.owner_pool, self.owners_kept.len()),
            (Connections::Health, &self.side_pool, 0),
        ] {
            let idle = pool.num_idle() + kept;
            let used = (pool.size() as usize).saturating_sub(idle);
            let name = ("db_client_connection_pool_name", name.as_str());
            for (state, count) in [("idle", idle), ("used", used)] {
                let labels = [name, ("db_client_connection_state", state)];
                metrics().set("db_client_connection_count", &labels, count as f64);
            }
            let most = pool.options().get_max_connections();
            metrics().set("db_client_connection_max", &[name], f64::from(most));
        }
    }

    /// A connection for a statement that serves many adders' calls.
    async fn adder_connection(&self) -> Result<Lent, sqlx::Error> {
        let connection = self.kept.or_from_pool(&self.outage, self.pool.acquire());
        acquired(Connections::Adders, connection).await
    }

    /// A connection for an owner's call.
    async fn owner_connection(&self) -> Result<Lent, sqlx::Error> {
        let connection = self.owners_kept.or_from_pool(&self.outage, self.owner_pool.acquire());
        acquired(Connections::Owners, connection).await
    }

    /// Closes all connections once their statements are done.
    pub async fn close(&self) {
        self.kept.close();
        self.owners_kept.close();
        self.side_pool.close().await;
        self.owner_pool.close().await;
        self.pool.close().await;
    }

    fn imposed_now(&self) -> Option<OffsetDateTime> {
        self.clock.imposed()
    }

    /// What a failed statement means to the caller.
    fn error(&self, error: impl Into<Arc<sqlx::Error>>) -> Error {
        use sqlx::Error as Sqlx;
        let error = error.into();
        let code = error.as_database_error().and_then(DatabaseError::code).unwrap_or_default();
        // Connection exceptions, shutdown and crash recovery; a primary that has become a standby.
        let broke = matches!(&*error, Sqlx::Io(_))
            || code.starts_with("08")
            || code.starts_with("57P")
            || code == "25006";
        // Too many connections, a full disk, no memory; a disk that fails.
        let cannot = code.starts_with("53") || code.starts_with("58");
        let unavailable = match &*error {
            Sqlx::PoolTimedOut => !self.outage.is_reachable(),
            Sqlx::Tls(_) | Sqlx::PoolClosed | Sqlx::WorkerCrashed => true,
            _ => broke || cannot || is_the_end(&error),
        };
        if broke {
            self.outage.broke(Instant::now());
        }
        if unavailable {
            self.outage.note(false);
            return Error::StoreUnavailable(error.into());
        }
        // statement_timeout and lock_timeout
        let gave_up =
            |cause: &dyn DatabaseError| matches!(cause.code().as_deref(), Some("57014" | "55P03"));
        match &*error {
            Sqlx::PoolTimedOut => Error::Overloaded,
            Sqlx::Database(cause) if gave_up(cause.as_ref()) => Error::Overloaded,
            _ => Error::Internal(error.into()),
        }
    }
}

async fn acquired<T>(
    name: Connections,
    acquire: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    let acquired = waiting_for_connection(name, acquire).await;
    if matches!(acquired, Err(sqlx::Error::PoolTimedOut)) {
        metrics().connection_timeouts.count(name);
    }
    acquired
}

fn burns(policy: LapsePolicy) -> bool {
    policy == LapsePolicy::Burn
}

/// Seconds as `make_interval` takes them.
fn seconds(duration: time::Duration) -> f64 {
    duration.as_seconds_f64()
}

/// Whether Postgres ended the connection, or did not let it in: with a full disk, a new one that
/// cannot write its cache ends with XX000, an internal error.
fn is_the_end(error: &sqlx::Error) -> bool {
    let cause = error.as_database_error();
    let cause = cause.and_then(|cause| cause.try_downcast_ref::<PgDatabaseError>());
    cause.is_some_and(|cause| matches!(cause.severity(), PgSeverity::Fatal | PgSeverity::Panic))
}

/// Whether a statement lost a race that starting over settles: another one inserted the same
/// draw or published the same package first, or Postgres broke a deadlock.
fn lost_race(error: &sqlx::Error) -> bool {
    let Some(cause) = error.as_database_error() else { return false };
    match cause.code().as_deref() {
        Some("40001" | "40P01") => true,
        Some("23505") => matches!(
            cause.constraint(),
            Some("draw_pkey" | "published_pkey" | "published_bucket_pool_id_init_key_digest_key")
        ),
        _ => false,
    }
}
