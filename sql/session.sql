--
-- Where the tenant may come from, how long it lasts, and what a session
-- inside one school sees of another's values.
--
\set VERBOSITY terse
SELECT nomp_crypt.grant_tenant('monbijou', 'regress_app', '{encrypt,decrypt}');
SET ROLE regress_app;

-- allowed: SET, SET LOCAL, set_config
SET nomp_crypt.tenant = 'ribersborg';
INSERT INTO pupil VALUES (100, 'ribersborg', 'Anna');
RESET nomp_crypt.tenant;
BEGIN;
SET LOCAL nomp_crypt.tenant = 'slottsstaden';
INSERT INTO pupil VALUES (101, 'slottsstaden', 'Björn');
COMMIT;
SELECT set_config('nomp_crypt.tenant', 'monbijou', false);
INSERT INTO pupil VALUES (102, 'monbijou', 'Cecilia');
DISCARD ALL;
SHOW nomp_crypt.tenant;
SELECT id, nomp_crypt.tenant_of(name) AS tenant, format('%s', name) LIKE 'nc1:%' AS ciphertext FROM pupil WHERE id >= 100 ORDER BY id;

-- refused: whatever outlives or precedes the session
RESET ROLE;
ALTER ROLE regress_app SET nomp_crypt.tenant = 'ribersborg';
ALTER DATABASE contrib_regression SET nomp_crypt.tenant = 'ribersborg';
ALTER SYSTEM SET nomp_crypt.tenant = 'ribersborg';
CREATE FUNCTION pinned() RETURNS int LANGUAGE sql SET nomp_crypt.tenant = 'ribersborg' AS 'SELECT 1';
-- an empty one is no tenant, and harmless
ALTER ROLE regress_app SET nomp_crypt.tenant = '';
ALTER ROLE regress_app RESET nomp_crypt.tenant;
SET nomp_crypt.no_such_setting = 1;

-- inside one school: its values are plaintext, another's an error
SET ROLE regress_app;
SET nomp_crypt.tenant = 'ribersborg';
SELECT name FROM pupil WHERE school = 'ribersborg' AND id >= 100;
SELECT name FROM pupil WHERE school = 'slottsstaden' AND id >= 100;
SET nomp_crypt.other_tenants = 'ciphertext';
SELECT school, name::text IS NOT NULL AS readable_by_cast,
	format('%s', name) LIKE 'nc1:%' AS shown_as_ciphertext
FROM pupil WHERE id >= 100 ORDER BY id;
RESET nomp_crypt.other_tenants;

-- outside: ciphertext; decrypt and casts still work for whoever has the right
RESET nomp_crypt.tenant;
SELECT school, format('%s', name) LIKE 'nc1:%' AS ciphertext, nomp_crypt.decrypt(name), name::varchar
FROM pupil WHERE id >= 100 ORDER BY id;

--
-- tenant_scope = transaction: a tenant from an earlier transaction counts as
-- unset, as behind a pooler where it may be another client's
--
SET nomp_crypt.tenant_scope = 'transaction';
SET nomp_crypt.tenant = 'ribersborg';
SELECT format('%s', name) LIKE 'nc1:%' AS ciphertext FROM pupil WHERE id = 100;
INSERT INTO pupil VALUES (103, 'ribersborg', 'nobody');
BEGIN;
SELECT format('%s', name) LIKE 'nc1:%' AS ciphertext FROM pupil WHERE id = 100;
SET LOCAL nomp_crypt.tenant = 'ribersborg';
SELECT name AS plaintext FROM pupil WHERE id = 100;
SAVEPOINT s;
SET LOCAL nomp_crypt.tenant = 'slottsstaden';
SELECT name AS plaintext FROM pupil WHERE id = 101;
ROLLBACK TO s;
SELECT name AS plaintext FROM pupil WHERE id = 100;
COMMIT;
-- a savepoint rolled back to a value of an earlier transaction
BEGIN;
SAVEPOINT s;
SET nomp_crypt.tenant = 'slottsstaden';
ROLLBACK TO s;
SHOW nomp_crypt.tenant;
SELECT format('%s', name) LIKE 'nc1:%' AS ciphertext FROM pupil WHERE id = 100;
COMMIT;
-- parallel workers take the leader's word, both ways
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
SET min_parallel_table_scan_size = 0;
SET max_parallel_workers_per_gather = 2;
RESET ROLE;
CREATE TABLE many (school text, name encrypted(text));
ALTER TABLE many SET (parallel_workers = 2);
GRANT ALL ON many TO regress_app;
SET ROLE regress_app;
BEGIN;
SET LOCAL nomp_crypt.tenant = 'ribersborg';
INSERT INTO many SELECT 'ribersborg', 'Elev ' || i FROM generate_series(1, 2000) i;
EXPLAIN (COSTS OFF) SELECT count(*) FROM many WHERE format('%s', name) LIKE 'Elev 1%';
SELECT count(*) AS "1111" FROM many WHERE format('%s', name) LIKE 'Elev 1%';
COMMIT;
SELECT count(*) AS "0, outside" FROM many WHERE format('%s', name) LIKE 'Elev 1%';
BEGIN;
SELECT count(*) AS "0, not set in this transaction" FROM many WHERE format('%s', name) LIKE 'Elev 1%';
COMMIT;
SELECT count(*) AS "2000, by cast" FROM many WHERE name::text LIKE 'Elev%';
RESET ALL;
RESET ROLE;
DROP TABLE many;
DELETE FROM pupil WHERE id >= 100;
SELECT nomp_crypt.revoke_tenant('monbijou', 'regress_app');
