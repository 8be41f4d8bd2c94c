//! What callers are told of revocations that make no sense, and of their quota.

use keypool_client::{
    Reserve,
    v1::{self, ErrorReason},
};
use keypool_service::{domain::policy::PoolPolicy, grpc::auth::Scope};
use keypool_testing::contract::{Device, Ground, Served, adder, ask, client, group, reserve};

use super::refused;

#[tokio::test]
async fn revocations_that_make_no_sense() {
    let ground = Ground::unfair().await;
    let served = Served::start(ground.a.clone()).await;
    let mut bob = Device::new("bob", "phone");
    let stock = ground.stock(&mut bob, 2).await;
    let owner = served.client(&bob.key, &[Scope::Publish]).await;
    let key = bytes(&bob.forge.signature_key);
    let one = vec![bytes(&stock[0].0)];
    let request = v1::RevokeKeyPackagesRequest::default;
    for (request, field) in [
        (request(), "refs"),
        (v1::RevokeKeyPackagesRequest { all: true, refs: one.clone(), ..request() }, "refs"),
        (
            v1::RevokeKeyPackagesRequest {
                all: true,
                all_except_signature_key: key.clone(),
                ..request()
            },
            "refs",
        ),
        (
            v1::RevokeKeyPackagesRequest {
                refs: vec![one[0].clone(), vec![7; 33].into()],
                ..request()
            },
            "refs[1]",
        ),
        (v1::RevokeKeyPackagesRequest { refs: vec![Vec::new().into()], ..request() }, "refs[0]"),
        (
            v1::RevokeKeyPackagesRequest {
                all_except_signature_key: vec![7; 5000].into(),
                ..request()
            },
            "all_except_signature_key",
        ),
        (
            v1::RevokeKeyPackagesRequest { all: true, client_id: "\0".into(), ..request() },
            "client_id",
        ),
    ] {
        let answer = owner.revoke(request).await;
        assert_eq!(refused(answer, ErrorReason::InvalidArgument), [field]);
    }
    let many = v1::RevokeKeyPackagesRequest { refs: vec![one[0].clone(); 1001], ..request() };
    refused(owner.revoke(many).await, ErrorReason::BatchTooLarge);
    assert_eq!(ground.counts(&bob.key).await.available, 2, "nothing of it took effect");
    let most = v1::RevokeKeyPackagesRequest { refs: vec![one[0].clone(); 1000], ..request() };
    let counts = v1::RevokeKeyPackagesResponse { available: 1, ..Default::default() };
    assert_eq!(owner.revoke(most).await.unwrap(), counts);
    let unknown =
        v1::RevokeKeyPackagesRequest { all: true, client_id: "fridge".into(), ..request() };
    assert_eq!(owner.revoke(unknown).await.unwrap(), Default::default());
}

/// Fair share as a caller sees it: for one client the call fails, for several each has its answer.
#[tokio::test]
async fn a_quota_is_told() {
    let ground = Ground::new(PoolPolicy::default()).await;
    let served = Served::start(ground.a.clone()).await;
    for user in ["bob", "carol"] {
        ground.stock(&mut Device::new(user, "phone"), 16).await;
    }
    let bob = client("bob", "phone");
    for _ in 0..2 {
        reserve(&ground.a, &adder(0), &ask(&bob)).await.unwrap();
    }
    let caller = served.client(&adder(0), &[Scope::Reserve]).await;
    let one = Reserve::new(group().as_bytes().to_vec(), 1_u16).target("bob");
    refused(caller.reserve(&one).await, ErrorReason::Quota);
    let two = Reserve::new(group().as_bytes().to_vec(), 1_u16).target("bob").target("carol");
    let results = caller.reserve(&two).await.unwrap().results;
    let quota = v1::Unavailable { reason: v1::UnavailableReason::Quota.into() };
    assert_eq!(results[0].outcome, Some(v1::reserve_result::Outcome::Unavailable(quota)));
    assert!(matches!(results[1].outcome, Some(v1::reserve_result::Outcome::Reservation(_))));
    refused(caller.reserve(&two.clone().all_or_nothing()).await, ErrorReason::Quota);
}

fn bytes(bytes: &[u8]) -> prost::bytes::Bytes {
    prost::bytes::Bytes::copy_from_slice(bytes)
}
