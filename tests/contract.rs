//! The whole contract: revocation, rotation, the event log, fair share.

mod audit;
mod errors;
mod events;
mod fair_share;
mod partitions;
mod revoke;
mod role;
mod rotate;
mod sharding;
