//! What goes over the wire for each call, over real tonic.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::fake::{Asked, Behaviour, Fake, SERVE};
use futures_util::StreamExt as _;
use keypool_client::{Client, Code, Error, Reserve, TokenSource, Uuid, v1};
use tokio::net::TcpListener;
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt as _};

#[tokio::test]
async fn each_call_sends_its_message() {
    let fake = Fake::serving().await;
    let client = fake.builder().connect().await.unwrap();
    client.upload([vec![1, 2], vec![3]]).await.unwrap();
    client.spend(&b"group"[..], ["r1", "r2"]).await.unwrap();
    client.release(["r3"]).await.unwrap();
    client.pool_status().await.unwrap();
    assert_eq!(
        fake.asked(),
        [
            Asked::Upload(v1::UploadKeyPackagesRequest {
                key_packages: vec![vec![1, 2].into(), vec![3].into()],
                mode: v1::UploadMode::Add.into(),
            }),
            Asked::Spend(v1::SpendKeyPackagesRequest {
                reservation_ids: vec!["r1".into(), "r2".into()],
                group_id: "group".into(),
            }),
            Asked::Release(v1::ReleaseReservationsRequest { reservation_ids: vec!["r3".into()] }),
            Asked::Status,
        ]
    );
}

#[tokio::test]
async fn an_owner_rotates_revokes_and_reads_events() {
    let fake = Fake::serving().await;
    let client = fake.builder().connect().await.unwrap();
    client.upload_replacing_other_credentials([vec![1]]).await.unwrap();
    let revoke = v1::RevokeKeyPackagesRequest { all: true, ..Default::default() };
    client.revoke(revoke.clone()).await.unwrap();
    let events = v1::ListPoolEventsRequest { page_size: 7, ..Default::default() };
    client.pool_events(events.clone()).await.unwrap();
    let rotation = v1::UploadKeyPackagesRequest {
        key_packages: vec![vec![1].into()],
        mode: v1::UploadMode::ReplaceOtherCredentials.into(),
    };
    assert_eq!(
        fake.asked(),
        [Asked::Upload(rotation), Asked::Revoke(revoke), Asked::Events(events)]
    );
}

#[tokio::test]
async fn a_watch_gives_each_state_and_the_error_that_ends_it() {
    let fake = Fake::start(Behaviour::Serve { packages: 2, package_bytes: 0 }).await;
    let client = fake.builder().connect().await.unwrap();
    let states: Vec<_> = client.watch_pool_status().await.unwrap().collect().await;
    assert!(states[0].is_ok() && states[1].is_ok());
    let error = states[2].as_ref().unwrap_err();
    assert_eq!(error.rejection().map(|rejection| rejection.code), Some(Code::Unavailable));
    assert_eq!(states.len(), 3);
    assert_eq!(fake.metadata("authorization"), [Some("Bearer token".to_owned())]);

    fake.behave(Behaviour::Hang);
    let hasty = fake.builder().deadline(Duration::from_millis(50)).connect().await.unwrap();
    let opened = hasty.watch_pool_status().await.map(drop);
    assert!(matches!(opened, Err(Error::DeadlineExceeded)), "{opened:?}");
}

#[tokio::test]
async fn a_watch_ends_without_an_error_when_its_server_is_about_to_stop() {
    let fake = Fake::start(Behaviour::Serve { packages: 1, package_bytes: 0 }).await;
    let details = ErrorDetails::with_error_info("SHUTTING_DOWN", "keypool.v1", HashMap::new());
    fake.end_streams_with(Status::with_error_details(Code::Unavailable, "stopping", details));
    let client = fake.builder().connect().await.unwrap();
    let states: Vec<_> = client.watch_pool_status().await.unwrap().collect().await;
    assert!(matches!(states.as_slice(), [Ok(_)]), "{states:?}");
}

#[tokio::test]
async fn a_reserve_says_all_that_was_asked() {
    let fake = Fake::serving().await;
    let client = fake.builder().connect().await.unwrap();
    let required = v1::RequiredCapabilities { extension_types: vec![0xf001], ..Default::default() };
    let request_id = Uuid::new_v4();
    let reserve = Reserve::new(&b"group"[..], 3_u16)
        .target("bob")
        .target_clients("carol", ["phone", "laptop"])
        .required_capabilities(required.clone())
        .ttl(Duration::from_millis(1500))
        .forbid_last_resort()
        .all_or_nothing()
        .request_id(request_id);
    client.reserve(&reserve).await.unwrap();
    let expected = v1::ReserveKeyPackagesRequest {
        request_id: request_id.to_string(),
        group_id: "group".into(),
        cipher_suite: 3,
        targets: vec![
            v1::Target { user_id: "bob".into(), client_ids: vec![] },
            v1::Target {
                user_id: "carol".into(),
                client_ids: vec!["phone".into(), "laptop".into()],
            },
        ],
        required_capabilities: Some(required),
        ttl: Some(prost_types::Duration { seconds: 1, nanos: 500_000_000 }),
        last_resort: v1::LastResort::Forbid.into(),
        all_or_nothing: true,
    };
    assert_eq!(fake.asked(), [Asked::Reserve(expected)]);
}

#[tokio::test]
async fn a_repeated_reserve_keeps_its_request_id_and_a_new_one_has_its_own() {
    let fake = Fake::serving().await;
    let client = fake.builder().connect().await.unwrap();
    let first = Reserve::new(&b"group"[..], 1_u16).target("bob");
    let second = Reserve::new(&b"group"[..], 1_u16).target("bob");
    for reserve in [&first, &first, &second] {
        client.reserve(reserve).await.unwrap();
    }
    let ids: Vec<_> = fake
        .asked()
        .into_iter()
        .map(|asked| match asked {
            Asked::Reserve(message) => Uuid::parse_str(&message.request_id).unwrap(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ids[0], ids[1]);
    assert_ne!(ids[0], ids[2]);
}

#[test]
fn a_ttl_beyond_what_can_be_said_is_the_longest_that_can() {
    for ttl in [Duration::MAX, Duration::from_secs(u64::MAX / 4)] {
        let reserve = Reserve::new(&b"group"[..], 1_u16).ttl(ttl);
        assert_eq!(reserve.message().ttl.unwrap().seconds, 315_576_000_000);
    }
}

#[tokio::test]
async fn a_thousand_packages_of_20_kib_fit_in_an_answer() {
    let fake = Fake::start(Behaviour::Serve { packages: 1000, package_bytes: 20 * 1024 }).await;
    let client = fake.builder().connect().await.unwrap();
    let answer = client.reserve(&Reserve::new(&b"group"[..], 1_u16).target("bob")).await.unwrap();
    assert_eq!(answer.reservations().count(), 1000);
}

#[tokio::test]
async fn every_call_carries_the_token_of_the_moment() {
    let fake = Fake::serving().await;
    let asked = Arc::new(AtomicUsize::new(0));
    let source = TokenSource::provider(move || {
        let number = asked.fetch_add(1, Ordering::SeqCst);
        async move { Ok(format!("token-{number}")) }
    });
    let client = Client::connect(fake.url(), source).await.unwrap();
    client.pool_status().await.unwrap();
    client.clone().pool_status().await.unwrap();
    fake.builder().connect().await.unwrap().pool_status().await.unwrap();
    let expected = ["Bearer token-0", "Bearer token-1", "Bearer token"];
    assert_eq!(fake.metadata("authorization"), expected.map(|it| Some(it.to_owned())));
}

#[tokio::test]
async fn debug_shows_no_token_group_or_user() {
    let builder = Client::builder("http://127.0.0.1:1", "hush-token");
    let client = builder.clone().connect_lazy().unwrap();
    let reserve = Reserve::new(&b"hush-group"[..], 1_u16).target("hush-user");
    let provider = TokenSource::provider(|| async { Ok("hush".into()) });
    let shown = format!("{builder:?} {client:?} {reserve:?} {provider:?}");
    assert!(shown.contains("TokenSource(..)"));
    assert!(!shown.contains("hush"), "{shown}");
}

#[tokio::test]
async fn a_client_outlives_a_dropped_call() {
    let fake = Fake::start(Behaviour::Hang).await;
    let client = fake.builder().connect().await.unwrap();
    let call = tokio::spawn({
        let client = client.clone();
        async move { client.pool_status().await }
    });
    while fake.asked().is_empty() {
        tokio::task::yield_now().await;
    }
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    fake.behave(SERVE);
    client.pool_status().await.unwrap();
}

#[tokio::test]
async fn a_lazy_client_is_there_before_the_server() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let client = Client::builder(url, "token").connect_lazy().unwrap();
    let _fake = Fake::start_on(listener, SERVE);
    client.pool_status().await.unwrap();
}

#[tokio::test]
async fn the_server_is_told_the_deadline() {
    let fake = Fake::serving().await;
    for builder in [fake.builder(), fake.builder().deadline(Duration::MAX)] {
        builder.connect().await.unwrap().pool_status().await.unwrap();
    }
    let told: Vec<_> = fake.metadata("grpc-timeout").into_iter().map(Option::unwrap).collect();
    // What is left of it, in the largest number of 8 digits (the gRPC protocol's TimeoutValue).
    let left = |text: &str, unit| text.strip_suffix(unit).unwrap().parse::<u64>().unwrap();
    assert!((1..=10_000_000).contains(&left(&told[0], 'u')), "{told:?}");
    assert!((80_000_000..=86_400_000).contains(&left(&told[1], 'm')), "{told:?}");
}

#[test]
fn calls_may_move_between_threads() {
    fn assert_send<T: Send>(_: T) {}
    fn check(client: &Client, reserve: &Reserve) {
        assert_send(client.upload([vec![0]]));
        assert_send(client.reserve(reserve));
        assert_send(client.spend("g", ["r"]));
        assert_send(client.release(["r"]));
        assert_send(client.pool_status());
    }
    let _ = check;
}
