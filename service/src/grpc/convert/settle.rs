//! SpendKeyPackages and ReleaseReservations.

use keypool_proto::v1;

use super::{MAX_RESERVATIONS, Violations, group_id, sized};
use crate::{
    domain::{error::Error, ids::GroupId},
    pool::{Released, Spent},
};

pub(in crate::grpc) fn spend(
    request: v1::SpendKeyPackagesRequest,
) -> Result<(Vec<String>, GroupId), Error> {
    let mut wrong = Violations::default();
    sized(&mut wrong, "reservation_ids", &request.reservation_ids, MAX_RESERVATIONS)?;
    let group_id = group_id(&mut wrong, request.group_id.into());
    wrong.into_result()?;
    let missing = || Error::Internal(anyhow::anyhow!("a missing field went unnoticed"));
    Ok((request.reservation_ids, group_id.ok_or_else(missing)?))
}

pub(in crate::grpc) fn release(
    request: v1::ReleaseReservationsRequest,
) -> Result<Vec<String>, Error> {
    let mut wrong = Violations::default();
    sized(&mut wrong, "reservation_ids", &request.reservation_ids, MAX_RESERVATIONS)?;
    wrong.into_result()?;
    Ok(request.reservation_ids)
}

pub(in crate::grpc) fn spent(
    ids: Vec<String>,
    results: Vec<Spent>,
) -> v1::SpendKeyPackagesResponse {
    let result = |(reservation_id, spent): (String, Spent)| v1::SpendResult {
        reservation_id,
        key_package_ref: spent.key_package_ref.0.into(),
        already_spent: spent.already,
        last_resort: spent.last_resort,
    };
    v1::SpendKeyPackagesResponse { results: ids.into_iter().zip(results).map(result).collect() }
}

pub(in crate::grpc) fn released(
    ids: Vec<String>,
    results: Vec<Released>,
) -> v1::ReleaseReservationsResponse {
    let result = |(reservation_id, released): (String, Released)| v1::ReleaseResult {
        reservation_id,
        already_released: released.already,
    };
    v1::ReleaseReservationsResponse { results: ids.into_iter().zip(results).map(result).collect() }
}
