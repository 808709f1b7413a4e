--
-- An ordinary user with a login and the right to create objects tries to get
-- at values, keys and the definer functions.
--
\set VERBOSITY terse
SELECT nomp_crypt.grant_tenant('ribersborg', 'regress_app', '{encrypt,decrypt}');
SET ROLE regress_app;
SET nomp_crypt.tenant = 'ribersborg';
INSERT INTO pupil VALUES (600, 'ribersborg', 'Hemlig');
RESET nomp_crypt.tenant;
RESET ROLE;
GRANT CREATE ON SCHEMA public TO regress_other;
SET ROLE regress_other;

-- the tables and views
SELECT * FROM nomp_crypt.tenant_key;
SELECT * FROM nomp_crypt.tenants;
INSERT INTO nomp_crypt.tenant_right VALUES ('regress_other', '00000000-0000-0000-0000-000000000000', true, true, true, true, 'me');
UPDATE nomp_crypt.tenant SET state = 'active';
-- the functions for administrators, and their building blocks
SELECT nomp_crypt.grant_all_tenants('regress_other', '{decrypt}');
SELECT nomp_crypt.create_tenant('mine');
CALL nomp_crypt.create_tenants('{mine}');
CALL nomp_crypt.erase_tenant('ribersborg', 'test');
SELECT nomp_crypt._erase_request('ribersborg', 'test', NULL);
SELECT nomp_crypt._erase_destroy(gen_random_uuid());
SELECT nomp_crypt._keystore_destroy(gen_random_uuid(), gen_random_uuid(), '');
SELECT nomp_crypt._wipe(gen_random_uuid());
SELECT nomp_crypt._set_rights(gen_random_uuid(), 'regress_other', '{decrypt}', true);
SELECT nomp_crypt.adopt_keystore();
SELECT nomp_crypt.reconcile_keystore();
SELECT nomp_crypt.keystore_status();
SELECT nomp_crypt.grant_admin('regress_other');
CREATE FUNCTION nomp_crypt.mine() RETURNS int LANGUAGE sql AS 'SELECT 1';
-- a value found somewhere: cannot be read, cannot be stored as one's own
SELECT format('%s', name) AS found FROM pupil WHERE id = 600 \gset
SELECT nomp_crypt.decrypt(:'found');
SELECT :'found'::encrypted;
SET nomp_crypt.tenant = 'ribersborg';
SELECT name FROM pupil WHERE id = 600;
SELECT name::text FROM pupil WHERE id = 600;
INSERT INTO pupil VALUES (601, 'ribersborg', 'x');
RESET nomp_crypt.tenant;
-- the internals of the type
SELECT encrypted_to_text(name) FROM pupil WHERE id = 600;
SELECT nomp_crypt._literal(name, true) FROM pupil WHERE id = 600;
SELECT encrypted_in('Anna', 0, -1);
SELECT encrypted_typmod_in('{}');
SELECT encrypted_typmod_in(ARRAY[[1,2],[3,4]]::text[]::cstring[]);
SELECT encrypted_typmod_out(2147483647), encrypted_typmod_out(-1);

-- objects that would catch our definer functions' calls, were their
-- search_path not fixed
CREATE SCHEMA AUTHORIZATION regress_other;
RESET ROLE;
CREATE SCHEMA trap AUTHORIZATION regress_other;
SET ROLE regress_other;
CREATE FUNCTION trap.sprung() RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'the trap was sprung as %', current_user; END $$;
CREATE FUNCTION trap.gen_random_uuid() RETURNS uuid LANGUAGE plpgsql AS $$ BEGIN PERFORM trap.sprung(); RETURN NULL; END $$;
CREATE FUNCTION trap.text_eq(text, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN PERFORM trap.sprung(); RETURN true; END $$;
CREATE OPERATOR trap.= (LEFTARG = text, RIGHTARG = text, FUNCTION = trap.text_eq);
CREATE FUNCTION trap.enc_eq(encrypted, encrypted) RETURNS boolean LANGUAGE sql AS 'SELECT true';
CREATE OPERATOR trap.= (LEFTARG = encrypted, RIGHTARG = encrypted, FUNCTION = trap.enc_eq);
CREATE FUNCTION trap.octet_length(text) RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM trap.sprung(); RETURN 1; END $$;
CREATE FUNCTION trap.cardinality(text[]) RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM trap.sprung(); RETURN 1; END $$;
CREATE DOMAIN trap.uuid AS text CHECK (trap.sprung() IS NULL);
CREATE DOMAIN trap.text AS pg_catalog.text CHECK (trap.sprung() IS NULL);
CREATE TABLE trap.tenant (id pg_catalog.text);
GRANT USAGE ON SCHEMA trap TO PUBLIC;
RESET ROLE;
SET search_path = trap, pg_catalog, public;
CREATE TEMP TABLE tenant (uuid pg_catalog.uuid, id pg_catalog.text, state pg_catalog.text);
CREATE TEMP TABLE tenant_key (key_id bytea);
SELECT nomp_crypt.create_tenant('trapped') IS NOT NULL AS created;
CALL nomp_crypt.create_tenants('{trapped,trapped-2}');
SELECT nomp_crypt.grant_tenant('trapped', 'regress_app', '{encrypt,decrypt}');
CALL nomp_crypt.erase_tenant('trapped', 'test');
CALL nomp_crypt.erase_tenant('trapped-2', 'test');
SELECT count(*) FROM nomp_crypt.reconcile_keystore();
-- somebody else's operator on the type is a comparison like any other
SET ROLE regress_app;
SET nomp_crypt.tenant = 'ribersborg';
SELECT name FROM public.pupil WHERE id OPERATOR(pg_catalog.=) 600;
SELECT id FROM public.pupil WHERE name OPERATOR(trap.=) notes;
RESET ALL;
RESET ROLE;
RESET search_path;
DROP TABLE pg_temp.tenant, pg_temp.tenant_key;
SET client_min_messages = warning;
DROP SCHEMA trap CASCADE;
RESET client_min_messages;
REVOKE CREATE ON SCHEMA public FROM regress_other;
DELETE FROM pupil WHERE id >= 600;
