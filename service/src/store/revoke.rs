//! Revoke: packages that are not to be issued any more.

use sqlx::{Acquire as _, PgConnection};

use super::{MAX_ROUNDS, Store, lost_race, row};
use crate::{
    domain::{
        error::Error,
        ids::{Bucket, ClientKey},
    },
    metrics::metrics,
};

/// Which packages of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Revocation {
    /// Those with these refs.
    Refs(Vec<Vec<u8>>),
    /// All but those of these signers; of everyone when there is none.
    AllExcept(Vec<Signer>),
}

/// Who signed a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signer {
    /// Stands for the leaf's signature key.
    pub signature_key_digest: [u8; 16],
    /// Stands for the leaf's credential; none for any.
    pub credential_digest: Option<[u8; 16]>,
}

/// How many packages were revoked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Revoked {
    /// One-time packages that nobody held.
    pub available: u32,
    /// One-time packages that are held: they may still be spent until the reservation ends.
    pub reserved: u32,
    /// Last resort packages.
    pub last_resort: u32,
}

impl Store {
    /// Revokes packages of the pool of `owner`, in one transaction. None when there is no pool.
    ///
    /// # Errors
    /// [`Error::Overloaded`] when other calls keep coming in between; when the database cannot do
    /// it. Nothing is revoked then.
    pub async fn revoke(
        &self,
        actor: &ClientKey,
        owner: &ClientKey,
        revocation: &Revocation,
    ) -> Result<Revoked, Error> {
        for _ in 0..MAX_ROUNDS {
            match self.revoke_once(actor, owner, revocation).await {
                Err(error) if lost_race(&error) => {}
                Err(error) => return Err(self.error(error)),
                Ok(counts) => {
                    return counts.map_or_else(|| Ok(Revoked::default()), Revoked::try_from);
                }
            }
        }
        Err(Error::Overloaded)
    }

    async fn revoke_once(
        &self,
        actor: &ClientKey,
        owner: &ClientKey,
        revocation: &Revocation,
    ) -> Result<Option<RevokedRow>, sqlx::Error> {
        let mut connection = self.owner_connection().await?;
        let mut transaction = connection.begin().await?;
        let bucket = Bucket::of(&owner.user).get();
        // Locked so that a Revoke and an Upload of the client take turns: an Upload that is under way
        // would else call present what was revoked before it stores.
        let pool_id = sqlx::query_scalar!(
            "SELECT pool_id FROM pool WHERE bucket = $1 AND user_id = $2 AND client_id = $3
             FOR NO KEY UPDATE",
            bucket,
            owner.user.as_str(),
            owner.client.as_str(),
        )
        .fetch_optional(&mut *transaction)
        .await?;
        let Some(pool_id) = pool_id else { return Ok(None) };
        let counts = self.revoke_in(&mut transaction, actor, bucket, pool_id, revocation).await?;
        transaction.commit().await?;
        counts.count();
        Ok(Some(counts))
    }

    pub(super) async fn revoke_in(
        &self,
        connection: &mut PgConnection,
        actor: &ClientKey,
        bucket: i16,
        pool_id: i64,
        revocation: &Revocation,
    ) -> Result<RevokedRow, sqlx::Error> {
        let (refs, signers) = match revocation {
            Revocation::Refs(refs) => (Some(&refs[..]), &[][..]),
            Revocation::AllExcept(signers) => (None, &signers[..]),
        };
        let keys: Vec<&[u8]> = signers.iter().map(|s| &s.signature_key_digest[..]).collect();
        let credentials: Vec<Option<&[u8]>> =
            signers.iter().map(|s| s.credential_digest.as_ref().map(|d| &d[..])).collect();
        sqlx::query_file_as!(
            RevokedRow,
            "src/store/sql/revoke.sql",
            self.imposed_now(),
            bucket,
            pool_id,
            actor.user.as_str(),
            actor.client.as_str(),
            refs as Option<&[Vec<u8>]>,
            &keys as &[&[u8]],
            &credentials as &[Option<&[u8]>],
        )
        .fetch_one(connection)
        .await
    }
}

pub(super) struct RevokedRow {
    available: i64,
    reserved: i64,
    last_resort: i64,
}

impl RevokedRow {
    /// For the metrics, once it is committed.
    pub(super) fn count(&self) {
        let revoked = self.available + self.reserved + self.last_resort;
        metrics().revoked.increment(revoked.unsigned_abs());
    }
}

impl TryFrom<RevokedRow> for Revoked {
    type Error = Error;

    fn try_from(counts: RevokedRow) -> Result<Self, Error> {
        Ok(Self {
            available: row::count(counts.available)?,
            reserved: row::count(counts.reserved)?,
            last_resort: row::count(counts.last_resort)?,
        })
    }
}
