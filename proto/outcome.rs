//! Shortcuts past the `oneof` of the answers.

use crate::v1::{
    Accepted, Rejected, Reservation, ReserveKeyPackagesResponse, ReserveResult, Unavailable,
    UploadResult, reserve_result, upload_result,
};

impl UploadResult {
    /// The package's place in the pool; `None` when it was refused.
    pub fn accepted(&self) -> Option<&Accepted> {
        match &self.outcome {
            Some(upload_result::Outcome::Accepted(accepted)) => Some(accepted),
            _ => None,
        }
    }

    /// Why the package was refused; `None` when it was accepted.
    pub fn rejected(&self) -> Option<&Rejected> {
        match &self.outcome {
            Some(upload_result::Outcome::Rejected(rejected)) => Some(rejected),
            _ => None,
        }
    }
}

impl ReserveResult {
    /// The package held for the caller; `None` when this client gave none.
    pub fn reservation(&self) -> Option<&Reservation> {
        match &self.outcome {
            Some(reserve_result::Outcome::Reservation(reservation)) => Some(reservation),
            _ => None,
        }
    }

    /// Why this client gave no package; `None` when it gave one.
    pub fn unavailable(&self) -> Option<&Unavailable> {
        match &self.outcome {
            Some(reserve_result::Outcome::Unavailable(unavailable)) => Some(unavailable),
            _ => None,
        }
    }
}

impl ReserveKeyPackagesResponse {
    /// The packages held for the caller, in the order of the results.
    pub fn reservations(&self) -> impl Iterator<Item = &Reservation> {
        self.results.iter().filter_map(ReserveResult::reservation)
    }
}
