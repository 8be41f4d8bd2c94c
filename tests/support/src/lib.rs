//! What keypool's own tests share.

pub mod database;
