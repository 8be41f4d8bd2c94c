use std::time::Duration;

use anyhow::Context as _;
use keypool_client::{
    Bytes, Client, Error, Reserve, Uuid,
    v1::{ErrorReason, reserve_result::Outcome},
};
use tokio::time::Instant;

use super::{CIPHER_SUITE, OWNER};

/// How long a newcomer tries again when the server is too busy.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a newcomer got.
pub(super) enum Got {
    /// A one-time package: its ref.
    OneTime(Bytes),
    /// The last resort package.
    LastResort,
    /// Nothing.
    Nothing,
}

/// Comes at `moment`, reserves once and spends it. A call that the server is too busy for is
/// repeated, with the same request_id, when the server says. Answers how long all of it took.
pub(super) async fn come(client: Client, moment: Instant) -> anyhow::Result<(Got, Duration)> {
    tokio::time::sleep_until(moment).await;
    let group = Bytes::copy_from_slice(Uuid::new_v4().as_bytes());
    let reserve = Reserve::new(group.clone(), CIPHER_SUITE).target(OWNER);
    let patient_until = Instant::now() + PATIENCE;
    let got = async {
        let answer = loop {
            match client.reserve(&reserve).await {
                Ok(answer) => break answer,
                Err(error) if error.reason() == Some(ErrorReason::PoolExhausted) => {
                    return Ok(Got::Nothing);
                }
                Err(error) => {
                    if !wait(error, patient_until).await? {
                        return Ok(Got::Nothing);
                    }
                }
            }
        };
        let result = answer.results.into_iter().next().and_then(|result| result.outcome);
        let Some(Outcome::Reservation(reservation)) = result else { return Ok(Got::Nothing) };
        loop {
            match client.spend(group.clone(), [reservation.reservation_id.clone()]).await {
                Ok(_) => break,
                Err(error) => {
                    if !wait(error, patient_until).await? {
                        return Ok(Got::Nothing);
                    }
                }
            }
        }
        Ok(match reservation.last_resort {
            true => Got::LastResort,
            false => Got::OneTime(reservation.key_package_ref),
        })
    };
    let got: anyhow::Result<Got> = got.await;
    Ok((got.context("a newcomer failed")?, moment.elapsed()))
}

/// Waits as the server asks. False when patience is at its end.
async fn wait(error: Error, patient_until: Instant) -> anyhow::Result<bool> {
    let again = match (&error, error.retry_after()) {
        (_, Some(after)) => Instant::now() + after,
        (Error::DeadlineExceeded, None) => Instant::now(),
        _ => return Err(error.into()),
    };
    tokio::time::sleep_until(again.min(patient_until)).await;
    Ok(again < patient_until)
}
