--
-- nomp_crypt.move_rows: a pupil changes school, two schools merge, one splits.
-- Column, values and fingerprints change together, or nothing does.
--
SELECT nomp_crypt.create_tenant(id) IS NOT NULL AS created FROM unnest('{mo-a,mo-b,mo-c,mo-gone,mo-halted}'::text[]) id;
SELECT nomp_crypt.grant_tenant(id, 'regress_app', '{encrypt,decrypt,search}') FROM unnest('{mo-a,mo-b,mo-c,mo-gone,mo-halted}'::text[]) id;
CREATE TABLE mover (
	id		int PRIMARY KEY,
	school	varchar(20) NOT NULL,
	class	text,
	name	encrypted(text),
	ssn		encrypted(text, searchable, digits),
	mail	encrypted(text, searchable, nocase),
	tags	encrypted(text)[],
	UNIQUE (school, class, mail),
	UNIQUE (ssn)
);
CREATE TRIGGER zz_tenant BEFORE INSERT OR UPDATE ON mover
FOR EACH ROW EXECUTE FUNCTION nomp_crypt.enforce_tenant('school');
CREATE TRIGGER keep BEFORE UPDATE ON mover FOR EACH ROW EXECUTE FUNCTION nomp_crypt.keep_unchanged();
GRANT ALL ON mover TO regress_app;
SET ROLE regress_app;
CREATE FUNCTION fill() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	DELETE FROM mover;
	SET LOCAL nomp_crypt.tenant = 'mo-a';
	INSERT INTO mover VALUES
		(1, 'mo-a', '7A', 'Anna', '2014-1', 'anna@a', '{x}'), (2, 'mo-a', '7A', 'Bo', '2014-2', 'bo@a', NULL),
		(3, 'mo-a', '7B', 'Cia', '2014-3', 'cia@a', '{y,NULL}'), (4, 'mo-a', '7B', NULL, NULL, NULL, NULL);
	SET LOCAL nomp_crypt.tenant = 'mo-b';
	INSERT INTO mover VALUES (11, 'mo-b', '7A', 'Dan', '2014-11', 'dan@b', '{z}'), (12, 'mo-b', '7A', 'Eva', '2014-12', 'eva@b', NULL);
	SET LOCAL nomp_crypt.tenant = '';
END
$$;
SELECT fill();
CREATE FUNCTION pupils_of(tenant text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM set_config('nomp_crypt.tenant', tenant, true);
	RETURN (SELECT string_agg(concat_ws(' ', id, name::text, ssn::text, mail::text, tags::text), '; ' ORDER BY id)
		FROM mover m WHERE m.school = tenant);
END
$$;

-- a pupil changes school
CALL nomp_crypt.move_rows('mover', 'id = 1', 'mo-b');
SELECT pupils_of('mo-a'), pupils_of('mo-b');
SELECT id, school, nomp_crypt.tenant_of(name) AS name, nomp_crypt.tenant_of(ssn) AS ssn, nomp_crypt.tenant_of(tags[1]) AS tags FROM mover WHERE id = 1;
SET nomp_crypt.tenant = 'mo-b';
SELECT id FROM mover WHERE ssn = '20141';
SELECT id FROM mover WHERE mail = 'ANNA@A';
SET nomp_crypt.tenant = 'mo-a';
SELECT id FROM mover WHERE ssn = '20141';
-- it takes place in a transaction too, inside a tenant too, and can be undone
BEGIN;
CALL nomp_crypt.move_rows('mover', 'id = 2', 'mo-b');
SELECT current_setting('nomp_crypt.tenant') AS still_inside;
ROLLBACK;
SELECT pupils_of('mo-a');
RESET nomp_crypt.tenant;
-- again: nothing to do
CALL nomp_crypt.move_rows('mover', 'id = 1', 'mo-b');
-- by what is inside
CALL nomp_crypt.move_rows('mover', 'name::text LIKE ''An%''', 'mo-a');
SELECT school FROM mover WHERE id = 1;

-- two schools merge, in small batches
SELECT fill();
CALL nomp_crypt.move_rows('mover', 'school IN (''mo-a'', ''mo-b'')', 'mo-c', batch_size => 2);
SELECT pupils_of('mo-a') IS NULL AND pupils_of('mo-b') IS NULL AS empty, pupils_of('mo-c');
CALL nomp_crypt.verify('mover');

-- one splits
SELECT fill();
CALL nomp_crypt.move_rows('mover', 'school = ''mo-a'' AND class = ''7B''', 'mo-c', tenant_column => 'school');
SELECT pupils_of('mo-a'), pupils_of('mo-c');

-- collisions are named before anything is changed: with rows that are there ...
SELECT fill();
SET nomp_crypt.tenant = 'mo-b';
INSERT INTO mover (id, school, ssn) VALUES (13, 'mo-b', '2014 1');
INSERT INTO mover (id, school, class, mail) VALUES (14, 'mo-b', '7B', 'CIA@A');
RESET nomp_crypt.tenant;
CALL nomp_crypt.move_rows('mover', 'school = ''mo-a''', 'mo-b', batch_size => 1);
-- ... and among those that move
CALL nomp_crypt.move_rows('mover', 'true', 'mo-c', batch_size => 1);
SELECT school, count(*) FROM mover GROUP BY 1 ORDER BY 1;
-- what does not collide goes
CALL nomp_crypt.move_rows('mover', 'id IN (2, 4)', 'mo-b');

-- what refers to a row follows, if its foreign key says so
SELECT fill();
CREATE TABLE mark (id int PRIMARY KEY, pupil encrypted(text, searchable, digits) REFERENCES mover (ssn) ON UPDATE CASCADE, note encrypted(text));
CREATE TABLE strict_mark (id int PRIMARY KEY, pupil encrypted(text, searchable, digits) REFERENCES mover (ssn));
SET nomp_crypt.tenant = 'mo-a';
INSERT INTO mark VALUES (1, '2014-1', 'good');
INSERT INTO strict_mark VALUES (1, '2014-2');
RESET nomp_crypt.tenant;
CALL nomp_crypt.move_rows('mover', 'id = 1', 'mo-b');
SELECT nomp_crypt.tenant_of(pupil) AS pupil, nomp_crypt.tenant_of(note) AS note FROM mark;
\set VERBOSITY terse
CALL nomp_crypt.move_rows('mover', 'id = 2', 'mo-b');
DROP TABLE mark, strict_mark;

-- from one partition to another
RESET ROLE;
CREATE TABLE parted_mover (school text NOT NULL, id int, ssn encrypted(text, searchable), UNIQUE (school, ssn)) PARTITION BY LIST (school);
CREATE TABLE parted_mover_a (ssn encrypted(text, searchable), gone int, id int, school text NOT NULL);
ALTER TABLE parted_mover_a DROP COLUMN gone;
ALTER TABLE parted_mover ATTACH PARTITION parted_mover_a FOR VALUES IN ('mo-a');
CREATE TABLE parted_mover_b PARTITION OF parted_mover FOR VALUES IN ('mo-b');
CREATE TRIGGER tenant BEFORE INSERT OR UPDATE ON parted_mover
FOR EACH ROW EXECUTE FUNCTION nomp_crypt.enforce_tenant('school');
GRANT ALL ON parted_mover TO regress_app;
SET ROLE regress_app;
SET nomp_crypt.tenant = 'mo-a';
INSERT INTO parted_mover SELECT 'mo-a', i, 'X-' || i FROM generate_series(1, 5) i;
SET nomp_crypt.tenant = 'mo-b';
INSERT INTO parted_mover VALUES ('mo-b', 11, 'X-5');
RESET nomp_crypt.tenant;
CALL nomp_crypt.move_rows('parted_mover', 'id < 5', 'mo-b', batch_size => 3);
CALL nomp_crypt.move_rows('parted_mover', 'id = 5', 'mo-b');
SELECT tableoid::regclass, id, nomp_crypt.tenant_of(ssn) FROM parted_mover ORDER BY id;
CALL nomp_crypt.verify('parted_mover');
RESET ROLE;
DROP TABLE parted_mover;

-- the condition is one expression, whatever the search_path makes of its names
SET ROLE regress_app;
SELECT fill();
CREATE FUNCTION chosen(int) RETURNS boolean LANGUAGE sql AS 'SELECT $1 = 2';
CALL nomp_crypt.move_rows('mover', 'chosen(id) -- the second', 'mo-b');
CALL nomp_crypt.move_rows('mover', 'id = (SELECT max(m.id) FROM mover m WHERE m.school = ''mo-a'')', 'mo-b');
SELECT string_agg(id::text, ' ' ORDER BY id) AS moved FROM mover WHERE school = 'mo-b';
CALL nomp_crypt.move_rows('mover', 'true) OR (true', 'mo-b');
CALL nomp_crypt.move_rows('mover', 'true; DROP TABLE mover', 'mo-b');
CALL nomp_crypt.move_rows('mover', 'true ORDER BY id', 'mo-b');
CALL nomp_crypt.move_rows('mover', 'true FROM mover', 'mo-b');
CALL nomp_crypt.move_rows('mover', 'true, true', 'mo-b');
CALL nomp_crypt.move_rows('mover', 'true AS x', 'mo-b');
CALL nomp_crypt.move_rows('mover', '', 'mo-b');
CALL nomp_crypt.move_rows('mover', 'id', 'mo-b');
CALL nomp_crypt.move_rows('mover', 'count(*) > 1', 'mo-b');
CALL nomp_crypt.move_rows('mover', 'nothing = 1', 'mo-b');
CALL nomp_crypt.move_rows('mover', 'name = ''Anna''', 'mo-b'); -- NC006: it is looked at outside any tenant
CALL nomp_crypt.move_rows('mover', NULL, 'mo-b');
CALL nomp_crypt.move_rows('mover', 'true', 'mo-b', batch_size => 0);
-- other refusals
CALL nomp_crypt.move_rows('mover', 'true', 'nowhere');
CALL nomp_crypt.move_rows('mover', 'true', 'mo-b', 'nothing');
CALL nomp_crypt.move_rows('mover', 'true', 'mo-b', 'name');
CALL nomp_crypt.move_rows('mover', 'id = 11', 'mo-a', 'class'); -- the trigger knows better
RESET ROLE;
CREATE TABLE untied (school text, name encrypted(text));
CALL nomp_crypt.move_rows('untied', 'true', 'mo-b');
DROP TABLE untied;
SELECT nomp_crypt.revoke_tenant('mo-c', 'regress_app', '{encrypt}');
SELECT nomp_crypt.revoke_tenant('mo-b', 'regress_app', '{decrypt}');
CALL nomp_crypt.erase_tenant('mo-gone', 'test');
UPDATE nomp_crypt.tenant SET state = 'suspended' WHERE id = 'mo-halted';
SET ROLE regress_app;
CALL nomp_crypt.move_rows('mover', 'id = 1', 'mo-c');
CALL nomp_crypt.move_rows('mover', 'id = 11', 'mo-a');
CALL nomp_crypt.move_rows('mover', 'id = 1', 'mo-gone');
CALL nomp_crypt.move_rows('mover', 'id = 1', 'mo-halted');
BEGIN;
CALL nomp_crypt.move_rows('mover', 'school = ''mo-a''', 'mo-b', batch_size => 1); -- more than one batch: 2D000
ROLLBACK;
SELECT id, school FROM mover WHERE school <> nomp_crypt.tenant_of(name);
RESET ROLE;
REVOKE UPDATE ON mover FROM regress_app;
SET ROLE regress_app;
CALL nomp_crypt.move_rows('mover', 'id = 1', 'mo-b');
RESET ROLE;
GRANT UPDATE ON mover TO regress_app;
ALTER TABLE mover ENABLE ROW LEVEL SECURITY;
SET ROLE regress_app;
CALL nomp_crypt.move_rows('mover', 'id = 1', 'mo-b');
RESET ROLE;
SELECT * FROM nomp_crypt.progress;
DROP TABLE mover;
DROP FUNCTION fill(), pupils_of(text), chosen(int);
SELECT nomp_crypt.revoke_tenant(id, 'regress_app') FROM unnest('{mo-a,mo-b,mo-c,mo-gone,mo-halted}'::text[]) id;
UPDATE nomp_crypt.tenant SET state = 'active' WHERE id = 'mo-halted';
CALL nomp_crypt.erase_tenant('mo-halted', 'test');
CALL nomp_crypt.erase_tenant('mo-a', 'test');
CALL nomp_crypt.erase_tenant('mo-b', 'test');
CALL nomp_crypt.erase_tenant('mo-c', 'test');
