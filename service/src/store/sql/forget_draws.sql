-- Forgets draws that are long past, a bounded number.
--
-- $1 now, null: the database's clock  $2 how many at most  $3 how long past, seconds
WITH due AS MATERIALIZED (
    SELECT d.bucket, d.pool_id, d.caller, d.drawn_at
    FROM draw d
    WHERE d.next_expiry <= coalesce($1::timestamptz, now()) - make_interval(secs => $3::float8)
      AND coalesce(d.drawn_at <= coalesce($1::timestamptz, now())
                                 - make_interval(secs => $3::float8), true)
    ORDER BY d.next_expiry
    LIMIT $2
    FOR UPDATE SKIP LOCKED -- a Reserve is renewing it
),
forgotten AS (
    DELETE FROM draw d
    USING due
    WHERE d.bucket = due.bucket AND d.pool_id = due.pool_id AND d.caller = due.caller
      AND d.drawn_at IS NOT DISTINCT FROM due.drawn_at
    RETURNING d.bucket
)
SELECT count(*) AS "ended!" FROM forgotten
