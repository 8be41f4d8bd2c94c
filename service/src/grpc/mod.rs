//! The wire: parses requests into domain types, calls a use case, and answers.

pub mod auth;
mod convert;
mod deadline;
mod service;
pub mod status;

pub use deadline::DeadlineLayer;
pub use service::{CallLimits, GrpcService, admit, explain_unread};
