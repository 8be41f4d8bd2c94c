-- Reserves the next package that was never issued, for callers who have not drawn from the pool
-- yet: what nearly every Reserve is. No two of the pools are the same. What this does not find is
-- for reserve.sql, which knows every case.
--
-- $1 now, null: the database's clock
-- One of each for each package asked for: $2 call[]  $3 bucket[]  $4 user[]  $5 client[]
-- $6 caller's digest[]  $7, $8 caller's user[] and client[]  $9 request_id[]  $10 group_id[]
-- $11 cipher suite[]  $12 ttl[], seconds
-- For all: $13 minimum remaining lifetime, seconds  $14 required capabilities
--
-- An element of an array is taken where it is needed: a function that unnests all of them has to be
-- started for each array, and carries all of them along.
--
-- Locked so that no other Reserve takes the same package. One that another statement has locked is
-- passed over rather than waited for.
WITH pick AS MATERIALIZED (
    SELECT a.*, p.pool_id, k.tid, k.seq, k.behind,
           a.now + make_interval(secs => ($12::float8[])[a.ord]) AS expires_at
    FROM (
        SELECT a.bucket, a.ord::int AS ord, coalesce($1::timestamptz, now()) AS now,
               ($6::bytea[])[a.ord] AS caller, ($11::int[])[a.ord] AS cipher_suite
        FROM unnest($3::smallint[]) WITH ORDINALITY AS a (bucket, ord)
        OFFSET 0 -- each once
    ) a
    CROSS JOIN LATERAL (
        SELECT p.pool_id
        FROM pool p
        WHERE p.bucket = a.bucket AND p.user_id = ($4::text[])[a.ord]
          AND p.client_id = ($5::text[])[a.ord]
          AND (SELECT d.next_expiry FROM draw d
               WHERE d.bucket = a.bucket AND d.pool_id = p.pool_id AND d.caller = a.caller) IS NULL
        LIMIT 1
    ) p
    CROSS JOIN LATERAL (
        SELECT k.ctid AS tid, k.seq, k.behind
        FROM package k
        WHERE k.bucket = a.bucket AND k.pool_id = p.pool_id AND k.cipher_suite = a.cipher_suite
          AND k.generation = 0
          AND k.not_after >= a.now + make_interval(secs => $13::float8)
          AND (cardinality($14::int[]) = 0 OR k.capabilities @> $14::int[])
        ORDER BY k.not_after, k.seq
        LIMIT 1
        FOR UPDATE SKIP LOCKED
    ) k
),
-- By the place of the row, which nobody moves while it is locked. A version that this statement's
-- snapshot does not show yet is not found.
reserved AS (
    UPDATE package k
    SET state = 'reserved', generation = 1, holder = p.caller, group_id = ($10::bytea[])[p.ord],
        expires_at = p.expires_at
    FROM pick p
    WHERE k.ctid = p.tid AND k.generation = 0
    RETURNING p.ord, p.now, k.bucket, k.pool_id, k.cipher_suite, k.seq, k.behind, k.holder,
              k.group_id, k.expires_at, k.key_package_ref, k.key_package, k.not_after
),
-- One that the same caller makes elsewhere at the same time fails this statement by the primary
-- key, and it starts over. In one order, so that two batches cannot wait for each other.
drawn AS (
    INSERT INTO draw (bucket, pool_id, caller, drawn_at, open, next_expiry)
    SELECT r.bucket, r.pool_id, r.holder, r.now,
           ARRAY[ROW(($9::uuid[])[r.ord], r.group_id, r.cipher_suite, r.seq, 1,
                     r.expires_at)::open_reservation],
           r.expires_at
    FROM reserved r
    ORDER BY r.bucket, r.pool_id, r.holder
),
-- The log takes the time after the locks, so that each package's events stand in their order.
logged AS (
    INSERT INTO event (bucket, pool_id, at, cipher_suite, seq, generation, kind, key_package_ref,
                       actor_user, actor_client, holder, group_id)
    SELECT r.bucket, r.pool_id, coalesce($1::timestamptz, clock_timestamp()), r.cipher_suite,
           r.seq, 1, 'reserved', r.key_package_ref, ($7::text[])[r.ord], ($8::text[])[r.ord],
           r.holder, r.group_id
    FROM reserved r
)
SELECT ($2::int[])[r.ord] AS "call!", r.pool_id AS "pool_id!", r.behind AS "left!",
       r.seq AS "seq!", r.expires_at AS "expires_at!", r.key_package_ref AS "key_package_ref!",
       r.key_package AS "key_package!", r.not_after AS "not_after!"
FROM reserved r
