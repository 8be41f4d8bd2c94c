//! What a refresh does, one occasion at a time.

use std::time::Duration;

use keypool_client::{Identity, PackageState, PoolError, PoolOptions, v1::RejectReason};

use super::{device::options, truth::Known, *};

#[tokio::test]
async fn a_first_refresh_fills_the_pool_and_a_second_changes_nothing() {
    let world = World::new().await;
    let device = world.device("bob").await;
    let done = device.pool.refresh().await.unwrap();
    let suite = &done.status.cipher_suites[0];
    assert_eq!((done.uploaded, suite.available), (4, 3));
    assert!(suite.last_resort.is_some());
    assert!(device.records().iter().all(|record| record.state == PackageState::Published));
    world.check(&device, &mut Known::default(), "first").await;

    let held = device.held();
    let done = device.pool.refresh().await.unwrap();
    assert_eq!((done.uploaded, done.expired, done.withdrawn, done.retired), (0, 0, 0, 0));
    assert_eq!(device.held(), held);
}

#[tokio::test]
async fn the_defaults_fill_up_to_32_and_no_more_than_64_are_on_the_server() {
    let world = World::with(PoolPolicy::default()).await;
    let device = world.device("bob").await.restart_with(PoolOptions::default());
    let done = device.pool.refresh().await.unwrap();
    assert_eq!((done.uploaded, done.status.cipher_suites[0].available), (33, 32));
    for _ in 0..3 {
        for _ in 0..20 {
            world.reserve(&device).await;
        }
        let done = device.pool.refresh().await.unwrap();
        let suite = &done.status.cipher_suites[0];
        assert!(suite.available + suite.reserved <= 64, "{suite:?}");
    }
    let suite = &device.client.pool_status().await.unwrap().cipher_suites[0];
    assert_eq!((suite.available, suite.reserved), (4, 60));
    world.check(&device, &mut Known::default(), "at the cap").await;
}

#[tokio::test]
async fn a_target_of_its_own_goes_before_the_servers() {
    let world = World::with(PoolPolicy::default()).await;
    let device = world.device("bob").await;
    let device = device.restart_with(options().target(5).last_resort(false));
    let done = device.pool.refresh().await.unwrap();
    let suite = &done.status.cipher_suites[0];
    assert_eq!((suite.available, suite.recommended_upload), (5, 27));
    assert_eq!(suite.last_resort, None);
    assert_eq!(device.pool.refresh().await.unwrap().uploaded, 0);
}

#[tokio::test]
async fn packages_that_end_soon_are_replaced_ahead_of_it() {
    let world = World::new().await;
    let device = world.device("bob").await;
    device.pool.refresh().await.unwrap();
    world.pass(12 * DAY - 2 * HOUR);
    let done = device.pool.refresh().await.unwrap();
    assert_eq!(done.uploaded, 1, "the last resort package, halfway");
    world.pass(3 * HOUR);
    let done = device.pool.refresh().await.unwrap();
    assert_eq!((done.uploaded, done.status.cipher_suites[0].available), (3, 6));
    let done = device.pool.refresh().await.unwrap();
    assert_eq!(done.uploaded, 0);
}

#[tokio::test]
async fn a_device_that_is_drained_stops_at_the_most_it_may_hold() {
    let world = World::new().await;
    let device = world.device("bob").await.restart_with(options().max_held(6));
    for _ in 0..4 {
        device.pool.refresh().await.unwrap();
        while let Some(reservation) = world.try_reserve(&device).await {
            world.spend(&reservation).await;
            if reservation.last_resort {
                break;
            }
        }
    }
    // Six, and last resort packages that replaced one another.
    let one_time = device.records().iter().filter(|record| !record.last_resort).count();
    assert!(one_time <= 6, "{one_time}");
    world.check_nothing_is_lost(&device, &Known::default(), "drained").await;
}

#[tokio::test]
async fn a_package_whose_welcome_came_is_never_issued_again() {
    let world = World::new().await;
    let device = world.device("bob").await;
    device.pool.refresh().await.unwrap();
    // The adder dies after it sent the Welcome, before its Spend.
    let reservation = world.reserve(&device).await;
    device.read_welcome(&reservation.key_package_ref);
    let mut known = Known::default();
    known.joined.insert(reservation.key_package_ref.clone());
    let done = device.pool.refresh().await.unwrap();
    assert_eq!((done.withdrawn, done.uploaded), (1, 1));
    world.check(&device, &mut known, "joined").await;

    world.pass(HOUR); // the reservation lapses
    world.replica.sweep().await;
    world.check(&device, &mut known, "lapsed").await;
    for _ in 0..10 {
        let other = world.reserve(&device).await;
        assert_ne!(other.key_package_ref, reservation.key_package_ref);
    }
    // A late Spend, had it been alive: no one else has it.
    assert!(!world.truth(&device).await.issuable.contains(&reservation.key_package_ref));
}

#[tokio::test]
async fn the_holder_of_a_package_that_was_joined_can_still_spend_it() {
    let world = World::new().await;
    let device = world.device("bob").await;
    device.pool.refresh().await.unwrap();
    let reservation = world.reserve(&device).await;
    device.read_welcome(&reservation.key_package_ref);
    device.pool.refresh().await.unwrap();
    world.spend(&reservation).await;
    let suite = &device.client.pool_status().await.unwrap().cipher_suites[0];
    assert_eq!((suite.available, suite.spent), (3, 1));
}

#[tokio::test]
async fn a_last_resort_package_is_replaced_once_issued_and_halfway_through_its_lifetime() {
    let world = World::new().await;
    let device = world.device("bob").await;
    let done = device.pool.refresh().await.unwrap();
    let last_resort = |status: &v1::PoolStatus| {
        status.cipher_suites[0].last_resort.as_ref().unwrap().key_package_ref.clone()
    };
    let first = last_resort(&done.status);
    for _ in 0..3 {
        assert!(!world.reserve(&device).await.last_resort);
    }
    assert!(world.reserve(&device).await.last_resort);
    let done = device.pool.refresh().await.unwrap();
    let second = last_resort(&done.status);
    assert_ne!(second, first);
    assert_eq!(done.retired, 1);
    assert!(device.held().contains(&first), "its Welcome is on its way");
    let mut known = Known::default();
    world.check(&device, &mut known, "replaced").await;

    world.pass(DAY + 1);
    device.pool.refresh().await.unwrap();
    assert!(!device.held().contains(&first), "kept for longer than a day");
    world.check(&device, &mut known, "a day later").await;

    world.pass(6 * DAY + HOUR); // more than half of 14 days in all
    let done = device.pool.refresh().await.unwrap();
    assert_ne!(last_resort(&done.status), second);
    world.check(&device, &mut known, "halfway").await;
}

#[tokio::test]
async fn what_expires_goes_from_both_storages() {
    let world = World::new().await;
    let device = world.device("bob").await;
    device.pool.refresh().await.unwrap();
    let spent = world.reserve(&device).await;
    world.spend(&spent).await;
    let first = device.held();
    world.pass(14 * DAY + HOUR);
    let done = device.pool.refresh().await.unwrap();
    assert_eq!((done.expired, done.uploaded), (4, 4));
    assert!(device.held().is_disjoint(&first));
    world.check(&device, &mut Known::default(), "expired").await;
}

#[tokio::test]
async fn the_device_brings_itself_into_order_without_the_server() {
    let world = World::new().await;
    let device = world.device("bob").await;
    device.pool.refresh().await.unwrap();
    world.pass(14 * DAY + HOUR);
    world.replica.stop();
    let failed = device.pool.refresh().await.unwrap_err();
    assert!(matches!(failed, PoolError::Service(_)), "{failed:?}");
    assert!(device.held().is_empty());
    assert_eq!(device.records(), []);
}

#[tokio::test]
async fn what_is_refused_leaves_no_private_keys() {
    let world = World::new().await;
    let device = world.device("bob").await;
    let mallory = device::identity(device.folder(), "mallory");
    let done = device.pool.rotate_credential(vec![mallory]).await.unwrap();
    assert_eq!((done.uploaded, done.refused.len()), (0, 4));
    for refused in &done.refused {
        assert_eq!(refused.reason, RejectReason::CredentialMismatch);
        assert!(!refused.message.is_empty());
    }
    assert_eq!(device.pool.health().borrow().refused, done.refused);
    assert!(device.held().is_empty());
    assert_eq!(device.records(), []);
}

#[tokio::test]
async fn a_rotation_that_is_refused_leaves_the_pool_as_it_was() {
    let world = World::new().await;
    let device = world.device("bob").await;
    device.pool.refresh().await.unwrap();
    let held = device.held();
    let mallory = device::identity(device.folder(), "mallory");
    // A credential of another user, with another signature key than before.
    device.next_identity();
    let done = device.pool.rotate_credential(vec![mallory]).await.unwrap();
    assert_eq!((done.uploaded, done.retired), (0, 0));
    assert_eq!(device.held(), held);
    let suite = &device.client.pool_status().await.unwrap().cipher_suites[0];
    assert_eq!(suite.available, 3);
}

#[tokio::test]
async fn a_rotation_replaces_every_package_and_keeps_old_keys_for_a_day() {
    let world = World::new().await;
    let device = world.device("bob").await;
    device.pool.refresh().await.unwrap();
    let reserved = world.reserve(&device).await;
    let old = device.held();
    let done = device.pool.rotate_credential(vec![device.next_identity()]).await.unwrap();
    assert_eq!(done.retired, 4);
    let suite = &done.status.cipher_suites[0];
    assert_eq!((suite.available, suite.reserved), (3, 1));
    assert!(device.held().is_superset(&old));
    let outdated = old.iter().map(|r| (r.clone(), world.now())).collect();
    let mut known = Known { outdated, ..Known::default() };
    world.check(&device, &mut known, "rotated").await;
    let truth = world.truth(&device).await;
    let reissued: Vec<_> = truth.issuable.intersection(&old).collect();
    assert_eq!(reissued, [&reserved.key_package_ref], "only its holder may use it");
    world.spend(&reserved).await;

    world.pass(DAY);
    device.pool.refresh().await.unwrap();
    assert!(device.held().is_disjoint(&old), "kept for longer than a day");
    world.check(&device, &mut known, "a day later").await;
}

#[tokio::test]
async fn a_rotation_has_room_in_a_pool_at_its_cap() {
    let policy = PoolPolicy { target: 3, low_watermark: 1, hard_cap: 3, ..PoolPolicy::default() };
    let world = World::with(policy).await;
    let device = world.device("bob").await;
    device.pool.refresh().await.unwrap();
    let done = device.pool.rotate_credential(vec![device.next_identity()]).await.unwrap();
    assert_eq!(done.refused, []);
    assert_eq!((done.uploaded, done.status.cipher_suites[0].available), (4, 3));
}

#[tokio::test]
async fn a_cipher_suite_that_is_given_up_is_withdrawn() {
    let world = World::new().await;
    let device = world.device("bob").await;
    let suites = [1_u16, 3].map(|suite| suite.try_into().unwrap());
    let both = identity_of(&device, &suites);
    let done = device.pool.rotate_credential(vec![both]).await.unwrap();
    assert_eq!((done.uploaded, done.status.cipher_suites.len()), (8, 2));
    let one = identity_of(&device, &suites[..1]);
    let done = device.pool.rotate_credential(vec![one]).await.unwrap();
    assert_eq!((done.uploaded, done.retired), (0, 4));
    let [first, third] = &done.status.cipher_suites[..] else { panic!("{:?}", done.status) };
    assert_eq!((first.available, third.available), (3, 0));
    assert_eq!(third.last_resort, None);
    world.check(&device, &mut Known::default(), "given up").await;
}

fn identity_of(
    device: &Device,
    suites: &[openmls::prelude::Ciphersuite],
) -> Identity<openmls_basic_credential::SignatureKeyPair> {
    device::identity_for(device.folder(), device.owner.user.as_str(), suites)
}

#[tokio::test]
async fn after_a_reinstall_nothing_of_before_is_issued() {
    let world = World::new().await;
    let device = world.device("bob").await;
    device.pool.refresh().await.unwrap();
    let mut known = Known { lost: device.held(), ..Known::default() };
    let device = device.reinstall();
    let done = device.pool.refresh().await.unwrap();
    assert_eq!(done.uploaded, 4);
    world.check(&device, &mut known, "reinstalled").await;
}

#[tokio::test]
async fn what_another_installation_published_is_withdrawn() {
    let world = World::new().await;
    let device = world.device("bob").await;
    device.pool.refresh().await.unwrap();
    let first = device.held();
    let other = world.device("bob").await;
    other.pool.refresh().await.unwrap();
    let mut known = Known { lost: other.held(), ..Known::default() };
    device.pool.refresh().await.unwrap();
    world.check(&device, &mut known, "back").await;
    assert!(device.held().is_superset(&first), "their Welcomes may be on their way");
    world.pass(DAY);
    device.pool.refresh().await.unwrap();
    assert!(device.held().is_disjoint(&first), "kept for longer than a day");
    world.check(&device, &mut known, "a day later").await;
}

#[tokio::test]
async fn a_package_that_was_issued_while_its_upload_was_unanswered_can_be_joined() {
    let world = World::new().await;
    let device = world.device("bob").await;
    // The write after the upload fails: the first records what is prepared.
    device.fail_at(1, false);
    let failed = device.pool.refresh().await.unwrap_err();
    assert!(matches!(failed, PoolError::Metadata(_)), "{failed:?}");
    device.fail_no_more();
    assert!(device.records().iter().all(|record| record.state == PackageState::Prepared));
    let reservation = world.reserve(&device).await;
    world.spend(&reservation).await;

    let device = device.restart();
    device.pool.refresh().await.unwrap();
    assert!(device.held().contains(&reservation.key_package_ref), "its Welcome is on its way");
    world.check(&device, &mut Known::default(), "uploaded again").await;
}

#[tokio::test]
async fn options_that_do_not_fit_are_refused() {
    let world = World::new().await;
    let device = world.device("bob").await;
    let start = |options: PoolOptions| {
        let identity = device::identity(device.folder(), "bob");
        let (client, provider) = (device.client.clone(), device.provider.clone());
        let metadata = device.metadata.clone();
        keypool_client::OwnPool::with_options(client, provider, metadata, vec![identity], options)
    };
    for (options, why) in [
        (PoolOptions::default().target(0), "target"),
        (PoolOptions::default().target(65), "target"),
        (PoolOptions::default().low_watermark(32), "low watermark"),
        (PoolOptions::default().lifetime(Duration::from_secs(1)), "lifetime"),
        (PoolOptions::default().interval(Duration::ZERO), "interval"),
    ] {
        let refused = start(options).unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
    }
    let twice = identity_of(&device, &[1_u16.try_into().unwrap(); 2]);
    assert!(device.pool.rotate_credential(vec![twice]).await.is_err());
    let other_scheme = identity_of(&device, &[2_u16.try_into().unwrap()]);
    assert!(device.pool.rotate_credential(vec![other_scheme]).await.is_err());
    assert!(device.pool.rotate_credential(Vec::new()).await.is_err());
    assert_eq!(device.pool.refresh().await.unwrap().uploaded, 4, "the identity before holds");
}
