//! Structure-aware fuzzing. A target makes of some bytes an input that is nearly right, so that
//! what it gets wrong lies deep inside, and panics when keypool breaks a promise. The tests run
//! each target on a bounded number of random inputs; `service/fuzz` lets libFuzzer choose them.

mod any_message;
mod key_package;
mod messages;
mod mutate;
mod plan;
mod requests;

pub use key_package::{Verdict, key_package};
pub use requests::{Answered, Requests};

/// What an input may have the code under it hold at once, in bytes on the heap, beyond a constant,
/// for each of its own bytes.
#[track_caller]
fn assert_bounded(peak: u64, per_byte: u64, constant: u64, len: usize) {
    let most = constant + per_byte * u64::try_from(len).expect("a length");
    assert!(peak <= most, "{peak} bytes held at once for an input of {len}: more than {most}");
}
