-- Forgets refs, init_keys and tombstones of packages whose not_after is long past, a bounded
-- number, the oldest first. Nothing could be uploaded again under them: its lifetime is over.
--
-- $1 now, null: the database's clock  $2 how many at most  $3 how long past, seconds
WITH t AS MATERIALIZED (
    SELECT coalesce($1::timestamptz, now()) AS now
),
due AS MATERIALIZED (
    SELECT p.bucket, p.key_package_ref, p.pool_id, p.cipher_suite, p.seq
    FROM published p, t
    WHERE p.not_after <= t.now - make_interval(secs => $3::float8)
      AND NOT EXISTS (SELECT FROM package k
                      WHERE k.bucket = p.bucket AND k.pool_id = p.pool_id
                        AND k.cipher_suite = p.cipher_suite AND k.seq = p.seq)
    ORDER BY p.not_after
    LIMIT $2
    FOR UPDATE OF p SKIP LOCKED
),
forgotten AS (
    DELETE FROM published p
    USING due d
    WHERE p.bucket = d.bucket AND p.key_package_ref = d.key_package_ref
    RETURNING p.bucket
),
unburied AS (
    DELETE FROM tombstone b
    USING due d
    WHERE b.bucket = d.bucket AND b.pool_id = d.pool_id AND b.cipher_suite = d.cipher_suite
      AND b.seq = d.seq
    RETURNING b.bucket, b.pool_id, b.cipher_suite, b.state
),
-- In the order of the key, as every statement that counts does.
suite AS MATERIALIZED (
    SELECT u.bucket, u.pool_id, u.cipher_suite, b.n
    FROM pool_suite u
    JOIN (SELECT bucket, pool_id, cipher_suite, count(*) AS n
          FROM unburied WHERE state = 'spent' GROUP BY bucket, pool_id, cipher_suite) b
         USING (bucket, pool_id, cipher_suite)
    ORDER BY u.bucket, u.pool_id, u.cipher_suite
    FOR UPDATE OF u
),
counted AS (
    UPDATE pool_suite u
    SET forgotten = u.forgotten + s.n
    FROM suite s
    WHERE u.bucket = s.bucket AND u.pool_id = s.pool_id AND u.cipher_suite = s.cipher_suite
)
SELECT count(*) AS "ended!" FROM forgotten
