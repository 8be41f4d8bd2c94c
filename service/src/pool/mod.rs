//! The use cases: domain in, domain out. Each asks the policy and calls one verb of the store.

mod events;
mod reserve;
mod revoke;
mod sample;
mod settle;
mod status;
mod sweep;
mod turns;
mod upload;
mod watch;

use std::sync::Arc;

use crate::{
    domain::{
        clock::Clock, error::Error, key_package::UploadPolicy, policy::PoolPolicy,
        reservation_id::ReservationKey,
    },
    store::Store,
};

pub use crate::store::{EventPools, Revoked};
pub use events::{EventPage, EventRequest};
pub use reserve::{MAX_CLIENTS, Reservation, ReserveRequest, ReserveResult, Target, Unavailable};
pub use revoke::Selection;
pub use settle::{Released, Spent};
pub use sweep::{SweepPolicy, SweepReport};
pub use upload::{UploadMode, UploadOutcome, UploadResult};
pub use watch::WatchLimits;

/// All pools, and the rules that hold for them.
#[derive(Debug, Clone)]
pub struct KeyPool {
    store: Store,
    clock: Arc<dyn Clock>,
    policy: Arc<PoolPolicy>,
    upload_policy: Arc<UploadPolicy>,
    reservation_key: Arc<ReservationKey>,
    validation: Arc<tokio::sync::Semaphore>,
    watch: Arc<watch::Hub>,
    turns: Arc<turns::Turns>,
}

impl KeyPool {
    /// The pools in `store`, whose schema is up to date.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn open(
        store: Store,
        clock: Arc<dyn Clock>,
        policy: PoolPolicy,
        mut upload_policy: UploadPolicy,
    ) -> Result<Self, Error> {
        // Neither changes while a server runs: `keypool after-restore` wants them all stopped.
        upload_policy.made_since = store.packages_from().await?;
        let secret = store.reservation_secret(rand::random()).await?;
        // Validation takes a core for as long as it runs: leave the others to everything else.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            store,
            clock,
            policy: Arc::new(policy),
            upload_policy: Arc::new(upload_policy),
            reservation_key: Arc::new(ReservationKey::new(&secret)),
            validation: Arc::new(tokio::sync::Semaphore::new(cores)),
            watch: Arc::default(),
            turns: Arc::default(),
        })
    }

    /// The store behind the pools.
    pub fn store(&self) -> &Store {
        &self.store
    }
}

/// A random number above 0, for a row that the service names.
fn random_id() -> i64 {
    rand::random_range(1..=i64::MAX)
}
