-- Records that last resort grants were spent, or released, all or none. Nothing is consumed.
--
-- $1 now, null: the database's clock    $2 caller's digest  $3, $4 caller's user and client
-- $5 group_id; null: not checked  $6 the state to reach, 'spent' or 'released'
-- $7 ord[]  $8 bucket[]  $9 pool_id[]  $10 cipher_suite[]  $11 grant_id[]
WITH t AS MATERIALIZED (
    SELECT coalesce($1::timestamptz, now()) AS now
),
-- Locked, in the order of the key, for the reasons that spend.sql gives.
held AS MATERIALIZED (
    SELECT a.ord, g.*
    FROM unnest($7::int[], $8::smallint[], $9::bigint[], $10::int[], $11::bigint[])
         AS a (ord, bucket, pool_id, cipher_suite, grant_id)
    JOIN last_resort_grant g USING (bucket, pool_id, cipher_suite, grant_id)
    ORDER BY g.bucket, g.pool_id, g.cipher_suite, g.grant_id
    FOR UPDATE OF g
),
judged AS MATERIALIZED (
    SELECT a.ord, h.key_package_ref,
           CASE
               -- Forgotten: a release has nothing to do then, a spend comes too late.
               WHEN h.ord IS NULL AND $6 = 'released' THEN 'already'
               WHEN h.ord IS NULL THEN 'lost'
               -- The id was made by somebody who has the secret, and not by keypool.
               WHEN h.holder <> $2 THEN 'unknown'
               WHEN h.group_id <> $5 THEN 'group_mismatch'
               WHEN h.state = $6 THEN 'already'
               WHEN h.state = 'reserved' THEN 'settle'
               ELSE 'not_held'
           END AS outcome
    FROM unnest($7::int[]) AS a (ord)
    LEFT JOIN held h USING (ord)
),
verdict AS MATERIALIZED (
    SELECT bool_and(outcome IN ('settle', 'already')) AS go FROM judged
),
settled AS (
    UPDATE last_resort_grant g
    SET state = $6
    FROM held h, judged j, verdict v
    WHERE v.go AND j.ord = h.ord AND j.outcome = 'settle'
      AND g.bucket = h.bucket AND g.pool_id = h.pool_id AND g.cipher_suite = h.cipher_suite
      AND g.grant_id = h.grant_id AND g.state = 'reserved'
    RETURNING g.bucket, g.pool_id, g.cipher_suite, g.grant_id, g.key_package_ref, g.group_id
),
logged AS (
    INSERT INTO event (bucket, pool_id, at, cipher_suite, seq, generation, kind, key_package_ref,
                       actor_user, actor_client, holder, group_id)
    SELECT s.bucket, s.pool_id, coalesce($1::timestamptz, clock_timestamp()), s.cipher_suite, s.grant_id, 0, $6, s.key_package_ref,
           $3, $4, $2, s.group_id
    FROM settled s
)
SELECT j.ord::bigint AS "ord!", j.outcome AS "outcome!", j.key_package_ref
FROM judged j
ORDER BY j.ord
