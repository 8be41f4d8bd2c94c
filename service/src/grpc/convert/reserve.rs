//! ReserveKeyPackages.

use std::collections::HashSet;

use keypool_proto::v1;
use time::Duration;
use uuid::Uuid;

use super::{Violations, group_id, sized, timestamp};
use crate::{
    domain::{
        capabilities::Capabilities,
        error::Error,
        ids::{CipherSuite, ClientId, RequestId, UserId},
    },
    pool::{MAX_CLIENTS, Reservation, ReserveRequest, ReserveResult, Target, Unavailable},
};

/// How many targets one Reserve may name.
const MAX_TARGETS: usize = 100;
/// How many types each list of required capabilities may name.
const MAX_REQUIRED: usize = 256;

pub(in crate::grpc) fn reserve(
    request: v1::ReserveKeyPackagesRequest,
) -> Result<ReserveRequest, Error> {
    let mut wrong = Violations::default();
    sized(&mut wrong, "targets", &request.targets, MAX_TARGETS)?;
    let named: usize = request.targets.iter().map(|target| target.client_ids.len()).sum();
    if named > MAX_CLIENTS {
        return Err(Error::BatchTooLarge { field: "targets.client_ids", limit: MAX_CLIENTS });
    }
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
    // By hand: the conversion of prost_types overflows on what the wire may carry.
    let ttl = Duration::seconds(ttl.seconds).checked_add(Duration::nanoseconds(ttl.nanos.into()));
    ttl.filter(|ttl| ttl.is_positive()).ok_or("must be a positive duration")
}

pub(in crate::grpc) fn reserved(results: Vec<ReserveResult>) -> v1::ReserveKeyPackagesResponse {
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
                Unavailable::Quota => v1::UnavailableReason::Quota,
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
