use std::{pin::pin, time::Duration};

use anyhow::{Context as _, ensure};
use futures_util::StreamExt as _;
use keypool_client::{
    Client, Error,
    v1::{Health, PoolStatus, RejectReason, upload_result::Outcome},
};
use keypool_service::domain::clock::{Clock as _, SystemClock};
use openmls_traits::types::HpkeKemType;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{CIPHER_SUITE, OWNER};
use crate::forge::{Forge, hpke_public_key};

const LAST_RESORT: u16 = 0x000a;
/// The rest before another try when the server is too busy and does not say when to come back.
const REST: Duration = Duration::from_millis(100);

/// The owner of the pool, who refills it as its watch advises: it waits for `refill_after` when
/// the pool is low, and not when it is exhausted.
pub(super) struct Owner {
    client: Client,
    now: u64,
    packages: Forge,
}

impl Owner {
    pub(super) fn new(client: Client) -> anyhow::Result<Self> {
        let now = u64::try_from(SystemClock.now().unix_timestamp())?;
        let packages = Forge::new(CIPHER_SUITE, OWNER).valid_around(now);
        Ok(Self { client, now, packages })
    }

    /// Fills the empty pool: a last resort package, and as many others as the service advises.
    pub(super) async fn fill(&mut self) -> anyhow::Result<()> {
        let last_resort = Forge::new(CIPHER_SUITE, OWNER).valid_around(self.now);
        let answer = self.client.upload([last_resort.extension(LAST_RESORT, b"").build()]).await?;
        let packages = wanted(&answer.status.context("an upload without a status")?);
        ensure!(packages > 0, "an empty pool of which nothing is wanted");
        self.upload(packages).await?;
        Ok(())
    }

    /// Watches the pool and refills it until it is over; `refilled` is cancelled by the first
    /// refill. Answers how many packages that took.
    pub(super) async fn refill(
        mut self,
        refilled: CancellationToken,
        over: CancellationToken,
    ) -> anyhow::Result<usize> {
        // Nobody waits for an owner that failed.
        let _refilled = refilled.clone().drop_guard();
        let mut uploaded = 0;
        match over.run_until_cancelled(self.watch(&mut uploaded, &refilled)).await {
            Some(Err(error)) => Err(error.context("the owner failed")),
            Some(Ok(())) | None => Ok(uploaded),
        }
    }

    async fn watch(
        &mut self,
        uploaded: &mut usize,
        refilled: &CancellationToken,
    ) -> anyhow::Result<()> {
        loop {
            let mut statuses = match self.client.watch_pool_status().await {
                Ok(statuses) => pin!(statuses),
                Err(error) => {
                    rest(error).await?;
                    continue;
                }
            };
            let mut due: Option<Instant> = None;
            loop {
                tokio::select! {
                    status = statuses.next() => match status {
                        Some(Ok(status)) => due = refill_at(&status, due)?,
                        Some(Err(error)) => {
                            rest(error).await?;
                            break;
                        }
                        None => break,
                    },
                    () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)),
                        if due.is_some() =>
                    {
                        due = None;
                        *uploaded += self.upload_wanted().await?;
                        if *uploaded > 0 {
                            refilled.cancel();
                        }
                    }
                }
            }
        }
    }

    /// Uploads as many packages as the pool wants now: what the watch said may have waited in
    /// the stream since before the last upload.
    async fn upload_wanted(&mut self) -> anyhow::Result<usize> {
        loop {
            match self.client.pool_status().await {
                Ok(status) => return self.upload(wanted(&status)).await,
                Err(error) => rest(error).await?,
            }
        }
    }

    /// Uploads as many fresh packages.
    async fn upload(&mut self, packages: u32) -> anyhow::Result<usize> {
        if packages == 0 {
            return Ok(0);
        }
        let key = || hpke_public_key(HpkeKemType::DhKem25519);
        let mut built = Vec::new();
        for _ in 0..packages {
            self.packages.init_key = key();
            self.packages.encryption_key = key();
            built.push(self.packages.build());
        }
        let mut again = false;
        let answer = loop {
            match self.client.upload(built.iter().cloned()).await {
                Ok(answer) => break answer,
                Err(error) => rest(error).await?,
            }
            again = true;
        };
        for result in &answer.results {
            let Some(Outcome::Rejected(rejected)) = &result.outcome else { continue };
            // The try before took effect though it failed, and the package was taken since.
            let taken = again && rejected.reason() == RejectReason::AlreadyUsed;
            ensure!(taken, "a package was refused: {}", rejected.message);
        }
        Ok(built.len())
    }
}

/// When to refill, by the newest status. A refill that is due already is not put off.
fn refill_at(status: &PoolStatus, due: Option<Instant>) -> anyhow::Result<Option<Instant>> {
    if wanted(status) == 0 || matches!(status.health(), Health::Healthy) {
        return Ok(None);
    }
    let after = status.refill_after.map(Duration::try_from).transpose()?.unwrap_or_default();
    let at = Instant::now() + after;
    Ok(Some(due.map_or(at, |due| due.min(at))))
}

fn wanted(status: &PoolStatus) -> u32 {
    status.cipher_suites.iter().map(|suite| suite.recommended_upload).sum()
}

/// Waits before another try of what failed because the server was too busy.
async fn rest(error: Error) -> anyhow::Result<()> {
    match (&error, error.retry_after()) {
        (_, Some(after)) => tokio::time::sleep(after).await,
        (Error::DeadlineExceeded, None) => tokio::time::sleep(REST).await,
        _ => return Err(error.into()),
    }
    Ok(())
}
