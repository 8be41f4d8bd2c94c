//! What a Reserve answers.

use std::collections::HashSet;

use keypool_service::{
    domain::{capabilities::Capabilities, error::Error, ids::CipherSuite},
    pool::{MAX_CLIENTS, ReserveResult, Unavailable},
};
use keypool_testing::{
    forge::NOW,
    world::{World, ask, ask_users, client, last_resort, only, package},
};
use time::Duration;

/// Who was asked, and whether they gave a package.
fn seats(results: &[ReserveResult]) -> Vec<(String, Option<String>, Option<Unavailable>)> {
    let seat = |r: &ReserveResult| {
        (
            r.user.to_string(),
            r.client.as_ref().map(ToString::to_string),
            r.outcome.as_ref().err().copied(),
        )
    };
    results.iter().map(seat).collect()
}

fn seat(
    user: &str,
    client: Option<&str>,
    refusal: Option<Unavailable>,
) -> (String, Option<String>, Option<Unavailable>) {
    (user.to_owned(), client.map(str::to_owned), refusal)
}

#[tokio::test]
async fn every_client_of_every_target_in_request_order_without_the_callers_own() {
    let world = World::new().await;
    for (user, id) in
        [("zoe", "2"), ("zoe", "10"), ("alice", "phone"), ("alice", "tablet"), ("bob", "1")]
    {
        world.stock(&client(user, id), 1).await;
    }
    let caller = client("alice", "phone");
    let results = world.a.reserve(&caller, &ask_users(&["zoe", "nobody", "alice", "bob"])).await;
    let exhausted = Some(Unavailable::PoolExhausted);
    assert_eq!(
        seats(&results.unwrap()),
        [
            seat("zoe", Some("10"), None),
            seat("zoe", Some("2"), None),
            seat("nobody", None, exhausted),
            seat("alice", Some("tablet"), None),
            seat("bob", Some("1"), None),
        ]
    );
    // Named, in the order named; the own one is left out again.
    let named =
        [client("zoe", "2"), client("zoe", "none"), caller.clone(), client("alice", "tablet")];
    let results = world.a.reserve(&caller, &ask(&named.each_ref())).await.unwrap();
    assert_eq!(
        seats(&results),
        [
            seat("zoe", Some("2"), exhausted),
            seat("zoe", Some("none"), exhausted),
            seat("alice", Some("tablet"), exhausted),
        ]
    );
    assert_eq!(world.counts(&caller).await.available, 1);
    // Nothing but the own client: nothing to reserve.
    assert!(world.a.reserve(&caller, &ask(&[&caller])).await.unwrap().is_empty());
}

#[tokio::test]
async fn one_client_that_gives_nothing_fails_the_call() {
    let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
    world.stock(&bob, 1).await;
    world.reserve(&alice, &bob).await;
    let unknown_client = client("bob", "2");
    for request in
        [ask(&[&bob]), ask(&[&unknown_client]), ask_users(&["nobody"]), ask_users(&["alice"])]
    {
        let refused = world.a.reserve(&alice, &request).await;
        assert!(matches!(refused, Err(Error::PoolExhausted)), "{request:?}");
    }
    // Another suite is a reason where there is something of this one.
    let mut other_suite = ask(&[&bob]);
    other_suite.cipher_suite = CipherSuite(2);
    let refused = world.a.reserve(&alice, &other_suite).await;
    assert!(matches!(refused, Err(Error::PoolExhausted)));
    world.stock(&bob, 1).await;
    let refused = world.a.reserve(&alice, &other_suite).await;
    assert!(matches!(refused, Err(Error::NoCompatibleKeyPackage)));
}

/// Where the call names no clients, nobody hears how many have nothing left, nor who they are.
#[tokio::test]
async fn a_user_who_has_nothing_left_is_one_result_like_a_stranger() {
    let (world, alice) = (World::new().await, client("alice", "1"));
    for id in ["1", "2"] {
        let bob = client("bob", id);
        world.stock(&bob, 1).await;
        let held = world.reserve(&client("carol", "1"), &bob).await;
        world.spend(&client("carol", "1"), &[&held.id]).await.unwrap();
    }
    world.stock(&client("dave", "1"), 2).await;
    let exhausted = Some(Unavailable::PoolExhausted);
    let results = world.a.reserve(&alice, &ask_users(&["bob", "dave", "nobody"])).await.unwrap();
    assert_eq!(
        seats(&results),
        [
            seat("bob", None, exhausted),
            seat("dave", Some("1"), None),
            seat("nobody", None, exhausted)
        ]
    );
    for user in ["bob", "nobody"] {
        let refused = world.a.reserve(&alice, &ask_users(&[user])).await;
        assert!(matches!(refused, Err(Error::PoolExhausted)), "{user}");
    }
    // Who has something left is told client by client.
    world.stock(&client("bob", "2"), 2).await;
    let results = world.a.reserve(&alice, &ask_users(&["bob"])).await.unwrap();
    assert_eq!(seats(&results), [seat("bob", Some("1"), exhausted), seat("bob", Some("2"), None)]);
}

#[tokio::test]
async fn all_or_nothing_reserves_nothing_when_one_gives_nothing() {
    let world = World::new().await;
    let (bob, carol, alice) = (client("bob", "1"), client("carol", "1"), client("alice", "1"));
    world.stock(&bob, 1).await;
    world.stock_last_resort(&carol).await;
    let mut request = ask(&[&carol, &bob, &client("dave", "1")]);
    request.all_or_nothing = true;
    assert!(matches!(world.a.reserve(&alice, &request).await, Err(Error::PoolExhausted)));
    let mut request = ask_users(&["bob", "nobody"]);
    request.all_or_nothing = true;
    assert!(matches!(world.a.reserve(&alice, &request).await, Err(Error::PoolExhausted)));
    for table in ["draw", "last_resort_grant", "event WHERE kind <> 'uploaded'"] {
        assert_eq!(world.number(&format!("SELECT count(*) FROM {table}")).await, 0, "{table}");
    }
    assert_eq!(world.counts(&bob).await.available, 1);

    let mut request = ask(&[&carol, &bob]);
    request.all_or_nothing = true;
    let results = world.a.reserve(&alice, &request).await.unwrap();
    assert_eq!(seats(&results), [seat("carol", Some("1"), None), seat("bob", Some("1"), None)]);
    // A repeated call finds what the first one got, though bob has nothing left.
    let again = world.b.reserve(&alice, &request).await.unwrap();
    let ids = |results: &[ReserveResult]| -> Vec<String> {
        results.iter().map(|r| r.outcome.as_ref().unwrap().id.clone()).collect()
    };
    assert_eq!(ids(&again), ids(&results));
}

#[tokio::test]
async fn required_capabilities_choose_among_the_packages() {
    let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
    let able = |seconds, extensions: &[u16]| {
        let extensions = extensions.to_vec();
        package(&bob)
            .lifetime(NOW - 60, NOW + seconds)
            .with(|f| {
                f.capabilities.extensions = extensions;
                f.capabilities.proposals = vec![8];
                f.capabilities.credentials.push(0xf00d);
            })
            .build()
    };
    world.upload(&bob, vec![able(10_000, &[]), able(20_000, &[0xff01, 0xff02])]).await;
    let reserve = async |required: Capabilities| {
        let mut request = ask(&[&bob]);
        request.required = required;
        world.a.reserve(&alice, &request).await
    };
    for required in [
        Capabilities::required([0xff03], [], []),
        Capabilities::required([0xff01, 0xff03], [], []),
        Capabilities::required([], [0xff01], []),
        Capabilities::required([], [], [0xff01]),
    ] {
        assert!(matches!(reserve(required).await, Err(Error::NoCompatibleKeyPackage)));
    }
    // The later one is chosen: the sooner one cannot do it.
    let got = only(reserve(Capabilities::required([0xff02], [], [])).await.unwrap());
    assert_eq!(got.not_after.unix_timestamp(), (NOW + 20_000) as i64);
    // Types that every client supports by default are always met, listed types too.
    let defaults = Capabilities::required([1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6, 7, 8], [1, 0xf00d]);
    let got = only(reserve(defaults).await.unwrap());
    assert_eq!(got.not_after.unix_timestamp(), (NOW + 10_000) as i64);
    assert!(matches!(reserve(Capabilities::default()).await, Err(Error::PoolExhausted)));

    // The last resort package is held to them too.
    world.upload(&bob, vec![last_resort(&bob).build()]).await;
    let refused = reserve(Capabilities::required([0xff01], [], [])).await;
    assert!(matches!(refused, Err(Error::NoCompatibleKeyPackage)));
    assert!(only(reserve(Capabilities::required([0x000a], [], [])).await.unwrap()).last_resort);
}

#[tokio::test]
async fn the_ttl_has_a_default_and_a_cap() {
    let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
    world.stock(&bob, 3).await;
    world.stock_last_resort(&bob).await;
    let hours = Duration::hours;
    for (ttl, expected) in [
        (None, Duration::seconds(60)),
        (Some(Duration::seconds(5)), Duration::seconds(5)),
        (Some(hours(5)), Duration::minutes(10)),
        (Some(hours(5)), Duration::minutes(10)), // the last resort package
    ] {
        let mut request = ask(&[&bob]);
        request.ttl = ttl;
        let got = only(world.a.reserve(&alice, &request).await.unwrap());
        assert_eq!(
            got.expires_at.unix_timestamp(),
            (world.now() as i64) + expected.whole_seconds()
        );
    }
}

#[tokio::test]
async fn the_last_resort_package_can_be_forbidden() {
    let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
    let last = world.stock_last_resort(&bob).await;
    let mut request = ask(&[&bob]);
    request.last_resort = false;
    assert!(matches!(world.a.reserve(&alice, &request).await, Err(Error::PoolExhausted)));
    for issued in 1..=3 {
        let got = world.reserve(&alice, &bob).await;
        assert_eq!((&got.key_package_ref, got.last_resort), (&last, true));
        assert_eq!(world.counts(&bob).await.last_resort.unwrap().times_issued, issued);
    }
}

#[tokio::test]
async fn more_than_a_thousand_clients_are_refused() {
    let world = World::new().await;
    let alice = client("alice", "1");
    let stocked = client("bob", "0");
    world.stock(&stocked, 1).await;
    world
        .texts(
            "INSERT INTO pool (bucket, user_id, client_id, pool_id, last_upload_at)
             SELECT bucket, user_id, n::text, n, last_upload_at
             FROM pool, generate_series(1, 999) AS n
             RETURNING client_id",
        )
        .await;
    let results = world.a.reserve(&alice, &ask_users(&["bob"])).await.unwrap();
    assert_eq!(results.len(), MAX_CLIENTS);
    let clients: HashSet<_> = results.iter().map(|r| r.client.clone()).collect();
    assert_eq!(clients.len(), MAX_CLIENTS);
    assert_eq!(results.iter().filter(|r| r.outcome.is_ok()).count(), 1);

    for request in [ask_users(&["bob", "carol"]), {
        let mut request = ask_users(&["bob"]);
        request.targets.extend(ask(&[&client("carol", "1")]).targets);
        request
    }] {
        let refused = world.a.reserve(&alice, &request).await;
        assert!(matches!(
            refused,
            Err(Error::BatchTooLarge { field: "targets", limit: MAX_CLIENTS })
        ));
    }
    // The caller's own client does not count.
    let own = client("bob", "7");
    let refused = world.a.reserve(&own, &ask_users(&["bob"])).await;
    assert!(matches!(refused, Err(Error::PoolExhausted)), "not BatchTooLarge");
}
