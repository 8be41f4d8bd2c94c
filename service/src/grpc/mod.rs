//! The wire: parses requests into domain types, calls a use case, and answers.

mod admit;
pub mod auth;
mod convert;
mod deadline;
mod limit;
mod measure;
mod service;
pub mod status;

pub use admit::Admit;
pub use deadline::DeadlineLayer;
pub use limit::{
    GateLimits, Limits, LoadLimits, Rate, RateLimits, RequestLimits, ShedLayer, tell_refused,
};
pub use measure::MeasureLayer;
pub use service::{CallLimits, GrpcService, explain_unread};
