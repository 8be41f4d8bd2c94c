//! What is wrong with a request is told field by field, all of it at once.

use keypool_client::{Code, v1::ErrorReason};
use keypool_testing::tokens::{authorized, token};
use prost_types::{Duration, Timestamp};

use super::*;

type Change<T> = fn(&mut T);

/// 256 bytes: one more than an id may have.
fn long() -> String {
    "é".repeat(128)
}

fn target(user_id: impl Into<String>, client_ids: &[&str]) -> v1::Target {
    v1::Target {
        user_id: user_id.into(),
        client_ids: client_ids.iter().map(ToString::to_string).collect(),
    }
}

fn reserve() -> v1::ReserveKeyPackagesRequest {
    one_of("bob").message().clone()
}

fn capabilities(change: Change<v1::RequiredCapabilities>) -> Option<v1::RequiredCapabilities> {
    let mut capabilities = v1::RequiredCapabilities::default();
    change(&mut capabilities);
    Some(capabilities)
}

/// Each with the one field that is wrong.
const RESERVE: &[(&str, Change<v1::ReserveKeyPackagesRequest>)] = &[
    ("request_id", |it| it.request_id.clear()),
    ("request_id", |it| it.request_id = "no uuid".into()),
    ("request_id", |it| it.request_id.push('0')),
    ("group_id", |it| it.group_id.clear()),
    ("group_id", |it| it.group_id = vec![7; 256].into()),
    ("cipher_suite", |it| it.cipher_suite = 0),
    ("cipher_suite", |it| it.cipher_suite = 65_536),
    ("cipher_suite", |it| it.cipher_suite = 70_000),
    ("cipher_suite", |it| it.cipher_suite = u32::MAX),
    ("targets", |it| it.targets.clear()),
    ("targets[0].user_id", |it| it.targets = vec![target("", &[])]),
    ("targets[0].user_id", |it| it.targets = vec![target(long(), &[])]),
    ("targets[0].user_id", |it| it.targets = vec![target("b\u{7}b", &[])]),
    ("targets[0].user_id", |it| it.targets = vec![target("b\u{85}b", &[])]),
    ("targets[1].user_id", |it| it.targets = vec![target("bob", &[]), target("\0", &[])]),
    ("targets[1].user_id", |it| it.targets = vec![target("bob", &["a"]), target("bob", &[])]),
    ("targets[0].client_ids[0]", |it| it.targets = vec![target("bob", &[""])]),
    ("targets[0].client_ids[1]", |it| it.targets = vec![target("bob", &["a", &long()])]),
    ("targets[0].client_ids[0]", |it| it.targets = vec![target("bob", &["\n"])]),
    ("targets[0].client_ids[2]", |it| it.targets = vec![target("bob", &["a", "b", "a"])]),
    ("required_capabilities.extension_types", |it| {
        it.required_capabilities = capabilities(|it| it.extension_types = vec![1, 65_536]);
    }),
    ("required_capabilities.proposal_types", |it| {
        it.required_capabilities = capabilities(|it| it.proposal_types = vec![u32::MAX]);
    }),
    ("required_capabilities.credential_types", |it| {
        it.required_capabilities = capabilities(|it| it.credential_types = vec![70_000]);
    }),
    ("required_capabilities.extension_types", |it| {
        it.required_capabilities = capabilities(|it| it.extension_types = vec![9; 257]);
    }),
    ("ttl", |it| it.ttl = Some(Duration { seconds: 0, nanos: 0 })),
    ("ttl", |it| it.ttl = Some(Duration { seconds: -1, nanos: 0 })),
    ("ttl", |it| it.ttl = Some(Duration { seconds: 0, nanos: -1 })),
    ("ttl", |it| it.ttl = Some(Duration { seconds: i64::MIN, nanos: i32::MIN })),
    ("last_resort", |it| it.last_resort = 3),
    ("last_resort", |it| it.last_resort = -1),
];

const REVOKE: &[(&str, Change<v1::RevokeKeyPackagesRequest>)] = &[
    ("client_id", |it| it.client_id = long()),
    ("client_id", |it| it.client_id = "\0".into()),
    ("refs", |it| it.all = false),
    ("refs", |it| it.refs = vec![vec![1; 32].into()]),
    ("refs", |it| it.all_except_signature_key = vec![1; 32].into()),
    ("refs[1]", |it| {
        it.all = false;
        it.refs = vec![vec![1; 32].into(), vec![1; 33].into()];
    }),
    ("all_except_signature_key", |it| {
        it.all = false;
        it.all_except_signature_key = vec![1; 5000].into();
    }),
];

/// Of a caller with all scopes.
const EVENTS: &[(&str, Change<v1::ListPoolEventsRequest>)] = &[
    ("user_id", |it| it.user_id = long()),
    ("user_id", |it| it.user_id = "\u{7f}".into()),
    ("user_id", |it| it.client_id = "phone".into()),
    ("client_id", |it| (it.user_id, it.client_id) = ("bob".into(), "\r".into())),
    ("key_package_ref", |it| it.key_package_ref = vec![1; 31].into()),
    ("start_time", |it| it.start_time = Some(Timestamp { seconds: i64::MIN, nanos: i32::MIN })),
    ("end_time", |it| it.end_time = Some(Timestamp { seconds: i64::MAX, nanos: i32::MAX })),
    ("end_time", |it| it.end_time = Some(Timestamp { seconds: 0, nanos: -1 })),
    ("page_size", |it| it.page_size = -1),
    ("page_token", |it| it.page_token = "no token".into()),
    ("page_token", |it| it.page_token = "AAAA".into()),
];

/// Each may look odd, but is right.
const GOOD_RESERVE: &[Change<v1::ReserveKeyPackagesRequest>] = &[
    |it| it.request_id = it.request_id.to_uppercase(),
    |it| it.group_id = vec![0; 255].into(),
    |it| it.targets[0].client_ids.clear(),
    |it| it.ttl = Some(Duration { seconds: i64::MAX, nanos: 999_999_999 }),
    |it| it.ttl = Some(Duration { seconds: 0, nanos: 1 }),
    |it| it.last_resort = v1::LastResort::Forbid.into(),
    |it| it.required_capabilities = capabilities(|it| it.extension_types = vec![1, 2, 3]),
];

#[track_caller]
fn only_violation(status: tonic::Status, field: &str) {
    let refused = Rejection::from(status);
    assert_eq!(refused.code, Code::InvalidArgument, "{field}: {refused:?}");
    assert_eq!(refused.reason, Some(ErrorReason::InvalidArgument), "{field}: {refused:?}");
    let fields: Vec<&str> = refused.field_violations.iter().map(|it| &*it.field).collect();
    assert_eq!(fields, [field], "{refused:?}");
    assert!(!refused.field_violations[0].description.is_empty());
}

#[tokio::test]
async fn each_wrong_field_of_a_reserve_is_named() {
    let database = database().await;
    let server = Server::start(&database, &options()).await;
    publish_some(&server, "bob", GOOD_RESERVE.len()).await;
    let mut grpc = server.grpc().await;
    let alice = token("alice", "phone");
    for (field, change) in RESERVE {
        let mut request = reserve();
        change(&mut request);
        let answer = grpc.reserve_key_packages(authorized(&alice, request)).await;
        only_violation(answer.unwrap_err(), field);
    }
    for change in GOOD_RESERVE {
        let mut request = reserve();
        change(&mut request);
        grpc.reserve_key_packages(authorized(&alice, request)).await.unwrap();
    }
}

#[tokio::test]
async fn each_wrong_field_of_the_other_calls_is_named() {
    let database = database().await;
    let server = Server::start(&database, &options()).await;
    let mut grpc = server.grpc().await;
    let bob = token("bob", "phone");
    for (field, key_packages, mode) in
        [("key_packages", vec![], 1), ("mode", packages("bob", 1), 9), ("mode", vec![vec![1]], -1)]
    {
        let key_packages = key_packages.into_iter().map(Into::into).collect();
        let request = v1::UploadKeyPackagesRequest { key_packages, mode };
        let answer = grpc.upload_key_packages(authorized(&bob, request)).await;
        only_violation(answer.unwrap_err(), field);
    }
    let id = || vec!["x".to_owned()];
    for (field, reservation_ids, group_id) in [
        ("reservation_ids", vec![], vec![1]),
        ("group_id", id(), vec![]),
        ("group_id", id(), vec![1; 256]),
    ] {
        let group_id = group_id.into();
        let request = v1::SpendKeyPackagesRequest { reservation_ids, group_id };
        let answer = grpc.spend_key_packages(authorized(&bob, request)).await;
        only_violation(answer.unwrap_err(), field);
    }
    let request = v1::ReleaseReservationsRequest { reservation_ids: vec![] };
    let answer = grpc.release_reservations(authorized(&bob, request)).await;
    only_violation(answer.unwrap_err(), "reservation_ids");
    for (field, change) in REVOKE {
        let mut request = v1::RevokeKeyPackagesRequest { all: true, ..Default::default() };
        change(&mut request);
        let answer = grpc.revoke_key_packages(authorized(&bob, request)).await;
        only_violation(answer.unwrap_err(), field);
    }
    for (field, change) in EVENTS {
        let mut request = v1::ListPoolEventsRequest::default();
        change(&mut request);
        let answer = grpc.list_pool_events(authorized(&bob, request)).await;
        only_violation(answer.unwrap_err(), field);
    }
}

#[tokio::test]
async fn all_that_is_wrong_is_told_at_once() {
    let database = database().await;
    let server = Server::start(&database, &options()).await;
    let request = v1::ReserveKeyPackagesRequest {
        targets: vec![target("", &[]), target("bob", &["\t"])],
        ttl: Some(Duration { seconds: -5, nanos: 0 }),
        last_resort: 77,
        ..Default::default()
    };
    let call = authorized(&token("alice", "phone"), request);
    let refused: Rejection =
        server.grpc().await.reserve_key_packages(call).await.unwrap_err().into();
    let mut fields: Vec<&str> = refused.field_violations.iter().map(|it| &*it.field).collect();
    fields.sort_unstable();
    let expected = [
        "cipher_suite",
        "group_id",
        "last_resort",
        "request_id",
        "targets[0].user_id",
        "targets[1].client_ids[0]",
        "ttl",
    ];
    assert_eq!(fields, expected);
}

#[tokio::test]
async fn too_many_items_are_refused_with_the_limit() {
    let database = database().await;
    let server = Server::start(&database, &options()).await;
    let client = server.client("bob", "phone").await;
    let many_targets = (0..101).fold(Reserve::new(GROUP, SUITE), |it, n| it.target(n.to_string()));
    let clients: Vec<String> = (0..501).map(|n| n.to_string()).collect();
    let many_clients = Reserve::new(GROUP, SUITE)
        .target_clients("bob", clients.clone())
        .target_clients("carol", clients);
    let ids = || vec!["x"; 1001];
    let refs = vec![vec![1; 32].into(); 1001];
    let too_many_refs = v1::RevokeKeyPackagesRequest { refs, ..Default::default() };
    for (refused, field, limit) in [
        (rejection(client.upload(vec![&b"x"[..]; 101]).await), "key_packages", "100"),
        (rejection(client.reserve(&many_targets).await), "targets", "100"),
        (rejection(client.reserve(&many_clients).await), "targets.client_ids", "1000"),
        (rejection(client.spend(GROUP, ids()).await), "reservation_ids", "1000"),
        (rejection(client.release(ids()).await), "reservation_ids", "1000"),
        (rejection(client.revoke(too_many_refs).await), "refs", "1000"),
    ] {
        assert_eq!(refused.code, Code::InvalidArgument);
        assert_eq!(refused.reason, Some(ErrorReason::BatchTooLarge), "{refused:?}");
        assert_eq!(refused.metadata["field"], field);
        assert_eq!(refused.metadata["limit"], limit);
    }
}

#[tokio::test]
async fn what_was_never_a_reservation_is_unknown() {
    let database = database().await;
    let server = Server::start(&database, &options()).await;
    publish_some(&server, "bob", 1).await;
    let alice = server.client("alice", "phone").await;
    let real = reserve_one(&alice, &one_of("bob")).await.reservation_id;
    let (cut, longer, huge) = (&real[1..], format!("{real}A"), "A".repeat(100_000));
    for id in ["", "x", "\0", "💥", cut, &longer, &huge] {
        for refused in [
            rejection(alice.spend(GROUP, [id]).await),
            rejection(alice.release([id]).await),
            rejection(alice.spend(GROUP, [&*real, id]).await),
        ] {
            assert_eq!(refused.reason, Some(ErrorReason::ReservationUnknown), "{id:?}");
        }
    }
    // Nothing of the mixed calls took effect.
    assert!(!alice.spend(GROUP, [real]).await.unwrap()[0].already_spent);
}

/// Details are a header, and over one of more than 16 KiB most clients end the whole connection.
#[tokio::test]
async fn a_thousand_wrong_fields_fit_into_an_answer() {
    let database = database().await;
    let server = Server::start(&database, &options()).await;
    let mut grpc = server.grpc().await;
    let bob = token("bob", "phone");
    let request =
        v1::RevokeKeyPackagesRequest { refs: vec![vec![1; 33].into(); 1000], ..Default::default() };
    let status = grpc.revoke_key_packages(authorized(&bob, request)).await.unwrap_err();
    let refused = Rejection::from(status);
    assert_eq!(refused.reason, Some(ErrorReason::InvalidArgument), "{refused:?}");
    let told = refused.field_violations;
    assert_eq!((told.len(), &*told[31].field), (33, "refs[31]"), "{told:?}");
    assert_eq!(told[32].description, "968 more fields are wrong");
    grpc.get_pool_status(authorized(&bob, v1::GetPoolStatusRequest {})).await.unwrap();
}
