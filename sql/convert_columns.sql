--
-- Plain columns of existing tables become encrypted ones, each value for its
-- own row's school, and plain ones again: nomp_crypt.encrypt_column and
-- decrypt_column. What hangs on the column is made again, or named.
--
SELECT nomp_crypt.create_tenant(id) IS NOT NULL AS created FROM unnest('{cv-a,cv-b,cv-gone,cv-halted,cv-closed}'::text[]) id;
CREATE ROLE regress_owner;
GRANT CREATE ON SCHEMA public TO regress_owner;
SELECT nomp_crypt.grant_tenant(id, 'regress_owner', '{encrypt,decrypt,search}') FROM unnest('{cv-a,cv-b,cv-gone,cv-halted}'::text[]) id;
SET ROLE regress_owner;
CREATE TABLE cv_class (id int PRIMARY KEY, school varchar(20));
INSERT INTO cv_class VALUES (1, 'cv-a'), (2, 'cv-b');
CREATE TABLE cv (
	id		int PRIMARY KEY,
	school	varchar(20),
	class	int REFERENCES cv_class (id),
	name	text NOT NULL DEFAULT '',
	born	date,
	ssn		varchar(20) CONSTRAINT cv_ssn UNIQUE,
	mail	text,
	points	numeric(6,2),
	seen	timestamptz,
	photo	bytea,
	notes	jsonb,
	tags	text[]
);
CREATE TABLE cv_truth AS SELECT * FROM cv;
INSERT INTO cv_truth SELECT i, 'cv-' || c, CASE c WHEN 'a' THEN 1 ELSE 2 END, 'Åsa ' || i, '2014-01-01'::date + i,
	'S-' || i, 'Asa.' || i || '@a', i / 3.0, '2026-01-01 12:00+01'::timestamptz + i * interval '1 hour',
	decode(repeat(to_hex(i % 256), i % 5000), 'escape'), jsonb_build_object('n', i), ARRAY['x', NULL, i::text]
FROM generate_series(1, 200) i, LATERAL (SELECT CASE WHEN i % 3 = 0 THEN 'b' ELSE 'a' END) s(c);
INSERT INTO cv_truth (id, school, class, name) VALUES (901, 'cv-a', 1, ''), (902, NULL, NULL, 'nobody''s');
INSERT INTO cv SELECT * FROM cv_truth;

-- rows of no known school are named by what the expression gives, never by the value
SELECT nomp_crypt.encrypt_column('cv', 'name', 'school');
SELECT nomp_crypt.encrypt_column('cv', 'name', '''cv-'' || id % 3');
DELETE FROM cv WHERE school IS NULL;
DELETE FROM cv_truth WHERE school IS NULL;
\set VERBOSITY terse
SELECT nomp_crypt.encrypt_column('cv', 'name', '''cv-closed'''); -- the right is missing
RESET ROLE;
UPDATE nomp_crypt.tenant SET state = 'suspended' WHERE id = 'cv-halted';
CALL nomp_crypt.erase_tenant('cv-gone', 'test');
SET ROLE regress_owner;
\set VERBOSITY default
\set SHOW_CONTEXT never
SELECT nomp_crypt.encrypt_column('cv', 'name', 'CASE WHEN id = 1 THEN ''cv-gone'' WHEN id = 2 THEN ''cv-halted'' ELSE school END');
SELECT format_type(atttypid, atttypmod) AS unchanged FROM pg_attribute WHERE attrelid = 'cv'::regclass AND attname = 'name';

-- one by one, by a column; by a look-up; by any expression
SELECT nomp_crypt.encrypt_column('cv', 'name', 'school');
SELECT nomp_crypt.encrypt_column('cv', 'born', '(SELECT c.school FROM cv_class c WHERE c.id = t.class)');
SELECT nomp_crypt.encrypt_column('cv', 'points', 'lower(upper(school))', enforce => false);
SELECT nomp_crypt.encrypt_column('cv', 'ssn', 'school', searchable => true, normalise => 'digits');
SELECT nomp_crypt.encrypt_column('cv', 'mail', 'school', searchable => true, normalise => 'nocase');
SELECT nomp_crypt.encrypt_column('cv', c, 'school') FROM unnest('{seen,photo,notes,tags}'::name[]) c;
\d cv
SELECT count(*) AS rows, count(*) FILTER (WHERE v IS NOT NULL AND nomp_crypt.tenant_of(v) IS DISTINCT FROM school) AS of_another_school
FROM cv, unnest(ARRAY[name, born, ssn, mail, points, seen, photo, notes, tags]) v;
CREATE FUNCTION cv_differs() RETURNS bigint LANGUAGE sql AS $$
	SELECT count(*) FROM cv_truth t FULL JOIN cv USING (id)
	WHERE (t.school, t.class, t.name, t.born, t.ssn, t.mail, t.points, t.seen, t.photo, t.notes, t.tags)
		IS DISTINCT FROM (cv.school, cv.class, cv.name::text, cv.born::date, cv.ssn::varchar, cv.mail::text, cv.points::numeric,
			cv.seen::timestamptz, cv.photo::bytea, cv.notes::jsonb, cv.tags::text[])
$$;
SELECT cv_differs() AS differing_rows;
SET nomp_crypt.tenant = 'cv-a';
SELECT id, name, born, ssn, mail, points FROM cv WHERE school = 'cv-a' AND ssn = 'S 100';
SELECT id FROM cv WHERE school = 'cv-a' AND mail = 'aSA.100@A';
INSERT INTO cv (id, school, name) VALUES (999, 'cv-b', 'x'); -- 23514: enforce_tenant is there
RESET nomp_crypt.tenant;

-- and back: the same, value by value
SELECT nomp_crypt.decrypt_column('cv', c) FROM unnest('{name,born,ssn,mail,points,seen,photo,notes,tags}'::name[]) c;
\d cv
SELECT count(*) AS differing_rows FROM cv_truth t FULL JOIN cv USING (id) WHERE t.* IS DISTINCT FROM cv.*;

-- what hangs on the column: kept, recreated, or named and refused
CREATE INDEX cv_lower ON cv (lower(name));
CREATE INDEX cv_named ON cv (id) WHERE name IS NOT NULL;
CREATE INDEX cv_pattern ON cv (name text_pattern_ops);
CREATE INDEX cv_name ON cv (name);
CREATE INDEX cv_hash ON cv USING hash (name);
ALTER TABLE cv ADD CONSTRAINT cv_short CHECK (length(name) < 100), ADD CONSTRAINT cv_there CHECK (name IS NOT NULL),
	ADD upper_name text GENERATED ALWAYS AS (upper(name)) STORED;
COMMENT ON CONSTRAINT cv_there ON cv IS 'it is there';
CREATE VIEW cv_view WITH (security_barrier = true) AS SELECT id, school, name AS called FROM cv WHERE name IS NOT NULL;
COMMENT ON VIEW cv_view IS 'a view';
COMMENT ON COLUMN cv_view.called IS 'a column';
GRANT SELECT ON cv_view TO regress_app WITH GRANT OPTION;
GRANT UPDATE (called) ON cv_view TO regress_app;
CREATE VIEW cv_outer AS SELECT count(*) AS n, count(called) AS named FROM cv_view;
CREATE VIEW cv_long AS SELECT length(name) FROM cv;
CREATE MATERIALIZED VIEW cv_kept AS SELECT name FROM cv;
CREATE RULE cv_rule AS ON DELETE TO cv WHERE OLD.name IS NULL DO INSTEAD NOTHING;
ALTER TABLE cv ENABLE ROW LEVEL SECURITY;
CREATE POLICY cv_policy ON cv AS RESTRICTIVE FOR SELECT TO regress_app, regress_owner USING (name IS NOT NULL);
CREATE FUNCTION cv_trigger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER cv_named BEFORE UPDATE OF name ON cv FOR EACH ROW WHEN (NEW.name IS NOT NULL) EXECUTE FUNCTION cv_trigger();
ALTER TABLE cv ENABLE ALWAYS TRIGGER cv_named;
CREATE TRIGGER cv_changed BEFORE UPDATE ON cv FOR EACH ROW WHEN (OLD.name <> NEW.name) EXECUTE FUNCTION cv_trigger();
CREATE FUNCTION cv_bound() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT count(name) FROM cv; END;
CREATE STATISTICS cv_stats ON school, name FROM cv;
CREATE STATISTICS cv_upper ON upper(name), school FROM cv;
SELECT kind, object, fate, reason FROM nomp_crypt._dependents('cv', 'name', true);
SELECT kind, object, fate FROM nomp_crypt._dependents('cv', 'name', false) WHERE kind IN ('index', 'unique constraint');
SELECT nomp_crypt.encrypt_column('cv', 'name', 'school', searchable => true);
DROP INDEX cv_lower, cv_pattern;
DROP MATERIALIZED VIEW cv_kept;
DROP FUNCTION cv_bound();
DROP STATISTICS cv_upper;
ALTER TABLE cv DROP upper_name;
SELECT nomp_crypt.encrypt_column('cv', 'name', 'school', searchable => true); -- a check that does not work
ALTER TABLE cv DROP CONSTRAINT cv_short;
SELECT nomp_crypt.encrypt_column('cv', 'name', 'school', searchable => true); -- a view that does not work
SELECT nomp_crypt.encrypt_column('cv', 'name', 'school', searchable => true, drop_dependents => true);
\d cv
\d+ cv_view
\dp cv_view
SELECT obj_description('cv_view'::regclass) AS view, col_description('cv_view'::regclass, 3) AS called, obj_description(oid, 'pg_constraint') AS there
FROM pg_constraint WHERE conname = 'cv_there';
SELECT * FROM cv_outer;
SELECT nomp_crypt.decrypt_column('cv', 'name');
SELECT * FROM cv_outer;
\d cv
RESET ROLE;
CREATE PUBLICATION cv_some FOR TABLE cv (id, name) WHERE (id > 1);
ALTER PUBLICATION cv_some OWNER TO regress_owner;
GRANT CREATE ON DATABASE :"DBNAME" TO regress_owner;
SET ROLE regress_owner;
DROP INDEX cv_hash, cv_name;
DROP TRIGGER cv_changed ON cv;
SELECT nomp_crypt.encrypt_column('cv', 'name', 'school');
\dRp+ cv_some
SELECT nomp_crypt.decrypt_column('cv', 'name');
RESET ROLE;
DROP PUBLICATION cv_some;
REVOKE CREATE ON DATABASE :"DBNAME" FROM regress_owner;
SET ROLE regress_owner;

-- foreign keys: both sides alike, and made again by hand
CREATE TABLE cv_mark (id int, pupil varchar(20) CONSTRAINT cv_mark_pupil REFERENCES cv (ssn), school text);
INSERT INTO cv_mark VALUES (1, 'S-1', 'cv-a');
SELECT nomp_crypt.encrypt_column('cv', 'ssn', 'school', searchable => true);
SELECT nomp_crypt.encrypt_column('cv', 'ssn', 'school', searchable => true, drop_dependents => true);
SELECT nomp_crypt.encrypt_column('cv_mark', 'pupil', 'school', searchable => true);
ALTER TABLE cv_mark ADD FOREIGN KEY (pupil) REFERENCES cv (ssn);

-- partitions: all of them, by the parent
CREATE TABLE cv_parted (id int, school text, x text, y text) PARTITION BY LIST (school);
CREATE TABLE cv_parted_a (y text, x text, gone int, school text, id int);
ALTER TABLE cv_parted_a DROP gone;
ALTER TABLE cv_parted ATTACH PARTITION cv_parted_a FOR VALUES IN ('cv-a');
CREATE TABLE cv_parted_b PARTITION OF cv_parted FOR VALUES IN ('cv-b') PARTITION BY LIST (y);
CREATE TABLE cv_parted_b1 PARTITION OF cv_parted_b DEFAULT;
INSERT INTO cv_parted VALUES (1, 'cv-a', 'one', 'uno'), (2, 'cv-b', 'two', 'due');
CREATE INDEX cv_parted_x ON cv_parted (school, x);
SELECT nomp_crypt.encrypt_column('cv_parted_a', 'x', 'school');
SELECT nomp_crypt.encrypt_column('cv_parted', 'school', 'school');
SELECT nomp_crypt.encrypt_column('cv_parted', 'school', '''cv-a''');
SELECT nomp_crypt.encrypt_column('cv_parted', 'y', 'school');
SELECT nomp_crypt.encrypt_column('cv_parted', 'x', 'school', searchable => true);
SELECT tableoid::regclass, id, nomp_crypt.tenant_of(x), nomp_crypt.decrypt(x), y FROM cv_parted ORDER BY id;
\d cv_parted_a
SELECT nomp_crypt.decrypt_column('cv_parted', 'x');
SELECT * FROM cv_parted ORDER BY id;
DROP TABLE cv_parted;

-- other refusals
SELECT nomp_crypt.encrypt_column('cv', 'nothing', 'school');
SELECT nomp_crypt.encrypt_column('cv', 'ssn', 'school');
SELECT nomp_crypt.encrypt_column('cv', 'mail', 'school', normalise => 'nocase');
SELECT nomp_crypt.encrypt_column('cv', 'mail', 'school', searchable => true, normalise => 'loud');
SELECT nomp_crypt.encrypt_column('cv', 'points', 'school', searchable => true, normalise => 'digits');
SELECT nomp_crypt.encrypt_column('cv', 'mail', NULL);
SELECT nomp_crypt.encrypt_column('cv', 'mail', 'school; DROP TABLE cv');
SELECT nomp_crypt.encrypt_column('cv', 'mail', 'nowhere');
SELECT nomp_crypt.encrypt_column('cv', 'mail', 'mail');
SELECT nomp_crypt.encrypt_column('cv', 'mail', 'ssn');
SELECT nomp_crypt.encrypt_column('cv', 'mail', 'cv.school');
SELECT nomp_crypt.encrypt_column('cv', 'mail', 't::text');
SELECT nomp_crypt.encrypt_column('cv', 'mail', '(SELECT u.school FROM cv u WHERE u.id = t.id)');
SELECT nomp_crypt.encrypt_column('cv_view', 'called', 'school');
SELECT nomp_crypt.encrypt_column('pg_class', 'relname', '''cv-a''');
SELECT nomp_crypt.encrypt_column('nomp_crypt.tenant', 'display_name', 'id');
SELECT nomp_crypt.decrypt_column('cv', 'mail');
SELECT nomp_crypt.decrypt_column('cv', 'nothing');
CREATE TABLE cv_odd (id serial, n int GENERATED ALWAYS AS IDENTITY, point point, school text, matrix text[]);
INSERT INTO cv_odd (school, matrix) VALUES ('cv-a', '{{a,b},{c,d}}');
SELECT nomp_crypt.encrypt_column('cv_odd', 'id', 'school');
SELECT nomp_crypt.encrypt_column('cv_odd', 'n', 'school');
SELECT nomp_crypt.encrypt_column('cv_odd', 'point', 'school');
SELECT nomp_crypt.encrypt_column('cv_odd', 'matrix', 'school');
CREATE TABLE cv_row (whole cv_odd);
SELECT nomp_crypt.encrypt_column('cv_odd', 'school', '''cv-a''');
DROP TABLE cv_row, cv_odd;
SET ROLE regress_app;
SELECT nomp_crypt.encrypt_column('cv', 'mail', 'school');
SELECT nomp_crypt.decrypt_column('cv', 'ssn');
SELECT nomp_crypt._note_rewrite('cv');
CALL nomp_crypt.rewrite_table('cv');
SET ROLE regress_owner;

-- inside a tenant ALTER TABLE alone would put all rows under one school
SET nomp_crypt.tenant = 'cv-a';
ALTER TABLE cv ALTER mail TYPE encrypted(text);
ALTER TABLE cv ALTER mail TYPE encrypted(text) USING mail::encrypted(text);
ALTER TABLE cv ALTER points TYPE numeric(8,2);
CREATE TABLE cv_already (x encrypted(text));
ALTER TABLE cv_already ALTER x TYPE encrypted(text, searchable);
DROP TABLE cv_already;
SELECT nomp_crypt.encrypt_column('cv', 'mail', 'school');
SELECT nomp_crypt.tenant_of(mail), count(*) FROM cv GROUP BY 1 ORDER BY 1;
RESET nomp_crypt.tenant;

-- values of an erased school are lost, and become null only if that is said
ALTER TABLE cv DISABLE ROW LEVEL SECURITY;
CREATE TABLE cv_left AS SELECT id, school, mail FROM cv WHERE id < 4;
RESET ROLE;
SELECT nomp_crypt.revoke_tenant('cv-a', 'regress_owner', '{decrypt}');
SET ROLE regress_owner;
SELECT nomp_crypt.decrypt_column('cv_left', 'mail');
RESET ROLE;
SELECT nomp_crypt.grant_tenant('cv-a', 'regress_owner', '{decrypt}');
CALL nomp_crypt.erase_tenant('cv-b', 'test');
SET ROLE regress_owner;
SELECT nomp_crypt.decrypt_column('cv_left', 'mail');
SELECT nomp_crypt.decrypt_column('cv_left', 'mail', erased_to_null => true);
SELECT * FROM cv_left ORDER BY id;
RESET ROLE;
SELECT * FROM nomp_crypt.progress;

-- the inventory: since when nothing plain is on disk
SET ROLE regress_owner;
CREATE TABLE cv_inv (id int, school text, born_so encrypted(text), plain text, byhand text);
ALTER TABLE cv_inv ADD later encrypted(date, searchable);
INSERT INTO cv_inv (id, school, plain, byhand) VALUES (1, 'cv-a', 'p', 'h');
RESET ROLE;
CREATE FUNCTION cv_inventory() RETURNS TABLE (col name, type text, flags text, school name, since boolean, state text, expires boolean) LANGUAGE sql AS $$
	SELECT column_name, type, concat_ws(' ', CASE WHEN searchable THEN 'searchable' END), school, encrypted_on_disk_since IS NOT NULL, state,
		backups_with_plaintext_until = encrypted_on_disk_since + interval '35 days'
	FROM nomp_crypt.inventory WHERE table_name = 'public.cv_inv' ORDER BY 1
$$;
SELECT * FROM cv_inventory();
SET ROLE regress_owner;
SELECT nomp_crypt.encrypt_column('cv_inv', 'plain', 'school');
ALTER TABLE cv_inv ALTER byhand TYPE encrypted(text) USING nomp_crypt.encrypt(byhand, school);
RESET ROLE;
SELECT * FROM cv_inventory();
SET ROLE regress_owner;
BEGIN;
CALL nomp_crypt.rewrite_table('cv_inv'); -- 2D000
ROLLBACK;
CALL nomp_crypt.rewrite_table('cv_inv', tries => 0);
CALL nomp_crypt.rewrite_table('cv_inv', NULL);
CALL nomp_crypt.rewrite_table('cv_inv');
RESET ROLE;
SELECT * FROM cv_inventory();
SELECT * FROM nomp_crypt.column_tenants('cv_inv', 'plain');
SET ROLE regress_owner;
SELECT nomp_crypt.decrypt_column('cv_inv', 'plain');
SELECT nomp_crypt.encrypt_column('cv_inv', 'plain', 'school');
RESET ROLE;
SELECT * FROM cv_inventory() WHERE col = 'plain';
SELECT event, count(*) > 0 AS seen FROM nomp_crypt.column_history WHERE table_name = 'public.cv_inv' AND column_name = 'plain' GROUP BY 1 ORDER BY 1;
ALTER TABLE cv_inv RENAME plain TO renamed;
SELECT col, since, state FROM cv_inventory() WHERE col = 'renamed'; -- under that name nothing is known
ALTER TABLE cv_inv DROP born_so, ADD born_so text;
SELECT column_name, event FROM nomp_crypt.column_history WHERE table_name = 'public.cv_inv' AND column_name = 'born_so' ORDER BY at;
DROP TABLE cv_inv;
CREATE TABLE cv_inv (renamed encrypted(text)); -- another table of the name
SELECT col, since, state FROM cv_inventory();

DROP TABLE cv, cv_truth, cv_mark, cv_left, cv_inv, cv_class CASCADE;
DROP FUNCTION cv_inventory(), cv_differs(), cv_trigger();
UPDATE nomp_crypt.tenant SET state = 'active' WHERE id = 'cv-halted';
CALL nomp_crypt.erase_tenant('cv-halted', 'test');
CALL nomp_crypt.erase_tenant('cv-a', 'test');
CALL nomp_crypt.erase_tenant('cv-closed', 'test');
REVOKE CREATE ON SCHEMA public FROM regress_owner;
SELECT nomp_crypt.revoke_tenant(id, 'regress_owner') FROM unnest('{cv-a,cv-b,cv-gone,cv-halted}'::text[]) id;
DROP ROLE regress_owner;
