//! What a refresh takes back. It is forgotten after it is gone, on the server and from the storage
//! of the private keys.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use openmls::prelude::OpenMlsProvider;
use openmls_traits::signatures::Signer;

use super::{
    Inner, PoolError,
    current::Current,
    keys,
    plan::{has_strangers, is_live},
};
use crate::{PackageRecord, PackageState, v1};

/// What one call of the contract may carry.
const MAX_REVOKE: usize = 1_000;

impl<P, S> Inner<P, S>
where
    P: OpenMlsProvider + Send + 'static,
    S: Signer + Send + Sync + 'static,
{
    /// Deletes what is over its time, and answers how many those were, and the refs of the
    /// packages whose private keys are gone.
    pub(super) fn expire(&self) -> Result<(usize, Vec<Bytes>), PoolError> {
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
    pub(super) async fn withdraw(self: &Arc<Self>, gone: Vec<Bytes>) -> Result<(), PoolError> {
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
    pub(super) async fn drop_strangers(
        self: &Arc<Self>,
        status: &v1::PoolStatus,
    ) -> Result<bool, PoolError> {
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

    /// Retires last resort packages that the server has replaced, and answers how many.
    pub(super) async fn retire_replaced(
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
    pub(super) async fn retire_outdated(
        self: &Arc<Self>,
        current: &Current<S>,
    ) -> Result<usize, PoolError> {
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
