//! How Postgres runs the hot statements when there is much of everything: by the keys of the
//! pools they touch, never through a whole table.

use keypool_testing::{
    plans::{self, For, HOT, Plan, SWEEPS, Statement},
    world::World,
};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

/// Clients with 32 packages each, two of them reserved, four tombstones, two draws, a last
/// resort package with three grants, and the events of all that.
const FILL: &[&str] = &[
    // Whether a vacuum has come by decides whether an index alone will do: for one of two sizes it may
    // have, in the middle of the test.
    "ALTER TABLE package SET (autovacuum_enabled = off);
     ALTER TABLE published SET (autovacuum_enabled = off);
     ALTER TABLE tombstone SET (autovacuum_enabled = off);
     ALTER TABLE draw SET (autovacuum_enabled = off);
     ALTER TABLE last_resort SET (autovacuum_enabled = off);
     ALTER TABLE last_resort_grant SET (autovacuum_enabled = off);
     ALTER TABLE pool SET (autovacuum_enabled = off);
     ALTER TABLE pool_suite SET (autovacuum_enabled = off)",
    "CREATE TABLE owner AS
     SELECT (n * 7919 % 1024)::smallint AS bucket, n * 1000003::bigint AS pool_id, n
     FROM generate_series(1, CLIENTS) AS n",
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

/// Whether the CTE locks what it reads in the order of the suites.
fn locks_in_order(plan: &[String], cte: &str) -> bool {
    let at = plan.iter().position(|line| line.trim() == format!("CTE {cte}"));
    let cte = at.map_or(&[][..], |at| &plan[at + 1..]);
    let locks = cte.first().is_some_and(|line| line.contains("LockRows"));
    let mut part = cte.iter().take_while(|line| !line.trim().starts_with("CTE "));
    locks && part.any(|line| line.contains("Sort Key:") && line.contains("cipher_suite"))
}

/// A database with so many clients in it, and a connection to it.
async fn filled(clients: u32) -> (World, PgConnection) {
    let world = World::new().await;
    let mut connection = PgConnection::connect(world.database.url()).await.unwrap();
    for statement in FILL {
        let statement = statement.replace("CLIENTS", &clients.to_string());
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await.unwrap();
    }
    (world, connection)
}

#[tokio::test]
async fn no_statement_scans_a_table_and_each_call_looks_by_key() {
    let (_world, mut connection) = filled(2000).await;

    // The check itself sees a scan where there is one.
    let scan =
        Statement { name: "scan", text: "SELECT count(*) FROM package WHERE generation = $1" };
    assert_eq!(scan.plan(&mut connection, For::AnyValues).await.whole_tables().len(), 1);

    let mut defects = Vec::new();
    for statement in HOT {
        let name = statement.name;
        let Plan { lines, .. } = statement.plan(&mut connection, For::AnyValues).await;
        let conditions: Vec<_> = lines.iter().filter(|line| line.contains("Index Cond:")).collect();
        assert!(!conditions.is_empty(), "{name}");
        let by_key = |line: &&&String| {
            let more = ["pool_id = ", "key_package_ref = ", "user_id = "];
            line.contains("bucket = ") && more.iter().any(|column| line.contains(column))
        };
        let others = conditions.iter().filter(|line| !by_key(line));
        defects.extend(others.map(|line| format!("{name}: {}", line.trim())));
    }
    for plan in plans::all(&mut connection).await {
        defects.extend(
            plan.whole_tables()
                .iter()
                .map(|scan| format!("{}, {:?}: {scan}", plan.name, plan.values)),
        );
    }
    for statement in HOT.iter().chain(SWEEPS) {
        for (_, cte) in COUNTS.iter().filter(|(name, _)| *name == statement.name) {
            let Plan { lines, .. } = statement.plan(&mut connection, For::Nulls).await;
            if !locks_in_order(&lines, cte) {
                defects
                    .push(format!("{}: {cte} does not lock in order: {lines:#?}", statement.name));
            }
        }
    }
    assert!(defects.is_empty(), "{defects:#?}");
}

#[tokio::test]
async fn every_statement_reads_the_tables_in_the_same_way_however_many_clients_there_are() {
    let scans = async |clients| {
        let (_world, mut connection) = filled(clients).await;
        let plans = plans::all(&mut connection).await;
        plans.iter().map(|plan| (plan.name, plan.values, plan.scans())).collect::<Vec<_>>()
    };
    let (few, many) = (scans(3000).await, scans(6000).await);
    assert_eq!(few.len(), 2 * HOT.len() + SWEEPS.len());
    for (few, many) in few.iter().zip(&many) {
        assert_eq!(few, many);
    }
}

/// Statements that the lists leave out: they touch no table of the pools', read the log a page at a
/// time, look at a bounded sample of pages or of draws, or run while nobody else is at work.
const OTHERS: [&str; 9] = [
    "diagnose",
    "events_in_span",
    "events_of_pools",
    "lowest",
    "notify",
    "role_faults",
    "sample",
    "sample_bounds",
    "withdraw",
];

#[test]
fn the_plan_of_every_statement_is_looked_at() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/service/src/store/sql");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let listed = HOT.iter().chain(SWEEPS).any(|statement| statement.name == name);
        assert!(listed || OTHERS.contains(&name), "{name} is not in keypool_testing::plans");
    }
}
