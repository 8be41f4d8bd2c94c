//! The wire: parses requests into domain types, calls a use case, and answers.

pub mod auth;
mod convert;
mod service;
pub mod status;

pub use service::{CallLimits, GrpcService, MAX_REQUEST_BYTES, admit, explain_unread};
