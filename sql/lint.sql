--
-- nomp_crypt.lint(): each rule of the catalogs finds what it is for, is silent
-- about what is right, and once it is put right. (Settings, files and the
-- machine are in t/lint_finds_leaks.pl.)
--
\set VERBOSITY terse
SET TimeZone = 'UTC';
SET client_min_messages = warning;
CREATE SCHEMA li;
CREATE VIEW findings AS SELECT severity, rule, object, why FROM nomp_crypt.lint(0) WHERE object ~ '\mli\.';
CREATE TABLE li.pupil (id int PRIMARY KEY, school text, name encrypted(text), ssn encrypted(text, searchable), born encrypted(date));
CREATE TABLE li.copy (id int, name encrypted(text), what text, about jsonb);
SELECT * FROM findings;

-- what says nothing of what is inside
CREATE INDEX pupil_ssn ON li.pupil (ssn);
CREATE INDEX pupil_bare ON li.pupil (id) WHERE name IS NOT NULL;
CREATE STATISTICS li.statistics_right ON id, school FROM li.pupil;
CREATE MATERIALIZED VIEW li.view_right AS
SELECT id, name, name IS NULL AS nameless, nomp_crypt.tenant_of(name) AS tenant, pg_column_size(name) AS size
FROM li.pupil;
CREATE MATERIALIZED VIEW li.count_right AS SELECT school, count(name) AS n, count(DISTINCT ssn) AS m FROM li.pupil WHERE name::text LIKE 'A%' GROUP BY school;
CREATE VIEW li.plain AS SELECT id, name::text AS name, born FROM li.pupil;
CREATE MATERIALIZED VIEW li.ids_right AS SELECT id FROM li.plain;
CREATE RULE copy_right AS ON DELETE TO li.pupil DO ALSO INSERT INTO li.copy (id, name, what) VALUES (old.id, old.name, 'deleted');
-- decrypted, and encrypted again
CREATE MATERIALIZED VIEW li.again_right AS SELECT upper(name::text)::encrypted(text) AS name, ARRAY[coalesce(name, name::text::encrypted)]::encrypted(text)[] AS names
FROM li.pupil;
CREATE RULE again_right AS ON INSERT TO li.plain DO INSTEAD INSERT INTO li.pupil (id, name, born) VALUES (new.id, new.name, new.born);
CREATE FUNCTION li.again_right() RETURNS void LANGUAGE sql BEGIN ATOMIC UPDATE li.copy SET name = p.name FROM li.plain p WHERE p.id = copy.id; END;
CREATE FUNCTION li.reads_right() RETURNS SETOF text LANGUAGE sql BEGIN ATOMIC SELECT name::text FROM li.pupil; END;
CREATE FUNCTION li.copies_right() RETURNS void LANGUAGE sql BEGIN ATOMIC INSERT INTO li.copy (id, name) SELECT id, name FROM li.pupil; END;
SELECT * FROM findings;

-- a function that is called immutable and is not
CREATE FUNCTION li.show(encrypted) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT nomp_crypt.decrypt($1)';
CREATE FUNCTION li.show_all(li.pupil) RETURNS text LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN $1.name::text; END';
CREATE INDEX pupil_shown ON li.pupil (id, li.show(name));
CREATE INDEX pupil_all ON li.pupil (li.show_all(pupil));
CREATE STATISTICS li.shown ON li.show(name), id FROM li.pupil;
ALTER TABLE li.pupil ADD COLUMN shown text GENERATED ALWAYS AS (upper(li.show(name))) STORED;
-- and every way for a value to get into a materialized view
CREATE MATERIALIZED VIEW li.v_cast AS SELECT name::text FROM li.pupil;
CREATE MATERIALIZED VIEW li.v_decrypt AS SELECT nomp_crypt.try_decrypt(name) FROM li.pupil;
CREATE MATERIALIZED VIEW li.v_part AS SELECT date_part('year', born::date) AS year FROM li.pupil;
CREATE MATERIALIZED VIEW li.v_row AS SELECT to_jsonb(p) AS row FROM li.pupil p;
CREATE MATERIALIZED VIEW li.v_record AS SELECT row_to_json(x) AS row FROM (SELECT id, name FROM li.pupil) x;
CREATE MATERIALIZED VIEW li.v_made AS SELECT ROW(id, name)::text AS row FROM li.pupil;
CREATE MATERIALIZED VIEW li.v_format AS SELECT format('%s', name) FROM li.pupil;
CREATE MATERIALIZED VIEW li.v_concat AS SELECT 'Hej ' || name::text FROM li.pupil;
CREATE MATERIALIZED VIEW li.v_aggregate AS SELECT json_agg(name) FROM li.pupil;
CREATE MATERIALIZED VIEW li.v_array AS SELECT array_agg(name)::text[] FROM li.pupil;
CREATE MATERIALIZED VIEW li.v_xml AS SELECT xmlforest(name) FROM li.pupil;
CREATE MATERIALIZED VIEW li.v_view AS SELECT p.* FROM li.plain p;
CREATE MATERIALIZED VIEW li.v_union AS SELECT id::text AS x FROM li.pupil UNION ALL SELECT born::text FROM li.plain;
CREATE MATERIALIZED VIEW li.v_cte AS WITH RECURSIVE r AS (SELECT id, name::text AS n FROM li.pupil WHERE id = 1 UNION ALL SELECT id + 1, n FROM r WHERE id < 3)
SELECT n FROM r;
CREATE MATERIALIZED VIEW li.v_join AS SELECT j.n FROM (li.pupil p(a, b, c) CROSS JOIN LATERAL (SELECT c::text AS n) l) j;
CREATE MATERIALIZED VIEW li.v_sublink AS SELECT (SELECT max(name::text) FROM li.pupil) AS longest;
CREATE MATERIALIZED VIEW li.v_function AS SELECT f FROM li.pupil, unnest(ARRAY[name::text]) f;
CREATE MATERIALIZED VIEW li.v_values AS SELECT v FROM li.pupil, LATERAL (VALUES (1, ''), (2, name::text)) x(n, v);
CREATE MATERIALIZED VIEW li.v_of_view AS SELECT name FROM li.v_cast;
-- rules and functions with an SQL body
CREATE RULE shows AS ON UPDATE TO li.pupil DO ALSO INSERT INTO li.copy (id, what) VALUES (old.id, old.name::text);
CREATE RULE shows_all AS ON INSERT TO li.pupil DO ALSO INSERT INTO li.copy (id, about) SELECT new.id, to_jsonb(x) FROM li.pupil x WHERE x.id = new.id;
CREATE FUNCTION li.writes() RETURNS void LANGUAGE sql BEGIN ATOMIC SELECT 1; UPDATE li.copy SET what = p.name FROM li.plain p WHERE p.id = copy.id; END;
CREATE FUNCTION li.writes_inside() RETURNS bigint LANGUAGE sql
BEGIN ATOMIC WITH w AS (INSERT INTO li.copy (what) SELECT name::text FROM li.pupil RETURNING 1) SELECT count(*) FROM w; END;
SELECT severity, rule, object FROM findings;
-- a view's finding is about its tables
SELECT l.object, ARRAY(SELECT r::regclass::text FROM unnest(l.relations) r ORDER BY 1) AS relations FROM nomp_crypt._lint(0, false) l
WHERE l.object IN ('materialized view li.v_of_view', 'rule shows on li.pupil', 'function li.writes()', 'index li.pupil_all') ORDER BY 1;
ALTER TABLE li.pupil DROP COLUMN shown;
DROP INDEX li.pupil_shown, li.pupil_all;
DROP STATISTICS li.shown;
DROP MATERIALIZED VIEW li.v_of_view, li.v_cast, li.v_decrypt, li.v_part, li.v_row, li.v_record, li.v_made, li.v_format, li.v_concat, li.v_aggregate,
	li.v_array, li.v_xml, li.v_view, li.v_union, li.v_cte, li.v_join, li.v_sublink, li.v_function, li.v_values;
DROP RULE shows ON li.pupil;
DROP RULE shows_all ON li.pupil;
DROP FUNCTION li.writes(), li.writes_inside();
SELECT * FROM findings;

-- foreign tables, which get values as text
CREATE FOREIGN DATA WRAPPER li_plain;
CREATE FOREIGN DATA WRAPPER li_ours HANDLER nomp_crypt.postgres_fdw_handler;
CREATE SERVER li_plain FOREIGN DATA WRAPPER li_plain;
CREATE SERVER li_ours FOREIGN DATA WRAPPER li_ours;
CREATE FOREIGN TABLE li.far (id int, name encrypted(text)) SERVER li_plain;
CREATE FOREIGN TABLE li.far_plain (id int) SERVER li_plain;
CREATE FOREIGN TABLE li.far_right (id int, name encrypted(text)) SERVER li_ours;
SELECT * FROM findings;
DROP FOREIGN DATA WRAPPER li_plain, li_ours CASCADE;
SELECT * FROM findings;

-- triggers, by their text
CREATE FUNCTION li.fires() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER fires BEFORE INSERT ON li.pupil FOR EACH ROW EXECUTE FUNCTION li.fires();
CREATE FUNCTION li.finds(body text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format('CREATE OR REPLACE FUNCTION li.fires() RETURNS trigger LANGUAGE plpgsql AS %L', 'BEGIN ' || body || chr(10) || '; RETURN NEW; END');
	RETURN coalesce((SELECT string_agg(rule || coalesce(': ' || split_part(why, ': ', 3), ''), '; ') FROM findings WHERE object LIKE 'trigger %'), 'nothing');
END
$$;
CREATE TABLE li.history (LIKE li.pupil);
CREATE TABLE li.log (id int, school text, name text, ssn text, born date);
SELECT body, li.finds(body) AS finds FROM (VALUES
	('INSERT INTO li.copy (about) VALUES (to_jsonb(NEW))'),
	('INSERT INTO li.copy (about) VALUES (to_jsonb(OLD.*) - ''id'')'),
	('INSERT INTO audit.log SELECT hstore(new.*) - hstore(old.*)'),
	('PERFORM pg_notify(''pupil'', row_to_json(NEW)::text)'),
	('INSERT INTO li.copy (what) VALUES (NEW::text)'),
	('INSERT INTO li.copy (what) VALUES ((NEW.*)::text)'),
	('INSERT INTO li.copy (what) VALUES (CAST(NEW AS text))'),
	('INSERT INTO li.copy (what) VALUES (format(''%s %s'', now(), NEW))'),
	('RAISE LOG ''changed %'', NEW'),
	('INSERT INTO li.copy (what) VALUES (NEW.name::text)'),
	('INSERT INTO li.copy (what) VALUES (nomp_crypt.decrypt(NEW.ssn))'),
	('INSERT INTO li.copy (what) VALUES (concat(''a'', NEW.name))'),
	('RAISE NOTICE ''changed %'', NEW.born'),
	('INSERT INTO log VALUES (NEW.*)'),
	('INSERT INTO li.log SELECT (NEW).*'),
	('INSERT INTO nowhere.to_be_seen SELECT NEW.*'),
	('INSERT INTO "odd . name" SELECT NEW.*'),
	('EXECUTE ''INSERT INTO a.b.c.d SELECT NEW.*'''),
	('INSERT INTO li.history VALUES (NEW.*)'),
	('INSERT INTO history SELECT NEW.*'),
	('INSERT INTO li.copy (id, name) VALUES (NEW.id, NEW.name)'),
	('INSERT INTO li.copy (about) VALUES (jsonb_build_object(''id'', NEW.id))'),
	('INSERT INTO li.copy (what) VALUES (NEW.school::text)'),
	('IF length(NEW.name::text) > 100 THEN RAISE EXCEPTION ''too long''; END IF'),
	('/* to_jsonb(NEW) */ NEW.id := 1 -- hstore(NEW)'),
	('NEW.named := true')) b(body);
DROP TRIGGER fires ON li.pupil;
CREATE TRIGGER fires BEFORE INSERT ON li.copy FOR EACH ROW EXECUTE FUNCTION li.fires();
SELECT li.finds('INSERT INTO li.log (name) VALUES (to_jsonb(NEW)::text)') AS a_table_with_encrypted_columns;
CREATE TABLE li.other (id int, name text);
DROP TRIGGER fires ON li.copy;
CREATE TRIGGER fires BEFORE INSERT ON li.other FOR EACH ROW EXECUTE FUNCTION li.fires();
SELECT li.finds('INSERT INTO li.log (name) VALUES (to_jsonb(NEW)::text)') AS a_table_without;
-- one that has the rows as tables, and one that has not
CREATE TRIGGER rows_of AFTER INSERT ON li.pupil REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT EXECUTE FUNCTION li.fires();
SELECT li.finds('INSERT INTO li.log (name) SELECT row_to_json(f) FROM fresh f') AS found, li.finds('INSERT INTO li.copy (id, name) SELECT f.id, f.name FROM fresh f') AS nothing;
DROP TRIGGER rows_of ON li.pupil;
CREATE TRIGGER rows_of AFTER INSERT ON li.pupil FOR EACH STATEMENT EXECUTE FUNCTION li.fires();
SELECT li.finds('INSERT INTO li.log (name) SELECT row_to_json(f) FROM li.other f') AS nothing;
DROP TRIGGER rows_of ON li.pupil;
-- names that are patterns themselves
CREATE TABLE li.odd ("a.b*(" encrypted(text), "c|.*" text);
CREATE TRIGGER fires BEFORE INSERT ON li.odd FOR EACH ROW EXECUTE FUNCTION li.fires();
SELECT li.finds('INSERT INTO li.log (name) VALUES (NEW."a.b*("::text)') AS found, li.finds('INSERT INTO li.log (name) VALUES (NEW."axb"::text)') AS nothing;
-- one whose text is not to be had, and ours
CREATE FUNCTION li.in_c() RETURNS trigger LANGUAGE c AS '$libdir/plpgsql', 'plpgsql_call_handler';
CREATE TRIGGER in_c BEFORE INSERT ON li.pupil FOR EACH ROW EXECUTE FUNCTION li.in_c();
CREATE TRIGGER ours BEFORE INSERT ON li.pupil FOR EACH ROW EXECUTE FUNCTION nomp_crypt.enforce_tenant('school');
SELECT * FROM findings;
DROP TRIGGER in_c ON li.pupil;
-- other functions, by their text
CREATE FUNCTION li.exports() RETURNS void LANGUAGE plpgsql AS 'BEGIN INSERT INTO li.log (name) SELECT nomp_crypt.decrypt(p.name) FROM li.pupil p; END';
CREATE PROCEDURE li.casts() LANGUAGE sql AS 'CREATE TABLE x AS SELECT p.ssn::text FROM li.pupil p';
CREATE FUNCTION li.asks() RETURNS text LANGUAGE sql AS 'SELECT p.ssn::text FROM li.pupil p';
CREATE FUNCTION li.writes() RETURNS void LANGUAGE sql AS 'INSERT INTO li.copy (name) SELECT p.name FROM li.pupil p';
SELECT * FROM findings;
DROP FUNCTION li.exports(), li.in_c();
DROP PROCEDURE li.casts();
DROP TABLE li.log, li.other;
SELECT * FROM findings;

-- plain columns by their names, in Swedish and English
SELECT of_table || '.' || name AS "column", category AS type, nomp_crypt._lint_personal(of_table, name, category::"char") AS holds FROM (VALUES
	('x', 'personnummer', 'S'), ('x', 'Personnr', 'N'), ('x', 'pnr', 'S'), ('x', 'elev_pnr', 'S'), ('x', 'ssn', 'S'), ('x', 'guardianSSN', 'S'),
	('x', U&'f\00F6delsenummer', 'S'), ('x', 'samordningsnummer', 'S'), ('x', 'social_security_no', 'S'), ('x', U&'f\00F6rnamn', 'S'), ('x', 'fornamn', 'S'), ('x', 'Efternamn', 'S'),
	('x', 'firstName', 'S'), ('x', 'last_name', 'S'), ('x', 'surname', 'S'), ('x', 'elevnamn', 'S'), ('elev', 'namn', 'S'), ('app_users', 'name', 'S'), (U&'V\00C5RDNADSHAVARE', 'namn', 'S'),
	('x', 'adress', 'S'), ('x', 'hemadress', 'S'), ('x', 'postalAddress', 'S'), ('x', 'gatuadress', 'S'), ('x', 'postnummer', 'S'), ('x', 'zip_code', 'S'),
	('x', 'epost', 'S'), ('x', 'e-post', 'S'), ('x', 'email', 'S'), ('x', 'contact_email2', 'S'), ('x', 'e_mail_address', 'S'), ('x', 'mejladress', 'S'),
	('x', 'telefon', 'S'), ('x', 'phone_number', 'S'), ('x', 'mobilnr', 'N'), ('x', 'tfn', 'S'), ('x', U&'v\00E5rdnadshavare', 'S'), ('x', U&'\00C5lder', 'N'),
	('x', U&'F\00D6DELSEDATUM', 'D'), ('x', 'fodelsedag', 'D'), ('x', 'birth_date', 'D'), ('x', 'dateOfBirth', 'S'), ('x', 'dob', 'D'), ('x', U&'f\00F6dd', 'D'),
	('x', 'diagnos', 'S'), ('x', 'allergies', 'S'), ('x', 'religion', 'S'),
	('school', 'name', 'S'), ('pupil', 'file_name', 'S'), ('x', 'namn', 'S'), ('x', 'ip_address', 'S'), ('x', 'web_adress', 'S'), ('x', 'email_sent_at', 'D'), ('x', 'email_verified', 'B'), ('x', 'phone', 'B'),
	('x', 'dob', 'B'), ('x', 'personnel', 'S'), ('x', 'session', 'S'), ('x', 'dashboard', 'S'), ('x', 'adobe', 'S'), ('x', 'thumbnail', 'S'), ('x', 'unborn', 'S'),
	('x', 'id', 'N'), ('x', 'telephony', 'S'), ('x', 'automobile_model', 'S'), ('x', 'a\b', 'S'), ('x', '', 'S')) n(of_table, name, category);
CREATE TABLE li.named (id int, personnummer text, email text DEFAULT '', "förnamn" varchar(40), born encrypted(date), phone encrypted(text), fodelsedatum date);
CREATE TABLE li.parted (id int, pnr text, efternamn text) PARTITION BY RANGE (id);
CREATE TABLE li.parted_1 PARTITION OF li.parted FOR VALUES FROM (0) TO (10);
CREATE TABLE li.parted_2 PARTITION OF li.parted FOR VALUES FROM (10) TO (1000);
CREATE TABLE li.child () INHERITS (li.named);
SELECT * FROM findings;
DROP TABLE li.child;
ALTER TABLE li.named DROP COLUMN personnummer, DROP COLUMN fodelsedatum, ALTER COLUMN email TYPE encrypted(text), ALTER COLUMN "förnamn" TYPE encrypted(text);
DROP TABLE li.parted;
SELECT * FROM findings;
DROP TABLE li.named;

-- and by what is in them: counted, never shown
CREATE VIEW sampled AS SELECT severity, rule, object, substr(why, strpos(why, ': ') + 2) AS detail FROM nomp_crypt.lint() WHERE object ~ '\mli\.' OR why ~ '\mli\.';
CREATE DOMAIN li.short AS varchar(20) CHECK (VALUE <> 'x');
CREATE TABLE li.sample (id int PRIMARY KEY, a text, b li.short, c jsonb, d bigint, e text[], f char(20), g xml, h numeric, i bytea, j text, k encrypted(text));
SELECT * FROM sampled;
INSERT INTO li.sample SELECT i, 'Elev 20121212-1212', '121212-1212', '{"pnr": "201212121212"}', 201212121212, '{x,201212121212}', '121212-1212', '<p>121212-1212</p>',
	1212121212, '121212-1212', repeat('x', 3000) || ' 121212-1212' FROM generate_series(1, 100) i;
SELECT * FROM sampled;
-- how many rows are looked at, at most
SELECT DISTINCT regexp_replace(why, '.*: ', '') AS looked_at FROM nomp_crypt.lint(10) WHERE object ~ '\mli\.sample' AND rule = 'personal_numbers' ORDER BY 1;
-- one in many is found, what only has the shape is not, nor what is one by chance
TRUNCATE li.sample;
INSERT INTO li.sample (id, a, b, d) SELECT i, CASE i WHEN 77 THEN 'see 121212-1212' ELSE 'nothing' END, to_char(timestamp '2024-01-01' + i * interval '1 day 7 minutes', 'YYYYMMDDHH24MI'),
	5560360793 + i FROM generate_series(1, 300) i;
SELECT * FROM sampled;
TRUNCATE li.sample;
INSERT INTO li.sample (id, a, b, c, j) SELECT i, 'anna' || i || '@example.se', '070-123 45 ' || i + 10, '{"mobile": "+46701234567"}', CASE i WHEN 1 THEN '0701234567' ELSE 'x' END FROM generate_series(1, 50) i;
SELECT * FROM sampled;
TRUNCATE li.sample;
-- the rows of a large table are taken from all of it
INSERT INTO li.sample (id, a) SELECT i, CASE WHEN i > 15000 THEN 'ring 121212-1212' ELSE repeat('x', 100) END FROM generate_series(1, 20000) i;
SELECT severity, rule, object, detail ~ '^\d\d\d of \d+ values' AS detail FROM sampled;
TRUNCATE li.sample;
-- partitions: the largest one stands for all; a materialized view; one never filled
CREATE TABLE li.parted (id int, x text) PARTITION BY RANGE (id);
CREATE TABLE li.parted_1 PARTITION OF li.parted FOR VALUES FROM (0) TO (10);
CREATE TABLE li.parted_2 (x text, gone int, id int);
ALTER TABLE li.parted_2 DROP COLUMN gone;
ALTER TABLE li.parted ATTACH PARTITION li.parted_2 FOR VALUES FROM (10) TO (1000);
INSERT INTO li.parted SELECT i, '121212-1212' FROM generate_series(20, 900) i;
VACUUM li.parted;
CREATE MATERIALIZED VIEW li.seen AS SELECT x FROM li.parted LIMIT 5;
CREATE MATERIALIZED VIEW li.unseen AS SELECT x FROM li.parted WITH NO DATA;
SELECT * FROM sampled;
-- what a role may not read is not looked into, and said to be so
CREATE ROLE regress_looks IN ROLE pg_monitor;
GRANT SELECT ON sampled TO regress_looks;
GRANT USAGE ON SCHEMA li TO regress_looks;
CREATE FUNCTION li.never() RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''a policy ran''; END';
CREATE TABLE li.hidden (x text);
ALTER TABLE li.hidden ENABLE ROW LEVEL SECURITY;
CREATE POLICY never ON li.hidden USING (li.never());
INSERT INTO li.hidden VALUES ('121212-1212');
GRANT SELECT ON li.hidden TO regress_looks;
GRANT SELECT (x) ON li.parted_2 TO regress_looks;
CREATE FUNCTION looked() RETURNS TABLE (severity text, rule text, object text, detail text) LANGUAGE sql AS $$
	SELECT l.severity, l.rule, l.object, substr(l.why, strpos(l.why, ': ') + 2) FROM nomp_crypt.lint() l WHERE l.object ~ '\mli\.' OR l.why ~ '\mli\.'
$$;
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM regress_looks;
SET ROLE regress_looks;
SELECT severity, rule, object, detail ~ 'li\.(seen|sample)' AS unseen FROM looked();
RESET ROLE;
DROP TABLE li.parted, li.hidden, li.sample CASCADE;
DROP FUNCTION looked();
DROP VIEW sampled;
DROP OWNED BY regress_looks;
DROP ROLE regress_looks;
SELECT * FROM findings;

-- conversions that are not finished, not on record, or not done with
SELECT nomp_crypt.create_tenant('li-a') IS NOT NULL AS created;
SELECT nomp_crypt.grant_tenant('li-a', current_user, '{encrypt,decrypt}');
CREATE VIEW residue AS SELECT l.severity, l.rule, regexp_replace(l.object, 'nomp_crypt_(tenant_)?[0-9a-f]{8,}', 'nomp_crypt_\1(number)') AS object,
	regexp_replace(l.why, '\d{4}-\d\d-\d\d \d\d:\d\d:\d\d|by \S+$|by [^;]+(?=;)', '(...)', 'g') AS why
FROM nomp_crypt.lint(0) l WHERE l.object ~ '\mli\.';
CREATE TABLE li.conv (id int PRIMARY KEY, school text DEFAULT 'li-a', x text, y text);
INSERT INTO li.conv (id, x, y) SELECT i, 'x' || i, 'y' FROM generate_series(1, 200) i;
ANALYZE li.conv;
SELECT * FROM residue;
-- in the middle of one
SELECT nomp_crypt._online_begin('li.conv', 'x', NULL, '''li-a''', '{}', false, NULL, false, false) AS conversion \gset
SELECT * FROM residue;
SELECT nomp_crypt._online_prepare(:'conversion');
SELECT * FROM residue;
-- as a dump of the table has it elsewhere, where no conversion is on record
UPDATE nomp_crypt.conversion SET state = 'done' WHERE uuid = :'conversion';
SELECT * FROM residue;
UPDATE nomp_crypt.conversion SET state = 'filling' WHERE uuid = :'conversion';
CALL nomp_crypt.cancel_conversion('li.conv', 'x');
SELECT * FROM residue;
-- its table is gone
CREATE TABLE li.gone (id int PRIMARY KEY, school text DEFAULT 'li-a', x text);
SELECT nomp_crypt._online_begin('li.gone', 'x', 'school', 'school', '{school}', false, NULL, false, false) AS conversion \gset
DROP TABLE li.gone;
SELECT * FROM residue;
DELETE FROM nomp_crypt.conversion WHERE uuid = :'conversion';
-- a function of encrypt_column's whose transaction somebody took apart
CREATE FUNCTION li.nomp_crypt_tenant_0123456789abcdef0123456789abcdef() RETURNS text LANGUAGE sql AS 'SELECT NULL::text';
SELECT * FROM residue;
DROP FUNCTION li.nomp_crypt_tenant_0123456789abcdef0123456789abcdef();
-- the files, the statistics, the backups
CALL nomp_crypt.encrypt_column_online('li.conv', 'x', 'school');
SELECT * FROM residue;
CALL nomp_crypt.rewrite_table('li.conv');
SELECT * FROM residue;
SELECT nomp_crypt.encrypt_column('li.conv', 'y', 'school');
SELECT * FROM residue;
CALL nomp_crypt.rewrite_table('li.conv');
SELECT * FROM residue;
BEGIN;
UPDATE nomp_crypt.column_history SET at = at - interval '1 year';
SELECT * FROM residue;
ROLLBACK;
DELETE FROM nomp_crypt.column_history WHERE table_name = 'li.conv';
SELECT * FROM residue;
DROP VIEW residue;
DROP TABLE li.conv;
SELECT nomp_crypt.revoke_tenant('li-a', current_user);
CALL nomp_crypt.erase_tenant('li-a', 'test');

-- what somebody has accepted is shown as that
CREATE MATERIALIZED VIEW li.v_cast AS SELECT name::text FROM li.pupil;
SELECT nomp_crypt.accept_lint('view_of_decrypted', 'materialized view li.v_cast', 'made-up names, see T-17');
SELECT severity, rule, object, regexp_replace(why, 'by \S+ on \S+:', 'by (role) on (date):') AS why FROM findings;
SELECT role = current_user AS by_me, at <= now() AS at FROM nomp_crypt.lint_accepted;
SELECT nomp_crypt.accept_lint('view_of_decrypted', 'materialized view li.v_cast', NULL);
SELECT severity, rule, object FROM findings;
SELECT detail FROM nomp_crypt.audit WHERE act = 'accept_lint' ORDER BY at;
SELECT outcome($$SELECT nomp_crypt.accept_lint('no_rule', 'x', 'y')$$) AS "42704", outcome($$SELECT nomp_crypt.accept_lint('view_of_decrypted', 'x', NULL)$$) AS "42704",
	outcome($$SELECT nomp_crypt.accept_lint('view_of_decrypted', 'x', '')$$) AS "22023", outcome($$SELECT nomp_crypt.accept_lint(NULL, 'x', 'y')$$) AS "22023";

-- an erasure's preview names what is about the school's tables
SELECT nomp_crypt.create_tenant('li-school') IS NOT NULL AS created;
SELECT nomp_crypt.grant_tenant('li-school', current_user, '{encrypt}');
INSERT INTO li.pupil VALUES (1, 'li-school', nomp_crypt.encrypt('Vera', 'li-school'));
SELECT object, amount, detail FROM nomp_crypt.erasure_preview('li-school') WHERE detail LIKE '%lint%';
DROP MATERIALIZED VIEW li.v_cast;
SELECT object, amount, detail FROM nomp_crypt.erasure_preview('li-school') WHERE detail LIKE '%lint%';
SELECT nomp_crypt.revoke_tenant('li-school', current_user);
CALL nomp_crypt.erase_tenant('li-school', 'test');

-- inside a tenant, in a transaction that may write nothing
BEGIN READ ONLY;
SET LOCAL nomp_crypt.tenant = 'ribersborg';
SELECT count(*) FROM nomp_crypt.lint() WHERE object ~ '\mli\.';
COMMIT;

-- for whom it is
CREATE ROLE regress_watcher IN ROLE pg_monitor;
CREATE ROLE regress_lint_admin;
SELECT nomp_crypt.grant_admin('regress_lint_admin');
SET ROLE regress_app;
SELECT outcome('SELECT * FROM nomp_crypt.lint(0)') AS lint, outcome($$SELECT nomp_crypt.accept_lint('view_of_decrypted', 'x', 'y')$$) AS accept;
SET ROLE regress_watcher;
SELECT outcome('SELECT * FROM nomp_crypt.lint(0)') AS lint, outcome($$SELECT nomp_crypt.accept_lint('view_of_decrypted', 'x', 'y')$$) AS accept;
SET ROLE regress_lint_admin;
SELECT outcome('SELECT * FROM nomp_crypt.lint(0)') AS lint, outcome($$SELECT nomp_crypt.accept_lint('view_of_decrypted', 'x', 'y')$$) AS accept,
	outcome('SELECT * FROM nomp_crypt._lint(0, false)') AS inside;
RESET ROLE;
SELECT role FROM nomp_crypt.lint_accepted;
DELETE FROM nomp_crypt.lint_accepted;
DROP VIEW findings;
DROP OWNED BY regress_lint_admin;
DROP ROLE regress_watcher, regress_lint_admin;
DROP SCHEMA li CASCADE;
