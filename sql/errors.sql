--
-- The seven things that can be wrong, each with its SQLSTATE, and the errors
-- around them. One for another would be a defect.
--
\set SHOW_CONTEXT never
\set VERBOSITY sqlstate

-- 42501: right missing (a superuser has none by default either)
SELECT nomp_crypt.encrypt('Anna', 'ribersborg') AS "42501";
-- 42704: no such tenant
SELECT nomp_crypt.encrypt('Anna', 'nowhere') AS "42704";
SET nomp_crypt.tenant = 'nowhere';
INSERT INTO pupil VALUES (900, 'nowhere', 'Anna'); -- 42704
SELECT 1 AS "a query without encrypted values is nobody's business";
RESET nomp_crypt.tenant;

SET ROLE regress_app;
-- NC006: no tenant set
INSERT INTO pupil VALUES (900, 'ribersborg', 'Anna'); -- NC006
INSERT INTO pupil VALUES (900, 'ribersborg', 'Anna'::text); -- NC006
SET nomp_crypt.tenant = '';
INSERT INTO pupil VALUES (900, 'ribersborg', 'Anna'); -- NC006
-- NC005: one bit of the tag
SET nomp_crypt.tenant = 'ribersborg';
INSERT INTO pupil VALUES (900, 'ribersborg', 'Anna');
RESET nomp_crypt.tenant;
RESET ROLE;
CREATE TABLE raw_value AS
	SELECT decode(substr(encrypted_out(name)::text, 5), 'base64') AS bytes FROM pupil WHERE id = 900;
CREATE FUNCTION as_value(bytea) RETURNS encrypted LANGUAGE sql
	AS $$ SELECT ('nc1:' || replace(encode($1, 'base64'), E'\n', ''))::encrypted $$;
UPDATE pupil SET name = (SELECT as_value(set_bit(bytes, length(bytes) * 8 - 1, 1 - get_bit(bytes, length(bytes) * 8 - 1)))
	FROM raw_value) WHERE id = 900;
SET ROLE regress_app;
SELECT nomp_crypt.decrypt(name) AS "NC005" FROM pupil WHERE id = 900;
SELECT nomp_crypt.try_decrypt(name) AS "NC005" FROM pupil WHERE id = 900;
SELECT name::text AS "NC005" FROM pupil WHERE id = 900;
SET nomp_crypt.tenant = 'ribersborg';
SELECT name AS "NC005" FROM pupil WHERE id = 900;
SET nomp_crypt.other_tenants = 'ciphertext';
SELECT name AS "NC005, whatever other_tenants says" FROM pupil WHERE id = 900;
RESET nomp_crypt.other_tenants;
RESET nomp_crypt.tenant;
-- the key row was changed: NC005 too, once the keys are asked for anew
RESET ROLE;
UPDATE pupil SET name = (SELECT as_value(bytes) FROM raw_value) WHERE id = 900;
BEGIN;
UPDATE nomp_crypt.tenant_key SET key_check = set_byte(key_check, 31, 255 - get_byte(key_check, 31))
	WHERE tenant = (SELECT uuid FROM nomp_crypt.tenants WHERE id = 'ribersborg');
SET LOCAL ROLE regress_app;
SELECT nomp_crypt.decrypt(name) AS "NC005" FROM pupil WHERE id = 900;
ROLLBACK;
-- another school's key row under this school's name: the wrap does not fit
BEGIN;
UPDATE nomp_crypt.tenant_key SET tenant = (SELECT uuid FROM nomp_crypt.tenants WHERE id = 'monbijou'), version = version + 10
	WHERE tenant = (SELECT uuid FROM nomp_crypt.tenants WHERE id = 'ribersborg');
SELECT nomp_crypt.grant_tenant('monbijou', 'regress_app', '{decrypt}');
SET LOCAL ROLE regress_app;
SELECT nomp_crypt.decrypt(name) AS "NC005" FROM pupil WHERE id = 900;
ROLLBACK;
SET ROLE regress_app;
SELECT nomp_crypt.decrypt(name) AS "intact again" FROM pupil WHERE id = 900;
-- NC003: key unknown here
RESET ROLE;
UPDATE pupil SET name = (SELECT as_value(set_byte(bytes, 2, 255 - get_byte(bytes, 2))) FROM raw_value) WHERE id = 900;
SET ROLE regress_app;
SELECT nomp_crypt.decrypt(name) AS "NC003" FROM pupil WHERE id = 900;
SELECT nomp_crypt.try_decrypt(name) AS "NC003" FROM pupil WHERE id = 900;
SET nomp_crypt.tenant = 'ribersborg';
SELECT name AS "NC003" FROM pupil WHERE id = 900;
RESET nomp_crypt.tenant;
SELECT nomp_crypt.tenant_of(name) IS NULL AS unknown FROM pupil WHERE id = 900;
SELECT format, type, searchable, tenant IS NULL AND version IS NULL AND state IS NULL AS rest_unknown
	FROM pupil, nomp_crypt.key_info(name) WHERE id = 900;
RESET ROLE;
DROP TABLE raw_value;
DROP FUNCTION as_value;
DELETE FROM pupil WHERE id = 900;

-- NC002 and NC001: suspended, then erased
SELECT nomp_crypt.create_tenant('short-lived') IS NOT NULL AS created;
SELECT nomp_crypt.grant_tenant('short-lived', 'regress_app', '{encrypt,decrypt}');
SET ROLE regress_app;
INSERT INTO pupil VALUES (901, 'short-lived', nomp_crypt.encrypt('Kim', 'short-lived'));
RESET ROLE;
BEGIN;
SELECT nomp_crypt._erase_request('short-lived', 'test', NULL) IS NOT NULL AS requested;
SET ROLE regress_app;
SAVEPOINT s;
SELECT nomp_crypt.decrypt(name) AS "NC002" FROM pupil WHERE id = 901;
ROLLBACK TO s;
SELECT nomp_crypt.try_decrypt(name) AS "NC002" FROM pupil WHERE id = 901;
ROLLBACK TO s;
SELECT nomp_crypt.encrypt('Kim', 'short-lived') AS "NC002";
ROLLBACK;
SET ROLE regress_app;
SELECT nomp_crypt.decrypt(name) AS "not requested after all" FROM pupil WHERE id = 901;
RESET ROLE;
CALL nomp_crypt.erase_tenant('short-lived', 'test');
SET ROLE regress_app;
SELECT nomp_crypt.decrypt(name) AS "NC001" FROM pupil WHERE id = 901;
SELECT nomp_crypt.try_decrypt(name) IS NULL AS erased FROM pupil WHERE id = 901;
SELECT nomp_crypt.encrypt('Kim', 'short-lived') AS "NC001";
SET nomp_crypt.tenant = 'short-lived';
SELECT name AS "NC001" FROM pupil WHERE id = 901;
INSERT INTO pupil VALUES (902, 'short-lived', 'Kim'); -- NC001
RESET nomp_crypt.tenant;
SELECT nomp_crypt.tenant_of(name), (nomp_crypt.key_info(name)).state FROM pupil WHERE id = 901;
-- without the right: 42501, so that nobody learns more than he may
SET ROLE regress_other;
SELECT nomp_crypt.decrypt(name) AS "42501" FROM pupil WHERE id = 901;
SELECT nomp_crypt.try_decrypt(name) AS "42501" FROM pupil WHERE id = 901;
RESET ROLE;
DELETE FROM pupil WHERE id = 901;

-- NC004 is in t/: it needs a keystore in trouble

-- erasure's own refusals
CALL nomp_crypt.erase_tenant('nowhere', 'test'); -- 42704
CALL nomp_crypt.erase_tenant('ribersborg', 'because'); -- 22023
CALL nomp_crypt.erase_tenant('ribersborg', NULL); -- 22023
CALL nomp_crypt.erase_tenant('ribersborg', 'test', 'Anna Andersson'); -- 22023
BEGIN;
CALL nomp_crypt.erase_tenant('ribersborg', 'test'); -- 2D000
ROLLBACK;
\set VERBOSITY default
DO $$ BEGIN CALL nomp_crypt.erase_tenant('ribersborg', 'test'); EXCEPTION WHEN OTHERS THEN RAISE NOTICE '% is 2D000', SQLSTATE; END $$;
SELECT state AS "still active" FROM nomp_crypt.tenants WHERE id = 'ribersborg';

-- the same, readable
BEGIN;
CALL nomp_crypt.erase_tenant('ribersborg', 'test');
ROLLBACK;
SELECT nomp_crypt.encrypt('Anna', 'ribersborg');
INSERT INTO pupil VALUES (900, 'ribersborg', 'Anna');
SELECT nomp_crypt.create_tenant('ribersborg');
SELECT nomp_crypt.create_tenant('');
SELECT nomp_crypt.create_tenant(NULL);
SELECT nomp_crypt.create_tenant(repeat('x', 128));
SELECT nomp_crypt.grant_tenant('ribersborg', 'regress_app', '{read}');
SELECT nomp_crypt.grant_tenant('ribersborg', 'regress_app', NULL);
SELECT nomp_crypt.grant_tenant('ribersborg', 'regress_nobody', '{decrypt}');
SELECT nomp_crypt.grant_tenant('nowhere', 'regress_app', '{decrypt}');
SET client_min_messages = warning;
DROP EXTENSION nomp_crypt CASCADE;
RESET client_min_messages;
