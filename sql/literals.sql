--
-- PostgreSQL turns a literal into a constant when it parses. A plan that
-- lives longer would carry one school's value into another; so plans with
-- literals are made again when the school changes.
--
\set VERBOSITY terse
SET ROLE regress_app;
SET nomp_crypt.tenant = 'ribersborg';
PREPARE with_literal AS INSERT INTO pupil VALUES (300, 'x', 'Anna') RETURNING nomp_crypt.tenant_of(name);
PREPARE with_parameter(text) AS INSERT INTO pupil VALUES (301, 'x', $1) RETURNING nomp_crypt.tenant_of(name);
EXECUTE with_literal;
EXECUTE with_parameter('Anna');
DELETE FROM pupil WHERE id >= 300;
SET nomp_crypt.tenant = 'slottsstaden';
EXECUTE with_literal;
EXECUTE with_parameter('Anna');
DELETE FROM pupil WHERE id >= 300;
RESET nomp_crypt.tenant;
EXECUTE with_literal;
EXECUTE with_parameter('Anna');
SET nomp_crypt.tenant = 'ribersborg';
DELETE FROM pupil WHERE id >= 300;
EXECUTE with_literal;
DEALLOCATE ALL;
DELETE FROM pupil WHERE id >= 300;

-- PL/pgSQL keeps plans for the session
RESET ROLE;
CREATE FUNCTION add_literal() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	whose text;
BEGIN
	INSERT INTO pupil VALUES (302, 'x', 'Anna') RETURNING nomp_crypt.tenant_of(name) INTO whose;
	DELETE FROM pupil WHERE id = 302;
	RETURN whose;
END $$;
CREATE FUNCTION add_variable() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	whose text;
	given text := 'Anna';
BEGIN
	INSERT INTO pupil VALUES (302, 'x', given) RETURNING nomp_crypt.tenant_of(name) INTO whose;
	DELETE FROM pupil WHERE id = 302;
	RETURN whose;
END $$;
SET ROLE regress_app;
SELECT add_literal(), add_variable();
SET nomp_crypt.tenant = 'slottsstaden';
SELECT add_variable();
SELECT add_literal();
-- so does a CALL in it
RESET ROLE;
CREATE PROCEDURE show_tenant(name encrypted) LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'of %', nomp_crypt.tenant_of(name); END $$;
SET ROLE regress_app;
DO $$
DECLARE
	school text;
	given text := 'Anna';
BEGIN
	FOREACH school IN ARRAY '{ribersborg,slottsstaden}'::text[] LOOP
		PERFORM set_config('nomp_crypt.tenant', school, false);
		CALL show_tenant(given);
	END LOOP;
	FOREACH school IN ARRAY '{ribersborg,slottsstaden}'::text[] LOOP
		PERFORM set_config('nomp_crypt.tenant', school, false);
		CALL show_tenant('Anna');
	END LOOP;
END $$;
SET nomp_crypt.tenant = 'ribersborg';
CALL show_tenant('Anna');

-- constants that hide values in an array or a row are refused
SELECT '{Anna}'::encrypted[];
SELECT '(1,ribersborg,Anna,)'::pupil;
SELECT ARRAY['Anna', 'Bea']::encrypted[] AS "element by element is fine", '{}'::encrypted[] AS empty, ROW(1, 'x', 'Anna', NULL)::pupil AS "a row too";

-- functions in SQL are parsed when they are made, and inlined into plans
RESET ROLE;
CREATE FUNCTION constant_name() RETURNS encrypted LANGUAGE sql STABLE AS $$ SELECT 'Anna'::encrypted $$;
SET check_function_bodies = off;
CREATE FUNCTION constant_name() RETURNS encrypted LANGUAGE sql STABLE AS $$ SELECT 'Anna'::encrypted $$;
SET ROLE regress_app;
SELECT constant_name() IS NOT NULL;
RESET ROLE;
DROP FUNCTION constant_name();
CREATE FUNCTION parsed_name() RETURNS encrypted RETURN 'Anna'::encrypted;
RESET check_function_bodies;

-- definitions keep no constants, with a tenant set or not
SET nomp_crypt.tenant = 'ribersborg';
SELECT nomp_crypt.grant_tenant('ribersborg', current_user, '{encrypt,decrypt}');
CREATE TABLE d (name encrypted(text) DEFAULT 'nobody');
CREATE TABLE d (name encrypted(text) CHECK (name <> 'nobody'));
CREATE VIEW v AS SELECT 'Anna'::encrypted AS name;
CREATE TABLE d (id int, name encrypted(text));
CREATE INDEX ON d (id) WHERE name = 'Anna';
ALTER TABLE d ALTER name SET DEFAULT 'nobody';
ALTER TABLE d ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON d USING (name = 'Anna');
CREATE RULE r AS ON INSERT TO d DO ALSO INSERT INTO pupil VALUES (303, 'x', 'Anna');
CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER t BEFORE UPDATE ON d FOR EACH ROW WHEN (NEW.name = 'Anna') EXECUTE FUNCTION f();
CREATE DOMAIN named AS encrypted(text) DEFAULT 'nobody';
CREATE MATERIALIZED VIEW m AS SELECT 'Anna'::encrypted(text) AS name;
CREATE TABLE ranged (name encrypted(text)) PARTITION BY LIST (name);
CREATE TABLE ranged_1 PARTITION OF ranged FOR VALUES IN ('Anna');
DROP TABLE ranged;
CREATE FUNCTION with_default(name encrypted DEFAULT 'nobody') RETURNS int LANGUAGE sql AS 'SELECT 1';
-- a default that is computed when the row is written is fine: it is the
-- writer's school's (the text itself stands readable in the catalog)
ALTER TABLE d ALTER name SET DEFAULT 'nobody'::text;
INSERT INTO d DEFAULT VALUES;
SELECT name, nomp_crypt.tenant_of(name) FROM d;

-- queries inside utility statements
CREATE TABLE c AS SELECT 1 AS id, 'Anna'::encrypted(text) AS name;
SELECT name FROM c;
EXPLAIN (COSTS OFF) INSERT INTO d VALUES (1, 'Anna');
BEGIN;
DECLARE cur CURSOR FOR SELECT 'Anna'::encrypted AS name;
FETCH cur;
ROLLBACK;
-- one literal, many rows, several in one statement
INSERT INTO d VALUES (1, 'Anna'), (2, 'Bea'), (3, NULL) RETURNING id, name;
RESET nomp_crypt.tenant;
DROP TABLE c, d;
DROP FUNCTION f(), add_literal(), add_variable();
DROP PROCEDURE show_tenant;
SELECT nomp_crypt.revoke_tenant('ribersborg', current_user);
