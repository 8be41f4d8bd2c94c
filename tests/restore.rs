//! A database that was restored from a backup issues nothing again, once `keypool after-restore`
//! has run; and what it would do without.

use std::sync::{Arc, Mutex};

use keypool_client::{
    Client, Error, Identity, MemoryMetadataStore, OwnPool, Reserve,
    v1::{self, ErrorReason, RejectReason},
};
use keypool_service::{
    domain::clock::{Clock as _, SystemClock},
    store::MIGRATOR,
};
use keypool_testing::{
    database::TestDatabase,
    forge::Forge,
    server::{ConfigFile, Server, ServerOptions},
};
use openmls::prelude::{BasicCredential, Ciphersuite, CredentialWithKey};
use openmls_basic_credential::SignatureKeyPair;
use openmls_rust_crypto::OpenMlsRustCrypto;
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};

const SUITE: u16 = 1;
const GROUP: &[u8] = b"the group of the test";
const MEANT: &str = "--withdraw-every-key-package";

fn options() -> ServerOptions {
    ServerOptions::default().set("pool.fair_share", false)
}

/// A package whose lifetime began so many seconds ago.
fn package_of(age: i64) -> Vec<u8> {
    package_since(SystemClock.now().unix_timestamp() - age)
}

/// A package whose lifetime begins at a second since 1970.
fn package_since(begin: i64) -> Vec<u8> {
    let second = |at: i64| u64::try_from(at).unwrap();
    Forge::new(SUITE, "bob").lifetime(second(begin), second(begin + 86_400)).build()
}

async fn reserve(client: &Client) -> Result<v1::Reservation, Error> {
    let request = Reserve::new(GROUP, SUITE).target_clients("bob", ["phone"]);
    Ok(client.reserve(&request).await?.results[0].reservation().unwrap().clone())
}

#[track_caller]
fn reason<T: std::fmt::Debug>(answer: Result<T, Error>) -> Option<ErrorReason> {
    answer.unwrap_err().rejection().unwrap().reason
}

/// Runs `keypool after-restore` on a database, and tells how it ended and what it said.
async fn after_restore(database: &TestDatabase, arguments: &[&str]) -> (bool, String) {
    let config = ConfigFile::new(database.url(), &options());
    let run = config.command("after-restore").args(arguments).output().await.unwrap();
    let said = [run.stdout, run.stderr].concat();
    (run.status.success(), String::from_utf8(said).unwrap())
}

/// What happened to a database before it was lost.
struct Lost {
    backup: TestDatabase,
    /// Spent since the backup; in it they are available.
    spent: Vec<Vec<u8>>,
    /// Uploaded and spent since the backup, which does not know it.
    uploaded: Vec<u8>,
    /// A reservation that was open when the backup was made, and spent since.
    reservation: v1::Reservation,
}

/// A pool of four; one of them is reserved when the backup is made, two are spent thereafter.
async fn lost() -> Lost {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let server = Server::start(&database, &options()).await;
    let bob = server.client("bob", "phone").await;
    bob.upload((0..4).map(|_| package_of(60)).collect::<Vec<_>>()).await.unwrap();
    let alice = server.client("alice", "laptop").await;
    let reservation = reserve(&alice).await.unwrap();
    server.kill().await;
    let backup = database.backup().await;

    let server = Server::on(&database.service_url(), &options()).await;
    let alice = server.client("alice", "laptop").await;
    alice.spend(GROUP, [&reservation.reservation_id]).await.unwrap();
    let mut spent = vec![reservation.key_package.to_vec()];
    for _ in 0..2 {
        let next = reserve(&alice).await.unwrap();
        alice.spend(GROUP, [next.reservation_id]).await.unwrap();
        spent.push(next.key_package.to_vec());
    }
    reserve(&alice).await.unwrap();
    let bob = server.client("bob", "phone").await;
    let uploaded = package_of(60);
    bob.upload([uploaded.clone()]).await.unwrap();
    let next = reserve(&alice).await.unwrap();
    assert_eq!(next.key_package, uploaded);
    alice.spend(GROUP, [next.reservation_id]).await.unwrap();
    server.kill().await;
    Lost { backup, spent, uploaded, reservation }
}

/// All that a pool gives, until it is exhausted.
async fn all_issued(server: &Server) -> Vec<Vec<u8>> {
    let carol = server.client("carol", "laptop").await;
    let mut issued = Vec::new();
    loop {
        match reserve(&carol).await {
            Ok(reservation) => issued.push(reservation.key_package.to_vec()),
            Err(error) => {
                assert_eq!(reason::<()>(Err(error)), Some(ErrorReason::PoolExhausted));
                return issued;
            }
        }
    }
}

#[tokio::test]
async fn without_it_what_was_spent_is_issued_again() {
    let Lost { backup, spent, uploaded, .. } = lost().await;
    let server = Server::on(&backup.service_url(), &options()).await;
    let bob = server.client("bob", "phone").await;
    let again = bob.upload([uploaded.clone()]).await.unwrap();
    assert!(again.results[0].accepted().is_some(), "it is not known to be spent");
    let issued = all_issued(&server).await;
    assert!(spent[1..].iter().all(|package| issued.contains(package)), "this is the danger");
    assert!(issued.contains(&uploaded), "and so is this");
}

#[tokio::test]
async fn nothing_of_before_is_issued_again_and_pools_are_refilled() {
    let Lost { backup, spent, uploaded, reservation } = lost().await;
    let (done, said) = after_restore(&backup, &[MEANT]).await;
    assert!(done, "{said}");
    assert!(said.starts_with("4 one-time KeyPackages are withdrawn"), "{said}");

    let server = Server::on(&backup.service_url(), &options()).await;
    assert_eq!(all_issued(&server).await, Vec::<Vec<u8>>::new());
    let alice = server.client("alice", "laptop").await;
    let old = alice.spend(GROUP, [reservation.reservation_id]).await;
    assert_eq!(reason(old), Some(ErrorReason::ReservationUnknown));

    let bob = server.client("bob", "phone").await;
    let retried = spent.iter().cloned().chain([uploaded]).collect::<Vec<_>>();
    let answer = bob.upload(retried).await.unwrap();
    for result in &answer.results {
        let rejected = result.rejected().expect("what may have been issued");
        assert_eq!(rejected.reason(), RejectReason::Lifetime);
        assert!(rejected.message.contains("restored from a backup"), "{rejected:?}");
    }
    let status = answer.status.unwrap();
    let suite = &status.cipher_suites[0];
    assert_eq!((suite.available, suite.reserved), (0, 0), "the owner hears that it is time");
    assert!(suite.recommended_upload > 0);

    // Made after the restore; its clock may be ahead of the server's by less than the skew.
    let fresh = package_of(-1);
    assert!(bob.upload([fresh.clone()]).await.unwrap().results[0].accepted().is_some());
    assert_eq!(all_issued(&server).await, [fresh]);
    let withdrawn: i64 = sqlx::query_scalar("SELECT count(*) FROM event WHERE kind = 'revoked'")
        .fetch_one(&backup.pool)
        .await
        .unwrap();
    assert_eq!(withdrawn, 4, "each in the log");
}

#[tokio::test]
async fn a_margin_admits_what_clients_make_with_lifetimes_that_begin_earlier() {
    let Lost { backup, spent, .. } = lost().await;
    let (done, said) = after_restore(&backup, &[MEANT, "--lifetime-margin", "30s"]).await;
    assert!(done, "{said}");
    let server = Server::on(&backup.service_url(), &options()).await;
    let bob = server.client("bob", "phone").await;
    let answer = bob.upload([package_of(20), package_of(60), spent[0].clone()]).await.unwrap();
    assert!(answer.results[0].accepted().is_some(), "{answer:?}");
    for result in &answer.results[1..] {
        assert_eq!(result.rejected().unwrap().reason(), RejectReason::Lifetime);
    }
}

/// Lifetimes begin at whole seconds, databases are lost in the midst of one.
#[tokio::test]
async fn a_package_of_the_second_of_the_loss_may_be_from_before_it() {
    let Lost { backup, .. } = lost().await;
    let second = SystemClock.now().unix_timestamp() - 10;
    let loss = OffsetDateTime::from_unix_timestamp(second).unwrap() + Duration::milliseconds(500);
    let loss = loss.format(&Rfc3339).unwrap();
    let (done, said) = after_restore(&backup, &[MEANT, "--until", &loss]).await;
    assert!(done, "{said}");
    let server = Server::on(&backup.service_url(), &options()).await;
    let bob = server.client("bob", "phone").await;
    let packages = [package_since(second), package_since(second + 1)];
    let answer = bob.upload(packages).await.unwrap();
    assert_eq!(answer.results[0].rejected().unwrap().reason(), RejectReason::Lifetime);
    assert!(answer.results[1].accepted().is_some(), "{answer:?}");
}

/// Known refs are refused for what they are, even when their lifetime would let them in.
#[tokio::test]
async fn what_the_backup_knows_stays_used() {
    let Lost { backup, spent, .. } = lost().await;
    let long_ago = [MEANT, "--until", "2020-01-01T00:00:00Z"];
    let (done, said) = after_restore(&backup, &long_ago).await;
    assert!(done, "{said}");
    let server = Server::on(&backup.service_url(), &options()).await;
    let answer = server.client("bob", "phone").await.upload(spent).await.unwrap();
    for result in &answer.results {
        assert_eq!(result.rejected().unwrap().reason(), RejectReason::AlreadyUsed);
    }
}

#[tokio::test]
async fn last_resort_packages_go_or_stay_as_told() {
    for keep in [false, true] {
        let database = TestDatabase::migrated(&MIGRATOR).await;
        let server = Server::start(&database, &options()).await;
        let now = SystemClock.now().unix_timestamp().try_into().unwrap();
        let forge = Forge::new(SUITE, "bob").valid_around(now).extension(0x000a, b"");
        let package = forge.with(|it| it.capabilities.extensions.push(0x000a)).build();
        server.client("bob", "phone").await.upload([package.clone()]).await.unwrap();
        server.kill().await;
        let arguments: &[&str] = if keep { &[MEANT, "--keep-last-resort"] } else { &[MEANT] };
        let (done, said) = after_restore(&database, arguments).await;
        assert!(done, "{said}");
        let server = Server::on(&database.service_url(), &options()).await;
        let got = reserve(&server.client("alice", "laptop").await).await;
        match keep {
            true => assert_eq!(got.unwrap().key_package, package),
            false => assert_eq!(reason(got), Some(ErrorReason::PoolExhausted)),
        }
    }
}

#[tokio::test]
async fn it_wants_to_be_meant_and_no_server_connected() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let (done, said) = after_restore(&database, &[]).await;
    assert!(!done && said.contains(MEANT), "{said}");
    let server = Server::start(&database, &options()).await;
    let bob = server.client("bob", "phone").await;
    bob.upload([package_of(60)]).await.unwrap();
    let (done, said) = after_restore(&database, &[MEANT]).await;
    assert!(!done && said.contains("stop them all first"), "{said}");
    assert_eq!(bob.pool_status().await.unwrap().cipher_suites[0].available, 1, "nothing is done");
}

#[tokio::test]
async fn until_it_was_run_to_its_end_no_server_starts_and_it_may_be_run_again() {
    let Lost { backup, .. } = lost().await;
    // As if the command had been killed after its first transaction and some of the others.
    sqlx::query("INSERT INTO restoration VALUES (now(), now() + interval '1 hour')")
        .execute(&backup.pool)
        .await
        .unwrap();
    let config = ConfigFile::new(&backup.service_url(), &options());
    let refused = config.run("serve").await;
    assert!(!refused.status.success());
    let why = String::from_utf8(refused.stderr).unwrap();
    assert!(why.contains("run `keypool after-restore`"), "{why}");

    for packages in ["4 one-time", "0 one-time"] {
        let (done, said) = after_restore(&backup, &[MEANT]).await;
        assert!(done && said.starts_with(packages), "{said}");
    }
    let server = Server::on(&backup.service_url(), &options()).await;
    let bob = server.client("bob", "phone").await;
    let answer = bob.upload([package_of(0)]).await.unwrap();
    let why = answer.results[0].rejected().expect("from before the later of the two instants");
    assert_eq!(why.reason(), RejectReason::Lifetime);
}

/// A pool that the SDK keeps, of a device whose user is bob.
fn own_pool(client: Client) -> OwnPool<OpenMlsRustCrypto, SignatureKeyPair> {
    let suite = Ciphersuite::try_from(SUITE).unwrap();
    let signer = SignatureKeyPair::new(suite.signature_algorithm()).unwrap();
    let credential = CredentialWithKey {
        credential: BasicCredential::new(b"bob".to_vec()).into(),
        signature_key: signer.public().into(),
    };
    let identity = Identity::new(signer, credential, [suite]);
    let provider = Arc::new(Mutex::new(OpenMlsRustCrypto::default()));
    OwnPool::new(client, provider, MemoryMetadataStore::new(), identity).unwrap()
}

/// The lifetimes of its packages begin an hour before they are made, which the margin is for.
#[tokio::test]
async fn the_sdk_refills_its_pool_with_a_margin_of_an_hour_and_not_without() {
    let margin = ["--lifetime-margin", "1h"];
    for (arguments, refills) in [(&margin[..], true), (&[], false)] {
        let Lost { backup, .. } = lost().await;
        // Lifetimes begin at whole seconds: one that follows in the second of the loss is refused.
        let loss = (SystemClock.now() - Duration::seconds(2)).format(&Rfc3339).unwrap();
        let arguments = [&[MEANT, "--until", &loss], arguments].concat();
        let (done, said) = after_restore(&backup, &arguments).await;
        assert!(done, "{said}");
        let server = Server::on(&backup.service_url(), &options()).await;
        let pool = own_pool(server.client("bob", "phone").await);
        let refreshed = pool.refresh().await.unwrap();
        let available = refreshed.status.cipher_suites[0].available;
        if refills {
            assert_eq!(refreshed.refused, []);
            assert!(available > 0, "{refreshed:?}");
            reserve(&server.client("alice", "laptop").await).await.unwrap();
        } else {
            assert_eq!(available, 0);
            let why = &refreshed.refused.first().expect("what it uploaded").reason;
            assert_eq!(*why, RejectReason::Lifetime);
        }
    }
}
