-- Spends one-time packages, for the calls of several callers at once; each call all or none.
--
-- $1 now, null: the database's clock
-- One of each for each reservation, each of which is named once: $2 call[] (which call it belongs
-- to)  $3 bucket[]  $4 pool_id[]  $5 cipher_suite[]  $6 seq[]  $7 generation[]  $8 caller's digest[]
-- $9, $10 caller's user[] and client[]  $11 group_id[]
WITH t AS MATERIALIZED (
    SELECT coalesce($1::timestamptz, now()) AS now
),
ask AS MATERIALIZED (
    SELECT a.*
    FROM unnest($2::int[], $3::smallint[], $4::bigint[], $5::int[], $6::bigint[], $7::int[],
                $8::bytea[], $9::text[], $10::text[], $11::bytea[])
         WITH ORDINALITY
         AS a (call, bucket, pool_id, cipher_suite, seq, generation, caller, actor_user,
               actor_client, group_id, ord)
),
-- Locked so that a lapse, a Release or another Spend comes before or after and not between; in
-- the order of the key, so that two settlements cannot wait for each other.
held AS MATERIALIZED (
    SELECT a.ord, k.generation, k.returned, k.group_id, k.holder
    FROM ask a
    JOIN package k USING (bucket, pool_id, cipher_suite, seq)
    ORDER BY k.bucket, k.pool_id, k.cipher_suite, k.seq
    FOR UPDATE OF k
),
-- Locked because a burned one may become spent.
buried AS MATERIALIZED (
    SELECT a.ord, b.state, b.generation, b.group_id, b.holder, b.key_package_ref
    FROM (SELECT * FROM ask a WHERE NOT EXISTS (SELECT FROM held h WHERE h.ord = a.ord)) a
    JOIN tombstone b USING (bucket, pool_id, cipher_suite, seq)
    ORDER BY b.bucket, b.pool_id, b.cipher_suite, b.seq
    FOR UPDATE OF b
),
judged AS MATERIALIZED (
    SELECT a.*, b.key_package_ref,
           CASE
               WHEN h.generation <> a.generation THEN 'lost'
               WHEN h.returned = 'released' THEN 'not_held'
               -- The id was made by somebody who has the secret, and not by keypool.
               WHEN h.holder <> a.caller
                    OR (b.generation = a.generation AND b.holder <> a.caller) THEN 'unknown'
               WHEN h.group_id <> a.group_id THEN 'group_mismatch'
               WHEN h.ord IS NOT NULL THEN 'spend'
               WHEN b.state = 'revoked' OR b.generation <> a.generation THEN 'lost'
               WHEN b.group_id <> a.group_id THEN 'group_mismatch'
               WHEN b.state = 'spent' THEN 'already'
               WHEN b.state = 'burned' THEN 'spend_late'
               -- Live in this statement's snapshot, ended while it waited for the lock: how it
               -- ended takes another look.
               WHEN EXISTS (SELECT FROM package k
                            WHERE k.bucket = a.bucket AND k.pool_id = a.pool_id
                              AND k.cipher_suite = a.cipher_suite AND k.seq = a.seq) THEN 'raced'
               ELSE 'lost'
           END AS outcome
    FROM ask a
    LEFT JOIN held h USING (ord)
    LEFT JOIN buried b USING (ord)
),
failed AS MATERIALIZED (
    SELECT DISTINCT call FROM judged WHERE outcome NOT IN ('spend', 'spend_late', 'already')
),
spent AS (
    DELETE FROM package k
    USING judged j
    WHERE j.outcome = 'spend' AND NOT EXISTS (SELECT FROM failed f WHERE f.call = j.call)
      AND k.bucket = j.bucket AND k.pool_id = j.pool_id AND k.cipher_suite = j.cipher_suite
      AND k.seq = j.seq AND k.generation = j.generation
      AND (k.state = 'reserved' OR k.returned = 'lapsed')
    RETURNING j.ord, k.bucket, k.pool_id, k.cipher_suite, k.seq, k.generation, k.key_package_ref,
              j.caller, j.group_id, j.actor_user, j.actor_client
),
entombed AS (
    INSERT INTO tombstone (bucket, pool_id, cipher_suite, seq, key_package_ref, state, generation,
                           holder, group_id, ended_at)
    SELECT s.bucket, s.pool_id, s.cipher_suite, s.seq, s.key_package_ref, 'spent', s.generation,
           s.caller, s.group_id, t.now
    FROM spent s, t
),
spent_late AS (
    UPDATE tombstone b
    SET state = 'spent', ended_at = t.now
    FROM judged j, t
    WHERE j.outcome = 'spend_late' AND NOT EXISTS (SELECT FROM failed f WHERE f.call = j.call)
      AND b.bucket = j.bucket AND b.pool_id = j.pool_id AND b.cipher_suite = j.cipher_suite
      AND b.seq = j.seq AND b.generation = j.generation AND b.state = 'burned'
    RETURNING j.ord, b.bucket, b.pool_id, b.cipher_suite, b.seq, b.generation, b.key_package_ref,
              j.caller, j.group_id, j.actor_user, j.actor_client
),
-- In the order of the key, as every statement that counts does.
suite AS MATERIALIZED (
    SELECT u.bucket, u.pool_id, u.cipher_suite, l.n
    FROM pool_suite u
    JOIN (SELECT bucket, pool_id, cipher_suite, count(*) AS n
          FROM spent_late GROUP BY bucket, pool_id, cipher_suite) l
         USING (bucket, pool_id, cipher_suite)
    ORDER BY u.bucket, u.pool_id, u.cipher_suite
    FOR UPDATE OF u
),
counted AS (
    UPDATE pool_suite u
    SET burned = u.burned - s.n
    FROM suite s
    WHERE u.bucket = s.bucket AND u.pool_id = s.pool_id AND u.cipher_suite = s.cipher_suite
),
done AS MATERIALIZED (
    SELECT * FROM spent UNION ALL SELECT * FROM spent_late
),
-- The log takes the time after the locks, so that each package's events stand in their order.
logged AS (
    INSERT INTO event (bucket, pool_id, at, cipher_suite, seq, generation, kind, key_package_ref,
                       actor_user, actor_client, holder, group_id)
    SELECT d.bucket, d.pool_id, coalesce($1::timestamptz, clock_timestamp()), d.cipher_suite, d.seq, d.generation, 'spent',
           d.key_package_ref, d.actor_user, d.actor_client, d.caller, d.group_id
    FROM done d
)
SELECT j.ord AS "ord!", j.outcome AS "outcome!", coalesce(d.key_package_ref, j.key_package_ref) AS key_package_ref
FROM judged j
LEFT JOIN done d USING (ord)
ORDER BY j.ord
