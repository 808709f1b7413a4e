--
-- Values under newer keys, and under another school's: nomp_crypt.reencrypt,
-- for a value and for a table.
--
\set VERBOSITY terse
SELECT nomp_crypt.create_tenant(id) IS NOT NULL AS created FROM unnest('{re-a,re-b,re-gone,re-halted}'::text[]) id;
SELECT nomp_crypt.grant_tenant(id, 'regress_app', '{encrypt,decrypt,search}') FROM unnest('{re-a,re-b,re-gone,re-halted}'::text[]) id;
CREATE FUNCTION version_of(encrypted) RETURNS text LANGUAGE sql AS
'SELECT k.tenant || '' '' || k.version FROM nomp_crypt.key_info($1) k';
CREATE TABLE moved (
	id		int PRIMARY KEY,
	name	encrypted(text),
	exact	encrypted(text, searchable),
	nocase	encrypted(text, searchable, nocase),
	digits	encrypted(text, searchable, digits),
	born	encrypted(date, searchable),
	amount	encrypted('numeric(8,2)[]')
);
GRANT ALL ON moved TO regress_app;
SET ROLE regress_app;
SET nomp_crypt.tenant = 're-a';
INSERT INTO moved VALUES (1, 'Anna', 'Åsa B-1', 'Åsa B-1', 'Åsa B-1', '2014-05-01', '{1.50,NULL}');
INSERT INTO moved VALUES (2, 'Bo');
RESET nomp_crypt.tenant;

-- ---- one value ----
-- of the newest version: the same bytes; older: another version, the same fingerprint
SELECT encrypted_send(nomp_crypt.reencrypt(name)) = encrypted_send(name) AS unchanged FROM moved WHERE id = 1;
RESET ROLE;
SELECT nomp_crypt.rotate_tenant('re-a') AS version;
SET ROLE regress_app;
SELECT version_of(name) AS old, version_of(nomp_crypt.reencrypt(name)) AS new,
	nomp_crypt.decrypt(nomp_crypt.reencrypt(name)) AS name,
	encrypted_send(nomp_crypt.reencrypt(name)) = encrypted_send(name) AS unchanged,
	encrypted_eq(nomp_crypt.reencrypt(exact), exact) AS same_fingerprint,
	version_of(nomp_crypt.reencrypt(name, 're-a')) AS to_its_own
FROM moved WHERE id = 1;
SELECT nomp_crypt.reencrypt(NULL::encrypted) IS NULL AS null_stays, nomp_crypt.reencrypt(NULL::encrypted, 're-b') IS NULL AS null_stays;

-- another school: the type, what is inside, and the fingerprint that the
-- other school's own value has
SET nomp_crypt.tenant = 're-b';
INSERT INTO moved VALUES (11, 'Anna', 'Åsa B-1', 'Åsa B-1', 'Åsa B-1', '2014-05-01', '{1.50,NULL}');
RESET nomp_crypt.tenant;
SELECT version_of(nomp_crypt.reencrypt(a.name, 're-b')) AS owner,
	nomp_crypt.decrypt(nomp_crypt.reencrypt(a.name, 're-b')) AS name,
	nomp_crypt.decrypt(nomp_crypt.reencrypt(a.born, 're-b')) AS born,
	nomp_crypt.decrypt(nomp_crypt.reencrypt(a.amount, 're-b')) AS amount,
	encrypted_eq(a.exact, b.exact) AS "exact before", encrypted_eq(nomp_crypt.reencrypt(a.exact, 're-b'), b.exact) AS exact,
	encrypted_eq(nomp_crypt.reencrypt(a.nocase, 're-b'), b.nocase) AS nocase,
	encrypted_eq(nomp_crypt.reencrypt(a.digits, 're-b'), b.digits) AS digits,
	encrypted_eq(nomp_crypt.reencrypt(a.born, 're-b'), b.born) AS born
FROM moved a, moved b WHERE a.id = 1 AND b.id = 11;
-- inside a tenant, too
SET nomp_crypt.tenant = 're-a';
SELECT version_of(nomp_crypt.reencrypt(name)) FROM moved WHERE id = 1;
RESET nomp_crypt.tenant;

-- refused
SELECT outcome('SELECT nomp_crypt.reencrypt(name, ''nowhere'') FROM moved WHERE id = 1') AS "42704";
RESET ROLE;
SELECT nomp_crypt.revoke_tenant('re-b', 'regress_app', '{encrypt}');
SELECT nomp_crypt.revoke_tenant('re-a', 'regress_app', '{decrypt}');
SET ROLE regress_app;
SELECT nomp_crypt.reencrypt(name) FROM moved WHERE id = 1;
SELECT outcome('SELECT nomp_crypt.reencrypt(name, ''re-a'') FROM moved WHERE id = 11') AS ok;
SELECT nomp_crypt.reencrypt(name, 're-b') FROM moved WHERE id = 11;
SELECT outcome('SELECT nomp_crypt.reencrypt(name, ''re-b'') FROM moved WHERE id = 1') AS "42501";
RESET ROLE;
SELECT nomp_crypt.grant_tenant(id, 'regress_app', '{encrypt,decrypt}') FROM unnest('{re-a,re-b}'::text[]) id;
SELECT overlay(encrypted_send(name) PLACING '\x0102030405060708' FROM 3) AS stranger,
	overlay(encrypted_send(name) PLACING '\x00' FROM 40) AS damaged FROM moved WHERE id = 1 \gset
INSERT INTO moved (id, name) VALUES (90, ('nc1:' || encode(:'stranger', 'base64'))::encrypted), (91, ('nc1:' || encode(:'damaged', 'base64'))::encrypted);
SET ROLE regress_app;
SELECT outcome('SELECT nomp_crypt.reencrypt(name) FROM moved WHERE id = 90') AS "NC003",
	outcome('SELECT nomp_crypt.reencrypt(name) FROM moved WHERE id = 91') AS "NC005",
	outcome('SELECT nomp_crypt.reencrypt(name, ''re-b'') FROM moved WHERE id = 91') AS "NC005";
SET nomp_crypt.tenant = 're-gone';
INSERT INTO moved VALUES (92, 'Cia');
SET nomp_crypt.tenant = 're-halted';
INSERT INTO moved VALUES (93, 'Dan');
RESET nomp_crypt.tenant;
RESET ROLE;
CALL nomp_crypt.erase_tenant('re-gone', 'test');
UPDATE nomp_crypt.tenant SET state = 'suspended' WHERE id = 're-halted';
SET ROLE regress_app;
SELECT outcome('SELECT nomp_crypt.reencrypt(name) FROM moved WHERE id = 92') AS "NC001",
	outcome('SELECT nomp_crypt.reencrypt(name) FROM moved WHERE id = 93') AS "NC002",
	outcome('SELECT nomp_crypt.reencrypt(name, ''re-gone'') FROM moved WHERE id = 1') AS "NC001",
	outcome('SELECT nomp_crypt.reencrypt(name, ''re-halted'') FROM moved WHERE id = 1') AS "NC002";

-- ---- a table ----
-- one column, then the rest; what does not open is left and named
CALL nomp_crypt.reencrypt('moved', 'name');
SELECT id, version_of(name) AS name, version_of(exact) AS exact FROM moved ORDER BY id;
CALL nomp_crypt.reencrypt('moved');
SELECT id, version_of(name) AS name, version_of(exact) AS exact, version_of(amount) AS amount FROM moved WHERE id < 90 ORDER BY id;
SET nomp_crypt.tenant = 're-a';
SELECT name, exact, nocase, digits, born, amount FROM moved WHERE id < 10 ORDER BY id;
SELECT id FROM moved WHERE nocase = 'åsa b-1' AND digits = '1' AND born = date '2014-05-01';
RESET nomp_crypt.tenant;
-- again: nothing is written
SELECT ctid FROM moved WHERE id = 1 \gset
CALL nomp_crypt.reencrypt(table_name => 'public.moved', max_lag => NULL, batch_size => 1);
SELECT ctid = :'ctid' AS untouched FROM moved WHERE id = 1;
RESET ROLE;
DELETE FROM moved WHERE id >= 90;

-- no trigger fires, neither a user's nor one of a foreign key; what is not
-- encrypted, or large and not concerned, stays
CREATE TABLE house (
	dropped	int,
	name	encrypted(text, searchable) PRIMARY KEY,
	changed	int NOT NULL DEFAULT 0,
	large	encrypted(text),
	plain	text
);
ALTER TABLE house DROP COLUMN dropped;
CREATE TABLE guest (
	id		int PRIMARY KEY,
	house	encrypted(text, searchable) REFERENCES house ON UPDATE SET NULL
);
CREATE FUNCTION count_up() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.changed := OLD.changed + 1; RETURN NEW; END';
CREATE TRIGGER changed BEFORE UPDATE ON house FOR EACH ROW EXECUTE FUNCTION count_up();
CREATE TRIGGER keep BEFORE UPDATE ON house FOR EACH ROW EXECUTE FUNCTION nomp_crypt.keep_unchanged();
GRANT ALL ON house, guest TO regress_app;
SET ROLE regress_app;
SET nomp_crypt.tenant = 're-a';
INSERT INTO house (name, large, plain) SELECT 'house ' || i, repeat('x', 50000), repeat('y', 20000) FROM generate_series(1, 3) i;
INSERT INTO guest SELECT i, 'house ' || i FROM generate_series(1, 3) i;
RESET ROLE;
RESET nomp_crypt.tenant;
SELECT nomp_crypt.rotate_tenant('re-a') AS version;
SET ROLE regress_app;
SET nomp_crypt.tenant = 're-b'; -- another school's session: it does not matter
CALL nomp_crypt.reencrypt('house');
RESET nomp_crypt.tenant;
SELECT version_of(name), version_of(large), changed, length(nomp_crypt.decrypt(large)), length(plain) FROM house;
SELECT id, version_of(guest.house) FROM guest ORDER BY id;
SET nomp_crypt.tenant = 're-a';
SELECT id, g.house FROM guest g JOIN house h ON h.name = g.house ORDER BY id;
-- the constraint still holds, and the index finds
INSERT INTO guest VALUES (4, 'house 2'), (5, 'house 9');
INSERT INTO house (name) VALUES ('house 2');
RESET nomp_crypt.tenant;
CALL nomp_crypt.reencrypt('guest', 'house');
SELECT id, version_of(guest.house) FROM guest ORDER BY id;
RESET ROLE;
DROP TABLE guest, house;

-- partitions, inheritance, domains, arrays, composites, generated columns,
-- checks
CREATE DOMAIN alias AS encrypted(text) CHECK (true);
CREATE TYPE address AS (street encrypted(text), town text);
CREATE TABLE everything (
	id		int,
	alias	alias,
	list	encrypted(text)[],
	aliases	alias[],
	address	address,
	homes	address[],
	bytes	bytea GENERATED ALWAYS AS (encrypted_send(alias)) STORED,
	CHECK (encrypted_send(alias) IS NOT NULL)
) PARTITION BY LIST (id);
CREATE TABLE everything_1 (homes address[], gone int, address address, aliases alias[], list encrypted(text)[],
	bytes bytea GENERATED ALWAYS AS (encrypted_send(alias)) STORED, alias alias, id int,
	CONSTRAINT everything_alias_check CHECK (encrypted_send(alias) IS NOT NULL));
ALTER TABLE everything_1 DROP COLUMN gone;
ALTER TABLE everything ATTACH PARTITION everything_1 FOR VALUES IN (1);
CREATE TABLE everything_2 PARTITION OF everything DEFAULT;
GRANT ALL ON everything TO regress_app; -- not on its partitions
SET ROLE regress_app;
SET nomp_crypt.tenant = 're-a';
INSERT INTO everything VALUES
	(1, 'Anna', ARRAY['x', NULL, 'y']::encrypted(text)[], ARRAY['z']::alias[], ROW('Storgatan', 'Malmö'), ARRAY[ROW('Lillgatan', 'Lund')::address, NULL]),
	(2, 'Anna', ARRAY['x', NULL, 'y']::encrypted(text)[], ARRAY['z']::alias[], ROW('Storgatan', 'Malmö'), ARRAY[ROW('Lillgatan', 'Lund')::address, NULL]);
RESET ROLE;
RESET nomp_crypt.tenant;
SELECT nomp_crypt.rotate_tenant('re-a') AS version;
SET ROLE regress_app;
CALL nomp_crypt.reencrypt('everything');
SELECT id, version_of(alias) AS alias, version_of(list[3]) AS list, version_of(aliases[1]) AS aliases,
	version_of((address).street) AS address, version_of((homes[1]).street) AS homes,
	bytes = encrypted_send(alias) AS generated, list[2] IS NULL AND homes[2] IS NULL AS nulls
FROM everything ORDER BY id;
SET nomp_crypt.tenant = 're-a';
SELECT id, alias, list, aliases, address, homes FROM everything ORDER BY id;
RESET ROLE;
RESET nomp_crypt.tenant;
DROP TABLE everything;

-- inheritance; an update is HOT where no index has the column
CREATE TABLE parent (id int, name encrypted(text)) WITH (fillfactor = 50);
CREATE TABLE child (extra encrypted(text)) INHERITS (parent);
SET nomp_crypt.tenant = 're-a';
SELECT nomp_crypt.grant_tenant('re-a', current_user, '{encrypt,decrypt}');
INSERT INTO parent VALUES (1, 'Anna');
INSERT INTO child VALUES (2, 'Bo', 'Extra');
RESET nomp_crypt.tenant;
SELECT nomp_crypt.rotate_tenant('re-a') AS version;
CALL nomp_crypt.reencrypt('parent');
SELECT id, version_of(name) FROM parent ORDER BY id;
SELECT pg_stat_force_next_flush() IS NOT NULL AS flushed;
SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'parent';
DROP TABLE parent, child;

-- refused
CREATE VIEW moved_view AS SELECT * FROM moved;
CREATE MATERIALIZED VIEW moved_copy AS SELECT * FROM moved;
CALL nomp_crypt.reencrypt('nowhere');
CALL nomp_crypt.reencrypt('moved_view');
CALL nomp_crypt.reencrypt('moved_copy');
CALL nomp_crypt.reencrypt('moved', 'nothing');
CALL nomp_crypt.reencrypt('moved', 'id');
CALL nomp_crypt.reencrypt('moved', batch_size => 0);
CALL nomp_crypt.reencrypt('moved', batch_size => NULL);
CALL nomp_crypt.reencrypt('moved', max_lag => 'much');
BEGIN;
CALL nomp_crypt.reencrypt('moved');
ROLLBACK;
SET default_transaction_read_only = on;
CALL nomp_crypt.reencrypt('moved');
RESET default_transaction_read_only;
DROP VIEW moved_view;
DROP MATERIALIZED VIEW moved_copy;
-- privileges of the caller: on the table, on the columns; no rows hidden from him
REVOKE ALL ON moved FROM regress_app;
GRANT SELECT ON moved TO regress_app;
SET ROLE regress_app;
CALL nomp_crypt.reencrypt('moved');
RESET ROLE;
GRANT UPDATE (name) ON moved TO regress_app;
SET ROLE regress_app;
CALL nomp_crypt.reencrypt('moved');
CALL nomp_crypt.reencrypt('moved', 'name');
RESET ROLE;
SELECT nomp_crypt.revoke_tenant('re-a', 'regress_app', '{encrypt}');
SELECT nomp_crypt.rotate_tenant('re-a') AS version;
SET ROLE regress_app;
CALL nomp_crypt.reencrypt('moved', 'name');
RESET ROLE;
SELECT nomp_crypt.grant_tenant('re-a', 'regress_app', '{encrypt}');
ALTER TABLE moved ENABLE ROW LEVEL SECURITY;
SET ROLE regress_app;
CALL nomp_crypt.reencrypt('moved', 'name');
RESET ROLE;
-- its owner is not hindered
CALL nomp_crypt.reencrypt('moved');
SELECT id, version_of(name) AS name, version_of(exact) AS exact FROM moved ORDER BY id;
-- nothing is under way
SELECT * FROM nomp_crypt.progress;
DROP TABLE moved;
DROP DOMAIN alias CASCADE;
DROP TYPE address;
DROP FUNCTION count_up(), version_of(encrypted);
SELECT nomp_crypt.revoke_tenant(id, role) FROM unnest('{re-a,re-b,re-gone,re-halted}'::text[]) id, unnest(ARRAY['regress_app', current_user]) role;
UPDATE nomp_crypt.tenant SET state = 'active' WHERE id = 're-halted';
CALL nomp_crypt.erase_tenant('re-halted', 'test');
CALL nomp_crypt.erase_tenant('re-a', 'test');
CALL nomp_crypt.erase_tenant('re-b', 'test');
