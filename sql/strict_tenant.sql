--
-- nomp_crypt.strict_tenant: one transaction, one school. Changing to another
-- is refused once the first was used, however it is changed.
--
\set VERBOSITY default
SET ROLE regress_app;
INSERT INTO pupil VALUES (300, 'ribersborg', nomp_crypt.encrypt('Anna', 'ribersborg')),
	(301, 'slottsstaden', nomp_crypt.encrypt('Bo', 'slottsstaden'));
SHOW nomp_crypt.strict_tenant;

-- off, which is the default, both work
BEGIN;
SET LOCAL nomp_crypt.tenant = 'ribersborg';
SELECT name FROM pupil WHERE id = 300;
SET LOCAL nomp_crypt.tenant = 'slottsstaden';
SELECT name FROM pupil WHERE id = 301;
COMMIT;

SET nomp_crypt.strict_tenant = on;
-- used by reading
BEGIN;
SET LOCAL nomp_crypt.tenant = 'ribersborg';
SELECT name FROM pupil WHERE id = 300;
SET LOCAL nomp_crypt.tenant = 'slottsstaden';
ROLLBACK;
\set VERBOSITY sqlstate
-- used by a literal
BEGIN;
SET LOCAL nomp_crypt.tenant = 'ribersborg';
INSERT INTO pupil VALUES (302, 'ribersborg', 'Cecilia');
SELECT set_config('nomp_crypt.tenant', 'slottsstaden', true);
ROLLBACK;
-- set for the session, not the transaction
BEGIN;
SET nomp_crypt.tenant = 'ribersborg';
SELECT name FROM pupil WHERE id = 300;
SET nomp_crypt.tenant = 'slottsstaden';
ROLLBACK;
SHOW nomp_crypt.tenant;
-- cleared in between
BEGIN;
SET LOCAL nomp_crypt.tenant = 'ribersborg';
SELECT name FROM pupil WHERE id = 300;
SET LOCAL nomp_crypt.tenant = '';
SELECT format('%s', name) LIKE 'nc1:%' AS outside FROM pupil WHERE id = 300;
SET LOCAL nomp_crypt.tenant = 'slottsstaden';
ROLLBACK;
BEGIN;
SET LOCAL nomp_crypt.tenant = 'ribersborg';
SELECT name FROM pupil WHERE id = 300;
RESET nomp_crypt.tenant;
SET LOCAL nomp_crypt.tenant = 'slottsstaden';
ROLLBACK;
-- turned on after the use
SET nomp_crypt.strict_tenant = off;
BEGIN;
SET LOCAL nomp_crypt.tenant = 'ribersborg';
SELECT name FROM pupil WHERE id = 300;
SET LOCAL nomp_crypt.strict_tenant = on;
SET LOCAL nomp_crypt.tenant = 'slottsstaden';
ROLLBACK;
SET nomp_crypt.strict_tenant = on;

-- allowed: set and not used; the same again; the next transaction
BEGIN;
SET LOCAL nomp_crypt.tenant = 'ribersborg';
SET LOCAL nomp_crypt.tenant = 'slottsstaden';
SELECT name FROM pupil WHERE id = 301;
SET LOCAL nomp_crypt.tenant = '';
SET LOCAL nomp_crypt.tenant = 'slottsstaden';
SELECT name FROM pupil WHERE id = 301;
COMMIT;
BEGIN;
SET LOCAL nomp_crypt.tenant = 'ribersborg';
SELECT name FROM pupil WHERE id = 300;
COMMIT;
SET nomp_crypt.tenant = 'slottsstaden';
SELECT name FROM pupil WHERE id = 301;
SET nomp_crypt.tenant = 'ribersborg';
SELECT name FROM pupil WHERE id = 300;
RESET nomp_crypt.tenant;

-- rolling back to a savepoint puts the old tenant back; it can be used if no
-- other was
BEGIN;
SET LOCAL nomp_crypt.tenant = 'ribersborg';
SAVEPOINT s;
SET LOCAL nomp_crypt.tenant = 'slottsstaden';
ROLLBACK TO s;
SHOW nomp_crypt.tenant;
SELECT name FROM pupil WHERE id = 300;
COMMIT;
BEGIN;
SET LOCAL nomp_crypt.tenant = 'ribersborg';
SELECT name FROM pupil WHERE id = 300;
SAVEPOINT s;
SET LOCAL nomp_crypt.tenant = 'slottsstaden';
ROLLBACK TO s;
SELECT name FROM pupil WHERE id = 300;
COMMIT;
\set VERBOSITY default
BEGIN;
SET LOCAL nomp_crypt.tenant = 'ribersborg';
SAVEPOINT s;
SET LOCAL nomp_crypt.tenant = 'slottsstaden';
SELECT name FROM pupil WHERE id = 301;
ROLLBACK TO s;
SHOW nomp_crypt.tenant;
SELECT name FROM pupil WHERE id = 300;
ROLLBACK;
\set VERBOSITY sqlstate

-- PREPARE TRANSACTION ends one too
BEGIN;
SET LOCAL nomp_crypt.tenant = 'ribersborg';
SELECT name FROM pupil WHERE id = 300;
PREPARE TRANSACTION 'strict';
ROLLBACK PREPARED 'strict';
BEGIN;
SET LOCAL nomp_crypt.tenant = 'slottsstaden';
SELECT name FROM pupil WHERE id = 301;
COMMIT;

-- a value that only parallel workers have read was used as well
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
SET min_parallel_table_scan_size = 0;
SET max_parallel_workers_per_gather = 2;
SET parallel_leader_participation = off;
CREATE TABLE many AS SELECT nomp_crypt.encrypt('Elev', 'ribersborg')::encrypted(text) AS name FROM generate_series(1, 500);
ALTER TABLE many SET (parallel_workers = 2);
EXPLAIN (COSTS OFF) SELECT count(*) FROM many WHERE format('%s', name) = 'Elev';
BEGIN;
SET LOCAL nomp_crypt.tenant = 'ribersborg';
SELECT count(*) AS "500" FROM many WHERE format('%s', name) = 'Elev';
SET LOCAL nomp_crypt.tenant = 'slottsstaden';
ROLLBACK;
BEGIN;
SET LOCAL nomp_crypt.tenant = 'ribersborg';
SELECT count(*) AS "500" FROM many WHERE format('%s', name) = 'Elev';
RESET nomp_crypt.tenant;
SET LOCAL nomp_crypt.tenant = 'slottsstaden';
ROLLBACK;
DROP TABLE many;

-- working for several schools in turn, each in its own transaction
\set VERBOSITY terse
RESET ALL;
SET nomp_crypt.strict_tenant = on;
DO $$
DECLARE
	wanted text;
	found text;
BEGIN
	FOREACH wanted IN ARRAY '{ribersborg,slottsstaden}'::text[] LOOP
		PERFORM set_config('nomp_crypt.tenant', wanted, true);
		SELECT p.name::text INTO found FROM pupil p WHERE p.school = wanted AND p.id >= 300;
		RAISE NOTICE '%: %', wanted, found;
		COMMIT;
	END LOOP;
END
$$;
RESET ALL;
DELETE FROM pupil WHERE id >= 300;
RESET ROLE;
