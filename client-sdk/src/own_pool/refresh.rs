//! One refresh. Whatever is about to exist is recorded before it does, and whatever is about to go
//! is forgotten after it has, so that the next refresh finds all that a crash left behind.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use openmls::prelude::{Lifetime, OpenMlsProvider};
use openmls_traits::signatures::Signer;

use super::{
    Identity, Inner, PoolError,
    keys::{self, Made},
    plan::{has_strangers, is_current, is_live, missing},
};
use crate::{PackageRecord, PackageState, v1};

/// What one call of the contract may carry.
const MAX_UPLOAD: usize = 100;
const MAX_REVOKE: usize = 1_000;

/// How far the packages' `not_before` lies in the past, for clocks that differ.
const CLOCK_SKEW_SECONDS: u64 = 60 * 60;

/// What a refresh did.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Refreshed {
    /// How many packages were uploaded and taken.
    pub uploaded: usize,
    /// What the server refused. Its private keys are deleted.
    pub refused: Vec<RefusedPackage>,
    /// How many packages' private keys were deleted for their age.
    pub expired: usize,
    /// How many packages were withdrawn because their private keys are gone, as after a Welcome.
    pub withdrawn: usize,
    /// How many packages of an earlier credential or cipher suite, and last resort packages that
    /// were replaced, keep their private keys for a while longer from now on.
    pub retired: usize,
    /// The pool afterwards.
    pub status: v1::PoolStatus,
}

/// A package that the server refused.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RefusedPackage {
    /// Its KeyPackageRef (RFC 9420, section 5.2).
    pub key_package_ref: Bytes,
    /// Why, for programs. Unspecified when this build does not know the reason.
    pub reason: v1::RejectReason,
    /// Why, for people.
    pub message: String,
}

/// An identity of the moment, and its digest.
struct Current<S> {
    identities: Arc<Vec<Identity<S>>>,
    digests: Vec<Bytes>,
}

impl<S> Current<S> {
    /// Whether it is a package that this pool publishes, and not one of an earlier credential or
    /// of a cipher suite that was given up.
    fn has(&self, record: &PackageRecord) -> bool {
        self.suites().any(|(_, digest, suite)| is_current(record, suite.into(), digest))
    }

    fn suites(
        &self,
    ) -> impl Iterator<Item = (&Identity<S>, &Bytes, openmls::prelude::Ciphersuite)> {
        let identities = self.identities.iter().zip(&self.digests);
        identities.flat_map(|(identity, digest)| {
            identity.cipher_suites.iter().map(move |&suite| (identity, digest, suite))
        })
    }
}

/// A package that is ready to be uploaded.
struct Ready {
    record: PackageRecord,
    encoding: Bytes,
}

pub(super) async fn refresh<P, S>(
    inner: &Arc<Inner<P, S>>,
    identities: &Arc<Vec<Identity<S>>>,
) -> Result<Refreshed, PoolError>
where
    P: OpenMlsProvider + Send + 'static,
    S: Signer + Send + Sync + 'static,
{
    let mut done = Refreshed::default();
    let identities = Arc::clone(identities);
    let current = inner
        .blocking(move |inner| {
            let digests: Result<_, PoolError> = inner.with_provider(|provider| {
                identities.iter().map(|identity| identity.digest(provider)).collect()
            });
            Ok(Current { identities, digests: digests? })
        })
        .await?;
    let current = Arc::new(current);

    let (expired, gone) = inner.blocking(Inner::expire).await?;
    done.expired = expired;
    done.withdrawn = gone.len();
    inner.withdraw(gone).await?;
    done.status = inner.client.pool_status().await?;
    if inner.drop_strangers(&done.status).await? {
        done.status = inner.client.pool_status().await?;
    }
    // While a rotation is under way the server's counts mix the old and the new: once more then.
    for _ in 0..2 {
        let ready = {
            let (current, status) = (Arc::clone(&current), done.status.clone());
            inner.blocking(move |inner| inner.prepare(&current, &status)).await?
        };
        inner.upload(&current, ready, &mut done).await?;
        done.retired += inner.retire_replaced(&done.status).await?;
        let outdated = inner.retire_outdated(&current).await?;
        if outdated == 0 {
            break;
        }
        done.retired += outdated;
        done.status = inner.client.pool_status().await?;
    }
    Ok(done)
}

impl<P, S> Inner<P, S>
where
    P: OpenMlsProvider + Send + 'static,
    S: Signer + Send + Sync + 'static,
{
    /// Deletes what is over its time, and answers how many those were, and the refs of the
    /// packages whose private keys are gone.
    fn expire(&self) -> Result<(usize, Vec<Bytes>), PoolError> {
        let now = self.options.now();
        let grace = self.options.expiry_grace.as_secs();
        let is_over = |record: &PackageRecord| {
            let end = record.not_after.saturating_add(grace);
            match record.state {
                PackageState::Retired { until } => until.min(end) <= now,
                PackageState::Prepared | PackageState::Published => end <= now,
            }
        };
        let (over, rest): (Vec<_>, Vec<_>) =
            self.metadata.packages()?.into_iter().partition(is_over);
        let over = refs(&over);
        self.with_provider(|provider| over.iter().try_for_each(|r| keys::delete(provider, r)))?;
        self.forget(&over)?;

        let mut gone = Vec::new();
        for record in rest {
            let held = self.with_provider(|p| keys::stored(p, &record.key_package_ref))?.is_some();
            if !held {
                gone.push(record.key_package_ref);
            }
        }
        Ok((over.len(), gone))
    }

    /// Withdraws packages whose private keys are gone, and forgets them.
    async fn withdraw(self: &Arc<Self>, gone: Vec<Bytes>) -> Result<(), PoolError> {
        if gone.is_empty() {
            return Ok(());
        }
        self.revoke(&gone).await?;
        self.blocking(move |inner| inner.forget(&gone)).await?;
        Ok(())
    }

    async fn revoke(&self, refs: &[Bytes]) -> Result<(), PoolError> {
        for refs in refs.chunks(MAX_REVOKE) {
            let request =
                v1::RevokeKeyPackagesRequest { refs: refs.to_vec(), ..Default::default() };
            self.client.revoke(request).await?;
        }
        Ok(())
    }

    /// Withdraws all packages when the server has some that the device has no private keys for:
    /// nobody can tell which those are.
    async fn drop_strangers(self: &Arc<Self>, status: &v1::PoolStatus) -> Result<bool, PoolError> {
        let status = status.clone();
        let found = self.blocking(move |inner| {
            let mut records = inner.metadata.packages()?;
            if !has_strangers(&status, &records) {
                return Ok(false);
            }
            // First, or a crash would leave the private keys of the known ones to their full age.
            records.retain(is_live);
            inner.retire(records)?;
            Ok(true)
        });
        if !found.await? {
            return Ok(false);
        }
        let all = v1::RevokeKeyPackagesRequest { all: true, ..Default::default() };
        self.client.revoke(all).await?;
        Ok(true)
    }

    /// What is to be uploaded, in the order in which it is: what was prepared before, then fresh
    /// packages, which are recorded, made and stored here. The identities take turns, so that
    /// each is in the first call.
    fn prepare(
        &self,
        current: &Current<S>,
        status: &v1::PoolStatus,
    ) -> Result<Vec<Ready>, PoolError> {
        let now = self.options.now();
        let not_after = now.saturating_add(self.options.lifetime.as_secs());
        let lifetime = Lifetime::init(now.saturating_sub(CLOCK_SKEW_SECONDS), not_after);
        let records = self.metadata.packages()?;
        let mut ready = Vec::new();
        let mut made = Vec::new();
        for (identity, digest, suite) in current.suites() {
            let cipher_suite = u16::from(suite);
            let mut of_suite = Vec::new();
            for record in &records {
                let prepared = record.state == PackageState::Prepared;
                if prepared && is_current(record, cipher_suite, digest) {
                    let stored = self.with_provider(|p| keys::stored(p, &record.key_package_ref));
                    // Gone meanwhile, as its Welcome came: the next refresh withdraws it.
                    let Some(encoding) = stored? else { continue };
                    of_suite.push(Ready { record: record.clone(), encoding });
                }
            }
            let status =
                status.cipher_suites.iter().find(|s| s.cipher_suite == u32::from(cipher_suite));
            let missing = missing(&self.options, &records, status, cipher_suite, digest);
            let marks = std::iter::repeat_n(true, missing.last_resort.into())
                .chain(std::iter::repeat_n(false, missing.one_time));
            for last_resort in marks {
                let fresh = self.with_provider(|provider| {
                    Made::new(provider, identity, suite, lifetime, last_resort)
                })?;
                let record = PackageRecord {
                    key_package_ref: fresh.key_package_ref(),
                    cipher_suite,
                    not_after,
                    last_resort,
                    identity: digest.clone(),
                    state: PackageState::Prepared,
                };
                of_suite.push(Ready { record, encoding: fresh.encoding()? });
                made.push(fresh);
            }
            of_suite.sort_by_key(|ready| !ready.record.last_resort);
            ready.extend(of_suite.into_iter().enumerate());
        }
        ready.sort_by_key(|(place, _)| *place);
        let ready: Vec<_> = ready.into_iter().map(|(_, ready)| ready).collect();
        let records: Vec<_> = ready.iter().map(|ready| ready.record.clone()).collect();
        self.record(&records)?;
        for made in made {
            self.with_provider(|provider| made.store(provider))?;
        }
        Ok(ready)
    }

    /// Uploads and records what became of each.
    async fn upload(
        self: &Arc<Self>,
        current: &Current<S>,
        ready: Vec<Ready>,
        done: &mut Refreshed,
    ) -> Result<(), PoolError> {
        let mut replace = self.replaces(current, &ready).await?;
        let mut ready = ready.into_iter().peekable();
        while ready.peek().is_some() {
            let (records, packages): (Vec<_>, Vec<_>) =
                ready.by_ref().take(MAX_UPLOAD).map(|r| (r.record, r.encoding)).unzip();
            let answer = if std::mem::take(&mut replace) {
                self.client.upload_replacing_other_credentials(packages).await?
            } else {
                self.client.upload(packages).await?
            };
            let verdicts = self.blocking(move |inner| inner.settle(records, &answer.results));
            let (uploaded, refused) = verdicts.await?;
            done.uploaded += uploaded;
            done.refused.extend(refused);
            done.status = answer.status.ok_or(PoolError::Answer("an upload without a status"))?;
        }
        Ok(())
    }

    /// Whether the first call is to withdraw the packages of other credentials: when there are
    /// any, and it does not take those of a current one for such.
    async fn replaces(
        self: &Arc<Self>,
        current: &Current<S>,
        ready: &[Ready],
    ) -> Result<bool, PoolError> {
        let first = &ready[..ready.len().min(MAX_UPLOAD)];
        let all = current
            .digests
            .iter()
            .all(|digest| first.iter().any(|ready| ready.record.identity == digest));
        if !all {
            return Ok(false);
        }
        let digests = current.digests.clone();
        let other = move |r: &PackageRecord| is_live(r) && !digests.contains(&r.identity);
        self.blocking(move |inner| Ok(inner.metadata.packages()?.iter().any(other))).await
    }

    /// Records what was accepted, and deletes and forgets what was refused.
    fn settle(
        &self,
        records: Vec<PackageRecord>,
        results: &[v1::UploadResult],
    ) -> Result<(usize, Vec<RefusedPackage>), PoolError> {
        if results.len() != records.len() {
            return Err(PoolError::Answer("not one result for each package"));
        }
        let mut uploaded = 0;
        let mut published = Vec::new();
        let mut refused = Vec::new();
        for (record, result) in records.into_iter().zip(results) {
            if !result.key_package_ref.is_empty()
                && result.key_package_ref != record.key_package_ref
            {
                return Err(PoolError::Answer("a result for another package"));
            }
            let rejected = match (result.accepted(), result.rejected()) {
                (Some(_), _) => None,
                (_, Some(rejected)) => Some(rejected),
                (None, None) => return Err(PoolError::Answer("a result without an outcome")),
            };
            let publish = PackageRecord { state: PackageState::Published, ..record.clone() };
            match rejected.map(|rejected| (rejected.reason(), rejected)) {
                None => {
                    uploaded += 1;
                    published.push(publish);
                }
                // What the server says of a package that it had before a crash on this side, and
                // has issued since: its Welcome may be on its way.
                Some((v1::RejectReason::AlreadyUsed, _)) => published.push(publish),
                // It names a package of this call, which has a verdict of its own.
                Some((v1::RejectReason::DuplicateInRequest, _)) => {}
                Some((reason, rejected)) => refused.push(RefusedPackage {
                    key_package_ref: record.key_package_ref,
                    reason,
                    message: rejected.message.clone(),
                }),
            }
        }
        self.record(&published)?;
        let gone: Vec<_> = refused.iter().map(|refused| refused.key_package_ref.clone()).collect();
        self.with_provider(|provider| gone.iter().try_for_each(|r| keys::delete(provider, r)))?;
        self.forget(&gone)?;
        Ok((uploaded, refused))
    }

    /// Retires last resort packages that the server has replaced, and answers how many.
    async fn retire_replaced(
        self: &Arc<Self>,
        status: &v1::PoolStatus,
    ) -> Result<usize, PoolError> {
        let of_server: HashMap<u32, Bytes> = status
            .cipher_suites
            .iter()
            .filter_map(|suite| {
                let last_resort = suite.last_resort.as_ref()?;
                Some((suite.cipher_suite, last_resort.key_package_ref.clone()))
            })
            .collect();
        let is_replaced = move |record: &PackageRecord| {
            record.last_resort
                && record.state == PackageState::Published
                && of_server.get(&record.cipher_suite.into()) != Some(&record.key_package_ref)
        };
        self.blocking(move |inner| {
            let mut records = inner.metadata.packages()?;
            records.retain(is_replaced);
            inner.retire(records)
        })
        .await
    }

    /// Withdraws the packages of earlier credentials and of cipher suites that were given up, each
    /// once there is one to take its place, and answers how many.
    async fn retire_outdated(self: &Arc<Self>, current: &Current<S>) -> Result<usize, PoolError> {
        let records = self.blocking(|inner| Ok(inner.metadata.packages()?)).await?;
        let in_place = |cipher_suite| {
            let configured = current.suites().any(|(_, _, suite)| u16::from(suite) == cipher_suite);
            let published = |r: &PackageRecord| {
                r.cipher_suite == cipher_suite
                    && r.state == PackageState::Published
                    && current.has(r)
            };
            !configured || records.iter().any(published)
        };
        let outdated =
            |r: &&PackageRecord| is_live(r) && !current.has(r) && in_place(r.cipher_suite);
        let outdated: Vec<_> = records.iter().filter(outdated).cloned().collect();
        if outdated.is_empty() {
            return Ok(0);
        }
        self.revoke(&refs(&outdated)).await?;
        self.blocking(move |inner| inner.retire(outdated)).await
    }

    fn record(&self, records: &[PackageRecord]) -> Result<(), PoolError> {
        if records.is_empty() {
            return Ok(()); // not even an empty transaction, which would wait for the disk
        }
        Ok(self.metadata.put_packages(records)?)
    }

    fn forget(&self, refs: &[Bytes]) -> Result<(), PoolError> {
        if refs.is_empty() {
            return Ok(());
        }
        Ok(self.metadata.remove_packages(refs)?)
    }

    /// From now on the private keys wait for a Welcome only, and not for long.
    fn retire(&self, mut records: Vec<PackageRecord>) -> Result<usize, PoolError> {
        let until = self.options.now().saturating_add(self.options.welcome_grace.as_secs());
        for record in &mut records {
            record.state = PackageState::Retired { until };
        }
        self.record(&records)?;
        Ok(records.len())
    }
}

fn refs(records: &[PackageRecord]) -> Vec<Bytes> {
    records.iter().map(|record| record.key_package_ref.clone()).collect()
}
