-- How a client's pool stands: one row for each cipher suite, or one without a suite for a client
-- that has published nothing yet. Looks at live packages and counters only.
--
-- $1 now, null: the database's clock  $2 bucket  $3 user  $4 client
-- $5 lapsed reservations burn  $6 what counts as expiring soon, seconds
WITH t AS MATERIALIZED (
    SELECT coalesce($1::timestamptz, now()) AS now
)
SELECT p.last_upload_at AS "last_upload_at!",
       u.cipher_suite AS "cipher_suite?",
       n.available AS "available!",
       n.reserved AS "reserved!",
       n.expiring_soon AS "expiring_soon!",
       coalesce(u.expired + n.expired, 0) AS "expired!",
       coalesce(u.uploaded - n.live - u.expired - u.revoked - u.burned - u.forgotten, 0) AS "spent!",
       l.key_package_ref AS "last_resort_ref?",
       l.not_after AS "last_resort_not_after?",
       coalesce(l.forgotten_grants
                + (SELECT count(*) FROM last_resort_grant g
                   WHERE g.bucket = l.bucket AND g.pool_id = l.pool_id
                     AND g.cipher_suite = l.cipher_suite
                     AND g.key_package_ref = l.key_package_ref), 0) AS "times_issued!"
FROM pool p
CROSS JOIN t
LEFT JOIN pool_suite u USING (bucket, pool_id)
CROSS JOIN LATERAL (
    SELECT count(*) AS live,
           count(*) FILTER (WHERE x.expired) AS expired,
           count(*) FILTER (WHERE NOT x.expired AND x.available) AS available,
           count(*) FILTER (WHERE NOT x.expired AND x.held) AS reserved,
           count(*) FILTER (WHERE NOT x.expired AND x.available
                              AND k.not_after <= t.now + make_interval(secs => $6::float8))
               AS expiring_soon
    FROM package k
    CROSS JOIN LATERAL (
        SELECT k.not_after <= t.now AS expired,
               k.state = 'reserved' AND k.expires_at > t.now AS held,
               k.state = 'available'
               OR (k.expires_at <= t.now AND k.revoked_at IS NULL AND NOT $5::bool) AS available
    ) x
    WHERE k.bucket = u.bucket AND k.pool_id = u.pool_id AND k.cipher_suite = u.cipher_suite
) n
LEFT JOIN last_resort l
       ON l.bucket = u.bucket AND l.pool_id = u.pool_id AND l.cipher_suite = u.cipher_suite
      AND l.not_after > t.now
WHERE p.bucket = $2 AND p.user_id = $3 AND p.client_id = $4
ORDER BY u.cipher_suite
