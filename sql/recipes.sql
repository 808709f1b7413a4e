--
-- docs/recipes.md, statement by statement: scripts/check-readme compares them.
-- What stands between the blocks looks at what they did.
--
\set VERBOSITY terse
ALTER TABLE pupil RENAME TO pupil_of_the_other_tests;
SELECT nomp_crypt.create_tenant('s-0180-42') IS NOT NULL AS created;
SELECT nomp_crypt.create_tenant('s-0180-43') IS NOT NULL AS created;
-- the document's first part: row-level security
CREATE TABLE pupil (
  id      bigint PRIMARY KEY,
  school  text NOT NULL,
  class   text,
  name    encrypted(text)
);
CREATE INDEX ON pupil (school);

ALTER TABLE pupil ENABLE ROW LEVEL SECURITY;
ALTER TABLE pupil FORCE ROW LEVEL SECURITY;
CREATE POLICY own_school ON pupil
  USING (school = nomp_crypt.current_tenant())
  WITH CHECK (school = nomp_crypt.current_tenant());

CREATE TRIGGER zz_own_school BEFORE INSERT OR UPDATE ON pupil
  FOR EACH ROW EXECUTE FUNCTION nomp_crypt.enforce_tenant('school');

CREATE ROLE app LOGIN;
ALTER ROLE app SET nomp_crypt.tenant_scope = transaction;
ALTER ROLE app SET nomp_crypt.strict_tenant = on;
GRANT SELECT, INSERT, UPDATE, DELETE ON pupil TO app;
SELECT nomp_crypt.grant_tenant('s-0180-42', 'app', '{encrypt,decrypt}');
SELECT nomp_crypt.grant_tenant('s-0180-43', 'app', '{encrypt,decrypt}');

GRANT app TO current_user;
SET ROLE app;
-- what ALTER ROLE does when app connects
SET nomp_crypt.tenant_scope = transaction;
SET nomp_crypt.strict_tenant = on;

BEGIN;
SET LOCAL nomp_crypt.tenant = 's-0180-42';
INSERT INTO pupil VALUES (1, 's-0180-42', '5B', 'Anna Åkesson');
SELECT id, class, name FROM pupil;
COMMIT;

-- another school sees none of it, and cannot write into it
BEGIN;
SET LOCAL nomp_crypt.tenant = 's-0180-43';
SELECT count(*) AS "0" FROM pupil;
INSERT INTO pupil VALUES (2, 's-0180-43', '5B', 'Bo');
UPDATE pupil SET school = 's-0180-42';
ROLLBACK;
BEGIN;
SET LOCAL nomp_crypt.tenant = 's-0180-43';
INSERT INTO pupil VALUES (2, 's-0180-42', '5B', 'Bo');
ROLLBACK;
-- a value of another school than the row: the trigger
INSERT INTO pupil VALUES (2, 's-0180-43', '5B', nomp_crypt.encrypt('Bo', 's-0180-42'));
-- with no tenant: nothing to see, nothing to write
SELECT count(*) AS "0" FROM pupil;
INSERT INTO pupil (id, school) VALUES (2, 's-0180-42');
-- left over from another client: as with none
SET nomp_crypt.tenant = 's-0180-42';
SELECT nomp_crypt.current_tenant() IS NULL AS not_in_force, count(*) AS "0" FROM pupil;
RESET nomp_crypt.tenant;
-- a second school in one transaction
BEGIN;
SET LOCAL nomp_crypt.tenant = 's-0180-42';
SELECT name FROM pupil;
SET LOCAL nomp_crypt.tenant = 's-0180-43';
ROLLBACK;
-- the index is used
BEGIN;
SET LOCAL nomp_crypt.tenant = 's-0180-42';
SET LOCAL enable_seqscan = off;
SET LOCAL enable_bitmapscan = off;
EXPLAIN (COSTS OFF) SELECT id FROM pupil;
ROLLBACK;
RESET ALL;
RESET ROLE;
-- FORCE: the owner too
ALTER TABLE pupil OWNER TO app;
SET ROLE app;
SELECT count(*) AS "0" FROM pupil;
RESET ROLE;

-- the second part: protected identities
SELECT nomp_crypt.create_tenant('s-0180-42:protected', agreement => 'PUB-2024-117') IS NOT NULL AS created;

CREATE ROLE teacher;
CREATE ROLE principal;
SELECT nomp_crypt.grant_tenant('s-0180-42', 'teacher', '{encrypt,decrypt}');
SELECT nomp_crypt.grant_tenant('s-0180-42', 'principal', '{encrypt,decrypt}');
SELECT nomp_crypt.grant_tenant('s-0180-42:protected', 'principal', '{encrypt,decrypt}');

CREATE TABLE person (
  id      bigint PRIMARY KEY,
  school  text NOT NULL,
  tenant  text NOT NULL CHECK (tenant IN (school, school || ':protected')),
  class   text,
  name    encrypted(text),
  address encrypted(text)
);
CREATE TRIGGER zz_tenant BEFORE INSERT OR UPDATE ON person
  FOR EACH ROW EXECUTE FUNCTION nomp_crypt.enforce_tenant('tenant');

ALTER TABLE person ENABLE ROW LEVEL SECURITY;
ALTER TABLE person FORCE ROW LEVEL SECURITY;
CREATE POLICY own_school ON person
  USING (school = split_part(nomp_crypt.current_tenant(), ':', 1));

-- for everybody: that there is a pupil, and who, unless protected
CREATE VIEW class_list WITH (security_invoker = true) AS
SELECT id, school, class, tenant <> school AS protected,
  CASE WHEN tenant = school THEN name::text END AS name
FROM person;

-- for those who may know
CREATE VIEW class_list_all WITH (security_invoker = true) AS
SELECT id, school, class, tenant <> school AS protected, name::text AS name, address::text AS address
FROM person;

GRANT SELECT, INSERT, UPDATE, DELETE ON person TO teacher, principal;
GRANT SELECT ON class_list, class_list_all TO teacher, principal;

SET ROLE principal;
BEGIN;
SET LOCAL nomp_crypt.tenant = 's-0180-42';
INSERT INTO person VALUES (1, 's-0180-42', 's-0180-42', '5B', 'Anna Åkesson', 'Storgatan 1');
COMMIT;
BEGIN;
SET LOCAL nomp_crypt.tenant = 's-0180-42:protected';
INSERT INTO person VALUES (2, 's-0180-42', 's-0180-42:protected', '5B', 'Bea Berg', 'Lillgatan 2');
COMMIT;

SET ROLE teacher;
BEGIN;
SET LOCAL nomp_crypt.tenant = 's-0180-42';
SELECT id, class, protected, name FROM class_list ORDER BY id;
COMMIT;
-- without the view: the other tenant's values as ciphertext, if the session asks for it
BEGIN;
SET LOCAL nomp_crypt.tenant = 's-0180-42';
SET LOCAL nomp_crypt.other_tenants = 'ciphertext';
SELECT id, left(format('%s', name), 4) AS begins FROM person ORDER BY id;    -- Anna, nc1:
COMMIT;

BEGIN;
SET LOCAL nomp_crypt.tenant = 's-0180-42';
SELECT name FROM class_list_all;                    -- 42501, right "decrypt" missing
ROLLBACK;
BEGIN;
SET LOCAL nomp_crypt.tenant = 's-0180-42';
SELECT name FROM person ORDER BY id;                -- 55000, a value of another tenant
ROLLBACK;
BEGIN;
SET LOCAL nomp_crypt.tenant = 's-0180-42:protected';
SELECT name FROM person WHERE tenant <> school;     -- 42501
ROLLBACK;

SET ROLE principal;
BEGIN;
SET LOCAL nomp_crypt.tenant = 's-0180-42';
SELECT id, class, protected, name, address FROM class_list_all ORDER BY id;
COMMIT;
BEGIN;
SET LOCAL nomp_crypt.tenant = 's-0180-42:protected';
UPDATE person SET tenant = school || ':protected', name = name::text, address = address::text
WHERE id = 1;
COMMIT;
SET ROLE teacher;
BEGIN;
SET LOCAL nomp_crypt.tenant = 's-0180-42';
SELECT id, class, protected, name FROM class_list ORDER BY id;
COMMIT;
RESET ROLE;

-- the third part: ORMs that save all columns
CREATE TRIGGER keep_unchanged BEFORE UPDATE ON pupil
  FOR EACH ROW EXECUTE FUNCTION nomp_crypt.keep_unchanged();

CREATE TEMP TABLE stored AS SELECT id, encrypted_send(name) AS name FROM pupil;
SELECT id, class FROM pupil WHERE id = 1;
SET ROLE app;
SET nomp_crypt.tenant_scope = transaction;
BEGIN;
SET LOCAL nomp_crypt.tenant = 's-0180-42';
UPDATE pupil SET school = 's-0180-42', class = '5C', name = 'Anna Åkesson' WHERE id = 1;
COMMIT;
RESET ROLE;
RESET nomp_crypt.tenant_scope;
SELECT id, class, encrypted_send(p.name) = s.name AS kept FROM pupil p JOIN stored s USING (id) WHERE id = 1;
DROP TABLE stored;

DROP VIEW class_list, class_list_all;
DROP TABLE person, pupil;
ALTER TABLE pupil_of_the_other_tests RENAME TO pupil;
SELECT role, tenant, nomp_crypt.revoke_tenant(tenant, role) FROM nomp_crypt.rights
WHERE role IN ('app', 'teacher', 'principal') ORDER BY role, tenant;
DROP ROLE app, teacher, principal;
CALL nomp_crypt.erase_tenant('s-0180-42', 'test');
CALL nomp_crypt.erase_tenant('s-0180-42:protected', 'test');
CALL nomp_crypt.erase_tenant('s-0180-43', 'test');
