-- Events of some pools, newest first.
--
-- $1 bucket[]  $2 pool_id[]  $3 from  $4 before  $5 key_package_ref; null: any  $6 how many
-- $7 to $13 the event that the last page ended with; null: the first page
SELECT e.bucket AS "bucket!", e.pool_id AS "pool_id!", p.user_id AS "user_id!",
       p.client_id AS "client_id!", e.at AS "at!", e.cipher_suite AS "cipher_suite!",
       e.seq AS "seq!", e.generation AS "generation!", e.kind AS "kind!",
       e.key_package_ref AS "key_package_ref!", e.actor_user, e.actor_client, e.holder, e.group_id
FROM unnest($1::smallint[], $2::bigint[]) AS a (bucket, pool_id)
JOIN pool p USING (bucket, pool_id)
CROSS JOIN LATERAL (
    SELECT *
    FROM event v
    WHERE v.bucket = a.bucket AND v.pool_id = a.pool_id
      AND v.at >= $3 AND v.at < $4 AND v.at <= coalesce($7::timestamptz, 'infinity')
      AND ($5::bytea IS NULL OR v.key_package_ref = $5)
      AND ($7::timestamptz IS NULL
           OR (v.at, v.bucket, v.pool_id, v.cipher_suite, v.seq, v.generation, v.kind)
              < ($7, $8::smallint, $9::bigint, $10::int, $11::bigint, $12::int, $13::text))
    ORDER BY v.at DESC, v.cipher_suite DESC, v.seq DESC, v.generation DESC, v.kind DESC
    LIMIT $6
) e
ORDER BY e.at DESC, e.bucket DESC, e.pool_id DESC, e.cipher_suite DESC, e.seq DESC,
         e.generation DESC, e.kind DESC
LIMIT $6
