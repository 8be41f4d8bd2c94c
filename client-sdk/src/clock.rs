use std::time::{Duration, SystemTime};

/// The date of this device: what a token's end, and the journal, are about. It decides nothing that
/// has to be exact.
#[allow(clippy::disallowed_methods, reason = "the server's clock does not rule here")]
pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}

/// Seconds since 1970.
pub(crate) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}
