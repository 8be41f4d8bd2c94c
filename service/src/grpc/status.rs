//! The one mapping from domain errors to `google.rpc.Status`.

use std::{collections::HashMap, ops::RangeInclusive, time::Duration};

use keypool_proto::{ERROR_DOMAIN, v1::ErrorReason};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation as WireViolation, StatusExt as _};

use crate::domain::error::Error;

/// When to come back after [`Error::Overloaded`], in milliseconds: not all at the same time.
const OVERLOADED_RETRY: RangeInclusive<u64> = 250..=750;
/// When to come back after [`Error::StoreUnavailable`]: a failover takes seconds.
const STORE_RETRY: Duration = Duration::from_secs(1);
/// When to come back after [`Error::KeysUnavailable`].
const KEYS_RETRY: Duration = Duration::from_secs(5);

/// How many wrong fields are told one by one. Details are a header: a client whose HTTP/2 takes 16 KiB
/// of headers, as is usual, ends the whole connection over a longer one, with the calls of everybody
/// whose proxy shares it.
const MAX_VIOLATIONS: usize = 32;

/// The code and reason of an error.
pub fn code_and_reason(error: &Error) -> (Code, ErrorReason) {
    match error {
        Error::InvalidArgument(_) => (Code::InvalidArgument, ErrorReason::InvalidArgument),
        Error::BatchTooLarge { .. } => (Code::InvalidArgument, ErrorReason::BatchTooLarge),
        Error::TokenMissing => (Code::Unauthenticated, ErrorReason::TokenMissing),
        Error::TokenInvalid(_) => (Code::Unauthenticated, ErrorReason::TokenInvalid),
        Error::TokenExpired => (Code::Unauthenticated, ErrorReason::TokenExpired),
        Error::ScopeMissing(_) => (Code::PermissionDenied, ErrorReason::ScopeMissing),
        Error::ReservationUnknown => (Code::NotFound, ErrorReason::ReservationUnknown),
        Error::RequestIdReused => (Code::AlreadyExists, ErrorReason::RequestIdReused),
        Error::PoolExhausted => (Code::FailedPrecondition, ErrorReason::PoolExhausted),
        Error::NoCompatibleKeyPackage => {
            (Code::FailedPrecondition, ErrorReason::NoCompatibleKeyPackage)
        }
        Error::Quota => (Code::FailedPrecondition, ErrorReason::Quota),
        Error::NotYourPool => (Code::PermissionDenied, ErrorReason::NotYourPool),
        Error::RateLimited { .. } => (Code::ResourceExhausted, ErrorReason::RateLimited),
        Error::ReservationLost => (Code::FailedPrecondition, ErrorReason::ReservationLost),
        Error::ReservationNotHeld => (Code::FailedPrecondition, ErrorReason::ReservationNotHeld),
        Error::GroupMismatch => (Code::FailedPrecondition, ErrorReason::GroupMismatch),
        Error::Overloaded => (Code::ResourceExhausted, ErrorReason::Overloaded),
        Error::StoreUnavailable(_) => (Code::Unavailable, ErrorReason::StoreUnavailable),
        Error::KeysUnavailable => (Code::Unavailable, ErrorReason::KeysUnavailable),
        Error::ShuttingDown => (Code::Unavailable, ErrorReason::ShuttingDown),
        Error::DeadlineExceeded => (Code::DeadlineExceeded, ErrorReason::DeadlineExceeded),
        Error::Internal(_) => (Code::Internal, ErrorReason::Internal),
    }
}

/// The answer that a caller gets for `error`. Causes inside the server are not in it.
pub fn to_status(error: &Error) -> Status {
    let (code, reason) = code_and_reason(error);
    let mut details = ErrorDetails::new();
    details.set_error_info(reason.wire_name(), ERROR_DOMAIN, metadata(error));
    if let Error::InvalidArgument(violations) = error {
        let mut wire: Vec<WireViolation> = violations
            .iter()
            .take(MAX_VIOLATIONS)
            .map(|v| WireViolation::new(&v.field, &v.description))
            .collect();
        let untold = violations.len() - wire.len();
        if untold > 0 {
            wire.push(WireViolation::new("", format!("{untold} more fields are wrong")));
        }
        details.set_bad_request(wire);
    }
    if let Some(delay) = retry_after(error) {
        details.set_retry_info(Some(delay));
    }
    Status::with_error_details(code, error.to_string(), details)
}

fn metadata(error: &Error) -> HashMap<String, String> {
    let pairs: Vec<(&str, String)> = match error {
        Error::BatchTooLarge { field, limit } => {
            vec![("field", (*field).to_owned()), ("limit", limit.to_string())]
        }
        Error::ScopeMissing(scope) => vec![("scope", (*scope).to_owned())],
        _ => Vec::new(),
    };
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn retry_after(error: &Error) -> Option<Duration> {
    match error {
        Error::Overloaded => Some(Duration::from_millis(rand::random_range(OVERLOADED_RETRY))),
        Error::RateLimited { retry_after, .. } => Some(*retry_after),
        Error::StoreUnavailable(_) => Some(STORE_RETRY),
        Error::KeysUnavailable => Some(KEYS_RETRY),
        Error::ShuttingDown => Some(Duration::ZERO),
        _ => None,
    }
}
