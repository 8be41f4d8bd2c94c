-- Which of these refs and init_keys the user's clients have published, and whether the package
-- still lives and is not revoked.
--
-- $1 bucket  $2 pool_id  $3 key_package_ref[]  $4 init_key_digest[]
SELECT p.key_package_ref AS "key_package_ref!", p.init_key_digest AS "init_key_digest!",
       p.pool_id = $2 AS "own!",
       EXISTS (SELECT FROM package k
               WHERE k.bucket = p.bucket AND k.pool_id = p.pool_id
                 AND k.cipher_suite = p.cipher_suite AND k.seq = p.seq
                 AND k.revoked_at IS NULL)
       OR EXISTS (SELECT FROM last_resort l
                  WHERE l.bucket = p.bucket AND l.pool_id = p.pool_id
                    AND l.cipher_suite = p.cipher_suite AND l.seq = p.seq) AS "live!"
FROM (
    SELECT * FROM published WHERE bucket = $1 AND key_package_ref = ANY ($3::bytea[])
    UNION
    SELECT * FROM published
    WHERE bucket = $1 AND pool_id = $2 AND init_key_digest = ANY ($4::bytea[])
) p
