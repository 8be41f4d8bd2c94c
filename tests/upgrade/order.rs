//! First the schema, then the replicas: one that came too early says so and serves nothing, and
//! one that was taken back finds a schema that it can work on.

use keypool_service::store::{MIGRATOR, newest_migration};
use keypool_testing::{
    database::TestDatabase,
    server::{ConfigFile, Server},
};

use super::{options, printed};

#[tokio::test]
async fn a_replica_that_is_newer_than_the_schema_serves_once_that_is_migrated() {
    let database = TestDatabase::create().await;
    let newest = newest_migration();
    MIGRATOR.run_to(newest - 1, &database.pool).await.unwrap();
    let config = ConfigFile::new(&database.service_url(), &options());
    let lacking = "lacks 1 migration(s): run `keypool migrate`\n";

    let serve = config.run("serve").await;
    let (_, log) = printed(&serve, 1);
    assert!(log.ends_with(&format!("keypool: the database {lacking}")), "{log}");
    // It had not begun to listen, so that no probe found it ready and no call got there.
    assert!(!log.contains("address="), "{log}");
    let wait = config.command("wait").args(["--timeout", "0s"]).output().await.unwrap();
    assert!(printed(&wait, 1).1.ends_with(lacking), "{wait:?}");

    printed(&ConfigFile::new(database.url(), &options()).run("migrate").await, 0);
    printed(&config.run("wait").await, 0);
    let server = Server::configured(config).await;
    server.client("bob", "phone").await.pool_status().await.unwrap();
}

#[tokio::test]
async fn a_release_that_was_taken_back_leaves_a_newer_schema_as_it_is() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (9001, 'of the release after', true, '', 0)",
    )
    .execute(&database.pool)
    .await
    .unwrap();
    let run = ConfigFile::new(database.url(), &options()).run("migrate").await;
    let expected = "0 migration(s) applied; the schema is newer than this version of keypool, which \
                    can work on it\n";
    assert_eq!(printed(&run, 0).0, expected);
    let config = ConfigFile::new(&database.service_url(), &options());
    printed(&config.run("wait").await, 0);
    let server = Server::configured(config).await;
    server.client("bob", "phone").await.pool_status().await.unwrap();
}

/// Only what came later may be unknown.
#[tokio::test]
async fn a_migration_that_is_missing_here_or_was_another_is_refused() {
    for (change, refusal) in [
        ("UPDATE _sqlx_migrations SET checksum = '' WHERE version = 1", "has been modified"),
        (
            "UPDATE _sqlx_migrations SET version = 4 WHERE version = 5",
            "has migration 4, which is older",
        ),
    ] {
        let database = TestDatabase::migrated(&MIGRATOR).await;
        sqlx::query(change).execute(&database.pool).await.unwrap();
        let run = ConfigFile::new(database.url(), &options()).run("migrate").await;
        let (_, log) = printed(&run, 1);
        assert!(log.contains(refusal), "{log}");
    }
}
