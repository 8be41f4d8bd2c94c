use std::time::Duration;

use keypool_client::{
    Bytes, Client, Error, Reserve, Uuid,
    v1::{ErrorReason, Reservation, reserve_result::Outcome},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{CIPHER_SUITE, OWNER};

/// How many calls an attacker keeps under way at each replica.
const CALLS: usize = 2;
/// More than the service allows: it cuts that to the longest it does allow.
const TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// Takes as many packages as the service gives, until it is over. Answers their refs. `refused`
/// is cancelled when the pool has refused the attacker for the first time.
pub(super) async fn attack(
    clients: [Client; 2],
    refused: CancellationToken,
    over: CancellationToken,
) -> anyhow::Result<Vec<Bytes>> {
    // Nobody waits for an attacker that failed.
    let _refused = refused.clone().drop_guard();
    let mut calls = JoinSet::new();
    for client in clients {
        for _ in 0..CALLS {
            calls.spawn(take(client.clone(), refused.clone(), over.clone()));
        }
    }
    let taken: Vec<_> = calls.join_all().await.into_iter().collect::<anyhow::Result<_>>()?;
    Ok(taken.concat())
}

async fn take(
    client: Client,
    refused: CancellationToken,
    over: CancellationToken,
) -> anyhow::Result<Vec<Bytes>> {
    let mut taken = Vec::new();
    let taking = async {
        loop {
            let group = Bytes::copy_from_slice(Uuid::new_v4().as_bytes());
            let reserve = Reserve::new(group.clone(), CIPHER_SUITE)
                .target(OWNER)
                .forbid_last_resort()
                .ttl(TTL);
            match client.reserve(&reserve).await {
                Ok(answer) => {
                    for result in answer.results {
                        let Some(Outcome::Reservation(reservation)) = result.outcome else {
                            continue;
                        };
                        let Reservation { reservation_id, key_package_ref, .. } = reservation;
                        taken.push(key_package_ref);
                        while let Err(error) =
                            client.spend(group.clone(), [reservation_id.clone()]).await
                        {
                            busy(error)?;
                        }
                    }
                }
                Err(error) => match error.reason() {
                    Some(ErrorReason::PoolExhausted) => refused.cancel(),
                    Some(ErrorReason::Quota) => {}
                    _ => busy(error)?,
                },
            }
        }
    };
    match over.run_until_cancelled(taking).await {
        Some(Err::<(), anyhow::Error>(error)) => Err(error.context("an attacker failed")),
        Some(Ok(())) | None => Ok(taken),
    }
}

/// An attacker does not wait when the server asks it to come back later.
fn busy(error: Error) -> anyhow::Result<()> {
    match error {
        Error::DeadlineExceeded => Ok(()),
        error if error.retry_after().is_some() => Ok(()),
        error => Err(error.into()),
    }
}
