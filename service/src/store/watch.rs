//! Telling all replicas which pools' owners should hear how they stand.

use sqlx::postgres::PgListener;

use super::{Store, burns, row};
use crate::domain::{
    error::Error,
    ids::{Bucket, ClientDigest, ClientKey},
    policy::LapsePolicy,
};

const CHANNEL: &str = "keypool_pool";

/// What a listener hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// The owner of this pool should hear how it stands.
    Pool(ClientDigest),
    /// The connection was lost for a while: anything may have happened.
    Gap,
}

/// Hears what the replicas tell.
#[derive(Debug)]
pub struct Listener(PgListener, Store);

impl Listener {
    /// The next that is told. Reconnects by itself.
    ///
    /// # Errors
    /// When the database cannot be reached; the caller may try again.
    pub async fn next(&mut self) -> Result<Heard, Error> {
        let Some(told) = self.0.try_recv().await.map_err(|error| self.1.error(error))? else {
            return Ok(Heard::Gap);
        };
        u128::from_str_radix(told.payload(), 16)
            .map(|digest| Heard::Pool(ClientDigest(digest.to_be_bytes())))
            .map_err(|_| row::impossible("a notification that is none"))
    }
}

impl Store {
    /// Starts to listen, on a connection of its own.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn listen(&self) -> Result<Listener, Error> {
        let mut listener =
            PgListener::connect_with(&self.side_pool).await.map_err(|error| self.error(error))?;
        listener.listen(CHANNEL).await.map_err(|error| self.error(error))?;
        Ok(Listener(listener, self.clone()))
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
        .fetch_one(&self.pool)
        .await
        .map_err(|error| self.error(error))?;
        Ok(told.unsigned_abs())
    }
}
