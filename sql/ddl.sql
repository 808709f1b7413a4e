--
-- Definitions that would mislead are refused; what needs no key works
-- without one.
--
\set VERBOSITY sqlstate
CREATE TABLE t (a encrypted(text) UNIQUE);
CREATE TABLE t (a encrypted(text) PRIMARY KEY);
CREATE TABLE t (a encrypted(text), EXCLUDE USING btree (a WITH =));
CREATE TABLE t (id int, a encrypted(text), b encrypted(text));
CREATE UNIQUE INDEX ON t (a);
CREATE UNIQUE INDEX ON t (id, b);
ALTER TABLE t ADD UNIQUE (b);
ALTER TABLE t ADD FOREIGN KEY (a) REFERENCES t (a);
-- nor hidden in a domain, an array, a row; nor without saying what is inside
CREATE DOMAIN dom AS encrypted(text);
CREATE DOMAIN bare AS encrypted;
CREATE TYPE pair AS (a encrypted, b int);
CREATE TYPE pair AS (a encrypted(text), b int);
CREATE TABLE u (a dom UNIQUE);
CREATE TABLE u (a encrypted(text)[] UNIQUE);
CREATE TABLE u (a pair PRIMARY KEY);
CREATE TABLE u (a bare);
CREATE TABLE u (a encrypted[]);
CREATE TABLE u (a dom, b encrypted(text)[], c pair);
ALTER TABLE u ADD UNIQUE (c);
ALTER TABLE u ALTER a TYPE bare;
\d u
DROP TABLE u;
DROP DOMAIN dom, bare;
DROP TYPE pair;
CREATE UNIQUE INDEX ON t (id) INCLUDE (a);
\set VERBOSITY terse
CREATE TABLE u (a encrypted(text) UNIQUE);

-- ordinary indexes are of little use, and harmless
SELECT nomp_crypt.grant_tenant('ribersborg', current_user, '{encrypt,decrypt}');
SET nomp_crypt.tenant = 'ribersborg';
INSERT INTO t SELECT i, 'Elev ' || i, CASE WHEN i % 4 = 0 THEN NULL ELSE repeat('lång ', 300) END FROM generate_series(1, 200) i;
RESET nomp_crypt.tenant;
CREATE INDEX t_btree ON t (a);
CREATE INDEX t_hash ON t USING hash (a);
REINDEX TABLE t;
VACUUM FULL t;
CLUSTER t USING t_btree;
ANALYZE t;
SELECT attname, null_frac, avg_width > 50 AS width_known, n_distinct, most_common_vals IS NULL AND histogram_bounds IS NULL AS no_values
FROM pg_stats WHERE tablename = 't' AND attname IN ('a', 'b') ORDER BY attname;
SELECT count(*) AS "200", count(b) AS "150" FROM t;
\d t
-- partitions, inheritance, views, domains, temporary tables
CREATE TABLE part (school text, name encrypted(text)) PARTITION BY LIST (school);
CREATE TABLE part_r PARTITION OF part FOR VALUES IN ('ribersborg');
CREATE TABLE child (extra encrypted(text)) INHERITS (t);
ALTER TABLE part ADD note encrypted(text);
DROP TABLE child;
CREATE VIEW v AS SELECT id, a, coalesce(a, b) AS either FROM t;
SET nomp_crypt.tenant = 'ribersborg';
INSERT INTO part VALUES ('ribersborg', 'Anna', 'x');
SELECT * FROM part;
SELECT a, either FROM v WHERE id = 1;
CREATE TEMP TABLE tt (a encrypted(text));
INSERT INTO tt SELECT a FROM t WHERE id = 1;
SELECT a FROM tt;
-- rewriting a table with the same type keeps the stored values
RESET nomp_crypt.tenant;
SELECT md5(string_agg(format('%s', a), ',' ORDER BY id)) AS before FROM t \gset
DROP VIEW v;
ALTER TABLE t ALTER id TYPE bigint;
SELECT md5(string_agg(format('%s', a), ',' ORDER BY id)) = :'before' AS unchanged FROM t;
DROP TABLE t, tt, part;
-- the extension stays while schools live
\set VERBOSITY default
SET client_min_messages = warning;
DROP EXTENSION nomp_crypt CASCADE;
RESET client_min_messages;
SELECT nomp_crypt.revoke_tenant('ribersborg', current_user);
