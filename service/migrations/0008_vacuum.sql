-- Vacuum by what has changed, not by a fifth of a table that may hold millions of rows: with the
-- server's own settings 3.2 million dead packages of 16 million would wait for it.

-- What Reserve changes and Spend deletes.
ALTER TABLE package SET (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 10000,
    autovacuum_analyze_scale_factor = 0.05, autovacuum_vacuum_cost_limit = 2000);
ALTER TABLE draw SET (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 10000,
    autovacuum_analyze_scale_factor = 0.05, autovacuum_vacuum_cost_limit = 2000);

-- What is only added to until the sweeper deletes it, a span of time at once.
ALTER TABLE published SET (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_cost_limit = 2000);
ALTER TABLE tombstone SET (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_cost_limit = 2000);

-- Rows that are changed in place, one for each pool or grant: room for the next version on the
-- same page, so that no index has to learn of it.
ALTER TABLE pool SET (fillfactor = 90, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE pool_suite SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE last_resort_grant SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
