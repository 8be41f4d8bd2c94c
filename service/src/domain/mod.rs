//! What keypool is about, in the terms of RFC 9420 and RFC 9750. Knows nothing of SQL, gRPC or
//! the wall clock.

pub mod capabilities;
pub mod clock;
pub mod crypto;
pub mod error;
pub mod event;
pub mod ids;
pub mod key_package;
pub mod policy;
pub mod pool;
pub mod reservation_id;
