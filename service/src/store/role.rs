//! The database role that a store works as.

use super::Store;
use crate::domain::error::Error;

impl Store {
    /// Why this role is not one to serve as, in words; nothing for one that was granted
    /// `keypool_service` alone. What a server cannot do, nobody can who takes it over: change the
    /// event log, or become the owner of the tables.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn role_faults(&self) -> Result<Vec<String>, Error> {
        sqlx::query_file_scalar!("src/store/sql/role_faults.sql")
            .fetch_all(&self.pool)
            .await
            .map_err(|error| self.error(error))
    }
}
