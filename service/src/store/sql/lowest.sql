-- The lowest of the pools that were drawn from last. Looks at that many draws and at the live
-- packages of their pools, however many pools there are.
--
-- $1 now, null: the database's clock  $2 lapsed reservations burn  $3 how many draws to look at
-- $4 how many pools to tell of
WITH t AS MATERIALIZED (
    SELECT coalesce($1::timestamptz, now()) AS now
),
drawn AS MATERIALIZED (
    SELECT d.bucket, d.pool_id, count(*) AS draws
    FROM (SELECT bucket, pool_id FROM draw ORDER BY next_expiry DESC LIMIT $3) d
    GROUP BY d.bucket, d.pool_id
)
SELECT p.user_id AS "user_id!", p.client_id AS "client_id!", u.cipher_suite AS "cipher_suite!",
       n.available AS "available!", n.reserved AS "reserved!", d.draws AS "draws!",
       EXISTS (SELECT FROM last_resort l
               WHERE l.bucket = u.bucket AND l.pool_id = u.pool_id
                 AND l.cipher_suite = u.cipher_suite AND l.not_after > t.now) AS "last_resort!",
       p.last_upload_at AS "last_upload!"
FROM drawn d
CROSS JOIN t
JOIN pool p USING (bucket, pool_id)
JOIN pool_suite u USING (bucket, pool_id)
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE k.state = 'reserved' AND k.expires_at > t.now) AS reserved,
           count(*) FILTER (WHERE k.state = 'available'
                               OR (k.expires_at <= t.now AND k.revoked_at IS NULL AND NOT $2::bool))
               AS available
    FROM package k
    WHERE k.bucket = u.bucket AND k.pool_id = u.pool_id AND k.cipher_suite = u.cipher_suite
      AND k.not_after > t.now
) n
ORDER BY n.available, d.draws DESC, p.user_id, p.client_id, u.cipher_suite
LIMIT $4
