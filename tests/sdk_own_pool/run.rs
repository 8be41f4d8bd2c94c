//! The pool keeps itself, and says how it does.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use keypool_client::{
    Bytes, InvitationRecord, MetadataError, MetadataStore, OwnPool, PackageRecord, PoolHealth,
    PoolOptions, Uuid,
};
use keypool_testing::{
    proxy::{Proxy, Target},
    server::until,
    watching::patiently,
};

use super::{
    device::{Metadata, identity, options},
    *,
};

/// So long that the timer plays no part.
fn quiet() -> PoolOptions {
    options().interval(Duration::from_secs(DAY))
}

fn available(health: &PoolHealth) -> Option<u32> {
    Some(health.status.as_ref()?.cipher_suites.first()?.available)
}

async fn until_health(device: &Device, is: impl FnMut(&PoolHealth) -> bool) -> PoolHealth {
    let mut health = device.pool.health();
    patiently(health.wait_for(is)).await.unwrap().clone()
}

#[tokio::test]
async fn it_fills_at_once_and_again_when_it_is_drained() {
    let world = World::new().await;
    let device = world.device("bob").await.restart_with(quiet());
    assert_eq!(device.pool.health().borrow().level(), v1::Health::Unspecified);
    let _running = device.pool.run().unwrap();
    let filled = until_health(&device, |health| health.refreshed_at.is_some()).await;
    assert_eq!((available(&filled), filled.level()), (Some(3), v1::Health::Healthy));

    for _ in 0..3 {
        let before = device.held();
        // Drained, down to the last resort package.
        while !world.reserve(&device).await.last_resort {}
        until(async || {
            let status = device.client.pool_status().await.unwrap();
            let suite = &status.cipher_suites[0];
            suite.available == 3 && suite.last_resort.as_ref().unwrap().times_issued == 0
        })
        .await;
        assert!(device.held().is_superset(&before), "their Welcomes are on their way");
    }
}

#[tokio::test]
async fn it_replaces_a_package_after_its_welcome() {
    let world = World::new().await;
    let device = world.device("bob").await.restart_with(quiet());
    let _running = device.pool.run().unwrap();
    until_health(&device, |health| health.refreshed_at.is_some()).await;
    let reservation = world.reserve(&device).await;
    device.read_welcome(&reservation.key_package_ref);
    device.pool.after_welcome();
    until(async || {
        let status = device.client.pool_status().await.unwrap();
        let known = device.records();
        status.cipher_suites[0].available == 3
            && known.iter().all(|r| r.key_package_ref != reservation.key_package_ref)
    })
    .await;
}

#[tokio::test]
async fn it_refreshes_on_its_timer() {
    let world = World::new().await;
    let device =
        world.device("bob").await.restart_with(options().interval(Duration::from_millis(50)));
    let _running = device.pool.run().unwrap();
    for _ in 0..3 {
        world.pass(1);
        let now = world.now();
        until_health(&device, |health| health.refreshed_at == Some(now)).await;
    }
}

#[tokio::test]
async fn a_server_that_is_gone_and_back_is_told_and_made_up_for() {
    let world = World::new().await;
    let proxy = Proxy::to(Target::Tcp(world.replica.address)).await;
    let owner = client_key("bob", "phone");
    let token = world.replicas.token(&owner);
    let uri = format!("http://{}", proxy.address());
    let client = Client::builder(uri, token).retries(0).connect().await.unwrap();
    let device = Device::new(client, owner, world.replicas.clock.clone()).restart_with(quiet());
    let _running = device.pool.run().unwrap();
    until_health(&device, |health| health.refreshed_at.is_some()).await;

    proxy.cut();
    while !world.reserve(&device).await.last_resort {}
    device.pool.after_welcome();
    let failing = until_health(&device, |health| health.failure.is_some()).await;
    let failure = failing.failure.unwrap();
    assert!(failure.attempts >= 1 && failure.since == world.now(), "{failure:?}");
    proxy.open();
    until_health(&device, |health| health.failure.is_none() && available(health) == Some(3)).await;
}

/// Panics as it reads, when told to.
struct Panicking {
    store: Metadata,
    panics: Arc<AtomicBool>,
}

impl MetadataStore for Panicking {
    fn packages(&self) -> Result<Vec<PackageRecord>, MetadataError> {
        assert!(!self.panics.load(Ordering::SeqCst), "told to panic");
        self.store.packages()
    }
    fn put_packages(&self, records: &[PackageRecord]) -> Result<(), MetadataError> {
        self.store.put_packages(records)
    }
    fn remove_packages(&self, refs: &[Bytes]) -> Result<(), MetadataError> {
        self.store.remove_packages(refs)
    }
    fn invitations(&self) -> Result<Vec<InvitationRecord>, MetadataError> {
        self.store.invitations()
    }
    fn invitation(&self, id: Uuid) -> Result<Option<InvitationRecord>, MetadataError> {
        self.store.invitation(id)
    }
    fn put_invitation(&self, record: &InvitationRecord) -> Result<(), MetadataError> {
        self.store.put_invitation(record)
    }
    fn remove_invitation(&self, id: Uuid) -> Result<(), MetadataError> {
        self.store.remove_invitation(id)
    }
}

#[tokio::test]
async fn a_panic_below_it_is_a_failure_that_passes() {
    let world = World::with(PoolPolicy::default()).await;
    let device = world.device("bob").await;
    let panics = Arc::new(AtomicBool::new(true));
    let store = Panicking { store: device.metadata.clone(), panics: panics.clone() };
    let identity = identity(device.folder(), "bob");
    let (client, provider) = (device.client.clone(), device.provider.clone());
    let now = std::time::UNIX_EPOCH + Duration::from_secs(world.now());
    let options = PoolOptions::default().clock(move || now);
    let pool = OwnPool::with_options(client, provider, store, vec![identity], options).unwrap();
    let _running = pool.run().unwrap();
    let mut health = pool.health();
    let failing = patiently(health.wait_for(|health| health.failure.is_some())).await;
    assert_eq!(&*failing.unwrap().failure.as_ref().unwrap().cause, "the refresh panicked");
    panics.store(false, Ordering::SeqCst);
    patiently(health.wait_for(|health| health.failure.is_none())).await.unwrap();
    assert_eq!(device.held().len(), 33);
}

#[tokio::test]
async fn it_stops_when_told_and_when_dropped() {
    let world = World::new().await;
    for told in [true, false] {
        let device = world.device("bob").await.restart_with(quiet());
        let running = device.pool.run().unwrap();
        until_health(&device, |health| health.refreshed_at.is_some()).await;
        if told {
            running.stop().await;
        } else {
            drop(running);
        }
        // Nothing that runs holds the provider any more.
        let provider = device.provider.clone();
        drop(device);
        until(async || Arc::strong_count(&provider) == 1).await;
    }
}

#[test]
fn outside_of_a_runtime_it_is_an_error() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let device = runtime.block_on(async { World::new().await.device("bob").await });
    assert!(matches!(device.pool.run(), Err(keypool_client::PoolError::NoRuntime)));
}
