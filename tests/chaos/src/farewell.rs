//! The last calls of a run: when nothing is broken any more, everybody serves.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::{
    cluster::{Cluster, Gate},
    history::Answer,
    party::Wish,
};

/// The worker that makes these calls.
const WORKER: u16 = u16::MAX;
/// Whoever does not answer for so long is not healed; the checker says so.
const PATIENCE: Duration = Duration::from_secs(30);
/// After a failure, before the next call.
const BREATH: Duration = Duration::from_millis(100);

/// Each replica reserves a package and takes it back.
///
/// # Errors
/// When calls cannot be written down.
pub(crate) async fn reserve(cluster: &Cluster, gate: &Gate) -> anyhow::Result<()> {
    for replica in 0..cluster.replicas.len() {
        let number = u16::try_from(replica)?;
        let Some(name) = gate.cast.callers.get(replica) else { continue };
        let party = gate.by_hand_at(cluster, replica, WORKER, number, name)?;
        let wish = Wish {
            request: Uuid::from_u128(rand::random()),
            group: 0,
            ttl: Duration::from_secs(1),
            all: false,
            pools: vec![0],
        };
        let mut held = Vec::new();
        until_answered(async || {
            let (answer, got) = party.reserve(&wish).await?;
            held = got;
            Ok(answer)
        })
        .await?;
        if !held.is_empty() {
            until_answered(async || party.release(&held).await).await?;
        }
    }
    Ok(())
}

/// Each replica, and the SDK, tell how each pool stands.
///
/// # Errors
/// When calls cannot be written down.
pub(crate) async fn statuses(cluster: &Cluster, gate: &Gate) -> anyhow::Result<()> {
    for (number, name) in (0..).zip(&gate.cast.pools) {
        gate.by_sdk(cluster, WORKER, number, name)?.status().await?;
        for replica in 0..cluster.replicas.len() {
            let party = gate.by_hand_at(cluster, replica, WORKER, number, name)?;
            until_answered(async || party.status().await).await?;
        }
    }
    Ok(())
}

/// What broke connections may be noticed by the first call on them only.
async fn until_answered(
    mut call: impl AsyncFnMut() -> anyhow::Result<Answer>,
) -> anyhow::Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        match call().await? {
            Answer::Unknown(_) | Answer::Internal(_) if Instant::now() < end => {
                sleep(BREATH).await;
            }
            _ => return Ok(()),
        }
    }
}
