--
-- rotate_all gives new keys to those schools that a policy means, and
-- destroy_expired_keks destroys the KEKs that no backup needs, and no other.
--
\set SHOW_CONTEXT never
\set VERBOSITY terse
CALL nomp_crypt.create_tenants('{old,older,young}');
SELECT nomp_crypt.grant_tenant(id, 'regress_app', '{encrypt,decrypt}') FROM unnest('{old,older,young}'::text[]) id;
CREATE TABLE expired_keys (id serial, name encrypted(text));
GRANT ALL ON expired_keys, expired_keys_id_seq TO regress_app;
SET ROLE regress_app;
INSERT INTO expired_keys (name) SELECT nomp_crypt.encrypt('Anna', id) FROM unnest('{old,older,young}'::text[]) id;
RESET ROLE;
CREATE VIEW ages AS
	SELECT id, key_version, kek_generation FROM nomp_crypt.tenants WHERE id IN ('old', 'older', 'young') AND state <> 'erased' ORDER BY id;
CREATE VIEW keks AS
	SELECT t.id, k.generation, k.state, k.destroy_after < now() AS due, k.submitted_at IS NOT NULL AS submitted,
		k.destroyed_at IS NOT NULL AS destroyed
	FROM nomp_crypt.kek k JOIN nomp_crypt.tenant t ON t.uuid = k.tenant
	WHERE t.id IN ('old', 'older', 'young') ORDER BY 1, 2;
-- time passes
CREATE PROCEDURE time_passes(school text, by interval) LANGUAGE sql AS $$
	UPDATE nomp_crypt.tenant_key SET created_at = created_at - by WHERE tenant = (SELECT uuid FROM nomp_crypt.tenants t WHERE t.id = school);
	UPDATE nomp_crypt.kek SET created_at = created_at - by, retired_at = retired_at - by, destroy_after = destroy_after - by
	WHERE tenant = (SELECT uuid FROM nomp_crypt.tenants t WHERE t.id = school);
$$;
CALL time_passes('old', '2 years');
CALL time_passes('older', '3 years');

CALL nomp_crypt.rotate_all('1 year');
SELECT * FROM ages;
-- what is done is not due
CALL nomp_crypt.rotate_all('1 year');
CALL nomp_crypt.rotate_all('30 months', rewrap => true);
SELECT * FROM ages;
CALL nomp_crypt.rotate_all('1 year', rewrap => true);
SELECT * FROM ages;
SET ROLE regress_app;
SELECT nomp_crypt.tenant_of(name), nomp_crypt.decrypt(name) FROM expired_keys ORDER BY id;
RESET ROLE;
-- a suspended school is passed over
CALL time_passes('old', '2 years');
CALL nomp_crypt.suspend_tenant('old');
CALL nomp_crypt.rotate_all('1 year');
CALL nomp_crypt.resume_tenant('old');
CALL nomp_crypt.rotate_all('1 year');

-- nothing is due before its time
CALL time_passes('older', '34 days');
SELECT * FROM keks;
CALL nomp_crypt.destroy_expired_keks();
SELECT * FROM keks;
CALL nomp_crypt.destroy_expired_keks();
SET ROLE regress_app;
SELECT nomp_crypt.tenant_of(name), nomp_crypt.decrypt(name) FROM expired_keys ORDER BY id;
RESET ROLE;
SELECT label AS destroyed, keystore_serial AS serial FROM nomp_crypt.kek k JOIN nomp_crypt.tenants t ON t.uuid = k.tenant WHERE t.id = 'old' AND k.state = 'destroyed' \gset
SELECT act, detail ->> 'key' = :'destroyed' AS "right one", detail ->> 'serial' = :'serial' AS "right token", detail -> 'destroyed_now' AS now
FROM nomp_crypt.audit WHERE tenant = 'old' AND act ~ '^expire' ORDER BY at;
SELECT installation FROM nomp_crypt.keystore_status() \gset
SELECT array_to_string(labels, ' ') ~ ':2$' AS "the other is there", :'destroyed' = ANY (labels) AS "it is not"
FROM nomp_crypt._keystore_see(:'installation', (SELECT uuid FROM nomp_crypt.tenants WHERE id = 'old'));

\set VERBOSITY sqlstate
-- one that is in use is not destroyed, whatever its row says
CALL time_passes('older', '2 days');
SELECT uuid AS retired FROM nomp_crypt.kek WHERE state = 'retired' AND tenant = (SELECT uuid FROM nomp_crypt.tenants WHERE id = 'older') \gset
SELECT uuid AS active FROM nomp_crypt.kek WHERE state = 'active' AND tenant = (SELECT uuid FROM nomp_crypt.tenants WHERE id = 'older') \gset
UPDATE nomp_crypt.kek SET state = 'retired', retired_at = '2000-01-01', destroy_after = '2000-01-01' WHERE uuid = :'active';
SELECT nomp_crypt._expire_submit(:'active'); -- 55000
SELECT nomp_crypt._expire_destroy(:'active'); -- 55000
CALL nomp_crypt.destroy_expired_keks();
SELECT * FROM keks WHERE id = 'older';
UPDATE nomp_crypt.kek SET state = 'active', retired_at = NULL, destroy_after = NULL WHERE uuid = :'active';
SELECT nomp_crypt._expire_submit(:'active'); -- 55000
SELECT nomp_crypt._expire_destroy(:'active'); -- 55000
SELECT nomp_crypt._expire_submit('00000000-0000-0000-0000-000000000000'); -- 55000
-- nor one whose destruction is not on record, and committed
SELECT nomp_crypt._expire_destroy(:'retired'); -- 55000
BEGIN;
SELECT nomp_crypt._expire_submit(:'retired');
SELECT nomp_crypt._expire_destroy(:'retired'); -- 55000
ROLLBACK;
-- nor where the setting was raised since it was retired
UPDATE nomp_crypt.kek SET retired_at = now() - interval '34 days' WHERE uuid = :'retired';
SELECT nomp_crypt._expire_submit(:'retired'); -- 55000
UPDATE nomp_crypt.kek SET retired_at = now() - interval '36 days' WHERE uuid = :'retired';
-- nor by the label of another's
BEGIN;
UPDATE nomp_crypt.kek SET label = 'nothing' WHERE uuid = :'active';
UPDATE nomp_crypt.kek SET label = left(label, -1) || '2' WHERE uuid = :'retired';
SELECT nomp_crypt._expire_submit(:'retired'); -- 55000
ROLLBACK;
-- one that somebody destroyed by hand is left, with a warning
\set VERBOSITY terse
SELECT label FROM nomp_crypt.kek WHERE uuid = :'retired' \gset
UPDATE nomp_crypt.kek SET label = left(label, -1) || '99', generation = 99 WHERE uuid = :'retired';
\set VERBOSITY sqlstate
CALL nomp_crypt.destroy_expired_keks();
UPDATE nomp_crypt.kek SET label = :'label', generation = 1 WHERE uuid = :'retired';
\set VERBOSITY terse
CALL nomp_crypt.destroy_expired_keks();
SELECT * FROM keks WHERE id = 'older';
SET ROLE regress_app;
SELECT nomp_crypt.tenant_of(name), nomp_crypt.decrypt(name) FROM expired_keys ORDER BY id;
RESET ROLE;
-- an erasure asks for those only that there are
CALL nomp_crypt.erase_tenant('old', 'test');
SELECT id, generation, state, destroyed FROM keks WHERE id = 'old';

\set VERBOSITY sqlstate
CALL nomp_crypt.rotate_all(NULL); -- 22023
CALL nomp_crypt.rotate_all('-1 day'); -- 22023
BEGIN;
CALL nomp_crypt.destroy_expired_keks(); -- 2D000
ROLLBACK;
BEGIN;
CALL nomp_crypt.rotate_all('0'); -- 2D000
ROLLBACK;
SELECT * FROM ages;
SET ROLE regress_other;
CALL nomp_crypt.rotate_all('1 year'); -- 42501
CALL nomp_crypt.destroy_expired_keks(); -- 42501
RESET ROLE;
CREATE ROLE regress_rotator;
SELECT nomp_crypt.grant_admin('regress_rotator');
SET ROLE regress_rotator;
\set VERBOSITY terse
CALL nomp_crypt.rotate_all('1 year');
CALL nomp_crypt.rotate_all('1 year', true);
CALL nomp_crypt.destroy_expired_keks();
RESET ROLE;
DROP OWNED BY regress_rotator;
DROP ROLE regress_rotator;
CALL nomp_crypt.erase_tenant('older', 'test');
CALL nomp_crypt.erase_tenant('young', 'test');
SELECT nomp_crypt.revoke_tenant(id, 'regress_app') FROM unnest('{old,older,young}'::text[]) id;
DROP VIEW ages, keks;
DROP PROCEDURE time_passes;
DROP TABLE expired_keys;
