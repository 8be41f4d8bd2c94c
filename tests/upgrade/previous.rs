//! The release before on the schema of this one, and the way from one to the other under load. What
//! the release before is, `script/upgrade-check` says; it builds its binary and runs these.

use std::{env, path::PathBuf};

use keypool_testing::{
    applications::Applications,
    built::binary,
    database::TestDatabase,
    server::{ConfigFile, Server, until},
};
use sqlx::Executor as _;

use super::{options, printed};

/// Names the binary of the release before.
const PREVIOUS: &str = "KEYPOOL_PREVIOUS";
/// How many migrations that one has: what was built is what was meant.
const MIGRATIONS: &str = "KEYPOOL_PREVIOUS_MIGRATIONS";

const REPLICAS: usize = 3;
const PAIRS: usize = 2;

fn previous() -> PathBuf {
    let path = env::var_os(PREVIOUS).expect("KEYPOOL_PREVIOUS: run script/upgrade-check");
    PathBuf::from(path).canonicalize().expect("KEYPOOL_PREVIOUS names a binary")
}

async fn migrate(build: PathBuf, database: &TestDatabase) -> String {
    let run = ConfigFile::of(build, database.url(), &options()).run("migrate").await;
    printed(&run, 0).0.trim().to_owned()
}

async fn replica(build: PathBuf, database: &TestDatabase) -> Server {
    Server::configured(ConfigFile::of(build, &database.service_url(), &options())).await
}

/// Ends a replica as a rollout does, and starts one of this build in its place.
async fn replace(server: &mut Server, build: PathBuf, database: &TestDatabase) {
    let listen = options().text("listen", server.address().to_string());
    server.signal("TERM");
    assert_eq!(server.ended().await.code(), Some(0), "{}", server.log());
    *server = Server::configured(ConfigFile::of(build, &database.service_url(), &listen)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes the binary of the release before: script/upgrade-check"]
async fn it_serves_on_the_new_schema_beside_new_replicas() {
    let database = TestDatabase::create().await;
    eprintln!("the new build: {}", migrate(binary(), &database).await);
    // Each pair is on replicas of one build, or on both.
    let old = [replica(previous(), &database).await];
    let new = [replica(binary(), &database).await];
    let both = [replica(previous(), &database).await, replica(binary(), &database).await];
    let applications = [
        Applications::start("old", PAIRS, &old).await,
        Applications::start("new", PAIRS, &new).await,
        Applications::start("both", PAIRS, &both).await,
    ];
    for them in &applications {
        them.go_on().await;
        them.go_on().await;
    }
    for them in applications {
        let (failures, rounds, _) = them.end().await;
        assert_eq!(failures, [] as [String; 0]);
        eprintln!("{rounds} rounds of every call, none of which failed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes the binary of the release before: script/upgrade-check"]
async fn an_upgrade_and_the_way_back_fail_no_call() {
    let database = TestDatabase::create().await;
    let migrated = migrate(previous(), &database).await;
    let count = env::var(MIGRATIONS).expect("KEYPOOL_PREVIOUS_MIGRATIONS: a number");
    assert_eq!(migrated, format!("{count} migration(s) applied; the schema is up to date"));
    eprintln!("the old build: {migrated}");
    let mut servers = Vec::new();
    for _ in 0..REPLICAS {
        servers.push(replica(previous(), &database).await);
    }
    let applications = Applications::start("upgrade", PAIRS, &servers).await;
    applications.go_on().await;

    // What a rollout does: the migration beside the old replicas, for which the new ones wait.
    let waiting = ConfigFile::new(&database.service_url(), &options());
    let mut waiting = waiting.command("wait").spawn().unwrap();
    eprintln!("the new build: {}", migrate(binary(), &database).await);
    assert_eq!(waiting.wait().await.unwrap().code(), Some(0));
    applications.go_on().await;
    for build in [binary, previous] {
        for server in &mut servers {
            replace(server, build(), &database).await;
            applications.go_on().await;
        }
    }
    let (failures, rounds, resumed) = applications.end().await;
    assert_eq!(failures, [] as [String; 0]);
    eprintln!("{rounds} rounds of every call, none of which failed; {resumed} streams went on");
}

/// Who breaks the release before is caught: this check would not be one otherwise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes the binary of the release before: script/upgrade-check"]
async fn a_schema_that_breaks_it_is_noticed() {
    let database = TestDatabase::create().await;
    migrate(binary(), &database).await;
    let servers = [replica(previous(), &database).await];
    let applications = Applications::start("broken", PAIRS, &servers).await;
    applications.go_on().await;
    assert_eq!(applications.failures(), [] as [String; 0]);
    let rename = "ALTER TABLE package RENAME COLUMN not_after TO best_before";
    database.pool.execute(rename).await.unwrap();
    until(async || !applications.failures().is_empty()).await;
    eprintln!("noticed: {}", applications.end().await.0[0]);
}
