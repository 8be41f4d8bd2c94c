-- Revocation, the event log's partitions, fair share, and what the service's own role may do.

-- A reserved package that was revoked stays its holder's until the reservation ends; then it is
-- not available again.
ALTER TABLE package
    ADD COLUMN revoked_at timestamptz,
    ADD CONSTRAINT only_reserved_waits_for_revocation
        CHECK (revoked_at IS NULL OR state = 'reserved');

-- When the caller last got a one-time package; null: never, only last resort ones.
ALTER TABLE draw ALTER COLUMN drawn_at DROP NOT NULL;

INSERT INTO sweep_cursor VALUES ('expiring', '-infinity');

-- The log is written in the order of time, so a few bytes a page find a span of it.
CREATE INDEX event_at ON event USING brin (at) WITH (pages_per_range = 16, autosummarize = on);

-- Makes the log's partitions of today and of some days ahead, one a day. Attached rather than
-- created in place, so that nobody who writes events waits. Does nothing while another replica
-- makes or drops partitions.
CREATE FUNCTION make_event_partitions(today date, days_ahead integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    first_day date;
    name text;
    made integer := 0;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('keypool event partitions', 0)) THEN
        RETURN 0;
    END IF;
    SET LOCAL lock_timeout = '2s';
    FOR first_day IN SELECT today + n FROM generate_series(0, least(days_ahead, 31)) AS n LOOP
        name := 'event_' || to_char(first_day, 'YYYYMMDD');
        CONTINUE WHEN to_regclass(name) IS NOT NULL;
        BEGIN
            EXECUTE format('CREATE TABLE %I (LIKE event INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name);
            EXECUTE format('ALTER TABLE event ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                           name, first_day::timestamp AT TIME ZONE 'UTC',
                           (first_day + 1)::timestamp AT TIME ZONE 'UTC');
            made := made + 1;
        EXCEPTION
            -- The default partition holds events of that day, and takes the rest of them too.
            WHEN check_violation THEN NULL;
        END;
    END LOOP;
    RETURN made;
END $$;

-- Drops the partitions that hold nothing younger than `keep_days`, and what is as old in the
-- default partition. Never less than a week, whoever asks: the service's role cannot delete what
-- it has just written. A drop makes writers wait for as long as it waits for readers: not long.
CREATE FUNCTION drop_event_partitions(today date, keep_days integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    oldest date := least(today, current_date) - greatest(keep_days, 7);
    name text;
    dropped integer := 0;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('keypool event partitions', 0)) THEN
        RETURN 0;
    END IF;
    SET LOCAL lock_timeout = '200ms';
    DELETE FROM event_default WHERE at < oldest::timestamp AT TIME ZONE 'UTC';
    FOR name IN
        SELECT c.relname
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'event'::regclass AND c.relname ~ '^event_[0-9]{8}$'
          AND to_date(right(c.relname, 8), 'YYYYMMDD') < oldest
    LOOP
        EXECUTE format('DROP TABLE IF EXISTS %I', name);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END $$;

-- They run as their owner, so the caller's temporary tables must not stand for what they name.
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION make_event_partitions(date, integer)
                    SET search_path = %I, pg_temp', current_schema());
    EXECUTE format('ALTER FUNCTION drop_event_partitions(date, integer)
                    SET search_path = %I, pg_temp', current_schema());
END $$;
REVOKE ALL ON FUNCTION make_event_partitions(date, integer) FROM PUBLIC;
REVOKE ALL ON FUNCTION drop_event_partitions(date, integer) FROM PUBLIC;

SELECT make_event_partitions(current_date, 7);

-- What the service needs, and no more: grant this role to the one that `keypool serve` connects
-- as. It may append to the event log and read it, not change or delete.
-- Where the one that migrates may not create roles, somebody else has done it before.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'keypool_service') THEN
        CREATE ROLE keypool_service NOLOGIN;
    END IF;
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN NULL; -- roles are shared by all databases
END $$;

GRANT SELECT, INSERT, UPDATE, DELETE
    ON pool, pool_suite, package, tombstone, published, last_resort, last_resort_grant, draw
    TO keypool_service;
GRANT SELECT, INSERT ON event, service_secret TO keypool_service;
GRANT SELECT, UPDATE ON sweep_cursor TO keypool_service;
GRANT EXECUTE ON FUNCTION make_event_partitions(date, integer) TO keypool_service;
GRANT EXECUTE ON FUNCTION drop_event_partitions(date, integer) TO keypool_service;
DO $$
BEGIN
    -- Kept by whatever runs the migrations.
    IF to_regclass('_sqlx_migrations') IS NOT NULL THEN
        GRANT SELECT ON _sqlx_migrations TO keypool_service;
    END IF;
END $$;
