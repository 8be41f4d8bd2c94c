-- A database that was restored from a backup lacks what happened since. `keypool after-restore`
-- makes it safe and remembers here that it did. While one is unfinished no server starts.
CREATE TABLE restoration (
    began_at      timestamptz PRIMARY KEY,
    -- One-time packages whose lifetime begins before are refused: they may have been issued by
    -- the database that was lost.
    packages_from timestamptz NOT NULL,
    finished_at   timestamptz
);
GRANT SELECT ON restoration TO keypool_service;
