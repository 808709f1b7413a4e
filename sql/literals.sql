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

-- functions in SQL are stored as text, and parsed for mistakes when they are
-- made, without a tenant too; their literals belong to the caller's school
RESET ROLE;
RESET nomp_crypt.tenant;
CREATE FUNCTION constant_name() RETURNS encrypted LANGUAGE sql STABLE AS $$ SELECT 'Anna'::encrypted $$;
CREATE FUNCTION add_by_sql(id bigint) RETURNS text LANGUAGE sql AS $$
	INSERT INTO pupil VALUES (id, 'x', 'Anna') RETURNING nomp_crypt.tenant_of(name) $$;
CREATE FUNCTION find_by_sql() RETURNS SETOF bigint LANGUAGE sql STABLE AS $$
	SELECT id FROM pupil WHERE id BETWEEN 310 AND 319 AND nomp_crypt.tenant_of(name) = nomp_crypt.current_tenant() AND name = 'Anna' $$;
CREATE FUNCTION mistaken() RETURNS encrypted LANGUAGE sql AS $$ SELECT 'Anna'::encrypted FROM nowhere $$;
CREATE FUNCTION not_sql() RETURNS encrypted LANGUAGE sql AS $$ SELECT 'Anna'::encrypted $$;
SET ROLE regress_app;
SET nomp_crypt.tenant = 'ribersborg';
SELECT nomp_crypt.tenant_of(constant_name()), add_by_sql(310);
SELECT find_by_sql();
SET nomp_crypt.tenant = 'slottsstaden';
SELECT nomp_crypt.tenant_of(constant_name()), add_by_sql(311);
SELECT find_by_sql();
RESET nomp_crypt.tenant;
SELECT constant_name();
RESET ROLE;
DELETE FROM pupil WHERE id >= 310;
DROP FUNCTION constant_name(), add_by_sql(bigint), find_by_sql(), not_sql();
-- unless their body is stored parsed
CREATE FUNCTION parsed_name() RETURNS encrypted RETURN 'Anna'::encrypted;
-- nothing runs while a function is made: not even what an event trigger would do
CREATE FUNCTION meddle() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO pupil VALUES (320, 'x', 'Anna'); END $$;
CREATE EVENT TRIGGER meddle ON ddl_command_end EXECUTE FUNCTION meddle();
SET nomp_crypt.tenant = 'ribersborg';
CREATE FUNCTION meddled_with() RETURNS int LANGUAGE sql AS 'SELECT 1';
DROP EVENT TRIGGER meddle;
DROP FUNCTION meddle();

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
