--
-- nomp_crypt.enforce_tenant: a row's encrypted values are of the school that
-- its column says. Needs no key and no right.
--
\set VERBOSITY default
CREATE DOMAIN secret_name AS encrypted(text) CHECK (true);
CREATE TYPE contact AS (label text, phone encrypted(text));
CREATE TABLE enforced (
	id		int PRIMARY KEY,
	school	text,
	name	encrypted(text),
	alias	secret_name,
	others	encrypted(text)[],
	contact	contact
);
CREATE TRIGGER zz_tenant BEFORE INSERT OR UPDATE ON enforced
FOR EACH ROW EXECUTE FUNCTION nomp_crypt.enforce_tenant('school');
GRANT ALL ON enforced TO regress_app;
SET ROLE regress_app;
SET nomp_crypt.tenant = 'ribersborg';
INSERT INTO enforced VALUES (1, 'ribersborg', 'Anna', 'Ann', ARRAY['Bo', NULL]::encrypted(text)[], ROW('home', '040-1'));
INSERT INTO enforced VALUES (2, 'slottsstaden', 'Anna');
INSERT INTO enforced VALUES (2, NULL, 'Anna');
-- without values, a row belongs to anybody
INSERT INTO enforced VALUES (2, NULL), (3, 'slottsstaden');
\set VERBOSITY terse
-- the same in a domain, an array, a composite
INSERT INTO enforced (id, school, alias) VALUES (4, 'slottsstaden', 'Ann');
INSERT INTO enforced (id, school, others) VALUES (4, 'slottsstaden', ARRAY[NULL, 'Bo']::encrypted(text)[]);
INSERT INTO enforced (id, school, contact) VALUES (4, 'slottsstaden', ROW('home', '040-1'));
INSERT INTO enforced (id, school, contact) VALUES (4, 'slottsstaden', ROW('home', NULL));
-- UPDATE: of the value, and of the school
UPDATE enforced SET name = 'Cecilia' WHERE id = 3;
UPDATE enforced SET school = 'slottsstaden' WHERE id = 1;
UPDATE enforced SET school = NULL WHERE id = 1;
UPDATE enforced SET name = 'Annika' WHERE id = 1;
INSERT INTO enforced SELECT 5, 'slottsstaden', name FROM enforced WHERE id = 1;
-- a large value, whose header alone is fetched
INSERT INTO enforced VALUES (6, 'ribersborg', repeat('x', 100000));
INSERT INTO enforced SELECT 7, 'slottsstaden', name FROM enforced WHERE id = 6;
-- COPY
COPY enforced (id, school, name) FROM stdin;
8	slottsstaden	Dan
\.
COPY enforced (id, school, name) FROM stdin;
8	ribersborg	Dan
\.
-- MERGE and ON CONFLICT
MERGE INTO enforced e USING (VALUES (9)) v(id) ON e.id = v.id
WHEN NOT MATCHED THEN INSERT (id, school, name) VALUES (v.id, 'slottsstaden', 'Eva');
INSERT INTO enforced VALUES (8, 'ribersborg', 'Eva') ON CONFLICT (id) DO UPDATE SET school = 'slottsstaden';
INSERT INTO enforced VALUES (8, 'ribersborg', 'Eva') ON CONFLICT (id) DO UPDATE SET name = excluded.name;
SELECT id, school, name, alias, others, contact FROM enforced WHERE name IS NULL OR length(name::text) < 100 ORDER BY id;

-- outside a tenant, and without any right
RESET nomp_crypt.tenant;
UPDATE enforced SET name = nomp_crypt.encrypt('Anna', 'slottsstaden') WHERE id = 1;
RESET ROLE;
GRANT ALL ON enforced TO regress_other;
SET ROLE regress_other;
UPDATE enforced SET school = 'slottsstaden' WHERE id = 1;
UPDATE enforced SET id = 10 WHERE id = 1;
RESET ROLE;
-- a value whose key is not known here: nobody knows whose it is
SELECT 'nc1:' || encode(overlay(encrypted_send(name) PLACING '\x0102030405060708' FROM 3), 'base64') AS stranger
FROM enforced WHERE id = 10 \gset
INSERT INTO enforced (id, school, name) VALUES (11, 'ribersborg', :'stranger');

-- partitions, whose columns may lie elsewhere
CREATE TABLE parted (id int, school text, name encrypted(text)) PARTITION BY LIST (school);
CREATE TABLE parted_1 (dropped int, name encrypted(text), school text, id int);
ALTER TABLE parted_1 DROP COLUMN dropped;
ALTER TABLE parted ATTACH PARTITION parted_1 FOR VALUES IN ('ribersborg');
CREATE TABLE parted_2 PARTITION OF parted DEFAULT;
CREATE TRIGGER tenant BEFORE INSERT OR UPDATE ON parted
FOR EACH ROW EXECUTE FUNCTION nomp_crypt.enforce_tenant('school');
GRANT ALL ON parted, parted_1, parted_2 TO regress_app;
SET ROLE regress_app;
SET nomp_crypt.tenant = 'ribersborg';
INSERT INTO parted VALUES (1, 'ribersborg', 'Anna');
INSERT INTO parted VALUES (2, 'slottsstaden', 'Anna');
INSERT INTO parted_1 (id, school, name) VALUES (3, 'ribersborg', 'Bo');
INSERT INTO parted_2 VALUES (4, 'monbijou', 'Bo');
UPDATE parted SET school = 'slottsstaden' WHERE id = 1;
INSERT INTO parted SELECT i, CASE i WHEN 7 THEN 'slottsstaden' ELSE 'ribersborg' END, 'Cia' FROM generate_series(5, 7) i;
COPY parted FROM stdin;
8	ribersborg	Dan
9	slottsstaden	Eva
\.
SELECT tableoid::regclass, * FROM parted ORDER BY id;
RESET nomp_crypt.tenant;
RESET ROLE;

-- the school's column may be of another type than text
CREATE TABLE padded (school char(20), name encrypted(text));
CREATE TRIGGER tenant BEFORE INSERT OR UPDATE ON padded
FOR EACH ROW EXECUTE FUNCTION nomp_crypt.enforce_tenant('school');
GRANT ALL ON padded TO regress_app;
SET ROLE regress_app;
INSERT INTO padded VALUES ('ribersborg', nomp_crypt.encrypt('Anna', 'ribersborg'));
INSERT INTO padded VALUES ('ribersborg', nomp_crypt.encrypt('Anna', 'slottsstaden'));
RESET ROLE;

-- wrong use
SELECT nomp_crypt.enforce_tenant();
CREATE FUNCTION misuse(definition text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	message text;
BEGIN
	CREATE TABLE misused (school text, secret encrypted(text));
	EXECUTE format('CREATE TRIGGER t %s', definition);
	INSERT INTO misused VALUES ('ribersborg');
	UPDATE misused SET school = 'monbijou';
	DELETE FROM misused;
	RAISE EXCEPTION 'not refused';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS message = MESSAGE_TEXT;
	RETURN SQLSTATE || ' ' || message;
END
$$;
SELECT misuse('BEFORE INSERT ON misused FOR EACH ROW EXECUTE FUNCTION nomp_crypt.enforce_tenant()') AS "no argument";
SELECT misuse('BEFORE INSERT ON misused FOR EACH ROW EXECUTE FUNCTION nomp_crypt.enforce_tenant(''school'', ''secret'')') AS "two arguments";
SELECT misuse('BEFORE INSERT ON misused FOR EACH ROW EXECUTE FUNCTION nomp_crypt.enforce_tenant(''skola'')') AS "no such column";
SELECT misuse('BEFORE INSERT ON misused FOR EACH ROW EXECUTE FUNCTION nomp_crypt.enforce_tenant(''tableoid'')') AS "system column";
SELECT misuse('BEFORE INSERT ON misused FOR EACH ROW EXECUTE FUNCTION nomp_crypt.enforce_tenant(''secret'')') AS "encrypted column";
SELECT misuse('BEFORE INSERT ON misused EXECUTE FUNCTION nomp_crypt.enforce_tenant(''school'')') AS "statement trigger";
SELECT misuse('AFTER INSERT ON misused FOR EACH ROW EXECUTE FUNCTION nomp_crypt.enforce_tenant(''school'')') AS "after trigger";
SELECT misuse('BEFORE DELETE ON misused FOR EACH ROW EXECUTE FUNCTION nomp_crypt.enforce_tenant(''school'')') AS "delete trigger";
DROP FUNCTION misuse(text);
DROP TABLE enforced, parted, padded;
DROP DOMAIN secret_name;
DROP TYPE contact;
