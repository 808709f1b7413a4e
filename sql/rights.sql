--
-- Rights, per role and school or for all. Nobody has any by default.
--
\set VERBOSITY terse
CREATE ROLE regress_reader;
CREATE ROLE regress_writer;
CREATE ROLE regress_member IN ROLE regress_reader;
CREATE ROLE regress_noinherit NOINHERIT IN ROLE regress_reader;
GRANT ALL ON pupil TO regress_reader, regress_writer, regress_member, regress_noinherit;
SELECT nomp_crypt.grant_tenant('ribersborg', 'regress_reader', '{decrypt}');
SELECT nomp_crypt.grant_tenant('ribersborg', 'regress_writer', '{encrypt}');

-- a writer need not be a reader
SET ROLE regress_writer;
SET nomp_crypt.tenant = 'ribersborg';
INSERT INTO pupil VALUES (200, 'ribersborg', 'Anna');
SELECT name FROM pupil WHERE id = 200;
SELECT nomp_crypt.decrypt(name) FROM pupil WHERE id = 200;
SELECT nomp_crypt.try_decrypt(name) FROM pupil WHERE id = 200;
-- nor a reader a writer
SET ROLE regress_reader;
SELECT name FROM pupil WHERE id = 200;
UPDATE pupil SET name = 'Bea' WHERE id = 200;
SELECT nomp_crypt.encrypt('Bea', 'ribersborg');
-- and neither has anything in another school
SELECT nomp_crypt.encrypt('Bea', 'slottsstaden');
-- membership counts as PostgreSQL says: inherited, or after SET ROLE
SET ROLE regress_member;
SELECT name FROM pupil WHERE id = 200;
SET ROLE regress_noinherit;
SELECT name FROM pupil WHERE id = 200;
-- a superuser needs rights too
RESET ROLE;
SELECT name FROM pupil WHERE id = 200;

-- definer functions read with their owner's rights
CREATE FUNCTION name_of(id bigint) RETURNS text LANGUAGE sql SECURITY DEFINER
SET search_path = public, pg_temp AS 'SELECT name::text FROM pupil p WHERE p.id = name_of.id';
ALTER FUNCTION name_of(bigint) OWNER TO regress_reader;
SET ROLE regress_writer;
SELECT name_of(200);

-- taking back: at the next transaction of others, at once in one's own
RESET ROLE;
BEGIN;
SET LOCAL ROLE regress_reader;
SELECT name FROM pupil WHERE id = 200;
RESET ROLE;
SELECT nomp_crypt.revoke_tenant('ribersborg', 'regress_reader', '{decrypt}');
SET LOCAL ROLE regress_reader;
SELECT name FROM pupil WHERE id = 200;
ROLLBACK;
SET ROLE regress_reader;
SELECT name FROM pupil WHERE id = 200;
RESET ROLE;
BEGIN;
SAVEPOINT s;
SELECT nomp_crypt.grant_tenant('ribersborg', 'regress_writer', '{decrypt}');
SET LOCAL ROLE regress_writer;
SELECT name FROM pupil WHERE id = 200;
ROLLBACK TO s;
SET LOCAL ROLE regress_writer;
SELECT name FROM pupil WHERE id = 200;
ROLLBACK;

-- for all schools, those to come included
SELECT nomp_crypt.grant_all_tenants('regress_writer', '{encrypt,decrypt}');
SELECT nomp_crypt.create_tenant('new-school') IS NOT NULL AS created;
SET ROLE regress_writer;
SELECT nomp_crypt.decrypt(nomp_crypt.encrypt('Nils', 'new-school'));
RESET ROLE;
SELECT nomp_crypt.revoke_all_tenants('regress_writer', '{encrypt}');
SELECT role, tenant, encrypt, decrypt, search, load, granted_by = current_user AS by_me
FROM nomp_crypt.rights WHERE role LIKE 'regress\_%' ORDER BY role, tenant;
SELECT nomp_crypt.revoke_all_tenants('regress_writer');

--
-- load: storing ciphertext as it stands
--
RESET nomp_crypt.tenant;
SELECT format('%s', name) AS stolen FROM pupil WHERE id = 200 \gset
SET ROLE regress_writer;
INSERT INTO pupil VALUES (201, 'ribersborg', :'stolen');
RESET ROLE;
SELECT nomp_crypt.grant_tenant('slottsstaden', 'regress_writer', '{load}');
SET ROLE regress_writer;
INSERT INTO pupil VALUES (201, 'ribersborg', :'stolen');
RESET ROLE;
SELECT nomp_crypt.grant_tenant('ribersborg', 'regress_writer', '{load}');
SET ROLE regress_writer;
INSERT INTO pupil VALUES (201, 'ribersborg', :'stolen');
-- inside a tenant it is refused to everybody: nothing is encrypted twice
SET nomp_crypt.tenant = 'ribersborg';
INSERT INTO pupil VALUES (202, 'ribersborg', :'stolen');
RESET nomp_crypt.tenant;
RESET ROLE;
INSERT INTO pupil VALUES (202, 'ribersborg', :'stolen');
SET ROLE regress_reader;
SELECT id, name::text FROM pupil WHERE id >= 200 ORDER BY id;

-- a new role of a dropped one's name has its rights: roles are named, as in a
-- dump; so take them back first
RESET ROLE;
DELETE FROM pupil WHERE id >= 200;
DROP FUNCTION name_of(bigint);
SELECT nomp_crypt.revoke_tenant('ribersborg', 'regress_reader');
SELECT nomp_crypt.revoke_tenant('ribersborg', 'regress_writer');
SELECT nomp_crypt.revoke_tenant('slottsstaden', 'regress_writer');
REVOKE ALL ON pupil FROM regress_reader, regress_writer, regress_member, regress_noinherit;
DROP ROLE regress_member, regress_noinherit, regress_reader, regress_writer;
CALL nomp_crypt.erase_tenant('new-school', 'test');
SELECT count(*) AS "0" FROM nomp_crypt.rights WHERE role NOT IN ('regress_app', 'regress_other');
