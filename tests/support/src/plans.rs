//! How Postgres runs keypool's statements.

use std::{collections::BTreeSet, fmt};

use sqlx::{AssertSqlSafe, PgConnection, Row as _};

macro_rules! statements {
    ($($name:literal),* $(,)?) => {
        &[$(Statement {
            name: $name,
            text: include_str!(concat!("../../../service/src/store/sql/", $name, ".sql")),
        }),*]
    };
}

/// A statement of the store.
#[derive(Debug, Clone, Copy)]
pub struct Statement {
    /// The name of its file.
    pub name: &'static str,
    /// As the file has it.
    pub text: &'static str,
}

/// Statements that run for a call: every look-up is within one bucket, and by more than that.
pub const HOT: &[Statement] = statements![
    "reserve_fresh",
    "reserve",
    "spend_held",
    "spend",
    "release",
    "settle_grants",
    "status",
    "known",
    "due",
    "store_packages",
    "expire",
    "revoke",
];

/// The sweeper's statements, which find their rows by time. They are planned for their values.
pub const SWEEPS: &[Statement] =
    statements!["lapse", "expire_last_resort", "forget", "forget_draws", "forget_grants"];

/// The tables that grow with the owners or with time.
const TABLES: [&str; 9] = [
    "pool",
    "pool_suite",
    "package",
    "tombstone",
    "published",
    "last_resort",
    "last_resort_grant",
    "draw",
    "event",
];

/// What a statement is planned for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum For {
    /// Any values.
    AnyValues,
    /// Some values, with arrays of one element.
    SomeValues,
    /// Nulls.
    Nulls,
}

/// How Postgres runs one statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Which statement.
    pub name: &'static str,
    /// What it is planned for.
    pub values: For,
    /// The lines of EXPLAIN, without costs and estimates of rows.
    pub lines: Vec<String>,
}

impl Plan {
    /// How each table is read, each way once: "Index Scan using package_pkey on package". The
    /// log's partitions are one table.
    pub fn scans(&self) -> BTreeSet<String> {
        let scans = self.lines.iter().filter_map(|line| {
            let at = ["Index Only Scan ", "Index Scan ", "Bitmap Heap Scan ", "Seq Scan "]
                .iter()
                .find_map(|scan| line.find(scan))?;
            let scan = line.get(at..)?;
            let (how, table) = scan.split_once(" on ")?;
            let table = table.split(' ').next()?;
            let known = TABLES.contains(&table) || table.starts_with("event_");
            known.then(|| format!("{how} on {table}"))
        });
        scans.collect()
    }

    /// The tables that it reads from end to end.
    pub fn whole_tables(&self) -> Vec<String> {
        self.scans().into_iter().filter(|scan| scan.contains("Seq Scan on ")).collect()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scans: Vec<String> = self.scans().into_iter().collect();
        write!(f, "{} for {:?}: {}", self.name, self.values, scans.join(", "))
    }
}

impl Statement {
    /// Its plan.
    pub async fn plan(&self, connection: &mut PgConnection, values: For) -> Plan {
        let Self { name, .. } = *self;
        self.prepare(connection, values).await;
        let types: Vec<String> = sqlx::query_scalar(
            "SELECT unnest(parameter_types)::text FROM pg_prepared_statements WHERE name = $1",
        )
        .bind(name)
        .fetch_all(&mut *connection)
        .await
        .expect(name);
        let literals: Vec<String> = types.iter().map(|of| value(of, values)).collect();
        let explain = format!("EXPLAIN (COSTS OFF) EXECUTE {name} ({})", literals.join(", "));
        let explain = sqlx::raw_sql(AssertSqlSafe(explain));
        let lines = explain.fetch_all(&mut *connection).await.expect(name);
        let forget = sqlx::raw_sql(AssertSqlSafe(format!("DEALLOCATE {name}")));
        forget.execute(connection).await.expect(name);
        Plan { name, values, lines: lines.iter().map(|line| line.get(0)).collect() }
    }

    async fn prepare(&self, connection: &mut PgConnection, values: For) {
        let Self { name, text } = *self;
        // Without the marks by which sqlx is told what is null.
        let text = text.replace("!\"", "\"").replace("?\"", "\"");
        let mode = match values {
            For::AnyValues => "force_generic_plan",
            For::SomeValues | For::Nulls => "force_custom_plan",
        };
        // As the service's own connections have it.
        let settings = format!("SET plan_cache_mode = {mode}; SET enable_seqscan = off");
        let prepare = format!("{settings}; PREPARE {name} AS {text}");
        sqlx::raw_sql(AssertSqlSafe(prepare)).execute(connection).await.expect(name);
    }
}

/// The plans of all statements: for any values, as keypool has those planned that run for a call,
/// and for some.
pub async fn all(connection: &mut PgConnection) -> Vec<Plan> {
    let mut plans = Vec::new();
    for statement in HOT {
        plans.push(statement.plan(connection, For::AnyValues).await);
    }
    for statement in HOT.iter().chain(SWEEPS) {
        plans.push(statement.plan(connection, For::SomeValues).await);
    }
    plans
}

/// A value of a type such as a call's may be. Which one does not matter to the plan.
fn value(of: &str, values: For) -> String {
    if values != For::SomeValues {
        return "NULL".to_owned();
    }
    if let Some(element) = of.strip_suffix("[]") {
        let element = value(element, values);
        return format!("array_fill({element}, ARRAY[1])::{of}");
    }
    let literal = match of {
        "boolean" => "false",
        "uuid" => "7b1d1d0e-3b0c-4a52-9f0c-0a4f5d3c2b11",
        "bytea" => r"\x000102030405060708090a0b0c0d0e0f",
        "timestamp with time zone" => "now",
        "text" => "spent",
        _ => "10",
    };
    format!("'{literal}'::{of}")
}
