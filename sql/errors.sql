--
-- The seven things that can be wrong, each with its SQLSTATE, and the errors
-- around them. One for another would be a defect.
--
\set VERBOSITY sqlstate
-- 42501: right missing (a superuser has none by default either)
SELECT nomp_crypt.encrypt('Anna', 'ribersborg');
-- 42704: no such tenant
SELECT nomp_crypt.encrypt('Anna', 'nowhere');
SET nomp_crypt.tenant = 'nowhere';
INSERT INTO pupil VALUES (900, 'nowhere', 'Anna');
RESET nomp_crypt.tenant;

SET ROLE regress_app;
-- NC006: no tenant set
INSERT INTO pupil VALUES (900, 'ribersborg', 'Anna');
-- NC005: integrity failure, for garbage that has the shape of a value
\set ON_ERROR_STOP 0
SET nomp_crypt.tenant = 'ribersborg';
INSERT INTO pupil VALUES (900, 'ribersborg', 'Anna');
RESET nomp_crypt.tenant;
RESET ROLE;
-- one bit of the tag
UPDATE pupil SET name = (
	SELECT 'nc1:' || replace(encode(set_bit(raw, length(raw) * 8 - 1, 1 - get_bit(raw, length(raw) * 8 - 1)), 'base64'), E'\n', '')
	FROM decode(substr(encrypted_out(name)::text, 5), 'base64') raw)::encrypted
WHERE id = 900;
SET ROLE regress_app;
SELECT nomp_crypt.decrypt(name) FROM pupil WHERE id = 900;
SELECT nomp_crypt.try_decrypt(name) FROM pupil WHERE id = 900;
-- NC003: key unknown here
RESET ROLE;
UPDATE pupil SET name = (
	SELECT 'nc1:' || replace(encode(set_byte(raw, 2, 255 - get_byte(raw, 2)), 'base64'), E'\n', '')
	FROM decode(substr(encrypted_out(name)::text, 5), 'base64') raw)::encrypted
WHERE id = 900;
SET ROLE regress_app;
SELECT nomp_crypt.decrypt(name) FROM pupil WHERE id = 900;
SELECT nomp_crypt.try_decrypt(name) FROM pupil WHERE id = 900;
SELECT nomp_crypt.tenant_of(name) IS NULL AS unknown FROM pupil WHERE id = 900;
RESET ROLE;
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
SELECT nomp_crypt.decrypt(name) FROM pupil WHERE id = 901;
ROLLBACK TO s;
SELECT nomp_crypt.try_decrypt(name) FROM pupil WHERE id = 901;
ROLLBACK TO s;
SELECT nomp_crypt.encrypt('Kim', 'short-lived');
ROLLBACK;
CALL nomp_crypt.erase_tenant('short-lived', 'test');
SET ROLE regress_app;
SELECT nomp_crypt.decrypt(name) FROM pupil WHERE id = 901;
SELECT nomp_crypt.try_decrypt(name) IS NULL AS erased FROM pupil WHERE id = 901;
SELECT nomp_crypt.encrypt('Kim', 'short-lived');
SET ROLE regress_other;
SELECT nomp_crypt.decrypt(name) FROM pupil WHERE id = 901;
SELECT nomp_crypt.try_decrypt(name) FROM pupil WHERE id = 901;
RESET ROLE;
DELETE FROM pupil WHERE id = 901;

-- NC004 is in t/: it needs a keystore in trouble

-- erasure's own refusals
CALL nomp_crypt.erase_tenant('nowhere', 'test');
CALL nomp_crypt.erase_tenant('ribersborg', 'because');
CALL nomp_crypt.erase_tenant('ribersborg', 'test', 'Anna Andersson');
BEGIN;
CALL nomp_crypt.erase_tenant('ribersborg', 'test');
ROLLBACK;
DO $$ BEGIN CALL nomp_crypt.erase_tenant('ribersborg', 'test'); EXCEPTION WHEN OTHERS THEN RAISE NOTICE '%', SQLSTATE; END $$;
SELECT state FROM nomp_crypt.tenants WHERE id = 'ribersborg';
-- the same, readable
\set VERBOSITY default
BEGIN;
CALL nomp_crypt.erase_tenant('ribersborg', 'test');
ROLLBACK;
SELECT nomp_crypt.encrypt('Anna', 'ribersborg');
INSERT INTO pupil VALUES (900, 'ribersborg', 'Anna');
SELECT nomp_crypt.create_tenant('ribersborg');
SELECT nomp_crypt.create_tenant('');
SELECT nomp_crypt.grant_tenant('ribersborg', 'regress_app', '{read}');
SELECT nomp_crypt.grant_tenant('ribersborg', 'regress_nobody', '{decrypt}');
DROP EXTENSION nomp_crypt CASCADE;
