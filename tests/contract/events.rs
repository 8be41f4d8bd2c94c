//! ListPoolEvents as callers see it.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use keypool_client::{
    Client, Error,
    v1::{self, ErrorReason, PoolEventKind as Kind},
};
use keypool_service::{
    domain::{
        clock::Clock as _,
        ids::{ClientKey, KeyPackageRef},
        policy::{LapsePolicy, PoolPolicy},
    },
    grpc::auth::Scope,
    pool::Selection,
};
use keypool_testing::contract::{Device, Ground, Served, adder, client, group};
use time::Duration;

use super::refused;

type Listed = Result<v1::ListPoolEventsResponse, Error>;

fn all() -> v1::ListPoolEventsRequest {
    v1::ListPoolEventsRequest { page_size: 1000, ..Default::default() }
}

async fn auditor(served: &Served) -> Client {
    served.client(&client("auditor", "desk"), &[Scope::Audit]).await
}

/// The events of a package, the oldest first: kind, actor, group and reservation.
async fn story(auditor: &Client, of: &KeyPackageRef) -> Vec<(Kind, String, Vec<u8>, String)> {
    let request = v1::ListPoolEventsRequest { key_package_ref: of.0.clone().into(), ..all() };
    let answer = auditor.pool_events(request).await.unwrap();
    let told = |event: v1::PoolEvent| {
        let actor = match (&*event.actor_user_id, &*event.actor_client_id) {
            ("", "") => String::new(),
            (user, client) => format!("{user}/{client}"),
        };
        (event.kind(), actor, event.group_id.to_vec(), event.reservation_id)
    };
    answer.events.into_iter().rev().map(told).collect()
}

#[tokio::test]
async fn each_kind_once_with_its_actor_group_and_reservation() {
    for lapse in [LapsePolicy::Return, LapsePolicy::Burn] {
        let ground =
            Ground::new(PoolPolicy { lapse, fair_share: false, ..PoolPolicy::default() }).await;
        let served = Served::start(ground.a.clone()).await;
        let auditor = auditor(&served).await;
        let mut bob = Device::new("bob", "phone");
        let next = || async {
            ground.pass(Duration::SECOND);
            let got = ground.reserve(&adder(0), &client("bob", "phone")).await.unwrap();
            ground.pass(Duration::SECOND);
            got
        };
        let owner = "bob/phone".to_owned();
        let holder = "adder-0/laptop".to_owned();
        let group = group();
        let about = |kind, actor: &str, id: &str| {
            (kind, actor.to_owned(), group.as_bytes().to_vec(), id.to_owned())
        };
        let plain = |kind, actor: &str| (kind, actor.to_owned(), Vec::new(), String::new());

        let mut forged = bob.packages(5);
        forged.push(bob.last_resort());
        let mode = keypool_service::pool::UploadMode::Add;
        ground.a.upload(&bob.key, forged, mode).await.unwrap();

        let spent = next().await;
        ground.a.spend(&adder(0), std::slice::from_ref(&spent.id), &group).await.unwrap();
        let reserved =
            |id: &str| vec![plain(Kind::Uploaded, &owner), about(Kind::Reserved, &holder, id)];
        let then = |id: &str, more: Vec<_>| [reserved(id), more].concat();
        let expected = then(&spent.id, vec![about(Kind::Spent, &holder, &spent.id)]);
        assert_eq!(story(&auditor, &spent.key_package_ref).await, expected);

        let held = next().await;
        let selection = Selection::Refs(vec![held.key_package_ref.clone()]);
        ground
            .a
            .revoke(&client("bob", "tablet"), Some(bob.key.client.clone()), selection)
            .await
            .unwrap();
        ground.pass(Duration::SECOND);
        ground.a.release(&adder(0), std::slice::from_ref(&held.id)).await.unwrap();
        let more = vec![
            about(Kind::Revoked, "bob/tablet", &held.id),
            about(Kind::Released, &holder, &held.id),
        ];
        assert_eq!(story(&auditor, &held.key_package_ref).await, then(&held.id, more));

        let lapsed = next().await;
        ground.pass(Duration::minutes(2));
        ground.sweep().await;
        let ended = match lapse {
            LapsePolicy::Return => Kind::Lapsed,
            LapsePolicy::Burn => Kind::Burned,
        };
        let more = vec![about(ended, "", &lapsed.id)];
        assert_eq!(story(&auditor, &lapsed.key_package_ref).await, then(&lapsed.id, more.clone()));
        ground.pass(Duration::SECOND);
        ground.a.spend(&adder(0), std::slice::from_ref(&lapsed.id), &group).await.unwrap();
        let more = [more, vec![about(Kind::Spent, &holder, &lapsed.id)]].concat();
        assert_eq!(story(&auditor, &lapsed.key_package_ref).await, then(&lapsed.id, more));

        let (one, two) = (next().await, next().await);
        let granted = next().await;
        assert!(granted.last_resort);
        ground.a.spend(&adder(0), std::slice::from_ref(&granted.id), &group).await.unwrap();
        ground.pass(Duration::SECOND);
        let replacing = bob.last_resort();
        ground.a.upload(&bob.key, vec![replacing], mode).await.unwrap();
        let expected = [
            plain(Kind::Uploaded, &owner),
            about(Kind::LastResortIssued, &holder, &granted.id),
            about(Kind::Spent, &holder, &granted.id),
            plain(Kind::Revoked, &owner),
        ];
        assert_eq!(story(&auditor, &granted.key_package_ref).await, expected);

        for span in [Duration::minutes(2), Duration::days(31)] {
            ground.pass(span);
            ground.sweep().await;
        }
        for got in [one, two] {
            let told = story(&auditor, &got.key_package_ref).await;
            assert_eq!(
                told.last().unwrap().0,
                if lapse == LapsePolicy::Return { Kind::Expired } else { Kind::Burned }
            );
        }
    }
}

/// Three pools of two users, with some history.
async fn history(ground: &Ground) -> [ClientKey; 3] {
    let mut owners = ["phone", "tablet", "phone"].into_iter().zip(["bob", "bob", "carol"]);
    let mut keys = Vec::new();
    for (device, user) in &mut owners {
        let mut device = Device::new(user, device);
        ground.stock(&mut device, 4).await;
        for n in 0..3 {
            ground.pass(Duration::minutes(4));
            let got = ground.reserve(&adder(n), &device.key).await.unwrap();
            ground.a.release(&adder(n), &[got.id]).await.unwrap();
        }
        ground.pass(Duration::hours(7));
        keys.push(device.key);
    }
    keys.try_into().unwrap()
}

/// All pages of a request, `size` events each.
async fn pages(
    client: &Client,
    request: &v1::ListPoolEventsRequest,
    size: i32,
) -> Vec<v1::PoolEvent> {
    let mut events = Vec::new();
    let mut request = v1::ListPoolEventsRequest { page_size: size, ..request.clone() };
    loop {
        let page = client.pool_events(request.clone()).await.unwrap();
        assert!(page.events.len() <= usize::try_from(size).unwrap());
        events.extend(page.events);
        if page.next_page_token.is_empty() {
            return events;
        }
        request.page_token = page.next_page_token;
    }
}

#[tokio::test]
async fn pages_of_any_size_are_the_same_list_newest_first() {
    let ground = Ground::unfair().await;
    let served = Served::start(ground.a.clone()).await;
    history(&ground).await;
    let auditor = auditor(&served).await;
    for request in [all(), v1::ListPoolEventsRequest { user_id: "bob".into(), ..all() }] {
        let whole = auditor.pool_events(request.clone()).await.unwrap();
        assert_eq!(whole.next_page_token, "");
        let expected = if request.user_id.is_empty() { 30 } else { 20 };
        assert_eq!(whole.events.len(), expected);
        let at = |event: &v1::PoolEvent| event.time.map(|time| (time.seconds, time.nanos));
        assert!(whole.events.is_sorted_by(|a, b| at(a) >= at(b)));
        for size in 1..=31 {
            assert_eq!(pages(&auditor, &request, size).await, whole.events, "{size} a page");
        }
    }
}

#[tokio::test]
async fn filters() {
    let ground = Ground::unfair().await;
    let served = Served::start(ground.a.clone()).await;
    let began = ground.clock.now();
    let [phone, tablet, _] = history(&ground).await;
    let auditor = auditor(&served).await;
    let whole = auditor.pool_events(all()).await.unwrap().events;
    let timestamp = |time: time::OffsetDateTime| {
        Some(prost_types::Timestamp { seconds: time.unix_timestamp(), nanos: 0 })
    };
    let of = |request| async { auditor.pool_events(request).await.unwrap().events };
    let only = |keep: &dyn Fn(&v1::PoolEvent) -> bool| -> Vec<v1::PoolEvent> {
        whole.iter().filter(|event| keep(event)).cloned().collect()
    };
    let tablets = v1::ListPoolEventsRequest {
        user_id: "bob".into(),
        client_id: tablet.client.to_string(),
        ..all()
    };
    let expected = only(&|e| e.user_id == "bob" && e.client_id == "tablet");
    assert_eq!((of(tablets.clone()).await, expected.len()), (expected, 10));
    let one = whole[7].key_package_ref.clone();
    let expected = only(&|e| e.key_package_ref == one);
    let of_one = v1::ListPoolEventsRequest { key_package_ref: one.clone(), ..all() };
    assert_eq!(of(of_one.clone()).await, expected);
    let owner = v1::ListPoolEventsRequest { user_id: whole[7].user_id.clone(), ..of_one };
    assert_eq!(of(owner).await, expected);
    // From a time on, and before one: the first belongs to it, the other does not.
    let at = began + Duration::minutes(8);
    let from = v1::ListPoolEventsRequest { start_time: timestamp(at), ..all() };
    let before = v1::ListPoolEventsRequest { end_time: timestamp(at), ..all() };
    let later = only(&|e| e.time.is_some_and(|time| time.seconds >= at.unix_timestamp()));
    assert_eq!((of(from).await.len(), later.len()), (later.len(), 30 - 6));
    assert_eq!(of(before).await.len(), 6);
    let none = v1::ListPoolEventsRequest { end_time: timestamp(began), ..tablets };
    assert_eq!(of(none).await, []);
    let nobody = v1::ListPoolEventsRequest { user_id: "nobody".into(), ..all() };
    assert_eq!(of(nobody).await, []);
    assert_eq!(phone.client.as_str(), "phone");
}

#[tokio::test]
async fn an_owner_reads_its_own_pool_and_an_auditor_all() {
    let ground = Ground::unfair().await;
    let served = Served::start(ground.a.clone()).await;
    let [phone, tablet, _] = history(&ground).await;
    let owner = served.client(&phone, &[Scope::Publish]).await;
    let list = |user: &str, client: &str| {
        owner.pool_events(v1::ListPoolEventsRequest {
            user_id: user.into(),
            client_id: client.into(),
            ..all()
        })
    };
    for (user, client) in [("", ""), ("bob", ""), ("", "phone"), ("bob", "phone")] {
        let own = list(user, client).await.unwrap().events;
        assert_eq!(own.len(), 10);
        assert!(own.iter().all(|e| e.user_id == "bob" && e.client_id == "phone"));
    }
    for (user, client) in [("carol", ""), ("carol", "phone"), ("bob", "tablet"), ("", "tablet")] {
        refused(list(user, client).await, ErrorReason::NotYourPool);
    }
    // With the token of a page of another's pool it still sees its own only.
    let both = served.client(&tablet, &[Scope::Publish, Scope::Audit]).await;
    let page = both.pool_events(v1::ListPoolEventsRequest { page_size: 1, ..all() }).await.unwrap();
    assert_eq!(page.events[0].user_id, "carol");
    let stolen = v1::ListPoolEventsRequest { page_token: page.next_page_token, ..all() };
    let seen = owner.pool_events(stolen).await.unwrap().events;
    assert!(!seen.is_empty() && seen.iter().all(|e| e.client_id == "phone" && e.user_id == "bob"));

    let adder = served.client(&phone, &[Scope::Reserve]).await;
    refused(adder.pool_events(all()).await, ErrorReason::ScopeMissing);
    let auditor = auditor(&served).await;
    assert_eq!(auditor.pool_events(all()).await.unwrap().events.len(), 30);
    refused(auditor.pool_status().await, ErrorReason::ScopeMissing);
    let everything = v1::RevokeKeyPackagesRequest { all: true, ..Default::default() };
    refused(auditor.revoke(everything.clone()).await, ErrorReason::ScopeMissing);
    refused(adder.revoke(everything).await, ErrorReason::ScopeMissing);
}

#[tokio::test]
async fn bad_requests() {
    let ground = Ground::unfair().await;
    let served = Served::start(ground.a.clone()).await;
    history(&ground).await;
    let auditor = auditor(&served).await;
    let wrong = |answer: Listed| refused(answer, ErrorReason::InvalidArgument);
    let page = v1::ListPoolEventsRequest { page_size: 1, ..all() };
    let token = auditor.pool_events(page).await.unwrap().next_page_token;
    let with_token =
        |page_token: String| auditor.pool_events(v1::ListPoolEventsRequest { page_token, ..all() });
    assert!(with_token(token.clone()).await.is_ok());
    let raw = URL_SAFE_NO_PAD.decode(&token).unwrap();
    let locator = raw.splitn(3, |byte| *byte == b' ').nth(2).unwrap();
    let crafted = |start: &str| URL_SAFE_NO_PAD.encode([start.as_bytes(), locator].concat());
    for broken in [
        "x".to_owned(),
        "not a token".to_owned(),
        token[..token.len() - 2].to_owned(),
        format!("{token}AA"),
        URL_SAFE_NO_PAD.encode("1 uploaded "),
        crafted("1800000000000000 unheard "),
        crafted("now uploaded "),
        // Times that Postgres cannot hold.
        crafted("-300000000000000000 uploaded "),
        crafted("9223372036854775807 uploaded "),
        crafted("-9223372036854775808 uploaded "),
    ] {
        assert_eq!(wrong(with_token(broken).await), ["page_token"]);
    }
    // Any other is just a place in the list.
    let reached = with_token(crafted("-60000000000000000 uploaded ")).await.unwrap();
    assert_eq!(reached.events, []);
    let far = |seconds, nanos| Some(prost_types::Timestamp { seconds, nanos });
    for (request, field) in [
        (v1::ListPoolEventsRequest { page_size: -1, ..all() }, "page_size"),
        (v1::ListPoolEventsRequest { client_id: "phone".into(), ..all() }, "user_id"),
        (v1::ListPoolEventsRequest { user_id: "\n".into(), ..all() }, "user_id"),
        (
            v1::ListPoolEventsRequest { key_package_ref: vec![1; 33].into(), ..all() },
            "key_package_ref",
        ),
        (v1::ListPoolEventsRequest { start_time: far(i64::MIN, 0), ..all() }, "start_time"),
        (v1::ListPoolEventsRequest { end_time: far(i64::MAX, 0), ..all() }, "end_time"),
        (v1::ListPoolEventsRequest { end_time: far(0, -1), ..all() }, "end_time"),
    ] {
        assert_eq!(wrong(auditor.pool_events(request).await), [field]);
    }
    let huge = v1::ListPoolEventsRequest { page_size: i32::MAX, ..all() };
    assert_eq!(auditor.pool_events(huge).await.unwrap().events.len(), 30);
    let reversed =
        v1::ListPoolEventsRequest { start_time: far(9, 0), end_time: far(3, 0), ..all() };
    assert_eq!(auditor.pool_events(reversed).await.unwrap().events, []);
}
