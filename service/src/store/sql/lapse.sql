-- Settles reservations that lapsed, of a bounded number of draws, the earliest first.
--
-- $1 now, null: the database's clock  $2 draws whose next_expiry is later than this
-- $3 how many draws at most (those that tie with the last one come too)
-- $4 lapsed reservations burn
-- What was revoked while it was reserved ends as revoked.
WITH t AS MATERIALIZED (
    SELECT coalesce($1::timestamptz, now()) AS now
),
looked AS MATERIALIZED (
    SELECT d.bucket, d.pool_id, d.caller, d.open, d.next_expiry
    FROM draw d, t
    WHERE d.next_expiry > $2 AND d.next_expiry <= t.now
    ORDER BY d.next_expiry
    FETCH FIRST $3 ROWS WITH TIES
),
-- Locked against a late Spend in flight, which goes first, and a Reserve that reclaims the
-- package; either leaves nothing to do here.
due AS MATERIALIZED (
    SELECT k.bucket, k.pool_id, k.cipher_suite, k.seq, k.generation,
           CASE WHEN k.revoked_at IS NOT NULL THEN 'revoked'
                WHEN $4::bool THEN 'burned' END AS ends
    FROM looked d
    CROSS JOIN t
    CROSS JOIN LATERAL unnest(d.open) AS o
    JOIN package k
      ON k.bucket = d.bucket AND k.pool_id = d.pool_id AND k.cipher_suite = o.cipher_suite
     AND k.seq = o.seq AND k.generation = o.generation
    WHERE k.state = 'reserved' AND k.expires_at <= t.now
    FOR UPDATE OF k SKIP LOCKED
),
returned AS (
    UPDATE package k
    SET state = 'available', returned = 'lapsed'
    FROM due d, t
    WHERE d.ends IS NULL
      AND k.bucket = d.bucket AND k.pool_id = d.pool_id AND k.cipher_suite = d.cipher_suite
      AND k.seq = d.seq AND k.generation = d.generation
      AND k.state = 'reserved' AND k.expires_at <= t.now
    RETURNING k.bucket, k.pool_id, k.cipher_suite, k.seq, k.generation, k.key_package_ref,
              k.holder, k.group_id
),
ended AS (
    DELETE FROM package k
    USING due d, t
    WHERE d.ends IS NOT NULL
      AND k.bucket = d.bucket AND k.pool_id = d.pool_id AND k.cipher_suite = d.cipher_suite
      AND k.seq = d.seq AND k.generation = d.generation
      AND k.state = 'reserved' AND k.expires_at <= t.now
    RETURNING k.bucket, k.pool_id, k.cipher_suite, k.seq, k.generation, k.key_package_ref,
              k.holder, k.group_id, d.ends
),
entombed AS (
    INSERT INTO tombstone (bucket, pool_id, cipher_suite, seq, key_package_ref, state, generation,
                           holder, group_id, ended_at)
    SELECT e.bucket, e.pool_id, e.cipher_suite, e.seq, e.key_package_ref, e.ends, e.generation,
           e.holder, e.group_id, t.now
    FROM ended e, t
),
-- In the order of the key, as every statement that counts does.
suite AS MATERIALIZED (
    SELECT u.bucket, u.pool_id, u.cipher_suite, e.burned, e.revoked
    FROM pool_suite u
    JOIN (SELECT bucket, pool_id, cipher_suite,
                 count(*) FILTER (WHERE ends = 'burned') AS burned,
                 count(*) FILTER (WHERE ends = 'revoked') AS revoked
          FROM ended GROUP BY bucket, pool_id, cipher_suite) e
         USING (bucket, pool_id, cipher_suite)
    ORDER BY u.bucket, u.pool_id, u.cipher_suite
    FOR UPDATE OF u
),
counted AS (
    UPDATE pool_suite u
    SET burned = u.burned + s.burned, revoked = u.revoked + s.revoked
    FROM suite s
    WHERE u.bucket = s.bucket AND u.pool_id = s.pool_id AND u.cipher_suite = s.cipher_suite
),
-- A draw with reservations that lapse later is to be found again then. Locked rows are being
-- written by a Reserve, which sets the time itself.
later AS MATERIALIZED (
    SELECT d.bucket, d.pool_id, d.caller,
           (SELECT min(o.expires_at) FROM unnest(d.open) AS o WHERE o.expires_at > t.now)
               AS next_expiry
    FROM draw d
    JOIN looked l USING (bucket, pool_id, caller)
    CROSS JOIN t
    WHERE d.next_expiry = l.next_expiry
      AND EXISTS (SELECT FROM unnest(d.open) AS o WHERE o.expires_at > t.now)
    FOR UPDATE OF d SKIP LOCKED
),
moved AS (
    UPDATE draw d
    SET next_expiry = l.next_expiry
    FROM later l, t
    WHERE d.bucket = l.bucket AND d.pool_id = l.pool_id AND d.caller = l.caller
      AND d.next_expiry <= t.now
),
logged AS (
    INSERT INTO event (bucket, pool_id, at, cipher_suite, seq, generation, kind, key_package_ref,
                       holder, group_id)
    SELECT r.bucket, r.pool_id, coalesce($1::timestamptz, clock_timestamp()), r.cipher_suite, r.seq, r.generation, 'lapsed',
           r.key_package_ref, r.holder, r.group_id
    FROM returned r
    UNION ALL
    SELECT e.bucket, e.pool_id, coalesce($1::timestamptz, clock_timestamp()), e.cipher_suite, e.seq,
           e.generation, CASE e.ends WHEN 'burned' THEN 'burned' ELSE 'lapsed' END,
           e.key_package_ref, e.holder, e.group_id
    FROM ended e
)
SELECT (SELECT count(*) FROM looked) AS "looked!",
       (SELECT max(next_expiry) FROM looked) AS last,
       (SELECT count(*) FROM returned) + (SELECT count(*) FROM ended) AS "ended!"
