//! Whoever drains a pool leaves the newcomers their one-time packages.

use std::time::Duration;

use keypool_client::{
    Reserve,
    v1::{ErrorReason, Health, reserve_result::Outcome},
};
use keypool_service::{
    domain::{
        clock::{Clock as _, SystemClock},
        policy::PoolPolicy,
    },
    grpc::auth::Scope,
    store::MIGRATOR,
};
use keypool_testing::{
    database::TestDatabase,
    drain::{Attack, Report},
    forge::Forge,
    replicas::Replicas,
};
use tokio::task::JoinSet;

/// Four attackers, each of whom the pool has refused before the first of five newcomers comes.
/// Then the pool has at least five packages, by fair share: the attackers' first draws took at
/// most three at or below the low watermark of eight, and those to come take none there. However
/// slow or quick anyone is, the outcome is the same.
async fn attacked(owner_online: bool, fair_share: bool) -> Report {
    let attack = Attack {
        attackers: 4,
        newcomers: 5,
        owner_online,
        fair_share,
        length: Duration::from_millis(500),
        after_first_refusals: true,
        refill_spread: Duration::ZERO,
        seed: 1,
    };
    attack.run().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn newcomers_get_one_time_packages_while_the_owner_refills() {
    let report = attacked(true, true).await;
    assert_eq!((report.row.newcomers, report.row.one_time), (5, 5), "{report:?}");
    assert!(report.refilled > 0, "the owner heard of it by its watch: {report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_low_watermark_is_the_newcomers_when_nobody_refills() {
    let report = attacked(false, true).await;
    assert_eq!(report.row.one_time, 5, "{report:?}");
    assert!(report.taken <= 27, "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_fair_share_attackers_leave_nothing() {
    let report = attacked(false, false).await;
    assert_eq!((report.row.one_time, report.turned_away), (0, 0), "{report:?}");
}

fn packages(count: usize) -> Vec<Vec<u8>> {
    let now = SystemClock.now().unix_timestamp().try_into().unwrap();
    (0..count).map(|_| Forge::new(1, "owner").valid_around(now).build()).collect()
}

fn reserve() -> Reserve {
    Reserve::new(&b"group"[..], 1_u16).target("owner")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_must_leave_the_rest_to_newcomers_does_not_lock_it() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let replicas = Replicas::start(&database, &PoolPolicy::default()).await.unwrap();
    let owner = replicas.client(0, "owner", Scope::Publish).await.unwrap();
    owner.upload(packages(8)).await.unwrap();
    let adder = replicas.client(0, "adder", Scope::Reserve).await.unwrap();
    let got = adder.reserve(&reserve()).await.unwrap();
    assert!(matches!(got.results[0].outcome, Some(Outcome::Reservation(_))));

    // A row lock leaves the locking transaction's id in the row.
    let lockers = "SELECT array_agg(xmax::text ORDER BY seq) FROM package";
    let before: Vec<String> = sqlx::query_scalar(lockers).fetch_one(&database.pool).await.unwrap();
    let refused = adder.reserve(&reserve()).await.unwrap_err();
    assert_eq!(refused.reason(), Some(ErrorReason::PoolExhausted));
    let after: Vec<String> = sqlx::query_scalar(lockers).fetch_one(&database.pool).await.unwrap();
    assert_eq!(before, after);
    replicas.stop().await.unwrap();
}

/// Waits until so many statements wait for a lock.
async fn statements_wait(database: &TestDatabase, count: i64) {
    let waiting = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&database.pool).await.unwrap() < count {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reserves_that_wait_do_not_keep_the_owner_from_refilling() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let replicas = Replicas::start(&database, &PoolPolicy::default()).await.unwrap();
    let owner = replicas.client(0, "owner", Scope::Publish).await.unwrap();
    owner.upload(packages(1)).await.unwrap();
    let mut holder = database.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE draw").execute(&mut *holder).await.unwrap();
    let mut calls = JoinSet::new();
    for n in 0..8 {
        let adder = replicas.client(0, &format!("adder-{n}"), Scope::Reserve).await.unwrap();
        calls.spawn(async move { adder.reserve(&reserve()).await });
    }
    statements_wait(&database, 2).await; // as many as there are at once, with all of the calls

    let answer = owner.upload(packages(3)).await.unwrap();
    assert_eq!(answer.status.unwrap().health(), Health::Low);
    assert_eq!(owner.pool_status().await.unwrap().cipher_suites[0].available, 4);
    holder.rollback().await.unwrap();
    replicas.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_many_calls_of_one_caller_do_not_keep_others_waiting() {
    let database = TestDatabase::migrated(&MIGRATOR).await;
    let replicas = Replicas::start(&database, &PoolPolicy::default()).await.unwrap();
    let owner = replicas.client(0, "owner", Scope::Publish).await.unwrap();
    owner.upload(packages(12)).await.unwrap();
    let attacker = replicas.client(0, "attacker", Scope::Reserve).await.unwrap();
    attacker.reserve(&reserve()).await.unwrap();
    let mut holder = database.pool.begin().await.unwrap();
    sqlx::query("SELECT FROM draw FOR UPDATE").execute(&mut *holder).await.unwrap();
    let mut calls = JoinSet::new();
    for _ in 0..32 {
        let attacker = attacker.clone();
        calls.spawn(async move { attacker.reserve(&reserve()).await });
    }
    statements_wait(&database, 1).await;

    let newcomer = replicas.client(0, "newcomer", Scope::Reserve).await.unwrap();
    let got = newcomer.reserve(&reserve()).await.unwrap();
    assert!(matches!(got.results[0].outcome, Some(Outcome::Reservation(_))));
    holder.rollback().await.unwrap();
    calls.join_all().await;
    replicas.stop().await.unwrap();
}
