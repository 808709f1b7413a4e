--
-- nomp_crypt.encrypt_column_preview: what a conversion would meet, before it is
-- begun. Numbers of time and size are estimates and not shown here.
--
SELECT nomp_crypt.create_tenant(id) IS NOT NULL AS created FROM unnest('{cp-a,cp-b}'::text[]) id;
CREATE ROLE regress_owner;
CREATE ROLE regress_user LOGIN;
GRANT CREATE ON SCHEMA public TO regress_owner;
SELECT nomp_crypt.grant_tenant(id, 'regress_owner', '{encrypt,decrypt,search}') FROM unnest('{cp-a,cp-b}'::text[]) id;
SELECT nomp_crypt.grant_tenant('cp-a', 'regress_user', '{encrypt}');
SET ROLE regress_owner;
CREATE DOMAIN cp_short AS text CHECK (length(VALUE) < 100);
CREATE TABLE cp_class (id int PRIMARY KEY, school text);
CREATE TABLE cp (id int PRIMARY KEY, school text, class int, name text NOT NULL DEFAULT '', nick cp_short, ssn text UNIQUE, place point);
CREATE INDEX cp_lower ON cp (lower(name));
CREATE VIEW cp_view AS SELECT name FROM cp;
GRANT SELECT, INSERT ON cp TO regress_user;
INSERT INTO cp SELECT i, CASE WHEN i % 10 = 0 THEN 'nowhere' WHEN i % 2 = 0 THEN 'cp-a' ELSE 'cp-b' END, 1, 'Anna ' || i, 'A' || i, 'S-' || i
FROM generate_series(1, 100) i;
INSERT INTO cp (id, school, name) VALUES (101, NULL, 'secret');
\set SHOW_CONTEXT never
SELECT topic, subject, CASE WHEN topic IN ('size', 'space', 'time') THEN '...' ELSE verdict END AS verdict,
	CASE WHEN topic IN ('size', 'space', 'time') THEN '...' ELSE detail END AS detail
FROM nomp_crypt.encrypt_column_preview('cp', 'name', 'school');
SELECT topic, subject, verdict, detail FROM nomp_crypt.encrypt_column_preview('cp', 'ssn', '(SELECT c.school FROM cp_class c WHERE c.id = t.class)', true, 'digits')
WHERE topic NOT IN ('size', 'space', 'time');
SELECT topic, subject, verdict, detail FROM nomp_crypt.encrypt_column_preview('cp', 'nick', 'school') WHERE topic IN ('column', 'dependent');
SELECT * FROM nomp_crypt.encrypt_column_preview('cp', 'place', 'school');
SELECT * FROM nomp_crypt.encrypt_column_preview('cp', 'ssn', 'school', false, 'digits');
SELECT bool_and(detail LIKE 'an estimate: %') AS said_so FROM nomp_crypt.encrypt_column_preview('cp', 'ssn', 'school') WHERE topic = 'time';

-- statements, as pg_stat_statements has them
CREATE TABLE cp_plain (LIKE cp);
CREATE TABLE cp_search (LIKE cp);
ALTER TABLE cp_plain ALTER name TYPE encrypted(text) USING NULL;
ALTER TABLE cp_search ALTER name TYPE encrypted(text, searchable) USING NULL;
CREATE TABLE cp_statement (n serial, statement text);
INSERT INTO cp_statement (statement) VALUES ('SELECT name FROM cp WHERE id = $1'),
	('SELECT id FROM cp WHERE name = $1 AND name LIKE $2 ORDER BY name'),
	('SELECT name, count(*) FROM cp GROUP BY name'),
	('SELECT DISTINCT cp.name FROM public.cp'),
	('SELECT count(DISTINCT name) FROM cp'),
	('SELECT name FROM cp UNION SELECT $1'),
	('SELECT lower(name) FROM cp'),
	('SELECT row_number() OVER (PARTITION BY name) FROM cp'), ('SELECT max(name) FROM cp FOR UPDATE OF cp'), ('SELECT id FROM cp WHERE name = ($1) FOR UPDATE OF cp'),
	('INSERT INTO cp (id, name) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET name = excluded.name RETURNING upper(cp.name)'),
	('UPDATE cp SET name = $1 WHERE name = ANY ($2) AND id = $3'),
	('DELETE FROM cp USING cp_class WHERE substr(name, $1, $2) = $3'),
	('WITH x AS (SELECT name FROM cp) SELECT * FROM x, LATERAL (SELECT max(name) FROM cp) m'),
	('SELECT name FROM other.cp GROUP BY name'), ('SELECT name FROM nothing, cp GROUP BY name'), ('SELECT 1'), ('VACUUM cp'), ('nonsense');
SELECT n, left(statement, 60) AS statement, nomp_crypt._refusal(statement, 'cp', 'cp_plain', 'cp-a') AS plain,
	nomp_crypt._refusal(statement, 'cp', 'cp_search', 'cp-a') AS searchable
FROM cp_statement ORDER BY n;
SHOW nomp_crypt.tenant;

-- refusals
SELECT * FROM nomp_crypt.encrypt_column_preview('cp', 'nothing', 'school');
SELECT * FROM nomp_crypt.encrypt_column_preview('cp', 'name', 'nothing');
SELECT * FROM nomp_crypt.encrypt_column_preview('cp', 'name', NULL);
SELECT * FROM nomp_crypt.encrypt_column_preview('cp_view', 'name', '''cp-a''');
SET ROLE regress_app;
SELECT * FROM nomp_crypt.encrypt_column_preview('cp', 'name', 'school');
SELECT * FROM nomp_crypt._preview_roles('cp', '{cp-a}');
RESET ROLE;
SELECT count(*) AS changed FROM nomp_crypt.column_history WHERE table_name = 'public.cp';
SET client_min_messages = warning;
DROP TABLE cp, cp_class, cp_plain, cp_search, cp_statement CASCADE;
DROP DOMAIN cp_short;
RESET client_min_messages;
CALL nomp_crypt.erase_tenant('cp-a', 'test');
CALL nomp_crypt.erase_tenant('cp-b', 'test');
REVOKE CREATE ON SCHEMA public FROM regress_owner;
SELECT nomp_crypt.revoke_tenant(id, 'regress_owner') FROM unnest('{cp-a,cp-b}'::text[]) id;
SELECT nomp_crypt.revoke_tenant('cp-a', 'regress_user');
DROP ROLE regress_owner, regress_user;
