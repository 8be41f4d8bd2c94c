-- What can be wrong with the database, and with what the role may do there.
WITH needed (name, privileges) AS (
    VALUES ('pool', 'SELECT, INSERT, UPDATE'), ('pool_suite', 'SELECT, INSERT, UPDATE'),
           ('package', 'SELECT, INSERT, UPDATE, DELETE'), ('tombstone', 'SELECT, INSERT, UPDATE, DELETE'),
           ('published', 'SELECT, INSERT, UPDATE, DELETE'),
           ('last_resort', 'SELECT, INSERT, UPDATE, DELETE'),
           ('last_resort_grant', 'SELECT, INSERT, UPDATE, DELETE'),
           ('draw', 'SELECT, INSERT, UPDATE, DELETE'), ('event', 'SELECT, INSERT'),
           ('service_secret', 'SELECT, INSERT'), ('sweep_cursor', 'SELECT, UPDATE'),
           ('restoration', 'SELECT')
),
lacking AS (
    SELECT n.name || ' (' || p || ')' AS what
    FROM needed n CROSS JOIN LATERAL unnest(string_to_array(n.privileges, ', ')) AS p
    WHERE NOT has_table_privilege(n.name, p)
    UNION ALL
    SELECT f FROM unnest(ARRAY['make_event_partitions(date, integer)',
                               'drop_event_partitions(date, integer)']) AS f
    WHERE NOT has_function_privilege(f, 'EXECUTE')
)
SELECT current_setting('server_version') AS "version!",
       current_setting('server_version_num')::int AS "version_number!",
       clock_timestamp() AS "now!",
       pg_is_in_recovery() AS "standby!",
       coalesce((SELECT array_agg(what ORDER BY what) FROM lacking), '{}') AS "lacking!",
       has_table_privilege('event', 'UPDATE') OR has_table_privilege('event', 'DELETE')
           AS "may_change_events!",
       (SELECT count(*) FROM restoration WHERE finished_at IS NULL) AS "unfinished!",
       pg_relation_size('event_default') > 0 AS "in_default!"
