//! The statements of Spend and Release as jobs that many calls share.

use std::{convert::Infallible, iter, sync::Arc};

use sqlx::PgConnection;

use super::{
    Store,
    batch::Job,
    burns,
    row::KeyColumns,
    settle::{SettleBatch, SettleRow},
};
use crate::domain::{
    ids::{GroupId, KeyPackageRef},
    policy::LapsePolicy,
    reservation_id::Locator,
};

/// A call that spends one-time packages.
#[derive(Debug)]
pub(super) struct SpendCall {
    pub(super) batch: Arc<SettleBatch>,
    pub(super) group_id: GroupId,
}

/// A call that spends one package, for the statement that knows just the usual case.
#[derive(Debug)]
pub(super) struct SpendHeld {
    pub(super) batch: Arc<SettleBatch>,
    pub(super) group_id: GroupId,
}

/// A call that releases one-time packages.
#[derive(Debug)]
pub(super) struct ReleaseCall {
    pub(super) batch: Arc<SettleBatch>,
    pub(super) lapse: LapsePolicy,
}

/// The columns that both statements take: one element for each reservation. What `ord` holds is
/// the number of the call.
#[derive(Debug, Default)]
pub(super) struct SettleColumns<'a> {
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

    pub(super) fn extend(
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

impl Store {
    pub(super) async fn spend_packages(
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

    pub(super) async fn release_packages(
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

/// The rows, which stand in the order of the reservations, for each call its own.
fn deal(rows: Vec<SettleRow>, calls: impl Iterator<Item = usize>) -> Vec<Vec<SettleRow>> {
    let mut rows = rows.into_iter();
    calls.map(|count| rows.by_ref().take(count).collect()).collect()
}
