//! What operators ask `keypool` for: how pools stand, and what is wrong.

use std::process::Stdio;

use keypool_client::{Client, Reserve};
use keypool_service::{
    domain::clock::{Clock as _, SystemClock},
    store::MIGRATOR,
};
use keypool_testing::{
    database::TestDatabase,
    forge::Forge,
    login::Login,
    server::{ConfigFile, Server, ServerOptions, signal},
    tls::{Ca, TlsFolder},
};
use serde_json::Value;
use sqlx::{AssertSqlSafe, ConnectOptions as _, postgres::PgConnectOptions};
use tokio::io::AsyncReadExt as _;

const SUITE: u16 = 1;
const GROUP: &[u8] = b"the group of the test";
/// What clears a terminal.
const CLEAR: &[u8] = b"\x1b[2J\x1b[H";

fn options() -> ServerOptions {
    ServerOptions::default().set("pool.low_watermark", 2)
}

async fn publish(server: &Server, user: &str, count: usize) -> Client {
    let now = SystemClock.now().unix_timestamp().try_into().unwrap();
    let packages = (0..count).map(|_| Forge::new(SUITE, user).valid_around(now).build());
    let client = server.client(user, "phone").await;
    client.upload(packages.collect::<Vec<_>>()).await.unwrap();
    client
}

async fn draw(server: &Server, caller: &str, user: &str) {
    let request = Reserve::new(GROUP, SUITE).target(user);
    server.client(caller, "laptop").await.reserve(&request).await.unwrap();
}

/// Runs `keypool COMMAND ARGUMENTS` and answers how it ended and what it printed.
async fn run(url: &str, command: &[&str]) -> (Option<i32>, String) {
    let config = ConfigFile::new(url, &options());
    let [first, rest @ ..] = command else { panic!("a command") };
    // `--config` belongs to the innermost command.
    let mut run = match *first {
        "pool" => config.command_of(&["pool", rest[0]]),
        other => config.command(other),
    };
    let rest = if *first == "pool" { &rest[1..] } else { rest };
    let ended = run.args(rest).output().await.unwrap();
    let said = [ended.stdout, ended.stderr].concat();
    (ended.status.code(), String::from_utf8(said).unwrap())
}

#[tokio::test]
async fn a_pool_is_shown_with_its_events_and_without_its_groups() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let server = Server::start(&database, &options()).await;
    publish(&server, "bob", 3).await;
    draw(&server, "alice", "bob").await;

    let (code, said) = run(&database.service_url(), &["pool", "show", "bob"]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.starts_with("bob / phone: low, last upload 2"), "{said}");
    assert_eq!(said.matches("uploaded").count(), 3, "{said}");
    assert!(said.contains("reserved") && said.contains("by alice / laptop for a group"), "{said}");
    let group: String = GROUP.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(!said.contains(&group), "{said}");

    let (_, said) =
        run(&database.service_url(), &["pool", "show", "bob", "phone", "--groups"]).await;
    assert!(said.contains(&group), "{said}");
    let json = ["pool", "show", "bob", "phone", "--json", "--events", "2"];
    let (_, said) = run(&database.service_url(), &json).await;
    let pools: Value = serde_json::from_str(&said).unwrap();
    let suite = &pools[0]["cipher_suites"][0];
    assert_eq!((&suite["available"], &suite["reserved"]), (&2.into(), &1.into()), "{said}");
    assert_eq!(pools[0]["events"].as_array().unwrap().len(), 2);
    assert_eq!(pools[0]["events"][0]["group_id"], Value::Null);

    for nobody in [&["pool", "show", "carol"][..], &["pool", "show", "bob", "tablet"]] {
        let (code, said) = run(&database.service_url(), nobody).await;
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("no pool of that user and client"), "{said}");
    }
}

#[tokio::test]
async fn the_lowest_pools_come_first() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let server = Server::start(&database, &options()).await;
    for (user, count) in [("much", 9), ("little", 3), ("nothing", 1), ("unasked", 1)] {
        publish(&server, user, count).await;
    }
    for user in ["much", "little", "nothing"] {
        draw(&server, "alice", user).await;
    }
    let (code, said) = run(&database.service_url(), &["pool", "top", "--once"]).await;
    assert_eq!(code, Some(0), "{said}");
    let lines: Vec<&str> = said.lines().skip(1).collect();
    let pools: Vec<&str> = lines.iter().filter_map(|line| line.split("Z  ").nth(1)).collect();
    assert_eq!(pools, ["nothing / phone", "little / phone", "much / phone"], "{said}");
    let marked: Vec<bool> = lines.iter().map(|line| line.starts_with('!')).collect();
    assert_eq!(marked, [true, true, false], "{said}");
    let (_, said) = run(&database.service_url(), &["pool", "top", "--once", "--lines", "1"]).await;
    assert_eq!(said.lines().count(), 2, "{said}");
}

/// The table again and again, until the terminal is gone or somebody presses Ctrl-C.
#[tokio::test]
async fn the_lowest_pools_are_looked_at_until_nobody_looks_any_more() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let server = Server::start(&database, &options()).await;
    publish(&server, "little", 3).await;
    draw(&server, "alice", "little").await;
    let config = ConfigFile::new(&database.service_url(), &options());
    for interrupted in [true, false] {
        let mut top = config.command_of(&["pool", "top"]);
        let top = top.args(["--interval", "10ms"]).stdout(Stdio::piped());
        let mut top = top.stderr(Stdio::null()).spawn().unwrap();
        let mut shown = top.stdout.take().unwrap();
        let mut said = Vec::new();
        // A table, and all of the next.
        while said.windows(CLEAR.len()).filter(|it| *it == CLEAR).count() < 3 {
            assert_ne!(shown.read_buf(&mut said).await.unwrap(), 0, "it ended by itself");
        }
        let said = String::from_utf8(said).unwrap();
        let tables: Vec<&str> = said.split("\x1b[2J\x1b[H").collect();
        assert!(tables[0].is_empty() && tables[1].contains("little / phone"), "{said}");
        assert_eq!(tables[1], tables[2], "{said}");
        if interrupted {
            signal(top.id().unwrap(), "INT");
        } else {
            drop(shown);
        }
        assert!(!top.wait().await.unwrap().success());
    }
}

/// Who migrates owns the tables, and is no superuser.
#[tokio::test]
async fn a_restored_database_is_made_safe_by_its_owner() {
    let database = TestDatabase::create().await;
    let owner = Login::new(&database, "").await;
    let schema = format!("ALTER SCHEMA public OWNER TO {}", owner.name);
    sqlx::raw_sql(AssertSqlSafe(schema)).execute(&database.pool).await.unwrap();
    let (code, said) = run(&owner.url(), &["migrate"]).await;
    assert_eq!(code, Some(0), "{said}");

    let server = Server::start(&database, &options()).await;
    publish(&server, "bob", 3).await;
    let after_restore = ["after-restore", "--withdraw-every-key-package"];
    let (code, said) = run(&owner.url(), &after_restore).await;
    assert!(code == Some(1) && said.contains("stop them all first"), "it sees the server: {said}");
    server.kill().await;
    let (code, said) = run(&owner.url(), &after_restore).await;
    assert!(code == Some(0) && said.contains("3 one-time KeyPackages"), "{said}");
    owner.end(&database).await;
}

#[tokio::test]
async fn the_check_says_what_it_saw_and_what_is_odd() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let (code, said) = run(&database.service_url(), &["check"]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("database: is PostgreSQL 1"), "{said}");
    assert!(!said.contains("warning"), "{said}");
    assert!(said.contains("auth.keys: hold 1 key(s)"), "{said}");

    sqlx::query("INSERT INTO restoration VALUES (now(), now())")
        .execute(&database.pool)
        .await
        .unwrap();
    let (code, said) = run(&database.service_url(), &["check", "--json"]).await;
    assert_eq!(code, Some(1), "{said}");
    let report: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(report["ok"], false);
    let problem = report["problems"][0]["message"].as_str().unwrap();
    assert!(problem.contains("keypool after-restore"), "{said}");
}

#[tokio::test]
async fn the_check_names_what_the_role_may_not_do() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let role = format!("keypool_login_{}", uuid::Uuid::new_v4().simple());
    let statements = format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'secret' IN ROLE keypool_service;
         REVOKE DELETE ON draw FROM keypool_service;
         REVOKE EXECUTE ON FUNCTION make_event_partitions(date, integer) FROM keypool_service"
    );
    sqlx::raw_sql(AssertSqlSafe(statements)).execute(&database.pool).await.unwrap();
    let options: PgConnectOptions = database.url().parse().unwrap();
    let url = options.username(&role).password("secret").to_url_lossy().to_string();
    let (code, said) = run(&url, &["check"]).await;
    let gone = format!("DROP OWNED BY {role} CASCADE; DROP ROLE {role}");
    sqlx::raw_sql(AssertSqlSafe(gone)).execute(&database.pool).await.unwrap();
    assert_eq!(code, Some(1), "{said}");
    let lacking = "grant it keypool_service; draw (DELETE), make_event_partitions(date, integer)";
    assert!(said.contains(lacking), "{said}");
    assert!(!said.contains("warning"), "it may not change events: {said}");
}

#[tokio::test]
async fn the_check_tells_when_a_certificate_ends() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let files = TlsFolder::of(&Ca::new());
    let options = files.configure(options()).set("server.plaintext", false);
    let config = ConfigFile::new(&database.service_url(), &options);
    let said = config.run("check").await.stdout;
    let said = String::from_utf8(said).unwrap();
    assert!(said.contains("tls.certificate: is valid until 4096-01-01"), "{said}");
}
