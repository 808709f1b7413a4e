--
-- A searchable column's values carry a fingerprint, the same for the same
-- text in one school: equality, uniqueness, keys, grouping and joins work as
-- people write them, with the index.
--
\set VERBOSITY terse
CREATE TABLE person (
	id     int PRIMARY KEY,
	school text NOT NULL,
	ssn    encrypted(text, searchable) UNIQUE,
	email  encrypted(text, searchable, nocase),
	phone  encrypted('varchar(20)', searchable, digits),
	born   encrypted(date, searchable),
	name   encrypted(text)
);
CREATE INDEX person_email ON person USING hash (email);
CREATE INDEX person_phone ON person (phone);
CREATE INDEX person_born ON person (born);
GRANT ALL ON person TO regress_app;
SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute
WHERE attrelid = 'person'::regclass AND attnum > 2 ORDER BY attnum;
SELECT nomp_crypt.grant_all_tenants('regress_app', '{search}');
SET ROLE regress_app;
SET nomp_crypt.tenant = 'ribersborg';
INSERT INTO person VALUES
	(1, 'ribersborg', '20140501-1234', 'Anna@Example.se', '040-12 34 56', '2014-05-01', 'Anna'),
	(2, 'ribersborg', '20140502-2345', 'BEA@example.se', '0706 123456', '2014-05-02', 'Bea'),
	(3, 'ribersborg', NULL, 'åsa@example.se', NULL, '2014-05-02', 'Åsa');

-- the same text, the same fingerprint; not the same value
SELECT id FROM person WHERE ssn = '20140501-1234';
SELECT id FROM person WHERE ssn = '201405011234';
SELECT id FROM person WHERE email = 'anna@example.SE';
SELECT id FROM person WHERE email = 'ÅSA@EXAMPLE.SE';
SELECT id FROM person WHERE phone = '040123456';
SELECT id FROM person WHERE phone IN ('040-123456', '0706-12-34-56') ORDER BY id;
SELECT id FROM person WHERE born = '2014-05-02' ORDER BY id;
SELECT id FROM person WHERE born = '2 May 2014'::date ORDER BY id;
SELECT id FROM person WHERE born = '2014-05-02 00:00'::timestamp ORDER BY id;

-- unique, in one school; ON CONFLICT finds it
INSERT INTO person VALUES (4, 'ribersborg', '20140501-1234');
INSERT INTO person VALUES (4, 'ribersborg', '20140501-1234', 'x@example.se')
	ON CONFLICT (ssn) DO UPDATE SET email = excluded.email RETURNING id, email;
INSERT INTO person VALUES (4, 'ribersborg', '20140501-1234') ON CONFLICT DO NOTHING;
SET nomp_crypt.tenant = 'slottsstaden';
INSERT INTO person VALUES (5, 'slottsstaden', '20140501-1234', 'anna@example.se');
SELECT id FROM person WHERE school = 'slottsstaden' AND ssn = '20140501-1234';
SELECT id FROM person WHERE ssn = '20140502-2345';
RESET nomp_crypt.tenant;
RESET ROLE;
SELECT count(DISTINCT ssn) AS "3: one of them in two schools" FROM person;
SELECT nomp_crypt.key_info(ssn) IS NOT NULL AS t, (nomp_crypt.key_info(ssn)).searchable AS t,
	(nomp_crypt.key_info(name)).searchable AS f FROM person WHERE id = 1;

-- keys
CREATE TABLE guardian (ssn encrypted(text, searchable) PRIMARY KEY, name encrypted(text));
CREATE TABLE guards (
	guardian encrypted(text, searchable) REFERENCES guardian ON UPDATE CASCADE ON DELETE CASCADE,
	pupil    encrypted(text, searchable) REFERENCES person (ssn)
);
GRANT ALL ON guardian, guards TO regress_app;
SET ROLE regress_app;
SET nomp_crypt.tenant = 'ribersborg';
INSERT INTO guardian VALUES ('19800101-0001', 'Cecilia');
INSERT INTO guards VALUES ('19800101-0001', '20140501-1234');
INSERT INTO guards VALUES ('19800101-0002', '20140501-1234');
DELETE FROM person WHERE id = 1;
UPDATE guardian SET ssn = '19800101-0003' WHERE ssn = '19800101-0001';
SELECT guardian, pupil FROM guards;
SELECT p.name, g.name FROM guards JOIN person p ON p.ssn = guards.pupil JOIN guardian g ON g.ssn = guards.guardian;
SET nomp_crypt.tenant = 'slottsstaden';
INSERT INTO guards VALUES ('19800101-0003', NULL);
RESET nomp_crypt.tenant;
RESET ROLE;
-- the keys need no key: outside a tenant too
DELETE FROM guardian;
SELECT count(*) FROM guards;

-- what is refused in definitions
CREATE TABLE refused (name encrypted(text) UNIQUE);
CREATE TABLE refused (name encrypted(text) PRIMARY KEY);
CREATE TABLE refused (name encrypted(text) REFERENCES guardian);
CREATE TABLE refused (name encrypted(text, searchable, nocase) REFERENCES guardian);
CREATE TABLE refused (name text REFERENCES guardian);
CREATE TABLE refused (name encrypted(text), EXCLUDE USING hash (name WITH =));
CREATE TABLE refused (flag encrypted(boolean, searchable));
CREATE TABLE refused (flag encrypted('varchar(1)', searchable));
CREATE TABLE refused (born encrypted(date, searchable, nocase));
CREATE TABLE refused (notes encrypted(jsonb, searchable));
CREATE TABLE forced (flag encrypted(boolean, searchable, force), ssn encrypted(text, searchable), EXCLUDE USING hash (ssn WITH =));
SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'forced'::regclass AND attname = 'flag';
DROP TABLE forced;

-- the index, for literals and for what drivers send
INSERT INTO person SELECT i, 'ribersborg' FROM generate_series(1000, 3000) i;
SET nomp_crypt.tenant = 'ribersborg';
SELECT nomp_crypt.grant_tenant('ribersborg', current_user, '{encrypt,decrypt,search}');
UPDATE person SET ssn = 'ssn ' || id, email = id || '@example.se', phone = id::text, born = '2000-01-01'::date + id WHERE id >= 1000;
ANALYZE person;
SET plan_cache_mode = force_generic_plan;
EXPLAIN (COSTS OFF) SELECT id FROM person WHERE ssn = '20140501-1234';
EXPLAIN (COSTS OFF) SELECT id FROM person WHERE ssn IN ('a', 'b');
PREPARE untyped AS SELECT id FROM person WHERE ssn = $1;
PREPARE as_text(text) AS SELECT id FROM person WHERE ssn = $1;
PREPARE as_varchar(varchar) AS SELECT id FROM person WHERE email = $1;
PREPARE as_date(date) AS SELECT id FROM person WHERE born = $1;
PREPARE as_array(text[]) AS SELECT id FROM person WHERE ssn = ANY ($1) ORDER BY id;
PREPARE as_bytea(bytea) AS SELECT id FROM person WHERE ssn = convert_from($1, 'UTF8');
EXPLAIN (COSTS OFF) EXECUTE untyped('ssn 1000');
EXPLAIN (COSTS OFF) EXECUTE as_text('ssn 1000');
EXPLAIN (COSTS OFF) EXECUTE as_varchar('1000@EXAMPLE.se');
EXPLAIN (COSTS OFF) EXECUTE as_date('2002-09-27');
EXPLAIN (COSTS OFF) EXECUTE as_array('{ssn 1000,ssn 2000}');
EXPLAIN (COSTS OFF) EXECUTE as_bytea('ssn 1000');
EXECUTE untyped('ssn 1000');
EXECUTE as_text('ssn 1000');
EXECUTE as_varchar('1000@EXAMPLE.se');
EXECUTE as_date('2002-09-27');
EXECUTE as_array('{ssn 1000,ssn 2000}');
EXECUTE as_bytea('ssn 1000');
-- under row-level security too: "=" is leakproof
ALTER TABLE person ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON person USING (school = current_setting('nomp_crypt.tenant'));
SET ROLE regress_app;
EXPLAIN (COSTS OFF) SELECT id FROM person WHERE ssn = '20140501-1234';
EXPLAIN (COSTS OFF) EXECUTE as_text('ssn 1000');
EXECUTE as_text('ssn 1000');
RESET ROLE;
DEALLOCATE ALL;
RESET plan_cache_mode;

-- statistics: null fraction and number of distinct values, no values
SELECT attname, n_distinct < -0.9 AS "distinct", most_common_vals IS NULL AND histogram_bounds IS NULL AS "no values"
FROM pg_stats WHERE tablename = 'person' AND attname IN ('ssn', 'name') ORDER BY attname;

-- what is too long for an index is refused when it is written
INSERT INTO person VALUES (9, 'ribersborg', repeat('x', 3000));
INSERT INTO person VALUES (9, 'ribersborg', repeat('x', 2500));
-- in the other schools none of this is found
SET nomp_crypt.tenant = 'slottsstaden';
SELECT nomp_crypt.grant_tenant('slottsstaden', current_user, '{encrypt,search}');
SELECT count(*) FROM person WHERE ssn = 'ssn 1000' OR ssn = repeat('x', 2500);
-- to search is a right of its own
SELECT nomp_crypt.revoke_tenant('slottsstaden', current_user, '{search}');
SELECT count(*) FROM person WHERE ssn = 'ssn 1000';
RESET nomp_crypt.tenant;
SELECT nomp_crypt.revoke_tenant('slottsstaden', current_user);
SELECT nomp_crypt.revoke_tenant('ribersborg', current_user);
SELECT nomp_crypt.revoke_all_tenants('regress_app', '{search}');
DROP TABLE guards, guardian, person;
