//! How a holder ends its reservations.

use keypool_service::domain::{error::Error, reservation_id::ReservationKey};
use keypool_testing::world::{World, ask, client, group, join_all, only, spawn};

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_spends_of_the_holder_settle_it_once_and_those_of_others_fail() {
    let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
    let refs = world.stock(&bob, 2).await;
    let held = world.reserve(&alice, &bob).await;
    let calls = (0..128).map(|n| {
        let pool = if n % 4 < 2 { world.a.clone() } else { world.b.clone() };
        let id = held.id.clone();
        let caller =
            if n % 2 == 0 { client("alice", "1") } else { client(&format!("eve-{n}"), "1") };
        spawn(async move { pool.spend(&caller, &[id], &group(1)).await })
    });
    let (mut first, mut others) = (0, 0);
    for answer in join_all(calls.collect()).await {
        match answer {
            Ok(spent) => {
                assert_eq!(spent[0].key_package_ref, refs[0]);
                first += usize::from(!spent[0].already);
            }
            Err(Error::ReservationUnknown) => others += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!((first, others), (1, 64));
    assert_eq!(world.events(&refs[0]).await, ["uploaded", "reserved", "spent"]);
    assert_eq!(world.number("SELECT count(*) FROM tombstone").await, 1);
    assert_eq!(world.number("SELECT count(*) FROM package").await, 1);
    let counts = world.counts(&bob).await;
    assert_eq!((counts.available, counts.reserved, counts.spent), (1, 0, 1));
}

/// Whoever has read the secret behind reservation ids can make ids, and has nothing of them.
#[tokio::test]
async fn an_id_that_was_made_with_the_secret_settles_nothing_of_anothers() {
    for world in [World::new().await, World::burning().await] {
        let (bob, alice, mallory) =
            (client("bob", "1"), client("alice", "1"), client("mallory", "1"));
        world.stock(&bob, 2).await;
        world.stock_last_resort(&bob).await;
        let secret: Vec<u8> = sqlx::query_scalar("SELECT secret FROM service_secret")
            .fetch_one(&world.database.pool)
            .await
            .unwrap();
        let key = ReservationKey::new(secret.as_slice().try_into().unwrap());
        let stolen = |id: &str| {
            let locator = key.open(id, alice.digest()).unwrap();
            key.seal(&locator, mallory.digest())
        };
        let refused = async |id: &str, when: &str| {
            let spend = world.spend(&mallory, &[&stolen(id)]).await;
            assert!(matches!(spend, Err(Error::ReservationUnknown)), "{when}: {spend:?}");
            let release = world.release(&mallory, &[&stolen(id)]).await;
            assert!(matches!(release, Err(Error::ReservationUnknown)), "{when}: {release:?}");
        };
        for late in [false, true] {
            let held = world.reserve(&alice, &bob).await;
            refused(&held.id, "reserved").await;
            if late {
                world.pass(120);
                refused(&held.id, "lapsed").await;
                world.sweep().await;
                refused(&held.id, "returned or burned").await;
            }
            world.spend(&alice, &[&held.id]).await.unwrap();
            refused(&held.id, "spent").await;
        }
        let granted = world.reserve(&alice, &bob).await;
        assert!(granted.last_resort);
        refused(&granted.id, "granted").await;
        world.spend(&alice, &[&granted.id]).await.unwrap();
    }
}

#[tokio::test]
async fn a_reservation_is_its_holders_own_and_for_its_group() {
    let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
    world.stock(&bob, 1).await;
    world.stock_last_resort(&bob).await;
    let alices_other_client = client("alice", "2");
    for _ in 0..2 {
        let held = world.reserve(&alice, &bob).await;
        let id = [held.id.clone()];
        for stranger in [&bob, &alices_other_client] {
            let refused = world.a.spend(stranger, &id, &group(1)).await;
            assert!(matches!(refused, Err(Error::ReservationUnknown)));
            let refused = world.a.release(stranger, &id).await;
            assert!(matches!(refused, Err(Error::ReservationUnknown)));
        }
        let refused = world.b.spend(&alice, &id, &group(2)).await;
        assert!(matches!(refused, Err(Error::GroupMismatch)));
        let spent = world.b.spend(&alice, &id, &group(1)).await.unwrap();
        assert_eq!((spent[0].already, spent[0].last_resort), (false, held.last_resort));
        assert!(world.a.spend(&alice, &id, &group(1)).await.unwrap()[0].already);
        // Spent for one group, it is not spent for another.
        let refused = world.b.spend(&alice, &id, &group(2)).await;
        assert!(matches!(refused, Err(Error::GroupMismatch)));
    }
    let settled = "SELECT count(*) FROM event WHERE kind = 'spent'";
    assert_eq!(world.number(settled).await, 2);
}

#[tokio::test]
async fn ids_that_were_never_issued_are_unknown() {
    let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
    world.stock(&bob, 1).await;
    let held = world.reserve(&alice, &bob).await;
    let mut forged = held.id.clone().into_bytes();
    forged[20] = if forged[20] == b'A' { b'B' } else { b'A' };
    let forged = String::from_utf8(forged).unwrap();
    let other_world = World::new().await;
    other_world.stock(&bob, 1).await;
    let elsewhere = other_world.reserve(&alice, &bob).await.id;
    let garbage = "x".repeat(100_000);
    for id in [&forged, &elsewhere, "", "AAAA", "\0", &garbage, &held.id[1..]] {
        for ids in [vec![id], vec![&held.id, id]] {
            let refused = world.spend(&alice, &ids).await;
            assert!(matches!(refused, Err(Error::ReservationUnknown)));
            let refused = world.release(&alice, &ids).await;
            assert!(matches!(refused, Err(Error::ReservationUnknown)));
        }
    }
    assert_eq!(world.counts(&bob).await.reserved, 1);
}

#[tokio::test]
async fn all_are_settled_or_none() {
    let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
    let carol = client("carol", "1");
    world.stock(&bob, 4).await;
    world.stock_last_resort(&carol).await;
    let one = world.reserve(&alice, &bob).await;
    let two = world.reserve(&alice, &bob).await;
    let released = world.reserve(&alice, &bob).await;
    let grant = world.reserve(&alice, &carol).await;
    let released_grant = world.reserve(&alice, &carol).await;
    assert!(grant.last_resort);
    world.release(&alice, &[&released.id, &released_grant.id]).await.unwrap();
    let mut other_group = ask(&[&bob]);
    other_group.group_id = group(2);
    let other_group = only(world.a.reserve(&alice, &other_group).await.unwrap());

    for (ids, lost) in [
        ([&one.id, &released.id, &two.id], false),
        ([&grant.id, &released.id, &one.id], false),
        ([&one.id, &grant.id, &released_grant.id], false),
        ([&one.id, &grant.id, &other_group.id], true),
    ] {
        let refused = world.spend(&alice, &ids.map(String::as_str)).await;
        match lost {
            true => assert!(matches!(refused, Err(Error::GroupMismatch))),
            false => assert!(matches!(refused, Err(Error::ReservationNotHeld))),
        }
    }
    assert_eq!(world.number("SELECT count(*) FROM event WHERE kind = 'spent'").await, 0);
    assert_eq!(world.number("SELECT count(*) FROM tombstone").await, 0);

    // Ids named twice, one-time and last resort in one call: answers in the order of the ids.
    let ids = [&two.id, &grant.id, &one.id, &two.id, &grant.id].map(String::as_str);
    let spent = world.spend(&alice, &ids).await.unwrap();
    let expected = [&two, &grant, &one, &two, &grant].map(|r| r.key_package_ref.clone());
    assert_eq!(spent.iter().map(|s| s.key_package_ref.clone()).collect::<Vec<_>>(), expected);
    assert_eq!(
        spent.iter().map(|s| s.last_resort).collect::<Vec<_>>(),
        [false, true, false, false, true]
    );
    assert_eq!(world.number("SELECT count(*) FROM event WHERE kind = 'spent'").await, 3);

    // A release of several fails as a whole by one that was spent.
    for spent in [&one.id, &grant.id] {
        let refused = world.release(&alice, &[&other_group.id, spent]).await;
        assert!(matches!(refused, Err(Error::ReservationNotHeld)));
    }
    assert_eq!(world.counts(&bob).await.reserved, 1);
    assert!(!world.release(&alice, &[&other_group.id]).await.unwrap()[0].already);
}

#[tokio::test]
async fn a_release_takes_effect_once_and_ends_the_reservation() {
    let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
    let eve = client("eve", "1");
    let refs = world.stock(&bob, 1).await;
    let held = world.reserve(&alice, &bob).await;
    for already in [false, true, true] {
        let released = world.release(&alice, &[&held.id, &held.id]).await.unwrap();
        assert_eq!(released.iter().map(|r| r.already).collect::<Vec<_>>(), [already; 2]);
    }
    assert!(matches!(world.spend(&alice, &[&held.id]).await, Err(Error::ReservationNotHeld)));
    assert_eq!(world.counts(&bob).await.available, 1);

    // Somebody else's now: an old release changes nothing of it, an old spend is lost.
    let taken = world.reserve(&eve, &bob).await;
    assert_eq!(taken.key_package_ref, refs[0]);
    assert!(world.release(&alice, &[&held.id]).await.unwrap()[0].already);
    assert!(matches!(world.spend(&alice, &[&held.id]).await, Err(Error::ReservationLost)));
    assert_eq!(world.counts(&bob).await.reserved, 1);
    world.spend(&eve, &[&taken.id]).await.unwrap();
    assert!(matches!(world.release(&eve, &[&taken.id]).await, Err(Error::ReservationNotHeld)));
    assert!(matches!(world.spend(&alice, &[&held.id]).await, Err(Error::ReservationLost)));
    assert!(world.release(&alice, &[&held.id]).await.unwrap()[0].already);
    assert_eq!(
        world.events(&refs[0]).await,
        ["uploaded", "reserved", "released", "reserved", "spent"]
    );
}

#[tokio::test]
async fn last_resort_grants_are_settled_each_by_itself() {
    let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
    let last = world.stock_last_resort(&bob).await;
    let one = world.reserve(&alice, &bob).await;
    let two = world.reserve(&alice, &bob).await;
    assert!(!world.release(&alice, &[&one.id]).await.unwrap()[0].already);
    assert!(world.release(&alice, &[&one.id]).await.unwrap()[0].already);
    assert!(matches!(world.spend(&alice, &[&one.id]).await, Err(Error::ReservationNotHeld)));
    // Late, and nothing is consumed.
    world.pass(10_000);
    world.sweep().await;
    assert!(!world.spend(&alice, &[&two.id]).await.unwrap()[0].already);
    assert!(matches!(world.release(&alice, &[&two.id]).await, Err(Error::ReservationNotHeld)));
    let status = world.counts(&bob).await.last_resort.unwrap();
    assert_eq!((status.key_package_ref, status.times_issued), (last.clone(), 2));
    let kinds = ["last_resort_issued", "last_resort_issued", "released", "spent", "uploaded"];
    let mut events = world.events(&last).await;
    events.sort_unstable();
    assert_eq!(events, kinds);
}
