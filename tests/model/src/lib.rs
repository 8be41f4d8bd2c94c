//! The pool of keypool as a model: what every call means, without SQL and without a clock.
//!
//! [`Pool`] is the state machine that the contract describes, small enough that a reader can hold
//! it against the text and a checker can list its states. Two things are done with it:
//!
//! - `tests/exhaustive.rs` lists every state that two adders, an owner, a lossy network and the
//!   passing of time can bring a small pool into, and holds the promises against each of them;
//! - `tests/pool/walk.rs` of the workspace does the same things to a model and to keypool on a
//!   real Postgres, at random, one by one and at once, and compares answers and rows.
//!
//! [`Bug`] holds the mistakes that the first must find, each by the promise that it breaks, and
//! each promise by some mistake. The walks take the model as it is: what they find was seen by
//! mistakes in keypool's own statements (`docs/chaos.md`).

mod pool;
mod rules;
mod settle;
mod sweep;
mod upload;

pub use pool::{
    Adder, Ask, Grant, GrantState, Group, Holder, Id, LastResort, Package, Pool, Request,
    Reservation, Reserved, State, Suite, Time, Unavailable,
};
pub use rules::{Bug, FairShare, Lapse, Rules};
pub use settle::{Refusal, Settled};
pub use upload::{Item, Refused, Revoked, Uploaded};
