//! Wire to domain and back. Everything that can be wrong with a request is found here, all of it
//! at once, and answered as field violations.

use std::{collections::HashSet, time::Duration as StdDuration};

use keypool_proto::v1;
use prost_types::Timestamp;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::{
    domain::{
        capabilities::Capabilities,
        error::{Error, FieldViolation},
        ids::{CipherSuite, ClientId, GroupId, RequestId, UserId},
        key_package::RejectReason,
        pool::{CipherSuiteStatus, Health, PoolStatus},
    },
    pool::{
        MAX_CLIENTS, Released, Reservation, ReserveRequest, ReserveResult, Spent, Target,
        Unavailable, UploadOutcome, UploadResult,
    },
};

/// How many packages one upload may carry.
const MAX_KEY_PACKAGES: usize = 100;
/// How many targets one Reserve may name.
const MAX_TARGETS: usize = 100;
/// How many reservations one Spend or Release may name.
const MAX_RESERVATIONS: usize = 1000;
/// How many types each list of required capabilities may name.
const MAX_REQUIRED: usize = 256;

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

fn sized<T>(field: &'static str, items: &[T], limit: usize) -> Result<(), Error> {
    if items.is_empty() {
        return Err(Error::field(field, format!("must hold 1 to {limit} items")));
    }
    if items.len() > limit {
        return Err(Error::BatchTooLarge { field, limit });
    }
    Ok(())
}

pub(super) fn upload(request: v1::UploadKeyPackagesRequest) -> Result<Vec<Vec<u8>>, Error> {
    sized("key_packages", &request.key_packages, MAX_KEY_PACKAGES)?;
    match v1::UploadMode::try_from(request.mode) {
        Ok(v1::UploadMode::Unspecified | v1::UploadMode::Add) => {}
        Err(_) => return Err(Error::field("mode", "is not an UploadMode of this server")),
    }
    Ok(request.key_packages.into_iter().map(Vec::from).collect())
}

pub(super) fn reserve(request: v1::ReserveKeyPackagesRequest) -> Result<ReserveRequest, Error> {
    sized("targets", &request.targets, MAX_TARGETS)?;
    let named: usize = request.targets.iter().map(|target| target.client_ids.len()).sum();
    if named > MAX_CLIENTS {
        return Err(Error::BatchTooLarge { field: "targets.client_ids", limit: MAX_CLIENTS });
    }
    let mut wrong = Violations::default();
    let request_id = wrong
        .expect("request_id", Uuid::parse_str(&request.request_id).map_err(|_| "must be a UUID"));
    let group_id = group_id(&mut wrong, request.group_id.into());
    let cipher_suite = wrong.expect("cipher_suite", cipher_suite(request.cipher_suite));
    let targets = targets(&mut wrong, request.targets);
    let required = required(&mut wrong, request.required_capabilities.unwrap_or_default());
    let ttl = request.ttl.map(ttl).transpose();
    let ttl = wrong.expect("ttl", ttl).flatten();
    let last_resort = match v1::LastResort::try_from(request.last_resort) {
        Ok(v1::LastResort::Unspecified | v1::LastResort::Allow) => true,
        Ok(v1::LastResort::Forbid) => false,
        Err(_) => {
            wrong.add("last_resort", "is not a LastResort of this server");
            false
        }
    };
    wrong.into_result()?;
    match (request_id, group_id, cipher_suite) {
        (Some(request_id), Some(group_id), Some(cipher_suite)) => Ok(ReserveRequest {
            request_id: RequestId(request_id),
            group_id,
            cipher_suite,
            targets,
            required,
            ttl,
            last_resort,
            all_or_nothing: request.all_or_nothing,
        }),
        // Each of them is a violation when it is missing.
        _ => Err(Error::Internal(anyhow::anyhow!("a missing field went unnoticed"))),
    }
}

fn targets(wrong: &mut Violations, targets: Vec<v1::Target>) -> Vec<Target> {
    let mut users = HashSet::new();
    let mut parsed = Vec::with_capacity(targets.len());
    for (at, target) in targets.into_iter().enumerate() {
        let field = format!("targets[{at}].user_id");
        let Some(user) = wrong.expect(&field, UserId::parse(target.user_id)) else { continue };
        if !users.insert(user.clone()) {
            wrong.add(field, "stands in an earlier target too");
            continue;
        }
        let mut clients = Vec::with_capacity(target.client_ids.len());
        let mut seen = HashSet::new();
        for (number, id) in target.client_ids.into_iter().enumerate() {
            let field = format!("targets[{at}].client_ids[{number}]");
            let Some(client) = wrong.expect(&field, ClientId::parse(id)) else { continue };
            if seen.insert(client.clone()) {
                clients.push(client);
            } else {
                wrong.add(field, "stands earlier in the same target");
            }
        }
        parsed.push(Target { user, clients });
    }
    parsed
}

fn required(wrong: &mut Violations, required: v1::RequiredCapabilities) -> Capabilities {
    let mut types = |name: &str, values: Vec<u32>| -> Vec<u16> {
        let field = format!("required_capabilities.{name}");
        if values.len() > MAX_REQUIRED {
            wrong.add(field, format!("must hold at most {MAX_REQUIRED} types"));
            return Vec::new();
        }
        let uint16 = |value: u32| u16::try_from(value).map_err(|_| "must hold uint16 values only");
        let values: Result<Vec<u16>, _> = values.into_iter().map(uint16).collect();
        wrong.expect(field, values).unwrap_or_default()
    };
    let extensions = types("extension_types", required.extension_types);
    let proposals = types("proposal_types", required.proposal_types);
    let credentials = types("credential_types", required.credential_types);
    Capabilities::required(extensions, proposals, credentials)
}

fn cipher_suite(number: u32) -> Result<CipherSuite, &'static str> {
    match u16::try_from(number) {
        Ok(0) | Err(_) => Err("must be an MLS cipher suite, a uint16 other than 0"),
        Ok(number) => Ok(CipherSuite(number)),
    }
}

fn ttl(ttl: prost_types::Duration) -> Result<Duration, &'static str> {
    let wrong = "must be a positive duration";
    let ttl = StdDuration::try_from(ttl).map_err(|_| wrong)?;
    let ttl = Duration::try_from(ttl).map_err(|_| wrong)?;
    if ttl.is_positive() { Ok(ttl) } else { Err(wrong) }
}

fn group_id(wrong: &mut Violations, bytes: Vec<u8>) -> Option<GroupId> {
    wrong.expect("group_id", GroupId::parse(bytes).ok_or("must be 1 to 255 bytes"))
}

pub(super) fn spend(request: v1::SpendKeyPackagesRequest) -> Result<(Vec<String>, GroupId), Error> {
    sized("reservation_ids", &request.reservation_ids, MAX_RESERVATIONS)?;
    let mut wrong = Violations::default();
    let group_id = group_id(&mut wrong, request.group_id.into());
    wrong.into_result()?;
    let missing = || Error::Internal(anyhow::anyhow!("a missing field went unnoticed"));
    Ok((request.reservation_ids, group_id.ok_or_else(missing)?))
}

pub(super) fn release(request: v1::ReleaseReservationsRequest) -> Result<Vec<String>, Error> {
    sized("reservation_ids", &request.reservation_ids, MAX_RESERVATIONS)?;
    Ok(request.reservation_ids)
}

pub(super) fn timestamp(time: OffsetDateTime) -> Timestamp {
    // Below a second, so it fits.
    let nanos = i32::try_from(time.nanosecond()).unwrap_or_default();
    Timestamp { seconds: time.unix_timestamp(), nanos }
}

pub(super) fn uploaded(
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

pub(super) fn reserved(results: Vec<ReserveResult>) -> v1::ReserveKeyPackagesResponse {
    v1::ReserveKeyPackagesResponse { results: results.into_iter().map(reserve_result).collect() }
}

fn reserve_result(ReserveResult { user, client, outcome }: ReserveResult) -> v1::ReserveResult {
    use v1::reserve_result::Outcome;
    let outcome = match outcome {
        Ok(got) => Outcome::Reservation(reservation(got)),
        Err(reason) => {
            let reason = match reason {
                Unavailable::PoolExhausted => v1::UnavailableReason::PoolExhausted,
                Unavailable::NoCompatibleKeyPackage => {
                    v1::UnavailableReason::NoCompatibleKeyPackage
                }
            };
            Outcome::Unavailable(v1::Unavailable { reason: reason.into() })
        }
    };
    v1::ReserveResult {
        user_id: user.to_string(),
        client_id: client.map(|client| client.to_string()).unwrap_or_default(),
        outcome: Some(outcome),
    }
}

fn reservation(got: Reservation) -> v1::Reservation {
    v1::Reservation {
        reservation_id: got.id,
        key_package_ref: got.key_package_ref.0.into(),
        key_package: got.key_package.into(),
        not_after: Some(timestamp(got.not_after)),
        expires_at: Some(timestamp(got.expires_at)),
        last_resort: got.last_resort,
    }
}

pub(super) fn spent(ids: Vec<String>, results: Vec<Spent>) -> v1::SpendKeyPackagesResponse {
    let result = |(reservation_id, spent): (String, Spent)| v1::SpendResult {
        reservation_id,
        key_package_ref: spent.key_package_ref.0.into(),
        already_spent: spent.already,
        last_resort: spent.last_resort,
    };
    v1::SpendKeyPackagesResponse { results: ids.into_iter().zip(results).map(result).collect() }
}

pub(super) fn released(
    ids: Vec<String>,
    results: Vec<Released>,
) -> v1::ReleaseReservationsResponse {
    let result = |(reservation_id, released): (String, Released)| v1::ReleaseResult {
        reservation_id,
        already_released: released.already,
    };
    v1::ReleaseReservationsResponse { results: ids.into_iter().zip(results).map(result).collect() }
}

pub(super) fn pool_status(status: PoolStatus) -> v1::PoolStatus {
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
