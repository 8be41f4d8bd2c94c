//! The pool as a state machine on a real Postgres, below gRPC, with a clock that stands still.

mod batching;
mod concurrency;
mod impossible_rows;
mod interleaved_lapse;
mod interleaved_reserve;
mod interleaved_revoke;
mod interleaved_settle;
mod interleaved_sweep;
mod interleaved_upload;
mod kept;
mod lapse;
mod order;
mod plans;
mod request_id;
mod reserve;
mod settle;
mod sweeper;
mod upload;
mod walk;
