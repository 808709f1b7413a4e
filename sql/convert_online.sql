--
-- nomp_crypt.encrypt_column_online: a column is converted while others read and
-- write. Here its rules and refusals; t/convert_under_load.pl has the load.
--
SELECT nomp_crypt.create_tenant(id) IS NOT NULL AS created FROM unnest('{co-a,co-b}'::text[]) id;
CREATE ROLE regress_owner;
GRANT CREATE ON SCHEMA public TO regress_owner;
SELECT nomp_crypt.grant_tenant(id, 'regress_owner', '{encrypt,decrypt,search}') FROM unnest('{co-a,co-b}'::text[]) id;
SET ROLE regress_owner;
CREATE TABLE co_class (id int PRIMARY KEY, school text);
INSERT INTO co_class VALUES (1, 'co-a'), (2, 'co-b');
CREATE TABLE co (
	id		int PRIMARY KEY,
	school	varchar(20),
	class	int,
	name	text NOT NULL DEFAULT 'new',
	ssn		varchar(20) CONSTRAINT co_ssn UNIQUE DEFERRABLE,
	mail	text,
	born	date,
	notes	jsonb,
	kept	encrypted(text),
	CONSTRAINT co_there CHECK (name IS NOT NULL)
);
CREATE TRIGGER co_tenant BEFORE INSERT OR UPDATE ON co FOR EACH ROW EXECUTE FUNCTION nomp_crypt.enforce_tenant('school');
COMMENT ON COLUMN co.name IS 'a name';
COMMENT ON CONSTRAINT co_ssn ON co IS 'one each';
ALTER TABLE co ALTER name SET STATISTICS 7;
CREATE INDEX co_mail ON co (school COLLATE "C" text_pattern_ops, mail DESC NULLS LAST) INCLUDE (id, born) WITH (fillfactor = 70) WHERE mail IS NOT NULL;
CREATE UNIQUE INDEX co_one ON co (mail) NULLS NOT DISTINCT;
COMMENT ON INDEX co_mail IS 'by mail';
CREATE STATISTICS co_stats ON school, mail FROM co;
GRANT SELECT (name), UPDATE (name) ON co TO regress_app;
CREATE VIEW co_view AS SELECT id, name FROM co;
INSERT INTO co SELECT i, 'co-' || c, CASE c WHEN 'a' THEN 1 ELSE 2 END, 'Åsa ' || i, 'S-' || i, 'm' || i, '2014-01-01'::date + i,
	jsonb_build_object('n', i)
FROM generate_series(1, 300) i, LATERAL (SELECT CASE WHEN i % 3 = 0 THEN 'b' ELSE 'a' END) s(c);
UPDATE co SET mail = NULL WHERE id = 300;
CREATE TABLE co_truth AS SELECT id, school, name, ssn, mail, born, notes FROM co;

\set SHOW_CONTEXT never
CALL nomp_crypt.encrypt_column_online('co', 'name', 'school', batch_size => 50);
CALL nomp_crypt.encrypt_column_online('co', 'ssn', 'school', searchable => true, normalise => 'digits');
CALL nomp_crypt.encrypt_column_online('co', 'mail', 'lower(school)', searchable => true, enforce => false);
CALL nomp_crypt.encrypt_column_online('co', 'born', '(SELECT c.school FROM co_class c WHERE c.id = t.class)');
CALL nomp_crypt.encrypt_column_online('co', 'notes', 'school', rewrite => true);
\d+ co
SELECT c.relname, obj_description(c.oid, 'pg_class') FROM pg_class c WHERE c.relname = 'co_mail'
UNION SELECT conname, obj_description(oid, 'pg_constraint') FROM pg_constraint WHERE conname = 'co_ssn';
SELECT attname, attacl, attstattarget FROM pg_attribute WHERE attrelid = 'co'::regclass AND attname = 'name';
SELECT count(*) AS differing_rows FROM co_truth t FULL JOIN co USING (id)
WHERE (t.school, t.name, t.ssn, t.mail, t.born, t.notes)
	IS DISTINCT FROM (co.school, co.name::text, co.ssn::varchar, co.mail::text, co.born::date, co.notes::jsonb)
	OR nomp_crypt.tenant_of(co.name) <> t.school OR nomp_crypt.tenant_of(co.born) <> t.school;
SET nomp_crypt.tenant = 'co-a';
SELECT id, name, born FROM co WHERE ssn = 'S 100' AND mail = 'm100';
RESET nomp_crypt.tenant;
SELECT count(*) FROM co_view WHERE name IS NOT NULL;
-- nothing of the conversions is left
SELECT relname FROM pg_class WHERE relname LIKE 'nomp\_crypt\_%' AND relnamespace = 'public'::regnamespace;
SELECT proname FROM pg_proc WHERE proname LIKE 'nomp\_crypt\_%' AND pronamespace = 'public'::regnamespace;
SELECT tgname FROM pg_trigger WHERE tgrelid = 'co'::regclass AND NOT tgisinternal ORDER BY 1;
RESET ROLE;
SELECT table_name, column_name, state, role, after FROM nomp_crypt.conversion ORDER BY started_at;
SELECT column_name, state, encrypted_on_disk_since IS NOT NULL AS since FROM nomp_crypt.inventory WHERE table_name = 'public.co' ORDER BY 1;
SELECT * FROM nomp_crypt.progress;
SET ROLE regress_owner;

-- while it is under way: the copy follows whoever writes, and however
DROP INDEX co_one;
SELECT nomp_crypt.decrypt_column('co', c) FROM unnest('{name,mail}'::name[]) c;
CREATE FUNCTION co_check(OUT rows bigint, OUT missing bigint, OUT wrong bigint) LANGUAGE plpgsql AS $$
BEGIN
	SELECT count(*), count(*) FILTER (WHERE name_nomp_crypt IS NULL AND name IS NOT NULL),
		count(*) FILTER (WHERE name_nomp_crypt IS NOT NULL AND (nomp_crypt.decrypt(name_nomp_crypt) <> name OR name IS NULL
			OR nomp_crypt.tenant_of(name_nomp_crypt) <> school)) INTO rows, missing, wrong FROM co;
END
$$;
INSERT INTO co (id, school, name) VALUES (900, 'nowhere', 'nobody''s');
CALL nomp_crypt.encrypt_column_online('co', 'name', 'school'); -- 42704: nothing was begun
DELETE FROM co WHERE id = 900;
-- begun, and left there by a trigger that has the last word
CREATE FUNCTION co_last() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.name := NEW.name; RETURN NEW; END';
CREATE TRIGGER "~~" BEFORE UPDATE ON co FOR EACH ROW EXECUTE FUNCTION co_last();
CALL nomp_crypt.encrypt_column_online('co', 'name', 'school');
SELECT * FROM co_check();
DROP TRIGGER "~~" ON co;
GRANT ALL ON co TO regress_app;
SET ROLE regress_app; -- has no right in any of the schools
INSERT INTO co (id, school, name) VALUES (901, 'co-a', 'inserted'), (902, 'co-b', 'inserted');
UPDATE co SET name = 'updated' WHERE id IN (1, 901);
UPDATE co SET school = 'co-b', kept = NULL, born = NULL, ssn = NULL, notes = NULL WHERE id = 901;
UPDATE co SET class = 9 WHERE id = 2;
COPY co (id, school, name) FROM stdin;
903	co-a	copied
904	co-b	copied
\.
INSERT INTO co (id, school, name) VALUES (901, 'co-b', 'x') ON CONFLICT (id) DO UPDATE SET name = 'upserted';
RESET ROLE;
SET session_replication_role = replica;
INSERT INTO co (id, school, name) VALUES (905, 'co-a', 'replicated');
UPDATE co SET name = 'replicated' WHERE id = 3;
RESET session_replication_role;
SET nomp_crypt.tenant = 'co-b';
UPDATE co SET name = 'inside' WHERE id = 904;
RESET nomp_crypt.tenant;
SET ROLE regress_owner;
SELECT id, name, nomp_crypt.decrypt(name_nomp_crypt) AS copy, nomp_crypt.tenant_of(name_nomp_crypt) AS of
FROM co WHERE name_nomp_crypt IS NOT NULL ORDER BY id;
SELECT missing > 0 AS some_missing, wrong FROM co_check();
-- what has no known school meets no error, and holds the conversion up
SET ROLE regress_app;
INSERT INTO co (id, school, name) VALUES (906, 'nowhere', 'nobody''s');
SET ROLE regress_owner;
CALL nomp_crypt.encrypt_column_online('co', 'name', 'school');
SELECT missing, wrong FROM co_check();
DELETE FROM co WHERE id = 906;
-- another role, another conversion of the table, and what the owner changes
RESET ROLE;
CALL nomp_crypt.encrypt_column_online('co', 'name', 'school');
SET ROLE regress_app;
CALL nomp_crypt.encrypt_column_online('co', 'name', 'school');
CALL nomp_crypt.cancel_conversion('co', 'name');
SELECT nomp_crypt._conversion_begin('co', 'mail', 'x', 'text', 'x', 1, 'x', NULL, '{}', false, false);
SELECT nomp_crypt._conversion_state(uuid, 'done', NULL) FROM nomp_crypt._conversion_of('co', 'name');
SET ROLE regress_owner;
ALTER TABLE co DISABLE TRIGGER USER;
CALL nomp_crypt.encrypt_column_online('co', 'name', 'school');
ALTER TABLE co ENABLE TRIGGER USER;
CALL nomp_crypt.encrypt_column_online('co', 'name', 'school'); -- it must be ENABLE ALWAYS
-- everything as it was
CALL nomp_crypt.cancel_conversion('co', 'name');
CALL nomp_crypt.cancel_conversion('co', 'name');
SELECT tgname FROM pg_trigger WHERE tgrelid = 'co'::regclass AND NOT tgisinternal ORDER BY 1;
SELECT attname FROM pg_attribute WHERE attrelid = 'co'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum;
SELECT relname FROM pg_class WHERE relname LIKE 'nomp\_crypt\_%' AND relnamespace = 'public'::regnamespace;
-- from the start
CALL nomp_crypt.encrypt_column_online('co', 'name', 'school');
CREATE UNIQUE INDEX co_one ON co (mail);
SELECT id, nomp_crypt.decrypt(name), nomp_crypt.tenant_of(name) FROM co WHERE id IN (1, 2, 3) OR id > 900 ORDER BY id;
CALL nomp_crypt.cancel_conversion('co', 'name');

-- a unique index that the normalised values do not fit
SET nomp_crypt.tenant = 'co-a';
INSERT INTO co (id, school, mail) VALUES (907, 'co-a', 'M1');
RESET nomp_crypt.tenant;
\set VERBOSITY sqlstate
CALL nomp_crypt.encrypt_column_online('co', 'mail', 'school', searchable => true, normalise => 'nocase');
\set VERBOSITY default
SELECT count(*) AS invalid FROM pg_index WHERE indrelid = 'co'::regclass AND NOT indisvalid;
DELETE FROM co WHERE id = 907;
CALL nomp_crypt.encrypt_column_online('co', 'mail', 'school', searchable => true, normalise => 'nocase');
SELECT indexrelid::regclass, indisvalid FROM pg_index WHERE indrelid = 'co'::regclass ORDER BY 1;

-- partitions: all of them, those that come meanwhile too
CREATE TABLE co_parted (id int, school text, x text NOT NULL) PARTITION BY LIST (school);
CREATE TABLE co_parted_a (x text NOT NULL, gone int, school text, id int);
ALTER TABLE co_parted_a DROP gone;
ALTER TABLE co_parted ATTACH PARTITION co_parted_a FOR VALUES IN ('co-a');
CREATE TABLE co_parted_b PARTITION OF co_parted FOR VALUES IN ('co-b');
INSERT INTO co_parted SELECT i, CASE WHEN i % 2 = 0 THEN 'co-a' ELSE 'co-b' END, 'x' || i FROM generate_series(1, 100) i;
CREATE INDEX co_parted_x ON co_parted (x);
CALL nomp_crypt.encrypt_column_online('co_parted', 'x', 'school', searchable => true);
DROP INDEX co_parted_x;
CREATE TRIGGER "~~" BEFORE UPDATE ON co_parted_a FOR EACH ROW EXECUTE FUNCTION co_last();
CALL nomp_crypt.encrypt_column_online('co_parted', 'x', 'school');
DROP TRIGGER "~~" ON co_parted_a;
CREATE TABLE co_parted_null PARTITION OF co_parted DEFAULT;
INSERT INTO co_parted VALUES (101, 'co-a', 'x101'), (102, 'co-b', 'x102'), (103, 'nowhere', 'x103');
UPDATE co_parted SET school = 'co-a' WHERE id = 103;
CALL nomp_crypt.encrypt_column_online('co_parted', 'x', 'school');
ALTER TABLE co_parted RENAME TO co_renamed;
ALTER TABLE co_renamed RENAME TO co_parted;
SELECT tableoid::regclass, count(*), count(*) FILTER (WHERE nomp_crypt.decrypt(x) = 'x' || id AND nomp_crypt.tenant_of(x) = school) AS right_ones
FROM co_parted GROUP BY 1 ORDER BY 1;
DROP TABLE co_parted;

-- other refusals
BEGIN;
CALL nomp_crypt.encrypt_column_online('co', 'kept', 'school');
ROLLBACK;
CALL nomp_crypt.encrypt_column_online('co', 'kept', 'school');
CALL nomp_crypt.encrypt_column_online('co', 'nothing', 'school');
CALL nomp_crypt.encrypt_column_online('co', 'id', 'nothing');
CALL nomp_crypt.encrypt_column_online('co', 'id', 'school', batch_size => 0);
CALL nomp_crypt.encrypt_column_online('co', 'id', 'school', tries => 0);
CALL nomp_crypt.encrypt_column_online('co', 'id', 'school', max_lag => 'much');
CALL nomp_crypt.encrypt_column_online('co', NULL, 'school');
CALL nomp_crypt.encrypt_column_online('co', 'id', 'school');
CALL nomp_crypt.encrypt_column_online('co_view', 'id', '''co-a''');
CREATE TABLE co_parent (x text, school text);
CREATE TABLE co_child () INHERITS (co_parent);
CALL nomp_crypt.encrypt_column_online('co_parent', 'x', 'school');
CALL nomp_crypt.encrypt_column_online('co_child', 'x', 'school');
DROP TABLE co_parent CASCADE;
RESET ROLE;
SET client_min_messages = error;
CREATE TABLE co_published (x text, school text);
CREATE PUBLICATION co_all FOR TABLE co_published;
RESET client_min_messages;
CALL nomp_crypt.encrypt_column_online('co_published', 'x', 'school');
ALTER PUBLICATION co_all SET TABLE co_published (school);
CALL nomp_crypt.encrypt_column_online('co_published', 'x', 'school');
DROP PUBLICATION co_all;
DROP TABLE co_published;

SET client_min_messages = warning;
DROP TABLE co, co_truth, co_class CASCADE;
RESET client_min_messages;
DROP FUNCTION co_check();
DROP FUNCTION co_last();
CALL nomp_crypt.erase_tenant('co-a', 'test');
CALL nomp_crypt.erase_tenant('co-b', 'test');
REVOKE CREATE ON SCHEMA public FROM regress_owner;
SELECT nomp_crypt.revoke_tenant(id, 'regress_owner') FROM unnest('{co-a,co-b}'::text[]) id;
DROP ROLE regress_owner;
