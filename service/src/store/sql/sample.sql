-- Counts packages and pools by state in a sample of random pages, and scales what it finds.
--
-- $1 now, null: the database's clock  $2 lapsed reservations burn  $3 low watermark
-- $4 to $7 how much of package, tombstone, last_resort and pool_suite to look at, percent
-- $8 at about how many pools to look
WITH t AS MATERIALIZED (
    SELECT coalesce($1::timestamptz, now()) AS now
),
live AS (
    SELECT count(*) FILTER (WHERE k.state = 'reserved' AND k.expires_at > t.now) AS reserved,
           count(*) FILTER (WHERE k.state = 'available'
                               OR (k.expires_at <= t.now AND k.revoked_at IS NULL AND NOT $2::bool))
               AS available
    FROM package k TABLESAMPLE SYSTEM ($4::real)
    CROSS JOIN t
    WHERE k.not_after > t.now
),
ended AS (
    SELECT count(*) FILTER (WHERE state = 'spent') AS spent,
           count(*) FILTER (WHERE state = 'burned') AS burned,
           count(*) FILTER (WHERE state = 'revoked') AS revoked
    FROM tombstone TABLESAMPLE SYSTEM ($5::real)
),
last_resorts AS (
    SELECT count(*) AS found FROM last_resort TABLESAMPLE SYSTEM ($6::real)
),
suites AS MATERIALIZED (
    SELECT bucket, pool_id, cipher_suite, random() AS lot
    FROM pool_suite TABLESAMPLE SYSTEM ($7::real)
),
looked AS MATERIALIZED (
    -- No more than tells whether it is low.
    SELECT (SELECT count(*)
            FROM (SELECT FROM package k
                  WHERE k.bucket = s.bucket AND k.pool_id = s.pool_id
                    AND k.cipher_suite = s.cipher_suite AND k.not_after > t.now
                    AND (k.state = 'available'
                         OR (k.expires_at <= t.now AND k.revoked_at IS NULL AND NOT $2::bool))
                  LIMIT $3::bigint + 1) some_of_them) AS available
    FROM suites s
    CROSS JOIN t
    WHERE s.lot * (SELECT count(*) FROM suites) < $8::float8
),
pools AS (
    SELECT (SELECT count(*) FROM suites) AS found,
           greatest(count(*), 1) AS looked,
           count(*) FILTER (WHERE available = 0) AS exhausted,
           count(*) FILTER (WHERE available BETWEEN 1 AND $3::bigint) AS low,
           count(*) FILTER (WHERE available > $3::bigint) AS healthy
    FROM looked
)
SELECT live.available * 100 / $4::real AS "available!",
       live.reserved * 100 / $4::real AS "reserved!",
       last_resorts.found * 100 / $6::real AS "last_resort!",
       ended.spent * 100 / $5::real AS "spent!",
       ended.burned * 100 / $5::real AS "burned!",
       ended.revoked * 100 / $5::real AS "revoked!",
       pools.healthy * (pools.found * 100 / $7::real) / pools.looked AS "healthy!",
       pools.low * (pools.found * 100 / $7::real) / pools.looked AS "low!",
       pools.exhausted * (pools.found * 100 / $7::real) / pools.looked AS "exhausted!"
FROM live, ended, last_resorts, pools
