//! One refresh. Whatever is about to exist is recorded before it does, and whatever is about to go
//! is forgotten after it has, so that the next refresh finds all that a crash left behind.

use std::sync::Arc;

use bytes::Bytes;
use openmls::prelude::OpenMlsProvider;
use openmls_traits::signatures::Signer;

use super::{Identity, Inner, PoolError, current::Current};
use crate::{PackageRecord, v1};

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
    pub(super) fn record(&self, records: &[PackageRecord]) -> Result<(), PoolError> {
        if records.is_empty() {
            return Ok(()); // not even an empty transaction, which would wait for the disk
        }
        Ok(self.metadata.put_packages(records)?)
    }

    pub(super) fn forget(&self, refs: &[Bytes]) -> Result<(), PoolError> {
        if refs.is_empty() {
            return Ok(());
        }
        Ok(self.metadata.remove_packages(refs)?)
    }
}
