-- Stores packages of one pool that were checked against what is known. The caller has the pool's
-- row locked.
--
-- $1 now, null: the database's clock  $2 bucket  $3 pool_id  $4, $5 the uploading user and client
-- one element for each package: $6 cipher suite  $7 key_package_ref  $8 key_package  $9 not_after
-- $10 capabilities, as array literals  $11 init_key_digest  $12 signature_key_digest
-- $13 credential_digest  $14 last resort  $15 last resort, and a later one in this call replaces it
WITH item AS MATERIALIZED (
    SELECT i.*, row_number() OVER (PARTITION BY i.cipher_suite ORDER BY i.ord) AS number
    FROM unnest($6::int[], $7::bytea[], $8::bytea[], $9::timestamptz[], $10::text[], $11::bytea[],
                $12::bytea[], $13::bytea[], $14::bool[], $15::bool[])
         WITH ORDINALITY
         AS i (cipher_suite, key_package_ref, key_package, not_after, capabilities,
               init_key_digest, signature_key_digest, credential_digest, last_resort, replaced,
               ord)
),
suite AS (
    INSERT INTO pool_suite AS u (bucket, pool_id, cipher_suite, last_seq, uploaded)
    SELECT $2, $3, i.cipher_suite, count(*), count(*) FILTER (WHERE NOT i.last_resort)
    FROM item i
    GROUP BY i.cipher_suite
    ORDER BY i.cipher_suite
    ON CONFLICT (bucket, pool_id, cipher_suite) DO UPDATE
    SET last_seq = u.last_seq + excluded.last_seq, uploaded = u.uploaded + excluded.uploaded
    RETURNING u.cipher_suite, u.last_seq
),
placed AS MATERIALIZED (
    SELECT i.*, s.last_seq - max(i.number) OVER (PARTITION BY i.cipher_suite) + i.number AS seq
    FROM item i
    JOIN suite s USING (cipher_suite)
),
-- How many of these come after it in the order of issue. Where their capabilities differ, a Reserve
-- may take them in another order: then it is not known.
ordered AS MATERIALIZED (
    SELECT p.ord,
           CASE WHEN min(p.capabilities) OVER same = max(p.capabilities) OVER same
                THEN count(*) OVER same
                     - row_number() OVER (PARTITION BY p.cipher_suite ORDER BY p.not_after, p.seq)
                ELSE 0 END AS behind
    FROM placed p
    WHERE NOT p.last_resort
    WINDOW same AS (PARTITION BY p.cipher_suite)
),
published AS (
    INSERT INTO published (bucket, key_package_ref, pool_id, cipher_suite, seq, init_key_digest,
                           not_after)
    SELECT $2, p.key_package_ref, $3, p.cipher_suite, p.seq, p.init_key_digest, p.not_after
    FROM placed p
),
stored AS (
    INSERT INTO package (bucket, pool_id, cipher_suite, seq, key_package_ref, key_package,
                         not_after, behind, capabilities, signature_key_digest, credential_digest)
    SELECT $2, $3, p.cipher_suite, p.seq, p.key_package_ref, p.key_package, p.not_after, o.behind,
           p.capabilities::int[], p.signature_key_digest, p.credential_digest
    FROM placed p
    JOIN ordered o USING (ord)
),
-- Locked against the sweeper, or else it could end the same package as expired.
replacing AS MATERIALIZED (
    SELECT l.cipher_suite, l.seq, l.key_package_ref
    FROM last_resort l
    WHERE l.bucket = $2 AND l.pool_id = $3
      AND l.cipher_suite IN (SELECT p.cipher_suite FROM placed p WHERE p.last_resort)
    FOR UPDATE OF l
),
outgoing AS MATERIALIZED (
    SELECT * FROM replacing
    UNION ALL
    SELECT p.cipher_suite, p.seq, p.key_package_ref
    FROM placed p
    WHERE p.replaced
),
incoming AS (
    INSERT INTO last_resort AS l (bucket, pool_id, cipher_suite, seq, key_package_ref,
                                  key_package, not_after, capabilities, signature_key_digest,
                                  credential_digest)
    SELECT $2, $3, p.cipher_suite, p.seq, p.key_package_ref, p.key_package, p.not_after,
           p.capabilities::int[], p.signature_key_digest, p.credential_digest
    FROM placed p
    WHERE p.last_resort AND NOT p.replaced
    ON CONFLICT (bucket, pool_id, cipher_suite) DO UPDATE
    SET seq = excluded.seq, key_package_ref = excluded.key_package_ref,
        key_package = excluded.key_package, not_after = excluded.not_after,
        capabilities = excluded.capabilities,
        signature_key_digest = excluded.signature_key_digest,
        credential_digest = excluded.credential_digest, forgotten_grants = 0
)
INSERT INTO event (bucket, pool_id, at, cipher_suite, seq, generation, kind, key_package_ref,
                   actor_user, actor_client)
SELECT $2, $3, coalesce($1::timestamptz, clock_timestamp()), p.cipher_suite, p.seq, 0, 'uploaded',
       p.key_package_ref, $4, $5
FROM placed p
UNION ALL
SELECT $2, $3, coalesce($1::timestamptz, clock_timestamp()), o.cipher_suite, o.seq, 0, 'revoked',
       o.key_package_ref, $4, $5
FROM outgoing o
