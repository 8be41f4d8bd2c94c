-- Tells all replicas of pools whose owners should hear how they stand: those at or below the low
-- watermark, and those named as to be told in any case.
--
-- $1 now, null: the database's clock  $2 bucket[]  $3 user[]  $4 client[]  $5 payload[]
-- $6 in any case[]  $7 lapsed reservations burn  $8 low watermark
WITH t AS MATERIALIZED (
    SELECT coalesce($1::timestamptz, now()) AS now
)
SELECT count(pg_notify('keypool_pool', a.payload)) AS "told!"
FROM unnest($2::smallint[], $3::text[], $4::text[], $5::text[], $6::bool[])
     AS a (bucket, user_id, client_id, payload, anyway)
JOIN pool p USING (bucket, user_id, client_id)
CROSS JOIN t
WHERE a.anyway
   OR EXISTS (SELECT FROM pool_suite u
              WHERE u.bucket = p.bucket AND u.pool_id = p.pool_id
                AND (SELECT count(*) FROM package k
                     WHERE k.bucket = u.bucket AND k.pool_id = u.pool_id
                       AND k.cipher_suite = u.cipher_suite AND k.not_after > t.now
                       AND k.revoked_at IS NULL
                       AND (k.state = 'available'
                            OR (k.expires_at <= t.now AND NOT $7::bool))) <= $8::int)
