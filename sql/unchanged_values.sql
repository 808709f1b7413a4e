--
-- nomp_crypt.keep_unchanged, beside keep_unchanged.sql: it never changes what
-- an UPDATE means, never fails one that would pass without it, and says
-- nothing to a role that may not read. Each column's fate by itself.
--
\set VERBOSITY terse
CREATE DOMAIN nickname AS encrypted(text) CHECK (true);
CREATE DOMAIN nickname_again AS nickname;
CREATE TABLE kept (
	gone	int,
	id		int PRIMARY KEY,
	name	encrypted(text),
	alias	nickname_again,
	born	encrypted(date),
	price	encrypted(numeric),
	notes	encrypted(jsonb),
	ssn		encrypted(text, searchable),
	mail	encrypted(text, searchable, nocase),
	class	text,
	size	int GENERATED ALWAYS AS (length(class)) STORED,
	same	text GENERATED ALWAYS AS (class || '.') STORED
);
ALTER TABLE kept DROP COLUMN gone;
CREATE INDEX kept_ssn ON kept (ssn);
CREATE TRIGGER keep BEFORE UPDATE ON kept
FOR EACH ROW EXECUTE FUNCTION nomp_crypt.keep_unchanged();
CREATE ROLE regress_writer;
SELECT nomp_crypt.grant_tenant('ribersborg', 'regress_writer', '{encrypt}');
GRANT ALL ON kept TO regress_app, regress_writer;

-- which columns of row 1 a statement leaves as they are stored, and which not
CREATE FUNCTION effect(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	look CONSTANT text := 'SELECT jsonb_build_object(''name'', encrypted_send(name),
		''alias'', encrypted_send(alias::encrypted), ''born'', encrypted_send(born),
		''price'', encrypted_send(price), ''notes'', encrypted_send(notes),
		''ssn'', encrypted_send(ssn), ''mail'', encrypted_send(mail)) FROM kept WHERE id = 1';
	before jsonb;
	after jsonb;
BEGIN
	EXECUTE look INTO before;
	EXECUTE statement;
	EXECUTE look INTO after;
	RETURN (SELECT 'kept: ' || coalesce(string_agg(key, ' ' ORDER BY key) FILTER (WHERE value = before -> key), '') ||
		'; new: ' || coalesce(string_agg(key, ' ' ORDER BY key) FILTER (WHERE value <> before -> key), '')
		FROM jsonb_each(after));
END
$$;

SET ROLE regress_app;
SET nomp_crypt.tenant = 'ribersborg';
INSERT INTO kept VALUES (1, 'Anna', 'Ann', '2014-05-01', 1.50, '{"a": [1, 2]}', '20140501-1234', 'Anna@x.se', '5B');
-- as an ORM saves a row: everything, changed or not
SELECT effect($$UPDATE kept SET name = 'Anna', alias = 'Ann', born = '2014-05-01', price = 1.50,
	notes = '{"a": [1, 2]}', ssn = '20140501-1234', mail = 'Anna@x.se', class = '5C' WHERE id = 1$$) AS "all kept";
SELECT class, size, same FROM kept WHERE id = 1;
-- a value of another length, of the same length, and one that is equal but not the same
SELECT effect($$UPDATE kept SET name = 'Annika', alias = 'Anm', born = '2014-05-01', price = 1.5,
	notes = '{"a": [2, 1]}', ssn = '20140501-1235', mail = 'ANNA@x.se' WHERE id = 1$$) AS "born kept";
SELECT name, alias, born, price, notes, ssn, mail FROM kept WHERE id = 1;
-- the same json, written otherwise; the same date, too
SELECT effect($$UPDATE kept SET notes = '{  "a":[2,1]}', born = '20140501', mail = 'Anna@x.se' WHERE id = 1$$) AS "mail new";
SELECT notes, born, mail FROM kept WHERE id = 1;
-- columns that are not written; parameters; with ON CONFLICT and MERGE
SELECT effect($$UPDATE kept SET class = '6A' WHERE id = 1$$) AS "all kept";
PREPARE save(text, date) AS UPDATE kept SET name = $1, born = $2 WHERE id = 1;
SELECT effect($$EXECUTE save('Annika', '2014-05-01')$$) AS "all kept";
SELECT effect($$EXECUTE save('Anders', '2014-05-01')$$) AS "name new";
DEALLOCATE save;
SELECT effect($$INSERT INTO kept VALUES (1, 'Anders', 'Bo') ON CONFLICT (id) DO UPDATE SET name = excluded.name, alias = excluded.alias$$) AS "alias new";
SELECT effect($$MERGE INTO kept k USING (VALUES (1)) v(id) ON k.id = v.id
	WHEN MATCHED THEN UPDATE SET name = 'Anders', alias = 'Ann'$$) AS "alias new";
-- from NULL and to NULL, and an empty text
UPDATE kept SET name = NULL, alias = '' WHERE id = 1;
SELECT name IS NULL AS "null", alias::text = '' AS "empty" FROM kept WHERE id = 1;
SELECT effect($$UPDATE kept SET name = NULL, alias = '' WHERE id = 1$$) AS "alias kept";
SELECT effect($$UPDATE kept SET name = 'Anna', alias = NULL WHERE id = 1$$) AS "rest kept";
SELECT name, alias IS NULL AS "null" FROM kept WHERE id = 1;
UPDATE kept SET alias = 'Ann' WHERE id = 1;

-- a role that may write and not read learns nothing: new bytes, right or wrong
RESET ROLE;
SET ROLE regress_writer;
SELECT effect($$UPDATE kept SET name = 'Anna', ssn = '20140501-1235' WHERE id = 1$$) AS "name, ssn new";
SELECT effect($$UPDATE kept SET name = 'Beda', ssn = '20140501-1239' WHERE id = 1$$) AS "name, ssn new";
RESET ROLE;
SELECT nomp_crypt.grant_tenant('ribersborg', 'regress_writer', '{encrypt,decrypt}');
SET ROLE regress_writer;
SELECT effect($$UPDATE kept SET name = 'Beda', ssn = '20140501-1239' WHERE id = 1$$) AS "all kept";
RESET ROLE;
SELECT nomp_crypt.revoke_tenant('ribersborg', 'regress_writer');

-- another school's value is not kept, whatever is in it
SET ROLE regress_app;
SET nomp_crypt.tenant = 'slottsstaden';
SELECT effect($$UPDATE kept SET name = 'Beda', born = '2014-05-01', ssn = '20140501-1239' WHERE id = 1$$) AS "three new";
SELECT nomp_crypt.tenant_of(name) AS slottsstaden, nomp_crypt.tenant_of(price) AS ribersborg FROM kept;
SET nomp_crypt.tenant = 'ribersborg';
SELECT effect($$UPDATE kept SET name = 'Beda', born = '2014-05-01', ssn = '20140501-1239' WHERE id = 1$$) AS "three new";

-- outside a tenant what is given is stored
RESET nomp_crypt.tenant;
RESET ROLE;
SELECT nomp_crypt.grant_tenant('ribersborg', current_user::text, '{encrypt,decrypt}');
SELECT effect($$UPDATE kept SET name = nomp_crypt.encrypt('Beda', 'ribersborg') WHERE id = 1$$) AS "name new";
SELECT nomp_crypt.revoke_tenant('ribersborg', current_user::text);

-- a damaged value, and one whose key is not known, can be written over
CREATE FUNCTION changed(value encrypted, place int) RETURNS text LANGUAGE sql AS $$
SELECT 'nc1:' || translate(encode(set_byte(b, p, get_byte(b, p) # 1), 'base64'), E'\n', '')
FROM (SELECT encrypted_send(value) AS b) v, LATERAL (SELECT (place + length(b)) % length(b) AS p) l
$$;
SELECT changed(name, -1) AS tag, changed(born, -17) AS body, changed(price, 20) AS nonce,
	changed(notes, 3) AS key, changed(ssn, 40) AS fingerprint FROM kept \gset
UPDATE kept SET name = :'tag', born = :'body', price = :'nonce', notes = :'key', ssn = :'fingerprint';
SET ROLE regress_app;
SET nomp_crypt.tenant = 'ribersborg';
SELECT outcome('SELECT name::text FROM kept') AS "NC005", outcome('SELECT born::text FROM kept') AS "NC005",
	outcome('SELECT price::text FROM kept') AS "NC005", outcome('SELECT notes::text FROM kept') AS "NC003",
	outcome('SELECT ssn::text FROM kept') AS "NC005";
SELECT effect($$UPDATE kept SET name = 'Beda', born = '2014-05-01', price = 1.5, notes = '{"a": [2, 1]}',
	ssn = '20140501-1239' WHERE id = 1$$) AS "five new";
SELECT name, born, price, notes, ssn FROM kept;

-- so can a damaged empty text, and a fingerprint that another column made
UPDATE kept SET alias = '', mail = 'Anna@x.se' WHERE id = 1;
RESET nomp_crypt.tenant;
RESET ROLE;
SELECT changed(alias::encrypted, -1) AS tag FROM kept \gset
UPDATE kept SET alias = :'tag', ssn = mail;
SELECT nomp_crypt.grant_tenant('ribersborg', 'regress_app', '{search}');
SET ROLE regress_app;
SET nomp_crypt.tenant = 'ribersborg';
SELECT count(*) AS "0" FROM kept WHERE ssn = 'Anna@x.se';
SELECT effect($$UPDATE kept SET alias = '', ssn = 'Anna@x.se' WHERE id = 1$$) AS "alias, ssn new";
SELECT alias::text = '' AS "empty", ssn FROM kept WHERE ssn = 'Anna@x.se';
UPDATE kept SET alias = 'Ann', ssn = '20140501-1239' WHERE id = 1;
-- what is copied is stored, damaged or not
RESET nomp_crypt.tenant;
RESET ROLE;
SELECT nomp_crypt.revoke_tenant('ribersborg', 'regress_app', '{search}');
SELECT changed(name, -1) AS damaged FROM kept \gset
INSERT INTO kept (id, name) VALUES (3, :'damaged');
SET ROLE regress_app;
SET nomp_crypt.tenant = 'ribersborg';
SELECT outcome('SELECT name::text FROM kept WHERE id = 3') AS "NC005";
SELECT effect($$UPDATE kept SET name = (SELECT name FROM kept WHERE id = 3) WHERE id = 1$$) AS "name new";
SELECT outcome('SELECT name::text FROM kept WHERE id = 1') AS "NC005";
UPDATE kept SET name = 'Beda' WHERE id = 1;
DELETE FROM kept WHERE id = 3;
-- an update of other columns does not ask whose tenant it is
SET nomp_crypt.tenant = 'no-such-school';
UPDATE kept SET class = '6A' WHERE id = 1;
SET nomp_crypt.tenant = 'ribersborg';

-- what it is for: with an index on the column, the update is HOT again
CREATE FUNCTION counts(statement text, OUT updated bigint, OUT hot bigint, OUT toast_rows bigint) LANGUAGE plpgsql AS $$
BEGIN
	SELECT pg_stat_get_xact_tuples_updated(oid), pg_stat_get_xact_tuples_hot_updated(oid),
		pg_stat_get_xact_tuples_inserted(reltoastrelid) + pg_stat_get_xact_tuples_deleted(reltoastrelid)
	INTO updated, hot, toast_rows FROM pg_class WHERE oid = 'kept'::regclass;
	EXECUTE statement;
	SELECT pg_stat_get_xact_tuples_updated(oid) - updated, pg_stat_get_xact_tuples_hot_updated(oid) - hot,
		pg_stat_get_xact_tuples_inserted(reltoastrelid) + pg_stat_get_xact_tuples_deleted(reltoastrelid) - toast_rows
	INTO updated, hot, toast_rows FROM pg_class WHERE oid = 'kept'::regclass;
END
$$;
RESET ROLE;
VACUUM kept;
SET ROLE regress_app;
SELECT updated AS "1", hot AS "1" FROM counts($$UPDATE kept SET name = 'Beda', ssn = '20140501-1239', class = '6B' WHERE id = 1$$);
SELECT updated AS "1", hot AS "0" FROM counts($$UPDATE kept SET name = 'Beda', ssn = '20140501-1230', class = '6B' WHERE id = 1$$);
-- large values stay where they are
UPDATE kept SET name = repeat('å', 10000) WHERE id = 1;
SELECT updated AS "1", toast_rows AS "0" FROM counts($$UPDATE kept SET name = repeat('å', 10000), class = '6C' WHERE id = 1$$);
SELECT toast_rows > 10 AS "another, as long" FROM counts($$UPDATE kept SET name = repeat('å', 9999) || 'öö' WHERE id = 1$$);
SELECT toast_rows > 10 AS "written again" FROM counts($$UPDATE kept SET name = repeat('å', 9999) || 'öä' WHERE id = 1$$);
SELECT toast_rows AS "0" FROM counts($$UPDATE kept SET name = repeat('å', 9999) || 'öä', ssn = 'x' WHERE id = 1$$);
SELECT name::text = repeat('å', 9999) || 'öä' AS same FROM kept;
-- without the trigger none of that holds
RESET ROLE;
ALTER TABLE kept DISABLE TRIGGER keep;
SET ROLE regress_app;
SELECT updated AS "1", hot AS "0", toast_rows > 10 AS again
FROM counts($$UPDATE kept SET name = repeat('å', 9999) || 'öä', ssn = 'x', class = '6D' WHERE id = 1$$);
RESET ROLE;
ALTER TABLE kept ENABLE TRIGGER keep;
-- and where nothing at all changed, PostgreSQL's own trigger can drop the update
CREATE TRIGGER keep_then_suppress BEFORE UPDATE ON kept
FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger();
SET ROLE regress_app;
SELECT updated AS "0" FROM counts($$UPDATE kept SET name = repeat('å', 9999) || 'öä', ssn = 'x', alias = 'Ann', class = '6D' WHERE id = 1$$);
SELECT updated AS "1" FROM counts($$UPDATE kept SET name = repeat('å', 9999) || 'öä', ssn = 'y', alias = 'Ann', class = '6D' WHERE id = 1$$);
SELECT name::text = repeat('å', 9999) || 'öä' AS same, ssn AS y FROM kept;
RESET ROLE;
DROP TRIGGER keep_then_suppress ON kept;

-- an erased school, and one that has come back under its name
SELECT nomp_crypt.create_tenant('kastanjen') IS NOT NULL AS created;
SELECT nomp_crypt.grant_tenant('kastanjen', 'regress_app', '{encrypt,decrypt}');
SET ROLE regress_app;
SET nomp_crypt.tenant = 'kastanjen';
UPDATE kept SET name = 'Anna', ssn = '1' WHERE id = 1;
RESET ROLE;
RESET nomp_crypt.tenant;
SELECT nomp_crypt.revoke_tenant('kastanjen', 'regress_app');
CALL nomp_crypt.erase_tenant('kastanjen', 'test');
SET ROLE regress_app;
SET nomp_crypt.tenant = 'ribersborg';
SELECT effect($$UPDATE kept SET name = 'Anna' WHERE id = 1$$) AS "name new";
SET nomp_crypt.tenant = 'kastanjen';
RESET ROLE;
SELECT nomp_crypt.create_tenant('kastanjen') IS NOT NULL AS created;
SELECT nomp_crypt.grant_tenant('kastanjen', 'regress_app', '{encrypt,decrypt}');
SET ROLE regress_app;
SELECT effect($$UPDATE kept SET ssn = '1' WHERE id = 1$$) AS "ssn new";
SELECT ssn AS "1" FROM kept;
RESET ROLE;
RESET nomp_crypt.tenant;
SELECT nomp_crypt.revoke_tenant('kastanjen', 'regress_app');
CALL nomp_crypt.erase_tenant('kastanjen', 'test');

-- with enforce_tenant: a value that was kept is still checked
CREATE TRIGGER zz_tenant BEFORE INSERT OR UPDATE ON kept
FOR EACH ROW EXECUTE FUNCTION nomp_crypt.enforce_tenant('class');
SET ROLE regress_app;
SET nomp_crypt.tenant = 'slottsstaden';
INSERT INTO kept (id, name, class) VALUES (2, 'Cia', 'slottsstaden');
UPDATE kept SET name = 'Cia', class = 'slottsstaden' WHERE id = 2;
UPDATE kept SET name = 'Cia', class = 'ribersborg' WHERE id = 2;
RESET nomp_crypt.tenant;
RESET ROLE;

-- partitions, whose columns may lie elsewhere; also for a row that moves
CREATE TABLE parted (id int, class text, name encrypted(text), big encrypted(text)) PARTITION BY LIST (class);
CREATE TABLE parted_1 (dropped int, big encrypted(text), name encrypted(text), class text, id int);
ALTER TABLE parted_1 DROP COLUMN dropped;
ALTER TABLE parted ATTACH PARTITION parted_1 FOR VALUES IN ('5A');
CREATE TABLE parted_2 PARTITION OF parted DEFAULT;
CREATE TRIGGER keep BEFORE UPDATE ON parted
FOR EACH ROW EXECUTE FUNCTION nomp_crypt.keep_unchanged();
GRANT ALL ON parted TO regress_app;
SET ROLE regress_app;
SET nomp_crypt.tenant = 'ribersborg';
INSERT INTO parted VALUES (1, '5A', 'Anna', repeat('x', 20000)), (2, '5B', 'Bo', 'y');
CREATE TEMP TABLE before AS SELECT id, encrypted_send(name) AS name, encrypted_send(big) AS big FROM parted;
UPDATE parted SET name = name::text, big = big::text, class = CASE class WHEN '5A' THEN '6A' ELSE '5A' END;
SELECT p.id, p.tableoid::regclass, p.name, length(p.big::text), encrypted_send(p.name) = b.name AS kept, encrypted_send(p.big) = b.big AS kept
FROM parted p JOIN before b USING (id) ORDER BY id;
UPDATE parted SET name = 'Bo', big = CASE id WHEN 1 THEN repeat('x', 20000) ELSE 'z' END;
SELECT p.id, p.tableoid::regclass, p.name, length(p.big::text), encrypted_send(p.name) = b.name AS kept, encrypted_send(p.big) = b.big AS kept
FROM parted p JOIN before b USING (id) ORDER BY id;
DROP TABLE before;
RESET nomp_crypt.tenant;
RESET ROLE;

-- wrong use
SELECT nomp_crypt.keep_unchanged();
CREATE FUNCTION misuse(definition text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	message text;
BEGIN
	CREATE TABLE misused (id int, secret encrypted(text));
	EXECUTE format('CREATE TRIGGER t %s', definition);
	INSERT INTO misused VALUES (1);
	UPDATE misused SET id = 2;
	DELETE FROM misused;
	RAISE EXCEPTION 'not refused';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS message = MESSAGE_TEXT;
	RETURN SQLSTATE || ' ' || message;
END
$$;
SELECT misuse('BEFORE UPDATE ON misused FOR EACH ROW EXECUTE FUNCTION nomp_crypt.keep_unchanged(''secret'')') AS "an argument";
SELECT misuse('BEFORE UPDATE ON misused EXECUTE FUNCTION nomp_crypt.keep_unchanged()') AS "statement trigger";
SELECT misuse('AFTER UPDATE ON misused FOR EACH ROW EXECUTE FUNCTION nomp_crypt.keep_unchanged()') AS "after trigger";
SELECT misuse('BEFORE INSERT OR UPDATE ON misused FOR EACH ROW EXECUTE FUNCTION nomp_crypt.keep_unchanged()') AS "insert trigger";
SELECT misuse('BEFORE DELETE ON misused FOR EACH ROW EXECUTE FUNCTION nomp_crypt.keep_unchanged()') AS "delete trigger";
DROP FUNCTION misuse(text);
DROP TABLE kept, parted;
DROP FUNCTION effect(text), changed(encrypted, int), counts(text);
DROP DOMAIN nickname_again, nickname;
DROP ROLE regress_writer;
