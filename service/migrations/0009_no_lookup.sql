-- Postgres looked up the counters of a package for each package of an upload, which was a sixth of what
-- an upload cost it. Nothing depends on the foreign key: the only statement that stores packages makes
-- or locks their counters, and the service has no right to delete any.
ALTER TABLE package DROP CONSTRAINT package_bucket_pool_id_cipher_suite_fkey;
