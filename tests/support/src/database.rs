//! Databases for tests: one server a run, a fresh database a test.
//!
//! The server is the one that `KEYPOOL_TEST_POSTGRES` names (a URL of a superuser's database;
//! `script/test` sets it), or else one that this process starts on first use and that ends with
//! the process.

#![allow(clippy::expect_used)] // A test helper fails as a test does.

use std::{
    env,
    future::Future,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::SocketAddr,
    sync::LazyLock,
    thread,
};

use crate::{
    proxy::{Proxy, Target},
    server::until,
    test_server::TestServer,
};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, PgPool, Postgres,
    Transaction,
    migrate::Migrator,
    postgres::{PgConnectOptions, PgPoolOptions},
};

/// The environment variable with the URL of the server to use.
pub const SERVER_VARIABLE: &str = "KEYPOOL_TEST_POSTGRES";

/// The advisory lock under which a template is made: "keypool" in ASCII.
const TEMPLATE_LOCK: i64 = 0x006b_6579_706f_6f6c;

/// Whom servers under test connect as: it was granted what serving takes and no more. It is there
/// for all databases of a server.
const SERVICE_ROLE: &str = "keypool_test_service";

/// Many tests begin at once, and each may be the first.
const SERVICE_ROLE_EXISTS: &str = "
    DO $$
    BEGIN
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'keypool_service') THEN
            CREATE ROLE keypool_service NOLOGIN;
        END IF;
    EXCEPTION
        WHEN duplicate_object OR unique_violation THEN NULL;
    END $$;
    DO $$
    BEGIN
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'keypool_test_service') THEN
            CREATE ROLE keypool_test_service LOGIN PASSWORD 'keypool_test_service'
                IN ROLE keypool_service;
        END IF;
    EXCEPTION
        WHEN duplicate_object OR unique_violation THEN NULL;
    END $$";

/// A database of one test's own, dropped with this value.
#[derive(Debug)]
pub struct TestDatabase {
    /// Connections to the database, opened as needed.
    pub pool: PgPool,
    url: String,
    name: String,
}

impl TestDatabase {
    /// An empty database.
    ///
    /// # Panics
    /// There is no server, or it does not do as told.
    pub async fn create() -> Self {
        Self::copy_of("template1").await
    }

    /// A database with these migrations applied. They run once a server: the result is kept as a
    /// template and copied.
    ///
    /// # Panics
    /// There is no server, a migration fails, or the server does not do as told.
    pub async fn migrated(migrator: &Migrator) -> Self {
        Self::copy_of(&template(migrator).await).await
    }

    /// A copy of the database as it is now: a backup that is restored elsewhere. Nobody may be
    /// connected to it but this test, whose connections are closed.
    ///
    /// # Panics
    /// Somebody is, or the server does not do as told.
    pub async fn backup(&self) -> Self {
        self.pool.close().await;
        Self::copy_of(&self.name).await
    }

    /// The database's URL, of a superuser.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The database's URL for servers under test: of a role that may do what serving takes and no
    /// more.
    pub fn service_url(&self) -> String {
        let options = server_options().username(SERVICE_ROLE).password(SERVICE_ROLE);
        options.database(&self.name).to_url_lossy().to_string()
    }

    /// The server behind the URL, for a proxy.
    pub fn target(&self) -> Target {
        let options = server_options();
        match options.get_socket() {
            Some(folder) => Target::Unix(folder.join(format!(".s.PGSQL.{}", options.get_port()))),
            None => {
                let host = options.get_host();
                let host = if host == "localhost" { "127.0.0.1" } else { host };
                let address = host.parse().expect("the test server's address in numbers");
                Target::Tcp(SocketAddr::new(address, options.get_port()))
            }
        }
    }

    /// The URL of this database behind a proxy for servers under test, with a password that a
    /// server without a need for one does not look at.
    pub fn url_through(&self, proxy: &Proxy, password: &str) -> String {
        let name = &self.name;
        format!("postgres://{SERVICE_ROLE}:{password}@{}/{name}?sslmode=disable", proxy.address())
    }

    /// Keeps everyone else out of a table until the lock is dropped.
    pub async fn lock_table(&self, table: &str) -> TableLock {
        let mut transaction = self.pool.begin().await.expect("a transaction");
        let statement = format!("LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE");
        transaction.execute(AssertSqlSafe(statement)).await.expect("a lock");
        TableLock(transaction)
    }

    /// Returns once `count` statements wait for a lock.
    pub async fn waiting(&self, count: i64) {
        until(async || {
            let waiting: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM pg_stat_activity
                 WHERE datname = current_database() AND wait_event_type = 'Lock'",
            )
            .fetch_one(&self.pool)
            .await
            .expect("the server's activity");
            waiting >= count
        })
        .await;
    }

    async fn copy_of(template: &str) -> Self {
        let name = format!("keypool_test_{}", uuid::Uuid::new_v4().simple());
        administrate(&[
            SERVICE_ROLE_EXISTS,
            &format!(r#"CREATE DATABASE "{name}" TEMPLATE "{template}""#),
        ])
        .await;
        let options = server_options().database(&name);
        let url = options.to_url_lossy().to_string();
        let pool = PgPoolOptions::new().min_connections(0).connect_lazy_with(options);
        Self { pool, url, name }
    }
}

/// A lock on a table.
#[derive(Debug)]
pub struct TableLock(Transaction<'static, Postgres>);

impl TableLock {
    /// Lets everyone in again.
    pub async fn release(self) {
        self.0.rollback().await.expect("the end of a transaction");
    }
}

impl Drop for TestDatabase {
    /// Drops the database, whoever is still connected: a run of many tests needs the space.
    fn drop(&mut self) {
        let statement = format!(r#"DROP DATABASE IF EXISTS "{}" WITH (FORCE)"#, self.name);
        let dropped = thread::spawn(move || {
            block_on(async {
                let mut connection = server_options().connect().await?;
                connection.execute(AssertSqlSafe(statement)).await?;
                connection.close().await
            })
        })
        .join();
        // A failure is no failure of the test; the server and all it holds is gone after the run.
        if !matches!(dropped, Ok(Ok(()))) {
            eprintln!("database {} could not be dropped: {dropped:?}", self.name);
        }
    }
}

/// The template with these migrations applied, made when it is missing.
async fn template(migrator: &Migrator) -> String {
    let mut hasher = DefaultHasher::new();
    for migration in migrator.iter() {
        migration.checksum.hash(&mut hasher);
    }
    let name = format!("keypool_template_{:016x}", hasher.finish());

    // One connection for all of it: the lock lives as long as it does.
    let mut connection = server_options().connect().await.expect("connecting to the test server");
    sqlx::query("SELECT pg_advisory_lock($1)")
        .bind(TEMPLATE_LOCK)
        .execute(&mut connection)
        .await
        .expect("locking the template");
    let exists: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
            .bind(&name)
            .fetch_one(&mut connection)
            .await
            .expect("looking for the template");
    if !exists {
        // Whole or absent: it gets its name once every migration has run.
        let unfinished = format!("{name}_new");
        for statement in [
            format!(r#"DROP DATABASE IF EXISTS "{unfinished}" WITH (FORCE)"#),
            format!(r#"CREATE DATABASE "{unfinished}""#),
        ] {
            connection.execute(AssertSqlSafe(statement)).await.expect("creating the template");
        }
        let mut target = server_options()
            .database(&unfinished)
            .connect()
            .await
            .expect("connecting to the template");
        migrator.run(&mut target).await.expect("migrating the template");
        target.close().await.expect("leaving the template");
        let rename = format!(r#"ALTER DATABASE "{unfinished}" RENAME TO "{name}""#);
        connection.execute(AssertSqlSafe(rename)).await.expect("naming the template");
    }
    connection.close().await.expect("unlocking the template");
    name
}

async fn administrate(statements: &[&str]) {
    let mut connection = server_options().connect().await.expect("connecting to the test server");
    for statement in statements {
        let statement = AssertSqlSafe((*statement).to_owned());
        connection.execute(statement).await.expect("administrating the test server");
    }
    connection.close().await.expect("leaving the test server");
}

/// The superuser's database on the server of this run.
fn server_options() -> PgConnectOptions {
    static SERVER: LazyLock<(PgConnectOptions, Option<TestServer>)> = LazyLock::new(|| {
        let (url, server) = match env::var(SERVER_VARIABLE) {
            Ok(url) => (url, None),
            Err(_) => {
                let server = thread::spawn(|| block_on(TestServer::start())).join();
                let server = server.expect("a test server").expect("a test server");
                (server.url().to_owned(), Some(server))
            }
        };
        (url.parse().expect("the URL of the test server"), server)
    });
    SERVER.0.clone()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime of its own")
        .block_on(future)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use sqlx::PgConnection;
    use tempfile::TempDir;

    use super::*;

    #[tokio::test]
    async fn every_test_has_a_database_of_its_own_and_it_goes_with_the_test() {
        let first = TestDatabase::create().await;
        let second = TestDatabase::create().await;
        sqlx::query("CREATE TABLE mine (id int)").execute(&first.pool).await.unwrap();
        let seen: Option<String> = sqlx::query_scalar("SELECT to_regclass('mine')::text")
            .fetch_one(&second.pool)
            .await
            .unwrap();
        assert_eq!(seen, None);

        let gone = first.name.clone();
        let mut still_connected = PgConnection::connect(first.url()).await.unwrap();
        drop(first);
        assert!(still_connected.ping().await.is_err());
        let exists: bool =
            sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
                .bind(gone)
                .fetch_one(&second.pool)
                .await
                .unwrap();
        assert!(!exists);
    }

    #[tokio::test]
    async fn migrations_run_once_a_server_and_every_copy_has_their_result() {
        let migrations = TempDir::new().unwrap();
        // The time of the statement tells copies of one run from runs of their own.
        fs::write(
            migrations.path().join("0001_made.sql"),
            format!(
                "CREATE TABLE made AS SELECT clock_timestamp()::text AS at; -- {}",
                uuid::Uuid::new_v4()
            ),
        )
        .unwrap();
        let migrator = Migrator::new(migrations.path()).await.unwrap();
        let databases = tokio::join!(
            TestDatabase::migrated(&migrator),
            TestDatabase::migrated(&migrator),
            TestDatabase::migrated(&migrator),
        );
        let mut made = Vec::new();
        for database in [&databases.0, &databases.1, &databases.2] {
            let at: String =
                sqlx::query_scalar("SELECT at FROM made").fetch_one(&database.pool).await.unwrap();
            made.push(at);
        }
        made.dedup();
        assert_eq!(made.len(), 1);
    }
}
