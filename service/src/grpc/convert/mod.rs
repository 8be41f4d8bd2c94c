//! Wire to domain and back. Everything that can be wrong with a request is found here, all of it
//! at once, and answered as field violations.

mod events;
mod reserve;
mod revoke;
mod settle;
mod status;
mod upload;

use prost_types::Timestamp;
use time::OffsetDateTime;

pub(super) use events::{event_page, event_request};
pub(super) use reserve::{reserve, reserved};
pub(super) use revoke::{revoke, revoked};
pub(super) use settle::{release, released, spend, spent};
pub(super) use status::pool_status;
pub(super) use upload::{upload, uploaded};

use crate::domain::{
    error::{Error, FieldViolation},
    ids::GroupId,
};

/// How many reservations one Spend or Release, or refs one Revoke, may name.
const MAX_RESERVATIONS: usize = 1000;

/// Collects what is wrong with a request.
#[derive(Default)]
struct Violations(Vec<FieldViolation>);

impl Violations {
    fn add(&mut self, field: impl Into<String>, description: impl Into<String>) {
        self.0.push(FieldViolation::new(field, description));
    }

    /// The value, or a violation where there is none.
    fn expect<T, E: ToString>(
        &mut self,
        field: impl Into<String>,
        value: Result<T, E>,
    ) -> Option<T> {
        value.map_err(|error| self.add(field, error.to_string())).ok()
    }

    fn into_result(self) -> Result<(), Error> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::InvalidArgument(self.0)) }
    }
}

/// A list must hold 1 to `limit` items. Too many are an error of their own.
fn sized<T>(
    wrong: &mut Violations,
    field: &'static str,
    items: &[T],
    limit: usize,
) -> Result<(), Error> {
    if items.is_empty() {
        wrong.add(field, format!("must hold 1 to {limit} items"));
    }
    if items.len() > limit {
        return Err(Error::BatchTooLarge { field, limit });
    }
    Ok(())
}

fn group_id(wrong: &mut Violations, bytes: Vec<u8>) -> Option<GroupId> {
    wrong.expect("group_id", GroupId::parse(bytes).ok_or("must be 1 to 255 bytes"))
}

fn timestamp(time: OffsetDateTime) -> Timestamp {
    // Below a second, so it fits.
    let nanos = i32::try_from(time.nanosecond()).unwrap_or_default();
    Timestamp { seconds: time.unix_timestamp(), nanos }
}
