//! Spend and Release: the two ways a holder ends its reservations.

use std::{convert::Infallible, iter, sync::Arc};

use sqlx::PgConnection;

use super::{
    MAX_ROUNDS, Store,
    batch::Job,
    burns, lost_race,
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
    ord: i64,
    outcome: String,
    key_package_ref: Option<Vec<u8>>,
}

/// Which end.
#[derive(Debug, Clone)]
enum End {
    Spend(GroupId),
    Release(LapsePolicy),
}

/// A call that spends one-time packages.
#[derive(Debug)]
pub(super) struct SpendCall {
    batch: Arc<SettleBatch>,
    group_id: GroupId,
}

/// A call that spends one package, for the statement that knows just the usual case.
#[derive(Debug)]
pub(super) struct SpendHeld {
    batch: Arc<SettleBatch>,
    group_id: GroupId,
}

/// A call that releases one-time packages.
#[derive(Debug)]
pub(super) struct ReleaseCall {
    batch: Arc<SettleBatch>,
    lapse: LapsePolicy,
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
        batch: &Arc<SettleBatch>,
        group_id: &GroupId,
    ) -> Result<Vec<Settled>, Error> {
        self.settle(batch, &End::Spend(group_id.clone())).await
    }

    /// Hands reservations back: all or none, in one transaction; one outcome for each.
    ///
    /// # Errors
    /// [`Error::ReservationNotHeld`] when one was spent, or when the database cannot do it.
    /// Nothing is released then.
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

    async fn spend_packages(
        &self,
        connection: &mut PgConnection,
        columns: &SettleColumns<'_>,
        group_ids: &[&[u8]],
    ) -> Result<Vec<SettleRow>, sqlx::Error> {
        sqlx::query_file_as!(
            SettleRow,
            "src/store/sql/spend.sql",
            self.imposed_now(),
            &columns.keys.ord,
            &columns.keys.bucket,
            &columns.keys.pool_id,
            &columns.keys.cipher_suite,
            &columns.keys.seq,
            &columns.keys.generation,
            &columns.callers() as &[&[u8]],
            &columns.user as &[&str],
            &columns.client as &[&str],
            group_ids as &[&[u8]],
        )
        .fetch_all(connection)
        .await
    }

    async fn release_packages(
        &self,
        connection: &mut PgConnection,
        columns: &SettleColumns<'_>,
        lapse: LapsePolicy,
    ) -> Result<Vec<SettleRow>, sqlx::Error> {
        sqlx::query_file_as!(
            SettleRow,
            "src/store/sql/release.sql",
            self.imposed_now(),
            burns(lapse),
            &columns.keys.ord,
            &columns.keys.bucket,
            &columns.keys.pool_id,
            &columns.keys.cipher_suite,
            &columns.keys.seq,
            &columns.keys.generation,
            &columns.callers() as &[&[u8]],
            &columns.user as &[&str],
            &columns.client as &[&str],
        )
        .fetch_all(connection)
        .await
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

impl Job for SpendHeld {
    const STATEMENT: &str = "spend_held";

    /// The package's ref, if it was spent.
    type Answer = Option<KeyPackageRef>;
    type Claim = Infallible;

    fn rows(&self) -> usize {
        1
    }

    fn goes_with(&self, _: &Self) -> bool {
        true
    }

    /// Nothing: of two that name the same reservation one finds it gone.
    fn claims(&self) -> impl Iterator<Item = Infallible> {
        iter::empty()
    }

    async fn run(
        store: &Store,
        connection: &mut PgConnection,
        jobs: &[&Self],
    ) -> Result<Vec<Option<KeyPackageRef>>, sqlx::Error> {
        let columns = SettleColumns::of_all(jobs.iter().map(|job| &job.batch));
        let group_ids: Vec<&[u8]> = jobs.iter().map(|job| job.group_id.as_bytes()).collect();
        let rows = sqlx::query_file!(
            "src/store/sql/spend_held.sql",
            store.imposed_now(),
            &columns.keys.bucket,
            &columns.keys.pool_id,
            &columns.keys.cipher_suite,
            &columns.keys.seq,
            &columns.keys.generation,
            &columns.callers() as &[&[u8]],
            &columns.user as &[&str],
            &columns.client as &[&str],
            &group_ids as &[&[u8]],
        )
        .fetch_all(connection)
        .await?;
        let mut answers: Vec<Option<KeyPackageRef>> = jobs.iter().map(|_| None).collect();
        for row in rows {
            let place = usize::try_from(row.ord - 1).ok().and_then(|at| answers.get_mut(at));
            let Some(answer) = place else { return Err(sqlx::Error::RowNotFound) };
            *answer = Some(KeyPackageRef(row.key_package_ref));
        }
        Ok(answers)
    }
}

impl Job for SpendCall {
    const STATEMENT: &str = "spend";

    type Answer = Vec<SettleRow>;
    type Claim = Locator;

    fn rows(&self) -> usize {
        self.batch.reservations.len()
    }

    fn goes_with(&self, _: &Self) -> bool {
        true
    }

    fn claims(&self) -> impl Iterator<Item = Locator> {
        self.batch.reservations.iter().copied()
    }

    async fn run(
        store: &Store,
        connection: &mut PgConnection,
        jobs: &[&Self],
    ) -> Result<Vec<Vec<SettleRow>>, sqlx::Error> {
        let columns = SettleColumns::of_all(jobs.iter().map(|job| &job.batch));
        let group_ids: Vec<&[u8]> = jobs
            .iter()
            .flat_map(|job| job.batch.reservations.iter().map(|_| job.group_id.as_bytes()))
            .collect();
        let rows = store.spend_packages(connection, &columns, &group_ids).await?;
        Ok(deal(rows, jobs.iter().map(|job| job.rows())))
    }
}

impl Job for ReleaseCall {
    const STATEMENT: &str = "release";

    type Answer = Vec<SettleRow>;
    type Claim = Locator;

    fn rows(&self) -> usize {
        self.batch.reservations.len()
    }

    fn goes_with(&self, other: &Self) -> bool {
        self.lapse == other.lapse
    }

    fn claims(&self) -> impl Iterator<Item = Locator> {
        self.batch.reservations.iter().copied()
    }

    async fn run(
        store: &Store,
        connection: &mut PgConnection,
        jobs: &[&Self],
    ) -> Result<Vec<Vec<SettleRow>>, sqlx::Error> {
        let Some(first) = jobs.first() else { return Ok(Vec::new()) };
        let columns = SettleColumns::of_all(jobs.iter().map(|job| &job.batch));
        let rows = store.release_packages(connection, &columns, first.lapse).await?;
        Ok(deal(rows, jobs.iter().map(|job| job.rows())))
    }
}

/// The columns that both statements take: one element for each reservation. What `ord` holds is
/// the number of the call.
#[derive(Debug, Default)]
struct SettleColumns<'a> {
    keys: KeyColumns,
    caller: Vec<[u8; 16]>,
    user: Vec<&'a str>,
    client: Vec<&'a str>,
}

impl<'a> SettleColumns<'a> {
    fn of_all(batches: impl Iterator<Item = &'a Arc<SettleBatch>>) -> Self {
        let mut columns = Self::default();
        for (call, batch) in (0..).zip(batches) {
            columns.extend(batch, batch.reservations.iter().map(|locator| (call, locator)));
        }
        columns
    }

    fn extend(
        &mut self,
        batch: &'a SettleBatch,
        reservations: impl Iterator<Item = (i32, &'a Locator)>,
    ) {
        let digest = batch.caller.digest().0;
        for reservation in reservations {
            self.keys.extend([reservation]);
            self.caller.push(digest);
            self.user.push(batch.caller.user.as_str());
            self.client.push(batch.caller.client.as_str());
        }
    }

    fn callers(&self) -> Vec<&[u8]> {
        self.caller.iter().map(|digest| &digest[..]).collect()
    }
}

/// The rows, which stand in the order of the reservations, for each call its own.
fn deal(rows: Vec<SettleRow>, calls: impl Iterator<Item = usize>) -> Vec<Vec<SettleRow>> {
    let mut rows = rows.into_iter();
    calls.map(|count| rows.by_ref().take(count).collect()).collect()
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
                "group_mismatch" => return Err(Error::GroupMismatch),
                _ => return Err(row::impossible("an unknown outcome of a settlement")),
            };
            Ok(Settled { already, key_package_ref: row.key_package_ref.map(KeyPackageRef) })
        })
        .collect();
    settled.map(Some)
}
