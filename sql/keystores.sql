-- Moving between keystores, as far as one keystore shows it: who may, and what
-- is refused.  t/moving_to_another_keystore.pl has two.
\set VERBOSITY sqlstate
SELECT nomp_crypt.create_tenant('stays') IS NOT NULL AS made;
SELECT nomp_crypt.create_tenant('waits') IS NOT NULL AS made;
SELECT serial, keys > 1 AS has_keys FROM nomp_crypt.keystore_status() \gset

-- nobody but administrators
CREATE ROLE regress_mover;
SET ROLE regress_mover;
SELECT nomp_crypt.add_keystore(:'serial');
SELECT nomp_crypt.migrate_tenant('stays');
CALL nomp_crypt.migrate_tenants();
RESET ROLE;
SELECT nomp_crypt.grant_admin('regress_mover');
SET ROLE regress_mover;

-- to where it is: nothing happens
SELECT nomp_crypt.migrate_tenant('stays'), nomp_crypt.migrate_tenant('stays', :'serial');
SELECT nomp_crypt.add_keystore(:'serial');
\set VERBOSITY terse
CALL nomp_crypt.migrate_tenants();
CALL nomp_crypt.migrate_tenants(:'serial');
\set VERBOSITY sqlstate
SELECT kek_generation FROM nomp_crypt.tenants WHERE id = 'stays';

-- refused: what is not configured, who is not there, where it cannot commit
SELECT nomp_crypt.migrate_tenant('stays', 'no such serial');
SELECT nomp_crypt.migrate_tenant('stays', '');
SELECT nomp_crypt.migrate_tenant('nobody');
SELECT nomp_crypt.migrate_tenant(NULL);
SELECT nomp_crypt.add_keystore('no such serial');
SELECT nomp_crypt.add_keystore(NULL);
CALL nomp_crypt.migrate_tenants('no such serial');
BEGIN;
CALL nomp_crypt.migrate_tenants();
ROLLBACK;
CALL nomp_crypt.suspend_tenant('waits');
SELECT nomp_crypt.migrate_tenant('waits');
CALL nomp_crypt.resume_tenant('waits');

-- a caller's operators and functions are not taken for PostgreSQL's
RESET ROLE;
CREATE SCHEMA trap;
CREATE FUNCTION trap.count(anyelement) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$;
CREATE FUNCTION trap.cardinality(anyarray) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$;
CREATE FUNCTION trap.equal(text, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$;
CREATE OPERATOR trap.= (LEFTARG = text, RIGHTARG = text, FUNCTION = trap.equal);
CREATE OPERATOR trap.<> (LEFTARG = text, RIGHTARG = text, FUNCTION = trap.equal);
SET search_path = trap, pg_catalog, public;
CALL nomp_crypt.migrate_tenants();
SELECT nomp_crypt.migrate_tenant('stays', 'no such serial');
RESET search_path;
\set VERBOSITY terse
DROP SCHEMA trap CASCADE;
\set VERBOSITY sqlstate

-- a token was restored under another serial: its keys are used, but not destroyed
-- or disabled until somebody says what became of the old one
SELECT nomp_crypt.grant_tenant('stays', current_user, '{encrypt,decrypt}');
SELECT nomp_crypt.encrypt('Anna', 'stays') AS before \gset
UPDATE nomp_crypt.kek k SET keystore = 'pkcs11:serial=0815'
FROM nomp_crypt.tenant t WHERE t.uuid = k.tenant AND t.id = 'stays';
CALL nomp_crypt.suspend_tenant('stays');
CALL nomp_crypt.erase_tenant('stays', 'test');
SELECT nomp_crypt.withdraw_erasure('stays');
UPDATE nomp_crypt.tenant SET state = 'active', suspended_at = NULL WHERE id = 'stays';
SELECT nomp_crypt.decrypt(:'before');
SELECT nomp_crypt.rotate_tenant('stays'), nomp_crypt.rewrap_tenant('stays');
SELECT nomp_crypt.replace_keystore(:'serial', :'serial');
SELECT nomp_crypt.replace_keystore('0815', 'no such serial');
SELECT nomp_crypt.replace_keystore('0815', NULL);
INSERT INTO nomp_crypt.kek (uuid, tenant, generation, keystore, label)
SELECT gen_random_uuid(), uuid, 77, 'pkcs11:serial=0815', 'nomp_crypt:lost' FROM nomp_crypt.tenant WHERE id = 'stays';
SELECT nomp_crypt.replace_keystore('0815', :'serial') AS keys;
DELETE FROM nomp_crypt.kek WHERE label = 'nomp_crypt:lost';
SELECT generation, state, right(keystore, length(:'serial')) = :'serial' AS here
FROM nomp_crypt.kek WHERE tenant = (SELECT uuid FROM nomp_crypt.tenants WHERE id = 'stays') ORDER BY generation;
SELECT act, detail - 'new' FROM nomp_crypt.audit WHERE act = 'replace_keystore';
CALL nomp_crypt.suspend_tenant('stays');
CALL nomp_crypt.resume_tenant('stays');
SELECT nomp_crypt.decrypt(:'before');
SELECT nomp_crypt.revoke_tenant('stays', current_user);

-- a key on record in another token: asked for, not found, and not called unknown
SELECT nomp_crypt.create_tenant('lost') IS NOT NULL AS made;
UPDATE nomp_crypt.kek k SET keystore = 'pkcs11:serial=0000', label = 'nomp_crypt:' || i.uuid || ':' || gen_random_uuid() || ':1'
FROM nomp_crypt.tenant t, nomp_crypt.installation i WHERE t.uuid = k.tenant AND t.id = 'lost';
SELECT nomp_crypt.grant_tenant('lost', current_user, '{encrypt,decrypt}');
SELECT nomp_crypt.encrypt('Anna', 'lost');
SELECT keystore, state, serial, keys FROM nomp_crypt.keystore_status() WHERE state <> 'ok';
CALL nomp_crypt.erase_tenant('lost', 'test');
SELECT e.state, e.keystores FROM nomp_crypt.erasure e JOIN nomp_crypt.tenants t ON e.tenant = t.uuid WHERE t.id = 'lost';
-- and what its row cannot mean
UPDATE nomp_crypt.kek k SET keystore = x FROM nomp_crypt.tenant t, (VALUES (repeat('x', 300))) v (x)
WHERE t.uuid = k.tenant AND t.id = 'lost';
SELECT nomp_crypt.withdraw_erasure('lost');
SELECT nomp_crypt.encrypt('Anna', 'lost');
SELECT nomp_crypt.migrate_tenant('lost');

SELECT nomp_crypt.revoke_tenant('lost', current_user);
DELETE FROM nomp_crypt.erasure e USING nomp_crypt.tenant t WHERE t.uuid = e.tenant AND t.id = 'lost';
DELETE FROM nomp_crypt.kek k USING nomp_crypt.tenant t WHERE t.uuid = k.tenant AND t.id = 'lost';
DELETE FROM nomp_crypt.tenant_key k USING nomp_crypt.tenant t WHERE t.uuid = k.tenant AND t.id = 'lost';
DELETE FROM nomp_crypt.tenant t WHERE t.id = 'lost';
CALL nomp_crypt.erase_tenant('stays', 'test');
CALL nomp_crypt.erase_tenant('waits', 'test');
REVOKE EXECUTE ON ALL ROUTINES IN SCHEMA nomp_crypt FROM regress_mover;
REVOKE SELECT ON ALL TABLES IN SCHEMA nomp_crypt FROM regress_mover;
DROP ROLE regress_mover;
