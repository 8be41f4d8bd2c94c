-- Hands one-time packages back, for the calls of several callers at once; each call all or none.
--
-- $1 now, null: the database's clock  $2 lapsed reservations burn
-- One of each for each reservation, each of which is named once: $3 call[] (which call it belongs
-- to)  $4 bucket[]  $5 pool_id[]  $6 cipher_suite[]  $7 seq[]  $8 generation[]  $9 caller's digest[]
-- $10, $11 caller's user[] and client[]
WITH t AS MATERIALIZED (
    SELECT coalesce($1::timestamptz, now()) AS now
),
ask AS MATERIALIZED (
    SELECT a.*
    FROM unnest($3::int[], $4::smallint[], $5::bigint[], $6::int[], $7::bigint[], $8::int[],
                $9::bytea[], $10::text[], $11::text[])
         WITH ORDINALITY
         AS a (call, bucket, pool_id, cipher_suite, seq, generation, caller, actor_user,
               actor_client, ord)
),
-- Locked, in the order of the key, for the reasons that spend.sql gives.
held AS MATERIALIZED (
    SELECT a.ord, k.generation, k.state, k.holder, k.group_id, k.expires_at, k.revoked_at
    FROM ask a
    JOIN package k USING (bucket, pool_id, cipher_suite, seq)
    ORDER BY k.bucket, k.pool_id, k.cipher_suite, k.seq
    FOR UPDATE OF k
),
judged AS MATERIALIZED (
    SELECT a.*, h.group_id, h.revoked_at IS NOT NULL AS revoked,
           CASE
               -- The id was made by somebody who has the secret, and not by keypool.
               WHEN (h.generation = a.generation AND h.holder <> a.caller)
                    OR (b.generation = a.generation AND b.holder <> a.caller) THEN 'unknown'
               WHEN h.generation = a.generation AND h.state = 'reserved'
                    AND NOT ($2::bool AND h.expires_at <= t.now) THEN 'release'
               WHEN h.ord IS NOT NULL THEN 'already'
               WHEN b.state = 'spent' AND b.generation = a.generation THEN 'not_held'
               WHEN b.state IS NOT NULL THEN 'already'
               -- Ended while this statement waited for the lock: take another look.
               WHEN EXISTS (SELECT FROM package k
                            WHERE k.bucket = a.bucket AND k.pool_id = a.pool_id
                              AND k.cipher_suite = a.cipher_suite AND k.seq = a.seq) THEN 'raced'
               ELSE 'already'
           END AS outcome
    FROM ask a
    CROSS JOIN t
    LEFT JOIN held h USING (ord)
    LEFT JOIN tombstone b USING (bucket, pool_id, cipher_suite, seq)
),
failed AS MATERIALIZED (
    SELECT DISTINCT call FROM judged WHERE outcome NOT IN ('release', 'already')
),
released AS (
    UPDATE package k
    SET state = 'available', returned = 'released', holder = NULL, group_id = NULL,
        expires_at = NULL
    FROM judged j
    WHERE j.outcome = 'release' AND NOT j.revoked
      AND NOT EXISTS (SELECT FROM failed f WHERE f.call = j.call)
      AND k.bucket = j.bucket AND k.pool_id = j.pool_id AND k.cipher_suite = j.cipher_suite
      AND k.seq = j.seq AND k.generation = j.generation AND k.state = 'reserved'
    RETURNING j.caller, j.actor_user, j.actor_client, j.group_id, k.bucket, k.pool_id,
              k.cipher_suite, k.seq, k.generation, k.key_package_ref
),
-- What was revoked meanwhile is not available again. Not asked of the row itself: this
-- statement's snapshot may be older than its revocation.
revoked AS (
    DELETE FROM package k
    USING judged j
    WHERE j.outcome = 'release' AND j.revoked
      AND NOT EXISTS (SELECT FROM failed f WHERE f.call = j.call)
      AND k.bucket = j.bucket AND k.pool_id = j.pool_id AND k.cipher_suite = j.cipher_suite
      AND k.seq = j.seq AND k.generation = j.generation AND k.state = 'reserved'
    RETURNING j.caller, j.actor_user, j.actor_client, j.group_id, k.bucket, k.pool_id,
              k.cipher_suite, k.seq, k.generation, k.key_package_ref
),
entombed AS (
    INSERT INTO tombstone (bucket, pool_id, cipher_suite, seq, key_package_ref, state, generation,
                           holder, group_id, ended_at)
    SELECT r.bucket, r.pool_id, r.cipher_suite, r.seq, r.key_package_ref, 'revoked', r.generation,
           r.caller, r.group_id, t.now
    FROM revoked r, t
),
-- In the order of the key, as every statement that counts does.
suite AS MATERIALIZED (
    SELECT u.bucket, u.pool_id, u.cipher_suite, r.n
    FROM pool_suite u
    JOIN (SELECT bucket, pool_id, cipher_suite, count(*) AS n
          FROM revoked GROUP BY bucket, pool_id, cipher_suite) r
         USING (bucket, pool_id, cipher_suite)
    ORDER BY u.bucket, u.pool_id, u.cipher_suite
    FOR UPDATE OF u
),
counted AS (
    UPDATE pool_suite u
    SET revoked = u.revoked + s.n
    FROM suite s
    WHERE u.bucket = s.bucket AND u.pool_id = s.pool_id AND u.cipher_suite = s.cipher_suite
),
logged AS (
    INSERT INTO event (bucket, pool_id, at, cipher_suite, seq, generation, kind, key_package_ref,
                       actor_user, actor_client, holder, group_id)
    SELECT r.bucket, r.pool_id, coalesce($1::timestamptz, clock_timestamp()), r.cipher_suite, r.seq, r.generation, 'released',
           r.key_package_ref, r.actor_user, r.actor_client, r.caller, r.group_id
    FROM (SELECT * FROM released UNION ALL SELECT * FROM revoked) r
)
SELECT j.ord AS "ord!", j.outcome AS "outcome!", NULL::bytea AS key_package_ref
FROM judged j
ORDER BY j.ord
