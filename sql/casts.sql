--
-- Casts. Text goes into the type by itself, other types by assignment or
-- explicitly; out of the type everything is explicit. Between types
-- PostgreSQL's own casts hold; a text becomes anything by its input function.
--
SET ROLE regress_app;
SET nomp_crypt.tenant = 'ribersborg';
SET DateStyle = ISO;

-- a value of each type, in with its own cast and out with its own cast
CREATE FUNCTION pg_temp.there_and_back(type text, value text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
	same boolean;
BEGIN
	EXECUTE format('SELECT %1$L::%2$s::encrypted::%2$s::text = %1$L::%2$s::text', value, type) INTO same;
	RETURN same;
END
$$;
SELECT bool_and(pg_temp.there_and_back(type, value)) AS scalars,
	bool_and(pg_temp.there_and_back(type || '[]', ARRAY[value, NULL]::text)) AS arrays, count(*) AS "28" FROM (VALUES
	('text', 'å'), ('varchar', 'å'), ('bpchar', 'å'), ('bytea', '\x00'), ('bool', 't'), ('int2', '1'), ('int4', '1'), ('int8', '1'),
	('float4', '1.5'), ('float8', '1.5'), ('numeric', '1.50'), ('money', '1'), ('date', '2014-05-01'), ('time', '12:00'),
	('timetz', '12:00+01'), ('timestamp', '2014-05-01'), ('timestamptz', '2014-05-01'), ('interval', '1 day'),
	('uuid', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'), ('inet', '::1'), ('json', '{ }'), ('jsonb', '{}'), ('int4range', '[1,2)'),
	('int8range', '[1,2)'), ('numrange', '[1,2]'), ('daterange', '[2014-05-01,)'), ('tsrange', 'empty'), ('tstzrange', 'empty')
) AS v (type, value);
-- without a modifier a value keeps its type
SELECT (nomp_crypt.key_info(v)).type FROM unnest(ARRAY[1::encrypted, '1'::text::encrypted, current_date::encrypted, ARRAY[1]::encrypted]) v;

CREATE TABLE item (id int, name encrypted(text), born encrypted(date), price encrypted('numeric(6,2)'), tags encrypted('text[]'),
	counts encrypted('int8[]'), short encrypted('varchar(3)'), at encrypted(timestamptz));
-- assignment: PostgreSQL's own assignment casts, and text by the input function
INSERT INTO item (id, name, born, price) VALUES (1, 42, '2014-05-01 12:00'::timestamp, 3);
INSERT INTO item (id, name, born, price) VALUES (2, 'x'::varchar, '2014-05-02'::text, '1.005'::text);
INSERT INTO item (id, tags, counts) VALUES (3, ARRAY[1, 2], ARRAY['3', NULL, '4']::text[]);
INSERT INTO item (id, counts) VALUES (4, ARRAY[1.4, 2.6]::numeric[]), (5, '{7}'::text), (6, '{}'::int[]);
SELECT id, name, born, price, tags, counts FROM item ORDER BY id;
\set VERBOSITY terse
INSERT INTO item (id, born) VALUES (7, 42);
INSERT INTO item (id, born) VALUES (7, 'x'::text);
INSERT INTO item (id, counts) VALUES (7, 42);
INSERT INTO item (id, counts) VALUES (7, '{}'::date[]);
INSERT INTO item (id, born) VALUES (7, 42::encrypted);
INSERT INTO item (id, short) VALUES (7, 'abcd');
INSERT INTO item (id, price) VALUES (7, 12345);
INSERT INTO item (id, born) VALUES (7, point(1, 2));
-- explicit casts do what explicit casts do: cut to length
SELECT 'abcd'::text::encrypted('varchar(3)') AS abc, 'abcd'::text::encrypted('varchar(3)')::char(2) AS ab, 1::encrypted(bool) AS t;
-- and are what the other way round needs
SELECT length(name) FROM item;
SELECT born + 1 FROM item WHERE id = 1;
CREATE TEMP TABLE plain (name text, born date);
INSERT INTO plain SELECT name, born FROM item WHERE id = 1;
SELECT length(name::text), born::date + 1 AS next_day, price::numeric * 2 AS double, price::int AS rounded, born::text AS text,
	born::timestamptz = '2014-05-01'::timestamptz AS converted, name::int + 1 AS "43" FROM item WHERE id = 1;
SELECT counts::int4[] AS int4s, counts::text[] AS texts, counts::text AS text, (counts::int8[])[3] AS "4", counts::numeric[] AS numerics
FROM item WHERE id = 3;
SELECT born::int FROM item WHERE id = 1;
SELECT name::date FROM item WHERE id = 1;
SELECT tags::date FROM item WHERE id = 3;
-- a value coerced to another column's type
INSERT INTO item (id, name, born) SELECT 8, born, name::encrypted(text) FROM item WHERE id = 1;
INSERT INTO item (id, name, at) SELECT 8, born, born FROM item WHERE id = 1 RETURNING name, at::date;
SELECT nomp_crypt.decrypt(born), nomp_crypt.try_decrypt(price), nomp_crypt.decrypt(at) IS NULL AS null FROM item WHERE id = 1;

-- outside a tenant: out with the right to decrypt; in, text is ciphertext,
-- and nothing else can be
RESET nomp_crypt.tenant;
SELECT born::date, price::numeric, name::text, tags::text FROM item WHERE id = 1;
INSERT INTO item (id, born) VALUES (9, current_date);
INSERT INTO item (id, born) VALUES (9, '2014-05-01'::text);
-- header and column must agree, without a key
INSERT INTO item (id, born) SELECT 9, name FROM item WHERE id = 1;
INSERT INTO item (id, born) SELECT 9, nomp_crypt.encrypt('2014-05-09', 'ribersborg');
-- an explicit cast converts, for the value's own tenant
INSERT INTO item (id, born, price) SELECT 9, nomp_crypt.encrypt('2014-05-09', t)::encrypted(date), nomp_crypt.encrypt('1.239', t)::encrypted('numeric(6,2)')
FROM unnest('{ribersborg,slottsstaden}'::text[]) t;
SELECT nomp_crypt.tenant_of(born), (nomp_crypt.key_info(born)).type, born::date, price::text FROM item WHERE id = 9 ORDER BY 1;
SET ROLE regress_other;
SELECT outcome($$SELECT nomp_crypt.encrypt('2014-05-09', 'ribersborg')$$) AS "42501";
RESET ROLE;
GRANT SELECT ON item TO regress_other;
SELECT nomp_crypt.grant_tenant('ribersborg', 'regress_other', '{decrypt}');
SET ROLE regress_other;
SELECT name::encrypted(int4) FROM item WHERE id = 1;
RESET ROLE;
SELECT nomp_crypt.revoke_tenant('ribersborg', 'regress_other');

-- who may write but not read, learns from an error no more than that it is one
SELECT nomp_crypt.grant_tenant('ribersborg', 'regress_other', '{encrypt}');
GRANT INSERT ON item TO regress_other;
SET ROLE regress_other;
SET nomp_crypt.tenant = 'ribersborg';
INSERT INTO item (id, born) VALUES (10, '2014-05-10'), (11, current_date);
\set VERBOSITY default
INSERT INTO item (id, born) SELECT 12, name::encrypted(date) FROM item WHERE id = 2;
INSERT INTO item (id, born) VALUES (12, '2014-02-30');
RESET nomp_crypt.tenant;
RESET ROLE;
SELECT nomp_crypt.revoke_tenant('ribersborg', 'regress_other');
-- a reader may make literals, to search with, and store nothing
SELECT nomp_crypt.grant_tenant('ribersborg', 'regress_other', '{decrypt}');
SET ROLE regress_other;
SET nomp_crypt.tenant = 'ribersborg';
SELECT 'Anna'::encrypted AS literal;
SELECT 'Anna'::encrypted(text);
INSERT INTO item (id, name) VALUES (12, 'Anna');
RESET nomp_crypt.tenant;
RESET ROLE;
SELECT nomp_crypt.revoke_tenant('ribersborg', 'regress_other');

-- _plain, which rewritten comparisons call: the value as its witness's type,
-- inside a tenant only, decrypted once where it is the same in every row
\set VERBOSITY terse
SET ROLE regress_app;
SELECT nomp_crypt._plain(born, NULL::date, false) FROM item WHERE id = 1;
SET nomp_crypt.tenant = 'ribersborg';
SELECT id, nomp_crypt._plain(born, NULL::date, false) + 1 AS next_day, nomp_crypt._plain('2014-05-01'::encrypted, NULL::date, true) AS constant
FROM item WHERE id < 4 ORDER BY id;
SELECT nomp_crypt._plain(v, NULL::text, true) FROM unnest(ARRAY['a'::encrypted, 'b'::encrypted, NULL, 'b'::encrypted]) v;
SELECT nomp_crypt._plain('x'::encrypted, NULL::date, true);
SELECT nomp_crypt._plain(born, NULL::date, true) FROM item WHERE id = 9;
-- what it keeps is not shown to who lost the right, or moved on
PREPARE kept AS SELECT nomp_crypt._plain(born, NULL::date, true) FROM item WHERE id = 1;
EXECUTE kept;
SET nomp_crypt.tenant = 'slottsstaden';
EXECUTE kept;
RESET nomp_crypt.tenant;
RESET ROLE;
DROP TABLE item;
RESET DateStyle;
