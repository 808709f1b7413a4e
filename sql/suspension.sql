--
-- A suspended school is unreadable until it is resumed, whatever the database
-- says: its keys are disabled in the keystore, too. (Other nodes are in t/.)
--
\set SHOW_CONTEXT never
\set VERBOSITY terse
SELECT nomp_crypt.create_tenant('closed') IS NOT NULL AS created;
SELECT nomp_crypt.grant_tenant('closed', 'regress_app', '{encrypt,decrypt,search}');
CREATE TABLE suspension (id int PRIMARY KEY, name encrypted(text), ssn encrypted(text, searchable));
GRANT ALL ON suspension TO regress_app;
SET ROLE regress_app;
SET nomp_crypt.tenant = 'closed';
INSERT INTO suspension VALUES (1, 'Anna', '1');
RESET ROLE;
SELECT nomp_crypt.rewrap_tenant('closed') AS "2";
CALL nomp_crypt.suspend_tenant('closed');
SELECT id, state, suspended_at IS NOT NULL AS suspended FROM nomp_crypt.tenants WHERE id = 'closed';
\set VERBOSITY sqlstate
SET ROLE regress_app;
SELECT name FROM suspension; -- NC002
SELECT nomp_crypt.decrypt(name) FROM suspension; -- NC002
SELECT nomp_crypt.try_decrypt(name) FROM suspension; -- NC002
SELECT count(*) FROM suspension WHERE ssn = '1'; -- NC002
INSERT INTO suspension VALUES (2, 'Berit', '2'); -- NC002
SELECT nomp_crypt.encrypt('Berit', 'closed'); -- NC002
SELECT count(*) AS "1" FROM suspension;
SELECT nomp_crypt.tenant_of(name) AS "closed" FROM suspension;
RESET ROLE;
SELECT nomp_crypt.rotate_tenant('closed'); -- NC002
SELECT nomp_crypt.rewrap_tenant('closed'); -- NC002
SELECT nomp_crypt.create_tenant('closed'); -- 42710
-- another school notices nothing
SET ROLE regress_app;
SELECT nomp_crypt.decrypt(nomp_crypt.encrypt('Cecilia', 'ribersborg'));
RESET ROLE;
-- repeated, it is the same
CALL nomp_crypt.suspend_tenant('closed');
-- a database that has not got the news, as a restored backup: the keystore has, for every KEK
\set VERBOSITY default
UPDATE nomp_crypt.tenant SET state = 'active' WHERE id = 'closed';
SET ROLE regress_app;
SELECT name FROM suspension;
INSERT INTO suspension VALUES (2, 'Berit', '2');
RESET ROLE;
SELECT nomp_crypt.rotate_tenant('closed');
SELECT nomp_crypt.rewrap_tenant('closed');
UPDATE nomp_crypt.tenant_key SET kek = (SELECT uuid FROM nomp_crypt.kek k WHERE k.tenant = tenant_key.tenant AND generation = 1)
WHERE tenant = (SELECT uuid FROM nomp_crypt.tenants WHERE id = 'closed');
SET ROLE regress_app;
SELECT name FROM suspension;
RESET ROLE;
UPDATE nomp_crypt.tenant_key SET kek = (SELECT uuid FROM nomp_crypt.kek k WHERE k.tenant = tenant_key.tenant AND generation = 2)
WHERE tenant = (SELECT uuid FROM nomp_crypt.tenants WHERE id = 'closed');
UPDATE nomp_crypt.tenant SET state = 'suspended' WHERE id = 'closed';
\set VERBOSITY terse

-- back
CALL nomp_crypt.resume_tenant('closed');
SELECT id, state, suspended_at FROM nomp_crypt.tenants WHERE id = 'closed';
SET ROLE regress_app;
SELECT id, name FROM suspension WHERE ssn = '1';
INSERT INTO suspension VALUES (2, 'Berit', '2');
RESET ROLE;
CALL nomp_crypt.resume_tenant('closed');

-- an erasure's suspension and this one are two things
CALL nomp_crypt.suspend_tenant('closed');
SELECT nomp_crypt._erase_request('closed', 'test', NULL) IS NOT NULL AS requested;
CALL nomp_crypt.resume_tenant('closed'); -- 55000
SELECT nomp_crypt.withdraw_erasure('closed');
SELECT state AS suspended FROM nomp_crypt.tenants WHERE id = 'closed';
SET ROLE regress_app;
SELECT name FROM suspension WHERE id = 1; -- NC002
RESET ROLE;
CALL nomp_crypt.resume_tenant('closed');
SELECT nomp_crypt._erase_request('closed', 'test', NULL) IS NOT NULL AS requested;
CALL nomp_crypt.resume_tenant('closed'); -- 55000
CALL nomp_crypt.suspend_tenant('closed');
SELECT nomp_crypt.withdraw_erasure('closed');
SELECT state AS suspended FROM nomp_crypt.tenants WHERE id = 'closed';
CALL nomp_crypt.resume_tenant('closed');
SELECT nomp_crypt._erase_request('closed', 'test', NULL) IS NOT NULL AS requested;
SELECT nomp_crypt.withdraw_erasure('closed');
SET ROLE regress_app;
SELECT id, name FROM suspension ORDER BY id;
RESET ROLE;

-- who may not, and what there is not
\set VERBOSITY sqlstate
SET ROLE regress_other;
CALL nomp_crypt.suspend_tenant('closed'); -- 42501
CALL nomp_crypt.resume_tenant('closed'); -- 42501
RESET ROLE;
CALL nomp_crypt.suspend_tenant('nowhere'); -- 42704
CALL nomp_crypt.suspend_tenant(NULL); -- 42704
CALL nomp_crypt.resume_tenant('nowhere'); -- 42704
BEGIN;
CALL nomp_crypt.suspend_tenant('closed'); -- 2D000
ROLLBACK;
BEGIN;
CALL nomp_crypt.resume_tenant('closed'); -- 2D000
ROLLBACK;
-- the steps, called by hand, are no shortcut: what is rolled back was not done
SELECT uuid AS closed FROM nomp_crypt.tenants WHERE id = 'closed' \gset
SELECT nomp_crypt._suspend_keys(:'closed'); -- 55000
BEGIN;
SELECT nomp_crypt._suspend('closed') = :'closed' AS suspended;
SELECT nomp_crypt._suspend_keys(:'closed'); -- 55000
ROLLBACK;
SELECT nomp_crypt._resume(:'closed');
SET ROLE regress_app;
SELECT id, name FROM suspension ORDER BY id;
RESET ROLE;
-- an administrator may
CREATE ROLE regress_suspender;
SELECT nomp_crypt.grant_admin('regress_suspender');
SET ROLE regress_suspender;
CALL nomp_crypt.suspend_tenant('closed');
RESET ROLE;
SELECT act, tenant, role, detail - 'uuid' AS detail FROM nomp_crypt.audit WHERE tenant = 'closed' ORDER BY at DESC LIMIT 2;

-- erased while it is suspended: the keys that are disabled are destroyed
CALL nomp_crypt.erase_tenant('closed', 'test');
CALL nomp_crypt.suspend_tenant('closed'); -- NC001
CALL nomp_crypt.resume_tenant('closed'); -- NC001
SELECT e.state, array_length(keys_destroyed, 1) AS "2 and a leftover" FROM nomp_crypt.erasure e JOIN nomp_crypt.tenants t ON t.uuid = e.tenant
WHERE t.id = 'closed' AND e.state <> 'withdrawn';
-- past the fence
SELECT nomp_crypt.create_tenant('closed') IS NOT NULL AS created;
UPDATE nomp_crypt.tenant SET state = 'fenced' WHERE id = 'closed' AND state = 'active';
CALL nomp_crypt.suspend_tenant('closed'); -- 55000
CALL nomp_crypt.resume_tenant('closed'); -- 55000
UPDATE nomp_crypt.tenant SET state = 'active' WHERE id = 'closed' AND state = 'fenced';
CALL nomp_crypt.erase_tenant('closed', 'test', 'PUB-2');
RESET nomp_crypt.tenant;
SELECT nomp_crypt.revoke_tenant('closed', 'regress_app');
DROP TABLE suspension;
DROP OWNED BY regress_suspender;
DROP ROLE regress_suspender;
