//! Roles of the database that a test makes and drops.

use sqlx::{AssertSqlSafe, ConnectOptions as _, PgPool, postgres::PgConnectOptions};

use crate::database::TestDatabase;

/// A role that may log in, dropped with this value's [`Login::end`].
#[derive(Debug)]
pub struct Login {
    /// Its name.
    pub name: String,
    /// How to connect to the test's database as this role.
    pub options: PgConnectOptions,
}

impl Login {
    /// `more` is what it may do besides, as in CREATE ROLE.
    pub async fn new(database: &TestDatabase, more: &str) -> Self {
        let name = format!("keypool_login_{}", uuid::Uuid::new_v4().simple());
        run(&database.pool, &format!("CREATE ROLE {name} LOGIN PASSWORD 'secret' {more}")).await;
        let options: PgConnectOptions = database.url().parse().expect("the database's URL");
        let options = options.username(&name).password("secret");
        Self { name, options }
    }

    /// The URL of the test's database for this role.
    pub fn url(&self) -> String {
        self.options.to_url_lossy().to_string()
    }

    /// Drops it, and what it owns in the database.
    pub async fn end(self, database: &TestDatabase) {
        run(&database.pool, &format!("DROP OWNED BY {0} CASCADE; DROP ROLE {0}", self.name)).await;
    }
}

/// Runs statements of a test's own.
pub async fn run(pool: &PgPool, statements: &str) {
    let statements = sqlx::raw_sql(AssertSqlSafe(statements.to_owned()));
    statements.execute(pool).await.expect("statements that work");
}
