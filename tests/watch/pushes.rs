//! What is pushed, each time with the event on another replica than the stream.

use keypool_client::v1::{Health, RevokeKeyPackagesRequest};
use keypool_service::domain::policy::PoolPolicy;
use keypool_testing::{
    forge::{Forge, NOW},
    watching::{Replicas, SUITE, Watching, client_key, last_resort, packages, reserve},
};
use time::Duration;

const DAY: u64 = 86_400;

fn low_at_two() -> PoolPolicy {
    PoolPolicy { low_watermark: 2, target: 8, ..PoolPolicy::default() }
}

#[tokio::test]
async fn a_stream_begins_with_the_current_state() {
    let replicas = Replicas::new(low_at_two()).await;
    let (here, there) = (replicas.serve().await, replicas.serve().await);
    let bob = client_key("bob", "phone");
    let owner = replicas.client(&here, &bob).await;

    let (_stream, nothing) = Watching::start(&owner).await;
    assert_eq!((nothing.health(), nothing.cipher_suites.len()), (Health::Exhausted, 0));
    assert_eq!(nothing.last_upload_time, None);

    replicas.client(&there, &bob).await.upload(packages("bob", 5)).await.unwrap();
    let (_stream, full) = Watching::start(&owner).await;
    assert_eq!((full.health(), full.cipher_suites[0].available), (Health::Healthy, 5));
    let asked = owner.pool_status().await.unwrap();
    assert_eq!(full.cipher_suites, asked.cipher_suites);
    assert_eq!(full.last_upload_time, asked.last_upload_time);
}

#[tokio::test]
async fn a_drain_is_pushed_at_the_watermark_when_exhausted_and_at_each_last_resort() {
    let replicas = Replicas::new(low_at_two()).await;
    let (here, there) = (replicas.serve().await, replicas.serve().await);
    let bob = client_key("bob", "phone");
    let owner = replicas.client(&here, &bob).await;
    owner.upload(packages("bob", 4)).await.unwrap();
    owner.upload([last_resort("bob")]).await.unwrap();
    let adder = replicas.client(&there, &client_key("alice", "phone")).await;
    let (mut stream, _) = Watching::start(&owner).await;

    reserve(&adder, &bob, 2).await;
    let low = stream.next().await;
    assert_eq!((low.health(), low.cipher_suites[0].available), (Health::Low, 2));

    reserve(&adder, &bob, 1).await;
    assert_eq!(stream.next_suite().await.available, 1);

    reserve(&adder, &bob, 1).await;
    let exhausted = stream.next().await;
    assert_eq!((exhausted.health(), exhausted.cipher_suites[0].available), (Health::Exhausted, 0));

    for times in 1..=2 {
        reserve(&adder, &bob, 1).await;
        let suite = stream.next_suite().await;
        assert_eq!(suite.last_resort.unwrap().times_issued, times);
    }
}

#[tokio::test]
async fn packages_about_to_expire_and_expired_ones_are_pushed() {
    let replicas = Replicas::new(low_at_two()).await;
    let (here, there) = (replicas.serve().await, replicas.serve().await);
    let bob = client_key("bob", "phone");
    let owner = replicas.client(&here, &bob).await;
    let until = |days| Forge::new(SUITE, "bob").lifetime(NOW - 3600, NOW + days * DAY);
    let soon: Vec<_> = (0..3).map(|_| until(10).build()).collect();
    let later: Vec<_> = (0..5).map(|_| until(30).build()).collect();
    let last_resort = until(20).extension(0x000a, &[]).build();
    owner.upload(soon.into_iter().chain(later).chain([last_resort])).await.unwrap();
    let (mut stream, first) = Watching::start(&owner).await;
    assert_eq!(first.cipher_suites[0].expiring_soon, 0);
    there.sweep().await;

    replicas.clock.advance(Duration::days(8));
    there.sweep().await;
    let expiring = stream.next_suite().await;
    assert_eq!((expiring.available, expiring.expiring_soon, expiring.expired), (8, 3, 0));

    replicas.clock.advance(Duration::days(2));
    there.sweep().await;
    let expired = stream.next_suite().await;
    assert_eq!((expired.available, expired.expiring_soon, expired.expired), (5, 0, 3));
    assert!(expired.last_resort.is_some());

    replicas.clock.advance(Duration::days(10));
    there.sweep().await;
    assert_eq!(stream.next_suite().await.last_resort, None, "the end of the last resort package");
}

#[tokio::test]
async fn what_another_client_of_the_user_revokes_is_pushed() {
    let replicas = Replicas::new(low_at_two()).await;
    let (here, there) = (replicas.serve().await, replicas.serve().await);
    let lost = client_key("bob", "phone");
    let owner = replicas.client(&here, &lost).await;
    let uploaded = owner.upload(packages("bob", 8)).await.unwrap();
    let (mut stream, _) = Watching::start(&owner).await;
    let laptop = replicas.client(&there, &client_key("bob", "laptop")).await;

    let one = uploaded.results[0].key_package_ref.clone();
    let of_phone = || RevokeKeyPackagesRequest { client_id: "phone".into(), ..Default::default() };
    laptop.revoke(RevokeKeyPackagesRequest { refs: vec![one], ..of_phone() }).await.unwrap();
    assert_eq!(stream.next_suite().await.available, 7, "told although the pool is not low");
    laptop.revoke(RevokeKeyPackagesRequest { all: true, ..of_phone() }).await.unwrap();
    assert_eq!(stream.next_suite().await.available, 0);
}
