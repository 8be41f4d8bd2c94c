//! What is written to a metadata store is what is read from it, by another connection too.

use keypool_client::{
    Bytes, InvitationRecord, InvitationState, MemoryMetadataStore, MetadataStore, PackageRecord,
    PackageState, ReservationRecord, SqliteMetadataStore, Uuid, rusqlite::Connection,
};
use openmls_sqlite_storage::{Codec, SqliteStorageProvider};
use tempfile::TempDir;

fn package(name: &'static str, state: PackageState) -> PackageRecord {
    PackageRecord {
        key_package_ref: Bytes::from_static(name.as_bytes()),
        cipher_suite: 0x004d,
        not_after: 1_800_000_000,
        last_resort: name == "last resort",
        identity: Bytes::from_static(b"identity"),
        state,
    }
}

fn invitation(created_at: u64, state: InvitationState, reservations: usize) -> InvitationRecord {
    let reservation = |n| ReservationRecord {
        reservation_id: format!("reservation {n}"),
        key_package_ref: vec![n; 32].into(),
        encryption_key: vec![n, 7].into(),
    };
    InvitationRecord {
        invitation_id: Uuid::new_v4(),
        group_id: vec![0, 255].into(),
        cipher_suite: 1,
        request: vec![0, 1, 255].into(),
        // Not in the order of their ids: theirs is that of the request.
        reservations: (0..reservations).rev().map(|n| reservation(n.try_into().unwrap())).collect(),
        state,
        created_at,
        expires_at: created_at + 60,
    }
}

fn packages(store: &dyn MetadataStore) -> Vec<PackageRecord> {
    let mut records = store.packages().unwrap();
    records.sort_by_key(|record| record.key_package_ref.clone());
    records
}

/// Every promise of the trait; `again` sees the same store, by another way where there is one.
fn keeps_its_promises(store: &dyn MetadataStore, again: &dyn MetadataStore) {
    assert_eq!(store.packages().unwrap(), []);
    let retired = package("b", PackageState::Retired { until: 1_900_000_000 });
    let records = [
        package("a", PackageState::Prepared),
        retired.clone(),
        package("last resort", PackageState::Published),
    ];
    store.put_packages(&records).unwrap();
    assert_eq!(packages(again), records);
    let published = PackageRecord { state: PackageState::Published, ..records[0].clone() };
    again.put_packages(std::slice::from_ref(&published)).unwrap();
    assert_eq!(packages(store), [published.clone(), retired, records[2].clone()]);
    let gone = [Bytes::from_static(b"b"), Bytes::from_static(b"none"), "last resort".into()];
    store.remove_packages(&gone).unwrap();
    assert_eq!(packages(again), [published]);

    assert_eq!(store.invitations().unwrap(), []);
    let states = [
        InvitationState::Reserving,
        InvitationState::Reserved,
        InvitationState::CommitPending { epoch: u64::MAX },
        InvitationState::Spending,
        InvitationState::Releasing,
    ];
    let mut entries: Vec<_> =
        states.into_iter().zip(0..).map(|(state, n)| invitation(n, state, 12)).collect();
    for entry in entries.iter().rev() {
        store.put_invitation(entry).unwrap();
    }
    assert_eq!(again.invitations().unwrap(), entries, "the oldest first");
    let settled = InvitationRecord {
        state: InvitationState::Releasing,
        reservations: entries[1].reservations[..2].to_vec(),
        ..entries[1].clone()
    };
    store.put_invitation(&settled).unwrap();
    assert_eq!(again.invitation(settled.invitation_id).unwrap(), Some(settled.clone()));
    entries[1] = settled;
    for entry in entries {
        store.remove_invitation(entry.invitation_id).unwrap();
        assert_eq!(again.invitation(entry.invitation_id).unwrap(), None);
        store.remove_invitation(entry.invitation_id).unwrap();
    }
    assert_eq!(again.invitations().unwrap(), []);
}

#[test]
fn memory_keeps_its_promises() {
    let store = MemoryMetadataStore::new();
    keeps_its_promises(&store, &store);
}

#[test]
fn sqlite_keeps_its_promises_across_connections() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("metadata");
    let open = || SqliteMetadataStore::open(&path).unwrap();
    keeps_its_promises(&open(), &open());
}

#[derive(Default)]
struct Json;

impl Codec for Json {
    type Error = serde_json::Error;

    fn to_vec<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, Self::Error> {
        serde_json::to_vec(value)
    }

    fn from_slice<T: serde::de::DeserializeOwned>(slice: &[u8]) -> Result<T, Self::Error> {
        serde_json::from_slice(slice)
    }
}

#[test]
fn openmls_keeps_its_state_in_the_same_file() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("device");
    let migrate = || {
        let mut connection = Connection::open(&path).unwrap();
        SqliteStorageProvider::<Json, _>::new(&mut connection).run_migrations().unwrap();
        connection
    };
    let tables = |connection: &Connection| -> Vec<String> {
        let mut statement =
            connection.prepare("SELECT name FROM sqlite_schema WHERE type = 'table'").unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    };
    let openmls = tables(&migrate());
    let store = SqliteMetadataStore::open(&path).unwrap();
    let both = migrate(); // with keypool's tables there
    keeps_its_promises(&store, &store);
    let added: Vec<_> = tables(&both).into_iter().filter(|name| !openmls.contains(name)).collect();
    assert_eq!(added.len(), 4, "{added:?}");
    assert!(added.iter().all(|name| name.starts_with("keypool_")), "{added:?}");
}

#[test]
fn a_store_of_a_newer_sdk_and_an_impossible_row_are_errors() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("metadata");
    let store = SqliteMetadataStore::open(&path).unwrap();
    let by_hand = Connection::open(&path).unwrap();
    by_hand.pragma_update(None, "ignore_check_constraints", true).unwrap();
    store.put_packages(&[package("a", PackageState::Prepared)]).unwrap();
    by_hand.execute("UPDATE keypool_package SET state = 'retired'", []).unwrap();
    let refused = store.packages().unwrap_err().to_string();
    assert!(refused.contains("impossible state of a KeyPackage"), "{refused}");

    by_hand.execute("UPDATE keypool_schema SET version = 2", []).unwrap();
    let refused = SqliteMetadataStore::open(&path).unwrap_err().to_string();
    assert!(refused.contains("version 2"), "{refused}");
}

#[test]
fn the_file_refuses_impossible_rows() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("metadata");
    let store = SqliteMetadataStore::open(&path).unwrap();
    store.put_packages(&[package("a", PackageState::Prepared)]).unwrap();
    store.put_invitation(&invitation(0, InvitationState::Reserved, 1)).unwrap();
    let by_hand = Connection::open(&path).unwrap();
    for statement in [
        "UPDATE keypool_package SET state = 'retired'",
        "UPDATE keypool_package SET state = 'lost'",
        "UPDATE keypool_package SET cipher_suite = 0",
        "UPDATE keypool_invitation SET state = 'commit_pending'",
        "UPDATE keypool_invitation SET expires_at = -1",
    ] {
        assert!(by_hand.execute(statement, []).is_err(), "{statement}");
    }
}
