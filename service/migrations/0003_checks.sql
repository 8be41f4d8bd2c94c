-- Constraints that cost a statement less. Postgres reads each CHECK constraint of a table from the
-- catalogue and prepares it anew for every statement that writes to the table: that was a third of
-- what a statement for one Reserve cost. So what was a dozen constraints is one, which calls a
-- function; a session prepares a function's expression once.
--
-- NOT VALID, so that nothing is read while the tables are locked: what the tables hold satisfied
-- the constraints that these replace. They hold for whatever is written.

CREATE FUNCTION is_possible_package(
    seq bigint, generation integer, behind smallint, state text, returned text, holder bytea,
    group_id bytea, expires_at timestamptz, revoked_at timestamptz, signature_key_digest bytea,
    credential_digest bytea, key_package_ref bytea, key_package bytea
) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
    RETURN seq > 0
        AND generation >= 0
        AND behind >= 0
        AND state IN ('available', 'reserved')
        AND (returned IS NULL OR returned IN ('released', 'lapsed'))
        AND (holder IS NULL OR octet_length(holder) = 16)
        AND (group_id IS NULL OR octet_length(group_id) BETWEEN 1 AND 255)
        AND (revoked_at IS NULL OR state = 'reserved')
        AND octet_length(signature_key_digest) = 16
        AND octet_length(credential_digest) = 16
        AND octet_length(key_package_ref) IN (32, 48, 64)
        AND octet_length(key_package) BETWEEN 1 AND 20480
        -- The state has its columns.
        AND CASE
            WHEN state = 'reserved' OR returned IS NOT DISTINCT FROM 'lapsed'
                THEN generation > 0 AND num_nonnulls(holder, group_id, expires_at) = 3
                     AND (state = 'available') = (returned IS NOT NULL)
            ELSE num_nonnulls(holder, group_id, expires_at) = 0
                 AND (generation > 0) = (returned IS NOT NULL)
        END;
END $$;

CREATE FUNCTION is_possible_tombstone(
    seq bigint, key_package_ref bytea, state text, generation integer, holder bytea,
    group_id bytea
) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
    RETURN seq > 0
        AND octet_length(key_package_ref) IN (32, 48, 64)
        AND state IN ('spent', 'burned', 'revoked')
        AND generation >= 0
        AND (holder IS NULL OR octet_length(holder) = 16)
        AND (group_id IS NULL OR octet_length(group_id) BETWEEN 1 AND 255)
        AND (state = 'revoked' OR (generation > 0 AND num_nonnulls(holder, group_id) = 2));
END $$;

CREATE FUNCTION is_possible_event(
    seq bigint, generation integer, kind text, actor_user text, actor_client text, holder bytea,
    group_id bytea
) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
    RETURN seq > 0
        AND generation >= 0
        AND kind IN ('uploaded', 'reserved', 'spent', 'released', 'lapsed', 'burned', 'revoked',
                     'expired', 'last_resort_issued')
        AND (actor_user IS NULL) = (actor_client IS NULL)
        AND (holder IS NULL) = (group_id IS NULL)
        AND (holder IS NULL OR octet_length(holder) = 16);
END $$;

DO $$
DECLARE
    old record;
BEGIN
    -- Those of the log's partitions go with the log's.
    FOR old IN
        SELECT c.conrelid::regclass AS of, c.conname AS name
        FROM pg_constraint c
        WHERE c.contype = 'c' AND c.coninhcount = 0
          AND c.conrelid IN ('package'::regclass, 'tombstone'::regclass, 'event'::regclass)
    LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', old.of, old.name);
    END LOOP;
END $$;

ALTER TABLE package ADD CONSTRAINT possible CHECK (is_possible_package(
    seq, generation, behind, state, returned, holder, group_id, expires_at, revoked_at,
    signature_key_digest, credential_digest, key_package_ref, key_package)) NOT VALID;
ALTER TABLE tombstone ADD CONSTRAINT possible CHECK (is_possible_tombstone(
    seq, key_package_ref, state, generation, holder, group_id)) NOT VALID;
ALTER TABLE event ADD CONSTRAINT possible CHECK (is_possible_event(
    seq, generation, kind, actor_user, actor_client, holder, group_id)) NOT VALID;

-- Whoever writes to a table calls its function.
REVOKE ALL ON FUNCTION is_possible_package, is_possible_tombstone, is_possible_event FROM PUBLIC;
GRANT EXECUTE ON FUNCTION is_possible_package, is_possible_tombstone, is_possible_event
    TO keypool_service;
