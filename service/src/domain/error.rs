//! What can go wrong, in the domain's words. `grpc::status` maps each to its code and reason.

use std::time::Duration;

use thiserror::Error;

/// One field of a request that is missing or wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldViolation {
    /// The path of the field, as in `targets[3].user_id`.
    pub field: String,
    /// What is wrong with it. Never carries the value itself.
    pub description: String,
}

impl FieldViolation {
    /// `field` breaks the rule that `description` states.
    pub fn new(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self { field: field.into(), description: description.into() }
    }
}

/// Why a call failed. Every variant is an `ErrorReason` of the contract.
#[derive(Debug, Error)]
pub enum Error {
    /// Fields are missing or wrong.
    #[error("{}", summary(.0))]
    InvalidArgument(Vec<FieldViolation>),
    /// More items than one call may carry.
    #[error("{field} holds more than {limit} items")]
    BatchTooLarge {
        /// The path of the field.
        field: &'static str,
        /// How many it may hold.
        limit: usize,
    },
    /// No bearer token.
    #[error("no bearer token in the authorization metadata")]
    TokenMissing,
    /// A token that does not verify, or lacks a claim.
    #[error("the token is not valid: {0}")]
    TokenInvalid(&'static str),
    /// A token past its `exp`.
    #[error("the token has expired")]
    TokenExpired,
    /// A token without the scope that the call needs.
    #[error("the token lacks the scope {0}")]
    ScopeMissing(&'static str),
    /// No such reservation of this caller.
    #[error("no such reservation of this caller")]
    ReservationUnknown,
    /// The `request_id` stands for another group or cipher suite.
    #[error("the request_id is in use for the same pool with another group or cipher suite")]
    RequestIdReused,
    /// No package is left, or there is no such user or client.
    #[error("no KeyPackage is left")]
    PoolExhausted,
    /// No package of the cipher suite with the capabilities.
    #[error("no KeyPackage of this cipher suite with these capabilities")]
    NoCompatibleKeyPackage,
    /// The caller holds its fair share of the pool already.
    #[error("the caller holds its fair share of this pool already")]
    Quota,
    /// The pool belongs to someone else.
    #[error("the pool belongs to someone else")]
    NotYourPool,
    /// The caller calls too often, or holds too many streams.
    #[error("too many {what}")]
    RateLimited {
        /// Of what.
        what: &'static str,
        /// When there may be another one.
        retry_after: Duration,
    },
    /// The reservation lapsed and its package is gone or someone else's.
    #[error("the reservation lapsed, and its KeyPackage is gone or someone else's")]
    ReservationLost,
    /// The reservation was released, or was spent, before.
    #[error("the reservation is not held any more")]
    ReservationNotHeld,
    /// The reservation was made for another group.
    #[error("the reservation was made for another group")]
    GroupMismatch,
    /// The server has more to do than it can; it did nothing for this call.
    #[error("the server is overloaded")]
    Overloaded,
    /// The database cannot be reached.
    #[error("the database cannot be reached")]
    StoreUnavailable(#[source] anyhow::Error),
    /// The keys that tokens are verified with could not be fetched for too long.
    #[error("the keys of the token's issuer cannot be fetched")]
    KeysUnavailable,
    /// This replica is shutting down.
    #[error("this replica is shutting down")]
    ShuttingDown,
    /// The caller's deadline passed, or its request took too long to arrive.
    #[error("the deadline of the call has passed")]
    DeadlineExceeded,
    /// A fault of keypool itself.
    #[error("internal error")]
    Internal(#[source] anyhow::Error),
}

impl Error {
    /// Too many of what only the caller itself can end.
    pub fn rate_limited(what: &'static str) -> Self {
        const RETRY: Duration = Duration::from_secs(5);
        Self::RateLimited { what, retry_after: RETRY }
    }
}

/// The first violations in one line; BadRequest has all of them.
fn summary(violations: &[FieldViolation]) -> String {
    const SHOWN: usize = 3;
    let shown = violations.iter().take(SHOWN);
    let mut lines: Vec<String> = shown
        .map(|FieldViolation { field, description }| format!("{field} {description}"))
        .collect();
    if violations.len() > SHOWN {
        lines.push(format!("and {} more", violations.len() - SHOWN));
    }
    lines.join("; ")
}
