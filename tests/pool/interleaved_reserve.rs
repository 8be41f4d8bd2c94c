//! Reserves of one caller on one pool take turns; Reserves of different callers never wait.

use keypool_service::{
    domain::{
        error::Error,
        ids::{Bucket, ClientKey},
    },
    pool::{KeyPool, ReserveRequest, ReserveResult},
};
use keypool_testing::world::{World, all, ask, client, join, only, run, spawn};
use std::sync::Arc;
use tokio::task::JoinHandle;

fn reserving(
    pool: &KeyPool,
    caller: &ClientKey,
    request: &Arc<ReserveRequest>,
) -> JoinHandle<Result<Vec<ReserveResult>, Error>> {
    let (pool, caller, request) = (pool.clone(), caller.clone(), request.clone());
    spawn(async move { pool.reserve(&caller, &request).await })
}

#[tokio::test]
async fn repeated_calls_take_turns_at_the_draw() {
    let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
    world.stock(&bob, 5).await;
    world.reserve(&alice, &bob).await;
    let request = Arc::new(ask(&[&bob]));
    let by_hand = world.by_hand(&["SELECT FROM draw FOR UPDATE"]).await;
    let calls = [&world.a, &world.b].map(|pool| reserving(pool, &alice, &request));
    world.until_waiting(2).await;
    // Others are not held up.
    world.reserve(&client("eve", "1"), &bob).await;
    by_hand.commit().await.unwrap();
    let [one, other] = calls;
    let (one, other) = (only(join(one).await.unwrap()), only(join(other).await.unwrap()));
    assert_eq!((one.id, one.key_package), (other.id, other.key_package));
    assert_eq!(world.counts(&bob).await.reserved, 3);
}

#[tokio::test]
async fn the_first_draw_of_a_caller_is_made_once() {
    let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
    world.stock(&bob, 5).await;
    // Another call of alice is about to commit her first draw.
    let mut by_hand = world.by_hand(&[]).await;
    let digest: String = alice.digest().0.iter().map(|byte| format!("{byte:02x}")).collect();
    run(
        &mut by_hand,
        &format!(
            "INSERT INTO draw SELECT bucket, pool_id, decode('{digest}', 'hex'),
             to_timestamp({now}), '{{}}', to_timestamp({now}) FROM pool",
            now = world.now()
        ),
    )
    .await;
    let request = Arc::new(ask(&[&bob]));
    let call = reserving(&world.b, &alice, &request);
    world.until_waiting(1).await;
    by_hand.commit().await.unwrap();
    let got = only(join(call).await.unwrap());
    assert_eq!(only(world.a.reserve(&alice, &request).await.unwrap()).id, got.id);
    let events = "SELECT count(*) FROM event WHERE kind = 'reserved'";
    assert_eq!(world.number(events).await, 1);
}

/// Draws are locked in the order of the key, so that two batches cannot wait for each other.
#[tokio::test]
async fn draws_are_locked_in_one_order() {
    let (world, alice) = (World::new().await, client("alice", "1"));
    let mut owners: Vec<_> = (0..10).map(|n| client("bob", &n.to_string())).collect();
    for owner in &owners {
        world.stock(owner, 2).await;
        world.reserve(&alice, owner).await;
    }
    let first = "SELECT FROM draw WHERE pool_id = (SELECT min(pool_id) FROM pool) FOR UPDATE";
    let others =
        "SELECT FROM draw WHERE pool_id > (SELECT min(pool_id) FROM pool) FOR UPDATE NOWAIT";
    owners.reverse();
    let request = Arc::new(ask(&owners.iter().collect::<Vec<_>>()));
    let mut by_hand = world.by_hand(&[first]).await;
    let call = reserving(&world.b, &alice, &request);
    world.until_waiting(1).await;
    run(&mut by_hand, others).await;
    by_hand.commit().await.unwrap();
    assert_eq!(all(join(call).await.unwrap()).len(), 10);
}

#[tokio::test]
async fn a_package_in_other_hands_is_passed_over() {
    let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
    let refs = world.stock(&bob, 2).await;
    let other = world.by_hand(&["SELECT FROM package WHERE seq = 1 FOR UPDATE"]).await;
    let request = Arc::new(ask(&[&bob]));
    let got = only(join(reserving(&world.b, &alice, &request)).await.unwrap());
    assert_eq!(got.key_package_ref, refs[1]);
    other.rollback().await.unwrap();
}

#[tokio::test]
async fn a_pool_whose_stock_is_in_other_hands_is_not_exhausted() {
    let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
    world.stock(&bob, 2).await;
    world.stock_last_resort(&bob).await;
    let mut request = ask(&[&bob, &client("carol", "1")]);
    for all_or_nothing in [false, true] {
        request.all_or_nothing = all_or_nothing;
        let others = world.by_hand(&["SELECT FROM package FOR UPDATE"]).await;
        let refused = world.b.reserve(&alice, &request).await;
        match all_or_nothing {
            false => assert!(matches!(refused, Err(Error::Overloaded))),
            // Whatever becomes of the stock, carol gives nothing.
            true => assert!(refused.is_err()),
        }
        others.rollback().await.unwrap();
        assert_eq!(world.number("SELECT count(*) FROM last_resort_grant").await, 0);
        assert_eq!(world.counts(&bob).await.available, 2);
    }
}

/// A call that waited for its turn at one pool looks at the others as they were when it began.
/// What the same caller was given there since must neither be given twice nor be forgotten, even
/// when it was uploaded since.
#[tokio::test]
async fn a_call_that_waited_finds_what_was_uploaded_and_reserved_meanwhile() {
    for last_resort in [false, true] {
        let world = World::burning().await;
        let alice = client("alice", "1");
        // Bob's draw is the one that is locked first.
        let mut owners = [client("bob", "1"), client("carol", "1")];
        owners.sort_by_key(|owner| Bucket::of(&owner.user));
        let [bob, carol] = owners;
        world.stock(&bob, 3).await;
        world.stock(&carol, 1).await;
        world.reserve(&alice, &bob).await;
        let spent = world.reserve(&alice, &carol).await;
        world.spend(&alice, &[&spent.id]).await.unwrap();

        let mut by_hand = world.by_hand(&[]).await;
        let bobs_draw =
            format!("SELECT FROM draw WHERE bucket = {} FOR UPDATE", Bucket::of(&bob.user).get());
        run(&mut by_hand, &bobs_draw).await;
        let request = Arc::new(ask(&[&bob, &carol]));
        let other_request = Arc::new(ask(&[&bob, &carol]));
        // At two replicas: at one, the second call would wait for its turn before it asks Postgres.
        let calls =
            [reserving(&world.b, &alice, &request), reserving(&world.a, &alice, &other_request)];
        world.until_waiting(2).await;
        if last_resort {
            world.stock_last_resort(&carol).await;
        } else {
            world.stock(&carol, 1).await;
        }
        let mut alone = ask(&[&carol]);
        alone.request_id = request.request_id;
        let got = only(world.a.reserve(&alice, &alone).await.unwrap());
        by_hand.commit().await.unwrap();

        let [repeated, other] = calls;
        let again = all(join(repeated).await.unwrap());
        assert_eq!((&again[1].id, &again[1].key_package), (&got.id, &got.key_package));
        let other = join(other).await.unwrap();
        // The draw still knows it.
        assert_eq!(only(world.a.reserve(&alice, &alone).await.unwrap()).id, got.id);
        if !last_resort {
            assert!(other[1].outcome.is_err());
            world.pass(60);
            assert_eq!(world.sweep().await.lapsed, 4);
        }
    }
}
