//! The whole contract: revocation, rotation, the event log, fair share.

mod audit;
mod errors;
mod events;
mod fair_share;
mod partitions;
mod refusals;
mod revoke;
mod role;
mod rotate;
mod sharding;

use keypool_client::{Error, v1::ErrorReason};

/// Refused for this reason; the fields that are told.
#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, Error>, reason: ErrorReason) -> Vec<String> {
    let error = answer.unwrap_err();
    assert_eq!(error.reason(), Some(reason), "{error:?}");
    let rejection = error.rejection().expect("a refusal");
    rejection.field_violations.iter().map(|violation| violation.field.clone()).collect()
}
