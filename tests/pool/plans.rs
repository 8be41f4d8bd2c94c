//! How Postgres runs the hot statements when there is much of everything: by the keys of the
//! pools they touch, never through a whole table.

use keypool_testing::world::World;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};

/// 2,000 clients with 32 packages each, two of them reserved, four tombstones, two draws, a last
/// resort package with three grants, and the events of all that.
const FILL: &[&str] = &[
    "CREATE TABLE owner AS
     SELECT (n * 7919 % 1024)::smallint AS bucket, n * 1000003::bigint AS pool_id, n
     FROM generate_series(1, 2000) AS n",
    "CREATE TABLE item AS
     SELECT bucket, pool_id, 1 AS cipher_suite, seq, sha256(format('%s %s', n, seq)::bytea) AS ref,
            substr(sha256(format('%s/%s', n, seq)::bytea), 1, 16) AS digest,
            now() + make_interval(hours => (n * 37 + seq * 11)::int % 2000 + 2) AS not_after
     FROM owner, generate_series(1, 37) AS seq",
    "INSERT INTO pool SELECT bucket, 'user-' || n, 'client', pool_id, now() FROM owner",
    "INSERT INTO pool_suite SELECT bucket, pool_id, 1, 37, 36, 0, 0, 0, 0 FROM owner",
    "INSERT INTO published SELECT bucket, ref, pool_id, 1, seq, digest, not_after FROM item",
    "INSERT INTO package (bucket, pool_id, cipher_suite, seq, not_after, capabilities,
                          signature_key_digest, credential_digest, key_package_ref, key_package)
     SELECT bucket, pool_id, 1, seq, not_after, '{10}', digest, digest, ref,
            decode(repeat('ab', 300), 'hex')
     FROM item WHERE seq <= 32",
    "UPDATE package SET state = 'reserved', generation = 1, holder = signature_key_digest,
         group_id = 'group', expires_at = now() WHERE seq <= 2",
    "INSERT INTO tombstone SELECT bucket, pool_id, 1, seq, ref, 'spent', 1, digest, 'group', now()
     FROM item WHERE seq BETWEEN 33 AND 36",
    "INSERT INTO last_resort SELECT bucket, pool_id, 1, seq, ref, decode(repeat('ab', 300), 'hex'),
         not_after, '{10}', digest, digest FROM item WHERE seq = 37",
    "INSERT INTO last_resort_grant SELECT bucket, pool_id, 1, g * 1000 + seq, ref, 'reserved',
         digest, 'group', now() FROM item, generate_series(1, 3) AS g WHERE seq = 37",
    "INSERT INTO draw SELECT bucket, pool_id, digest, now(),
         ARRAY[ROW(gen_random_uuid(), 'group', 1, seq, 1, now())::open_reservation], now()
     FROM item WHERE seq <= 2",
    "INSERT INTO event SELECT bucket, pool_id, now(), 1, seq, 0, 'uploaded', ref FROM item",
    "ANALYZE",
];

/// Statements that run for a call: every look-up is within one bucket, and by more than that.
const HOT: &[(&str, &str)] = &[
    ("reserve_fresh", include_str!("../../service/src/store/sql/reserve_fresh.sql")),
    ("reserve", include_str!("../../service/src/store/sql/reserve.sql")),
    ("spend", include_str!("../../service/src/store/sql/spend.sql")),
    ("release", include_str!("../../service/src/store/sql/release.sql")),
    ("settle_grants", include_str!("../../service/src/store/sql/settle_grants.sql")),
    ("status", include_str!("../../service/src/store/sql/status.sql")),
    ("known", include_str!("../../service/src/store/sql/known.sql")),
    ("due", include_str!("../../service/src/store/sql/due.sql")),
    ("store_packages", include_str!("../../service/src/store/sql/store_packages.sql")),
    ("expire", include_str!("../../service/src/store/sql/expire.sql")),
    ("revoke", include_str!("../../service/src/store/sql/revoke.sql")),
];

/// The sweeper's statements, which find their rows by time, and the values of a small batch.
const SWEEPS: &[(&str, &str, &str)] = &[
    ("lapse", include_str!("../../service/src/store/sql/lapse.sql"), "NULL, 'epoch', 10, false"),
    (
        "expire_last_resort",
        include_str!("../../service/src/store/sql/expire_last_resort.sql"),
        "NULL, 10",
    ),
    ("forget", include_str!("../../service/src/store/sql/forget.sql"), "NULL, 10, 60"),
    ("forget_draws", include_str!("../../service/src/store/sql/forget_draws.sql"), "NULL, 10, 60"),
    (
        "forget_grants",
        include_str!("../../service/src/store/sql/forget_grants.sql"),
        "NULL, 10, 60",
    ),
];

/// What counts in several suites at once locks them in the order of the key, by this CTE. Other
/// tests see that two such statements do not deadlock, but a plan may happen to keep the order
/// unasked.
const COUNTS: &[(&str, &str)] = &[
    ("spend", "suite"),
    ("release", "suite"),
    ("lapse", "suite"),
    ("expire", "suite"),
    ("revoke", "suite"),
    ("forget", "suite"),
    ("forget_grants", "held"),
];

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

/// The plan of a statement with these values, or for any values, as `mode` says.
async fn plan(
    connection: &mut PgConnection,
    mode: &str,
    (name, statement): (&str, &str),
    values: Option<&str>,
) -> Vec<String> {
    // Without the marks by which sqlx is told what is null.
    let statement = statement.replace("!\"", "\"").replace("?\"", "\"");
    let prepare = format!("SET plan_cache_mode = {mode}; PREPARE {name} AS {statement}");
    sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&mut *connection).await.expect(name);
    explain(connection, name, values).await
}

async fn explain(connection: &mut PgConnection, name: &str, values: Option<&str>) -> Vec<String> {
    let parameters: i32 = sqlx::query_scalar(
        "SELECT cardinality(parameter_types) FROM pg_prepared_statements WHERE name = $1",
    )
    .bind(name)
    .fetch_one(&mut *connection)
    .await
    .expect(name);
    let nulls = vec!["NULL"; usize::try_from(parameters).unwrap()].join(", ");
    let explain = format!("EXPLAIN EXECUTE {name} ({})", values.unwrap_or(&nulls));
    let lines = sqlx::raw_sql(AssertSqlSafe(explain)).fetch_all(connection).await.expect(name);
    lines.iter().map(|line| line.get(0)).collect()
}

/// Whether the CTE locks what it reads in the order of the suites.
fn locks_in_order(plan: &[String], cte: &str) -> bool {
    let at = plan.iter().position(|line| line.trim() == format!("CTE {cte}"));
    let cte = at.map_or(&[][..], |at| &plan[at + 1..]);
    let locks = cte.first().is_some_and(|line| line.contains("LockRows"));
    let mut part = cte.iter().take_while(|line| !line.trim().starts_with("CTE "));
    locks && part.any(|line| line.contains("Sort Key:") && line.contains("cipher_suite"))
}

/// The tables that a plan reads from end to end.
fn scanned(plan: &[String]) -> impl Iterator<Item = &String> {
    let scans = |line: &&String| line.contains("Seq Scan on ");
    plan.iter().filter(scans).filter(|line| {
        let table = line.split("Seq Scan on ").nth(1).and_then(|rest| rest.split(' ').next());
        table.is_some_and(|table| TABLES.iter().any(|t| table == *t || table == "event_default"))
    })
}

#[tokio::test]
async fn no_statement_scans_a_table_and_each_call_looks_by_key() {
    let world = World::new().await;
    let mut connection = PgConnection::connect(world.database.url()).await.unwrap();
    // As the service's own connections do.
    sqlx::raw_sql("SET enable_seqscan = off").execute(&mut connection).await.unwrap();
    for statement in FILL {
        sqlx::raw_sql(*statement).execute(&mut connection).await.expect(statement);
    }

    // The check itself sees a scan where there is one.
    let generic = "force_generic_plan";
    let scan = ("scan", "SELECT count(*) FROM package WHERE generation = $1");
    assert_eq!(scanned(&plan(&mut connection, generic, scan, None).await).count(), 1);

    let mut defects = Vec::new();
    for &(name, statement) in HOT {
        let plan = plan(&mut connection, generic, (name, statement), None).await;
        defects.extend(scanned(&plan).map(|line| format!("{name}: {}", line.trim())));
        let conditions: Vec<_> = plan.iter().filter(|line| line.contains("Index Cond:")).collect();
        assert!(!conditions.is_empty(), "{name}");
        let by_key = |line: &&&String| {
            let more = ["pool_id = ", "key_package_ref = ", "user_id = "];
            line.contains("bucket = ") && more.iter().any(|column| line.contains(column))
        };
        let others = conditions.iter().filter(|line| !by_key(line));
        defects.extend(others.map(|line| format!("{name}: {}", line.trim())));
    }
    for &(name, statement, values) in SWEEPS {
        let mode = "force_custom_plan";
        let plan = plan(&mut connection, mode, (name, statement), Some(values)).await;
        defects.extend(scanned(&plan).map(|line| format!("{name}: {}", line.trim())));
    }
    for &(name, cte) in COUNTS {
        let plan = explain(&mut connection, name, None).await;
        if !locks_in_order(&plan, cte) {
            defects.push(format!("{name}: {cte} does not lock in order: {plan:#?}"));
        }
    }
    assert!(defects.is_empty(), "{defects:#?}");
}
