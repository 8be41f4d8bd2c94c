//! A connection goes from one statement to the next, and keeps nobody waiting for it.

use std::time::{Duration, Instant};

use keypool_service::domain::ids::ClientKey;
use keypool_testing::world::{World, all, ask, client, group, join, join_all, only, spawn};

/// So long at most a connection goes from hand to hand before the pool gets it back.
const AWAY: Duration = Duration::from_secs(1);

fn adder(n: usize) -> ClientKey {
    client(&format!("adder-{n}"), "1")
}

fn owner(n: usize) -> ClientKey {
    client(&format!("owner-{n}"), "1")
}

/// Holds what the next Reserve of this owner's pool by somebody who drew from it waits for.
fn hold(owner: &str) -> String {
    format!(
        "SELECT FROM draw JOIN pool USING (bucket, pool_id) WHERE user_id = '{owner}'
         FOR UPDATE OF draw"
    )
}

/// The pool would hand out the connection that has rested longest: one after the other, all of them.
#[tokio::test(flavor = "multi_thread")]
async fn one_call_after_the_other_takes_what_the_last_one_had() {
    const CONNECTIONS: i64 = 4;
    for _ in 0..50 {
        let world = World::new().await;
        let mut ids = Vec::new();
        for n in 0..4 {
            world.stock(&owner(n), 2).await;
            ids.push(world.reserve(&adder(n), &owner(n)).await.id);
        }
        for n in 4..30 {
            world.stock(&owner(n), 1).await;
        }
        // As many connections as there are statements that wait: two Spends and two Releases.
        let held = world.by_hand(&["SELECT FROM package FOR UPDATE"]).await;
        let mut waiting = Vec::new();
        for (id, statements) in ids.into_iter().zip(1..) {
            let pool = world.a.clone();
            waiting.push(spawn(async move {
                match statements {
                    1 | 2 => {
                        drop(pool.spend(&adder(statements - 1), &[id], &group(1)).await.unwrap())
                    }
                    _ => drop(pool.release(&adder(statements - 1), &[id]).await.unwrap()),
                }
            }));
            world.until_waiting(i64::try_from(statements).unwrap()).await;
        }
        held.rollback().await.unwrap();
        join_all(waiting).await;
        let began = Instant::now();
        for n in 4..30 {
            world.reserve(&adder(n), &owner(n)).await;
        }
        if began.elapsed() < AWAY {
            let busy = "SELECT count(*) FROM pg_stat_activity
                        WHERE datname = current_database() AND application_name = 'keypool'
                          AND query LIKE '-- Reserves the next package%'";
            let busy = world.number(busy).await;
            assert!((1..CONNECTIONS).contains(&busy), "{busy}");
            return;
        }
    }
    panic!("the machine is too slow to see it");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_connection_gets_the_first_that_is_done() {
    let world = World::new().await;
    let pool = world.replica(2).await;
    let mut reservations = Vec::new();
    for n in 0..3 {
        world.stock(&owner(n), 2).await;
        reservations.push(only(pool.reserve(&adder(n), &ask(&[&owner(n)])).await.unwrap()));
    }
    // Both connections are taken by Reserves that wait.
    let mut held = Vec::new();
    let mut waiting = Vec::new();
    for (n, statements) in (0..2).zip(1..) {
        held.push(world.by_hand(&[&hold(owner(n).user.as_str())]).await);
        let pool = pool.clone();
        waiting.push(spawn(async move { pool.reserve(&adder(n), &ask(&[&owner(n)])).await }));
        world.until_waiting(statements).await;
    }
    let id = reservations.remove(2).id;
    let release = spawn({
        let pool = pool.clone();
        async move { pool.release(&adder(2), &[id]).await }
    });
    held.pop().unwrap().rollback().await.unwrap();
    drop(all(join(waiting.pop().unwrap()).await.unwrap()));
    // The other Reserve goes on waiting.
    assert_eq!(join(release).await.unwrap().len(), 1);
    held.pop().unwrap().rollback().await.unwrap();
    drop(all(join(waiting.pop().unwrap()).await.unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_is_not_kept_from_others() {
    let world = World::new().await;
    for connections in [1, 2, 3] {
        let pool = world.replica(connections).await;
        let owner = client(&format!("owner-of-{connections}"), "1");
        world.stock(&owner, 1).await;
        only(pool.reserve(&adder(0), &ask(&[&owner])).await.unwrap());
        // Takes connections of the same pool, one for each of its parts.
        let sweep = spawn({
            let pool = pool.clone();
            async move { pool.sweep(&keypool_service::pool::SweepPolicy::default()).await }
        });
        join(sweep).await.unwrap();
        join(spawn(async move { pool.store().close().await })).await;
    }
}
