--
-- Two encryptions of one plaintext differ, so ciphertext cannot answer a
-- comparison, an order or a grouping. Each form is refused, inside a tenant
-- and outside: never a silently empty or wrong answer. What is inside can be
-- compared, with a cast.
--
\set VERBOSITY sqlstate
SET ROLE regress_app;
SET nomp_crypt.tenant = 'ribersborg';
INSERT INTO pupil VALUES (400, 'ribersborg', 'Anna', 'x'), (401, 'ribersborg', 'Bea', 'x'), (402, 'ribersborg', 'Anna', NULL);

-- operators, and what PostgreSQL makes operators of: all 0A000
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
UPDATE pupil SET notes = 'y' WHERE name = 'Anna';
DELETE FROM pupil WHERE name = 'Anna';
MERGE INTO pupil USING (SELECT 1) s ON name = 'Anna' WHEN MATCHED THEN DELETE;
INSERT INTO pupil VALUES (400, 'x', 'Anna') ON CONFLICT (id) DO UPDATE SET notes = 'z' WHERE pupil.name = 'Anna';

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

-- PL/pgSQL
DO $$ DECLARE a encrypted; BEGIN SELECT name INTO a FROM pupil WHERE id = 400; IF a = 'Anna' THEN RAISE NOTICE 'equal'; ELSE RAISE NOTICE 'wrong'; END IF; END $$;
DO $$ DECLARE a encrypted; BEGIN SELECT name INTO a FROM pupil WHERE id = 400; CASE a WHEN 'Anna' THEN RAISE NOTICE 'equal'; ELSE RAISE NOTICE 'wrong'; END CASE; END $$;

-- the same outside a tenant, where no literal would parse
RESET nomp_crypt.tenant;
SELECT id FROM pupil WHERE name = notes;
SELECT name FROM pupil ORDER BY name;
SELECT DISTINCT name FROM pupil;
SELECT id FROM pupil WHERE name = 'Anna';

-- stored expressions, which the planner never sees
RESET ROLE;
CREATE TABLE checked (a encrypted(text), b encrypted(text), CHECK (a <> b));
CREATE TABLE checked (a encrypted(text), b encrypted(text));
ALTER TABLE checked ADD CHECK (a = b);
CREATE INDEX ON checked ((a = b));
CREATE INDEX ON checked ((1)) WHERE a < b;
ALTER TABLE checked ADD c boolean GENERATED ALWAYS AS (a = b) STORED;
CREATE POLICY p ON checked USING (a = b);
CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER t BEFORE UPDATE ON checked FOR EACH ROW WHEN (OLD.a = NEW.a) EXECUTE FUNCTION f();
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
RESET ROLE;
DROP DOMAIN dom;

-- how the refusal reads
SET ROLE regress_app;
\set VERBOSITY default
SELECT id FROM pupil WHERE name = 'Anna';

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
SELECT a.id, b.id FROM pupil a JOIN pupil b ON a.name::text = b.name::text AND a.id < b.id;
DELETE FROM pupil WHERE id >= 400;
RESET ROLE;
