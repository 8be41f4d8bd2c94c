-- Which one-time packages of a pool reached their not_after.
--
-- $1 now, null: the database's clock  $2 bucket  $3 pool_id
SELECT bucket, pool_id, cipher_suite, seq
FROM package
WHERE bucket = $2 AND pool_id = $3 AND not_after <= coalesce($1::timestamptz, now())
