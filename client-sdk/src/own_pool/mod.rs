mod current;
mod error;
mod health;
mod identity;
mod keys;
mod options;
mod plan;
mod refresh;
mod run;
mod upload;
mod withdraw;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use openmls::prelude::OpenMlsProvider;
use openmls_traits::signatures::Signer;
use tokio::sync::{Mutex as AsyncMutex, Notify, OwnedMutexGuard, watch};

pub use error::PoolError;
pub use health::{Failure, PoolHealth};
pub use identity::Identity;
pub use options::PoolOptions;
pub use refresh::{Refreshed, RefusedPackage};
pub use run::Running;

use crate::{Client, MetadataStore};

/// The pool of KeyPackages that this device keeps on the server.
///
/// The private keys live in OpenMLS's storage alone, and the pool sees to this: for every package
/// that the server may still issue, the device holds the private keys; for every other, it does
/// not, save for those a Welcome may be on its way for. [`OwnPool::refresh`] makes it so after
/// whatever happened, a crash between any two of its own steps included:
///
/// * Private keys go when their package is refused, expires, or was withdrawn a while ago
///   ([`PoolOptions::welcome_grace`]). A package's own Welcome takes them out of OpenMLS's storage.
/// * A package whose private keys are gone, as after its Welcome, is withdrawn from the server.
///   An adder that dies before its Spend cannot make the server issue it to another, who would
///   invite in vain.
/// * When the server has packages that the device knows nothing of, as after a reinstall, it is
///   told to withdraw everything.
/// * What was recorded and not uploaded is uploaded, and then fresh packages up to the target.
/// * The last resort package is replaced when it was issued, or half of its lifetime is over.
///
/// # Process Welcomes in one transaction
///
/// OpenMLS deletes the private keys as it reads a Welcome, before the group is stored. On a
/// storage that can, make one transaction of both, or else a crash between them loses the
/// invitation. Hold the provider's lock as long. Then call [`OwnPool::after_welcome`].
///
/// # Forward secrecy on SQLite
///
/// SQLite leaves what was deleted in the file until the space is needed again. Set
/// `PRAGMA secure_delete = ON` on the connection that OpenMLS's storage uses, and
/// `PRAGMA synchronous = FULL`, so that a power cut takes no key whose package was uploaded.
///
/// Cheap to clone; clones are one pool. Only one pool at a time may keep the packages of a client.
pub struct OwnPool<P, S> {
    inner: Arc<Inner<P, S>>,
}

struct Inner<P, S> {
    client: Client,
    provider: Arc<Mutex<P>>,
    metadata: Box<dyn MetadataStore>,
    options: PoolOptions,
    /// One refresh at a time holds it.
    identities: Arc<AsyncMutex<Identities<S>>>,
    nudge: Notify,
    health: watch::Sender<PoolHealth>,
}

type Identities<S> = Arc<Vec<Identity<S>>>;

impl<P, S> OwnPool<P, S>
where
    P: OpenMlsProvider + Send + 'static,
    S: Signer + Send + Sync + 'static,
{
    /// A pool with the default options, for packages of one identity.
    ///
    /// The provider is shared with the application, which locks it for its own use of OpenMLS. A
    /// second provider on the same storage does as well.
    ///
    /// # Errors
    /// As [`OwnPool::with_options`].
    pub fn new(
        client: Client,
        provider: Arc<Mutex<P>>,
        metadata: impl MetadataStore + 'static,
        identity: Identity<S>,
    ) -> Result<Self, PoolError> {
        Self::with_options(client, provider, metadata, vec![identity], PoolOptions::default())
    }

    /// A pool for packages of several identities: one for each signature scheme.
    ///
    /// # Errors
    /// [`PoolError::Options`] when the options do not fit together, or the identities name no
    /// cipher suite, one twice, or one of another signature scheme than their signer's.
    pub fn with_options(
        client: Client,
        provider: Arc<Mutex<P>>,
        metadata: impl MetadataStore + 'static,
        identities: Vec<Identity<S>>,
        options: PoolOptions,
    ) -> Result<Self, PoolError> {
        options.check()?;
        check(&identities)?;
        let inner = Inner {
            client,
            provider,
            metadata: Box::new(metadata),
            options,
            identities: Arc::new(AsyncMutex::new(Arc::new(identities))),
            nudge: Notify::new(),
            health: watch::Sender::new(PoolHealth::default()),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Brings the pool, the private keys and the metadata into order; see [`OwnPool`].
    ///
    /// It may be repeated at any time. Refreshes of one pool take turns. One that has begun goes
    /// on when this future is dropped. The device's own side is brought into order even when the
    /// server cannot be reached.
    ///
    /// # Errors
    /// Any of [`PoolError`]. What was not done is left to the next refresh. Packages that the
    /// server refused are no error: see [`Refreshed::refused`].
    pub async fn refresh(&self) -> Result<Refreshed, PoolError> {
        let turn = Arc::clone(&self.inner.identities).lock_owned().await;
        self.refresh_in_turn(turn).await
    }

    /// Goes over to new credentials or signature keys: uploads fresh packages for them and, in
    /// the same transaction on the server, withdraws those of the earlier ones. The pool is never
    /// empty meanwhile. The private keys of what was withdrawn stay for
    /// [`PoolOptions::welcome_grace`].
    ///
    /// Store the new signature keys first, and begin with them at the next start: the identities
    /// hold from now on, whether this succeeds or not, and any refresh finishes what is missing.
    ///
    /// # Errors
    /// As [`OwnPool::refresh`], and [`PoolError::Options`] as [`OwnPool::with_options`].
    pub async fn rotate_credential(
        &self,
        identities: Vec<Identity<S>>,
    ) -> Result<Refreshed, PoolError> {
        check(&identities)?;
        let mut turn = Arc::clone(&self.inner.identities).lock_owned().await;
        *turn = Arc::new(identities);
        self.refresh_in_turn(turn).await
    }

    /// Tells the pool that a Welcome was processed: its package is withdrawn and replaced, by
    /// [`OwnPool::run`] in the background. Several within a second are one occasion.
    pub fn after_welcome(&self) {
        self.inner.nudge.notify_one();
    }

    /// How the pool does, after each refresh and whatever the server tells about it.
    pub fn health(&self) -> watch::Receiver<PoolHealth> {
        self.inner.health.subscribe()
    }

    /// A task of its own: it ends even if nobody waits, and catches panics of what it calls.
    async fn refresh_in_turn(
        &self,
        turn: OwnedMutexGuard<Identities<S>>,
    ) -> Result<Refreshed, PoolError> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| PoolError::NoRuntime)?;
        let inner = Arc::clone(&self.inner);
        let work = runtime.spawn(async move {
            let refreshed = refresh::refresh(&inner, &turn).await;
            drop(turn);
            refreshed
        });
        let refreshed = work.await.unwrap_or(Err(PoolError::Panicked));
        self.inner.health.send_modify(|health| health.record(&refreshed, self.inner.options.now()));
        refreshed
    }
}

impl<P, S> Inner<P, S>
where
    P: OpenMlsProvider + Send + 'static,
    S: Send + Sync + 'static,
{
    /// Work on the storages, which block, off the threads of the runtime.
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, PoolError> + Send + 'static,
    ) -> Result<T, PoolError> {
        let inner = Arc::clone(self);
        let work = tokio::task::spawn_blocking(move || work(&inner));
        work.await.unwrap_or(Err(PoolError::Panicked))
    }

    /// The lock is held for the work alone, never while the network is waited for.
    fn with_provider<T>(&self, work: impl FnOnce(&P) -> T) -> T {
        // What another's panic left in a storage, its transactions answer for.
        work(&self.provider.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn check<S: Signer>(identities: &[Identity<S>]) -> Result<(), PoolError> {
    let mut seen = Vec::new();
    for identity in identities {
        if identity.cipher_suites.is_empty() {
            return Err(PoolError::Options("an identity must have a cipher suite"));
        }
        for &suite in &identity.cipher_suites {
            if suite.signature_algorithm() != identity.signer.signature_scheme() {
                return Err(PoolError::Options(
                    "the signer's signature scheme is not that of the cipher suite",
                ));
            }
            if seen.contains(&suite) {
                return Err(PoolError::Options("a cipher suite must be named once"));
            }
            seen.push(suite);
        }
    }
    if seen.is_empty() {
        return Err(PoolError::Options("there must be an identity"));
    }
    Ok(())
}

impl<P, S> Clone for OwnPool<P, S> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<P, S> fmt::Debug for OwnPool<P, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnPool").field("options", &self.inner.options).finish_non_exhaustive()
    }
}
