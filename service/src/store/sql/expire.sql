-- Ends these one-time packages if they reached their not_after.
--
-- $1 now, null: the database's clock  $2 bucket[]  $3 pool_id[]  $4 cipher_suite[]  $5 seq[]
WITH t AS MATERIALIZED (
    SELECT coalesce($1::timestamptz, now()) AS now
),
-- Locked against a Spend in flight, which goes first; against another sweeper, which has it then.
due AS MATERIALIZED (
    SELECT k.bucket, k.pool_id, k.cipher_suite, k.seq
    FROM unnest($2::smallint[], $3::bigint[], $4::int[], $5::bigint[])
         AS a (bucket, pool_id, cipher_suite, seq)
    JOIN package k USING (bucket, pool_id, cipher_suite, seq), t
    WHERE k.not_after <= t.now
    FOR UPDATE OF k SKIP LOCKED
),
expired AS (
    DELETE FROM package k
    USING due d, t
    WHERE k.bucket = d.bucket AND k.pool_id = d.pool_id AND k.cipher_suite = d.cipher_suite
      AND k.seq = d.seq AND k.not_after <= t.now
    RETURNING k.bucket, k.pool_id, k.cipher_suite, k.seq, k.generation, k.key_package_ref,
              k.holder, k.group_id
),
-- In the order of the key, as every statement that counts does.
suite AS MATERIALIZED (
    SELECT u.bucket, u.pool_id, u.cipher_suite, e.n
    FROM pool_suite u
    JOIN (SELECT bucket, pool_id, cipher_suite, count(*) AS n
          FROM expired GROUP BY bucket, pool_id, cipher_suite) e
         USING (bucket, pool_id, cipher_suite)
    ORDER BY u.bucket, u.pool_id, u.cipher_suite
    FOR UPDATE OF u
),
counted AS (
    UPDATE pool_suite u
    SET expired = u.expired + s.n
    FROM suite s
    WHERE u.bucket = s.bucket AND u.pool_id = s.pool_id AND u.cipher_suite = s.cipher_suite
),
logged AS (
    INSERT INTO event (bucket, pool_id, at, cipher_suite, seq, generation, kind, key_package_ref,
                       holder, group_id)
    SELECT e.bucket, e.pool_id, coalesce($1::timestamptz, clock_timestamp()), e.cipher_suite, e.seq, e.generation, 'expired',
           e.key_package_ref, e.holder, e.group_id
    FROM expired e
)
SELECT p.user_id AS "user_id!", p.client_id AS "client_id!", count(*) AS "ended!"
FROM expired e
JOIN pool p USING (bucket, pool_id)
GROUP BY p.user_id, p.client_id
