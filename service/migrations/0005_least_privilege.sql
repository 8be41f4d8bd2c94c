-- What serving takes, and nothing that it does not.

-- Pools and their counters are kept for good: nothing deletes them.
REVOKE DELETE ON pool, pool_suite FROM keypool_service;

-- In a database that comes from a Postgres before 15, anybody may make a table in the schema.
-- Where the schema is another's, Postgres warns and its owner has to do this.
DO $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO keypool_service', current_schema());
    EXECUTE format('REVOKE CREATE ON SCHEMA %I FROM PUBLIC', current_schema());
END $$;
