-- Reserves one package from each of several pools, for one caller and one request.
-- The pools of one call differ from each other.
--
-- $1 now, null: the database's clock    $2 caller's digest  $3, $4 caller's user and client
-- $5 request_id  $6 group_id  $7 cipher suite
-- $8 ord[]  $9 bucket[]  $10 user[]  $11 client[]  $12 grant_id[] (one for each, should it be needed)
-- $13 required capabilities  $14 ttl, seconds  $15 minimum remaining lifetime, seconds
-- $16 lapsed reservations burn  $17 last resort allowed  $18 all or nothing
-- $19 how many reservations of one pool a caller may hold; null: any number
-- $20 how many available packages are left to callers who have not drawn since $21 seconds ago
WITH t AS MATERIALIZED (
    SELECT coalesce($1::timestamptz, now()) AS now,
           coalesce($1::timestamptz, now()) + make_interval(secs => $14::float8) AS expires_at,
           coalesce($1::timestamptz, now()) + make_interval(secs => $15::float8) AS usable_until,
           coalesce($1::timestamptz, now()) - make_interval(secs => $21::float8) AS newcomer_since
),
ask AS MATERIALIZED (
    SELECT a.ord, p.bucket, p.pool_id, a.grant_id
    FROM unnest($8::int[], $9::smallint[], $10::text[], $11::text[], $12::bigint[])
         AS a (ord, bucket, user_id, client_id, grant_id)
    -- One by one: for a join the planner may rather read the whole table.
    CROSS JOIN LATERAL (
        SELECT * FROM pool p
        WHERE p.bucket = a.bucket AND p.user_id = a.user_id AND p.client_id = a.client_id
        LIMIT 1
    ) p
),
-- Locked so that the Reserves of one caller on one pool take turns; in one order, so that two
-- calls cannot wait for each other. The lock yields the newest version of the row, later than
-- this statement's snapshot when it had to wait.
drawn AS MATERIALIZED (
    SELECT a.ord, a.bucket, a.pool_id, d.open, d.drawn_at
    FROM ask a
    JOIN draw d ON d.bucket = a.bucket AND d.pool_id = a.pool_id AND d.caller = $2
    ORDER BY d.bucket, d.pool_id
    FOR UPDATE OF d
),
-- The caller's reservations in these pools that are not settled, lapsed ones among them. The
-- snapshot may show a package as it was before the reservation, with a lower generation, or not
-- at all, if it was uploaded while this statement waited: then the package is null here.
unsettled AS MATERIALIZED (
    SELECT d.ord, o.request_id, o.group_id, o.cipher_suite, o.seq, o.generation, o.expires_at,
           o.expires_at > t.now AS live, x.key_package_ref, x.key_package, x.not_after
    FROM drawn d
    CROSS JOIN t
    CROSS JOIN LATERAL unnest(d.open) AS o
    CROSS JOIN LATERAL (
        SELECT k.key_package_ref, k.key_package, k.not_after
        FROM package k
        WHERE o.generation > 0
          AND k.bucket = d.bucket AND k.pool_id = d.pool_id
          AND k.cipher_suite = o.cipher_suite AND k.seq = o.seq
          AND (k.generation < o.generation
               OR (k.generation = o.generation AND k.state = 'reserved'))
        UNION ALL
        SELECT l.key_package_ref, l.key_package, l.not_after
        FROM last_resort_grant g
        JOIN last_resort l USING (bucket, pool_id, cipher_suite, key_package_ref)
        WHERE o.generation = 0 AND o.expires_at > t.now
          AND g.bucket = d.bucket AND g.pool_id = d.pool_id
          AND g.cipher_suite = o.cipher_suite AND g.grant_id = o.seq AND g.state = 'reserved'
        UNION ALL
        SELECT NULL, NULL, NULL
        WHERE o.generation = 0 AND o.expires_at > t.now
          AND NOT EXISTS (SELECT FROM last_resort_grant g
                          WHERE g.bucket = d.bucket AND g.pool_id = d.pool_id
                            AND g.cipher_suite = o.cipher_suite AND g.grant_id = o.seq)
        UNION ALL
        SELECT NULL, NULL, NULL
        WHERE o.generation > 0
          AND NOT EXISTS (SELECT FROM pool_suite u
                          WHERE u.bucket = d.bucket AND u.pool_id = d.pool_id
                            AND u.cipher_suite = o.cipher_suite AND u.last_seq >= o.seq)
    ) x
),
again AS MATERIALIZED (
    SELECT u.*, u.group_id <> $6 OR u.cipher_suite <> $7 AS clash
    FROM unsettled u
    WHERE u.live AND u.request_id = $5
),
-- Fair share: how much the caller holds already, and what must stay in stock for newcomers when
-- the caller is none itself.
wanted AS MATERIALIZED (
    SELECT a.*,
           (SELECT count(*) FROM unsettled u WHERE u.ord = a.ord AND u.live) >= $19::int AS full,
           CASE WHEN EXISTS (SELECT FROM drawn d
                             WHERE d.ord = a.ord AND d.drawn_at > t.newcomer_since)
                THEN $20::int ELSE 0 END AS spared
    FROM ask a
    CROSS JOIN t
    WHERE NOT EXISTS (SELECT FROM again g WHERE g.ord = a.ord)
),
-- The order of issue. Locked so that no other Reserve takes the same row; a row that another
-- statement has locked is passed over rather than waited for, so Reserves cannot deadlock.
-- A caller who is no newcomer has to lock what it must spare besides what it takes: however many
-- try at once, they cannot count the same packages twice. Where it cannot get any it locks none,
-- so that it does not keep newcomers from them.
locked AS MATERIALIZED (
    SELECT w.ord, w.spared, k.*
    FROM wanted w
    CROSS JOIN t
    CROSS JOIN LATERAL (
        SELECT k.bucket, k.pool_id, k.cipher_suite, k.seq, k.state, k.generation, k.holder,
               k.group_id, c.returned, c.not_after, c.left
        FROM (SELECT p.seq, p.generation > 0 AS returned, p.not_after,
                     count(*) OVER (ORDER BY p.generation > 0, p.not_after, p.seq
                                    ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING)
                         AS left,
                     count(*) OVER () AS stock
              FROM package p
              WHERE p.bucket = w.bucket AND p.pool_id = w.pool_id AND p.cipher_suite = $7
                AND (p.state = 'available'
                     OR (p.state = 'reserved' AND p.expires_at <= t.now AND NOT $16::bool))
                AND p.revoked_at IS NULL
                AND p.not_after >= t.usable_until
                AND p.capabilities @> $13::int[]) c
        JOIN package k
          ON k.bucket = w.bucket AND k.pool_id = w.pool_id AND k.cipher_suite = $7
         AND k.seq = c.seq
        WHERE (k.state = 'available'
               OR (k.state = 'reserved' AND k.expires_at <= t.now AND NOT $16::bool))
          AND k.revoked_at IS NULL
          AND c.stock > w.spared
        ORDER BY c.returned, c.not_after, c.seq
        LIMIT 1 + w.spared
        FOR UPDATE OF k SKIP LOCKED
    ) k
    WHERE w.full IS NOT TRUE
),
pick AS MATERIALIZED (
    SELECT x.*
    FROM (SELECT l.*,
                 count(*) OVER (PARTITION BY l.ord) AS n,
                 row_number() OVER (PARTITION BY l.ord
                                    ORDER BY l.returned, l.not_after, l.seq) AS rank
          FROM locked l) x
    WHERE x.rank = 1 AND x.n > x.spared
),
-- Pools that gave nothing, with what the snapshot shows of them: a package that was only locked
-- is no reason to call the pool exhausted.
short AS MATERIALIZED (
    SELECT w.*, s.eligible, s.eligible > w.spared AS contended, s.incompatible
    FROM wanted w
    CROSS JOIN t
    CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE k.capabilities @> $13::int[]) AS eligible,
               count(*) FILTER (WHERE NOT k.capabilities @> $13::int[]) AS incompatible
        FROM package k
        WHERE k.bucket = w.bucket AND k.pool_id = w.pool_id AND k.cipher_suite = $7
          AND (k.state = 'available'
               OR (k.state = 'reserved' AND k.expires_at <= t.now AND NOT $16::bool))
          AND k.revoked_at IS NULL
          AND k.not_after >= t.usable_until
    ) s
    WHERE w.full IS NOT TRUE AND NOT EXISTS (SELECT FROM pick p WHERE p.ord = w.ord)
),
fallback AS MATERIALIZED (
    SELECT s.ord, s.bucket, s.pool_id, s.grant_id, l.key_package_ref, l.key_package, l.not_after,
           l.capabilities @> $13::int[] AS fits
    FROM short s
    CROSS JOIN t
    JOIN last_resort l
      ON l.bucket = s.bucket AND l.pool_id = s.pool_id AND l.cipher_suite = $7
    WHERE NOT s.contended AND l.not_after >= t.usable_until
),
verdict AS MATERIALIZED (
    SELECT NOT EXISTS (SELECT FROM again g WHERE g.clash)
           AND (NOT $18::bool
                OR (SELECT count(key_package) FROM again) + (SELECT count(*) FROM pick)
                 + (SELECT count(*) FROM fallback f WHERE f.fits AND $17::bool)
                 = cardinality($8::int[])) AS go
),
reserved AS (
    UPDATE package k
    SET state = 'reserved', generation = k.generation + 1, returned = NULL, holder = $2,
        group_id = $6, expires_at = t.expires_at
    FROM pick p, verdict v, t
    WHERE v.go
      AND k.bucket = p.bucket AND k.pool_id = p.pool_id AND k.cipher_suite = p.cipher_suite
      AND k.seq = p.seq
      AND (k.state = 'available' OR (k.state = 'reserved' AND k.expires_at <= t.now))
      AND k.revoked_at IS NULL
    RETURNING p.ord, k.bucket, k.pool_id, k.seq, k.generation, k.expires_at, k.key_package_ref,
              k.key_package, k.not_after
),
granted AS (
    INSERT INTO last_resort_grant (bucket, pool_id, cipher_suite, grant_id, key_package_ref,
                                   holder, group_id, expires_at)
    SELECT f.bucket, f.pool_id, $7, f.grant_id, f.key_package_ref, $2, $6, t.expires_at
    FROM fallback f, verdict v, t
    WHERE v.go AND f.fits AND $17::bool
    RETURNING bucket, pool_id, grant_id, expires_at
),
made AS MATERIALIZED (
    SELECT r.ord, r.bucket, r.pool_id, r.seq, r.generation, r.expires_at, r.key_package_ref,
           r.key_package, r.not_after
    FROM reserved r
    UNION ALL
    SELECT f.ord, f.bucket, f.pool_id, f.grant_id, 0, g.expires_at, f.key_package_ref,
           f.key_package, f.not_after
    FROM granted g
    JOIN fallback f USING (bucket, pool_id, grant_id)
),
-- The caller's first draw from a pool. Another one that is made at the same time fails this
-- statement by the primary key, and it starts over.
first_draw AS (
    INSERT INTO draw (bucket, pool_id, caller, drawn_at, open, next_expiry)
    SELECT m.bucket, m.pool_id, $2, CASE WHEN m.generation > 0 THEN t.now END,
           ARRAY[ROW($5, $6, $7, m.seq, m.generation, m.expires_at)::open_reservation],
           m.expires_at
    FROM made m, t
    WHERE NOT EXISTS (SELECT FROM drawn d WHERE d.ord = m.ord)
    ORDER BY m.bucket, m.pool_id
),
next_draw AS (
    UPDATE draw d
    SET drawn_at = coalesce(n.drawn_at, d.drawn_at), open = n.open, next_expiry = n.next_expiry
    FROM (
        SELECT m.bucket, m.pool_id, CASE WHEN m.generation > 0 THEN t.now END AS drawn_at,
               ARRAY[ROW($5, $6, $7, m.seq, m.generation, m.expires_at)::open_reservation]
               || ARRAY(SELECT ROW(u.request_id, u.group_id, u.cipher_suite, u.seq, u.generation,
                                   u.expires_at)::open_reservation
                        FROM unsettled u WHERE u.ord = m.ord) AS open,
               -- Not in the past, where the sweeper has looked already.
               greatest(t.now,
                        least(m.expires_at,
                              (SELECT min(u.expires_at) FROM unsettled u WHERE u.ord = m.ord)))
                   AS next_expiry
        FROM made m
        JOIN drawn USING (ord), t
    ) n
    WHERE d.bucket = n.bucket AND d.pool_id = n.pool_id AND d.caller = $2
),
-- The log takes the time after the locks, so that each package's events stand in their order.
logged AS (
    INSERT INTO event (bucket, pool_id, at, cipher_suite, seq, generation, kind, key_package_ref,
                       actor_user, actor_client, holder, group_id)
    SELECT r.bucket, r.pool_id, coalesce($1::timestamptz, clock_timestamp()), $7, p.seq, p.generation, 'lapsed', r.key_package_ref,
           NULL, NULL, p.holder, p.group_id
    FROM reserved r
    JOIN pick p USING (ord)
    WHERE p.state = 'reserved'
    UNION ALL
    SELECT m.bucket, m.pool_id, coalesce($1::timestamptz, clock_timestamp()), $7, m.seq, m.generation,
           CASE WHEN m.generation > 0 THEN 'reserved' ELSE 'last_resort_issued' END,
           m.key_package_ref, $3, $4, $2, $6
    FROM made m
)
SELECT a.ord AS "ord!",
       CASE
           WHEN g.clash THEN 'clash'
           WHEN g.ord IS NOT NULL AND g.key_package IS NULL THEN 'contended'
           WHEN g.ord IS NOT NULL OR m.ord IS NOT NULL THEN 'reserved'
           WHEN w.full THEN 'quota'
           WHEN s.contended THEN 'contended'
           WHEN p.ord IS NOT NULL OR (f.fits AND $17::bool) THEN 'withheld'
           WHEN s.eligible > 0 THEN 'exhausted' -- what is left is for newcomers
           WHEN s.incompatible > 0 OR NOT f.fits THEN 'incompatible'
           -- Not NOT EXISTS, for which the planner may rather read the whole table.
           WHEN (SELECT u.last_seq FROM pool_suite u
                 WHERE u.bucket = a.bucket AND u.pool_id = a.pool_id
                   AND u.cipher_suite = $7) IS NULL THEN 'incompatible'
           ELSE 'exhausted'
       END AS "outcome!",
       a.pool_id AS "pool_id!",
       -- What comes after it in the order of issue: those before it that the snapshot shows are
       -- being taken by others.
       p.left,
       coalesce(g.seq, m.seq) AS seq,
       coalesce(g.generation, m.generation) AS generation,
       coalesce(g.expires_at, m.expires_at) AS expires_at,
       coalesce(g.key_package_ref, m.key_package_ref) AS key_package_ref,
       coalesce(g.key_package, m.key_package) AS key_package,
       coalesce(g.not_after, m.not_after) AS not_after
FROM ask a
LEFT JOIN again g USING (ord)
LEFT JOIN made m USING (ord)
LEFT JOIN wanted w USING (ord)
LEFT JOIN pick p USING (ord)
LEFT JOIN short s USING (ord)
LEFT JOIN fallback f USING (ord)
