-- Withdraws all packages of one bucket, reserved or not, and forgets who drew from them. Nobody
-- else is at work on the database.
--
-- $1 now, null: the database's clock  $2 bucket  $3 last resort packages stay
WITH t AS MATERIALIZED (
    SELECT coalesce($1::timestamptz, now()) AS now
),
ended AS (
    DELETE FROM package k
    WHERE k.bucket = $2
    RETURNING k.pool_id, k.cipher_suite, k.seq, k.generation, k.key_package_ref, k.holder,
              k.group_id, k.revoked_at
),
entombed AS (
    INSERT INTO tombstone (bucket, pool_id, cipher_suite, seq, key_package_ref, state, generation,
                           holder, group_id, ended_at)
    SELECT $2, e.pool_id, e.cipher_suite, e.seq, e.key_package_ref, 'revoked', e.generation,
           e.holder, e.group_id, t.now
    FROM ended e, t
),
counted AS (
    UPDATE pool_suite u
    SET revoked = u.revoked + e.n
    FROM (SELECT pool_id, cipher_suite, count(*) AS n FROM ended GROUP BY pool_id, cipher_suite) e
    WHERE u.bucket = $2 AND u.pool_id = e.pool_id AND u.cipher_suite = e.cipher_suite
),
last_resorts AS (
    DELETE FROM last_resort l
    WHERE l.bucket = $2 AND NOT $3::bool
    RETURNING l.pool_id, l.cipher_suite, l.seq, l.key_package_ref
),
-- A repeated request_id must not find what it got before.
undrawn AS (
    DELETE FROM draw d WHERE d.bucket = $2
),
logged AS (
    INSERT INTO event (bucket, pool_id, at, cipher_suite, seq, generation, kind, key_package_ref,
                       holder, group_id)
    SELECT $2, x.pool_id, t.now, x.cipher_suite, x.seq, x.generation, 'revoked',
           x.key_package_ref, x.holder, x.group_id
    FROM t, (SELECT pool_id, cipher_suite, seq, generation, key_package_ref, holder, group_id
             FROM ended
             WHERE revoked_at IS NULL -- else it is in the log already
             UNION ALL
             SELECT pool_id, cipher_suite, seq, 0, key_package_ref, NULL, NULL
             FROM last_resorts) x
)
SELECT (SELECT count(*) FROM ended) AS "packages!",
       (SELECT count(*) FROM last_resorts) AS "last_resort!"
