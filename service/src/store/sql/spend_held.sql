-- Spends one-time packages that are reserved, for the calls of several callers at once, one
-- package a call: what nearly every Spend is. What this does not find is for spend.sql, which
-- knows every case.
--
-- $1 now, null: the database's clock
-- One of each for each reservation: $2 bucket[]  $3 pool_id[]  $4 cipher_suite[]  $5 seq[]
-- $6 generation[]  $7 caller's digest[]  $8, $9 caller's user[] and client[]  $10 group_id[]
--
-- Locked so that a lapse, a Release or another Spend comes before or after and not between; in
-- the order of the key, so that two settlements cannot wait for each other.
WITH held AS MATERIALIZED (
    SELECT a.ord, k.ctid AS tid
    FROM (
        SELECT a.bucket, a.ord::int AS ord, ($3::bigint[])[a.ord] AS pool_id,
               ($4::int[])[a.ord] AS cipher_suite, ($5::bigint[])[a.ord] AS seq
        FROM unnest($2::smallint[]) WITH ORDINALITY AS a (bucket, ord)
        OFFSET 0 -- each once
    ) a
    JOIN package k USING (bucket, pool_id, cipher_suite, seq)
    WHERE k.generation = ($6::int[])[a.ord] AND k.state = 'reserved'
      AND k.group_id = ($10::bytea[])[a.ord] AND k.holder = ($7::bytea[])[a.ord]
    ORDER BY k.bucket, k.pool_id, k.cipher_suite, k.seq
    FOR UPDATE OF k
),
-- By the place of the row, which nobody moves while it is locked. A version that this statement's
-- snapshot does not show yet is not found.
spent AS (
    DELETE FROM package k
    USING held h
    WHERE k.ctid = h.tid AND k.state = 'reserved'
    RETURNING h.ord, k.bucket, k.pool_id, k.cipher_suite, k.seq, k.generation, k.key_package_ref,
              k.group_id
),
entombed AS (
    INSERT INTO tombstone (bucket, pool_id, cipher_suite, seq, key_package_ref, state, generation,
                           holder, group_id, ended_at)
    SELECT s.bucket, s.pool_id, s.cipher_suite, s.seq, s.key_package_ref, 'spent', s.generation,
           ($7::bytea[])[s.ord], s.group_id, coalesce($1::timestamptz, now())
    FROM spent s
),
-- The log takes the time after the locks, so that each package's events stand in their order.
logged AS (
    INSERT INTO event (bucket, pool_id, at, cipher_suite, seq, generation, kind, key_package_ref,
                       actor_user, actor_client, holder, group_id)
    SELECT s.bucket, s.pool_id, coalesce($1::timestamptz, clock_timestamp()), s.cipher_suite,
           s.seq, s.generation, 'spent', s.key_package_ref, ($8::text[])[s.ord],
           ($9::text[])[s.ord], ($7::bytea[])[s.ord], s.group_id
    FROM spent s
)
SELECT s.ord AS "ord!", s.key_package_ref AS "key_package_ref!" FROM spent s
