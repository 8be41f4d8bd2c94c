//! What is not pushed.

use futures_util::StreamExt as _;
use keypool_client::v1::RevokeKeyPackagesRequest;
use keypool_service::domain::policy::PoolPolicy;
use keypool_testing::watching::{
    Replicas, Watching, client_key, each, last_resort, one_of, packages, reserve, usual,
};
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn nothing_is_told_before_the_watermark_is_crossed() {
    let replicas = Replicas::new(PoolPolicy { low_watermark: 2, ..PoolPolicy::default() }).await;
    let (here, there) = (replicas.serve().await, replicas.serve().await);
    let bob = client_key("bob", "phone");
    let owner = replicas.client(&here, &bob).await;
    owner.upload(packages("bob", 64)).await.unwrap();
    let mut heard = replicas.listen().await;
    let adder = replicas.client(&there, &client_key("alice", "phone")).await;
    let (mut stream, first) = Watching::start(&owner).await;
    assert_eq!(first.cipher_suites[0].available, 64);

    reserve(&adder, &bob, 61).await;
    assert_eq!(replicas.told(&mut heard).await, 0, "61 Reserves above the watermark");
    reserve(&adder, &bob, 1).await;
    assert_eq!(stream.next_suite().await.available, 2, "the first push is the crossing");
    assert_eq!(replicas.told(&mut heard).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_did_not_read_gets_the_newest_state_once() {
    const CHANGES: usize = 1000;
    let replicas = Replicas::new(PoolPolicy::default()).await;
    let (here, there) = (replicas.serve().await, replicas.serve().await);
    let bob = client_key("bob", "phone");
    let owner = replicas.client(&here, &bob).await;
    owner.upload([last_resort("bob")]).await.unwrap();
    // A caller who holds very many reservations of one pool is slow.
    let adders = each(20, |n| {
        let (replicas, there) = (&replicas, &there);
        async move { replicas.client(there, &client_key("alice", &format!("phone {n}"))).await }
    })
    .await;
    let mut heard = replicas.listen().await;

    // As the server reads it: over gRPC the transport's window would take some states ahead.
    let watch = usual().limits.watch;
    let asleep = here.pool.watch(&bob, watch, None, CancellationToken::new()).unwrap();
    let mut asleep = std::pin::pin!(asleep);
    asleep.next().await.unwrap().unwrap();
    let (mut awake, _) = Watching::start(&owner).await;

    let reserved = each(CHANGES, |n| {
        let (adder, bob) = (&adders[n % adders.len()], &bob);
        async move { adder.reserve(&one_of(bob)).await }
    })
    .await;
    assert!(reserved.iter().all(Result::is_ok));

    let mut pushed = 0;
    loop {
        pushed += 1;
        let issued = awake.next_suite().await.last_resort.unwrap().times_issued;
        if issued == CHANGES as u64 {
            break;
        }
    }
    let told = replicas.told(&mut heard).await;
    assert!(pushed <= told && told < CHANGES, "{pushed} pushed, {told} told");

    let status = asleep.next().await.unwrap().unwrap();
    let newest = status.cipher_suites[0].counts.last_resort.as_ref().unwrap().times_issued;
    assert_eq!(newest, CHANGES as u64);
    let revoke = RevokeKeyPackagesRequest { all: true, ..Default::default() };
    owner.revoke(revoke).await.unwrap();
    let status = asleep.next().await.unwrap().unwrap();
    assert_eq!(status.cipher_suites[0].counts.last_resort, None, "no older state in between");
}

#[tokio::test]
async fn a_state_that_is_told_again_is_not_pushed_again() {
    let replicas = Replicas::new(PoolPolicy::default()).await;
    let here = replicas.serve().await;
    let bob = client_key("bob", "phone");
    let owner = replicas.client(&here, &bob).await;
    owner.upload(packages("bob", 1)).await.unwrap();
    let (mut stream, _) = Watching::start(&owner).await;

    let payload = format!("{:032x}", u128::from_be_bytes(bob.digest().0));
    for _ in 0..3 {
        let tell = sqlx::query("SELECT pg_notify('keypool_pool', $1)").bind(&payload);
        tell.execute(&replicas.database.pool).await.unwrap();
        owner.pool_status().await.unwrap();
    }
    owner.revoke(RevokeKeyPackagesRequest { all: true, ..Default::default() }).await.unwrap();
    assert_eq!(stream.next_suite().await.available, 0);
}
