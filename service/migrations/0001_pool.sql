-- The pool as a state machine. Every primary key and every unique key starts with the bucket,
-- a hash of the user id, so that a sharded Postgres can distribute all tables by it, and no row
-- ever changes its bucket.

-- One row for each client that ever published.
CREATE TABLE pool (
    bucket         smallint    NOT NULL CHECK (bucket BETWEEN 0 AND 1023),
    user_id        text        NOT NULL COLLATE "C" CHECK (octet_length(user_id) BETWEEN 1 AND 255),
    client_id      text        NOT NULL COLLATE "C" CHECK (octet_length(client_id) BETWEEN 1 AND 255),
    -- Stands for the two ids in every other table. Random, made by the service.
    pool_id        bigint      NOT NULL,
    last_upload_at timestamptz NOT NULL,
    PRIMARY KEY (bucket, user_id, client_id),
    UNIQUE (bucket, pool_id)
);

-- Counters of one cipher suite of a pool, so that its status needs no look at its history.
-- Reserve, Spend and Release never write here: what is spent is what was uploaded and is neither
-- live nor in another counter.
CREATE TABLE pool_suite (
    bucket       smallint NOT NULL,
    pool_id      bigint   NOT NULL,
    cipher_suite integer  NOT NULL CHECK (cipher_suite BETWEEN 1 AND 65535),
    -- The highest seq given so far: it numbers the one-time and the last resort packages alike.
    last_seq     bigint   NOT NULL DEFAULT 0,
    -- One-time packages ever stored.
    uploaded     bigint   NOT NULL DEFAULT 0,
    expired      bigint   NOT NULL DEFAULT 0 CHECK (expired >= 0),
    revoked      bigint   NOT NULL DEFAULT 0 CHECK (revoked >= 0),
    -- Burned and not spent late.
    burned       bigint   NOT NULL DEFAULT 0 CHECK (burned >= 0),
    -- Spent ones whose tombstone is gone.
    forgotten    bigint   NOT NULL DEFAULT 0 CHECK (forgotten >= 0),
    CHECK (expired + revoked + burned + forgotten <= uploaded AND uploaded <= last_seq),
    PRIMARY KEY (bucket, pool_id, cipher_suite),
    FOREIGN KEY (bucket, pool_id) REFERENCES pool (bucket, pool_id)
);

-- The live one-time packages: at most the hard cap for each pool and cipher suite. What ends
-- leaves this table, so that scanning a pool never grows with its history. No index holds a
-- column that a Reserve changes: a Reserve is a heap-only update. What a Reserve looks at stands in
-- front of what it does not.
CREATE TABLE package (
    bucket               smallint    NOT NULL,
    pool_id              bigint      NOT NULL,
    cipher_suite         integer     NOT NULL,
    seq                  bigint      NOT NULL CHECK (seq > 0),
    not_after            timestamptz NOT NULL,
    -- How often it was reserved: names the reservation.
    generation           integer     NOT NULL DEFAULT 0 CHECK (generation >= 0),
    -- While it was never issued: at least so many that were not issued either come after it in the
    -- order of issue. By it a Reserve knows without counting that the pool is not near its end.
    behind               smallint    NOT NULL DEFAULT 0 CHECK (behind >= 0),
    state                text        NOT NULL DEFAULT 'available' COLLATE "C"
                                     CHECK (state IN ('available', 'reserved')),
    -- How the last reservation ended: the holder of a lapsed one may still spend it.
    returned             text        COLLATE "C" CHECK (returned IN ('released', 'lapsed')),
    holder               bytea       CHECK (octet_length(holder) = 16),
    group_id             bytea       CHECK (octet_length(group_id) BETWEEN 1 AND 255),
    expires_at           timestamptz,
    -- What the leaf supports beyond the defaults: kind * 65536 + type.
    capabilities         integer[]   NOT NULL,
    signature_key_digest bytea       NOT NULL CHECK (octet_length(signature_key_digest) = 16),
    credential_digest    bytea       NOT NULL CHECK (octet_length(credential_digest) = 16),
    key_package_ref      bytea       NOT NULL CHECK (octet_length(key_package_ref) IN (32, 48, 64)),
    key_package          bytea       NOT NULL CHECK (octet_length(key_package) BETWEEN 1 AND 20480),
    PRIMARY KEY (bucket, pool_id, cipher_suite, seq),
    FOREIGN KEY (bucket, pool_id, cipher_suite)
        REFERENCES pool_suite (bucket, pool_id, cipher_suite),
    CONSTRAINT state_has_its_columns CHECK (
        CASE
            WHEN state = 'reserved' OR returned IS NOT DISTINCT FROM 'lapsed'
                THEN generation > 0 AND num_nonnulls(holder, group_id, expires_at) = 3
                     AND (state = 'available') = (returned IS NOT NULL)
            ELSE num_nonnulls(holder, group_id, expires_at) = 0
                 AND (generation > 0) = (returned IS NOT NULL)
        END)
) WITH (fillfactor = 80);

-- Random bytes do not compress.
ALTER TABLE package ALTER COLUMN key_package SET STORAGE EXTERNAL;

CREATE INDEX package_not_after ON package (not_after);

-- The order of issue: a Reserve takes the first that was never issued, and looks at few others.
CREATE INDEX package_issue_order ON package (bucket, pool_id, cipher_suite, not_after, seq);

-- What became of packages that ended before their not_after. Terminal: only burned ever changes,
-- to spent.
CREATE TABLE tombstone (
    bucket          smallint    NOT NULL,
    pool_id         bigint      NOT NULL,
    cipher_suite    integer     NOT NULL,
    seq             bigint      NOT NULL CHECK (seq > 0),
    key_package_ref bytea       NOT NULL CHECK (octet_length(key_package_ref) IN (32, 48, 64)),
    state           text        NOT NULL CHECK (state IN ('spent', 'burned', 'revoked')),
    generation      integer     NOT NULL CHECK (generation >= 0),
    holder          bytea       CHECK (octet_length(holder) = 16),
    group_id        bytea       CHECK (octet_length(group_id) BETWEEN 1 AND 255),
    ended_at        timestamptz NOT NULL,
    PRIMARY KEY (bucket, pool_id, cipher_suite, seq),
    CONSTRAINT state_has_its_columns CHECK (
        state = 'revoked'
        OR (generation > 0 AND num_nonnulls(holder, group_id) = 2))
);

-- Every ref and init_key that a client has published, until not_after: neither ever comes back
-- (RFC 9420, section 16.8). Written at upload and not touched until it is forgotten.
CREATE TABLE published (
    bucket          smallint    NOT NULL,
    key_package_ref bytea       NOT NULL CHECK (octet_length(key_package_ref) IN (32, 48, 64)),
    pool_id         bigint      NOT NULL,
    cipher_suite    integer     NOT NULL,
    seq             bigint      NOT NULL CHECK (seq > 0),
    init_key_digest bytea       NOT NULL CHECK (octet_length(init_key_digest) = 16),
    not_after       timestamptz NOT NULL,
    PRIMARY KEY (bucket, key_package_ref),
    UNIQUE (bucket, pool_id, init_key_digest)
);

CREATE INDEX published_not_after ON published (not_after);

-- At most one last resort package for each pool and cipher suite. Reserve reads it and never
-- locks it.
CREATE TABLE last_resort (
    bucket               smallint    NOT NULL,
    pool_id              bigint      NOT NULL,
    cipher_suite         integer     NOT NULL,
    seq                  bigint      NOT NULL CHECK (seq > 0),
    key_package_ref      bytea       NOT NULL CHECK (octet_length(key_package_ref) IN (32, 48, 64)),
    key_package          bytea       NOT NULL CHECK (octet_length(key_package) BETWEEN 1 AND 20480),
    not_after            timestamptz NOT NULL,
    capabilities         integer[]   NOT NULL,
    signature_key_digest bytea       NOT NULL CHECK (octet_length(signature_key_digest) = 16),
    credential_digest    bytea       NOT NULL CHECK (octet_length(credential_digest) = 16),
    -- Grants of this package that are not in last_resort_grant any more.
    forgotten_grants     bigint      NOT NULL DEFAULT 0 CHECK (forgotten_grants >= 0),
    PRIMARY KEY (bucket, pool_id, cipher_suite),
    FOREIGN KEY (bucket, pool_id, cipher_suite)
        REFERENCES pool_suite (bucket, pool_id, cipher_suite)
);

ALTER TABLE last_resort ALTER COLUMN key_package SET STORAGE EXTERNAL;

CREATE INDEX last_resort_not_after ON last_resort (not_after);

-- The reservations of last resort packages: many of one package may live at once.
CREATE TABLE last_resort_grant (
    bucket          smallint    NOT NULL,
    pool_id         bigint      NOT NULL,
    cipher_suite    integer     NOT NULL,
    -- Random, made by the service.
    grant_id        bigint      NOT NULL CHECK (grant_id > 0),
    key_package_ref bytea       NOT NULL CHECK (octet_length(key_package_ref) IN (32, 48, 64)),
    state           text        NOT NULL DEFAULT 'reserved'
                                CHECK (state IN ('reserved', 'spent', 'released')),
    holder          bytea       NOT NULL CHECK (octet_length(holder) = 16),
    group_id        bytea       NOT NULL CHECK (octet_length(group_id) BETWEEN 1 AND 255),
    expires_at      timestamptz NOT NULL,
    PRIMARY KEY (bucket, pool_id, cipher_suite, grant_id)
);

CREATE INDEX last_resort_grant_expires_at ON last_resort_grant (expires_at);

-- A reservation as the caller's draw remembers it. Generation 0 is a last resort grant.
CREATE TYPE open_reservation AS (
    request_id   uuid,
    group_id     bytea,
    cipher_suite integer,
    seq          bigint,
    generation   integer,
    expires_at   timestamptz
);

-- Who drew from which pool, one row for each caller and pool. A Reserve locks the row or, the
-- first time, inserts it: that makes the Reserves of one caller on one pool take turns, whatever
-- replica they reach, so that a repeated request_id finds what the first one got.
CREATE TABLE draw (
    bucket      smallint           NOT NULL,
    pool_id     bigint             NOT NULL,
    caller      bytea              NOT NULL CHECK (octet_length(caller) = 16),
    drawn_at    timestamptz        NOT NULL,
    -- The caller's reservations that were not settled when this row was last written.
    open        open_reservation[] NOT NULL,
    -- The earliest expires_at among them: by it the sweeper finds what lapsed.
    next_expiry timestamptz        NOT NULL,
    PRIMARY KEY (bucket, pool_id, caller)
) WITH (fillfactor = 80);

CREATE INDEX draw_next_expiry ON draw (next_expiry);

-- What became of each package. Append-only; written in the transaction that did it.
CREATE TABLE event (
    bucket          smallint    NOT NULL,
    pool_id         bigint      NOT NULL,
    at              timestamptz NOT NULL,
    cipher_suite    integer     NOT NULL,
    -- The package's seq or, with generation 0 and a holder, the grant_id of a last resort grant.
    seq             bigint      NOT NULL CHECK (seq > 0),
    generation      integer     NOT NULL CHECK (generation >= 0),
    kind            text        NOT NULL CHECK (kind IN (
                        'uploaded', 'reserved', 'spent', 'released', 'lapsed', 'burned',
                        'revoked', 'expired', 'last_resort_issued')),
    key_package_ref bytea       NOT NULL,
    -- Who did it; null for the service itself.
    actor_user      text        COLLATE "C",
    actor_client    text        COLLATE "C",
    -- Whose reservation it is about, and for which group.
    holder          bytea       CHECK (octet_length(holder) = 16),
    group_id        bytea,
    CHECK ((actor_user IS NULL) = (actor_client IS NULL)),
    CHECK ((holder IS NULL) = (group_id IS NULL)),
    PRIMARY KEY (bucket, pool_id, at, cipher_suite, seq, generation, kind)
) PARTITION BY RANGE (at);

CREATE TABLE event_default PARTITION OF event DEFAULT;

-- What all replicas share: the key that makes reservation ids unguessable.
CREATE TABLE service_secret (
    name   text  PRIMARY KEY,
    secret bytea NOT NULL CHECK (octet_length(secret) = 32)
);

-- How far the sweeper has looked for lapsed reservations.
CREATE TABLE sweep_cursor (
    name  text        PRIMARY KEY,
    swept timestamptz NOT NULL
);
INSERT INTO sweep_cursor VALUES ('lapsed', '-infinity');
