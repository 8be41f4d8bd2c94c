-- What is wrong with the role that asks, a text each: what it may do and a server must not, and
-- whether it lacks what a server needs.
WITH mine AS (
    -- With the roles that it may become: SET ROLE is one statement away.
    SELECT oid, rolname, rolsuper, rolcreaterole, rolreplication
    FROM pg_roles
    WHERE pg_has_role(session_user, oid, 'MEMBER')
), home AS (
    SELECT n.oid, n.nspname, n.nspowner
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = to_regclass('event')
), is_super AS (
    SELECT rolsuper AS it FROM mine WHERE rolname = session_user
)
SELECT 'is a superuser' AS "fault!" FROM is_super WHERE it
UNION ALL
SELECT fault
FROM is_super, (
    SELECT 'may become the superuser ' || rolname AS fault FROM mine WHERE rolsuper
    UNION ALL
    SELECT CASE rolname WHEN session_user THEN 'may create roles' ELSE 'may become ' || rolname || ', which may create roles' END
    FROM mine WHERE rolcreaterole AND NOT rolsuper
    UNION ALL
    SELECT 'may read the whole server by replication' WHERE EXISTS (
        SELECT FROM mine WHERE rolreplication AND NOT rolsuper)
    UNION ALL
    SELECT 'is a member of ' || rolname FROM mine WHERE rolname IN (
        'pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files',
        'pg_read_all_data', 'pg_write_all_data')
    UNION ALL
    SELECT 'owns the database' FROM pg_database d
    WHERE d.datname = current_database() AND d.datdba IN (SELECT oid FROM mine)
    UNION ALL
    SELECT 'owns the schema, or tables or functions in it' FROM home h
    WHERE h.nspowner IN (SELECT oid FROM mine)
       OR EXISTS (SELECT FROM pg_class c
                  WHERE c.relnamespace = h.oid AND c.relowner IN (SELECT oid FROM mine))
       OR EXISTS (SELECT FROM pg_proc p
                  WHERE p.pronamespace = h.oid AND p.proowner IN (SELECT oid FROM mine))
    UNION ALL
    SELECT 'may create tables in the schema ' || nspname FROM home h
    WHERE EXISTS (SELECT FROM mine m WHERE has_schema_privilege(m.oid, h.oid, 'CREATE'))
    UNION ALL
    SELECT 'may change what is in the event log' WHERE EXISTS (
        SELECT FROM mine m, pg_partition_tree(to_regclass('event')) part
        WHERE has_table_privilege(m.oid, part.relid, 'UPDATE, DELETE, TRUNCATE')
           OR has_any_column_privilege(m.oid, part.relid, 'UPDATE'))
    UNION ALL
    SELECT 'may change the secret of reservation ids' WHERE EXISTS (
        SELECT FROM mine m
        WHERE has_table_privilege(m.oid, to_regclass('service_secret')::oid, 'UPDATE, DELETE, TRUNCATE')
           OR has_any_column_privilege(m.oid, to_regclass('service_secret')::oid, 'UPDATE'))
    UNION ALL
    SELECT 'was not granted keypool_service' WHERE NOT (
        has_table_privilege(session_user, to_regclass('_sqlx_migrations')::oid, 'SELECT')
        AND has_table_privilege(session_user, to_regclass('event')::oid, 'INSERT'))
) faults
WHERE NOT it
