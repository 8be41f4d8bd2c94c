-- Forgets last resort grants that ended long ago, a bounded number. How many there were of the
-- current package stays known.
--
-- $1 now, null: the database's clock  $2 how many at most  $3 how long past, seconds
WITH due AS MATERIALIZED (
    SELECT g.bucket, g.pool_id, g.cipher_suite, g.grant_id
    FROM last_resort_grant g
    WHERE g.expires_at <= coalesce($1::timestamptz, now()) - make_interval(secs => $3::float8)
    ORDER BY g.expires_at
    LIMIT $2
    FOR UPDATE SKIP LOCKED -- a late Spend or another sweeper has it
),
forgotten AS (
    DELETE FROM last_resort_grant g
    USING due d
    WHERE g.bucket = d.bucket AND g.pool_id = d.pool_id AND g.cipher_suite = d.cipher_suite
      AND g.grant_id = d.grant_id
    RETURNING g.bucket, g.pool_id, g.cipher_suite, g.key_package_ref
),
-- In the order of the key, so that two sweepers cannot wait for each other.
held AS MATERIALIZED (
    SELECT l.bucket, l.pool_id, l.cipher_suite, l.key_package_ref, f.n
    FROM last_resort l
    JOIN (SELECT bucket, pool_id, cipher_suite, key_package_ref, count(*) AS n
          FROM forgotten GROUP BY bucket, pool_id, cipher_suite, key_package_ref) f
         USING (bucket, pool_id, cipher_suite, key_package_ref)
    ORDER BY l.bucket, l.pool_id, l.cipher_suite
    FOR UPDATE OF l
),
counted AS (
    UPDATE last_resort l
    SET forgotten_grants = l.forgotten_grants + h.n
    FROM held h
    WHERE l.bucket = h.bucket AND l.pool_id = h.pool_id AND l.cipher_suite = h.cipher_suite
      AND l.key_package_ref = h.key_package_ref
)
SELECT count(*) AS "ended!" FROM forgotten
