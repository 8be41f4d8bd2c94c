-- How large the tables are, in pages, so that a sample of them can be bounded; and how the
-- background work stands. Reads the first rows of indexes and the catalog only.
--
-- $1 now, null: the database's clock
WITH t AS MATERIALIZED (
    SELECT coalesce($1::timestamptz, now()) AS now, current_setting('block_size')::bigint AS page
)
SELECT pg_relation_size('package') / t.page AS "package!",
       pg_relation_size('tombstone') / t.page AS "tombstone!",
       pg_relation_size('last_resort') / t.page AS "last_resort!",
       pg_relation_size('pool_suite') / t.page AS "pool_suite!",
       -- The cursor is left a minute behind what was looked at.
       extract(epoch FROM t.now - interval '1 minute' - (
           SELECT nullif(c.swept, '-infinity') FROM sweep_cursor c WHERE c.name = 'lapsed'
       ))::float8 AS "since_lapsed?",
       extract(epoch FROM t.now - (
           SELECT k.not_after FROM package k ORDER BY k.not_after LIMIT 1
       ))::float8 AS "since_expired?",
       (SELECT max(to_date(right(c.relname, 8), 'YYYYMMDD')) - current_date
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'event'::regclass AND c.relname ~ '^event_[0-9]{8}$'
       ) AS "partition_days?"
FROM t
