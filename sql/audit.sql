--
-- Administrative acts are on record, in the transaction that does them, in a
-- table that only grows. (The server log's lines, and dumps: in t/.)
--
\set VERBOSITY terse
CREATE ROLE regress_admin;
CREATE ROLE regress_boss IN ROLE regress_admin;
CREATE FUNCTION acts_since(moment timestamptz) RETURNS TABLE (role text, session_is_me boolean, act text, tenant text, detail jsonb)
LANGUAGE sql AS $$
	SELECT CASE role WHEN session_user THEN '(me)' ELSE role END, session_role = session_user, act, tenant,
		detail - '{uuid,case,key,serial,keys,installation}'::text[]
	FROM nomp_crypt.audit WHERE at > moment
		AND act <> 'erase_disable' -- where destruction takes time
	ORDER BY at
$$;
SELECT clock_timestamp() AS start \gset
SELECT nomp_crypt.grant_admin('regress_admin');
SET ROLE regress_admin;
SELECT nomp_crypt.create_tenant('audited', display_name => 'Not in the audit') IS NOT NULL AS created;
CALL nomp_crypt.create_tenants('{audited,audited-2}');
SELECT nomp_crypt.grant_tenant('audited', 'regress_app', '{encrypt,decrypt}');
SELECT nomp_crypt.revoke_tenant('audited', 'regress_app', '{decrypt}');
SELECT nomp_crypt.grant_all_tenants('regress_other', '{search}');
SELECT nomp_crypt.revoke_all_tenants('regress_other');
SELECT nomp_crypt._erase_request('audited', 'controller_request', 'PUB-9') IS NOT NULL AS requested;
-- asked again, nothing new happens
SELECT nomp_crypt._erase_request('audited', 'controller_request', 'PUB-9') IS NOT NULL AS requested;
SELECT nomp_crypt.withdraw_erasure('audited');
CALL nomp_crypt.erase_tenant('audited', 'test', 'PUB-10');
SET client_min_messages = warning;
CALL nomp_crypt.erase_tenant('audited', 'test', 'PUB-10');
RESET client_min_messages;
SELECT nomp_crypt.adopt_keystore() IS NOT NULL AS adopted;
-- an administrator reads it, through grant_admin
SELECT * FROM acts_since(:'start');
-- what happened in the keystore is named
SELECT act, detail ? 'key' AS key, jsonb_array_length(detail -> 'keys') AS keys, detail ? 'serial' AS serial, detail ? 'case' AS "case"
FROM nomp_crypt.audit WHERE at > :'start' AND tenant = 'audited'
	AND act <> 'erase_disable' -- where destruction takes time
ORDER BY at;
SELECT count(*) AS "0, names are not on record" FROM nomp_crypt.audit WHERE audit::text LIKE '%Not in the audit%';

-- the role that acts, not the functions' owner
RESET ROLE;
SELECT clock_timestamp() AS start \gset
SET ROLE regress_boss;
SELECT nomp_crypt.grant_tenant('audited-2', 'regress_app', '{load}');
RESET ROLE;
SELECT * FROM acts_since(:'start');

-- it goes with its transaction, as the act does
SELECT clock_timestamp() AS start \gset
BEGIN;
SELECT nomp_crypt.grant_tenant('audited-2', 'regress_app', '{search}');
ROLLBACK;
-- and what failed is not there
SELECT nomp_crypt.grant_tenant('nowhere', 'regress_app', '{search}');
SELECT nomp_crypt.create_tenant('audited-2');
SELECT * FROM acts_since(:'start');

-- a key that nobody owns is removed, and that is said
BEGIN;
SELECT nomp_crypt.create_tenant('never-committed') IS NOT NULL AS created;
ROLLBACK;
SELECT action FROM nomp_crypt.reconcile_keystore();
SELECT count(*) AS "0, looking is no act" FROM acts_since(:'start');
SELECT action FROM nomp_crypt.reconcile_keystore(true, '0');
SELECT act, tenant, detail ->> 'removed' LIKE 'nomp\_crypt:%:provisional@%' AS names_the_key FROM nomp_crypt.audit WHERE at > :'start';

-- append-only, also for its owner, and where replication's triggers run
\set VERBOSITY default
UPDATE nomp_crypt.audit SET role = 'somebody_else';
\set VERBOSITY sqlstate
UPDATE nomp_crypt.audit SET role = 'somebody_else' WHERE false;
DELETE FROM nomp_crypt.audit;
TRUNCATE nomp_crypt.audit;
MERGE INTO nomp_crypt.audit a USING (VALUES (1)) v ON true WHEN MATCHED THEN DELETE;
SET session_replication_role = replica;
DELETE FROM nomp_crypt.audit;
TRUNCATE nomp_crypt.audit;
RESET session_replication_role;
-- nobody else writes or reads it, an administrator only reads
SET ROLE regress_admin;
INSERT INTO nomp_crypt.audit (role, session_role, act, detail) VALUES ('x', 'x', 'x', '{}');
DELETE FROM nomp_crypt.audit;
SELECT nomp_crypt._audit('x', 'x', '{}');
SELECT nomp_crypt._log_act('x', 'x', '{}');
SELECT count(*) AS "0" FROM nomp_crypt.access;
SET ROLE regress_app;
SELECT count(*) FROM nomp_crypt.audit;
SELECT nomp_crypt._audit('x', 'x', '{}');
SELECT * FROM nomp_crypt.access;
SELECT * FROM nomp_crypt._access();
SET nomp_crypt.log_access = transaction;
SET nomp_crypt.require_tls = off;
RESET ROLE;

\set VERBOSITY terse
CALL nomp_crypt.erase_tenant('audited-2', 'test');
DROP FUNCTION acts_since(timestamptz);
REVOKE ALL ON ALL ROUTINES IN SCHEMA nomp_crypt FROM regress_admin;
REVOKE ALL ON ALL TABLES IN SCHEMA nomp_crypt FROM regress_admin;
SELECT nomp_crypt.revoke_tenant('audited-2', 'regress_app');
SELECT nomp_crypt.revoke_tenant('audited', 'regress_app');
DROP ROLE regress_boss, regress_admin;
