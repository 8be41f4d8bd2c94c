//! Spend and Release: the two ways a holder ends its reservations.

use sqlx::{Acquire as _, PgConnection};

use super::{
    MAX_ROUNDS, Store, burns, lost_race,
    row::{self, KeyColumns},
};
use crate::domain::{
    error::Error,
    ids::{ClientKey, GroupId, KeyPackageRef},
    policy::LapsePolicy,
    reservation_id::Locator,
};

/// What one call settles.
#[derive(Debug)]
pub struct SettleBatch<'a> {
    /// Whose reservations.
    pub caller: &'a ClientKey,
    /// Which, each once.
    pub reservations: &'a [Locator],
}

/// How one reservation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// Whether an earlier call had ended it so.
    pub already: bool,
    /// The package's ref, where the call asks for it.
    pub key_package_ref: Option<KeyPackageRef>,
}

#[derive(Debug)]
struct SettleRow {
    ord: i32,
    outcome: String,
    settled: bool,
    key_package_ref: Option<Vec<u8>>,
}

/// Which end.
#[derive(Debug, Clone, Copy)]
enum End<'a> {
    Spend(&'a GroupId),
    Release(LapsePolicy),
}

impl Store {
    /// Spends reservations for the group they were made for: all or none, in one transaction; one
    /// outcome for each.
    ///
    /// # Errors
    /// [`Error::ReservationLost`], [`Error::ReservationNotHeld`], [`Error::GroupMismatch`], or
    /// when the database cannot do it. Nothing is spent then.
    pub async fn spend(
        &self,
        batch: &SettleBatch<'_>,
        group_id: &GroupId,
    ) -> Result<Vec<Settled>, Error> {
        self.settle(batch, End::Spend(group_id)).await
    }

    /// Hands reservations back: all or none, in one transaction; one outcome for each.
    ///
    /// # Errors
    /// [`Error::ReservationNotHeld`] when one was spent, or when the database cannot do it.
    /// Nothing is released then.
    pub async fn release(
        &self,
        batch: &SettleBatch<'_>,
        lapse: LapsePolicy,
    ) -> Result<Vec<Settled>, Error> {
        self.settle(batch, End::Release(lapse)).await
    }

    async fn settle(&self, batch: &SettleBatch<'_>, end: End<'_>) -> Result<Vec<Settled>, Error> {
        for _ in 0..MAX_ROUNDS {
            let rows = match self.settle_once(batch, end).await {
                Err(error) if lost_race(&error) => continue,
                other => other.map_err(|error| self.error(error))?,
            };
            if let Some(settled) = judge(rows, batch.reservations.len())? {
                return Ok(settled);
            }
        }
        Err(Error::Overloaded)
    }

    /// One statement, or one for each kind of reservation in a transaction.
    async fn settle_once(
        &self,
        batch: &SettleBatch<'_>,
        end: End<'_>,
    ) -> Result<Vec<SettleRow>, sqlx::Error> {
        let numbered = || (0_i32..).zip(batch.reservations);
        let grants: KeyColumns = numbered().filter(|(_, l)| l.is_last_resort()).collect();
        let packages: KeyColumns = numbered().filter(|(_, l)| !l.is_last_resort()).collect();
        let mut connection = self.pool.acquire().await?;
        if grants.ord.is_empty() {
            return self.settle_packages(&mut connection, batch.caller, end, &packages).await;
        }
        if packages.ord.is_empty() {
            return self.settle_grants(&mut connection, batch.caller, end, &grants).await;
        }
        let mut transaction = connection.begin().await?;
        let mut rows = self.settle_packages(&mut transaction, batch.caller, end, &packages).await?;
        rows.extend(self.settle_grants(&mut transaction, batch.caller, end, &grants).await?);
        if rows.iter().all(|row| row.settled) {
            transaction.commit().await?;
        } else {
            transaction.rollback().await?;
        }
        rows.sort_by_key(|row| row.ord);
        Ok(rows)
    }

    async fn settle_packages(
        &self,
        connection: &mut PgConnection,
        caller: &ClientKey,
        end: End<'_>,
        keys: &KeyColumns,
    ) -> Result<Vec<SettleRow>, sqlx::Error> {
        match end {
            End::Spend(group_id) => {
                sqlx::query_file_as!(
                    SettleRow,
                    "src/store/sql/spend.sql",
                    self.imposed_now(),
                    &caller.digest().0[..],
                    caller.user.as_str(),
                    caller.client.as_str(),
                    group_id.as_bytes(),
                    &keys.ord,
                    &keys.bucket,
                    &keys.pool_id,
                    &keys.cipher_suite,
                    &keys.seq,
                    &keys.generation,
                )
                .fetch_all(connection)
                .await
            }
            End::Release(lapse) => {
                sqlx::query_file_as!(
                    SettleRow,
                    "src/store/sql/release.sql",
                    self.imposed_now(),
                    &caller.digest().0[..],
                    caller.user.as_str(),
                    caller.client.as_str(),
                    burns(lapse),
                    &keys.ord,
                    &keys.bucket,
                    &keys.pool_id,
                    &keys.cipher_suite,
                    &keys.seq,
                    &keys.generation,
                )
                .fetch_all(connection)
                .await
            }
        }
    }

    async fn settle_grants(
        &self,
        connection: &mut PgConnection,
        caller: &ClientKey,
        end: End<'_>,
        keys: &KeyColumns,
    ) -> Result<Vec<SettleRow>, sqlx::Error> {
        let (group_id, state) = match end {
            End::Spend(group_id) => (Some(group_id.as_bytes()), "spent"),
            End::Release(_) => (None, "released"),
        };
        sqlx::query_file_as!(
            SettleRow,
            "src/store/sql/settle_grants.sql",
            self.imposed_now(),
            &caller.digest().0[..],
            caller.user.as_str(),
            caller.client.as_str(),
            group_id,
            state,
            &keys.ord,
            &keys.bucket,
            &keys.pool_id,
            &keys.cipher_suite,
            &keys.seq,
        )
        .fetch_all(connection)
        .await
    }
}

/// The outcomes; `None` when one of them takes another look; the first failure otherwise.
fn judge(rows: Vec<SettleRow>, expected: usize) -> Result<Option<Vec<Settled>>, Error> {
    if rows.len() != expected {
        return Err(row::impossible("fewer outcomes than reservations"));
    }
    if rows.iter().any(|row| row.outcome == "raced") {
        return Ok(None);
    }
    let settled: Result<Vec<Settled>, Error> = rows
        .into_iter()
        .map(|row| {
            let already = match row.outcome.as_str() {
                "spend" | "spend_late" | "release" | "settle" => false,
                "already" => true,
                "lost" => return Err(Error::ReservationLost),
                "not_held" => return Err(Error::ReservationNotHeld),
                "group_mismatch" => return Err(Error::GroupMismatch),
                _ => return Err(row::impossible("an unknown outcome of a settlement")),
            };
            Ok(Settled { already, key_package_ref: row.key_package_ref.map(KeyPackageRef) })
        })
        .collect();
    settled.map(Some)
}
