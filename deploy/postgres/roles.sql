-- The roles of keypool and its database, made once by a superuser, before the first migration:
--
--     KEYPOOL_OWNER_PASSWORD=... KEYPOOL_SERVICE_PASSWORD=... psql -f roles.sql 'postgres://...'
--
-- keypool_owner runs `keypool migrate` and owns the tables. keypool_serve runs `keypool serve`: it
-- has what the role keypool_service is granted by the migrations, and no more.
\set ON_ERROR_STOP on
\getenv owner_password KEYPOOL_OWNER_PASSWORD
\getenv service_password KEYPOOL_SERVICE_PASSWORD

CREATE ROLE keypool_owner LOGIN PASSWORD :'owner_password';
CREATE ROLE keypool_service NOLOGIN;
CREATE ROLE keypool_serve LOGIN PASSWORD :'service_password' IN ROLE keypool_service;
CREATE DATABASE keypool OWNER keypool_owner;
REVOKE ALL ON DATABASE keypool FROM PUBLIC;
GRANT CONNECT ON DATABASE keypool TO keypool_service;
