//! Upload: packages into the caller's own pool.

use std::collections::{HashMap, HashSet};

use sqlx::{Acquire as _, Postgres, Transaction};
use time::OffsetDateTime;

use super::{MAX_ROUNDS, Revocation, Signer, Store, lost_race, revoke::RevokedRow};
use crate::domain::{
    error::Error,
    ids::{Bucket, CipherSuite, ClientKey},
    key_package::{RejectReason, ValidatedKeyPackage},
};

/// What the store enforces of the upload's limits.
#[derive(Debug, Clone, Copy)]
pub struct UploadLimits {
    /// At most this many live packages of a cipher suite are kept.
    pub hard_cap: u32,
    /// Whether the packages of other signers than those uploaded now are revoked.
    pub replace_others: bool,
}

/// What became of one package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreOutcome {
    /// It is in the pool now.
    Stored,
    /// It was there already.
    AlreadyPresent,
    /// It was refused.
    Refused(RejectReason),
}

/// A ref or init_key that was published before.
struct Known {
    key_package_ref: Vec<u8>,
    init_key_digest: Vec<u8>,
    own: bool,
    live: bool,
}

/// How a cipher suite of the pool stands before an upload.
struct LiveCount {
    cipher_suite: i32,
    /// Packages that take room.
    live: i64,
    /// Whether some reached their not_after.
    due: bool,
}

impl Store {
    /// Stores packages in the pool of `owner`, in one transaction; one outcome for each. Opens
    /// the pool if there is none. `pool_id` is a random number for that case.
    ///
    /// # Errors
    /// When the database cannot do it. Nothing is stored then.
    pub async fn upload(
        &self,
        owner: &ClientKey,
        pool_id: i64,
        packages: &[&ValidatedKeyPackage],
        limits: UploadLimits,
    ) -> Result<Vec<StoreOutcome>, Error> {
        for _ in 0..MAX_ROUNDS {
            match self.upload_once(owner, pool_id, packages, limits).await {
                Err(error) if lost_race(&error) => {}
                other => return other.map_err(|error| self.error(error)),
            }
        }
        Err(Error::Overloaded)
    }

    async fn upload_once(
        &self,
        owner: &ClientKey,
        pool_id: i64,
        packages: &[&ValidatedKeyPackage],
        limits: UploadLimits,
    ) -> Result<Vec<StoreOutcome>, sqlx::Error> {
        let mut connection = self.owner_connection().await?;
        let mut transaction = connection.begin().await?;
        let mut upload = Upload {
            bucket: Bucket::of(&owner.user).get(),
            pool_id: self.open_pool(&mut transaction, owner, pool_id).await?,
            owner,
            now: self.imposed_now(),
            transaction: &mut transaction,
        };
        if limits.replace_others {
            upload.lock_packages().await?;
        }
        // What is about to be revoked takes no room.
        let keep = limits.replace_others.then(|| signers(packages.iter().copied()));
        let counts = upload.counts(keep.as_deref()).await?;
        let is_due = counts.iter().any(|suite| suite.due);
        if limits.replace_others || is_due {
            upload.lock_suites().await?;
        }
        if is_due {
            let due = upload.due_for_expiry().await?;
            self.expire(upload.transaction, &due).await?;
        }
        let known = upload.known(packages).await?;
        let outcomes = decide(packages, &known, &counts, limits);
        upload.store(packages, &outcomes).await?;
        let mut revoked = None;
        if limits.replace_others {
            let accepted = packages.iter().zip(&outcomes).filter(|(_, outcome)| {
                matches!(outcome, StoreOutcome::Stored | StoreOutcome::AlreadyPresent)
            });
            let keep = signers(accepted.map(|(package, _)| *package));
            // Never empties a pool for an upload of which nothing was accepted.
            if !keep.is_empty() {
                let (bucket, pool_id) = (upload.bucket, upload.pool_id);
                let revocation = Revocation::AllExcept(keep);
                let transaction = &mut *upload.transaction;
                revoked =
                    Some(self.revoke_in(transaction, owner, bucket, pool_id, &revocation).await?);
            }
        }
        transaction.commit().await?;
        self.owners_kept.keep(connection);
        revoked.iter().for_each(RevokedRow::count);
        Ok(outcomes)
    }

    /// Finds the pool's number, or opens it; either way holds its row, so that uploads and
    /// revocations of one client take turns.
    async fn open_pool(
        &self,
        transaction: &mut Transaction<'_, Postgres>,
        owner: &ClientKey,
        pool_id: i64,
    ) -> Result<i64, sqlx::Error> {
        sqlx::query_scalar!(
            "INSERT INTO pool AS p (bucket, user_id, client_id, pool_id, last_upload_at)
             VALUES ($1, $2, $3, $4, coalesce($5::timestamptz, now()))
             ON CONFLICT (bucket, user_id, client_id) DO UPDATE
             SET last_upload_at = excluded.last_upload_at
             RETURNING p.pool_id",
            Bucket::of(&owner.user).get(),
            owner.user.as_str(),
            owner.client.as_str(),
            pool_id,
            self.imposed_now(),
        )
        .fetch_one(&mut **transaction)
        .await
    }
}

/// One upload under way.
struct Upload<'a, 'c> {
    transaction: &'a mut Transaction<'c, Postgres>,
    owner: &'a ClientKey,
    bucket: i16,
    pool_id: i64,
    now: Option<OffsetDateTime>,
}

impl Upload<'_, '_> {
    /// What reached its not_after is ended.
    async fn due_for_expiry(&mut self) -> Result<Vec<super::sweep::Due>, sqlx::Error> {
        sqlx::query_file_as!(
            super::sweep::Due,
            "src/store/sql/due.sql",
            self.now,
            self.bucket,
            self.pool_id,
        )
        .fetch_all(&mut **self.transaction)
        .await
    }

    /// What ends packages locks them before the suite it counts them in, so an upload that may
    /// end any does it too, and before it stores: or else the two could wait for each other.
    async fn lock_packages(&mut self) -> Result<(), sqlx::Error> {
        sqlx::query!(
            "SELECT seq FROM package WHERE bucket = $1 AND pool_id = $2
             ORDER BY cipher_suite, seq FOR UPDATE",
            self.bucket,
            self.pool_id,
        )
        .fetch_all(&mut **self.transaction)
        .await?;
        Ok(())
    }

    /// An upload that counts what it ends in some suites and what it stores in others locks them
    /// all first, in the order of the key, as every statement that counts does.
    async fn lock_suites(&mut self) -> Result<(), sqlx::Error> {
        sqlx::query!(
            "SELECT cipher_suite FROM pool_suite WHERE bucket = $1 AND pool_id = $2
             ORDER BY cipher_suite FOR UPDATE",
            self.bucket,
            self.pool_id,
        )
        .fetch_all(&mut **self.transaction)
        .await?;
        Ok(())
    }

    async fn known(
        &mut self,
        packages: &[&ValidatedKeyPackage],
    ) -> Result<Vec<Known>, sqlx::Error> {
        let refs: Vec<&[u8]> = packages.iter().map(|p| &p.key_package_ref.0[..]).collect();
        let init_keys: Vec<&[u8]> = packages.iter().map(|p| &p.init_key_digest[..]).collect();
        sqlx::query_file_as!(
            Known,
            "src/store/sql/known.sql",
            self.bucket,
            self.pool_id,
            &refs as &[&[u8]],
            &init_keys as &[&[u8]],
        )
        .fetch_all(&mut **self.transaction)
        .await
    }

    /// How many packages take room, of `keep` only when it is given, and whether some reached their
    /// not_after: they take none.
    async fn counts(&mut self, keep: Option<&[Signer]>) -> Result<Vec<LiveCount>, sqlx::Error> {
        let keys: Option<Vec<&[u8]>> =
            keep.map(|keep| keep.iter().map(|s| &s.signature_key_digest[..]).collect());
        let credentials: Option<Vec<Option<&[u8]>>> = keep.map(|keep| {
            keep.iter().map(|s| s.credential_digest.as_ref().map(|d| &d[..])).collect()
        });
        sqlx::query_as!(
            LiveCount,
            r#"SELECT cipher_suite,
                      count(*) FILTER (
                          WHERE NOT x.due AND revoked_at IS NULL
                            AND ($3::bytea[] IS NULL
                                 OR EXISTS (SELECT FROM unnest($3, $4::bytea[]) AS kept (s, c)
                                            WHERE kept.s = k.signature_key_digest
                                              AND kept.c = k.credential_digest))) AS "live!",
                      bool_or(x.due) AS "due!"
               FROM package k
               CROSS JOIN LATERAL
                   (SELECT k.not_after <= coalesce($5::timestamptz, now()) AS due) x
               WHERE bucket = $1 AND pool_id = $2
               GROUP BY cipher_suite"#,
            self.bucket,
            self.pool_id,
            keys.as_deref() as Option<&[&[u8]]>,
            credentials.as_deref() as Option<&[Option<&[u8]>]>,
            self.now,
        )
        .fetch_all(&mut **self.transaction)
        .await
    }

    async fn store(
        &mut self,
        packages: &[&ValidatedKeyPackage],
        outcomes: &[StoreOutcome],
    ) -> Result<(), sqlx::Error> {
        let stored: Vec<&ValidatedKeyPackage> = packages
            .iter()
            .zip(outcomes)
            .filter_map(|(package, outcome)| (*outcome == StoreOutcome::Stored).then_some(*package))
            .collect();
        if stored.is_empty() {
            return Ok(());
        }
        let suites: Vec<i32> = stored.iter().map(|p| i32::from(p.cipher_suite.0)).collect();
        let refs: Vec<&[u8]> = stored.iter().map(|p| &p.key_package_ref.0[..]).collect();
        let bytes: Vec<&[u8]> = stored.iter().map(|p| &p.bytes[..]).collect();
        let not_after: Vec<OffsetDateTime> = stored.iter().map(|p| p.not_after).collect();
        let capabilities: Vec<String> =
            stored.iter().map(|p| array_literal(&p.capabilities)).collect();
        let init_keys: Vec<&[u8]> = stored.iter().map(|p| &p.init_key_digest[..]).collect();
        let signature_keys: Vec<&[u8]> =
            stored.iter().map(|p| &p.signature_key_digest[..]).collect();
        let credentials: Vec<&[u8]> = stored.iter().map(|p| &p.credential_digest[..]).collect();
        let last_resort: Vec<bool> = stored.iter().map(|p| p.last_resort).collect();
        let replaced: Vec<bool> = (0..stored.len()).map(|at| replaced(&stored, at)).collect();
        sqlx::query_file!(
            "src/store/sql/store_packages.sql",
            self.now,
            self.bucket,
            self.pool_id,
            self.owner.user.as_str(),
            self.owner.client.as_str(),
            &suites,
            &refs as &[&[u8]],
            &bytes as &[&[u8]],
            &not_after,
            &capabilities,
            &init_keys as &[&[u8]],
            &signature_keys as &[&[u8]],
            &credentials as &[&[u8]],
            &last_resort,
            &replaced,
        )
        .execute(&mut **self.transaction)
        .await?;
        Ok(())
    }
}

/// Who signed these packages, each once.
fn signers<'a>(packages: impl Iterator<Item = &'a ValidatedKeyPackage>) -> Vec<Signer> {
    let mut signers = Vec::new();
    for package in packages {
        let signer = Signer {
            signature_key_digest: package.signature_key_digest,
            credential_digest: Some(package.credential_digest),
        };
        if !signers.contains(&signer) {
            signers.push(signer);
        }
    }
    signers
}

/// Whether a later last resort package of the same cipher suite replaces the one at `at`.
fn replaced(stored: &[&ValidatedKeyPackage], at: usize) -> bool {
    let Some((package, later)) = stored.get(at..).and_then(<[_]>::split_first) else {
        return false;
    };
    package.last_resort
        && later.iter().any(|p| p.last_resort && p.cipher_suite == package.cipher_suite)
}

/// A Postgres array literal: arrays of arrays of different lengths cannot be passed as such.
fn array_literal(numbers: &[i32]) -> String {
    let numbers: Vec<String> = numbers.iter().map(i32::to_string).collect();
    format!("{{{}}}", numbers.join(","))
}

/// What becomes of each package, given what was published before and what lives.
fn decide(
    packages: &[&ValidatedKeyPackage],
    known: &[Known],
    counts: &[LiveCount],
    limits: UploadLimits,
) -> Vec<StoreOutcome> {
    let by_ref: HashMap<&[u8], &Known> =
        known.iter().map(|k| (&k.key_package_ref[..], k)).collect();
    let init_keys: HashSet<&[u8]> =
        known.iter().filter(|k| k.own).map(|k| &k.init_key_digest[..]).collect();
    let mut live: HashMap<i32, i64> =
        counts.iter().map(|suite| (suite.cipher_suite, suite.live)).collect();
    let mut room = |suite: CipherSuite| {
        let count = live.entry(i32::from(suite.0)).or_default();
        let room = *count < i64::from(limits.hard_cap);
        *count += i64::from(room);
        room
    };
    // Suites of which an earlier package of this call is the last resort now.
    let mut replaced = HashSet::new();
    packages
        .iter()
        .map(|package| {
            let is_replaced = package.last_resort && replaced.contains(&package.cipher_suite);
            match by_ref.get(&package.key_package_ref.0[..]) {
                Some(known) if !known.own => {
                    StoreOutcome::Refused(RejectReason::OwnedByAnotherClient)
                }
                Some(known) if known.live && !is_replaced => StoreOutcome::AlreadyPresent,
                Some(_) => StoreOutcome::Refused(RejectReason::AlreadyUsed),
                None if init_keys.contains(&package.init_key_digest[..]) => {
                    StoreOutcome::Refused(RejectReason::InvalidInitKey)
                }
                None if package.last_resort => {
                    replaced.insert(package.cipher_suite);
                    StoreOutcome::Stored
                }
                None if room(package.cipher_suite) => StoreOutcome::Stored,
                None => StoreOutcome::Refused(RejectReason::PoolFull),
            }
        })
        .collect()
}
