//! Each reason to refuse a KeyPackage, told for exactly the package that earns it.

use keypool_client::v1::RejectReason;

use super::*;

/// What the phone of `user` uploads last; its last package is to be refused for `reason`.
async fn provoke(reason: RejectReason, server: &Server, user: &str) -> Vec<Vec<u8>> {
    let forged = |change: fn(&mut Forge)| vec![package(user).with(change).build()];
    match reason {
        RejectReason::Unspecified => panic!("never sent"),
        RejectReason::Malformed => vec![b"garbage".to_vec()],
        RejectReason::UnsupportedVersion => forged(|it| it.version = 2),
        RejectReason::UnsupportedCipherSuite => {
            vec![Forge::new(5, user).valid_around(now()).build()]
        }
        RejectReason::InvalidSignature => forged(|it| it.signature = Some(vec![0; 64])),
        RejectReason::InvalidLeafNode => forged(|it| it.capabilities.cipher_suites.clear()),
        RejectReason::InvalidInitKey => forged(|it| it.init_key = it.encryption_key.clone()),
        RejectReason::CredentialMismatch => forged(|it| it.credential = b"mallory".to_vec()),
        RejectReason::Lifetime => vec![package(user).lifetime(0, 1).build()],
        RejectReason::AlreadyUsed => {
            let used = packages(user, 1);
            publish(&server.client(user, "phone").await, used.clone()).await;
            let adder = server.client("adder", "phone").await;
            let reservation = reserve_one(&adder, &one_of(user)).await;
            adder.spend(GROUP, [reservation.reservation_id]).await.unwrap();
            used
        }
        RejectReason::OwnedByAnotherClient => {
            let theirs = packages(user, 1);
            publish(&server.client(user, "tablet").await, theirs.clone()).await;
            theirs
        }
        // One more than the hard cap.
        RejectReason::PoolFull => packages(user, 3),
        RejectReason::DuplicateInRequest => {
            let twice = packages(user, 1);
            [twice.clone(), twice].concat()
        }
    }
}

#[tokio::test]
async fn every_reason_is_told_for_the_package_that_earns_it() {
    let database = database().await;
    let small = options().set("pool.low_watermark", 0).set("pool.target", 1);
    let server = Server::start(&database, &small.set("pool.hard_cap", 2)).await;
    let reasons = (1..).map_while(|number| RejectReason::try_from(number).ok());
    for reason in reasons {
        let user = format!("user of {}", reason.as_str_name());
        let sent = provoke(reason, &server, &user).await;
        let client = server.client(&user, "phone").await;
        let answer = client.upload(sent.clone()).await.unwrap();
        let (last, before) = answer.results.split_last().unwrap();
        let rejected = last.rejected().unwrap_or_else(|| panic!("{reason:?}: {last:?}"));
        assert_eq!(rejected.reason(), reason, "{}", rejected.message);
        assert!(!rejected.message.is_empty());
        let has_no_ref = [RejectReason::Malformed];
        assert_eq!(last.key_package_ref.is_empty(), has_no_ref.contains(&reason), "{reason:?}");
        assert!(before.iter().all(|result| result.accepted().is_some()), "{reason:?}");
        let status = answer.status.unwrap();
        let available: u32 = status.cipher_suites.iter().map(|suite| suite.available).sum();
        assert_eq!(available as usize, before.len(), "{reason:?}");
    }
}

#[tokio::test]
async fn a_bad_package_does_not_hold_up_the_good_ones_beside_it() {
    let database = database().await;
    let server = Server::start(&database, &options()).await;
    let bob = server.client("bob", "phone").await;
    let good = packages("bob", 2);
    let sent = [good[0].clone(), b"garbage".to_vec(), good[1].clone(), vec![]];
    let answer = bob.upload(sent.clone()).await.unwrap();
    let accepted: Vec<bool> = answer.results.iter().map(|it| it.accepted().is_some()).collect();
    assert_eq!(accepted, [true, false, true, false]);
    assert_eq!(counts(&bob).await.available, 2);

    let again = bob.upload(sent).await.unwrap();
    let present: Vec<Option<bool>> =
        again.results.iter().map(|it| it.accepted().map(|it| it.already_present)).collect();
    assert_eq!(present, [Some(true), None, Some(true), None]);
    assert_eq!(counts(&bob).await.available, 2);
}
