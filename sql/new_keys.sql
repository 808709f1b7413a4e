--
-- rotate_tenant and rewrap_tenant: new values take the new key, old ones stay
-- readable, and nothing is half done.
--
\set SHOW_CONTEXT never
\set VERBOSITY terse
SELECT nomp_crypt.create_tenant('rotating') IS NOT NULL AS created;
SELECT nomp_crypt.grant_tenant('rotating', 'regress_app', '{encrypt,decrypt,search}');
CREATE TABLE new_keys (id int PRIMARY KEY, name encrypted(text), ssn encrypted(text, searchable) UNIQUE);
GRANT ALL ON new_keys TO regress_app;
CREATE VIEW versions AS
	SELECT id, (nomp_crypt.key_info(name)).version, (nomp_crypt.key_info(ssn)).version AS ssn_version FROM new_keys;
CREATE VIEW keys AS
	SELECT k.purpose, k.version, k.state, e.generation, e.state AS kek_state
	FROM nomp_crypt.tenant_key k JOIN nomp_crypt.kek e ON e.uuid = k.kek JOIN nomp_crypt.tenant t ON t.uuid = k.tenant
	WHERE t.id = 'rotating' ORDER BY 1, 2;
GRANT SELECT ON versions TO regress_app;

SET ROLE regress_app;
SET nomp_crypt.tenant = 'rotating';
INSERT INTO new_keys VALUES (1, 'Anna', '20140501-1234');
RESET ROLE;
SELECT nomp_crypt.rotate_tenant('rotating') AS "2";
SELECT * FROM keys;
SELECT key_version, kek_generation FROM nomp_crypt.tenants WHERE id = 'rotating';

-- new values take the new key; fingerprints stay, so search and UNIQUE do
SET ROLE regress_app;
INSERT INTO new_keys VALUES (2, 'Berit', '20140502-1234');
SELECT id, name, ssn FROM new_keys ORDER BY id;
SELECT * FROM versions ORDER BY id;
SELECT name FROM new_keys WHERE ssn = '20140501-1234';
INSERT INTO new_keys VALUES (3, 'Cecilia', '20140501-1234'); -- 23505
-- what is written again takes it, too
UPDATE new_keys SET name = 'Anna-Lena' WHERE id = 1;
SELECT * FROM versions WHERE id = 1;
RESET ROLE;

-- a transaction under way takes it from its next statement on
BEGIN;
SET LOCAL ROLE regress_app;
INSERT INTO new_keys VALUES (4, 'Doris', '4');
RESET ROLE;
SELECT nomp_crypt.rotate_tenant('rotating') AS "3";
SET LOCAL ROLE regress_app;
INSERT INTO new_keys VALUES (5, 'Elsa', '5');
SELECT v.*, n.name FROM versions v JOIN new_keys n USING (id) WHERE id > 3 ORDER BY id;
ROLLBACK;
-- and nothing of it is left when it is rolled back
SELECT max(version) AS "2" FROM keys;
SET ROLE regress_app;
INSERT INTO new_keys VALUES (6, 'Frida', '6');
SELECT * FROM versions WHERE id = 6;
RESET ROLE;
BEGIN;
SAVEPOINT s;
SELECT nomp_crypt.rotate_tenant('rotating') AS "3";
SET LOCAL ROLE regress_app;
INSERT INTO new_keys VALUES (7, 'Greta', '7');
ROLLBACK TO s;
SET LOCAL ROLE regress_app;
INSERT INTO new_keys VALUES (7, 'Greta', '7');
SELECT v.*, n.name FROM versions v JOIN new_keys n USING (id) WHERE id = 7;
COMMIT;

-- a new KEK: every key of the school under it, no value touched
SELECT md5(string_agg(n::text, '|' ORDER BY id)) AS stored FROM (SELECT id, encrypted_send(name), encrypted_send(ssn) FROM new_keys) n \gset
SELECT nomp_crypt.rewrap_tenant('rotating') AS "2";
SELECT * FROM keys;
SELECT md5(string_agg(n::text, '|' ORDER BY id)) = :'stored' AS untouched FROM (SELECT id, encrypted_send(name), encrypted_send(ssn) FROM new_keys) n;
SELECT generation, e.state, destroy_after - retired_at AS "35 days", retired_at < now() + '1 min' AS now
FROM nomp_crypt.kek e JOIN nomp_crypt.tenant t ON t.uuid = e.tenant WHERE t.id = 'rotating' ORDER BY generation;
SET ROLE regress_app;
SELECT id, name, ssn FROM new_keys ORDER BY id;
RESET ROLE;
SELECT nomp_crypt.rotate_tenant('rotating') AS "3";
SELECT nomp_crypt.rewrap_tenant('rotating') AS "3";
SELECT * FROM keys;
-- rolled back, it leaves a KEK that is nobody's, whose number is not used again
BEGIN;
SELECT nomp_crypt.rewrap_tenant('rotating') AS "4";
SET LOCAL ROLE regress_app;
SELECT count(name::text) AS "4" FROM new_keys;
ROLLBACK;
SELECT max(generation) AS "3" FROM keys;
SET ROLE regress_app;
SELECT count(name::text) AS "4" FROM new_keys;
RESET ROLE;
SELECT regexp_replace(label, '.*:', '') AS generation, action FROM nomp_crypt.reconcile_keystore()
WHERE split_part(label, ':', 3) = (SELECT uuid::text FROM nomp_crypt.tenants WHERE id = 'rotating');
SELECT nomp_crypt.rewrap_tenant('rotating') AS "5";
-- several in one transaction, and a school made in it
BEGIN;
SELECT nomp_crypt.create_tenant('of-today') IS NOT NULL AS created;
SELECT nomp_crypt.rotate_tenant('of-today') AS "2";
SELECT nomp_crypt.rewrap_tenant('of-today') AS "2";
SELECT nomp_crypt.rewrap_tenant('of-today') AS "3";
COMMIT;
SELECT nomp_crypt.grant_tenant('of-today', 'regress_app', '{encrypt,decrypt}');
SET ROLE regress_app;
SELECT nomp_crypt.decrypt(nomp_crypt.encrypt('Hilda', 'of-today'));
RESET ROLE;

-- more versions than fit into one request to the keystore
DO $$ BEGIN FOR i IN 1..16 LOOP PERFORM nomp_crypt.rotate_tenant('rotating'); END LOOP; END $$;
SELECT nomp_crypt.rewrap_tenant('rotating') AS "6";
SELECT count(*) AS "20", count(*) FILTER (WHERE state = 'active') AS "2", min(generation) AS "6", max(version) AS "19" FROM keys;
SET ROLE regress_app;
INSERT INTO new_keys VALUES (8, 'Hilda', '8');
SELECT id, name, ssn FROM new_keys ORDER BY id;
RESET ROLE;

-- on record
SELECT act, detail - '{uuid,key}'::text[] AS detail FROM nomp_crypt.audit WHERE tenant = 'rotating' AND act ~ '^re|^ro' ORDER BY at DESC LIMIT 3;

-- who may not
\set VERBOSITY sqlstate
SET ROLE regress_other;
SELECT nomp_crypt.rotate_tenant('rotating'); -- 42501
SELECT nomp_crypt.rewrap_tenant('rotating'); -- 42501
RESET ROLE;
-- no such school
SELECT nomp_crypt.rotate_tenant('nowhere'); -- 42704
SELECT nomp_crypt.rewrap_tenant('nowhere'); -- 42704
SELECT nomp_crypt.rotate_tenant(NULL); -- 42704
-- another key's bytes in a row, or no bytes, or another number: nothing is wrapped
UPDATE nomp_crypt.tenant_key SET wrapped = set_byte(wrapped, length(wrapped) - 20, get_byte(wrapped, length(wrapped) - 20) # 1) WHERE key_id = (SELECT k.key_id FROM nomp_crypt.tenant_key k JOIN nomp_crypt.tenants t ON t.uuid = k.tenant WHERE t.id = 'rotating' AND version = 7);
SELECT nomp_crypt.rewrap_tenant('rotating'); -- NC005
UPDATE nomp_crypt.tenant_key SET wrapped = set_byte(wrapped, length(wrapped) - 20, get_byte(wrapped, length(wrapped) - 20) # 1), key_check = set_byte(key_check, 31, get_byte(key_check, 31) # 1) WHERE key_id = (SELECT k.key_id FROM nomp_crypt.tenant_key k JOIN nomp_crypt.tenants t ON t.uuid = k.tenant WHERE t.id = 'rotating' AND version = 7);
SELECT nomp_crypt.rewrap_tenant('rotating'); -- NC005
UPDATE nomp_crypt.tenant_key SET key_check = set_byte(key_check, 31, get_byte(key_check, 31) # 1), version = 70 WHERE key_id = (SELECT k.key_id FROM nomp_crypt.tenant_key k JOIN nomp_crypt.tenants t ON t.uuid = k.tenant WHERE t.id = 'rotating' AND version = 7);
SELECT nomp_crypt.rewrap_tenant('rotating'); -- NC005
BEGIN;
UPDATE nomp_crypt.tenant_key SET version = 7, wrapped = NULL WHERE version = 70;
SELECT nomp_crypt.rewrap_tenant('rotating'); -- NC003
ROLLBACK;
UPDATE nomp_crypt.tenant_key SET version = 7 WHERE version = 70;
SELECT max(generation) AS "still 6" FROM keys;
BEGIN;
DELETE FROM nomp_crypt.kek WHERE state = 'active' AND tenant = (SELECT uuid FROM nomp_crypt.tenants WHERE id = 'rotating');
SELECT nomp_crypt.rotate_tenant('rotating'); -- NC003
ROLLBACK;
-- a school that is suspended, or erased
SELECT nomp_crypt._erase_request('rotating', 'test', NULL) IS NOT NULL AS requested;
SELECT nomp_crypt.rotate_tenant('rotating'); -- NC002
SELECT nomp_crypt.rewrap_tenant('rotating'); -- NC002
SELECT nomp_crypt.withdraw_erasure('rotating');
SET ROLE regress_app;
SELECT count(name::text) AS "5" FROM new_keys;
RESET ROLE;
-- erased, with every KEK it ever had
CALL nomp_crypt.erase_tenant('rotating', 'test');
SELECT nomp_crypt.rotate_tenant('rotating'); -- NC001
SELECT nomp_crypt.rewrap_tenant('rotating'); -- NC001
SELECT e.state, array_length(keys_seen, 1) AS "5 and 5 leftovers", array_length(keys_destroyed, 1) AS "as many"
FROM nomp_crypt.erasure e JOIN nomp_crypt.tenants t ON t.uuid = e.tenant WHERE t.id = 'rotating' AND e.state <> 'withdrawn';
SELECT state, count(*) FROM nomp_crypt.kek WHERE tenant = (SELECT uuid FROM nomp_crypt.tenants WHERE id = 'rotating') GROUP BY 1;
SET ROLE regress_app;
SELECT name FROM new_keys WHERE id = 1; -- NC001
RESET ROLE;
RESET nomp_crypt.tenant;
CALL nomp_crypt.erase_tenant('of-today', 'test');
SELECT nomp_crypt.revoke_tenant(id, 'regress_app') FROM unnest('{rotating,of-today}'::text[]) id;
DROP VIEW keys, versions;
DROP TABLE new_keys;
