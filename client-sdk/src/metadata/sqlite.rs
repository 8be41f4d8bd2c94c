use std::{
    fmt,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use rusqlite::{
    Connection, OptionalExtension as _, Row, Transaction, TransactionBehavior, params, types::Type,
};
use uuid::Uuid;

use super::{
    InvitationRecord, InvitationState, MetadataError, MetadataStore, PackageRecord, PackageState,
    ReservationRecord,
};

/// How long a statement waits for another connection's transaction on the same file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The schema that this build reads and writes.
const SCHEMA_VERSION: i64 = 1;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS keypool_schema (version INTEGER NOT NULL) STRICT;

CREATE TABLE IF NOT EXISTS keypool_package (
    key_package_ref BLOB NOT NULL PRIMARY KEY,
    cipher_suite INTEGER NOT NULL CHECK (cipher_suite BETWEEN 1 AND 65535),
    not_after INTEGER NOT NULL CHECK (not_after >= 0),
    last_resort INTEGER NOT NULL CHECK (last_resort IN (0, 1)),
    identity BLOB NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('prepared', 'published', 'retired')),
    retired_until INTEGER CHECK (retired_until >= 0),
    CHECK ((state = 'retired') = (retired_until IS NOT NULL))
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS keypool_invitation (
    invitation_id BLOB NOT NULL PRIMARY KEY CHECK (length(invitation_id) = 16),
    group_id BLOB NOT NULL,
    cipher_suite INTEGER NOT NULL CHECK (cipher_suite BETWEEN 1 AND 65535),
    state TEXT NOT NULL CHECK (state IN
        ('reserving', 'reserved', 'commit_pending', 'spending', 'releasing')),
    commit_epoch INTEGER,
    created_at INTEGER NOT NULL CHECK (created_at >= 0),
    expires_at INTEGER NOT NULL CHECK (expires_at >= 0),
    request BLOB NOT NULL,
    CHECK ((state = 'commit_pending') = (commit_epoch IS NOT NULL))
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS keypool_invitation_reservation (
    invitation_id BLOB NOT NULL,
    position INTEGER NOT NULL,
    reservation_id TEXT NOT NULL,
    key_package_ref BLOB NOT NULL,
    encryption_key BLOB NOT NULL,
    PRIMARY KEY (invitation_id, position)
) STRICT, WITHOUT ROWID;
";

/// Keeps metadata in a SQLite file, in tables whose names begin with `keypool_`.
///
/// The file may be the one of `openmls_sqlite_storage`: each has a connection of its own. A
/// transaction that the application keeps open on that file for more than five seconds makes
/// calls here fail.
pub struct SqliteMetadataStore(Mutex<Connection>);

impl SqliteMetadataStore {
    /// Opens the file, which is made when it is missing, and its tables.
    ///
    /// # Errors
    /// When the file cannot be opened or written, or a newer version of the SDK made its tables.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, MetadataError> {
        Self::on(Connection::open(path).map_err(MetadataError::new)?)
    }

    /// On a connection of the caller's making, such as one to an encrypted file.
    ///
    /// # Errors
    /// As [`SqliteMetadataStore::open`].
    pub fn on(mut connection: Connection) -> Result<Self, MetadataError> {
        let version = prepare(&mut connection).map_err(MetadataError::new)?;
        if version != SCHEMA_VERSION {
            let why = format!("its tables are of version {version}, not of {SCHEMA_VERSION}");
            return Err(MetadataError::new(why));
        }
        Ok(Self(Mutex::new(connection)))
    }

    /// One transaction, taken for writing at once: one that only writes later may find, too late
    /// to wait, that another connection wrote first.
    fn transaction<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, MetadataError> {
        // A transaction that a panic ended was rolled back.
        let mut connection = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        transaction(&mut connection, work).map_err(MetadataError::new)
    }
}

fn transaction<T>(
    connection: &mut Connection,
    work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let done = work(&transaction)?;
    transaction.commit()?;
    Ok(done)
}

/// Makes the tables where they are missing, and answers their version.
fn prepare(connection: &mut Connection) -> rusqlite::Result<i64> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // A write-ahead log keeps readers of a shared file from waiting for writers.
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    transaction(connection, |transaction| {
        transaction.execute_batch(SCHEMA)?;
        transaction.execute(
            "INSERT INTO keypool_schema
             SELECT ?1 WHERE NOT EXISTS (SELECT 1 FROM keypool_schema)",
            [SCHEMA_VERSION],
        )?;
        transaction.query_row("SELECT version FROM keypool_schema", [], |row| row.get(0))
    })
}

impl MetadataStore for SqliteMetadataStore {
    fn packages(&self) -> Result<Vec<PackageRecord>, MetadataError> {
        self.transaction(|transaction| {
            transaction
                .prepare_cached(
                    "SELECT key_package_ref, cipher_suite, not_after, last_resort, identity, state,
                            retired_until
                     FROM keypool_package",
                )?
                .query_map([], package)?
                .collect()
        })
    }

    fn put_packages(&self, records: &[PackageRecord]) -> Result<(), MetadataError> {
        self.transaction(|transaction| {
            let mut statement = transaction.prepare_cached(
                "INSERT OR REPLACE INTO keypool_package VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?;
            for record in records {
                let (state, until) = match record.state {
                    PackageState::Prepared => ("prepared", None),
                    PackageState::Published => ("published", None),
                    PackageState::Retired { until } => ("retired", Some(until)),
                };
                statement.execute(params![
                    record.key_package_ref.as_ref(),
                    record.cipher_suite,
                    seconds(record.not_after),
                    record.last_resort,
                    record.identity.as_ref(),
                    state,
                    until.map(seconds),
                ])?;
            }
            Ok(())
        })
    }

    fn remove_packages(&self, refs: &[Bytes]) -> Result<(), MetadataError> {
        self.transaction(|transaction| {
            let mut statement = transaction
                .prepare_cached("DELETE FROM keypool_package WHERE key_package_ref = ?1")?;
            for key_package_ref in refs {
                statement.execute([key_package_ref.as_ref()])?;
            }
            Ok(())
        })
    }

    fn invitations(&self) -> Result<Vec<InvitationRecord>, MetadataError> {
        self.transaction(|transaction| {
            let ids = transaction
                .prepare_cached(
                    "SELECT invitation_id FROM keypool_invitation
                     ORDER BY created_at, invitation_id",
                )?
                .query_map([], |row| row.get(0))?
                .collect::<rusqlite::Result<Vec<[u8; 16]>>>()?;
            let found = |id| invitation(transaction, Uuid::from_bytes(id)).transpose();
            ids.into_iter().filter_map(found).collect()
        })
    }

    fn invitation(&self, invitation_id: Uuid) -> Result<Option<InvitationRecord>, MetadataError> {
        self.transaction(|transaction| invitation(transaction, invitation_id))
    }

    fn put_invitation(&self, record: &InvitationRecord) -> Result<(), MetadataError> {
        self.transaction(|transaction| {
            let id = record.invitation_id.as_bytes();
            let (state, epoch) = match record.state {
                InvitationState::Reserving => ("reserving", None),
                InvitationState::Reserved => ("reserved", None),
                InvitationState::CommitPending { epoch } => ("commit_pending", Some(epoch)),
                InvitationState::Spending => ("spending", None),
                InvitationState::Releasing => ("releasing", None),
            };
            transaction.execute(
                "INSERT OR REPLACE INTO keypool_invitation
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                params![
                    id,
                    record.group_id.as_ref(),
                    record.cipher_suite,
                    state,
                    // All 64 bits of an epoch are kept: the sign is only how SQLite reads them.
                    epoch.map(u64::cast_signed),
                    seconds(record.created_at),
                    seconds(record.expires_at),
                    record.request.as_ref(),
                ],
            )?;
            transaction.execute(
                "DELETE FROM keypool_invitation_reservation WHERE invitation_id = ?1",
                [id],
            )?;
            let mut statement = transaction.prepare_cached(
                "INSERT INTO keypool_invitation_reservation VALUES (?1, ?2, ?3, ?4, ?5)",
            )?;
            for (position, reservation) in record.reservations.iter().enumerate() {
                statement.execute(params![
                    id,
                    position,
                    reservation.reservation_id,
                    reservation.key_package_ref.as_ref(),
                    reservation.encryption_key.as_ref(),
                ])?;
            }
            Ok(())
        })
    }

    fn remove_invitation(&self, invitation_id: Uuid) -> Result<(), MetadataError> {
        self.transaction(|transaction| {
            let id = invitation_id.as_bytes();
            transaction.execute("DELETE FROM keypool_invitation WHERE invitation_id = ?1", [id])?;
            transaction.execute(
                "DELETE FROM keypool_invitation_reservation WHERE invitation_id = ?1",
                [id],
            )?;
            Ok(())
        })
    }
}

fn package(row: &Row<'_>) -> rusqlite::Result<PackageRecord> {
    let state: String = row.get(5)?;
    let state = match (state.as_str(), row.get(6)?) {
        ("prepared", None) => PackageState::Prepared,
        ("published", None) => PackageState::Published,
        ("retired", Some(until)) => PackageState::Retired { until },
        _ => return Err(impossible(5, "state of a KeyPackage")),
    };
    Ok(PackageRecord {
        key_package_ref: bytes(row, 0)?,
        cipher_suite: row.get(1)?,
        not_after: row.get(2)?,
        last_resort: row.get(3)?,
        identity: bytes(row, 4)?,
        state,
    })
}

fn invitation(
    transaction: &Transaction<'_>,
    invitation_id: Uuid,
) -> rusqlite::Result<Option<InvitationRecord>> {
    let id = invitation_id.as_bytes();
    let entry = transaction
        .prepare_cached(
            "SELECT group_id, cipher_suite, state, commit_epoch, created_at, expires_at,
                        request
             FROM keypool_invitation WHERE invitation_id = ?1",
        )?
        .query_row([id], |row| entry(row, invitation_id))
        .optional()?;
    let Some(mut entry) = entry else { return Ok(None) };
    entry.reservations = transaction
        .prepare_cached(
            "SELECT reservation_id, key_package_ref, encryption_key
             FROM keypool_invitation_reservation WHERE invitation_id = ?1 ORDER BY position",
        )?
        .query_map([id], reservation)?
        .collect::<rusqlite::Result<_>>()?;
    Ok(Some(entry))
}

fn entry(row: &Row<'_>, invitation_id: Uuid) -> rusqlite::Result<InvitationRecord> {
    let state: String = row.get(2)?;
    let state = match (state.as_str(), row.get(3)?) {
        ("reserving", None) => InvitationState::Reserving,
        ("reserved", None) => InvitationState::Reserved,
        ("commit_pending", Some(epoch)) => {
            InvitationState::CommitPending { epoch: i64::cast_unsigned(epoch) }
        }
        ("spending", None) => InvitationState::Spending,
        ("releasing", None) => InvitationState::Releasing,
        _ => return Err(impossible(2, "state of an invitation")),
    };
    Ok(InvitationRecord {
        invitation_id,
        group_id: bytes(row, 0)?,
        cipher_suite: row.get(1)?,
        reservations: Vec::new(),
        state,
        created_at: row.get(4)?,
        expires_at: row.get(5)?,
        request: bytes(row, 6)?,
    })
}

fn reservation(row: &Row<'_>) -> rusqlite::Result<ReservationRecord> {
    Ok(ReservationRecord {
        reservation_id: row.get(0)?,
        key_package_ref: bytes(row, 1)?,
        encryption_key: bytes(row, 2)?,
    })
}

fn bytes(row: &Row<'_>, column: usize) -> rusqlite::Result<Bytes> {
    Ok(row.get::<_, Vec<u8>>(column)?.into())
}

fn impossible(column: usize, what: &str) -> rusqlite::Error {
    let why = format!("there is an impossible {what}");
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, why.into())
}

/// A time as SQLite keeps it. One that is too far away to fit is as far away as it can be.
fn seconds(time: u64) -> i64 {
    time.try_into().unwrap_or(i64::MAX)
}

impl fmt::Debug for SqliteMetadataStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SqliteMetadataStore(..)")
    }
}
