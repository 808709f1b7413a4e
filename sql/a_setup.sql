--
-- What the other files rely on: three schools, two roles, one table, and
-- outcome(), which says how a statement ended.
-- First by name: pg_regress runs the files in order, in one database.
--
SELECT state, canary IS NULL AS not_founded_yet FROM nomp_crypt.keystore_status();
SELECT nomp_crypt.create_tenant('ribersborg', display_name => 'Ribersborgsskolan', agreement => 'PUB-2024-117') IS NOT NULL AS created;
SELECT nomp_crypt.create_tenant('slottsstaden') IS NOT NULL AS created;
CALL nomp_crypt.create_tenants('{ribersborg,slottsstaden,monbijou}');
SELECT state, software, canary, installation IS NOT NULL AS founded FROM nomp_crypt.keystore_status();

CREATE ROLE regress_app;
CREATE ROLE regress_other;
GRANT CREATE ON SCHEMA public TO regress_app;
SELECT nomp_crypt.grant_tenant('ribersborg', 'regress_app', '{encrypt,decrypt}');
SELECT nomp_crypt.grant_tenant('slottsstaden', 'regress_app', '{encrypt,decrypt}');

CREATE TABLE pupil (
	id		bigint PRIMARY KEY,
	school	text NOT NULL,
	name	encrypted(text),
	notes	encrypted(text)
);
GRANT ALL ON pupil TO regress_app, regress_other;
SELECT id, display_name, agreement, state, key_version, kek_generation FROM nomp_crypt.tenants ORDER BY id;
SELECT role, tenant, encrypt, decrypt, search, load FROM nomp_crypt.rights ORDER BY tenant;

CREATE FUNCTION outcome(statement text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE statement;
	RETURN 'ok';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END
$$;
SELECT outcome('SELECT 1') AS ok, outcome('SELECT 1/0') AS "22012";
