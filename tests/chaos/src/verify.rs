//! Whether an answer is one to the question: of that pool, of that package, and the package itself.

use keypool_client::v1;

use crate::{
    history::{Micros, Offered, Ref, Slot},
    packages::reference,
    party::Held,
};

/// That an answer is wrong, and how.
pub(crate) type Wrong = String;

/// The outcome of each package that was offered.
pub(crate) fn uploads(offered: &[Offered], results: &[v1::UploadResult]) -> Result<(), Wrong> {
    same_number(offered.len(), results.len())?;
    for (package, result) in offered.iter().zip(results) {
        let told = &result.key_package_ref[..];
        let accepted = result.accepted();
        if (accepted.is_some() || !told.is_empty()) && told != package.reference.0 {
            return Err(format!("{:?} is called {told:?}", package.reference));
        }
        let Some(accepted) = accepted else { continue };
        let until = accepted.not_after.map(|end| end.seconds * 1_000_000);
        if until != Some(package.not_after) || accepted.last_resort != package.last_resort {
            return Err(format!("{package:?} is taken for {accepted:?}"));
        }
    }
    Ok(())
}

/// What each client that was asked gave: users and clients in the order of the request.
pub(crate) fn reservations(
    asked: &[&(String, String)],
    results: &[v1::ReserveResult],
) -> Result<(), Wrong> {
    same_number(asked.len(), results.len())?;
    for ((user, client), result) in asked.iter().zip(results) {
        if (&result.user_id, &result.client_id) != (user, client) {
            return Err(format!("{}/{} for {user}/{client}", result.user_id, result.client_id));
        }
        let Some(reservation) = result.reservation() else { continue };
        let told = Ref::of(&reservation.key_package_ref);
        if told.is_none() || told != Some(reference(&reservation.key_package)) {
            return Err(format!("another package than {told:?}, of {user}/{client}"));
        }
        let slot = Slot::of(&reservation.reservation_id);
        if slot.is_none_or(|slot| slot.is_last_resort() != reservation.last_resort) {
            return Err(format!("{slot:?}, last resort: {}", reservation.last_resort));
        }
    }
    Ok(())
}

/// The packages of the reservations that were spent.
pub(crate) fn spends(held: &[Held], results: &[v1::SpendResult]) -> Result<(), Wrong> {
    same_number(held.len(), results.len())?;
    for (held, result) in held.iter().zip(results) {
        let same = result.reservation_id == held.id
            && result.key_package_ref[..] == held.reference.0
            && result.last_resort == held.slot.is_last_resort();
        if !same {
            return Err(format!("{:?} of {:?} for {:?}", result, held.slot, held.reference));
        }
    }
    Ok(())
}

/// The reservations that were released.
pub(crate) fn releases(held: &[Held], results: &[v1::ReleaseResult]) -> Result<(), Wrong> {
    same_number(held.len(), results.len())?;
    match held.iter().zip(results).find(|(held, result)| held.id != result.reservation_id) {
        Some((held, _)) => Err(format!("another reservation than {:?}", held.slot)),
        None => Ok(()),
    }
}

fn same_number(asked: usize, answered: usize) -> Result<(), Wrong> {
    if asked == answered { Ok(()) } else { Err(format!("{answered} answers to {asked}")) }
}

/// The end of a reservation.
pub(crate) fn expires_at(reservation: &v1::Reservation) -> Option<Micros> {
    let end = reservation.expires_at?;
    Some(end.seconds * 1_000_000 + Micros::from(end.nanos / 1000))
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    use keypool_service::domain::{
        ids::{Bucket, CipherSuite},
        reservation_id::{Locator, SuiteKey},
    };

    use super::*;

    /// An id without its tag, which only the service can make.
    fn id(slot: Slot) -> String {
        let bucket = Bucket::from_number(1).unwrap();
        let suite = SuiteKey { bucket, pool_id: slot.pool, cipher_suite: CipherSuite(slot.suite) };
        let locator = Locator { suite, seq: slot.seq, generation: slot.generation };
        URL_SAFE_NO_PAD.encode([&locator.encode()[..], &[0; 16]].concat())
    }

    fn result(user: &str, package: &[u8], told: Ref) -> v1::ReserveResult {
        let slot = Slot { pool: 1, suite: 1, seq: 1, generation: 1 };
        let reservation = v1::Reservation {
            reservation_id: id(slot),
            key_package_ref: told.0.to_vec().into(),
            key_package: package.to_vec().into(),
            ..Default::default()
        };
        v1::ReserveResult {
            user_id: user.into(),
            client_id: "phone".into(),
            outcome: Some(v1::reserve_result::Outcome::Reservation(reservation)),
        }
    }

    #[test]
    fn a_package_has_to_be_of_who_was_asked_and_of_its_ref() {
        let asked = ("bob".to_owned(), "phone".to_owned());
        let good = result("bob", b"package", reference(b"package"));
        assert_eq!(reservations(&[&asked], std::slice::from_ref(&good)), Ok(()));
        let of_another = result("carol", b"package", reference(b"package"));
        assert!(reservations(&[&asked], &[of_another]).is_err());
        let another = result("bob", b"other package", reference(b"package"));
        assert!(reservations(&[&asked], &[another]).is_err());
        assert!(reservations(&[&asked], &[]).is_err());
        let mut last_resort = good;
        if let Some(v1::reserve_result::Outcome::Reservation(got)) = &mut last_resort.outcome {
            got.last_resort = true;
        }
        assert!(reservations(&[&asked], &[last_resort]).is_err());
    }

    #[test]
    fn a_spend_has_to_be_of_the_package_that_was_held() {
        let slot = Slot { pool: 1, suite: 1, seq: 1, generation: 1 };
        let held = Held { id: id(slot), slot, reference: reference(b"package") };
        let spent = |package: &[u8]| v1::SpendResult {
            reservation_id: id(slot),
            key_package_ref: reference(package).0.to_vec().into(),
            ..Default::default()
        };
        assert_eq!(spends(std::slice::from_ref(&held), &[spent(b"package")]), Ok(()));
        assert!(spends(&[held], &[spent(b"other package")]).is_err());
    }

    #[test]
    fn an_upload_is_taken_for_what_it_is() {
        let offered = Offered { reference: Ref([1; 32]), not_after: 5_000_000, last_resort: false };
        let accepted = |seconds| v1::UploadResult {
            key_package_ref: vec![1; 32].into(),
            outcome: Some(v1::upload_result::Outcome::Accepted(v1::Accepted {
                not_after: Some(prost_types::Timestamp { seconds, nanos: 0 }),
                ..Default::default()
            })),
        };
        assert_eq!(uploads(&[offered], &[accepted(5)]), Ok(()));
        assert!(uploads(&[offered], &[accepted(6)]).is_err());
    }
}
