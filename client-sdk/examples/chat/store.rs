//! All that a user's device knows, in one SQLite file: OpenMLS's state, the SDK's metadata, and
//! what is left to send. Whatever happens happens in one transaction, so that `kill -9` finds all
//! of it done, or nothing.

use std::{
    borrow::Borrow,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use keypool_client::{SqliteMetadataStore, openmls::prelude::*};
use openmls_basic_credential::SignatureKeyPair;
use openmls_rust_crypto::RustCrypto;
use openmls_sqlite_storage::{Codec, SqliteStorageProvider};
use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};

use crate::{SUITE, delivery::Entry, fault};

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS chat_self (user TEXT NOT NULL, signature_key BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS chat_position (
    group_name TEXT NOT NULL PRIMARY KEY, position INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS chat_outgoing (
    group_name TEXT NOT NULL PRIMARY KEY, entry TEXT NOT NULL, text TEXT) STRICT;
CREATE TABLE IF NOT EXISTS chat_history (
    number INTEGER PRIMARY KEY, group_name TEXT NOT NULL, line TEXT NOT NULL) STRICT;
";

#[derive(Default)]
pub(crate) struct Json;

impl Codec for Json {
    type Error = serde_json::Error;

    fn to_vec<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, Self::Error> {
        serde_json::to_vec(value)
    }

    fn from_slice<T: serde::de::DeserializeOwned>(slice: &[u8]) -> Result<T, Self::Error> {
        serde_json::from_slice(slice)
    }
}

/// What OpenMLS runs on: a connection of its own for the pool, a transaction for all else.
pub(crate) struct Provider<C: Borrow<Connection> = Connection> {
    crypto: RustCrypto,
    storage: SqliteStorageProvider<Json, C>,
}

impl<C: Borrow<Connection>> Provider<C> {
    fn on(connection: C) -> Self {
        Self { crypto: RustCrypto::default(), storage: SqliteStorageProvider::new(connection) }
    }
}

impl<C: Borrow<Connection>> OpenMlsProvider for Provider<C> {
    type CryptoProvider = RustCrypto;
    type RandProvider = RustCrypto;
    type StorageProvider = SqliteStorageProvider<Json, C>;

    fn storage(&self) -> &Self::StorageProvider {
        &self.storage
    }

    fn crypto(&self) -> &RustCrypto {
        &self.crypto
    }

    fn rand(&self) -> &RustCrypto {
        &self.crypto
    }
}

pub(crate) struct Store {
    path: PathBuf,
    connection: Mutex<Connection>,
    /// For the pool. It waits while a transaction of ours runs: see `connect`.
    pub(crate) provider: Arc<Mutex<Provider>>,
}

/// Who uses this device.
pub(crate) struct Me {
    pub(crate) user: String,
    pub(crate) signer: SignatureKeyPair,
    pub(crate) credential: CredentialWithKey,
}

/// What waits to be appended to a group's log.
pub(crate) struct Outgoing {
    pub(crate) entry: Entry,
    /// What the entry says, when it is a message: it may have to be encrypted once more.
    pub(crate) text: Option<String>,
}

impl Store {
    pub(crate) fn open(path: PathBuf) -> Result<Self> {
        let mut provider = Provider::on(connect(&path)?);
        provider.storage.run_migrations()?;
        let connection = connect(&path)?;
        connection.execute_batch(SCHEMA)?;
        let provider = Arc::new(Mutex::new(provider));
        Ok(Self { path, connection: Mutex::new(connection), provider })
    }

    /// The SDK's metadata, in the same file.
    pub(crate) fn metadata(&self) -> Result<Arc<SqliteMetadataStore>> {
        Ok(Arc::new(SqliteMetadataStore::on(connect(&self.path)?)?))
    }

    /// All of `work`, or nothing.
    pub(crate) fn transaction<T>(&self, work: impl FnOnce(&Unit<'_>) -> Result<T>) -> Result<T> {
        self.begin(TransactionBehavior::Immediate, work)
    }

    pub(crate) fn read<T>(&self, work: impl FnOnce(&Unit<'_>) -> Result<T>) -> Result<T> {
        self.begin(TransactionBehavior::Deferred, work)
    }

    fn begin<T>(
        &self,
        behavior: TransactionBehavior,
        work: impl FnOnce(&Unit<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = connection.transaction_with_behavior(behavior)?;
        let done = work(&Unit::of(&transaction))?; // what fails is rolled back
        transaction.commit()?;
        Ok(done)
    }

    /// The user of this device, who gets a signature key the first time.
    pub(crate) fn me(&self, user: &str) -> Result<Me> {
        self.transaction(|unit| {
            let known = unit.connection.query_row("SELECT * FROM chat_self", [], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?))
            });
            let scheme = SUITE.signature_algorithm();
            let signer = if let Some((owner, key)) = known.optional()? {
                ensure!(owner == user, "this is {owner}'s device");
                let signer = SignatureKeyPair::read(unit.provider.storage(), &key, scheme);
                signer.context("the signature key is gone")?
            } else {
                let signer = SignatureKeyPair::new(scheme)?;
                signer.store(unit.provider.storage())?;
                let row = params![user, signer.public()];
                unit.connection.execute("INSERT INTO chat_self VALUES (?1, ?2)", row)?;
                signer
            };
            let credential = CredentialWithKey {
                credential: BasicCredential::new(user.into()).into(),
                signature_key: signer.public().into(),
            };
            Ok(Me { user: user.into(), signer, credential })
        })
    }
}

fn connect(path: &Path) -> Result<Connection> {
    let connection = Connection::open(path)?;
    // While another connection of this process has a transaction, this one waits.
    connection.busy_timeout(Duration::from_secs(30))?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    // Deleted keys leave the file.
    connection.pragma_update(None, "secure_delete", true)?;
    fault::watch(&connection);
    Ok(connection)
}

/// A transaction: OpenMLS's state and the chat's, together.
pub(crate) struct Unit<'a> {
    connection: &'a Connection,
    pub(crate) provider: Provider<&'a Connection>,
}

impl<'a> Unit<'a> {
    fn of(connection: &'a Connection) -> Self {
        Self { connection, provider: Provider::on(connection) }
    }

    /// The groups of this device, and those of which it knows that they are others'.
    pub(crate) fn groups(&self) -> Result<Vec<String>> {
        let mut statement = self.connection.prepare("SELECT group_name FROM chat_position")?;
        let names = statement.query_map([], |row| row.get(0))?;
        Ok(names.collect::<rusqlite::Result<_>>()?)
    }

    /// How far a group's log was processed.
    pub(crate) fn position(&self, group: &str) -> Result<u64> {
        let find = "SELECT position FROM chat_position WHERE group_name = ?1";
        let found = self.connection.query_row(find, [group], |row| row.get(0)).optional()?;
        Ok(found.unwrap_or_default())
    }

    pub(crate) fn set_position(&self, group: &str, position: u64) -> Result<()> {
        let put = "INSERT OR REPLACE INTO chat_position VALUES (?1, ?2)";
        self.connection.execute(put, params![group, position])?;
        Ok(())
    }

    pub(crate) fn outgoing(&self, group: &str) -> Result<Option<Outgoing>> {
        let find = "SELECT entry, text FROM chat_outgoing WHERE group_name = ?1";
        let found = self.connection.query_row(find, [group], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, Option<String>>(1)?))
        });
        let Some((entry, text)) = found.optional()? else { return Ok(None) };
        Ok(Some(Outgoing { entry: serde_json::from_str(&entry)?, text }))
    }

    pub(crate) fn set_outgoing(
        &self,
        group: &str,
        Outgoing { entry, text }: &Outgoing,
    ) -> Result<()> {
        let put = "INSERT OR REPLACE INTO chat_outgoing VALUES (?1, ?2, ?3)";
        let entry = serde_json::to_string(entry)?;
        self.connection.execute(put, params![group, entry, text])?;
        Ok(())
    }

    pub(crate) fn remove_outgoing(&self, group: &str) -> Result<()> {
        let remove = "DELETE FROM chat_outgoing WHERE group_name = ?1";
        self.connection.execute(remove, [group])?;
        Ok(())
    }

    /// Adds a line to a group's history, and answers it as it is shown.
    pub(crate) fn say(&self, group: &str, line: &str) -> Result<String> {
        let put = "INSERT INTO chat_history (group_name, line) VALUES (?1, ?2)";
        self.connection.execute(put, [group, line])?;
        Ok(format!("[{group}] {line}"))
    }

    pub(crate) fn history(&self, group: &str) -> Result<Vec<String>> {
        let find = "SELECT line FROM chat_history WHERE group_name = ?1 ORDER BY number";
        let mut statement = self.connection.prepare(find)?;
        let lines = statement.query_map([group], |row| row.get(0))?;
        Ok(lines.collect::<rusqlite::Result<_>>()?)
    }
}
