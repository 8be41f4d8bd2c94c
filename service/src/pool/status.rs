//! An owner asks how its pool stands.

use super::KeyPool;
use crate::{
    domain::{error::Error, ids::ClientKey, pool::PoolStatus},
    store::PoolCounts,
};

impl KeyPool {
    /// How the pool of `owner` stands, and what to do about it.
    ///
    /// # Errors
    /// When the store cannot do it.
    pub async fn status(&self, owner: &ClientKey) -> Result<PoolStatus, Error> {
        let PoolCounts { last_upload, suites } =
            self.store.status(owner, self.policy.lapse).await?;
        Ok(self.policy.status(last_upload, suites, rand::random()))
    }
}
