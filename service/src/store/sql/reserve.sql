-- Reserves one package from each of several pools, for the calls of several callers at once.
--
-- $1 now, null: the database's clock
-- One of each for each package asked for; no caller asks for the same pool twice:
-- $2 call[] (which call it belongs to)  $3 bucket[]  $4 user[]  $5 client[]  $6 grant_id[] (should
-- it be needed)  $7 caller's digest[]  $8, $9 caller's user[] and client[]  $10 request_id[]
-- $11 group_id[]  $12 cipher suite[]  $13 ttl[], seconds  $14 last resort allowed[]
-- $15 all or nothing[]
-- For all calls: $16 required capabilities  $17 minimum remaining lifetime, seconds
-- $18 lapsed reservations burn
-- $19 how many reservations of one pool a caller may hold; null: any number
-- $20 how many available packages are left to callers who have not drawn since $21 seconds ago
WITH t AS MATERIALIZED (
    SELECT coalesce($1::timestamptz, now()) AS now,
           coalesce($1::timestamptz, now()) + make_interval(secs => $17::float8) AS usable_until,
           coalesce($1::timestamptz, now()) - make_interval(secs => $21::float8) AS newcomer_since
),
ask AS MATERIALIZED (
    SELECT a.*, p.pool_id
    FROM ROWS FROM (unnest($2::int[]), unnest($3::smallint[]), unnest($4::text[]),
                    unnest($5::text[]), unnest($6::bigint[]), unnest($7::bytea[]),
                    unnest($8::text[]), unnest($9::text[]), unnest($10::uuid[]),
                    unnest($11::bytea[]), unnest($12::int[]), unnest($13::float8[]),
                    unnest($14::bool[]), unnest($15::bool[]))
         WITH ORDINALITY
         AS a (call, bucket, user_id, client_id, grant_id, caller, actor_user, actor_client,
               request_id, group_id, cipher_suite, ttl, last_resort, all_or_nothing, ord)
    -- One by one: for a join the planner may rather read the whole table.
    LEFT JOIN LATERAL (
        SELECT p.pool_id FROM pool p
        WHERE p.bucket = a.bucket AND p.user_id = a.user_id AND p.client_id = a.client_id
        LIMIT 1
    ) p ON true
),
-- Locked so that the Reserves of one caller on one pool take turns; in one order, so that two
-- batches cannot wait for each other. The lock yields the newest version of the row, later than
-- this statement's snapshot when it had to wait.
drawn AS MATERIALIZED (
    SELECT a.ord, a.bucket, a.pool_id, a.request_id, a.group_id, a.cipher_suite, d.open,
           d.drawn_at
    FROM ask a
    JOIN draw d ON d.bucket = a.bucket AND d.pool_id = a.pool_id AND d.caller = a.caller
    ORDER BY d.bucket, d.pool_id, d.caller
    FOR UPDATE OF d
),
-- The caller's reservations in these pools that are not settled, lapsed ones among them. The
-- snapshot may show a package as it was before the reservation, with a lower generation, or not
-- at all, if it was uploaded while this statement waited: then the package is null here. So it is
-- for a last resort package that is gone: its grant is its holder's still and counts as any other,
-- but the same request_id cannot get it again.
unsettled AS MATERIALIZED (
    SELECT d.ord, o.request_id, o.group_id, o.cipher_suite, o.seq, o.generation, o.expires_at,
           o.expires_at > t.now AS live,
           o.expires_at > t.now AND o.request_id = d.request_id AND NOT x.gone AS again,
           o.group_id <> d.group_id OR o.cipher_suite <> d.cipher_suite AS clash,
           x.key_package_ref, x.key_package, x.not_after
    FROM drawn d
    CROSS JOIN t
    CROSS JOIN LATERAL unnest(d.open) AS o
    CROSS JOIN LATERAL (
        SELECT k.key_package_ref, k.key_package, k.not_after, false AS gone
        FROM package k
        WHERE o.generation > 0
          AND k.bucket = d.bucket AND k.pool_id = d.pool_id
          AND k.cipher_suite = o.cipher_suite AND k.seq = o.seq
          AND (k.generation < o.generation
               OR (k.generation = o.generation AND k.state = 'reserved'))
        UNION ALL
        SELECT l.key_package_ref, l.key_package, l.not_after, l.key_package_ref IS NULL
        FROM last_resort_grant g
        LEFT JOIN last_resort l USING (bucket, pool_id, cipher_suite, key_package_ref)
        WHERE o.generation = 0 AND o.expires_at > t.now
          AND g.bucket = d.bucket AND g.pool_id = d.pool_id
          AND g.cipher_suite = o.cipher_suite AND g.grant_id = o.seq AND g.state = 'reserved'
        UNION ALL
        SELECT NULL, NULL, NULL, false
        WHERE o.generation = 0 AND o.expires_at > t.now
          AND NOT EXISTS (SELECT FROM last_resort_grant g
                          WHERE g.bucket = d.bucket AND g.pool_id = d.pool_id
                            AND g.cipher_suite = o.cipher_suite AND g.grant_id = o.seq)
        UNION ALL
        SELECT NULL, NULL, NULL, false
        WHERE o.generation > 0
          AND NOT EXISTS (SELECT FROM pool_suite u
                          WHERE u.bucket = d.bucket AND u.pool_id = d.pool_id
                            AND u.cipher_suite = o.cipher_suite AND u.last_seq >= o.seq)
    ) x
),
-- What each draw is to become, should this statement add to it.
remembered AS MATERIALIZED (
    SELECT d.ord, d.drawn_at > t.newcomer_since AS recent,
           count(*) FILTER (WHERE u.live) >= $19::int AS full,
           array_agg(ROW(u.request_id, u.group_id, u.cipher_suite, u.seq, u.generation,
                         u.expires_at)::open_reservation) FILTER (WHERE u.ord IS NOT NULL) AS open,
           min(u.expires_at) AS next_expiry
    FROM drawn d
    CROSS JOIN t
    LEFT JOIN unsettled u USING (ord)
    GROUP BY d.ord, recent
),
-- Fair share: how much the caller holds already, and what must stay in stock for newcomers when
-- the caller is none itself. Of those who ask the same pool, newcomers go first.
wanted AS MATERIALIZED (
    SELECT w.*,
           row_number() OVER (PARTITION BY w.bucket, w.pool_id, w.cipher_suite
                              ORDER BY w.spared, w.ord) AS rank
    FROM (SELECT a.*, CASE WHEN d.recent THEN $20::int ELSE 0 END AS spared
          FROM ask a
          LEFT JOIN remembered d USING (ord)
          WHERE a.pool_id IS NOT NULL AND d.full IS NOT TRUE
            AND NOT EXISTS (SELECT FROM unsettled u WHERE u.ord = a.ord AND u.again)) w
),
-- The order of issue: first what was never issued, then what came back, each by its end. Locked so
-- that no other Reserve takes the same row; a row that another statement has locked is passed over
-- rather than waited for, so Reserves cannot deadlock. A caller who is no newcomer has to lock what
-- it must spare besides what it takes: however many try at once, they cannot count the same
-- packages twice. Where none can get any, none is locked, so that newcomers are not kept from them.
locked AS MATERIALIZED (
    SELECT w.bucket, w.pool_id, w.cipher_suite, k.*
    FROM (SELECT bucket, pool_id, cipher_suite, count(*) AS n, min(spared) AS least,
                 max(spared) AS most
          FROM wanted
          GROUP BY bucket, pool_id, cipher_suite) w
    CROSS JOIN t
    CROSS JOIN LATERAL (
        SELECT l.*, row_number() OVER () AS rank, count(*) OVER () AS got
        FROM (SELECT * FROM (
                  SELECT k.seq, k.state, k.generation, k.behind, k.holder, k.group_id
                  FROM package k
                  WHERE k.bucket = w.bucket AND k.pool_id = w.pool_id
                    AND k.cipher_suite = w.cipher_suite AND k.generation = 0
                    AND k.not_after >= t.usable_until
                    AND (cardinality($16::int[]) = 0 OR k.capabilities @> $16::int[])
                  ORDER BY k.not_after, k.seq
                  LIMIT w.n + w.most
                  FOR UPDATE SKIP LOCKED) fresh
              UNION ALL
              SELECT * FROM (
                  SELECT k.seq, k.state, k.generation, k.behind, k.holder, k.group_id
                  FROM package k
                  WHERE k.bucket = w.bucket AND k.pool_id = w.pool_id
                    AND k.cipher_suite = w.cipher_suite AND k.generation > 0
                    AND (k.state = 'available'
                         OR (k.state = 'reserved' AND k.expires_at <= t.now AND NOT $18::bool))
                    AND k.revoked_at IS NULL
                    AND k.not_after >= t.usable_until
                    AND (cardinality($16::int[]) = 0 OR k.capabilities @> $16::int[])
                  ORDER BY k.not_after, k.seq
                  LIMIT w.n + w.most
                  FOR UPDATE SKIP LOCKED) returned
              LIMIT w.n + w.most) l
        WHERE w.least = 0
           OR (SELECT count(*) FROM (SELECT FROM package k
                                     WHERE k.bucket = w.bucket AND k.pool_id = w.pool_id
                                       AND k.cipher_suite = w.cipher_suite
                                       AND (k.state = 'available'
                                            OR (k.state = 'reserved' AND k.expires_at <= t.now
                                                AND NOT $18::bool))
                                       AND k.revoked_at IS NULL
                                       AND k.not_after >= t.usable_until
                                       AND k.capabilities @> $16::int[]
                                     LIMIT w.least + 1) k) > w.least
    ) k
),
pick AS MATERIALIZED (
    SELECT w.ord, w.call, w.caller, w.group_id, w.ttl, w.bucket, w.pool_id, w.cipher_suite,
           w.all_or_nothing, l.seq, l.state, l.generation, l.holder AS last_holder,
           CASE WHEN l.generation = 0 THEN l.behind ELSE 0::smallint END AS left,
           l.group_id AS last_group
    FROM wanted w
    JOIN locked l USING (bucket, pool_id, cipher_suite, rank)
    WHERE l.rank <= l.got - w.spared
),
-- Pools that gave nothing, with what the snapshot shows of them: a package that was only locked
-- is no reason to call the pool exhausted.
missed AS MATERIALIZED (
    SELECT w.* FROM wanted w WHERE NOT EXISTS (SELECT FROM pick p WHERE p.ord = w.ord)
),
short AS MATERIALIZED (
    SELECT m.*, s.eligible,
           s.eligible - (SELECT count(*) FROM pick p
                         WHERE p.bucket = m.bucket AND p.pool_id = m.pool_id
                           AND p.cipher_suite = m.cipher_suite AND NOT p.all_or_nothing)
               > m.spared AS contended,
           s.incompatible
    FROM missed m
    CROSS JOIN t
    CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE k.capabilities @> $16::int[]) AS eligible,
               count(*) FILTER (WHERE NOT k.capabilities @> $16::int[]) AS incompatible
        FROM package k
        WHERE k.bucket = m.bucket AND k.pool_id = m.pool_id AND k.cipher_suite = m.cipher_suite
          AND (k.state = 'available'
               OR (k.state = 'reserved' AND k.expires_at <= t.now AND NOT $18::bool))
          AND k.revoked_at IS NULL
          AND k.not_after >= t.usable_until
    ) s
),
fallback AS MATERIALIZED (
    SELECT s.*, l.key_package_ref, l.key_package, l.not_after,
           l.capabilities @> $16::int[] AS fits
    FROM short s
    CROSS JOIN t
    CROSS JOIN LATERAL (
        SELECT l.* FROM last_resort l
        WHERE l.bucket = s.bucket AND l.pool_id = s.pool_id AND l.cipher_suite = s.cipher_suite
        LIMIT 1
    ) l
    WHERE NOT s.contended AND l.not_after >= t.usable_until
),
-- The calls that get nothing: a request_id that means something else, or not all of what was to
-- be all or nothing.
failed AS MATERIALIZED (
    SELECT a.call
    FROM ask a
    JOIN unsettled u USING (ord)
    WHERE u.again AND u.clash
    UNION
    SELECT a.call
    FROM ask a
    WHERE a.all_or_nothing
      AND NOT EXISTS (SELECT FROM unsettled u
                      WHERE u.ord = a.ord AND u.again AND u.key_package IS NOT NULL)
      AND NOT EXISTS (SELECT FROM pick p WHERE p.ord = a.ord)
      AND NOT EXISTS (SELECT FROM fallback f WHERE f.ord = a.ord AND f.fits AND f.last_resort)
),
reserved AS (
    UPDATE package k
    SET state = 'reserved', generation = k.generation + 1, returned = NULL, holder = p.caller,
        group_id = p.group_id, expires_at = t.now + make_interval(secs => p.ttl)
    FROM pick p, t
    WHERE NOT EXISTS (SELECT FROM failed f WHERE f.call = p.call)
      AND k.bucket = p.bucket AND k.pool_id = p.pool_id AND k.cipher_suite = p.cipher_suite
      AND k.seq = p.seq
      AND (k.state = 'available' OR (k.state = 'reserved' AND k.expires_at <= t.now))
      AND k.revoked_at IS NULL
    RETURNING p.ord, k.seq, k.generation, k.expires_at, k.key_package_ref,
              k.key_package, k.not_after
),
granted AS (
    INSERT INTO last_resort_grant (bucket, pool_id, cipher_suite, grant_id, key_package_ref,
                                   holder, group_id, expires_at)
    SELECT f.bucket, f.pool_id, f.cipher_suite, f.grant_id, f.key_package_ref, f.caller,
           f.group_id, t.now + make_interval(secs => f.ttl)
    FROM fallback f, t
    WHERE f.fits AND f.last_resort
      AND NOT EXISTS (SELECT FROM failed x WHERE x.call = f.call)
    RETURNING bucket, pool_id, grant_id, expires_at
),
made AS MATERIALIZED (
    SELECT r.* FROM reserved r
    UNION ALL
    SELECT f.ord, f.grant_id, 0, g.expires_at, f.key_package_ref, f.key_package, f.not_after
    FROM granted g
    JOIN fallback f USING (bucket, pool_id, grant_id)
),
-- The caller's first draw from a pool. Another one that is made at the same time fails this
-- statement by the primary key, and it starts over.
first_draw AS (
    INSERT INTO draw (bucket, pool_id, caller, drawn_at, open, next_expiry)
    SELECT a.bucket, a.pool_id, a.caller, CASE WHEN m.generation > 0 THEN t.now END,
           ARRAY[ROW(a.request_id, a.group_id, a.cipher_suite, m.seq, m.generation,
                     m.expires_at)::open_reservation],
           m.expires_at
    FROM made m JOIN ask a USING (ord) CROSS JOIN t
    WHERE NOT EXISTS (SELECT FROM drawn d WHERE d.ord = m.ord)
    ORDER BY a.bucket, a.pool_id, a.caller
),
next_draw AS (
    UPDATE draw d
    SET drawn_at = CASE WHEN m.generation > 0 THEN t.now ELSE d.drawn_at END,
        open = ARRAY[ROW(a.request_id, a.group_id, a.cipher_suite, m.seq, m.generation,
                         m.expires_at)::open_reservation] || r.open,
        -- Not in the past, where the sweeper has looked already.
        next_expiry = greatest(t.now, least(m.expires_at, r.next_expiry))
    FROM made m JOIN remembered r USING (ord) JOIN ask a USING (ord) CROSS JOIN t
    WHERE d.bucket = a.bucket AND d.pool_id = a.pool_id AND d.caller = a.caller
),
-- The log takes the time after the locks, so that each package's events stand in their order.
logged AS (
    INSERT INTO event (bucket, pool_id, at, cipher_suite, seq, generation, kind, key_package_ref,
                       actor_user, actor_client, holder, group_id)
    SELECT p.bucket, p.pool_id, coalesce($1::timestamptz, clock_timestamp()), p.cipher_suite,
           p.seq, p.generation, 'lapsed', r.key_package_ref, NULL, NULL, p.last_holder,
           p.last_group
    FROM reserved r
    JOIN pick p USING (ord)
    WHERE p.state = 'reserved'
    UNION ALL
    SELECT a.bucket, a.pool_id, coalesce($1::timestamptz, clock_timestamp()), a.cipher_suite,
           m.seq, m.generation,
           CASE WHEN m.generation > 0 THEN 'reserved' ELSE 'last_resort_issued' END,
           m.key_package_ref, a.actor_user, a.actor_client, a.caller, a.group_id
    FROM made m
    JOIN ask a USING (ord)
)
SELECT a.ord AS "ord!",
       CASE
           WHEN u.clash THEN 'clash'
           WHEN u.ord IS NOT NULL AND u.key_package IS NULL THEN 'contended'
           WHEN u.ord IS NOT NULL OR m.ord IS NOT NULL THEN 'reserved'
           WHEN a.pool_id IS NULL THEN 'exhausted'
           WHEN w.ord IS NULL THEN 'quota'
           WHEN s.contended THEN 'contended'
           WHEN p.ord IS NOT NULL OR (f.fits AND a.last_resort) THEN 'withheld'
           WHEN s.eligible > 0 THEN 'exhausted' -- what is left is for newcomers
           WHEN s.incompatible > 0 OR NOT f.fits THEN 'incompatible'
           -- Of other suites there is something: a pool that has nothing at all is not told from
           -- one that never was. Not NOT EXISTS, for which the planner may rather read the whole
           -- table.
           WHEN (SELECT u.last_seq FROM pool_suite u
                 WHERE u.bucket = a.bucket AND u.pool_id = a.pool_id
                   AND u.cipher_suite = a.cipher_suite) IS NULL
                AND coalesce(
                    (SELECT true FROM package k
                     WHERE k.bucket = a.bucket AND k.pool_id = a.pool_id
                       AND (k.state = 'available'
                            OR (k.state = 'reserved' AND k.expires_at <= t.now AND NOT $18::bool))
                       AND k.revoked_at IS NULL AND k.not_after >= t.usable_until
                     LIMIT 1),
                    (SELECT true FROM last_resort l
                     WHERE l.bucket = a.bucket AND l.pool_id = a.pool_id
                       AND l.not_after >= t.usable_until
                     LIMIT 1)) THEN 'incompatible'
           ELSE 'exhausted'
       END AS "outcome!",
       a.pool_id AS "pool_id?",
       p.left AS "left?",
       coalesce(u.seq, m.seq) AS "seq?",
       coalesce(u.generation, m.generation) AS "generation?",
       coalesce(u.expires_at, m.expires_at) AS "expires_at?",
       coalesce(u.key_package_ref, m.key_package_ref) AS "key_package_ref?",
       coalesce(u.key_package, m.key_package) AS "key_package?",
       coalesce(u.not_after, m.not_after) AS "not_after?"
FROM ask a
CROSS JOIN t
LEFT JOIN unsettled u ON u.ord = a.ord AND u.again
LEFT JOIN made m ON m.ord = a.ord
LEFT JOIN wanted w ON w.ord = a.ord
LEFT JOIN pick p ON p.ord = a.ord
LEFT JOIN short s ON s.ord = a.ord
LEFT JOIN fallback f ON f.ord = a.ord
