//! What a refresh publishes. It is recorded before it exists, and made before it is uploaded.

use std::sync::Arc;

use bytes::Bytes;
use openmls::prelude::{Lifetime, OpenMlsProvider};
use openmls_traits::signatures::Signer;

use super::{
    Inner, PoolError, Refreshed, RefusedPackage,
    current::Current,
    keys::{self, Made},
    plan::{is_current, is_live, missing},
};
use crate::{PackageRecord, PackageState, v1};

/// What one call of the contract may carry.
const MAX_UPLOAD: usize = 100;

/// How far the packages' `not_before` lies in the past, for clocks that differ.
const CLOCK_SKEW_SECONDS: u64 = 60 * 60;

/// A package that is ready to be uploaded.
pub(super) struct Ready {
    record: PackageRecord,
    encoding: Bytes,
}

impl<P, S> Inner<P, S>
where
    P: OpenMlsProvider + Send + 'static,
    S: Signer + Send + Sync + 'static,
{
    /// What is to be uploaded, in the order in which it is: what was prepared before, then fresh
    /// packages, which are recorded, made and stored here. The identities take turns, so that
    /// each is in the first call.
    pub(super) fn prepare(
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
    pub(super) async fn upload(
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
}
