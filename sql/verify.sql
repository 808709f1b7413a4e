--
-- nomp_crypt.verify and verify_values: what opens is counted, what does not is
-- counted and named, and nothing of it ends the call.
--
CREATE EXTENSION pg_surgery;
SELECT nomp_crypt.create_tenant(id) IS NOT NULL AS created FROM unnest('{ve-a,ve-b,ve-gone,ve-halted}'::text[]) id;
SELECT nomp_crypt.grant_tenant(id, 'regress_app', '{encrypt,decrypt}') FROM unnest('{ve-a,ve-b,ve-gone,ve-halted}'::text[]) id;
CREATE TABLE checked (
	id		int,
	part	text DEFAULT 'x',
	school	text,
	name	encrypted(text),
	ssn		encrypted(text, searchable, nocase),
	tags	encrypted(text)[],
	PRIMARY KEY (id, part)
);
CREATE TRIGGER tenant BEFORE INSERT OR UPDATE ON checked
FOR EACH ROW EXECUTE FUNCTION nomp_crypt.enforce_tenant('school');
GRANT ALL ON checked TO regress_app;
SET ROLE regress_app;
SET nomp_crypt.tenant = 've-a';
INSERT INTO checked (id, school, name, ssn, tags) VALUES
	(1, 've-a', 'Anna', 'A-1', ARRAY['x', 'y', NULL]::encrypted(text)[]), (2, 've-a', 'Bo', NULL, NULL), (3, 've-a', NULL, 'A-3', NULL);
SET nomp_crypt.tenant = 've-b';
INSERT INTO checked (id, school, name, ssn) VALUES (4, 've-b', 'Cia', 'A-1');
RESET nomp_crypt.tenant;
-- all is well
CALL nomp_crypt.verify('checked');
SELECT * FROM nomp_crypt.verify_values('checked');
-- inside a tenant and inside a transaction: the function
BEGIN;
SET LOCAL nomp_crypt.tenant = 've-a';
SELECT tenant, sum("values") AS "values" FROM nomp_crypt.verify_values('checked') WHERE status = 'opens' GROUP BY 1 ORDER BY 1;
COMMIT;

-- what can be wrong: a damaged value, one of an unknown key, one that is no
-- value of the column's type, one of another school, a fingerprint that is not
-- its content's, a value whose pieces are gone
RESET ROLE;
ALTER TABLE checked DISABLE TRIGGER tenant;
SELECT overlay(encrypted_send(name) PLACING '\x0102030405060708' FROM 3) AS stranger,
	overlay(encrypted_send(name) PLACING '\x00' FROM 40) AS damaged FROM checked WHERE id = 1 \gset
INSERT INTO checked (id, school, name) VALUES
	(10, 've-a', ('nc1:' || encode(:'stranger', 'base64'))::encrypted),
	(11, 've-a', ('nc1:' || encode(:'damaged', 'base64'))::encrypted);
INSERT INTO checked (id, school, name) SELECT 12, 've-b', name FROM checked WHERE id = 1;
INSERT INTO checked (id, school, name) SELECT 13, NULL, name FROM checked WHERE id = 1;
INSERT INTO checked (id, school, tags) VALUES (14, 've-a', ARRAY[NULL, ('nc1:' || encode(:'damaged', 'base64'))::encrypted]);
ALTER TABLE checked ENABLE TRIGGER tenant;
SET ROLE regress_app;
SET nomp_crypt.tenant = 've-a';
INSERT INTO checked (id, school, name) VALUES (15, 've-a', repeat('x', 100000)), (16, 've-a', repeat('y', 100000));
SET nomp_crypt.tenant = 've-gone';
INSERT INTO checked (id, school, name) VALUES (17, 've-gone', 'Dan');
SET nomp_crypt.tenant = 've-halted';
INSERT INTO checked (id, school, name) VALUES (18, 've-halted', 'Eva'), (19, 've-halted', 'Fia');
RESET nomp_crypt.tenant;
RESET ROLE;
CALL nomp_crypt.erase_tenant('ve-gone', 'test');
UPDATE nomp_crypt.tenant SET state = 'suspended' WHERE id = 've-halted';
SELECT reltoastrelid::regclass AS toast FROM pg_class WHERE relname = 'checked' \gset
SELECT heap_force_kill(:'toast', ARRAY[(SELECT min(ctid) FROM :toast)]);
SET ROLE regress_app;
CALL nomp_crypt.verify('checked');
SELECT column_name, tenant, status, "values", "rows" FROM nomp_crypt.verify_values('checked') WHERE status <> 'opens';
-- re-encrypting the table does what opens, and leaves the rest
RESET ROLE;
SELECT nomp_crypt.rotate_tenant('ve-a') AS version;
SET ROLE regress_app;
CALL nomp_crypt.reencrypt('checked');
SELECT count(*) AS new FROM (SELECT name FROM checked WHERE id IN (1, 2, 12, 13, 16) OFFSET 0) c
WHERE (nomp_crypt.key_info(name)).version = 2;
RESET ROLE;

-- a column that says something else than its values
CREATE TABLE misdeclared (school char(10), name encrypted(text), ssn encrypted(text, searchable, nocase) PRIMARY KEY);
CREATE TRIGGER tenant BEFORE INSERT OR UPDATE ON misdeclared
FOR EACH ROW EXECUTE FUNCTION nomp_crypt.enforce_tenant('school');
GRANT ALL ON misdeclared TO regress_app;
SET ROLE regress_app;
SET nomp_crypt.tenant = 've-a';
INSERT INTO misdeclared VALUES ('ve-a', '5', 'X'), ('ve-a', '6', 'y');
RESET nomp_crypt.tenant;
CALL nomp_crypt.verify('misdeclared');
RESET ROLE;
CREATE TABLE declared (name encrypted(int), ssn encrypted(text, searchable));
UPDATE pg_attribute a SET atttypmod = d.atttypmod FROM pg_attribute d
WHERE a.attrelid = 'misdeclared'::regclass AND d.attrelid = 'declared'::regclass AND d.attname = a.attname AND a.attnum > 0;
SET ROLE regress_app;
CALL nomp_crypt.verify('misdeclared');
RESET ROLE;
DROP TABLE misdeclared, declared;

-- partitions are named as what they are; without a name, all tables
CREATE TABLE in_parts (school text, name encrypted(text)) PARTITION BY LIST (school);
CREATE TABLE in_parts_a PARTITION OF in_parts FOR VALUES IN ('ve-a');
CREATE TABLE in_parts_b PARTITION OF in_parts FOR VALUES IN ('ve-b');
GRANT ALL ON in_parts TO regress_app;
SET ROLE regress_app;
INSERT INTO in_parts VALUES ('ve-a', nomp_crypt.encrypt('Anna', 've-a')), ('ve-b', nomp_crypt.encrypt('Bo', 've-b'));
CALL nomp_crypt.verify('in_parts');
RESET ROLE;
CREATE MATERIALIZED VIEW copied AS SELECT * FROM in_parts;
SELECT nomp_crypt.grant_all_tenants(current_user, '{decrypt}');
SELECT table_name, count(*) > 0 AS found FROM nomp_crypt.verify_values()
WHERE table_name IN ('public.checked', 'public.in_parts_a', 'public.copied') GROUP BY 1 ORDER BY 1;
SELECT nomp_crypt.revoke_all_tenants(current_user);

-- refused
\set VERBOSITY terse
CALL nomp_crypt.verify('pg_stat_activity');
CALL nomp_crypt.verify('nowhere');
BEGIN;
CALL nomp_crypt.verify('checked');
ROLLBACK;
SET ROLE regress_other;
CALL nomp_crypt.verify('checked');
RESET ROLE;
GRANT SELECT ON checked TO regress_other;
SET ROLE regress_other;
CALL nomp_crypt.verify('checked');
SELECT * FROM nomp_crypt.verify_values('checked');
RESET ROLE;
ALTER TABLE checked ENABLE ROW LEVEL SECURITY;
SET ROLE regress_app;
CALL nomp_crypt.verify('checked');
RESET ROLE;
SELECT * FROM nomp_crypt.progress;
-- a table without encrypted columns has nothing to say
CREATE TABLE unconcerned (id int);
CALL nomp_crypt.verify('unconcerned');
DROP MATERIALIZED VIEW copied;
DROP TABLE checked, in_parts, unconcerned;
DROP EXTENSION pg_surgery;
SELECT nomp_crypt.revoke_tenant(id, 'regress_app') FROM unnest('{ve-a,ve-b,ve-gone,ve-halted}'::text[]) id;
UPDATE nomp_crypt.tenant SET state = 'active' WHERE id = 've-halted';
CALL nomp_crypt.erase_tenant('ve-halted', 'test');
CALL nomp_crypt.erase_tenant('ve-a', 'test');
CALL nomp_crypt.erase_tenant('ve-b', 'test');
