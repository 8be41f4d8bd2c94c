//! What the database holds in the end.

use sqlx::{Connection as _, PgConnection, Row as _, postgres::PgRow};
use time::OffsetDateTime;

use crate::history::{Micros, Ref, micros};

/// A package's primary key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The number of the pool.
    pub pool: i64,
    /// The cipher suite.
    pub suite: u16,
    /// The number of the package.
    pub seq: i64,
}

/// A client with a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // these are the columns
pub struct Pool {
    pub pool: i64,
    pub user: String,
    pub client: String,
}

/// The counters of a pool's suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // these are the columns
pub struct Suite {
    pub pool: i64,
    pub suite: u16,
    pub uploaded: i64,
    pub expired: i64,
    pub revoked: i64,
    pub burned: i64,
    pub forgotten: i64,
}

/// A live package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // these are the columns
pub struct Live {
    pub key: Key,
    pub reference: Ref,
    pub generation: i32,
    pub reserved: bool,
    pub lapsed: bool,
    pub revoked: bool,
    pub expires_at: Option<Micros>,
    pub not_after: Micros,
}

/// What became of one that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // these are the columns
pub struct Tombstone {
    pub key: Key,
    pub reference: Ref,
    pub generation: i32,
    pub state: End,
}

/// How a package ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the contract's states
pub enum End {
    Spent,
    Burned,
    Revoked,
}

/// A grant of a last resort package.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // these are the columns
pub struct Grant {
    pub key: Key,
    pub state: String,
}

/// What an event is about, in the order in which a package may meet them within a microsecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)] // the contract's kinds
pub enum EventKind {
    Uploaded,
    Reserved,
    LastResortIssued,
    Revoked,
    Lapsed,
    Burned,
    Released,
    Spent,
    Expired,
}

/// A row of the event log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // these are the columns
pub struct Event {
    pub at: Micros,
    pub key: Key,
    pub generation: i32,
    pub kind: EventKind,
    pub reference: Ref,
    pub holder: Option<[u8; 16]>,
}

/// All of it, as of one moment.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)] // these are the tables
pub struct Tables {
    pub taken: Micros,
    pub pools: Vec<Pool>,
    pub suites: Vec<Suite>,
    pub live: Vec<Live>,
    pub tombstones: Vec<Tombstone>,
    pub last_resorts: Vec<(Key, Ref)>,
    pub published: Vec<(Key, Ref)>,
    pub grants: Vec<Grant>,
    pub events: Vec<Event>,
}

impl Tables {
    /// Reads them in one transaction.
    ///
    /// # Errors
    /// When the database cannot be read, or a row cannot be.
    pub async fn read(connection: &mut PgConnection) -> anyhow::Result<Self> {
        let mut snapshot = connection.begin().await?;
        sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            .execute(&mut *snapshot)
            .await?;
        let taken: OffsetDateTime =
            sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(&mut *snapshot).await?;
        let mut tables = Self { taken: micros(taken), ..Self::default() };
        for row in sqlx::query("SELECT pool_id, user_id, client_id FROM pool")
            .fetch_all(&mut *snapshot)
            .await?
        {
            let pool = row.try_get("pool_id")?;
            let (user, client) = (row.try_get("user_id")?, row.try_get("client_id")?);
            tables.pools.push(Pool { pool, user, client });
        }
        for row in sqlx::query("SELECT * FROM pool_suite").fetch_all(&mut *snapshot).await? {
            tables.suites.push(Suite {
                pool: row.try_get("pool_id")?,
                suite: u16::try_from(row.try_get::<i32, _>("cipher_suite")?)?,
                uploaded: row.try_get("uploaded")?,
                expired: row.try_get("expired")?,
                revoked: row.try_get("revoked")?,
                burned: row.try_get("burned")?,
                forgotten: row.try_get("forgotten")?,
            });
        }
        for row in sqlx::query(
            "SELECT pool_id, cipher_suite, seq, key_package_ref, generation, not_after, expires_at,
                    state = 'reserved' AS reserved, revoked_at IS NOT NULL AS revoked,
                    returned IS NOT DISTINCT FROM 'lapsed' AS lapsed
             FROM package",
        )
        .fetch_all(&mut *snapshot)
        .await?
        {
            let expires_at: Option<OffsetDateTime> = row.try_get("expires_at")?;
            tables.live.push(Live {
                key: key(&row, "seq")?,
                reference: reference(&row)?,
                generation: row.try_get("generation")?,
                reserved: row.try_get("reserved")?,
                lapsed: row.try_get("lapsed")?,
                revoked: row.try_get("revoked")?,
                expires_at: expires_at.map(micros),
                not_after: micros(row.try_get("not_after")?),
            });
        }
        for row in sqlx::query(
            "SELECT pool_id, cipher_suite, seq, key_package_ref, state, generation FROM tombstone",
        )
        .fetch_all(&mut *snapshot)
        .await?
        {
            let state = match row.try_get::<&str, _>("state")? {
                "spent" => End::Spent,
                "burned" => End::Burned,
                "revoked" => End::Revoked,
                other => anyhow::bail!("a tombstone with the state {other}"),
            };
            let generation = row.try_get("generation")?;
            let (key, reference) = (key(&row, "seq")?, reference(&row)?);
            tables.tombstones.push(Tombstone { key, reference, generation, state });
        }
        for row in
            sqlx::query("SELECT pool_id, cipher_suite, seq, key_package_ref FROM last_resort")
                .fetch_all(&mut *snapshot)
                .await?
        {
            tables.last_resorts.push((key(&row, "seq")?, reference(&row)?));
        }
        for row in sqlx::query("SELECT pool_id, cipher_suite, seq, key_package_ref FROM published")
            .fetch_all(&mut *snapshot)
            .await?
        {
            tables.published.push((key(&row, "seq")?, reference(&row)?));
        }
        for row in
            sqlx::query("SELECT pool_id, cipher_suite, grant_id, state FROM last_resort_grant")
                .fetch_all(&mut *snapshot)
                .await?
        {
            tables.grants.push(Grant { key: key(&row, "grant_id")?, state: row.try_get("state")? });
        }
        for row in sqlx::query(
            "SELECT pool_id, cipher_suite, seq, at, generation, kind, key_package_ref, holder
             FROM event",
        )
        .fetch_all(&mut *snapshot)
        .await?
        {
            let holder: Option<&[u8]> = row.try_get("holder")?;
            tables.events.push(Event {
                at: micros(row.try_get("at")?),
                key: key(&row, "seq")?,
                generation: row.try_get("generation")?,
                kind: kind(row.try_get("kind")?)?,
                reference: reference(&row)?,
                holder: holder.map(TryInto::try_into).transpose()?,
            });
        }
        snapshot.rollback().await?;
        Ok(tables)
    }
}

fn key(row: &PgRow, seq: &str) -> anyhow::Result<Key> {
    Ok(Key {
        pool: row.try_get("pool_id")?,
        suite: u16::try_from(row.try_get::<i32, _>("cipher_suite")?)?,
        seq: row.try_get(seq)?,
    })
}

fn reference(row: &PgRow) -> anyhow::Result<Ref> {
    let bytes: &[u8] = row.try_get("key_package_ref")?;
    Ref::of(bytes).ok_or_else(|| anyhow::anyhow!("a ref of {} bytes", bytes.len()))
}

fn kind(text: &str) -> anyhow::Result<EventKind> {
    Ok(match text {
        "uploaded" => EventKind::Uploaded,
        "reserved" => EventKind::Reserved,
        "spent" => EventKind::Spent,
        "released" => EventKind::Released,
        "lapsed" => EventKind::Lapsed,
        "burned" => EventKind::Burned,
        "revoked" => EventKind::Revoked,
        "expired" => EventKind::Expired,
        "last_resort_issued" => EventKind::LastResortIssued,
        other => anyhow::bail!("an event of the kind {other}"),
    })
}
