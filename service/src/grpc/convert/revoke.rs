//! RevokeKeyPackages.

use keypool_proto::v1;

use super::{MAX_RESERVATIONS, Violations};
use crate::{
    domain::{
        error::Error,
        ids::{ClientId, KeyPackageRef},
    },
    pool::{Revoked, Selection},
};

/// The longest signature key: ML-DSA-87 has 2,592 bytes.
const MAX_SIGNATURE_KEY: usize = 4096;

pub(in crate::grpc) fn revoke(
    request: v1::RevokeKeyPackagesRequest,
) -> Result<(Option<ClientId>, Selection), Error> {
    let mut wrong = Violations::default();
    let client = match request.client_id {
        id if id.is_empty() => None,
        id => wrong.expect("client_id", ClientId::parse(id)),
    };
    let key = request.all_except_signature_key;
    let given = [!request.refs.is_empty(), request.all, !key.is_empty()];
    if given.into_iter().filter(|given| *given).count() != 1 {
        wrong.add("refs", "exactly one of refs, all and all_except_signature_key must be given");
    }
    if key.len() > MAX_SIGNATURE_KEY {
        wrong.add("all_except_signature_key", "is longer than any signature key");
    }
    if request.refs.len() > MAX_RESERVATIONS {
        return Err(Error::BatchTooLarge { field: "refs", limit: MAX_RESERVATIONS });
    }
    for (at, _) in request.refs.iter().enumerate().filter(|(_, found)| !is_ref(found)) {
        wrong.add(format!("refs[{at}]"), "is not a KeyPackageRef: 32, 48 or 64 bytes");
    }
    wrong.into_result()?;
    let selection = if request.all {
        Selection::All
    } else if !key.is_empty() {
        Selection::AllExceptSignatureKey(key.into())
    } else {
        Selection::Refs(request.refs.into_iter().map(|r| KeyPackageRef(r.into())).collect())
    };
    Ok((client, selection))
}

/// Whether these may be the bytes of a KeyPackageRef.
pub(super) fn is_ref(bytes: &[u8]) -> bool {
    matches!(bytes.len(), 32 | 48 | 64)
}

pub(in crate::grpc) fn revoked(counts: Revoked) -> v1::RevokeKeyPackagesResponse {
    let Revoked { available, reserved, last_resort } = counts;
    v1::RevokeKeyPackagesResponse { available, reserved, last_resort }
}
