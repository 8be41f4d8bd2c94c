-- What owners would upload who were told that their pools are low: every pool gets back to $1
-- available packages, copies as in fill.sql. $2 sets the refs of this refill apart from all others.
-- $3 every owner puts new packages in place of all that it has.
WITH short AS MATERIALIZED (
    SELECT u.bucket, u.pool_id, u.last_seq,
           CASE WHEN $3::bool THEN $1::bigint ELSE $1::bigint - n.available END AS missing
    FROM pool_suite u
    CROSS JOIN LATERAL (
        SELECT count(*) AS available
        FROM package k
        WHERE k.bucket = u.bucket AND k.pool_id = u.pool_id AND k.cipher_suite = u.cipher_suite
          AND k.state = 'available'
    ) n
    WHERE $3::bool OR n.available < $1::bigint
),
gone AS (
    DELETE FROM package WHERE $3::bool
),
counted AS (
    UPDATE pool_suite u
    SET last_seq = u.last_seq + s.missing, uploaded = u.uploaded + s.missing
    FROM short s
    WHERE u.bucket = s.bucket AND u.pool_id = s.pool_id AND u.cipher_suite = 1
),
item AS MATERIALIZED (
    SELECT s.bucket, s.pool_id, s.last_seq + n AS seq, d.hash AS key_package_ref,
           substr(sha256(d.hash), 1, 16) AS init_key_digest, t.*
    FROM short s
    CROSS JOIN LATERAL generate_series(1, s.missing) AS n
    CROSS JOIN LATERAL
        sha256(convert_to(format('%s/%s/%s', $2::bigint, s.pool_id, n), 'UTF8')) AS d (hash)
    JOIN bench.template t ON t.number = (s.pool_id + n) % (SELECT count(*) FROM bench.template)
),
publish AS (
    INSERT INTO published (bucket, key_package_ref, pool_id, cipher_suite, seq, init_key_digest,
                           not_after)
    SELECT bucket, key_package_ref, pool_id, 1, seq, init_key_digest, not_after FROM item
),
packages AS (
    INSERT INTO package (bucket, pool_id, cipher_suite, seq, key_package_ref, key_package,
                         not_after, behind, capabilities, signature_key_digest,
                         credential_digest)
    SELECT bucket, pool_id, 1, seq, key_package_ref, key_package, not_after,
           row_number() OVER (PARTITION BY bucket, pool_id ORDER BY not_after DESC, seq DESC) - 1,
           capabilities, signature_key_digest, credential_digest
    FROM item
)
INSERT INTO event (bucket, pool_id, at, cipher_suite, seq, generation, kind, key_package_ref,
                   actor_user, actor_client)
SELECT i.bucket, i.pool_id, now(), 1, i.seq, 0, 'uploaded', i.key_package_ref, p.user_id,
       p.client_id
FROM item i
JOIN pool p USING (bucket, pool_id)
