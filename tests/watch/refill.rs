//! How much an owner is told to upload, and when.

use std::time::Duration;

use keypool_client::v1::{Health, PoolStatus, RejectReason, upload_result::Outcome};
use keypool_service::domain::policy::PoolPolicy;
use keypool_testing::watching::{Replicas, client_key, each, packages, reserve};

fn refill_after(status: &PoolStatus) -> Duration {
    status.refill_after.unwrap().try_into().unwrap()
}

#[tokio::test]
async fn an_upload_fills_to_the_target_and_never_over_the_cap() {
    let policy = PoolPolicy { low_watermark: 3, target: 8, hard_cap: 10, ..PoolPolicy::default() };
    let replicas = Replicas::new(policy).await;
    let here = replicas.serve().await;
    let bob = client_key("bob", "phone");
    let owner = replicas.client(&here, &bob).await;
    let adder = replicas.client(&here, &client_key("alice", "phone")).await;
    let none = owner.pool_status().await.unwrap();
    assert_eq!((none.health(), refill_after(&none)), (Health::Exhausted, Duration::ZERO));

    let status = owner.upload(packages("bob", 3)).await.unwrap().status.unwrap();
    assert_eq!(status.cipher_suites[0].recommended_upload, 5);
    assert!(refill_after(&status) > Duration::ZERO);
    let status = owner.upload(packages("bob", 5)).await.unwrap().status.unwrap();
    assert_eq!(status.cipher_suites[0].recommended_upload, 0);
    assert_eq!(refill_after(&status), Duration::ZERO, "nothing to do");

    reserve(&adder, &bob, 6).await;
    let status = owner.pool_status().await.unwrap();
    assert_eq!(status.cipher_suites[0].recommended_upload, 2, "6 short, but room for 2");
    let answer = owner.upload(packages("bob", 3)).await.unwrap();
    let refused: Vec<_> = answer
        .results
        .iter()
        .filter_map(|result| match result.outcome.as_ref().unwrap() {
            Outcome::Rejected(rejected) => Some(rejected.reason()),
            Outcome::Accepted(_) => None,
        })
        .collect();
    assert_eq!(refused, [RejectReason::PoolFull], "what was recommended had room, no more");
    let status = answer.status.unwrap();
    assert_eq!(status.cipher_suites[0].recommended_upload, 0, "the cap is reached");

    reserve(&adder, &bob, 4).await;
    let exhausted = owner.pool_status().await.unwrap();
    assert_eq!(exhausted.health(), Health::Exhausted);
    assert_eq!(refill_after(&exhausted), Duration::ZERO, "an exhausted pool does not wait");
}

/// The randomness is the server's own. A fair one puts 100 of 1,000 in each tenth, with a
/// standard deviation of 9.5: this fails by chance about once in two million runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_owners_refill_over_the_whole_spread() {
    const OWNERS: usize = 1000;
    let replicas = Replicas::new(PoolPolicy::default()).await;
    let spread = replicas.policy.refill_spread.unsigned_abs();
    let here = replicas.serve().await;
    let delays = each(OWNERS, |n| {
        let (replicas, here) = (&replicas, &here);
        async move {
            let user = format!("user-{n}");
            let owner = replicas.client(here, &client_key(&user, "phone")).await;
            let status = owner.upload(packages(&user, 1)).await.unwrap().status.unwrap();
            assert_eq!(status.health(), Health::Low);
            refill_after(&status)
        }
    })
    .await;

    let mut tenths = [0_usize; 10];
    for delay in delays {
        assert!(delay <= spread);
        let tenth = (delay.as_secs_f64() / spread.as_secs_f64() * 10.0) as usize;
        tenths[tenth.min(9)] += 1;
    }
    assert!(tenths.iter().all(|n| (50..=150).contains(n)), "{tenths:?}");
}
