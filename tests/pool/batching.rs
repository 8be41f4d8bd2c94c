//! Calls that wait go to the database together, and are none the worse for it.

use std::{collections::HashSet, future::poll_fn, sync::Arc, task::Poll};

use keypool_service::{
    domain::{
        capabilities::Capabilities,
        error::Error,
        ids::{ClientKey, RequestId},
        policy::LapsePolicy,
    },
    pool::{ReserveRequest, ReserveResult},
    store::{ReserveAsk, ReserveBatch},
};
use keypool_testing::world::{SUITE, World, all, ask, client, group, join, join_all, only, spawn};
use rand::{SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use sqlx::{Postgres, Transaction};
use time::Duration;
use tokio::task::JoinHandle;

/// How many statements of one kind are in flight at a replica.
const LANES: usize = 2;

type Call = JoinHandle<Result<Vec<ReserveResult>, Error>>;

fn adder(n: usize) -> ClientKey {
    client(&format!("adder-{n}"), "1")
}

fn owner(n: usize) -> ClientKey {
    client(&format!("owner-{n}"), "1")
}

/// A call beside the test, which has run up to where it waits once this returns.
async fn begin<T: Send + 'static>(call: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    let (begun, when_begun) = tokio::sync::oneshot::channel();
    let call = spawn(async move {
        let mut call = Box::pin(call);
        let first = poll_fn(|context| Poll::Ready(call.as_mut().poll(context))).await;
        begun.send(()).unwrap();
        match first {
            Poll::Ready(answer) => answer,
            Poll::Pending => call.await,
        }
    });
    when_begun.await.unwrap();
    call
}

async fn reserve(world: &World, caller: ClientKey, request: ReserveRequest) -> Call {
    let pool = world.a.clone();
    begin(async move { pool.reserve(&caller, &request).await }).await
}

/// A world with owners of so many packages, where the first replica's lanes are taken by Reserves,
/// each of so many pools, that wait in the database until the transaction ends.
async fn held_up(
    owners: usize,
    packages: u64,
    each: usize,
) -> (World, Transaction<'static, Postgres>, Vec<Call>) {
    let world = World::new().await;
    for n in 0..owners {
        world.stock(&owner(n), packages).await;
    }
    let early = (0..LANES * each).map(|n| client(&format!("early-{n}"), "1"));
    let early: Vec<ClientKey> = early.collect();
    for owner in &early {
        world.stock(owner, 1).await;
    }
    let mut holding = world.database.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE draw IN SHARE MODE").execute(&mut *holding).await.unwrap();
    let mut calls = Vec::new();
    for (waiting, owners) in (1..).zip(early.chunks(each)) {
        let owners: Vec<&ClientKey> = owners.iter().collect();
        calls.push(reserve(&world, adder(1000), ask(&owners)).await);
        // Its statement has begun: the next one does not go with it.
        world.until_waiting(waiting).await;
    }
    (world, holding, calls)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_queues_up_goes_in_one_statement() {
    const CALLS: usize = 60;
    let (world, holding, mut calls) = held_up(CALLS, 1, 1).await;
    for n in 0..CALLS {
        calls.push(reserve(&world, adder(n), ask(&[&owner(n)])).await);
    }
    holding.rollback().await.unwrap();
    join_all(calls).await.into_iter().for_each(|answer| drop(all(answer.unwrap())));
    let transactions = "SELECT count(DISTINCT xmin::text) FROM event WHERE kind = 'reserved'";
    assert_eq!(world.number(transactions).await, 1 + i64::try_from(LANES).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_dropped_while_it_waits_is_never_sent() {
    let (world, holding, mut calls) = held_up(4, 1, 1).await;
    for n in 0..4 {
        calls.push(reserve(&world, adder(n), ask(&[&owner(n)])).await);
    }
    let dropped = calls.remove(LANES + 1);
    dropped.abort();
    assert!(dropped.await.unwrap_err().is_cancelled());
    holding.rollback().await.unwrap();
    join_all(calls).await.into_iter().for_each(|answer| drop(all(answer.unwrap())));
    let by_whom = world.texts("SELECT actor_user FROM event WHERE kind = 'reserved'").await;
    assert_eq!(by_whom.len(), LANES + 3);
    assert!(!by_whom.contains(&"adder-1".to_owned()));
    assert_eq!(world.counts(&owner(1)).await.available, 1);
}

/// The database refuses a statement as a whole for what one call in it wants.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_the_database_refuses_does_not_fail_its_neighbours() {
    let (world, holding, mut calls) = held_up(3, 1, 1).await;
    calls.push(reserve(&world, adder(0), ask(&[&owner(0)])).await);
    let impossible = ReserveBatch {
        caller: adder(1),
        request_id: RequestId(uuid::Uuid::new_v4()),
        group_id: group(1),
        cipher_suite: SUITE,
        required: Capabilities::default(),
        ttl: Duration::MAX, // no interval of Postgres holds that
        min_remaining_lifetime: Duration::hours(1),
        lapse: LapsePolicy::Return,
        fair_share: None,
        last_resort: true,
        all_or_nothing: false,
        asks: vec![ReserveAsk { owner: owner(1), grant_id: 1 }],
    };
    let store = world.a.store().clone();
    let refused = begin(async move { store.reserve(&Arc::new(impossible)).await }).await;
    calls.push(reserve(&world, adder(2), ask(&[&owner(2)])).await);
    holding.rollback().await.unwrap();
    join_all(calls).await.into_iter().for_each(|answer| drop(all(answer.unwrap())));
    assert!(matches!(join(refused).await, Err(Error::Internal(_))));
    assert_eq!(world.counts(&owner(1)).await.available, 1);
}

/// Both would write the caller's draw of each pool: they must not stand in one statement.
#[tokio::test(flavor = "multi_thread")]
async fn two_calls_of_one_caller_for_the_same_pools_both_count() {
    let (world, holding, mut calls) = held_up(2, 4, 2).await;
    let (one, other) = (owner(0), owner(1));
    calls.push(reserve(&world, adder(0), ask(&[&one, &other])).await);
    calls.push(reserve(&world, adder(0), ask(&[&other, &one])).await);
    holding.rollback().await.unwrap();
    let mut refs = HashSet::new();
    for answer in join_all(calls).await {
        refs.extend(all(answer.unwrap()).into_iter().map(|r| r.key_package_ref.0));
    }
    assert_eq!(refs.len(), 2 * LANES + 4);
    let remembered = "SELECT count(*) FROM draw, unnest(open)";
    assert_eq!(world.number(remembered).await, i64::try_from(2 * LANES).unwrap() + 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spend_that_fails_does_not_fail_those_that_go_with_it() {
    const CALLS: usize = 8;
    let world = World::new().await;
    let mut reservations = Vec::new();
    for n in 0..CALLS {
        world.stock(&owner(n), 1).await;
        reservations.push(only(world.a.reserve(&adder(n), &ask(&[&owner(n)])).await.unwrap()));
    }
    let mut holding = world.database.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE tombstone IN SHARE MODE").execute(&mut *holding).await.unwrap();
    let mut calls = Vec::new();
    for (n, reservation) in reservations.into_iter().enumerate() {
        if n <= LANES {
            world.until_waiting(i64::try_from(n).unwrap()).await;
        }
        let pool = world.a.clone();
        // The last one is for another group.
        let group = group(if n == CALLS - 1 { 2 } else { 1 });
        calls.push(
            begin(async move { pool.spend(&adder(n), &[reservation.id], &group).await }).await,
        );
    }
    holding.rollback().await.unwrap();
    let mut answers = join_all(calls).await;
    assert!(matches!(answers.pop(), Some(Err(Error::GroupMismatch))));
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    let transactions = "SELECT count(DISTINCT xmin::text) FROM event WHERE kind = 'spent'";
    assert_eq!(world.number(transactions).await, 1 + i64::try_from(LANES).unwrap());
}

/// Both replicas batch calls for a hundred pools each, every one in an order of its own.
#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_with_overlapping_batches_of_a_hundred_never_deadlock() {
    const OWNERS: usize = 110;
    const CALLS: usize = 8;
    let world = World::new().await;
    let owners: Vec<ClientKey> = (0..OWNERS).map(owner).collect();
    for owner in &owners {
        world.stock(owner, CALLS as u64).await;
    }
    let mut random = StdRng::seed_from_u64(11);
    let calls = (0..CALLS).map(|n| {
        let pool = if n % 2 == 0 { world.a.clone() } else { world.b.clone() };
        let mut targets = owners.clone();
        targets.shuffle(&mut random);
        targets.truncate(100);
        let mut order: Vec<usize> = (0..100).collect();
        order.shuffle(&mut random);
        spawn(async move {
            // Two callers at two replicas each, so that draws overlap too.
            let caller = adder(n / 4);
            let targets: Vec<&ClientKey> = targets.iter().collect();
            let got = all(pool.reserve(&caller, &ask(&targets)).await.unwrap());
            assert!(got.iter().all(|reservation| !reservation.last_resort));
            let ids: Vec<String> = order.iter().map(|&at| got[at].id.clone()).collect();
            if n % 4 < 2 {
                pool.spend(&caller, &ids, &group(1)).await.unwrap();
            } else {
                pool.release(&caller, &ids).await.unwrap();
            }
        })
    });
    let calls: Vec<_> = calls.collect();
    join_all(calls).await;
    let spent = "SELECT count(*) FROM tombstone WHERE state = 'spent'";
    assert_eq!(world.number(spent).await, (CALLS / 2 * 100) as i64);
    // Postgres counts a connection's deadlocks at the latest when it ends.
    world.a.store().close().await;
    world.b.store().close().await;
    let ours = "SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND application_name = 'keypool'";
    while world.number(ours).await > 0 {
        tokio::task::yield_now().await;
    }
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    assert_eq!(world.number(deadlocks).await, 0);
}
