//! The rule for the lifetime of a KeyPackage (RFC 9420, section 7.2).

use time::OffsetDateTime;

use super::{
    policy::UploadPolicy,
    rejection::{RejectReason, Rejection},
};

/// Of a second. Lifetimes begin at whole ones: one that begins in the second in which the database was
/// lost may have been made before.
const NANOSECONDS: i128 = 1_000_000_000;

/// RFC 9420, section 7.2: the package is valid now and not for longer than the application's
/// maximum. Times in the package are seconds since 1970. Answers when it expires.
pub(super) fn check(
    not_before: u64,
    not_after: u64,
    last_resort: bool,
    policy: &UploadPolicy,
    now: OffsetDateTime,
) -> Result<OffsetDateTime, Rejection> {
    let refuse = |message: &str| Rejection::new(RejectReason::Lifetime, message);
    // Wide enough for any two times of 64 bits.
    let (not_before, not_after) = (i128::from(not_before), i128::from(not_after));
    let now = i128::from(now.unix_timestamp());
    if not_before > not_after {
        return Err(refuse("not_after is before not_before"));
    }
    if not_after <= now {
        return Err(refuse("has expired"));
    }
    if not_before > now + i128::from(policy.clock_skew.whole_seconds()) {
        return Err(refuse("is not valid yet"));
    }
    if let Some(since) = policy.made_since
        && !last_resort
        && not_before * NANOSECONDS < since.unix_timestamp_nanos()
    {
        return Err(Rejection::new(
            RejectReason::Lifetime,
            format!(
                "may have been issued before this server's database was restored from a backup: \
                 make one whose lifetime begins after {since}"
            ),
        ));
    }
    let longest = policy.max_lifetime.whole_seconds();
    if not_after - not_before > i128::from(longest) {
        return Err(Rejection::new(
            RejectReason::Lifetime,
            format!("is valid for longer than the maximum of {longest} s"),
        ));
    }
    // A maximum so long that this fails is one that no calendar can hold.
    i64::try_from(not_after)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .ok_or_else(|| refuse("not_after is too far in the future"))
}
