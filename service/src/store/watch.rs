//! Telling all replicas which pools' owners should hear how they stand.

use std::time::Duration;

use sqlx::{
    Executor as _,
    postgres::{PgListener, PgPoolOptions},
};
use tokio::time::timeout;

use super::{Store, burns, row};
use crate::domain::{
    error::Error,
    ids::{Bucket, ClientDigest, ClientKey},
    policy::LapsePolicy,
};

const CHANNEL: &str = "keypool_pool";

/// Hears what the replicas tell.
#[derive(Debug)]
pub struct Listener {
    connection: PgListener,
    silence: Duration,
    store: Store,
}

impl Listener {
    /// The next pool whose owner should hear how it stands.
    ///
    /// # Errors
    /// When the connection is lost. What is told until another one listens is not heard.
    pub async fn next(&mut self) -> Result<ClientDigest, Error> {
        let told = loop {
            match timeout(self.silence, self.connection.try_recv()).await {
                Ok(told) => {
                    break told.map_err(|error| self.store.error(error))?.ok_or_else(lost)?;
                }
                // Silence is usual, and so it would not show that the other end is gone.
                Err(_) => timeout(self.silence, self.connection.execute("SELECT 1"))
                    .await
                    .map_err(|_| lost())?
                    .map_err(|error| self.store.error(error))?,
            };
        };
        u128::from_str_radix(told.payload(), 16)
            .map(|digest| ClientDigest(digest.to_be_bytes()))
            .map_err(|_| row::impossible("a notification that is none"))
    }
}

fn lost() -> Error {
    Error::StoreUnavailable(anyhow::anyhow!("the connection that listens is lost"))
}

impl Store {
    /// Starts to listen, on a connection of its own. After each `silence` the connection has as
    /// long again to prove that it lives.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn listen(&self, silence: Duration) -> Result<Listener, Error> {
        // A pool of its own: a lost connection may hold its place for long.
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(self.pool.options().get_acquire_timeout())
            .connect_lazy_with((*self.pool.connect_options()).clone());
        let connection = PgListener::connect_with(&pool).await;
        let mut connection = connection.map_err(|error| self.error(error))?;
        // Its own way to reconnect must not be cut off, as `next` would.
        connection.eager_reconnect(false);
        connection.listen(CHANNEL).await.map_err(|error| self.error(error))?;
        Ok(Listener { connection, silence, store: self.clone() })
    }

    /// Tells of those among `pools` that are at or below the low watermark or are to be told of
    /// in any case. Answers how many that were.
    ///
    /// # Errors
    /// When the database cannot do it.
    pub async fn tell(
        &self,
        pools: &[(ClientKey, bool)],
        lapse: LapsePolicy,
        low_watermark: u32,
    ) -> Result<u64, Error> {
        let buckets: Vec<i16> = pools.iter().map(|(k, _)| Bucket::of(&k.user).get()).collect();
        let users: Vec<String> = pools.iter().map(|(key, _)| key.user.to_string()).collect();
        let clients: Vec<String> = pools.iter().map(|(key, _)| key.client.to_string()).collect();
        let payloads: Vec<String> = pools
            .iter()
            .map(|(key, _)| format!("{:032x}", u128::from_be_bytes(key.digest().0)))
            .collect();
        let anyway: Vec<bool> = pools.iter().map(|(_, anyway)| *anyway).collect();
        let told = sqlx::query_file_scalar!(
            "src/store/sql/notify.sql",
            self.imposed_now(),
            &buckets,
            &users,
            &clients,
            &payloads,
            &anyway,
            burns(lapse),
            row::bounded(low_watermark),
        )
        .fetch_one(&self.owner_pool)
        .await
        .map_err(|error| self.error(error))?;
        Ok(told.unsigned_abs())
    }
}
