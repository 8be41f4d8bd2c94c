//! The promises of [`EmbeddedPostgres`], each against real servers.

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use sqlx::{Connection as _, Executor as _, PgConnection};
use tempfile::TempDir;

use super::{EmbeddedPostgres, PostgresOptions};

/// Quick, and as safe from a killed process as any: only a machine that loses power would tell.
fn quick() -> PostgresOptions {
    PostgresOptions::default().set("fsync", "off")
}

async fn start(dir: &Path) -> EmbeddedPostgres {
    EmbeddedPostgres::start(dir, quick()).await.unwrap()
}

/// The text of an error with its causes.
async fn start_error(dir: &Path, options: PostgresOptions) -> String {
    format!("{:#}", EmbeddedPostgres::start(dir, options).await.unwrap_err())
}

async fn value(url: &str, query: &'static str) -> String {
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::query_scalar(query).fetch_one(&mut connection).await.unwrap()
}

async fn execute(url: &str, statement: &'static str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::query(statement).execute(&mut connection).await.unwrap();
}

fn postmaster(dir: &Path) -> u32 {
    let text = fs::read_to_string(dir.join("postgres/postmaster.pid")).unwrap();
    text.lines().next().unwrap().parse().unwrap()
}

fn kill(pid: u32) {
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
}

/// Another process that starts a server on `dir`, says so, and waits to be killed.
fn holder(dir: &Path) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(["--exact", "dev::tests::hold_a_server", "--ignored", "--nocapture"])
        .env("KEYPOOL_HOLD_DIR", dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Waits for the holder's server and returns its URL.
fn wait_until_held(holder: &mut Child) -> String {
    let output = BufReader::new(holder.stdout.take().unwrap());
    let mut lines = output.lines().map(Result::unwrap);
    lines.find_map(|line| Some(line.split_once("holding ")?.1.to_owned())).unwrap()
}

#[tokio::test]
#[ignore = "what `holder` runs in a process of its own"]
async fn hold_a_server() {
    let Some(dir) = env::var_os("KEYPOOL_HOLD_DIR") else { return };
    match EmbeddedPostgres::start(Path::new(&dir), quick()).await {
        Ok(server) => {
            execute(server.url(), "CREATE TABLE IF NOT EXISTS held AS SELECT 'still there' AS v")
                .await;
            #[allow(clippy::print_stdout)] // how the other process knows
            {
                println!("holding {}", server.url());
            }
            std::future::pending::<()>().await;
        }
        Err(error) => panic!("{error:#}"),
    }
}

#[tokio::test]
async fn data_stays_between_runs_and_durability_is_on() {
    let dir = TempDir::new().unwrap();
    let server = EmbeddedPostgres::start(dir.path(), PostgresOptions::default()).await.unwrap();
    for setting in ["SHOW fsync", "SHOW synchronous_commit", "SHOW full_page_writes"] {
        assert_eq!(value(server.url(), setting).await, "on", "{setting}");
    }
    assert_eq!(value(server.url(), "SHOW listen_addresses").await, "");
    assert_eq!(value(server.url(), "SHOW server_encoding").await, "UTF8");
    assert_eq!(
        value(server.url(), "SELECT datcollate FROM pg_database WHERE datname = 'postgres'").await,
        "C"
    );
    execute(server.url(), "CREATE TABLE kept AS SELECT 'kept' AS v").await;
    server.stop().await.unwrap();
    assert!(!dir.path().join("postgres/postmaster.pid").exists());

    let server = start(dir.path()).await;
    assert_eq!(value(server.url(), "SELECT v FROM kept").await, "kept");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn settings_reach_the_server_and_the_last_one_wins() {
    let dir = TempDir::new().unwrap();
    let options = quick().set("max_connections", "50").set("max_connections", "77");
    let server = EmbeddedPostgres::start(dir.path(), options).await.unwrap();
    assert_eq!(value(server.url(), "SHOW max_connections").await, "77");
    assert_eq!(value(server.url(), "SHOW fsync").await, "off");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_server_that_does_not_start_says_why() {
    let dir = TempDir::new().unwrap();
    let error = start_error(dir.path(), quick().set("no_such_setting", "1")).await;
    assert!(error.contains("no_such_setting"), "{error}");
    // And the folder is free again.
    start(dir.path()).await.stop().await.unwrap();
}

#[tokio::test]
async fn a_second_start_on_the_same_folder_is_refused() {
    let dir = TempDir::new().unwrap();
    let server = start(dir.path()).await;
    let error = start_error(dir.path(), quick()).await;
    assert!(error.contains("is in use by another keypool"), "{error}");
    assert_eq!(value(server.url(), "SELECT 'alive'").await, "alive");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_dropped_server_has_ended() {
    let dir = TempDir::new().unwrap();
    let server = start(dir.path()).await;
    let pid = postmaster(dir.path());
    drop(server);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

#[tokio::test]
async fn a_killed_keypool_leaves_a_folder_that_starts_again() {
    let dir = TempDir::new().unwrap();
    let mut holder = holder(dir.path()).spawn().unwrap();
    wait_until_held(&mut holder);
    kill(holder.id());
    holder.wait().unwrap();

    let server = start(dir.path()).await;
    assert_eq!(value(server.url(), "SELECT v FROM held").await, "still there");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_server_ends_with_its_killed_keypool() {
    let setpriv = Command::new("setpriv").arg("--version").output();
    if !setpriv.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("util-linux")) {
        return; // Then the next start ends it: see the test below.
    }
    let dir = TempDir::new().unwrap();
    let mut holder = holder(dir.path()).spawn().unwrap();
    let mut connection = PgConnection::connect(&wait_until_held(&mut holder)).await.unwrap();
    kill(holder.id());
    holder.wait().unwrap();
    // Ends early with the server; a server that lives on answers.
    assert!(connection.execute("SELECT pg_sleep(20)").await.is_err());
}

/// As without `setpriv`: nothing ends the server with the process that started it.
#[tokio::test]
async fn a_server_that_outlived_its_keypool_is_ended() {
    let dir = TempDir::new().unwrap();
    let mut holder = holder(dir.path());
    let tools = TempDir::new().unwrap();
    let path = env::split_paths(&env::var_os("PATH").unwrap()).collect::<Vec<_>>();
    fs::write(tools.path().join("setpriv"), "#!/bin/sh\nexit 1\n").unwrap();
    Command::new("chmod").arg("755").arg(tools.path().join("setpriv")).status().unwrap();
    let path = env::join_paths([tools.path().to_owned()].into_iter().chain(path)).unwrap();
    let mut holder = holder.env("PATH", path).spawn().unwrap();
    wait_until_held(&mut holder);
    let survivor = postmaster(dir.path());
    kill(holder.id());
    holder.wait().unwrap();
    assert!(Path::new(&format!("/proc/{survivor}")).exists());

    let server = start(dir.path()).await;
    assert_ne!(postmaster(dir.path()), survivor);
    assert_eq!(value(server.url(), "SELECT v FROM held").await, "still there");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_killed_postgres_recovers_what_was_committed() {
    let dir = TempDir::new().unwrap();
    let server = start(dir.path()).await;
    let mut idle = PgConnection::connect(server.url()).await.unwrap();
    execute(server.url(), "CREATE TABLE kept AS SELECT 'kept' AS v").await;
    kill(postmaster(dir.path()));
    assert!(server.stop().await.is_err());

    let server = start(dir.path()).await;
    assert_eq!(value(server.url(), "SELECT v FROM kept").await, "kept");
    assert!(idle.ping().await.is_err());
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_stale_pid_file_is_no_obstacle_though_its_number_lives() {
    let dir = TempDir::new().unwrap();
    start(dir.path()).await.stop().await.unwrap();
    let pid_file = dir.path().join("postgres/postmaster.pid");
    // Alive, and of the server's user unless root runs the tests.
    let mut bystander = Command::new("sleep")
        .arg("60")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    fs::write(&pid_file, format!("{}\n{}\n", bystander.id(), dir.path().display())).unwrap();
    let server = start(dir.path()).await;
    assert_ne!(postmaster(dir.path()), bystander.id());
    bystander.kill().unwrap();
    bystander.wait().unwrap();
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_long_folder_name_with_odd_characters_serves() {
    let dir = TempDir::new().unwrap();
    let long = dir.path().join("a b,c\"d%".repeat(12));
    let server = start(&long).await;
    assert_eq!(value(server.url(), "SELECT 'alive'").await, "alive");
    server.stop().await.unwrap();

    let odd = dir.path().join("a b,\"%");
    let server = start(&odd).await;
    assert_eq!(value(server.url(), "SELECT 'alive'").await, "alive");
    assert!(odd.join("postgres/.s.PGSQL.5432").exists());
    server.stop().await.unwrap();
}

/// A Ctrl-C in the terminal goes to keypool's group; Postgres has to outlive keypool's draining.
#[tokio::test]
async fn the_server_has_a_process_group_of_its_own() {
    let dir = TempDir::new().unwrap();
    let server = start(dir.path()).await;
    let pid = postmaster(dir.path());
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = stat.rsplit_once(") ").unwrap().1;
    let group = after_name.split(' ').nth(2).unwrap();
    assert_eq!(group, pid.to_string());
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_database_of_another_version_is_named() {
    let dir = TempDir::new().unwrap();
    start(dir.path()).await.stop().await.unwrap();
    fs::write(dir.path().join("postgres/PG_VERSION"), "9\n").unwrap();
    let error = start_error(dir.path(), quick()).await;
    assert!(error.contains("was made by PostgreSQL 9"), "{error}");
}

#[tokio::test]
async fn a_folder_that_is_no_database_is_left_alone() {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("postgres")).unwrap();
    fs::write(dir.path().join("postgres/mine"), "precious").unwrap();
    let error = start_error(dir.path(), quick()).await;
    assert!(error.contains("is no database of Postgres's"), "{error}");
    assert_eq!(fs::read(dir.path().join("postgres/mine")).unwrap(), b"precious");
}

#[test]
fn a_wrong_pg_bin_is_an_error_and_not_passed_over() {
    let dir = TempDir::new().unwrap();
    let Output { status, stderr, stdout } =
        holder(dir.path()).env("PG_BIN", "/nonexistent").output().unwrap();
    let said = String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned();
    assert!(!status.success());
    assert!(said.contains("PG_BIN is set") && said.contains("/nonexistent"), "{said}");
}
