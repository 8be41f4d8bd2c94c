//! A Revoke that meets a Reserve or a settlement of the same package takes effect all the same:
//! nobody gets the package afterwards but who holds it.

use keypool_service::{
    domain::{error::Error, ids::ClientKey},
    pool::{KeyPool, Selection, UploadMode},
    store::Revoked,
};
use keypool_testing::world::{World, ask, client, join, package, run, spawn};
use tokio::task::JoinHandle;

const RESERVED: &str = "UPDATE package SET state = 'reserved', generation = generation + 1,
     returned = NULL, holder = decode(repeat('ee', 16), 'hex'), group_id = 'group',
     expires_at = to_timestamp(2000000000)";
const RELEASED: &str = "UPDATE package SET state = 'available', returned = 'released',
     holder = NULL, group_id = NULL, expires_at = NULL";
const REVOKED: &str = "UPDATE package SET revoked_at = now()";

fn revoking(pool: &KeyPool, owner: &ClientKey) -> JoinHandle<Revoked> {
    let (pool, owner) = (pool.clone(), owner.clone());
    spawn(async move { pool.revoke(&owner, None, Selection::All).await.unwrap() })
}

#[tokio::test]
async fn a_package_that_is_reserved_meanwhile_is_marked() {
    let (world, bob) = (World::new().await, client("bob", "1"));
    world.stock(&bob, 1).await;
    let reserve = world.by_hand(&[RESERVED]).await;
    let revoke = revoking(&world.b, &bob);
    world.until_waiting(1).await;
    reserve.commit().await.unwrap();
    let revoked = join(revoke).await;
    assert_eq!((revoked.available, revoked.reserved), (0, 1));
    let marked = "SELECT count(*) FROM package WHERE revoked_at IS NOT NULL";
    assert_eq!(world.number(marked).await, 1);
}

#[tokio::test]
async fn a_package_that_is_released_meanwhile_is_ended() {
    let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
    let refs = world.stock(&bob, 1).await;
    let held = world.reserve(&alice, &bob).await;
    let release = world.by_hand(&[RELEASED]).await;
    let revoke = revoking(&world.b, &bob);
    world.until_waiting(1).await;
    release.commit().await.unwrap();
    let revoked = join(revoke).await;
    assert_eq!((revoked.available, revoked.reserved), (1, 0));
    let refused = world.a.reserve(&alice, &ask(&[&bob])).await;
    assert!(matches!(refused, Err(Error::PoolExhausted)));
    assert!(matches!(world.spend(&alice, &[&held.id]).await, Err(Error::ReservationLost)));
    assert_eq!(world.events(&refs[0]).await.last().unwrap(), "revoked");
}

#[tokio::test]
async fn a_release_that_meets_a_revoke_ends_the_package() {
    let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
    world.stock(&bob, 1).await;
    let held = world.reserve(&alice, &bob).await;
    let revoke = world.by_hand(&[REVOKED]).await;
    let (pool, holder, ids) = (world.b.clone(), alice.clone(), vec![held.id.clone()]);
    let release = spawn(async move { pool.release(&holder, &ids).await });
    world.until_waiting(1).await;
    revoke.commit().await.unwrap();
    assert!(!join(release).await.unwrap()[0].already);
    assert_eq!(world.number("SELECT count(*) FROM package").await, 0);
    assert_eq!(world.number("SELECT revoked FROM pool_suite").await, 1);
    assert!(matches!(world.spend(&alice, &[&held.id]).await, Err(Error::ReservationLost)));
}

/// By policy burn too, what was revoked while it was reserved ends as revoked.
#[tokio::test]
async fn a_lapse_ends_what_was_revoked_while_it_was_reserved() {
    for world in [World::new().await, World::burning().await] {
        let (bob, alice) = (client("bob", "1"), client("alice", "1"));
        let refs = world.stock(&bob, 2).await;
        let spent = world.reserve(&alice, &bob).await;
        world.reserve(&alice, &bob).await;
        assert_eq!(join(revoking(&world.a, &bob)).await.reserved, 2);
        world.spend(&alice, &[&spent.id]).await.unwrap();
        world.pass(60);
        assert_eq!(world.sweep().await.lapsed, 1);
        assert_eq!(world.events(&refs[0]).await, ["uploaded", "reserved", "revoked", "spent"]);
        assert_eq!(world.events(&refs[1]).await, ["uploaded", "reserved", "revoked", "lapsed"]);
        let state = "SELECT state FROM tombstone ORDER BY seq";
        assert_eq!(world.texts(state).await, ["spent", "revoked"]);
        assert_eq!(world.number("SELECT revoked * 10 + burned FROM pool_suite").await, 10);
    }
}

#[tokio::test]
async fn packages_are_locked_before_they_are_counted_and_in_one_order() {
    let (world, bob) = (World::new().await, client("bob", "1"));
    world.stock(&bob, 8).await;
    let mut other = world.by_hand(&["SELECT FROM package WHERE seq = 1 FOR UPDATE"]).await;
    let revoke = revoking(&world.b, &bob);
    world.until_waiting(1).await;
    run(&mut other, "SELECT FROM package WHERE seq > 1 FOR UPDATE NOWAIT").await;
    run(&mut other, "SELECT FROM pool_suite FOR UPDATE NOWAIT").await;
    other.commit().await.unwrap();
    assert_eq!(join(revoke).await.available, 8);
}

/// An Upload holds the pool's row from before it looks until it is done.
#[tokio::test]
async fn a_revoke_waits_for_an_upload_of_the_same_pool() {
    let (world, bob) = (World::new().await, client("bob", "1"));
    world.stock(&bob, 1).await;
    world.stock(&client("bob", "2"), 1).await;
    let upload = world.by_hand(&["SELECT FROM pool WHERE client_id = '1' FOR NO KEY UPDATE"]).await;
    let revoke = revoking(&world.b, &bob);
    world.until_waiting(1).await;
    assert_eq!(world.number("SELECT count(*) FROM package").await, 2);
    assert_eq!(join(revoking(&world.b, &client("bob", "2"))).await.available, 1);
    upload.commit().await.unwrap();
    assert_eq!(join(revoke).await.available, 1);
}

/// So does an Upload for a Revoke, which holds the pool's row until it is done.
#[tokio::test]
async fn an_upload_waits_for_a_revoke_of_the_same_pool() {
    let (world, bob) = (World::new().await, client("bob", "1"));
    world.stock(&bob, 1).await;
    let by_hand = world.by_hand(&["SELECT FROM package FOR UPDATE"]).await;
    let revoke = revoking(&world.b, &bob);
    world.until_waiting(1).await;
    let (pool, owner, fresh) = (world.a.clone(), bob.clone(), package(&bob).build());
    let upload = spawn(async move { pool.upload(&owner, vec![fresh], UploadMode::Add).await });
    world.until_waiting(2).await;
    by_hand.commit().await.unwrap();
    assert_eq!(join(revoke).await.available, 1);
    join(upload).await.unwrap();
    assert_eq!(world.counts(&bob).await.available, 1);
}
