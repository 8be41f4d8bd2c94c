-- What one would write by hand: one row a package, found by its owner; the same owners, as many
-- packages with the same bytes, no index on the state (shape W of the measurements that keypool's
-- own tables follow).
CREATE TABLE bench.live (
    owner           bigint      NOT NULL,
    seq             bigint      NOT NULL,
    key_package_ref bytea       NOT NULL,
    key_package     bytea       NOT NULL,
    not_after       timestamptz NOT NULL,
    state           text        NOT NULL DEFAULT 'available',
    holder          bigint,
    request_id      bigint,
    PRIMARY KEY (owner, seq)
) WITH (fillfactor = 80);
ALTER TABLE bench.live ALTER COLUMN key_package SET STORAGE EXTERNAL;

-- For the second reference: who drew from which owner, and the log.
CREATE TABLE bench.drawn (
    owner      bigint      NOT NULL,
    caller     bigint      NOT NULL,
    request_id bigint      NOT NULL,
    open       integer     NOT NULL,
    drawn_at   timestamptz NOT NULL,
    PRIMARY KEY (owner, caller)
) WITH (fillfactor = 80);
CREATE TABLE bench.log (
    owner           bigint      NOT NULL,
    at              timestamptz NOT NULL,
    seq             bigint      NOT NULL,
    kind            text        NOT NULL,
    key_package_ref bytea       NOT NULL,
    actor           text        NOT NULL,
    caller          bigint      NOT NULL,
    group_id        bytea       NOT NULL,
    PRIMARY KEY (owner, at, seq, kind)
);
