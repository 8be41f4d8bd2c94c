-- Owners of the benchmark, with one-time packages and a last resort package each: copies of the
-- rows that real uploads made, under refs and digests of their own; and a little history. They were
-- uploaded over the last two weeks, so the log's partitions of these days hold their events.
--
-- $1, $2 the first and the last owner's number  $3 one-time packages of each
-- $4 what the owners' user ids start with
WITH owner AS MATERIALIZED (
    SELECT n, user_id,
           ((get_byte(hash, 0) * 256 + get_byte(hash, 1)) % 1024)::smallint AS bucket,
           -- Spread as random ids are, and each once: 2^32 and the odd factor share no divisor.
           (n * 2654435761 % 4294967296) * 1000 + 1 AS pool_id
    FROM (SELECT n, $4::text || lpad(n::text, 6, '0') AS user_id
          FROM generate_series($1::bigint, $2::bigint) AS n) o,
         LATERAL sha256(convert_to(user_id, 'UTF8')) AS hash
),
pools AS (
    INSERT INTO pool (bucket, user_id, client_id, pool_id, last_upload_at)
    SELECT bucket, user_id, 'phone', pool_id, now() FROM owner
),
suites AS (
    INSERT INTO pool_suite (bucket, pool_id, cipher_suite, last_seq, uploaded)
    -- Four were spent, which their tombstones tell.
    SELECT bucket, pool_id, 1, $3::bigint + 5, $3::bigint + 4 FROM owner
),
item AS MATERIALIZED (
    SELECT o.bucket, o.pool_id, s.seq, o.user_id, d.hash AS key_package_ref,
           substr(sha256(d.hash), 1, 16) AS init_key_digest,
           (o.n * 31 + s.seq) % (SELECT count(*) FROM bench.template) AS template,
           make_interval(mins => ((o.n * 7919 + s.seq * 104729) % 20160)::int) AS earlier
    FROM owner o, generate_series(1, $3::bigint + 5) AS s (seq),
         LATERAL sha256(convert_to(o.user_id || '/' || s.seq, 'UTF8')) AS d (hash)
),
publish AS (
    INSERT INTO published (bucket, key_package_ref, pool_id, cipher_suite, seq, init_key_digest,
                           not_after)
    SELECT i.bucket, i.key_package_ref, i.pool_id, 1, i.seq, i.init_key_digest,
           t.not_after - i.earlier
    FROM item i
    JOIN bench.template t ON t.number = i.template
),
packages AS (
    INSERT INTO package (bucket, pool_id, cipher_suite, seq, key_package_ref, key_package,
                         not_after, behind, capabilities, signature_key_digest,
                         credential_digest)
    SELECT i.bucket, i.pool_id, 1, i.seq, i.key_package_ref, t.key_package,
           t.not_after - i.earlier,
           row_number() OVER (PARTITION BY i.bucket, i.pool_id
                              ORDER BY t.not_after - i.earlier DESC, i.seq DESC) - 1,
           t.capabilities, t.signature_key_digest, t.credential_digest
    FROM item i
    JOIN bench.template t ON t.number = i.template
    WHERE i.seq > 4 AND i.seq <= $3::bigint + 4
),
last_resorts AS (
    INSERT INTO last_resort (bucket, pool_id, cipher_suite, seq, key_package_ref, key_package,
                             not_after, capabilities, signature_key_digest, credential_digest)
    SELECT i.bucket, i.pool_id, 1, i.seq, i.key_package_ref, t.key_package, t.not_after,
           t.capabilities, t.signature_key_digest, t.credential_digest
    FROM item i
    JOIN bench.template t ON t.number = i.template
    WHERE i.seq = $3::bigint + 5
),
tombstones AS (
    INSERT INTO tombstone (bucket, pool_id, cipher_suite, seq, key_package_ref, state, generation,
                           holder, group_id, ended_at)
    SELECT bucket, pool_id, 1, seq, key_package_ref, 'spent', 1, init_key_digest,
           key_package_ref, now()
    FROM item
    WHERE seq <= 4
),
grants AS (
    INSERT INTO last_resort_grant (bucket, pool_id, cipher_suite, grant_id, key_package_ref, state,
                                   holder, group_id, expires_at)
    SELECT bucket, pool_id, 1, pool_id, key_package_ref, 'spent', init_key_digest,
           key_package_ref, now() + earlier
    FROM item
    WHERE seq = $3::bigint + 5
),
draws AS (
    INSERT INTO draw (bucket, pool_id, caller, drawn_at, open, next_expiry)
    SELECT bucket, pool_id, init_key_digest, now() - interval '1 hour', '{}', 'infinity'
    FROM item
    WHERE seq <= 4
)
INSERT INTO event (bucket, pool_id, at, cipher_suite, seq, generation, kind, key_package_ref,
                   actor_user, actor_client)
SELECT bucket, pool_id, now() - earlier, 1, seq, 0, 'uploaded', key_package_ref, user_id, 'phone'
FROM item
