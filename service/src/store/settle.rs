//! Spend and Release: the two ways a holder ends its reservations.

use std::sync::Arc;

use sqlx::PgConnection;

use super::{
    MAX_ROUNDS, Store, lost_race,
    row::{self, KeyColumns},
    settle_jobs::{ReleaseCall, SettleColumns, SpendCall, SpendHeld},
};
use crate::domain::{
    error::Error,
    ids::{ClientKey, GroupId, KeyPackageRef},
    policy::LapsePolicy,
    reservation_id::Locator,
};

/// What one call settles.
#[derive(Debug)]
pub struct SettleBatch {
    /// Whose reservations.
    pub caller: ClientKey,
    /// Which, each once.
    pub reservations: Vec<Locator>,
}

/// How one reservation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// Whether an earlier call had ended it so.
    pub already: bool,
    /// The package's ref, where the call asks for it.
    pub key_package_ref: Option<KeyPackageRef>,
}

/// What a statement says of one reservation.
#[derive(Debug)]
pub(super) struct SettleRow {
    /// Which of the statement, from 1.
    pub(super) ord: i64,
    pub(super) outcome: String,
    pub(super) key_package_ref: Option<Vec<u8>>,
}

/// Which end.
#[derive(Debug, Clone)]
enum End {
    Spend(GroupId),
    Release(LapsePolicy),
}

impl Store {
    /// Spends reservations for the group they were made for: all or none, in one transaction; one
    /// outcome for each.
    ///
    /// # Errors
    /// [`Error::ReservationLost`], [`Error::ReservationNotHeld`], [`Error::GroupMismatch`],
    /// [`Error::ReservationUnknown`] for another's, or when the database cannot do it. Nothing is
    /// spent then.
    pub async fn spend(
        &self,
        batch: &Arc<SettleBatch>,
        group_id: &GroupId,
    ) -> Result<Vec<Settled>, Error> {
        self.settle(batch, &End::Spend(group_id.clone())).await
    }

    /// Hands reservations back: all or none, in one transaction; one outcome for each.
    ///
    /// # Errors
    /// [`Error::ReservationNotHeld`] when one was spent, [`Error::ReservationUnknown`] for
    /// another's, or when the database cannot do it. Nothing is released then.
    pub async fn release(
        &self,
        batch: &Arc<SettleBatch>,
        lapse: LapsePolicy,
    ) -> Result<Vec<Settled>, Error> {
        self.settle(batch, &End::Release(lapse)).await
    }

    async fn settle(&self, batch: &Arc<SettleBatch>, end: &End) -> Result<Vec<Settled>, Error> {
        let grants = batch.reservations.iter().any(Locator::is_last_resort);
        if let (End::Spend(group_id), [_], false) = (end, &batch.reservations[..], grants) {
            let call = SpendHeld { batch: batch.clone(), group_id: group_id.clone() };
            if let Some(spent) = self.spends_held.call(self, call).await? {
                return Ok(vec![Settled { already: false, key_package_ref: Some(spent) }]);
            }
        }
        for _ in 0..MAX_ROUNDS {
            let rows = match (grants, end) {
                (true, _) => match self.settle_with_grants(batch, end).await {
                    Err(error) if lost_race(&error) => continue,
                    other => other.map_err(|error| self.error(error))?,
                },
                (false, End::Spend(group_id)) => {
                    let call = SpendCall { batch: batch.clone(), group_id: group_id.clone() };
                    self.spends.call(self, call).await?
                }
                (false, End::Release(lapse)) => {
                    let call = ReleaseCall { batch: batch.clone(), lapse: *lapse };
                    self.releases.call(self, call).await?
                }
            };
            if let Some(settled) = judge(rows, batch.reservations.len())? {
                return Ok(settled);
            }
        }
        Err(Error::Overloaded)
    }

    /// Last resort grants, which are rare, go alone: one statement for them and one for the
    /// packages, in a transaction.
    async fn settle_with_grants(
        &self,
        batch: &Arc<SettleBatch>,
        end: &End,
    ) -> Result<Vec<SettleRow>, sqlx::Error> {
        let numbered = || (0_i32..).zip(&batch.reservations);
        let (grants, packages): (Vec<_>, Vec<_>) =
            numbered().partition(|(_, locator)| locator.is_last_resort());
        let mut transaction = self.pool.begin().await?;
        let mut columns = SettleColumns::default();
        columns.extend(batch, packages.iter().map(|&(_, locator)| (0, locator)));
        let mut rows = match end {
            _ if packages.is_empty() => Vec::new(),
            End::Spend(group_id) => {
                let group_ids = vec![group_id.as_bytes(); packages.len()];
                self.spend_packages(&mut transaction, &columns, &group_ids).await?
            }
            End::Release(lapse) => {
                self.release_packages(&mut transaction, &columns, *lapse).await?
            }
        };
        // From the place among the packages, which the statement numbered, to that in the call.
        for row in &mut rows {
            let place = usize::try_from(row.ord - 1).ok().and_then(|at| packages.get(at));
            row.ord = place.map_or(0, |(ord, _)| i64::from(*ord));
        }
        let grants: KeyColumns = grants.into_iter().collect();
        rows.extend(self.settle_grants(&mut transaction, &batch.caller, end, &grants).await?);
        if rows.iter().all(SettleRow::ends) {
            transaction.commit().await?;
        } else {
            transaction.rollback().await?;
        }
        rows.sort_by_key(|row| row.ord);
        Ok(rows)
    }

    async fn settle_grants(
        &self,
        connection: &mut PgConnection,
        caller: &ClientKey,
        end: &End,
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

impl SettleRow {
    /// Whether the call, were it for this reservation alone, takes effect.
    fn ends(&self) -> bool {
        matches!(&*self.outcome, "spend" | "spend_late" | "release" | "settle" | "already")
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
                "unknown" => return Err(Error::ReservationUnknown),
                "group_mismatch" => return Err(Error::GroupMismatch),
                _ => return Err(row::impossible("an unknown outcome of a settlement")),
            };
            Ok(Settled { already, key_package_ref: row.key_package_ref.map(KeyPackageRef) })
        })
        .collect();
    settled.map(Some)
}
