//! The gRPC surface.

pub mod auth;
