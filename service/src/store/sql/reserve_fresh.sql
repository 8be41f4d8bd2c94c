-- Reserves the next package that was never issued, for callers who have not drawn from the pool
-- yet: what nearly every Reserve is. No two of the pools are the same. What this does not find is
-- for reserve.sql, which knows every case.
--
-- $1 now, null: the database's clock
-- One of each for each package asked for: $2 call[]  $3 bucket[]  $4 user[]  $5 client[]
-- $6 caller's digest[]  $7, $8 caller's user[] and client[]  $9 request_id[]  $10 group_id[]
-- $11 cipher suite[]  $12 ttl[], seconds
-- For all: $13 minimum remaining lifetime, seconds  $14 required capabilities
WITH t AS MATERIALIZED (
    SELECT coalesce($1::timestamptz, now()) AS now,
           coalesce($1::timestamptz, now()) + make_interval(secs => $13::float8) AS usable_until
),
-- Locked so that no other Reserve takes the same package. One that another statement has locked is
-- passed over rather than waited for.
pick AS MATERIALIZED (
    SELECT a.*, p.pool_id, k.seq, k.behind, t.now,
           t.now + make_interval(secs => a.ttl) AS expires_at
    FROM t
    CROSS JOIN ROWS FROM (unnest($2::int[]), unnest($3::smallint[]), unnest($4::text[]),
                          unnest($5::text[]), unnest($6::bytea[]), unnest($7::text[]),
                          unnest($8::text[]), unnest($9::uuid[]), unnest($10::bytea[]),
                          unnest($11::int[]), unnest($12::float8[]))
         AS a (call, bucket, user_id, client_id, caller, actor_user, actor_client, request_id,
               group_id, cipher_suite, ttl)
    CROSS JOIN LATERAL (
        SELECT p.pool_id
        FROM pool p
        WHERE p.bucket = a.bucket AND p.user_id = a.user_id AND p.client_id = a.client_id
          AND (SELECT d.next_expiry FROM draw d
               WHERE d.bucket = a.bucket AND d.pool_id = p.pool_id AND d.caller = a.caller) IS NULL
        LIMIT 1
    ) p
    CROSS JOIN LATERAL (
        SELECT k.seq, k.behind
        FROM package k
        WHERE k.bucket = a.bucket AND k.pool_id = p.pool_id AND k.cipher_suite = a.cipher_suite
          AND k.generation = 0
          AND k.not_after >= t.usable_until
          AND (cardinality($14::int[]) = 0 OR k.capabilities @> $14::int[])
        ORDER BY k.not_after, k.seq
        LIMIT 1
        FOR UPDATE SKIP LOCKED
    ) k
),
reserved AS (
    UPDATE package k
    SET state = 'reserved', generation = 1, holder = p.caller, group_id = p.group_id,
        expires_at = p.expires_at
    FROM pick p
    WHERE k.bucket = p.bucket AND k.pool_id = p.pool_id AND k.cipher_suite = p.cipher_suite
      AND k.seq = p.seq AND k.generation = 0
    RETURNING p.*, k.key_package_ref, k.key_package, k.not_after
),
-- One that the same caller makes elsewhere at the same time fails this statement by the primary
-- key, and it starts over. In one order, so that two batches cannot wait for each other.
drawn AS (
    INSERT INTO draw (bucket, pool_id, caller, drawn_at, open, next_expiry)
    SELECT r.bucket, r.pool_id, r.caller, r.now,
           ARRAY[ROW(r.request_id, r.group_id, r.cipher_suite, r.seq, 1,
                     r.expires_at)::open_reservation],
           r.expires_at
    FROM reserved r
    ORDER BY r.bucket, r.pool_id, r.caller
),
-- The log takes the time after the locks, so that each package's events stand in their order.
logged AS (
    INSERT INTO event (bucket, pool_id, at, cipher_suite, seq, generation, kind, key_package_ref,
                       actor_user, actor_client, holder, group_id)
    SELECT r.bucket, r.pool_id, coalesce($1::timestamptz, clock_timestamp()), r.cipher_suite,
           r.seq, 1, 'reserved', r.key_package_ref, r.actor_user, r.actor_client, r.caller,
           r.group_id
    FROM reserved r
)
SELECT r.call AS "call!", r.pool_id AS "pool_id!", r.behind AS "left!", r.seq AS "seq!",
       r.expires_at AS "expires_at!", r.key_package_ref AS "key_package_ref!",
       r.key_package AS "key_package!", r.not_after AS "not_after!"
FROM reserved r
