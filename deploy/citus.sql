-- Distributes the tables of keypool over the workers of a Citus cluster. For a database that
-- `keypool migrate` has just made and that holds nothing yet:
--
--     psql --single-transaction --set ON_ERROR_STOP=1 --file deploy/citus.sql "$URL"
--
-- Every table that holds pools is distributed by `bucket`, the hash of its user modulo 1024: the
-- clients of a user are on one shard, and all tables are split alike, so what a statement joins
-- lies together. Tried with Citus 13.0.5, a coordinator and two workers.
--
-- This is the schema's half. keypool's statements do not run on these tables yet: docs/sizing.md
-- says which of them do, and what the others need.

CREATE EXTENSION IF NOT EXISTS citus;

SELECT create_distributed_table('pool', 'bucket', shard_count => 64);
SELECT create_distributed_table('pool_suite', 'bucket', colocate_with => 'pool');
SELECT create_distributed_table('package', 'bucket', colocate_with => 'pool');
SELECT create_distributed_table('tombstone', 'bucket', colocate_with => 'pool');
SELECT create_distributed_table('published', 'bucket', colocate_with => 'pool');
SELECT create_distributed_table('last_resort', 'bucket', colocate_with => 'pool');
SELECT create_distributed_table('last_resort_grant', 'bucket', colocate_with => 'pool');
SELECT create_distributed_table('draw', 'bucket', colocate_with => 'pool');
-- With its partitions; those of later days are distributed as they are attached.
SELECT create_distributed_table('event', 'bucket', colocate_with => 'pool');

-- A few rows that every replica reads: on every worker.
SELECT create_reference_table('service_secret');
SELECT create_reference_table('sweep_cursor');
SELECT create_reference_table('restoration');
