//! A device whose process dies anywhere in a refresh. The storages are a file, the device a
//! process, and after each death the next refresh mends what the last one left.

use std::{
    env,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Output, Stdio},
    sync::atomic::Ordering,
};

use keypool_client::PoolOptions;

use super::{
    device::{DIES_AT, options, pool_in},
    truth::Known,
    *,
};

const SIGABRT: i32 = 6;
/// A smaller pool has fewer places to die at.
const TARGET: u32 = 2;

fn small() -> PoolOptions {
    options().target(TARGET)
}

/// Run as a process of its own by the tests below: refreshes once, and dies on the way.
#[tokio::test]
#[ignore = "a child of another test"]
async fn device() {
    let [url, token, folder, user, now, dies_at] =
        ["URL", "TOKEN", "FOLDER", "USER", "NOW", "DIES_AT"]
            .map(|name| env::var(format!("DEVICE_{name}")).unwrap());
    let client = Client::builder(url, token).retries(0).connect().await.unwrap();
    let pool = pool_in(Path::new(&folder), client, &user, small(), now.parse().unwrap());
    DIES_AT.store(dies_at.parse().unwrap(), Ordering::SeqCst);
    pool.refresh().await.unwrap();
}

/// Whether it lived, although it was to die.
async fn refresh_and_live(world: &World, device: &Device, token: String, dies_at: usize) -> bool {
    let child = refresh_and_die(world, device, token, dies_at).await;
    let lived = child.status.success();
    assert!(lived || child.status.signal() == Some(SIGABRT), "{child:?}");
    assert!(!lived || dies_at > 10, "a refresh has more steps than {dies_at}");
    lived
}

async fn refresh_and_die(world: &World, device: &Device, token: String, dies_at: usize) -> Output {
    tokio::process::Command::new(env::current_exe().unwrap())
        .args(["--ignored", "--exact", "sdk_own_pool::crash::device"])
        .env("DEVICE_URL", world.url())
        .env("DEVICE_TOKEN", token)
        .env("DEVICE_FOLDER", device.folder())
        .env("DEVICE_USER", device.owner.user.as_str())
        .env("DEVICE_NOW", world.now().to_string())
        .env("DEVICE_DIES_AT", dies_at.to_string())
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap()
}

/// For each place to die at: a device in the state that `prepare` makes, whose refresh dies there.
async fn wherever_it_dies(prepare: impl AsyncFn(&World, Device, &mut Known) -> Device) {
    let world = World::new().await;
    for dies_at in 1.. {
        let mut known = Known::default();
        let device = world.device(&format!("bob {dies_at}")).await.restart_with(small());
        let device = prepare(&world, device, &mut known).await;
        let token = world.replicas.token(&device.owner);
        let lived = refresh_and_live(&world, &device, token, dies_at).await;
        let place = format!("dead at {dies_at}");
        world.check_nothing_is_lost(&device, &known, &place).await;

        let device = device.restart_with(small());
        let done = device.pool.refresh().await.unwrap();
        world.check(&device, &mut known, &place).await;
        let [suite] = &done.status.cipher_suites[..] else { panic!("{:?}", done.status) };
        assert_eq!(suite.available, TARGET, "{place}");
        assert!(suite.last_resort.is_some(), "{place}");
        // And when all that was waited for is over, nothing is left of it.
        world.pass(DAY);
        device.pool.refresh().await.unwrap();
        world.check(&device, &mut known, &place).await;
        if lived {
            return;
        }
    }
}

#[tokio::test]
async fn of_its_first_refresh_the_next_one_mends_it() {
    wherever_it_dies(async |_, device, _| device).await;
}

#[tokio::test]
async fn of_a_refresh_with_everything_to_do_the_next_one_mends_it() {
    wherever_it_dies(async |world, device, known| {
        device.pool.refresh().await.unwrap();
        let spent = world.reserve(&device).await;
        world.spend(&spent).await;
        world.pass(13 * DAY + 23 * HOUR);
        device.pool.refresh().await.unwrap(); // replaces the last resort package
        world.pass(2 * HOUR); // the first packages expire
        let joined = world.reserve(&device).await;
        while !world.reserve(&device).await.last_resort {}
        device.read_welcome(&joined.key_package_ref);
        known.joined.insert(joined.key_package_ref);
        device
    })
    .await;
}

#[tokio::test]
async fn of_a_rotation_the_next_refresh_mends_it() {
    wherever_it_dies(async |world, device, known| {
        device.pool.refresh().await.unwrap();
        known.outdated = device.held().into_iter().map(|r| (r, world.now())).collect();
        let spent = world.reserve(&device).await;
        world.spend(&spent).await;
        world.reserve(&device).await;
        device.next_identity();
        device
    })
    .await;
}

#[tokio::test]
async fn of_the_refresh_after_a_reinstall_the_next_one_mends_it() {
    wherever_it_dies(async |_, device, known| {
        device.pool.refresh().await.unwrap();
        known.lost = device.held();
        device.reinstall().restart_with(small())
    })
    .await;
}

#[tokio::test]
async fn of_the_refresh_after_another_installation_the_next_one_mends_it() {
    wherever_it_dies(async |world, device, known| {
        device.pool.refresh().await.unwrap();
        let other = world.device(device.owner.user.as_str()).await;
        other.pool.refresh().await.unwrap();
        known.lost = other.held();
        device
    })
    .await;
}

#[tokio::test]
async fn of_a_refresh_that_is_refused_no_private_keys_are_left() {
    let world = World::new().await;
    for dies_at in 1.. {
        let mut device = world.device("bob").await;
        let token = world.replicas.token(&device.owner);
        // The packages are signed for another user than the token is for.
        device.owner = client_key("mallory", "phone");
        let lived = refresh_and_live(&world, &device, token, dies_at).await;
        let device = device.restart_with(small());
        let done = device.pool.refresh().await.unwrap();
        assert_eq!(done.refused.len(), 1 + TARGET as usize, "dead at {dies_at}");
        assert!(device.held().is_empty(), "dead at {dies_at}");
        assert_eq!(device.records(), [], "dead at {dies_at}");
        if lived {
            return;
        }
    }
}
