//! What a refresh has to make, as a pure function of what is known.

use std::time::Duration;

use bytes::Bytes;

use super::{PoolOptions, options::DEFAULT_TARGET};
use crate::{PackageRecord, PackageState, v1};

/// What the server calls soon, when it counts packages that expire soon.
const SOON: Duration = Duration::from_secs(48 * 60 * 60);

/// What is missing of one cipher suite.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Missing {
    /// Fresh one-time packages to make.
    pub(super) one_time: usize,
    /// Whether to make a last resort package.
    pub(super) last_resort: bool,
}

/// Whether a record is of this cipher suite and identity.
pub(super) fn is_current(record: &PackageRecord, cipher_suite: u16, identity: &Bytes) -> bool {
    record.cipher_suite == cipher_suite && record.identity == identity
}

/// Whether the server may have it to issue.
pub(super) fn is_live(record: &PackageRecord) -> bool {
    !matches!(record.state, PackageState::Retired { .. })
}

/// What is missing of one cipher suite beyond what is prepared. `records` are all of the device,
/// with their private keys.
pub(super) fn missing(
    options: &PoolOptions,
    records: &[PackageRecord],
    status: Option<&v1::CipherSuiteStatus>,
    cipher_suite: u16,
    identity: &Bytes,
) -> Missing {
    let of_suite = || records.iter().filter(|r| r.cipher_suite == cipher_suite);
    let current = || of_suite().filter(|r| is_live(r) && r.identity == identity);
    let one_time = |state| current().filter(|r| !r.last_resort && r.state == state).count();
    let prepared = one_time(PackageState::Prepared);
    // The server counts what is about to be withdrawn too; then only the records tell them apart.
    let rotating = of_suite().any(|r| is_live(r) && r.identity != identity);
    let (available, reserved) = match status {
        Some(status) if !rotating => (status.available as usize, status.reserved as usize),
        _ => (one_time(PackageState::Published), 0),
    };
    let target = options.target.or(status.map(|status| status.target));
    let target = target.unwrap_or(DEFAULT_TARGET) as usize;
    let ending =
        status.map_or(0, |status| status.expiring_soon as usize).min(ending(options, current()));
    let wanted = target.saturating_sub(available.saturating_sub(ending) + prepared);
    let cap = status.map_or(options.hard_cap, |status| options.hard_cap.min(status.hard_cap));
    let room = (cap as usize).saturating_sub(available + reserved + prepared);
    let held = options.max_held.saturating_sub(of_suite().count());
    Missing {
        one_time: wanted.min(room).min(held),
        last_resort: options.last_resort
            && !current().any(|r| r.last_resort && r.state == PackageState::Prepared)
            && !last_resort_will_do(options, status, current()),
    }
}

/// How many one-time packages are near enough to their end to be replaced ahead of it: what has
/// less than an hour left is not issued any more, and packages of one batch end together.
fn ending<'a>(options: &PoolOptions, current: impl Iterator<Item = &'a PackageRecord>) -> usize {
    let soon = options.now().saturating_add((options.lifetime / 4).min(SOON).as_secs());
    current.filter(|r| !r.last_resort && r.not_after <= soon).count()
}

/// Whether the server has a last resort package that is this device's, unused, and in the first
/// half of its lifetime.
fn last_resort_will_do<'a>(
    options: &PoolOptions,
    status: Option<&v1::CipherSuiteStatus>,
    mut current: impl Iterator<Item = &'a PackageRecord>,
) -> bool {
    let Some(last_resort) = status.and_then(|status| status.last_resort.as_ref()) else {
        return false;
    };
    let ours = current.find(|r| r.last_resort && r.key_package_ref == last_resort.key_package_ref);
    last_resort.times_issued == 0
        && ours.is_some_and(|r| r.not_after > options.now().saturating_add(half(options.lifetime)))
}

fn half(lifetime: Duration) -> u64 {
    lifetime.as_secs() / 2
}

/// Whether the server has one-time packages, or a last resort one, that this device has no private
/// keys for. `records` are those that the server may have.
pub(super) fn has_strangers(status: &v1::PoolStatus, records: &[PackageRecord]) -> bool {
    status.cipher_suites.iter().any(|suite| {
        let ours = || {
            let suite = u16::try_from(suite.cipher_suite).ok();
            records.iter().filter(move |r| is_live(r) && Some(r.cipher_suite) == suite)
        };
        let last_resort = |status: &v1::LastResortStatus| {
            ours().any(|r| r.last_resort && r.key_package_ref == status.key_package_ref)
        };
        suite.available as usize > ours().filter(|r| !r.last_resort).count()
            || !suite.last_resort.as_ref().is_none_or(last_resort)
    })
}
