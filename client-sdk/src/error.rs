use std::{collections::HashMap, error::Error as StdError, time::Duration};

use keypool_proto::{ERROR_DOMAIN, v1::ErrorReason};
use tonic::{Code, Status, TimeoutExpired};
use tonic_types::StatusExt as _;

/// Any error, for those that come from outside keypool.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// Why a call did not give what was asked: one variant for each reason that a program would act
/// on; the rest is [`Error::Rejected`], to be told apart by its code.
///
/// What [`is_transient`](Self::is_transient) was repeated already, as far as the deadline and the
/// retry budget let it. After [`Error::DeadlineExceeded`] and [`Error::Transport`] the call may
/// have taken effect or not. Every call is safe to repeat,
/// [`Client::reserve`](crate::Client::reserve) with the same [`Reserve`](crate::Reserve).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The token is missing, does not verify, or lacks a claim: sign in again.
    #[error(transparent)]
    TokenInvalid(Box<Rejection>),

    /// The token has expired, and its provider has no newer one: sign in again.
    #[error(transparent)]
    TokenExpired(Box<Rejection>),

    /// The token lacks the scope of this call; the rejection's metadata has `scope`.
    #[error(transparent)]
    ScopeMissing(Box<Rejection>),

    /// The pool belongs to someone else.
    #[error(transparent)]
    NotYourPool(Box<Rejection>),

    /// No package is left, or there is no such user or client: try later, or invite without them.
    #[error(transparent)]
    PoolExhausted(Box<Rejection>),

    /// No package of this cipher suite with these capabilities.
    #[error(transparent)]
    NoCompatibleKeyPackage(Box<Rejection>),

    /// The caller holds its fair share of this pool: spend or release first.
    #[error(transparent)]
    Quota(Box<Rejection>),

    /// No such reservation of this caller.
    #[error(transparent)]
    ReservationUnknown(Box<Rejection>),

    /// The reservation lapsed, and its package is gone or someone else's.
    #[error(transparent)]
    ReservationLost(Box<Rejection>),

    /// The reservation was released, or spent, before.
    #[error(transparent)]
    ReservationNotHeld(Box<Rejection>),

    /// This caller calls too often: come back after [`Error::retry_after`].
    #[error(transparent)]
    RateLimited(Box<Rejection>),

    /// The server sheds load: come back after [`Error::retry_after`].
    #[error(transparent)]
    Overloaded(Box<Rejection>),

    /// The server, its database or a proxy before it does not serve now: come back later.
    #[error(transparent)]
    Unavailable(Box<Rejection>),

    /// The server, or a proxy before it, refused the call for a reason that only people can act
    /// on, or that this build does not know: go by the rejection's code.
    #[error(transparent)]
    Rejected(Box<Rejection>),

    /// No answer within the deadline.
    #[error("no answer within the deadline")]
    DeadlineExceeded,

    /// The connection could not be made, or broke before the answer was complete.
    #[error("keypool cannot be reached")]
    Transport(#[source] BoxError),

    /// There is no usable token; the server was not asked.
    #[error("there is no usable token")]
    Token(#[source] BoxError),

    /// The client cannot be built from this configuration.
    #[error("{0}")]
    Config(String),
}

/// The server's refusal of a call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({code:?}{})", .reason_name.as_deref().map(|r| format!(", {r}")).unwrap_or_default())]
#[non_exhaustive]
pub struct Rejection {
    /// The reason, for programs. `None` when the answer carries none, as that of a proxy in
    /// between, or one that this build does not know: then go by the `code`.
    pub reason: Option<ErrorReason>,
    /// The reason as it was sent, also one that this build does not know.
    pub reason_name: Option<String>,
    /// The gRPC code.
    pub code: Code,
    /// What happened, for people.
    pub message: String,
    /// Which fields of the request are wrong; only with [`ErrorReason::InvalidArgument`].
    pub field_violations: Vec<FieldViolation>,
    /// When a retry may help: the delay before it.
    pub retry_after: Option<Duration>,
    /// More about the reason, by names that the contract lists with it.
    pub metadata: HashMap<String, String>,
}

/// A field of a request that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FieldViolation {
    /// The field, as a path from the request: `targets[0].user_id`.
    pub field: String,
    /// What is wrong with it, for people.
    pub description: String,
}

impl Error {
    /// The server's reason; `None` when it gave none, or when it was not the server that failed.
    pub fn reason(&self) -> Option<ErrorReason> {
        self.rejection()?.reason
    }

    /// How long the server asks to wait before a retry; `None` when it does not invite one.
    pub fn retry_after(&self) -> Option<Duration> {
        self.rejection()?.retry_after
    }

    /// The server's refusal; `None` when the server did not answer.
    pub fn rejection(&self) -> Option<&Rejection> {
        match self {
            Self::TokenInvalid(rejection)
            | Self::TokenExpired(rejection)
            | Self::ScopeMissing(rejection)
            | Self::NotYourPool(rejection)
            | Self::PoolExhausted(rejection)
            | Self::NoCompatibleKeyPackage(rejection)
            | Self::Quota(rejection)
            | Self::ReservationUnknown(rejection)
            | Self::ReservationLost(rejection)
            | Self::ReservationNotHeld(rejection)
            | Self::RateLimited(rejection)
            | Self::Overloaded(rejection)
            | Self::Unavailable(rejection)
            | Self::Rejected(rejection) => Some(rejection),
            Self::DeadlineExceeded | Self::Transport(_) | Self::Token(_) | Self::Config(_) => None,
        }
    }

    /// Whether the same call may well succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::RateLimited(_)
                | Self::Overloaded(_)
                | Self::Unavailable(_)
                | Self::DeadlineExceeded
                | Self::Transport(_)
        )
    }
}

impl From<Rejection> for Error {
    fn from(rejection: Rejection) -> Self {
        let variant = match (rejection.reason, rejection.code) {
            (Some(ErrorReason::TokenMissing | ErrorReason::TokenInvalid), _) => Self::TokenInvalid,
            (Some(ErrorReason::TokenExpired), _) => Self::TokenExpired,
            (Some(ErrorReason::ScopeMissing), _) => Self::ScopeMissing,
            (Some(ErrorReason::NotYourPool), _) => Self::NotYourPool,
            (Some(ErrorReason::PoolExhausted), _) => Self::PoolExhausted,
            (Some(ErrorReason::NoCompatibleKeyPackage), _) => Self::NoCompatibleKeyPackage,
            (Some(ErrorReason::Quota), _) => Self::Quota,
            (Some(ErrorReason::ReservationUnknown), _) => Self::ReservationUnknown,
            (Some(ErrorReason::ReservationLost), _) => Self::ReservationLost,
            (Some(ErrorReason::ReservationNotHeld), _) => Self::ReservationNotHeld,
            (Some(ErrorReason::RateLimited), _) => Self::RateLimited,
            (Some(ErrorReason::Overloaded), _) => Self::Overloaded,
            (_, Code::Unavailable) => Self::Unavailable,
            _ => Self::Rejected,
        };
        variant(Box::new(rejection))
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        // tonic makes a Status of local failures too; only those have a source.
        let mut cause = status.source();
        let local = cause.is_some();
        while let Some(error) = cause {
            if error.is::<TimeoutExpired>() {
                return Self::DeadlineExceeded;
            }
            cause = error.source();
        }
        if local {
            return Self::Transport(Box::new(status));
        }
        let rejection = Rejection::from(status);
        // The server gave up at the deadline a little before this client did.
        let reason = rejection.reason_name.as_deref();
        if rejection.code == Code::DeadlineExceeded
            && reason.is_none_or(|reason| reason == "DEADLINE_EXCEEDED")
        {
            return Self::DeadlineExceeded;
        }
        rejection.into()
    }
}

impl From<Status> for Rejection {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.domain == ERROR_DOMAIN);
        Self {
            reason: info
                .and_then(|info| ErrorReason::from_wire_name(&info.reason))
                .filter(|reason| *reason != ErrorReason::Unspecified),
            reason_name: info.map(|info| info.reason.clone()),
            code: status.code(),
            message: status.message().to_owned(),
            field_violations: details
                .bad_request()
                .into_iter()
                .flat_map(|bad_request| &bad_request.field_violations)
                .map(|violation| FieldViolation {
                    field: violation.field.clone(),
                    description: violation.description.clone(),
                })
                .collect(),
            retry_after: details.retry_info().and_then(|retry| retry.retry_delay),
            metadata: info.map(|info| info.metadata.clone()).unwrap_or_default(),
        }
    }
}
