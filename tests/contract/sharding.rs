//! What a sharded Postgres demands of the tables, and that `deploy/citus.sql` knows them all.

use std::{collections::BTreeSet, path::Path};

use keypool_service::store::MIGRATOR;
use keypool_testing::database::TestDatabase;

/// Which tables hold pools, by the column that they are to be distributed by; partitions follow
/// their table.
const DISTRIBUTED: &str = "
    SELECT c.relname::text FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
    WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')
      AND NOT c.relispartition AND a.attname = 'bucket'";

/// The others; what the migrations themselves remember stays where it is.
const OTHERS: &str = "
    SELECT c.relname::text FROM pg_class c
    WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')
      AND NOT c.relispartition AND c.relname <> '_sqlx_migrations'
      AND NOT EXISTS (SELECT FROM pg_attribute a
                      WHERE a.attrelid = c.oid AND a.attname = 'bucket')";

/// Unique keys of distributed tables that another column leads.
const UNIQUE_WITHOUT_BUCKET: &str = "
    SELECT i.indexrelid::regclass::text FROM pg_index i
    JOIN pg_attribute b ON b.attrelid = i.indrelid AND b.attname = 'bucket'
    WHERE i.indisunique AND i.indkey[0] <> b.attnum
      AND i.indrelid IN (SELECT oid FROM pg_class
                         WHERE relnamespace = current_schema()::regnamespace)";

/// Foreign keys that lead from one shard to another.
const REFERENCES_WITHOUT_BUCKET: &str = "
    SELECT k.conname::text FROM pg_constraint k
    JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = k.conkey[1]
    JOIN pg_attribute b ON b.attrelid = k.confrelid AND b.attnum = k.confkey[1]
    WHERE k.contype = 'f' AND k.connamespace = current_schema()::regnamespace
      AND (a.attname <> 'bucket' OR b.attname <> 'bucket')";

async fn names(database: &TestDatabase, query: &'static str) -> BTreeSet<String> {
    let names: Vec<String> = sqlx::query_scalar(query).fetch_all(&database.pool).await.unwrap();
    names.into_iter().collect()
}

#[tokio::test]
async fn every_unique_and_foreign_key_begins_with_the_bucket() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    assert!(names(&database, DISTRIBUTED).await.contains("package"));
    assert_eq!(names(&database, UNIQUE_WITHOUT_BUCKET).await, BTreeSet::new());
    assert_eq!(names(&database, REFERENCES_WITHOUT_BUCKET).await, BTreeSet::new());
    let triggers = "SELECT tgname::text FROM pg_trigger WHERE NOT tgisinternal";
    assert_eq!(names(&database, triggers).await, BTreeSet::new());
}

#[tokio::test]
async fn the_file_for_citus_distributes_every_table() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/citus.sql");
    let file = std::fs::read_to_string(file).unwrap();
    let named = |function: &str| -> BTreeSet<String> {
        let call = format!("{function}('");
        let names =
            file.lines().filter_map(|line| line.strip_prefix("SELECT ")?.strip_prefix(&call));
        names.filter_map(|rest| Some(rest.split_once('\'')?.0.to_owned())).collect()
    };
    assert_eq!(named("create_distributed_table"), names(&database, DISTRIBUTED).await);
    assert_eq!(named("create_reference_table"), names(&database, OTHERS).await);
}
