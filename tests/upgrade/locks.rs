//! A migration whose table is in use waits for a moment, lets calls pass, and tries again.

use std::{fs, sync::Arc, time::Duration};

use keypool_client::{Client, Reserve};
use keypool_service::{
    domain::clock::{Clock as _, SystemClock},
    store::{LockPatience, MIGRATOR, Store, StoreOptions},
};
use keypool_testing::{
    database::TestDatabase,
    forge::Forge,
    server::{ConfigFile, Server, until},
};
use sqlx::{
    Connection as _, Executor as _, PgConnection,
    migrate::{Migrate as _, Migrator},
};
use tempfile::TempDir;
use tokio::{
    runtime::Handle,
    task::{JoinHandle, spawn_blocking},
};

use super::{options, printed};

const SUITE: u16 = 1;

/// The last migration before one that changes `package`, the table of every Reserve.
const BEFORE_A_CHANGE: i64 = 2;

/// A server, an adder, and enough for it to reserve.
struct Served {
    database: TestDatabase,
    _server: Server,
    adder: Client,
    ask: Reserve,
}

async fn served() -> Served {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let server = Server::start(&database, &options()).await;
    let now = SystemClock.now().unix_timestamp().unsigned_abs();
    let packages = (0..32).map(|_| Forge::new(SUITE, "bob").valid_around(now).build());
    server.client("bob", "phone").await.upload(packages).await.unwrap();
    let adder = server.client("alice", "phone").await;
    let ask = Reserve::new("a group", SUITE).target_clients("bob", ["phone"]);
    Served { database, _server: server, adder, ask }
}

/// What a backup holds while it reads.
async fn reading(database: &TestDatabase) -> PgConnection {
    let mut reader = PgConnection::connect(database.url()).await.unwrap();
    reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; TABLE package LIMIT 0").await.unwrap();
    reader
}

/// One migration that this build does not have, applied as those are.
async fn apply(database: &TestDatabase, sql: &str, lock_timeout: Duration) -> anyhow::Result<()> {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("9001_of_a_test.sql"), sql).unwrap();
    let mut migrator = Migrator::new(folder.path()).await.unwrap();
    migrator.set_ignore_missing(true);
    let options = StoreOptions {
        url: database.url().into(),
        max_connections: 1,
        acquire_timeout: Duration::from_secs(60),
        statement_timeout: Duration::from_secs(60),
    };
    let store = Store::new(&options, Arc::new(SystemClock)).unwrap();
    let patience = LockPatience { lock_timeout, give_up_after: Duration::from_secs(3600) };
    let applied = store.apply(&migrator, patience).await;
    store.close().await;
    applied
}

/// What goes on beside the calls of a test. sqlx's futures of migrations do not move to others.
fn applying(
    it: Arc<Served>,
    sql: &'static str,
    lock_timeout: Duration,
) -> JoinHandle<anyhow::Result<()>> {
    spawn_blocking(move || Handle::current().block_on(apply(&it.database, sql, lock_timeout)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reserves_go_on_while_a_migration_waits_for_its_lock() {
    let it = Arc::new(served().await);
    let reader = reading(&it.database).await;
    let sql = "ALTER TABLE package ADD COLUMN of_a_test int";
    let migration = applying(it.clone(), sql, Duration::from_millis(500));
    // Until one was seen in line behind the migration, in one of its tries.
    let mut was_behind = false;
    while !was_behind {
        it.database.waiting(1).await;
        let reserve = tokio::spawn({
            let it = it.clone();
            async move { it.adder.reserve(&it.ask).await }
        });
        until(async || {
            was_behind |= waiting_for_package(&it.database).await > 1;
            was_behind || reserve.is_finished()
        })
        .await;
        // The reader still reads, so the migration cannot have been applied.
        let answer = reserve.await.unwrap().unwrap();
        assert_eq!(answer.reservations().count(), 1);
        assert!(!migration.is_finished());
    }
    reader.close().await.unwrap();
    migration.await.unwrap().unwrap();
    sqlx::query("SELECT of_a_test FROM package").execute(&it.database.pool).await.unwrap();
    it.adder.reserve(&it.ask).await.unwrap();
}

async fn waiting_for_package(database: &TestDatabase) -> i64 {
    let waiting = "SELECT count(*) FROM pg_locks
                   WHERE NOT granted AND relation = 'package'::regclass";
    sqlx::query_scalar(waiting).fetch_one(&database.pool).await.unwrap()
}

/// CREATE INDEX CONCURRENTLY waits for whoever reads, without a lock that is in anybody's way; cut
/// off, it would leave an index that is none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_is_made_beside_calls_is_not_cut_off() {
    let it = Arc::new(served().await);
    let reader = reading(&it.database).await;
    let sql = "-- no-transaction\nCREATE INDEX CONCURRENTLY of_a_test ON package (seq)";
    let migration = applying(it.clone(), sql, Duration::from_millis(10));
    it.database.waiting(1).await;
    for _ in 0..4 {
        assert_eq!(it.adder.reserve(&it.ask).await.unwrap().reservations().count(), 1);
    }
    assert!(!migration.is_finished());
    reader.close().await.unwrap();
    migration.await.unwrap().unwrap();
    let valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'of_a_test'::regclass";
    let valid: bool = sqlx::query_scalar(valid).fetch_one(&it.database.pool).await.unwrap();
    assert!(valid);
}

#[tokio::test]
async fn migrate_says_what_it_waits_for_gives_up_in_time_and_can_be_run_again() {
    let database = TestDatabase::create().await;
    MIGRATOR.run_to(BEFORE_A_CHANGE, &database.pool).await.unwrap();
    let pending = MIGRATOR.iter().filter(|it| it.version > BEFORE_A_CHANGE).count();
    let config = ConfigFile::new(database.url(), &options());
    let migrate = |arguments: &[&str]| {
        let mut command = config.command("migrate");
        command.args(["--lock-timeout", "10ms"]).args(arguments);
        command
    };
    let reader = reading(&database).await;
    let run = migrate(&["--timeout", "0s"]).output().await.unwrap();
    let (_, complaint) = printed(&run, 1);
    let expected = "keypool: migration 3 got no lock within 0s, in 1 tries of 10ms: somebody else \
                    uses a table that it changes. Nothing of it was applied; run `keypool migrate` \
                    again";
    assert!(complaint.contains(expected), "{complaint}");

    let log = tempfile::NamedTempFile::new().unwrap();
    let mut waiting = migrate(&[]);
    waiting.stdout(std::process::Stdio::piped()).stderr(log.reopen().unwrap());
    let waiting = waiting.spawn().unwrap();
    until(async || {
        let log = fs::read_to_string(log.path()).unwrap();
        log.contains("waiting for a lock: somebody else uses a table") && log.contains("tries=2")
    })
    .await;
    reader.close().await.unwrap();
    let run = waiting.wait_with_output().await.unwrap();
    let expected = format!("{pending} migration(s) applied; the schema is up to date\n");
    assert_eq!(printed(&run, 0).0, expected);
}

#[tokio::test]
async fn migrations_take_turns() {
    let database = TestDatabase::create().await;
    let config = ConfigFile::new(database.url(), &options());
    let mut other = PgConnection::connect(database.url()).await.unwrap();
    other.lock().await.unwrap();
    let run = config.command("migrate").args(["--timeout", "0s"]).output().await.unwrap();
    let (_, complaint) = printed(&run, 1);
    assert!(complaint.contains("another migration is running"), "{complaint}");
    other.close().await.unwrap();
    printed(&config.run("migrate").await, 0);
}

#[tokio::test]
async fn a_lock_without_a_limit_is_refused() {
    let database = TestDatabase::create().await;
    let config = ConfigFile::new(database.url(), &options());
    for bad in ["0s", "11s", "soon"] {
        let run = config.command("migrate").args(["--lock-timeout", bad]).output().await.unwrap();
        printed(&run, 2);
    }
}
