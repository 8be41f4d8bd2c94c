//! Postgres itself refuses rows that cannot be.

use keypool_testing::world::{World, client};
use sqlx::AssertSqlSafe;

/// Statements that would make an impossible row of a reserved package (seq 1), an available one
/// (seq 2), a tombstone (seq 3, spent), a lapsed one (seq 4), a released one (seq 5), a draw, a
/// last resort package and a grant.
const IMPOSSIBLE: &[&str] = &[
    // A pool
    "UPDATE pool SET bucket = 1024",
    "UPDATE pool SET bucket = -1",
    "UPDATE pool SET user_id = ''",
    "UPDATE pool SET user_id = repeat('u', 256)",
    "UPDATE pool SET client_id = ''",
    "UPDATE pool SET client_id = repeat('ü', 128)",
    // Counters
    "UPDATE pool_suite SET expired = -1",
    "UPDATE pool_suite SET revoked = -1",
    "UPDATE pool_suite SET burned = -1",
    "UPDATE pool_suite SET forgotten = -1",
    "UPDATE pool_suite SET uploaded = -1",
    "UPDATE pool_suite SET expired = uploaded, forgotten = 1",
    "UPDATE pool_suite SET uploaded = last_seq + 1",
    "UPDATE pool_suite SET cipher_suite = 0",
    "UPDATE pool_suite SET cipher_suite = 65536",
    // A reserved package without its holder, group or time, never reserved, or returned
    "UPDATE package SET holder = NULL WHERE seq = 1",
    "UPDATE package SET group_id = NULL WHERE seq = 1",
    "UPDATE package SET expires_at = NULL WHERE seq = 1",
    "UPDATE package SET generation = 0 WHERE seq = 1",
    "UPDATE package SET returned = 'lapsed' WHERE seq = 1",
    "UPDATE package SET returned = 'released' WHERE seq = 1",
    // An available one with them, or with a past that does not fit
    "UPDATE package SET holder = decode(repeat('aa', 16), 'hex') WHERE seq = 2",
    "UPDATE package SET group_id = 'g' WHERE seq = 2",
    "UPDATE package SET expires_at = now() WHERE seq = 2",
    "UPDATE package SET generation = 1 WHERE seq = 2",
    "UPDATE package SET generation = -1 WHERE seq = 2",
    "UPDATE package SET returned = 'released' WHERE seq = 2",
    "UPDATE package SET state = 'reserved' WHERE seq = 2",
    "UPDATE package SET state = 'spent' WHERE seq = 2",
    "UPDATE package SET returned = 'burned' WHERE seq = 5",
    // A lapsed one that forgot its holder, a released one that did not
    "UPDATE package SET holder = NULL WHERE seq = 4",
    "UPDATE package SET returned = NULL WHERE seq = 4",
    "UPDATE package SET returned = 'released' WHERE seq = 4",
    "UPDATE package SET generation = 0 WHERE seq = 5",
    "UPDATE package SET returned = NULL WHERE seq = 5",
    "UPDATE package SET returned = 'lapsed' WHERE seq = 5",
    // Lengths
    "UPDATE package SET key_package_ref = decode(repeat('aa', 31), 'hex')",
    "UPDATE package SET key_package_ref = decode(repeat('aa', 65), 'hex')",
    "UPDATE package SET key_package = ''",
    "UPDATE package SET key_package = decode(repeat('aa', 20481), 'hex')",
    "UPDATE package SET signature_key_digest = 'short'",
    "UPDATE package SET credential_digest = 'short'",
    "UPDATE package SET holder = 'short' WHERE seq = 1",
    "UPDATE package SET group_id = '' WHERE seq = 1",
    "UPDATE package SET group_id = decode(repeat('aa', 256), 'hex') WHERE seq = 1",
    "UPDATE package SET seq = 0 WHERE seq = 2",
    // A tombstone that cannot say who spent it, for which group, in which reservation
    "UPDATE tombstone SET holder = NULL",
    "UPDATE tombstone SET group_id = NULL",
    "UPDATE tombstone SET generation = 0",
    "UPDATE tombstone SET state = 'burned', holder = NULL",
    "UPDATE tombstone SET state = 'available'",
    "UPDATE tombstone SET state = 'expired'",
    "UPDATE tombstone SET generation = -1, state = 'revoked'",
    "UPDATE tombstone SET key_package_ref = 'short'",
    "UPDATE tombstone SET holder = 'short'",
    "UPDATE tombstone SET group_id = ''",
    "UPDATE tombstone SET seq = 0",
    // What was published
    "UPDATE published SET key_package_ref = 'short'",
    "UPDATE published SET init_key_digest = 'short'",
    "UPDATE published SET seq = 0",
    // The last resort package and its grants
    "UPDATE last_resort SET seq = 0",
    "UPDATE last_resort SET key_package_ref = 'short'",
    "UPDATE last_resort SET key_package = ''",
    "UPDATE last_resort SET forgotten_grants = -1",
    "UPDATE last_resort SET signature_key_digest = 'short'",
    "UPDATE last_resort SET credential_digest = 'short'",
    "UPDATE last_resort_grant SET grant_id = 0",
    "UPDATE last_resort_grant SET state = 'lapsed'",
    "UPDATE last_resort_grant SET holder = 'short'",
    "UPDATE last_resort_grant SET group_id = ''",
    "UPDATE last_resort_grant SET key_package_ref = 'short'",
    "UPDATE draw SET caller = 'short'",
    // Events
    "UPDATE event SET kind = 'stolen'",
    "UPDATE event SET actor_user = NULL WHERE kind = 'uploaded'",
    "UPDATE event SET actor_client = NULL WHERE kind = 'uploaded'",
    "UPDATE event SET holder = NULL WHERE kind = 'reserved'",
    "UPDATE event SET group_id = NULL WHERE kind = 'reserved'",
    "UPDATE event SET generation = -1",
    "UPDATE event SET seq = 0",
    "UPDATE service_secret SET secret = 'short'",
];

/// Rows that would stand beside one that excludes them, or without one that they need.
const IN_CONFLICT: &[(&str, &str)] = &[
    ("INSERT INTO package SELECT * FROM package WHERE seq = 1", "23505"),
    ("INSERT INTO tombstone SELECT * FROM tombstone", "23505"),
    ("INSERT INTO last_resort SELECT * FROM last_resort", "23505"),
    ("INSERT INTO draw SELECT * FROM draw", "23505"),
    ("INSERT INTO pool SELECT * FROM pool", "23505"),
    // A ref is published once for a user, whatever the pool; an init_key once for a client.
    (
        "INSERT INTO published SELECT bucket, key_package_ref, pool_id + 1, cipher_suite, seq,
             init_key_digest, not_after FROM published",
        "23505",
    ),
    (
        "INSERT INTO published SELECT bucket, decode(repeat('aa', 32), 'hex'), pool_id,
             cipher_suite, seq + 100, init_key_digest, not_after FROM published WHERE seq = 1",
        "23505",
    ),
    ("UPDATE package SET pool_id = pool_id + 1", "23503"),
    ("UPDATE last_resort SET cipher_suite = 2", "23503"),
    ("DELETE FROM pool", "23503"),
];

#[tokio::test]
async fn every_impossible_row_is_refused_by_a_constraint() {
    let (world, bob, alice) = (World::new().await, client("bob", "1"), client("alice", "1"));
    world.stock(&bob, 5).await;
    let mut held = Vec::new();
    for _ in 0..5 {
        held.push(world.reserve(&alice, &bob).await.id);
    }
    world.spend(&alice, &[&held[2]]).await.unwrap();
    world.release(&alice, &[&held[1], &held[4]]).await.unwrap();
    world.stock_last_resort(&bob).await;
    // The package with seq 2 as if it had never been reserved, the one with seq 4 lapsed.
    for statement in [
        "UPDATE package SET generation = 0, returned = NULL WHERE seq = 2",
        "UPDATE package SET state = 'available', returned = 'lapsed' WHERE seq = 4",
        "INSERT INTO last_resort_grant SELECT bucket, pool_id, cipher_suite, 1, key_package_ref,
             'reserved', decode(repeat('aa', 16), 'hex'), 'g', now() FROM last_resort",
    ] {
        sqlx::query(statement).execute(&world.database.pool).await.unwrap();
    }

    let impossible = IMPOSSIBLE.iter().map(|statement| (*statement, "23514"));
    for (statement, code) in impossible.chain(IN_CONFLICT.iter().copied()) {
        let mut transaction = world.database.pool.begin().await.unwrap();
        let refused = sqlx::query(AssertSqlSafe(statement)).execute(&mut *transaction).await;
        let error = refused.expect_err(statement);
        let error = error.as_database_error().expect(statement);
        assert_eq!(error.code().as_deref(), Some(code), "{statement}: {error}");
        transaction.rollback().await.unwrap();
    }
}
