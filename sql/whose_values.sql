--
-- Inside a tenant only its own values are stored, whichever way they come:
-- a value that was read from another school's row is refused (55000), not
-- copied along.
--
\set VERBOSITY terse
CREATE DOMAIN ssn AS encrypted(text, searchable);
CREATE TABLE diary (
	id    int PRIMARY KEY,
	name  encrypted(text),
	ssn   ssn,
	names encrypted(text)[]
);
GRANT ALL ON diary TO regress_app;
SELECT nomp_crypt.grant_all_tenants('regress_app', '{search}');
SET ROLE regress_app;
SET nomp_crypt.tenant = 'ribersborg';
INSERT INTO diary VALUES (1, 'Anna', '111', '{Anna,Bea}');
SET nomp_crypt.tenant = 'slottsstaden';
INSERT INTO diary VALUES (2, 'Bo', '222', '{Bo}');
INSERT INTO diary (id, name) SELECT 3, name FROM diary WHERE id = 1;
INSERT INTO diary (id, ssn) SELECT 3, ssn FROM diary WHERE id = 1;
INSERT INTO diary (id, names) SELECT 3, names FROM diary WHERE id = 1;
INSERT INTO diary (id, name) VALUES (3, 'x'), (4, (SELECT name FROM diary WHERE id = 1));
INSERT INTO diary (id, name) VALUES (2, 'x') ON CONFLICT (id) DO UPDATE SET name = (SELECT name FROM diary WHERE id = 1);
UPDATE diary SET name = other.name FROM diary other WHERE diary.id = 2 AND other.id = 1;
UPDATE diary SET names = array_append(names, (SELECT name FROM diary WHERE id = 1)) WHERE id = 2;
UPDATE diary SET (name, ssn) = (SELECT name, ssn FROM diary WHERE id = 1) WHERE id = 2;
UPDATE diary SET name = coalesce(NULL, (SELECT name FROM diary WHERE id = 1))::encrypted(text) WHERE id = 2;
MERGE INTO diary USING (SELECT name FROM diary WHERE id = 1) other ON diary.id = 2 WHEN MATCHED THEN UPDATE SET name = other.name;
MERGE INTO diary USING (SELECT name FROM diary WHERE id = 1) other ON false WHEN NOT MATCHED THEN INSERT (id, name) VALUES (3, other.name);
WITH other AS (SELECT name FROM diary WHERE id = 1) INSERT INTO diary (id, name) SELECT 3, name FROM other;
DO $$ DECLARE v diary.name%TYPE; BEGIN SELECT name INTO v FROM diary WHERE id = 1; INSERT INTO diary (id, name) VALUES (3, v); END $$;
DO $$ DECLARE r diary; BEGIN SELECT * INTO r FROM diary WHERE id = 1; r.id := 3; INSERT INTO diary VALUES (r.*); END $$;
-- a value made for searching is none to store
INSERT INTO diary (id, ssn) SELECT 3, v FROM unnest(nomp_crypt.search_values('222')) v WHERE nomp_crypt.tenant_of(v) = 'slottsstaden';
-- its own are fine
INSERT INTO diary SELECT 3, name, NULL, names FROM diary WHERE id = 2;
UPDATE diary SET name = 'Bosse', names = names || ARRAY['Kalle']::encrypted(text)[] WHERE id = 3;
SELECT id, name, ssn, names FROM diary WHERE id IN (2, 3) ORDER BY id;
-- across schools through what is inside, with both rights
UPDATE diary SET name = (SELECT name::text FROM diary WHERE id = 1) WHERE id = 3;
SELECT name, nomp_crypt.tenant_of(name) FROM diary WHERE id = 3;
-- literals move with the school; a foreign value cannot pose as one
RESET ROLE;
CREATE ROLE regress_searcher;
GRANT SELECT ON diary TO regress_searcher;
SELECT nomp_crypt.grant_tenant('ribersborg', 'regress_searcher', '{search}');
SELECT nomp_crypt.grant_tenant('slottsstaden', 'regress_searcher', '{decrypt}');
SET ROLE regress_searcher;
SET nomp_crypt.tenant = 'slottsstaden';
SELECT nomp_crypt._literal(name, true) FROM diary WHERE id = 1;
RESET ROLE;
RESET nomp_crypt.tenant;
SELECT nomp_crypt.grant_tenant('slottsstaden', current_user, '{search}');
-- outside a tenant nothing is lost that a superuser moves
INSERT INTO diary SELECT 5, name, ssn, names FROM diary WHERE id = 2 ON CONFLICT DO NOTHING;
INSERT INTO diary (id, ssn) SELECT 6, unnest(nomp_crypt.search_values('222'));
SELECT nomp_crypt.revoke_tenant('slottsstaden', current_user);
SELECT nomp_crypt.revoke_tenant('ribersborg', 'regress_searcher');
SELECT nomp_crypt.revoke_tenant('slottsstaden', 'regress_searcher');
SELECT nomp_crypt.revoke_all_tenants('regress_app', '{search}');
DROP TABLE diary;
DROP DOMAIN ssn;
DROP ROLE regress_searcher;
