//! Reserves that run at the same time do not all take the pool for fuller than it is.

use std::sync::Arc;

use keypool_service::{
    domain::{
        capabilities::Capabilities,
        ids::{CipherSuite, GroupId, RequestId},
        policy::{LapsePolicy, PoolPolicy},
    },
    store::{ReserveAsk, ReserveBatch, ReserveOutcome},
};
use keypool_testing::watching::{Replicas, SUITE, Watching, client_key, packages, reserve};
use time::Duration;

#[tokio::test]
async fn packages_that_others_are_taking_do_not_count_as_left() {
    let replicas = Replicas::new(PoolPolicy::default()).await;
    let here = replicas.serve().await;
    let bob = client_key("bob", "phone");
    replicas.client(&here, &bob).await.upload(packages("bob", 40)).await.unwrap();

    // 31 Reserves that have not committed yet.
    let mut others = replicas.database.pool.begin().await.unwrap();
    sqlx::query("SELECT FROM package ORDER BY generation > 0, not_after, seq LIMIT 31 FOR UPDATE")
        .execute(&mut *others)
        .await
        .unwrap();
    let outcomes = here
        .pool
        .store()
        .reserve(&Arc::new(ReserveBatch {
            caller: client_key("alice", "phone"),
            request_id: RequestId(uuid::Uuid::new_v4()),
            group_id: GroupId::parse(b"group".to_vec()).unwrap(),
            cipher_suite: CipherSuite(SUITE),
            required: Capabilities::default(),
            ttl: Duration::minutes(1),
            min_remaining_lifetime: Duration::hours(1),
            lapse: LapsePolicy::Return,
            fair_share: None,
            last_resort: true,
            all_or_nothing: false,
            asks: vec![ReserveAsk { owner: bob, grant_id: 1 }],
        }))
        .await
        .unwrap();
    let ReserveOutcome::Reserved(reserved) = &outcomes[0] else { panic!("{outcomes:?}") };
    assert_eq!(reserved.left, Some(8));
}

/// What a call has locked is passed over. If that call comes to nothing, fewer come after it than it
/// says: the margin around the watermark covers as many as there are calls at once.
#[tokio::test]
async fn packages_that_were_passed_over_hide_no_crossing() {
    let replicas = Replicas::new(PoolPolicy { low_watermark: 2, ..PoolPolicy::default() }).await;
    let here = replicas.serve().await;
    let bob = client_key("bob", "phone");
    let owner = replicas.client(&here, &bob).await;
    owner.upload(packages("bob", 28)).await.unwrap();
    let adder = replicas.client(&here, &client_key("alice", "phone")).await;
    let mut other = replicas.database.pool.begin().await.unwrap();
    let locked = sqlx::query("SELECT FROM package WHERE behind >= 8 FOR UPDATE");
    assert_eq!(locked.fetch_all(&mut *other).await.unwrap().len(), 20);
    reserve(&adder, &bob, 8).await;
    other.rollback().await.unwrap();

    let overstated = "SELECT count(*) FROM package WHERE generation = 0 AND behind >= 8";
    let overstated: i64 =
        sqlx::query_scalar(overstated).fetch_one(&replicas.database.pool).await.unwrap();
    assert_eq!(overstated, 20, "eight too many each");
    let (mut stream, first) = Watching::start(&owner).await;
    assert_eq!(first.cipher_suites[0].available, 20);
    reserve(&adder, &bob, 18).await;
    assert_eq!(stream.next_suite().await.available, 2, "the crossing");
}
