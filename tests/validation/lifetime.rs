//! LIFETIME.

use super::*;

#[test]
fn over_or_not_begun() {
    for (not_before, not_after, message) in [
        (NOW - DAY, NOW, "has expired"),
        (0, 0, "has expired"),
        (NOW + 301, NOW + DAY, "is not valid yet"),
        (u64::MAX, u64::MAX, "is not valid yet"),
        (NOW + 2, NOW + 1, "not_after is before not_before"),
        (u64::MAX, 0, "not_after is before not_before"),
    ] {
        let bytes = good(1).lifetime(not_before, not_after).build();
        refused(&bytes, RejectReason::Lifetime, message);
    }
}

#[test]
fn longer_than_the_maximum() {
    let message = "is valid for longer than the maximum of 7776000 s";
    for (not_before, not_after) in [
        (NOW, NOW + 90 * DAY + 1),
        (NOW, NOW + 3650 * DAY),
        (0, NOW + 1),
        (NOW, u64::MAX),
        (0, u64::MAX),
    ] {
        let bytes = good(1).lifetime(not_before, not_after).build();
        refused(&bytes, RejectReason::Lifetime, message);
    }
}

#[test]
fn beyond_the_calendar_under_a_boundless_policy() {
    let policy = UploadPolicy { max_lifetime: Duration::MAX, ..UploadPolicy::default() };
    for not_after in [300_000_000_000, i64::MAX as u64] {
        let bytes = good(1).lifetime(NOW, not_after).build();
        let rejection = validate(&bytes, &client("alice", "phone"), &policy, at(NOW)).unwrap_err();
        assert_eq!(rejection.reason, RejectReason::Lifetime);
        assert_eq!(rejection.message, "not_after is too far in the future");
    }
}
