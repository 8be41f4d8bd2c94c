//! The commands around the server: dev, migrate, check, and what serve refuses to start on.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Output,
};

use keypool_service::token::SigningKey;
use keypool_testing::server::{ConfigFile, keypool, signal, until};
use keypool_testing::tokens::{token_of, token_request};
use tokio::process::Child;

use super::*;

/// A `keypool dev` in a folder.
struct Dev {
    child: Child,
    uri: String,
    data: PathBuf,
}

impl Dev {
    async fn start(folder: &Path) -> Self {
        let data = folder.join("data");
        let output = folder.join("output");
        let mut child = keypool(&["dev", "--listen", "127.0.0.1:0", "--data"])
            .arg(&data)
            .stdout(File::create(&output).unwrap())
            .stderr(File::create(folder.join("log")).unwrap())
            .spawn()
            .unwrap();
        until(async || {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "{}", fs::read_to_string(folder.join("log")).unwrap());
            fs::read_to_string(&output).unwrap().contains("GetPoolStatus")
        })
        .await;
        let told = fs::read_to_string(&output).unwrap();
        let address = told.strip_prefix("keypool serves on ").unwrap().split(';').next().unwrap();
        Self { child, uri: format!("http://{address}"), data }
    }

    async fn client(&self, user_id: &str) -> Client {
        let key = SigningKey::load(&self.data.join("dev-key.pem")).unwrap();
        let token = token_of(&key, &token_request(user_id, "phone"));
        Client::connect(self.uri.clone(), token).await.unwrap()
    }

    fn postgres(&self) -> u32 {
        let file = fs::read_to_string(self.data.join("postgres/postmaster.pid")).unwrap();
        file.lines().next().unwrap().parse().unwrap()
    }

    async fn ctrl_c(mut self) {
        let postgres = self.postgres();
        signal(self.child.id().unwrap(), "INT");
        assert_eq!(self.child.wait().await.unwrap().code(), Some(0));
        assert!(!Path::new(&format!("/proc/{postgres}")).exists(), "Postgres is gone");
        assert!(!self.data.join("postgres/postmaster.pid").exists(), "it shut down by itself");
    }
}

#[tokio::test]
async fn dev_is_a_whole_keypool_that_keeps_its_data() {
    // When root runs this, another user runs Postgres and must get there.
    let folder =
        tempfile::Builder::new().permissions(Permissions::from_mode(0o711)).tempdir().unwrap();
    let dev = Dev::start(folder.path()).await;
    let bob = dev.client("bob").await;
    publish(&bob, packages("bob", 3)).await;
    let alice = dev.client("alice").await;
    let reservation = reserve_one(&alice, &one_of("bob")).await;
    let key = fs::read(dev.data.join("dev-key.pem")).unwrap();
    dev.ctrl_c().await;

    let dev = Dev::start(folder.path()).await;
    assert_eq!(fs::read(dev.data.join("dev-key.pem")).unwrap(), key);
    let spent = dev.client("alice").await.spend(GROUP, [reservation.reservation_id]).await;
    assert!(!spent.unwrap()[0].already_spent);
    let counts = counts(&dev.client("bob").await).await;
    assert_eq!((counts.available, counts.spent), (2, 1));
    dev.ctrl_c().await;
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// What a run prints that ends with this code.
#[track_caller]
fn printed(run: &Output, code: i32) -> (&str, &str) {
    assert_eq!(run.status.code(), Some(code), "{run:?}");
    (text(&run.stdout), text(&run.stderr))
}

#[tokio::test]
async fn migrate_can_be_repeated_and_serve_waits_for_it() {
    let database = TestDatabase::create().await;
    let quiet = options().text("log.filter", "error");
    let owner = ConfigFile::new(database.url(), &quiet);
    let config = ConfigFile::new(&database.service_url(), &quiet);
    let count = MIGRATOR.iter().count();
    let lacking = format!("lacks {count} migration(s): run `keypool migrate`");

    let serve = config.run("serve").await;
    let (_, complaint) = printed(&serve, 1);
    assert_eq!(complaint, format!("keypool: the database {lacking}\n"));
    let check = config.run("check").await;
    assert_eq!(printed(&check, 1).0, format!("database: {lacking}\n"));

    for applied in [count, 0] {
        let migrate = owner.run("migrate").await;
        let (said, _) = printed(&migrate, 0);
        let expected = format!("{applied} migration(s) applied; the schema is up to date\n");
        assert_eq!(said, expected);
    }
    let check = config.run("check").await;
    assert!(printed(&check, 0).0.ends_with("no problem found\n"));
    Server::start(&database, &options()).await;
}

#[tokio::test]
async fn wait_ends_when_the_schema_is_there_or_says_what_is_missing() {
    let database = TestDatabase::create().await;
    let owner = ConfigFile::new(database.url(), &options());
    let config = ConfigFile::new(&database.service_url(), &options());
    let wait = async |time: &str| {
        let mut command = config.command("wait");
        command.args(["--timeout", time]).output().await.unwrap()
    };
    let impatient = wait("0s").await;
    let (_, complaint) = printed(&impatient, 1);
    let count = MIGRATOR.iter().count();
    let missing = format!("database: lacks {count} migration(s): run `keypool migrate`");
    let expected = format!("keypool: not ready after 0s: {missing}\n");
    assert!(complaint.ends_with(&expected), "{complaint}");

    let log = tempfile::NamedTempFile::new().unwrap();
    let mut command = config.command("wait");
    let mut waiting = command.stderr(log.reopen().unwrap()).spawn().unwrap();
    // It has looked and goes on waiting: nothing but the migration lets it end with 0.
    until(async || fs::read_to_string(log.path()).unwrap().contains(&missing)).await;
    printed(&owner.run("migrate").await, 0);
    assert_eq!(waiting.wait().await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn replicas_may_migrate_at_once() {
    let database = TestDatabase::create().await;
    let config = ConfigFile::new(database.url(), &options().text("log.filter", "warn"));
    let runs = tokio::join!(config.run("migrate"), config.run("migrate"), config.run("migrate"));
    for run in [&runs.0, &runs.1, &runs.2] {
        printed(run, 0);
    }
    let config = ConfigFile::new(&database.service_url(), &options());
    printed(&config.run("check").await, 0);
}

#[tokio::test]
async fn an_unreachable_database_is_told_without_its_password() {
    let nowhere = "postgres://keypool:hunter2@127.0.0.1:1/keypool?sslmode=disable";
    let impatient = options().text("database.acquire_timeout", "50ms");
    let config = ConfigFile::new(nowhere, &impatient.text("log.filter", "trace"));
    let told = "the database cannot be reached";
    let check = config.run("check").await;
    let (finding, log) = printed(&check, 1);
    assert!(finding.starts_with(&format!("database: {told}")), "{finding}");
    assert!(!finding.contains("hunter2") && !log.contains("hunter2"));
    for command in ["serve", "migrate"] {
        let run = config.run(command).await;
        let (_, complaint) = printed(&run, 1);
        assert!(complaint.contains(told), "{command}: {complaint}");
        assert!(!complaint.contains("hunter2"), "{command}: {complaint}");
    }
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let database = database().await;
    let server = Server::start(&database, &options()).await;
    let address = server.address().to_string();
    let config = ConfigFile::new(&database.service_url(), &options().text("listen", &address));
    let run = config.run("serve").await;
    let (_, complaint) = printed(&run, 1);
    assert!(complaint.contains(&format!("cannot listen on {address}")), "{complaint}");
}
