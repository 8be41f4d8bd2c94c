-- Ends last resort packages that reached their not_after, a bounded number, the oldest first.
--
-- $1 now, null: the database's clock  $2 how many at most
WITH t AS MATERIALIZED (
    SELECT coalesce($1::timestamptz, now()) AS now
),
-- Locked against an upload that replaces it and against another sweeper.
due AS MATERIALIZED (
    SELECT l.bucket, l.pool_id, l.cipher_suite
    FROM last_resort l, t
    WHERE l.not_after <= t.now
    ORDER BY l.not_after
    LIMIT $2
    FOR UPDATE OF l SKIP LOCKED
),
expired AS (
    DELETE FROM last_resort l
    USING due d, t
    WHERE l.bucket = d.bucket AND l.pool_id = d.pool_id AND l.cipher_suite = d.cipher_suite
      AND l.not_after <= t.now
    RETURNING l.bucket, l.pool_id, l.cipher_suite, l.seq, l.key_package_ref
),
logged AS (
    INSERT INTO event (bucket, pool_id, at, cipher_suite, seq, generation, kind, key_package_ref)
    SELECT e.bucket, e.pool_id, coalesce($1::timestamptz, clock_timestamp()), e.cipher_suite, e.seq, 0, 'expired', e.key_package_ref
    FROM expired e
)
SELECT p.user_id AS "user_id!", p.client_id AS "client_id!", count(*) AS "ended!"
FROM expired e
JOIN pool p USING (bucket, pool_id)
GROUP BY p.user_id, p.client_id
