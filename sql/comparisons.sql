--
-- Two encryptions of one plaintext differ, so comparisons, order and grouping
-- are rewritten to what is inside, or refused: never a silently empty or
-- wrong answer. All forms, against a twin without encryption, are in
-- docs/comparisons.md and t/comparisons_mean_what_they_say.pl; here are the
-- places where a comparison hides.
--
\set VERBOSITY sqlstate
SET ROLE regress_app;
SET nomp_crypt.tenant = 'ribersborg';
INSERT INTO pupil VALUES (400, 'ribersborg', 'Anna', 'x'), (401, 'ribersborg', 'Bea', 'x'), (402, 'ribersborg', 'Anna', NULL);

-- operators, and what PostgreSQL makes operators of
SELECT id FROM pupil WHERE name = 'Anna';
SELECT id FROM pupil WHERE name <> 'Anna';
SELECT id FROM pupil WHERE name < 'B';
SELECT id FROM pupil WHERE name >= 'B';
SELECT id FROM pupil WHERE name BETWEEN 'A' AND 'B';
SELECT id FROM pupil WHERE name IN ('Anna', 'Bea');
SELECT id FROM pupil WHERE name NOT IN ('Anna', 'Bea');
SELECT id FROM pupil WHERE name IN (SELECT name FROM pupil);
SELECT id FROM pupil WHERE name = ANY (ARRAY['Anna', 'Bea']::encrypted[]);
SELECT id FROM pupil WHERE name = ANY ('{Anna,Bea}');
SELECT id FROM pupil WHERE name IS DISTINCT FROM 'Anna';
SELECT CASE name WHEN 'Anna' THEN 1 ELSE 2 END FROM pupil;
SELECT NULLIF(name, 'Anna') FROM pupil;
SELECT GREATEST(name, notes) FROM pupil;
SELECT LEAST(name, 'Anna') FROM pupil;
SELECT id FROM pupil WHERE (name, notes) = ('Anna', 'x');
SELECT id FROM pupil WHERE (id, name) < (401, 'Anna');
SELECT id FROM pupil WHERE ROW(name) IS DISTINCT FROM ROW(notes);
SELECT a.id FROM pupil a JOIN pupil b ON a.name = b.name;
SELECT a.id FROM pupil a JOIN pupil b USING (name);
SELECT id FROM pupil NATURAL JOIN (SELECT name FROM pupil) p;
SELECT id FROM pupil WHERE name = 'Anna'::text;
SELECT id FROM pupil WHERE name = notes;
SELECT id FROM pupil WHERE ARRAY[name] = ARRAY[notes];
SELECT id FROM pupil WHERE ARRAY[name] @> ARRAY[notes];
PREPARE p(text) AS SELECT id FROM pupil WHERE name = $1;
EXECUTE p('Anna');
DEALLOCATE p;
BEGIN;
UPDATE pupil SET notes = 'y' WHERE name = 'Anna' RETURNING id;
DELETE FROM pupil WHERE name = 'Bea' RETURNING id;
MERGE INTO pupil USING (SELECT 1) s ON name = 'Anna' WHEN MATCHED AND name < 'B' THEN UPDATE SET notes = 'm';
SELECT id, notes FROM pupil WHERE notes = 'm' ORDER BY id;
INSERT INTO pupil VALUES (400, 'x', 'Anna') ON CONFLICT (id) DO UPDATE SET notes = 'z' WHERE pupil.name = 'Anna' RETURNING id;
ROLLBACK;

-- order and grouping
SELECT name FROM pupil ORDER BY name;
SELECT id FROM pupil ORDER BY name DESC NULLS LAST LIMIT 1;
SELECT name FROM (SELECT name FROM pupil ORDER BY name) s;
SELECT DISTINCT name FROM pupil;
SELECT DISTINCT ON (name) id FROM pupil;
SELECT count(*) FROM pupil GROUP BY name;
SELECT count(*) FROM pupil GROUP BY GROUPING SETS ((name), ());
SELECT count(DISTINCT name) FROM pupil;
SELECT array_agg(id ORDER BY name) FROM pupil;
SELECT row_number() OVER (ORDER BY name) FROM pupil;
SELECT row_number() OVER (PARTITION BY name) FROM pupil;
SELECT name FROM pupil UNION SELECT name FROM pupil;
SELECT name FROM pupil INTERSECT SELECT name FROM pupil;
SELECT name FROM pupil EXCEPT SELECT name FROM pupil;
WITH RECURSIVE r AS (SELECT name FROM pupil UNION SELECT name FROM r) SELECT * FROM r;
SELECT max(name) FROM pupil;
SELECT min(ARRAY[name]) FROM pupil;

-- whole rows and arrays hide the values they compare
SELECT DISTINCT p FROM pupil p;
SELECT count(DISTINCT p) FROM pupil p;
SELECT p FROM pupil p ORDER BY p;
SELECT DISTINCT ROW(name, notes) FROM pupil;
SELECT a.id FROM pupil a JOIN pupil b ON a = b;
SELECT array_position(ARRAY[name], 'Anna') FROM pupil;
SELECT array_remove(ARRAY[name], 'Anna') FROM pupil;
SELECT array_replace(ARRAY[name], 'Anna', 'Bea') FROM pupil;
SELECT DISTINCT ARRAY[name] FROM pupil;
SELECT max(ARRAY[name]) OVER () FROM pupil;
SELECT r FROM (SELECT ROW(name) AS r FROM pupil) s ORDER BY r;
SELECT a.id FROM pupil a JOIN pupil b ON (a.*) IS NOT DISTINCT FROM (b.*);
WITH RECURSIVE r AS (SELECT id, name FROM pupil UNION ALL SELECT id + 1, name FROM r WHERE id < 0)
	SEARCH DEPTH FIRST BY name SET o SELECT id FROM r ORDER BY o;
WITH RECURSIVE r AS (SELECT id, name FROM pupil UNION ALL SELECT id + 1, name FROM r WHERE id < 0)
	CYCLE name SET is_cycle USING path SELECT id FROM r;
SELECT encrypted_eq(name, notes) FROM pupil;
SELECT encrypted_cmp(name, notes) FROM pupil;
SELECT encrypted_hash(name) FROM pupil;

-- and so do SQL functions, which the planner inlines: by text, parsed, one
-- value or a set, with a view in between
CREATE FUNCTION same(anyelement, anyelement) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT $1 = $2';
CREATE FUNCTION same_in_array(a encrypted, b encrypted) RETURNS boolean LANGUAGE sql AS 'SELECT ARRAY[a] = ARRAY[b]';
CREATE FUNCTION same_parsed(a encrypted, b encrypted) RETURNS boolean RETURN ARRAY[a] = ARRAY[b];
CREATE FUNCTION sorted() RETURNS SETOF pupil LANGUAGE sql STABLE AS 'SELECT * FROM pupil ORDER BY name';
CREATE VIEW sorted_view AS SELECT * FROM pupil ORDER BY name;
CREATE FUNCTION sorted_by_view() RETURNS SETOF pupil LANGUAGE sql STABLE AS 'SELECT * FROM sorted_view';
CREATE FUNCTION sorted_parsed() RETURNS SETOF pupil LANGUAGE sql STABLE BEGIN ATOMIC SELECT * FROM sorted_view; END;
SELECT same(id, id) AND same(name, notes) FROM pupil;
SELECT same(ROW(name), ROW(notes)) FROM pupil;
SELECT same_in_array(name, notes) FROM pupil;
SELECT same_parsed(name, notes) FROM pupil;
CREATE OPERATOR === (LEFTARG = encrypted, RIGHTARG = encrypted, FUNCTION = same_in_array);
SELECT name === notes FROM pupil;
DROP OPERATOR === (encrypted, encrypted);
SELECT id FROM sorted();
SELECT id FROM sorted_by_view();
SELECT id FROM sorted_parsed();
SELECT bool_and(same(id, id)) AS "elsewhere they work", bool_and(same(name::text, name::text)) AS "and on what is inside" FROM pupil;
DROP FUNCTION same, same_in_array, same_parsed, sorted, sorted_by_view, sorted_parsed;
DROP VIEW sorted_view;

-- queries within utility statements
COPY (SELECT name FROM pupil ORDER BY name) TO stdout;
COPY pupil FROM stdin WHERE name = 'Anna';
403	ribersborg	Anna	x
\.
CREATE TABLE copied AS SELECT DISTINCT name FROM pupil;
CREATE MATERIALIZED VIEW copied AS SELECT name FROM pupil ORDER BY name;
DROP MATERIALIZED VIEW copied;
EXPLAIN (COSTS OFF) SELECT name FROM pupil ORDER BY name;
DECLARE c CURSOR WITH HOLD FOR SELECT name FROM pupil ORDER BY name;
FETCH ALL FROM c;
CLOSE c;

-- PL/pgSQL
\set VERBOSITY terse
DO $$ DECLARE a encrypted; BEGIN SELECT name INTO a FROM pupil WHERE id = 400; IF a = 'Anna' THEN RAISE NOTICE 'equal'; ELSE RAISE NOTICE 'wrong'; END IF; END $$;
DO $$ DECLARE a encrypted(text); b pupil.name%TYPE; BEGIN SELECT name, notes INTO a, b FROM pupil WHERE id = 400; IF a < b AND a IS DISTINCT FROM b AND a IN ('Anna', 'Bea') THEN RAISE NOTICE 'right'; ELSE RAISE NOTICE 'wrong'; END IF; END $$;
DO $$ DECLARE a encrypted; BEGIN SELECT name INTO a FROM pupil WHERE id = 400; CASE a WHEN 'Anna' THEN RAISE NOTICE 'equal'; ELSE RAISE NOTICE 'wrong'; END CASE; END $$;

-- the same outside a tenant, where no literal would parse
\set VERBOSITY sqlstate
RESET nomp_crypt.tenant;
SELECT id FROM pupil WHERE name = notes;
SELECT name FROM pupil ORDER BY name;
SELECT DISTINCT name FROM pupil;
SELECT id FROM pupil WHERE name = 'Anna';

-- stored expressions, which the planner never sees
RESET ROLE;
CREATE TABLE checked (a encrypted(text), b encrypted(text), CHECK (a <> b));
CREATE TABLE checked (a encrypted(text), b encrypted(text), CHECK (ARRAY[a] <> ARRAY[b]));
CREATE TABLE checked (a encrypted(text), b encrypted(text), CHECK ((a, b) < (b, a)));
CREATE TABLE checked (a encrypted(text), b encrypted(text), CHECK (GREATEST(a, b) IS NOT NULL));
CREATE TABLE checked (a encrypted(text), b boolean GENERATED ALWAYS AS (ARRAY[a] = ARRAY[a]) STORED);
CREATE TABLE checked (a encrypted(text), b encrypted(text));
ALTER TABLE checked ADD CHECK (a = b);
CREATE INDEX ON checked ((a = b));
CREATE INDEX ON checked ((1)) WHERE a < b;
ALTER TABLE checked ADD c boolean GENERATED ALWAYS AS (a = b) STORED;
CREATE POLICY p ON checked USING (a = b);
CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER t BEFORE UPDATE ON checked FOR EACH ROW WHEN (OLD.a = NEW.a) EXECUTE FUNCTION f();
CREATE TRIGGER t BEFORE UPDATE ON checked FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION f();
-- whether the row as stored has changed can be asked
CREATE TRIGGER t BEFORE UPDATE ON checked FOR EACH ROW WHEN (OLD.* *<> NEW.*) EXECUTE FUNCTION f();
CREATE DOMAIN checked_domain AS encrypted(text) CHECK (VALUE = VALUE);
CREATE TYPE checked_range AS RANGE (subtype = encrypted);
DROP TABLE checked;
DROP FUNCTION f();
-- a view is refused when it is used
CREATE VIEW compared AS SELECT id FROM pupil WHERE name = notes;
GRANT ALL ON compared TO regress_app;
SET ROLE regress_app;
SET nomp_crypt.tenant = 'ribersborg';
SELECT * FROM compared;
RESET ROLE;
DROP VIEW compared;
CREATE DOMAIN dom AS encrypted(text);
SET ROLE regress_app;
SELECT id FROM pupil WHERE name::dom = notes::dom;
SELECT name::dom FROM pupil ORDER BY 1;
SELECT ROW(name::dom) = ROW(notes::dom) FROM pupil;
RESET ROLE;
DROP DOMAIN dom;

-- how the refusal reads
SET ROLE regress_app;
\set VERBOSITY default
SELECT count(*) FROM pupil GROUP BY name;

-- what works: the value inside, NULL tests, counting, choosing
SELECT id FROM pupil WHERE name::text = 'Anna' ORDER BY id;
SELECT name FROM pupil ORDER BY name::text, id;
SELECT name::text, count(*) FROM pupil GROUP BY 1 ORDER BY 1;
SELECT count(DISTINCT name::text) AS "2", max(name::text) AS "Bea" FROM pupil;
SELECT id FROM pupil WHERE name::text ILIKE '%nn%' ORDER BY id;
SELECT count(*) AS "3", count(notes) AS "2" FROM pupil;
SELECT id FROM pupil WHERE notes IS NULL;
SELECT id, coalesce(notes, 'none') FROM pupil ORDER BY id;
SELECT name FROM pupil WHERE id = 400 UNION ALL SELECT name FROM pupil WHERE id = 401;
SELECT array_agg(name ORDER BY id) FROM pupil;
SELECT name::text AS name FROM pupil ORDER BY name;
SELECT DISTINCT ON (name::text) name, id FROM pupil ORDER BY name::text, id;
SELECT name IS DISTINCT FROM NULL AS t, (name, notes) IS NULL AS f FROM pupil WHERE id = 400;
SELECT a.id FROM pupil a JOIN pupil b ON a *= b ORDER BY a.id;
SELECT a.id, b.id FROM pupil a JOIN pupil b ON a.name::text = b.name::text AND a.id < b.id;
DELETE FROM pupil WHERE id >= 400;
RESET ROLE;
