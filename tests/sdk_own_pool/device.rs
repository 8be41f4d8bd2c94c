//! A device: OpenMLS's storage and the SDK's metadata in one SQLite file.

use std::{
    borrow::Borrow,
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, UNIX_EPOCH},
};

use keypool_client::{
    Bytes, Client, Identity, InvitationRecord, MetadataError, MetadataStore, OwnPool,
    PackageRecord, PoolOptions, SqliteMetadataStore, Uuid, rusqlite::Connection,
};
use keypool_service::domain::{
    clock::{Clock as _, ManualClock},
    ids::ClientKey,
};
use openmls::prelude::{
    BasicCredential, Ciphersuite, CredentialWithKey, KeyPackageRef, OpenMlsProvider,
};
use openmls_basic_credential::SignatureKeyPair;
use openmls_rust_crypto::RustCrypto;
use openmls_sqlite_storage::{Codec, SqliteStorageProvider};
use tempfile::TempDir;

const SUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;

/// At which of its steps this process dies, from 1; 0: never. A step is a read or write of
/// OpenMLS's storage, or just before or just after a write of the metadata.
pub(super) static DIES_AT: AtomicUsize = AtomicUsize::new(0);

fn step() {
    if DIES_AT.load(Ordering::SeqCst) > 0 && DIES_AT.fetch_sub(1, Ordering::SeqCst) == 1 {
        std::process::abort();
    }
}

#[derive(Debug, Default)]
pub(super) struct MortalJson;

impl Codec for MortalJson {
    type Error = serde_json::Error;

    fn to_vec<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, Self::Error> {
        step();
        serde_json::to_vec(value)
    }

    fn from_slice<T: serde::de::DeserializeOwned>(slice: &[u8]) -> Result<T, Self::Error> {
        serde_json::from_slice(slice)
    }
}

type Storage<C> = SqliteStorageProvider<MortalJson, C>;

/// OpenMLS's provider on a file, or on a transaction.
pub(super) struct Provider<C: Borrow<Connection> = Connection> {
    crypto: RustCrypto,
    storage: Storage<C>,
}

impl<C: Borrow<Connection>> Provider<C> {
    fn on(connection: C) -> Self {
        Self { crypto: RustCrypto::default(), storage: Storage::new(connection) }
    }
}

impl<C: Borrow<Connection>> OpenMlsProvider for Provider<C> {
    type CryptoProvider = RustCrypto;
    type RandProvider = RustCrypto;
    type StorageProvider = Storage<C>;

    fn storage(&self) -> &Storage<C> {
        &self.storage
    }

    fn crypto(&self) -> &RustCrypto {
        &self.crypto
    }

    fn rand(&self) -> &RustCrypto {
        &self.crypto
    }
}

/// The metadata, which can be told to fail at one of its next writes, before or after it.
#[derive(Clone)]
pub(super) struct Metadata {
    store: Arc<SqliteMetadataStore>,
    fails: Arc<Mutex<Option<(usize, bool)>>>,
}

impl Metadata {
    fn write(
        &self,
        write: impl FnOnce() -> Result<(), MetadataError>,
    ) -> Result<(), MetadataError> {
        step();
        let due = match &mut *self.fails.lock().unwrap() {
            Some((0, after)) => Some(*after),
            Some((writes, _)) => {
                *writes -= 1;
                None
            }
            None => None,
        };
        if due == Some(false) {
            return Err(MetadataError::new("told to fail"));
        }
        write()?;
        step();
        if due == Some(true) { Err(MetadataError::new("told to fail")) } else { Ok(()) }
    }
}

impl MetadataStore for Metadata {
    fn packages(&self) -> Result<Vec<PackageRecord>, MetadataError> {
        self.store.packages()
    }
    fn put_packages(&self, records: &[PackageRecord]) -> Result<(), MetadataError> {
        self.write(|| self.store.put_packages(records))
    }
    fn remove_packages(&self, refs: &[Bytes]) -> Result<(), MetadataError> {
        self.write(|| self.store.remove_packages(refs))
    }
    fn invitations(&self) -> Result<Vec<InvitationRecord>, MetadataError> {
        self.store.invitations()
    }
    fn invitation(&self, id: Uuid) -> Result<Option<InvitationRecord>, MetadataError> {
        self.store.invitation(id)
    }
    fn put_invitation(&self, record: &InvitationRecord) -> Result<(), MetadataError> {
        self.store.put_invitation(record)
    }
    fn remove_invitation(&self, id: Uuid) -> Result<(), MetadataError> {
        self.store.remove_invitation(id)
    }
}

/// See the module.
pub(super) struct Device {
    pub(super) owner: ClientKey,
    pub(super) client: Client,
    pub(super) pool: OwnPool<Provider, SignatureKeyPair>,
    pub(super) provider: Arc<Mutex<Provider>>,
    pub(super) metadata: Metadata,
    clock: ManualClock,
    folder: Arc<TempDir>,
}

impl Device {
    pub(super) fn new(client: Client, owner: ClientKey, clock: ManualClock) -> Self {
        let folder = Arc::new(TempDir::new().unwrap());
        new_signer(folder.path());
        Self::start(client, owner, clock, folder, options())
    }

    fn start(
        client: Client,
        owner: ClientKey,
        clock: ManualClock,
        folder: Arc<TempDir>,
        options: PoolOptions,
    ) -> Self {
        let (provider, metadata) = open(folder.path());
        let identity = identity(folder.path(), owner.user.as_str());
        let options = options.clock({
            let clock = clock.clone();
            move || UNIX_EPOCH + Duration::from_secs(clock.now().unix_timestamp().cast_unsigned())
        });
        let pool = OwnPool::with_options(
            client.clone(),
            Arc::clone(&provider),
            metadata.clone(),
            vec![identity],
            options,
        );
        Self { owner, client, pool: pool.unwrap(), provider, metadata, clock, folder }
    }

    /// The process ends and starts again.
    pub(super) fn restart(self) -> Self {
        self.restart_with(options())
    }

    pub(super) fn restart_with(self, options: PoolOptions) -> Self {
        let Self { owner, client, clock, folder, .. } = self;
        Self::start(client, owner, clock, folder, options)
    }

    /// The app is installed again: all that it knew is lost, its signature key too.
    pub(super) fn reinstall(self) -> Self {
        Self::new(self.client, self.owner, self.clock)
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Goes over to a new signature key, which is stored first.
    pub(super) fn next_identity(&self) -> Identity<SignatureKeyPair> {
        new_signer(self.folder());
        identity(self.folder(), self.owner.user.as_str())
    }

    /// The refs of the packages whose private keys are stored.
    pub(super) fn held(&self) -> BTreeSet<Bytes> {
        let connection = connect(self.folder());
        let mut statement =
            connection.prepare("SELECT key_package_ref FROM openmls_key_packages").unwrap();
        let rows = statement.query_map([], |row| row.get::<_, Vec<u8>>(0)).unwrap();
        let parse =
            |encoded: Vec<u8>| -> KeyPackageRef { serde_json::from_slice(&encoded).unwrap() };
        rows.map(|row| Bytes::copy_from_slice(parse(row.unwrap()).as_slice())).collect()
    }

    pub(super) fn records(&self) -> Vec<PackageRecord> {
        self.metadata.packages().unwrap()
    }

    /// The write of the metadata after so many others fails, before or after it takes effect.
    pub(super) fn fail_at(&self, writes: usize, after: bool) {
        *self.metadata.fails.lock().unwrap() = Some((writes, after));
    }

    pub(super) fn fail_no_more(&self) {
        *self.metadata.fails.lock().unwrap() = None;
    }

    /// Works on OpenMLS's storage in one transaction, while the pool waits.
    pub(super) fn transaction<T>(&self, work: impl FnOnce(&Provider<&Connection>) -> T) -> T {
        let _waiting = self.provider.lock().unwrap();
        let mut connection = connect(self.folder());
        let transaction = connection.transaction().unwrap();
        let done = work(&Provider::on(&transaction));
        transaction.commit().unwrap();
        done
    }

    /// What OpenMLS does to its storage when it reads a Welcome for a one-time package; the test
    /// `join` sees that it is so.
    pub(super) fn read_welcome(&self, key_package_ref: &Bytes) {
        let connection = connect(self.folder());
        let encoded: Vec<(Vec<u8>, KeyPackageRef)> = connection
            .prepare("SELECT key_package_ref FROM openmls_key_packages")
            .unwrap()
            .query_map([], |row| row.get::<_, Vec<u8>>(0))
            .unwrap()
            .map(|row| row.unwrap())
            .map(|encoded| (encoded.clone(), serde_json::from_slice(&encoded).unwrap()))
            .collect();
        let (row, _) =
            encoded.iter().find(|(_, found)| found.as_slice() == key_package_ref).unwrap();
        let deleted = connection
            .execute("DELETE FROM openmls_key_packages WHERE key_package_ref = ?1", [row])
            .unwrap();
        assert_eq!(deleted, 1);
    }
}

/// A small pool, as the server's policy is.
pub(super) fn options() -> PoolOptions {
    PoolOptions::default().target(3).low_watermark(1)
}

pub(super) fn file(folder: &Path) -> PathBuf {
    folder.join("device")
}

fn connect(folder: &Path) -> Connection {
    let connection = Connection::open(file(folder)).unwrap();
    connection.busy_timeout(Duration::from_secs(60)).unwrap();
    connection.pragma_update(None, "secure_delete", true).unwrap();
    // Processes die here, machines do not.
    connection.pragma_update(None, "synchronous", "off").unwrap();
    connection
}

fn open(folder: &Path) -> (Arc<Mutex<Provider>>, Metadata) {
    let mut provider = Provider::on(connect(folder));
    provider.storage.run_migrations().unwrap();
    let store = Arc::new(SqliteMetadataStore::open(file(folder)).unwrap());
    (Arc::new(Mutex::new(provider)), Metadata { store, fails: Arc::default() })
}

fn new_signer(folder: &Path) {
    let signer = SignatureKeyPair::new(SUITE.signature_algorithm()).unwrap();
    std::fs::write(folder.join("signer"), serde_json::to_vec(&signer).unwrap()).unwrap();
}

/// The identity whose signature key is stored. The credential names the user.
pub(super) fn identity(folder: &Path, user: &str) -> Identity<SignatureKeyPair> {
    identity_for(folder, user, &[SUITE])
}

pub(super) fn identity_for(
    folder: &Path,
    user: &str,
    suites: &[Ciphersuite],
) -> Identity<SignatureKeyPair> {
    let signer = std::fs::read(folder.join("signer")).unwrap();
    let signer: SignatureKeyPair = serde_json::from_slice(&signer).unwrap();
    let credential = CredentialWithKey {
        credential: BasicCredential::new(user.into()).into(),
        signature_key: signer.public().into(),
    };
    Identity::new(signer, credential, suites.to_vec())
}

/// Opens the device of another process, to die there.
pub(super) fn pool_in(
    folder: &Path,
    client: Client,
    user: &str,
    options: PoolOptions,
    now: u64,
) -> OwnPool<Provider, SignatureKeyPair> {
    let (provider, metadata) = open(folder);
    let options = options.clock(move || UNIX_EPOCH + Duration::from_secs(now));
    let identity = identity(folder, user);
    OwnPool::with_options(client, provider, metadata, vec![identity], options).unwrap()
}
