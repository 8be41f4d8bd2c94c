//! Whoever is invited by a package of the pool joins, on openmls and with the real binary.

use keypool_client::rusqlite::Connection;
use keypool_service::{
    domain::clock::{Clock as _, ManualClock, SystemClock},
    store::MIGRATOR,
};
use keypool_testing::{
    database::TestDatabase,
    member::Member,
    server::{Server, ServerOptions},
};
use openmls::prelude::{
    DeserializeBytes as _, MlsGroup, MlsGroupJoinConfig, MlsMessageBodyIn, MlsMessageIn,
    StagedWelcome,
};

use super::{device::file, *};

async fn invite(server: &Server, adder: &str) -> (v1::Reservation, Vec<u8>) {
    let mut alice = Member::new(adder, "phone", SUITE);
    alice.create_group();
    let client = server.client(adder, "phone").await;
    let answer = client.reserve(&Reserve::new(&b"group"[..], SUITE).target("bob")).await.unwrap();
    let reservation = answer.results[0].reservation().unwrap().clone();
    let invitation = alice.add(&[reservation.key_package.to_vec()]);
    alice.merge_commit();
    client.spend(&b"group"[..], [&reservation.reservation_id]).await.unwrap();
    (reservation, invitation.welcome)
}

/// In one transaction, as the documentation asks.
fn join(device: &Device, welcome: &[u8]) -> MlsGroup {
    let message = MlsMessageIn::tls_deserialize_exact_bytes(welcome).unwrap();
    let MlsMessageBodyIn::Welcome(welcome) = message.extract() else { panic!("not a Welcome") };
    let config = MlsGroupJoinConfig::builder().use_ratchet_tree_extension(true).build();
    device.transaction(|provider| {
        let staged = StagedWelcome::new_from_welcome(provider, &config, welcome, None);
        staged.unwrap().into_group(provider).unwrap()
    })
}

#[tokio::test]
async fn by_one_time_and_last_resort_packages_alike() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let options = ServerOptions::default().set("pool.target", 3).set("pool.low_watermark", 1);
    let server = Server::start(&database, &options).await;
    let clock = ManualClock::at(SystemClock.now());
    let client = server.client("bob", "phone").await;
    let device = Device::new(client, client_key("bob", "phone"), clock);
    device.pool.refresh().await.unwrap();

    let mut last_resorts = 0;
    for adder in ["alice", "carol", "dave", "erin"] {
        let (reservation, welcome) = invite(&server, adder).await;
        let held = device.held();
        assert!(held.contains(&reservation.key_package_ref));
        assert_eq!(join(&device, &welcome).members().count(), 2);
        // What `Device::read_welcome` does in the other tests.
        let mut after = held.clone();
        if reservation.last_resort {
            last_resorts += 1;
        } else {
            after.remove(&reservation.key_package_ref);
        }
        assert_eq!(device.held(), after);
    }
    assert_eq!(last_resorts, 1);
    let done = device.pool.refresh().await.unwrap();
    assert_eq!((done.withdrawn, done.retired, done.uploaded), (3, 1, 4));

    // The private keys of packages are nowhere else.
    let connection = Connection::open(file(device.folder())).unwrap();
    let pairs: i64 = connection
        .query_row("SELECT count(*) FROM openmls_encryption_keys", [], |row| row.get(0))
        .unwrap();
    assert_eq!(pairs, 0);
}
