//! UploadKeyPackages.

use keypool_proto::v1;

use super::{Violations, pool_status, sized, timestamp};
use crate::{
    domain::{error::Error, key_package::RejectReason, pool::PoolStatus},
    pool::{UploadMode, UploadOutcome, UploadResult},
};

/// How many packages one upload may carry.
const MAX_KEY_PACKAGES: usize = 100;

pub(in crate::grpc) fn upload(
    request: v1::UploadKeyPackagesRequest,
) -> Result<(Vec<Vec<u8>>, UploadMode), Error> {
    let mut wrong = Violations::default();
    sized(&mut wrong, "key_packages", &request.key_packages, MAX_KEY_PACKAGES)?;
    let mode = match v1::UploadMode::try_from(request.mode) {
        Ok(v1::UploadMode::Unspecified | v1::UploadMode::Add) => UploadMode::Add,
        Ok(v1::UploadMode::ReplaceOtherCredentials) => UploadMode::ReplaceOtherCredentials,
        Err(_) => {
            wrong.add("mode", "is not an UploadMode of this server");
            UploadMode::Add
        }
    };
    wrong.into_result()?;
    Ok((request.key_packages.into_iter().map(Vec::from).collect(), mode))
}

pub(in crate::grpc) fn uploaded(
    results: Vec<UploadResult>,
    status: PoolStatus,
) -> v1::UploadKeyPackagesResponse {
    v1::UploadKeyPackagesResponse {
        results: results.into_iter().map(upload_result).collect(),
        status: Some(pool_status(status)),
    }
}

fn upload_result(result: UploadResult) -> v1::UploadResult {
    use v1::upload_result::Outcome;
    let outcome = match result.outcome {
        UploadOutcome::Accepted { not_after, last_resort, already_present } => {
            Outcome::Accepted(v1::Accepted {
                not_after: Some(timestamp(not_after)),
                last_resort,
                already_present,
            })
        }
        UploadOutcome::Rejected { reason, message } => {
            Outcome::Rejected(v1::Rejected { reason: reject_reason(reason).into(), message })
        }
    };
    let key_package_ref = result.key_package_ref.map(|r| r.0.into()).unwrap_or_default();
    v1::UploadResult { key_package_ref, outcome: Some(outcome) }
}

fn reject_reason(reason: RejectReason) -> v1::RejectReason {
    match reason {
        RejectReason::Malformed => v1::RejectReason::Malformed,
        RejectReason::UnsupportedVersion => v1::RejectReason::UnsupportedVersion,
        RejectReason::UnsupportedCipherSuite => v1::RejectReason::UnsupportedCipherSuite,
        RejectReason::InvalidSignature => v1::RejectReason::InvalidSignature,
        RejectReason::InvalidLeafNode => v1::RejectReason::InvalidLeafNode,
        RejectReason::InvalidInitKey => v1::RejectReason::InvalidInitKey,
        RejectReason::CredentialMismatch => v1::RejectReason::CredentialMismatch,
        RejectReason::Lifetime => v1::RejectReason::Lifetime,
        RejectReason::AlreadyUsed => v1::RejectReason::AlreadyUsed,
        RejectReason::OwnedByAnotherClient => v1::RejectReason::OwnedByAnotherClient,
        RejectReason::PoolFull => v1::RejectReason::PoolFull,
        RejectReason::DuplicateInRequest => v1::RejectReason::DuplicateInRequest,
    }
}
