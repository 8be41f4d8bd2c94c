//! PoolStatus.

use keypool_proto::v1;

use super::timestamp;
use crate::domain::pool::{CipherSuiteStatus, Health, PoolStatus};

pub(in crate::grpc) fn pool_status(status: PoolStatus) -> v1::PoolStatus {
    v1::PoolStatus {
        health: match status.health {
            Health::Healthy => v1::Health::Healthy,
            Health::Low => v1::Health::Low,
            Health::Exhausted => v1::Health::Exhausted,
        }
        .into(),
        last_upload_time: status.last_upload.map(timestamp),
        refill_after: prost_types::Duration::try_from(status.refill_after.unsigned_abs()).ok(),
        cipher_suites: status.cipher_suites.into_iter().map(suite_status).collect(),
    }
}

fn suite_status(
    CipherSuiteStatus { counts, recommended_upload, low_watermark, target, hard_cap }: CipherSuiteStatus,
) -> v1::CipherSuiteStatus {
    v1::CipherSuiteStatus {
        cipher_suite: counts.cipher_suite.0.into(),
        available: counts.available,
        reserved: counts.reserved,
        spent: counts.spent,
        expired: counts.expired,
        expiring_soon: counts.expiring_soon,
        recommended_upload,
        last_resort: counts.last_resort.map(|last_resort| v1::LastResortStatus {
            key_package_ref: last_resort.key_package_ref.0.into(),
            not_after: Some(timestamp(last_resort.not_after)),
            times_issued: last_resort.times_issued,
        }),
        low_watermark,
        target,
        hard_cap,
    }
}
