--
-- nomp_crypt.keep_unchanged: an UPDATE that writes the same plaintext again
-- leaves the stored bytes, and with them indexes and TOAST, as they are.
--
SELECT nomp_crypt.grant_tenant('ribersborg', 'regress_app', '{search}');
CREATE ROLE regress_writer;
SELECT nomp_crypt.grant_tenant('ribersborg', 'regress_writer', '{encrypt}');
CREATE DOMAIN kept_name AS encrypted(text);
CREATE TABLE kept (
	id		int PRIMARY KEY,
	gone	int,
	name	encrypted(text),
	alias	kept_name,
	born	encrypted(date),
	points	encrypted('numeric(8,2)'),
	data	encrypted(jsonb),
	email	encrypted(text, searchable, nocase),
	note	encrypted(text),
	id_text	text GENERATED ALWAYS AS (id::text) STORED
);
ALTER TABLE kept DROP COLUMN gone;
CREATE INDEX ON kept (email);
CREATE TRIGGER keep BEFORE UPDATE ON kept
FOR EACH ROW EXECUTE FUNCTION nomp_crypt.keep_unchanged();
GRANT ALL ON kept TO regress_app, regress_writer;

-- the stored bytes of each column, outside any tenant
CREATE TABLE seen (step int, id int, col text, bytes text);
GRANT ALL ON seen TO regress_app, regress_writer;
CREATE PROCEDURE look(step int) LANGUAGE plpgsql SET nomp_crypt.other_tenants = 'ciphertext' AS $$
BEGIN
	INSERT INTO seen SELECT step, id, c.col, encode(c.bytes, 'hex') FROM kept,
		LATERAL (VALUES ('name', encrypted_send(name)), ('alias', encrypted_send(alias)),
		('born', encrypted_send(born)), ('points', encrypted_send(points)),
		('data', encrypted_send(data)), ('email', encrypted_send(email)),
		('note', encrypted_send(note))) AS c (col, bytes);
END
$$;
CREATE FUNCTION changed(step int) RETURNS text LANGUAGE sql AS $$
	SELECT coalesce(string_agg(n.id || ' ' || col, ', ' ORDER BY n.id, col), 'nothing')
	FROM seen o JOIN seen n USING (id, col)
	WHERE o.step = $1 - 1 AND n.step = $1 AND o.bytes IS DISTINCT FROM n.bytes
$$;

SET ROLE regress_app;
SET nomp_crypt.tenant = 'ribersborg';
INSERT INTO kept VALUES
	(1, 'Anna', 'Ann', '2014-05-01', 12.5, '{"a": [1, 2]}', 'anna@example.org', 'none'),
	(2, 'Bo', NULL, '2014-05-02', 0, 'null', NULL, '');
CALL look(0);

-- as an ORM saves: every column, one of them changed
UPDATE kept SET name = 'Anna', alias = 'Ann', born = '2014-05-01', points = 12.50,
	data = '{"a": [1,2]}', email = 'anna@example.org', note = 'a new one' WHERE id = 1;
CALL look(1);
SELECT changed(1) AS "1 note";
SELECT name, alias, born, points, data, email, note, id_text FROM kept ORDER BY id;

-- with parameters, and from another row
PREPARE save(text, date, numeric) AS UPDATE kept SET name = $1, born = $2, points = $3 WHERE id = 1;
EXECUTE save('Anna', '2014-05-01', 12.5);
UPDATE kept SET note = (SELECT note FROM kept WHERE id = 2) WHERE id = 2;
CALL look(2);
SELECT changed(2) AS "nothing";

-- what looks the same to a search, or to numeric, is another plaintext
UPDATE kept SET email = 'ANNA@example.org', data = '{"a": [2, 1]}', born = '2014-05-03' WHERE id = 1;
CALL look(3);
SELECT changed(3) AS "1 born, data, email";
SELECT email, data, born FROM kept WHERE id = 1;

-- to NULL and back
UPDATE kept SET name = NULL, alias = 'Bosse' WHERE id = 2;
UPDATE kept SET name = 'Bo' WHERE id = 2;
SELECT name, alias FROM kept WHERE id = 2;
CALL look(4);
SELECT changed(4) AS "2 alias, name";

-- the index gets no new entry: the update is a HOT one
CREATE FUNCTION hot_updates() RETURNS bigint LANGUAGE sql
RETURN pg_stat_get_xact_tuples_hot_updated('kept'::regclass);
BEGIN;
SELECT hot_updates() AS before \gset
UPDATE kept SET name = 'Anna', email = 'ANNA@example.org', note = 'hot' WHERE id = 1;
SELECT hot_updates() - :before AS "1";
COMMIT;
RESET ROLE;
ALTER TABLE kept DISABLE TRIGGER keep;
SET ROLE regress_app;
BEGIN;
SELECT hot_updates() AS before \gset
UPDATE kept SET name = 'Anna', email = 'ANNA@example.org', note = 'not hot' WHERE id = 1;
SELECT hot_updates() - :before AS "0";
COMMIT;
RESET ROLE;
ALTER TABLE kept ENABLE TRIGGER keep;

-- a large value keeps its place in TOAST
SELECT reltoastrelid::regclass AS toast FROM pg_class WHERE relname = 'kept' \gset
SET ROLE regress_app;
UPDATE kept SET note = repeat('long ', 4000) WHERE id = 1;
RESET ROLE;
SELECT DISTINCT chunk_id AS before FROM :toast \gset
SET ROLE regress_app;
UPDATE kept SET note = repeat('long ', 4000), name = 'Anne' WHERE id = 1;
SELECT length(note::text), name FROM kept WHERE id = 1;
RESET ROLE;
SELECT DISTINCT chunk_id = :before AS "t" FROM :toast;
SET ROLE regress_app;
UPDATE kept SET note = repeat('long!', 4000) WHERE id = 1;
SELECT length(note::text), right(note::text, 5) FROM kept WHERE id = 1;
UPDATE kept SET note = 'short again' WHERE id = 1;

-- a role that may not read learns nothing: its values are always new
RESET ROLE;
TRUNCATE seen;
SET ROLE regress_writer;
CALL look(0);
UPDATE kept SET name = 'Anne', note = 'short again';
CALL look(1);
SELECT changed(1) AS "1 name, note, 2 name, note";

-- a damaged value can be replaced
SET ROLE regress_app;
SELECT encode(encrypted_send(name), 'hex') AS good FROM kept WHERE id = 2 \gset
RESET ROLE;
RESET nomp_crypt.tenant;
UPDATE kept SET name = ('nc1:' || translate(encode(set_byte(b, length(b) - 1, get_byte(b, length(b) - 1) # 1), 'base64'), E'\n', ''))::encrypted
FROM (SELECT decode(:'good', 'hex') AS b) AS x WHERE id = 2;
SET ROLE regress_app;
SET nomp_crypt.tenant = 'ribersborg';
SELECT outcome('SELECT name::text FROM kept WHERE id = 2') AS "NC005";
UPDATE kept SET name = 'Anne' WHERE id = 2;
SELECT name FROM kept WHERE id = 2;

-- another tenant's old value is not looked into
RESET nomp_crypt.tenant;
SELECT nomp_crypt.encrypt('Anne', 'slottsstaden') AS other \gset
RESET ROLE;
UPDATE kept SET name = :'other' WHERE id = 2;
SET ROLE regress_app;
SET nomp_crypt.tenant = 'ribersborg';
UPDATE kept SET name = 'Anne' WHERE id = 2;
SELECT name FROM kept WHERE id = 2;
-- outside a tenant nothing is kept or lost
RESET nomp_crypt.tenant;
RESET ROLE;
UPDATE kept SET name = :'other' WHERE id = 2;
SELECT nomp_crypt.tenant_of(name) FROM kept WHERE id = 2;
UPDATE kept SET name = NULL WHERE id = 2;

SET nomp_crypt.tenant = 'ribersborg';
-- together with enforce_tenant, in partitions, and before a trigger that
-- skips updates that change nothing
CREATE TABLE kept_parts (school text, id int, name encrypted(text)) PARTITION BY LIST (school);
CREATE TABLE kept_part PARTITION OF kept_parts FOR VALUES IN ('ribersborg');
CREATE TRIGGER a_keep BEFORE UPDATE ON kept_parts
FOR EACH ROW EXECUTE FUNCTION nomp_crypt.keep_unchanged();
CREATE TRIGGER b_enforce BEFORE INSERT OR UPDATE ON kept_parts
FOR EACH ROW EXECUTE FUNCTION nomp_crypt.enforce_tenant('school');
CREATE TRIGGER z_skip BEFORE UPDATE ON kept_part
FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger();
GRANT ALL ON kept_parts TO regress_app;
SET ROLE regress_app;
INSERT INTO kept_parts VALUES ('ribersborg', 1, 'Anna');
UPDATE kept_parts SET name = 'Anna', id = 1 RETURNING name AS "no row";
UPDATE kept_parts SET name = 'Anne', id = 1 RETURNING name AS "Anne";

-- wrong use
RESET ROLE;
CREATE TRIGGER wrong AFTER UPDATE ON kept FOR EACH ROW EXECUTE FUNCTION nomp_crypt.keep_unchanged();
SELECT outcome('UPDATE kept SET id = id') AS "39P01";
DROP TRIGGER wrong ON kept;
CREATE TRIGGER wrong BEFORE INSERT ON kept FOR EACH ROW EXECUTE FUNCTION nomp_crypt.keep_unchanged();
SELECT outcome('INSERT INTO kept VALUES (9)') AS "39P01";
DROP TRIGGER wrong ON kept;
CREATE TRIGGER wrong BEFORE UPDATE ON kept FOR EACH STATEMENT EXECUTE FUNCTION nomp_crypt.keep_unchanged();
SELECT outcome('UPDATE kept SET id = id') AS "39P01";
DROP TRIGGER wrong ON kept;
CREATE TRIGGER wrong BEFORE UPDATE ON kept FOR EACH ROW EXECUTE FUNCTION nomp_crypt.keep_unchanged('name');
SELECT outcome('UPDATE kept SET id = id') AS "22023";
DROP FUNCTION changed, hot_updates;
DROP TABLE kept, kept_parts, seen;
DROP PROCEDURE look;
DROP DOMAIN kept_name;
SELECT nomp_crypt.revoke_tenant('ribersborg', 'regress_app', '{search}');
SELECT nomp_crypt.revoke_tenant('ribersborg', 'regress_writer');
DROP ROLE regress_writer;
