--
-- Every way to write: what is stored is of the declared type and the
-- session's school, or nothing is stored.
--
\set VERBOSITY terse
SET DateStyle = ISO;
SET ROLE regress_app;
SET nomp_crypt.tenant = 'ribersborg';
CREATE TABLE visit (
	id		int PRIMARY KEY,
	name	encrypted(text),
	born	encrypted(date),
	price	encrypted('numeric(6,2)')
);
-- type and school of what is stored, the same for everybody
CREATE FUNCTION stored_as(VARIADIC encrypted[]) RETURNS text LANGUAGE sql STABLE AS $$
	SELECT string_agg((nomp_crypt.key_info(v)).type || coalesce('@' || nomp_crypt.tenant_of(v), ''), ' ') FROM unnest($1) v
$$;

-- literals, expressions, several rows, RETURNING
INSERT INTO visit VALUES (1, 'Anna', '2014-05-01', '1.005'), (2, upper('bea'), date '2014-05-02', 2), (3, NULL, NULL, NULL)
RETURNING id, name, born, price, stored_as(name, born, price);
-- parameters: of unknown type, text, and their own types
PREPARE unknown AS INSERT INTO visit VALUES ($1, $2, $3, $4) RETURNING name, born, price, stored_as(name, born, price);
EXECUTE unknown(4, 'Cia', '2014-05-04', '4');
PREPARE typed(int, text, date, numeric) AS INSERT INTO visit VALUES ($1, $2, $3, $4) RETURNING name, born, price, stored_as(name, born, price);
EXECUTE typed(5, 'Dan', '2014-05-05', 5.555);
EXECUTE unknown(6, 'Eva', 'someday', '6');
DEALLOCATE ALL;
-- COPY in text and CSV, with the column's types checked
COPY visit FROM stdin;
7	Fia	2014-05-07	7.777
8	\N	\N	\N
\.
COPY visit FROM stdin (FORMAT csv);
9,"Göran ""G""",2014-05-09,
\.
COPY visit FROM stdin;
10	Hans	2014-02-30	\N
\.
COPY (SELECT * FROM visit WHERE id >= 7 ORDER BY id) TO stdout (FORMAT csv);
-- INSERT ... SELECT, from plain columns, and from encrypted ones of other types
INSERT INTO visit SELECT 20 + i, 'Elev ' || i, date '2014-06-01' + i, i FROM generate_series(1, 2) i;
INSERT INTO visit (id, name) SELECT 30 + id, born FROM visit WHERE id < 3 RETURNING id, name, stored_as(name);
-- UPDATE: literals, plain expressions, another encrypted column, a subquery, a row
UPDATE visit SET name = 'Ändrad', born = born::date + 1, price = price::numeric * 2 WHERE id = 1
RETURNING name, born, price, stored_as(name, born, price);
UPDATE visit SET name = born, price = (SELECT name FROM visit WHERE id = 31) WHERE id = 2;
UPDATE visit SET (name, born) = (SELECT name, name::text FROM visit WHERE id = 32) WHERE id = 2 RETURNING name, born;
UPDATE visit SET name = DEFAULT WHERE id = 3 RETURNING name;
-- UPSERT, MERGE
INSERT INTO visit VALUES (1, 'Igen', '2014-07-01') ON CONFLICT (id) DO UPDATE SET name = excluded.name, born = excluded.name::text
RETURNING name;
INSERT INTO visit VALUES (1, 'Igen', '2014-07-01') ON CONFLICT (id) DO UPDATE SET name = excluded.name, born = excluded.born
RETURNING name, born, stored_as(name, born);
MERGE INTO visit v USING (VALUES (1, 'Sammanfört', date '2014-08-01'), (40, 'Ny', '2014-08-02')) AS s (id, name, born) ON s.id = v.id
WHEN MATCHED THEN UPDATE SET name = s.name, born = s.born
WHEN NOT MATCHED THEN INSERT (id, name, born) VALUES (s.id, s.name, s.born);
SELECT id, name, born, stored_as(name, born) FROM visit WHERE id IN (1, 40) ORDER BY id;

-- DEFAULT: an expression that makes text when the row is written; a constant
-- of the type would belong to one school
CREATE TABLE defaulted (id int, name encrypted(text) DEFAULT 'Anna');
CREATE TABLE defaulted (id int, name encrypted(text) DEFAULT lower('OKÄND'), born encrypted(date) DEFAULT current_date, n encrypted(int) DEFAULT 6 * 7);
INSERT INTO defaulted (id) VALUES (1) RETURNING name, born::date = current_date AS born, n, stored_as(name, born, n);
DROP TABLE defaulted;
-- generated columns: from plain ones, and copies; not from what must be
-- decrypted, which PostgreSQL wants immutable
CREATE TABLE generated (id int, name encrypted(text), twice encrypted(int) GENERATED ALWAYS AS (id * 2) STORED,
	again encrypted(text) GENERATED ALWAYS AS (name) STORED);
INSERT INTO generated (id, name) VALUES (1, 'Anna') RETURNING *, stored_as(twice, again);
UPDATE generated SET id = 2, name = 'Bea' RETURNING *;
ALTER TABLE generated ADD plain text GENERATED ALWAYS AS (upper(name::text)) STORED;
DROP TABLE generated;
-- a domain over the type, with its modifier
CREATE DOMAIN birthday AS encrypted(date) CHECK (value IS NOT NULL);
CREATE TABLE with_domain (id int, born birthday);
INSERT INTO with_domain VALUES (1, '2014-05-01'), (2, date '2014-05-02') RETURNING born, stored_as(born);
INSERT INTO with_domain VALUES (3, '2014-02-30');
INSERT INTO with_domain VALUES (3, NULL);
COPY with_domain FROM stdin;
3	2014-05-03
\.
UPDATE with_domain SET born = '2014-05-04'::text WHERE id = 1;
SELECT id, born, stored_as(born) FROM with_domain ORDER BY id;
DROP TABLE with_domain;
DROP DOMAIN birthday;
-- arrays and rows of the type
CREATE TYPE person AS (name encrypted(text), born encrypted(date));
CREATE TABLE compound (names encrypted(text)[], who person);
INSERT INTO compound VALUES (ARRAY['a', 'b'], ROW('Anna', '2014-05-01')) RETURNING names, who, stored_as(VARIADIC names), stored_as((who).name, (who).born);
UPDATE compound SET names[2] = 'c', who.born = '2014-05-02' RETURNING names, who;
DROP TABLE compound;
DROP TYPE person;
-- partitions and inheritance
CREATE TABLE part (id int, born encrypted(date)) PARTITION BY RANGE (id);
CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (1) TO (10);
CREATE TABLE part_2 (born encrypted(date), id int);
ALTER TABLE part ATTACH PARTITION part_2 FOR VALUES FROM (10) TO (20);
CREATE TABLE part_3 (id int, born encrypted(text));
ALTER TABLE part ATTACH PARTITION part_3 FOR VALUES FROM (20) TO (30);
INSERT INTO part VALUES (1, '2014-05-01'), (11, '2014-05-11');
UPDATE part SET id = 12, born = '2014-05-12' WHERE id = 1;
SELECT tableoid::regclass, id, born, stored_as(born) FROM part ORDER BY id;
DROP TABLE part, part_3;
CREATE TABLE child (extra text) INHERITS (visit);
INSERT INTO child VALUES (50, 'Barn', '2014-05-01', 1, 'x');
UPDATE visit SET born = '2014-05-02' WHERE id = 50 RETURNING tableoid::regclass, name, born, stored_as(name, born);
DROP TABLE child;
-- views, RETURNING through them, rules, triggers
CREATE VIEW names AS SELECT id, name, born FROM visit;
INSERT INTO names VALUES (60, 'Genom vy', '2014-05-01') RETURNING *;
UPDATE names SET born = current_date - current_date + date '2014-05-03' WHERE id = 60 RETURNING born, stored_as(born);
CREATE RULE redirect AS ON DELETE TO names DO INSTEAD UPDATE visit SET name = upper(old.name::text), born = NULL WHERE id = old.id;
DELETE FROM names WHERE id = 60;
SELECT name, born FROM visit WHERE id = 60;
DROP VIEW names;
CREATE FUNCTION tidy() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	NEW.name := initcap(NEW.name::text);
	NEW.born := coalesce(NEW.born::date, '2000-01-01');
	RETURN NEW;
END
$$;
CREATE TRIGGER tidy BEFORE INSERT ON visit FOR EACH ROW EXECUTE FUNCTION tidy();
INSERT INTO visit VALUES (61, 'ANNA') RETURNING name, born, stored_as(name, born);
DROP TRIGGER tidy ON visit;
DROP FUNCTION tidy();
-- PL/pgSQL variables
DO $$
DECLARE
	name encrypted(text) := 'Anna';
	born encrypted(date) := '2014-05-01';
	bare encrypted;
BEGIN
	bare := 'Bea';
	born := born::date + 1;
	INSERT INTO visit VALUES (62, bare, born);
	SELECT v.name, v.born INTO name, born FROM visit v WHERE id = 62;
	INSERT INTO visit VALUES (63, name, born);
	born := 'never';
EXCEPTION WHEN invalid_datetime_format THEN
	RAISE NOTICE 'the variable is a date too: %', SQLSTATE;
	INSERT INTO visit VALUES (63, name, born);
END
$$;
SELECT id, name, born, stored_as(name, born) FROM visit WHERE id = 63;
-- CREATE TABLE AS keeps the modifier; a value that lost it needs one
CREATE TABLE copied AS SELECT id, name, born FROM visit WHERE id = 1;
SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'copied'::regclass AND attnum > 1 ORDER BY attnum;
SELECT name, born FROM copied;
DROP TABLE copied;
CREATE TABLE copied AS SELECT coalesce(name, 'nobody') AS name FROM visit;
CREATE TABLE copied AS SELECT coalesce(name, 'nobody')::encrypted(varchar) AS name FROM visit WHERE id = 1;
SELECT name, stored_as(name) FROM copied;
DROP TABLE copied;
CREATE TABLE bare (name encrypted);
-- changing a column's type converts what is stored
CREATE TABLE changed AS SELECT id, born AS what FROM visit WHERE id IN (1, 40);
ALTER TABLE changed ALTER what TYPE encrypted(timestamptz);
ALTER TABLE changed ALTER what TYPE encrypted(text);
SELECT what::text ~ '^2014-08-0' AS what, stored_as(what) FROM changed ORDER BY id;
ALTER TABLE changed ALTER what TYPE encrypted(int);
DROP TABLE changed;

-- searchable: the fingerprint is there with the column's modifier, and only then
CREATE TABLE found (id int, ssn encrypted(text, searchable, digits), born encrypted(date, searchable), plain encrypted(text));
INSERT INTO found VALUES (1, '20140501-1234', '2014-05-01', 'x');
INSERT INTO found SELECT 2, plain, born, ssn FROM found;
SELECT id, (nomp_crypt.key_info(ssn)).searchable AS ssn, (nomp_crypt.key_info(born)).searchable AS born, (nomp_crypt.key_info(plain)).searchable AS plain FROM found ORDER BY id;
SELECT (nomp_crypt.key_info('x'::encrypted)).searchable AS literal, (nomp_crypt.key_info('x'::text::encrypted(text, searchable))).searchable AS cast;
INSERT INTO found (id, ssn) VALUES (3, repeat('1', 2500));
INSERT INTO found (id, ssn) VALUES (4, repeat('1', 2501));
SELECT length(ssn::text) FROM found WHERE id = 3;
RESET nomp_crypt.tenant;
-- outside a tenant the flag must fit, without a key; so for who loads ciphertext
INSERT INTO found (id, ssn) SELECT 5, coalesce(plain) FROM found WHERE id = 1;
SELECT format('%s', plain) AS plain, format('%s', ssn) AS ssn FROM found WHERE id = 1 \gset
RESET ROLE;
INSERT INTO found (id, ssn) VALUES (5, :'plain');
INSERT INTO found (id, plain) VALUES (5, :'ssn');
INSERT INTO found (id, ssn, plain) VALUES (5, :'ssn', :'plain');
SET ROLE regress_app;
DROP TABLE found;

-- another school's values are not stored, whichever way they come
SET nomp_crypt.tenant = 'slottsstaden';
INSERT INTO visit (id, name) SELECT 70, coalesce(name, 'x') FROM visit WHERE id = 1;
INSERT INTO visit (id, born) VALUES (70, nomp_crypt.encrypt('2014-05-01', 'ribersborg'));
UPDATE visit SET price = coalesce(price, NULL) WHERE id = 40 OR id = 2;
SELECT nomp_crypt._store(name, -1) FROM visit WHERE id = 1;
SET nomp_crypt.tenant = 'ribersborg';
SELECT nomp_crypt._store(name, atttypmod) AS fits FROM visit, pg_attribute WHERE id = 1 AND attrelid = 'visit'::regclass AND attname = 'name';
SELECT nomp_crypt._store(name, atttypmod) AS fits FROM visit, pg_attribute WHERE id = 1 AND attrelid = 'visit'::regclass AND attname = 'born';
-- nothing is encrypted twice
RESET nomp_crypt.tenant;
SELECT format('%s', name) AS cipher FROM visit WHERE id = 1 \gset
SET nomp_crypt.tenant = 'ribersborg';
INSERT INTO visit (id, name) VALUES (70, :'cipher');
INSERT INTO visit (id, name) VALUES (70, :'cipher'::text);
INSERT INTO visit (id, name) VALUES (70, :'cipher'::varchar);
INSERT INTO visit (id, name) VALUES (70, :'cipher'::bpchar);
INSERT INTO visit (id, born) VALUES (70, :'cipher');
-- nothing is stored plain
RESET nomp_crypt.tenant;
INSERT INTO visit (id, name) VALUES (70, 'Anna');
INSERT INTO visit (id, born) VALUES (70, current_date);
UPDATE visit SET name = 'Anna' WHERE id = 1;
-- in all that was stored: the declared types, one school
SELECT stored_as(name, born, price) AS stored, count(*) FROM visit WHERE name IS NOT NULL AND born IS NOT NULL AND price IS NOT NULL GROUP BY 1;
SELECT count(*) AS "0" FROM visit WHERE stored_as(name) <> 'text@ribersborg' OR stored_as(born) <> 'date@ribersborg' OR stored_as(price) <> 'numeric@ribersborg';
RESET ROLE;
DROP TABLE visit;
DROP FUNCTION stored_as(VARIADIC encrypted[]);
RESET DateStyle;
