--
-- nomp_crypt.lint(): each rule of the catalogs finds what it is for, is silent
-- about what is right, and once it is put right. (Settings, files and the
-- machine are in t/lint_finds_leaks.pl.)
--
\set VERBOSITY terse
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
SELECT l.object, ARRAY(SELECT r::regclass::text FROM unnest(l.relations) r ORDER BY 1) AS relations FROM nomp_crypt._lint(0) l
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
SELECT * FROM findings;

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
	outcome('SELECT * FROM nomp_crypt._lint(0)') AS inside;
RESET ROLE;
SELECT role FROM nomp_crypt.lint_accepted;
DELETE FROM nomp_crypt.lint_accepted;
DROP VIEW findings;
DROP OWNED BY regress_lint_admin;
DROP ROLE regress_watcher, regress_lint_admin;
DROP SCHEMA li CASCADE;
