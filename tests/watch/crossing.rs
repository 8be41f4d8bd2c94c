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
use keypool_testing::watching::{Replicas, SUITE, client_key, packages};
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
