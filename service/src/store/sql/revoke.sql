-- Revokes packages of one pool: those with given refs, or all but those of given signers. What
-- is reserved stays its holder's until the reservation ends.
--
-- $1 now, null: the database's clock  $2 bucket  $3 pool_id  $4, $5 the revoking user and client
-- $6 key_package_ref[]; null: by signer
-- $7 signature_key_digest[] and $8 credential_digest[] (null: any) of the signers to keep
WITH t AS MATERIALIZED (
    SELECT coalesce($1::timestamptz, now()) AS now
),
-- Locked against Reserves and settlements in flight, which go first; in the order of the key, as
-- settlements lock. A Reserve that meets the locks looks again. The lock yields the newest
-- version of a row; what follows goes by it alone, as this statement's snapshot may show a state
-- that the row had before, and a condition on that would pass over it.
chosen AS MATERIALIZED (
    SELECT k.cipher_suite, k.seq, k.generation, k.holder, k.group_id, k.expires_at,
           k.state = 'reserved' AND k.expires_at > t.now AS held
    FROM package k
    CROSS JOIN t
    WHERE k.bucket = $2 AND k.pool_id = $3 AND k.revoked_at IS NULL
      AND CASE WHEN $6::bytea[] IS NOT NULL THEN k.key_package_ref = ANY ($6)
               ELSE NOT EXISTS (SELECT FROM unnest($7::bytea[], $8::bytea[]) AS kept (s, c)
                                WHERE kept.s = k.signature_key_digest
                                  AND coalesce(kept.c = k.credential_digest, true)) END
    ORDER BY k.bucket, k.pool_id, k.cipher_suite, k.seq
    FOR UPDATE OF k
),
marked AS (
    UPDATE package k
    SET revoked_at = t.now, state = 'reserved', generation = c.generation, returned = NULL,
        holder = c.holder, group_id = c.group_id, expires_at = c.expires_at
    FROM chosen c, t
    WHERE c.held
      AND k.bucket = $2 AND k.pool_id = $3 AND k.cipher_suite = c.cipher_suite AND k.seq = c.seq
      AND k.revoked_at IS NULL
    RETURNING k.cipher_suite, k.seq, k.generation, k.key_package_ref, k.holder, k.group_id
),
ended AS (
    DELETE FROM package k
    USING chosen c
    WHERE NOT c.held
      AND k.bucket = $2 AND k.pool_id = $3 AND k.cipher_suite = c.cipher_suite AND k.seq = c.seq
      AND k.revoked_at IS NULL
    RETURNING k.cipher_suite, k.seq, k.generation, k.key_package_ref, k.holder, k.group_id
),
-- How many come after those that stay is not known any more. Passed over rather than waited for, so
-- as not to wait against the order of the key: who holds one is about to issue or to end it.
unsure AS MATERIALIZED (
    SELECT k.cipher_suite, k.seq
    FROM package k
    WHERE k.bucket = $2 AND k.pool_id = $3 AND k.generation = 0 AND k.behind > 0
      AND EXISTS (SELECT FROM ended)
      AND NOT EXISTS (SELECT FROM chosen c
                      WHERE c.cipher_suite = k.cipher_suite AND c.seq = k.seq)
    FOR UPDATE OF k SKIP LOCKED
),
uncounted AS (
    UPDATE package k
    SET behind = 0
    FROM unsure u
    WHERE k.bucket = $2 AND k.pool_id = $3 AND k.cipher_suite = u.cipher_suite AND k.seq = u.seq
      AND k.generation = 0
),
entombed AS (
    INSERT INTO tombstone (bucket, pool_id, cipher_suite, seq, key_package_ref, state, generation,
                           holder, group_id, ended_at)
    SELECT $2, $3, e.cipher_suite, e.seq, e.key_package_ref, 'revoked', e.generation, e.holder,
           e.group_id, t.now
    FROM ended e, t
),
last_resorts AS (
    DELETE FROM last_resort l
    WHERE l.bucket = $2 AND l.pool_id = $3
      AND CASE WHEN $6::bytea[] IS NOT NULL THEN l.key_package_ref = ANY ($6)
               ELSE NOT EXISTS (SELECT FROM unnest($7::bytea[], $8::bytea[]) AS kept (s, c)
                                WHERE kept.s = l.signature_key_digest
                                  AND coalesce(kept.c = l.credential_digest, true)) END
    RETURNING l.cipher_suite, l.seq, l.key_package_ref
),
-- In the order of the key, as every statement that counts does.
suite AS MATERIALIZED (
    SELECT u.cipher_suite, e.n
    FROM pool_suite u
    JOIN (SELECT cipher_suite, count(*) AS n FROM ended GROUP BY cipher_suite) e
         USING (cipher_suite)
    WHERE u.bucket = $2 AND u.pool_id = $3
    ORDER BY u.bucket, u.pool_id, u.cipher_suite
    FOR UPDATE OF u
),
counted AS (
    UPDATE pool_suite u
    SET revoked = u.revoked + s.n
    FROM suite s
    WHERE u.bucket = $2 AND u.pool_id = $3 AND u.cipher_suite = s.cipher_suite
),
logged AS (
    INSERT INTO event (bucket, pool_id, at, cipher_suite, seq, generation, kind, key_package_ref,
                       actor_user, actor_client, holder, group_id)
    SELECT $2, $3, coalesce($1::timestamptz, clock_timestamp()), x.cipher_suite, x.seq,
           x.generation, 'revoked', x.key_package_ref, $4, $5, x.holder, x.group_id
    FROM (SELECT * FROM marked
          UNION ALL
          SELECT * FROM ended
          UNION ALL
          SELECT cipher_suite, seq, 0, key_package_ref, NULL, NULL FROM last_resorts) x
)
SELECT (SELECT count(*) FROM ended) AS "available!",
       (SELECT count(*) FROM marked) AS "reserved!",
       (SELECT count(*) FROM last_resorts) AS "last_resort!"
