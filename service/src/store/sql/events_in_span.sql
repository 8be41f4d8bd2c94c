-- Events of all pools in a span of time, newest first.
--
-- $1 from  $2 before  $3 key_package_ref; null: any  $4 how many
-- $5 to $11 the event that the last page ended with; null: the first page
SELECT e.bucket AS "bucket!", e.pool_id AS "pool_id!", p.user_id AS "user_id!",
       p.client_id AS "client_id!", e.at AS "at!", e.cipher_suite AS "cipher_suite!",
       e.seq AS "seq!", e.generation AS "generation!", e.kind AS "kind!",
       e.key_package_ref AS "key_package_ref!", e.actor_user, e.actor_client, e.holder, e.group_id
FROM event e
JOIN pool p USING (bucket, pool_id)
WHERE e.at >= $1 AND e.at < $2
  AND ($3::bytea IS NULL OR e.key_package_ref = $3)
  AND ($5::timestamptz IS NULL
       OR (e.at, e.bucket, e.pool_id, e.cipher_suite, e.seq, e.generation, e.kind)
          < ($5, $6::smallint, $7::bigint, $8::int, $9::bigint, $10::int, $11::text))
ORDER BY e.at DESC, e.bucket DESC, e.pool_id DESC, e.cipher_suite DESC, e.seq DESC,
         e.generation DESC, e.kind DESC
LIMIT $4
