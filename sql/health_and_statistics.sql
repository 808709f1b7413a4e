--
-- What an operator sees at a glance, who may see it, and that reading and
-- writing values shows in it.
--
SELECT name, CASE WHEN name IN ('library', 'broker', 'keystore', 'canary', 'keystore_software', 'tenant_setting', 'public', 'old_keks')
	THEN severity ELSE 'whatever' END AS severity
FROM nomp_crypt.health();
-- a check that is not ok says what and what to do; one that is, neither
SELECT name, severity, detail, advice FROM nomp_crypt.health()
WHERE severity NOT IN ('ok', 'info', 'warning', 'critical') OR (severity = 'ok') <> (detail IS NULL)
	OR (advice IS NULL AND detail IS NOT NULL AND detail !~ 'no school');
-- the policies are the caller's
SELECT severity AS keys_too_old FROM nomp_crypt.health(max_key_age => '-1 day') WHERE name = 'data_keys';
SELECT severity AS pin_too_old FROM nomp_crypt.health(max_pin_age => '-1 day') WHERE name = 'credentials';
SELECT severity AS keys_young FROM nomp_crypt.health(max_key_age => '1 day') WHERE name = 'data_keys';
-- (access keys do not expire, whatever their age)
SELECT severity = CASE WHEN s.credentials = '' THEN 'ok' ELSE 'warning' END AS pin_young
FROM nomp_crypt.health(max_pin_age => '1 day'), nomp_crypt.keystore_status() s WHERE name = 'credentials';

-- statistics: what is read and written shows
SELECT nomp_crypt.create_tenant('stat') IS NOT NULL AS created;
SELECT nomp_crypt.grant_tenant('stat', 'regress_app', '{encrypt,decrypt}');
CREATE TEMP TABLE before AS SELECT * FROM nomp_crypt.stat_keystore, nomp_crypt.stat_keyring;
GRANT SELECT ON before TO regress_app;
CREATE FUNCTION later() RETURNS TABLE (unwraps bigint, hits bigint, misses bigint) LANGUAGE sql AS $$
	SELECT k.unwraps - b.unwraps, r.hits - b.hits, r.misses - b.misses
	FROM before b, nomp_crypt.stat_keystore k, nomp_crypt.stat_keyring r
$$;
SELECT cached_keys, lease_end, last_used FROM nomp_crypt.stat_tenants WHERE id = 'stat';
SET ROLE regress_app;
SET nomp_crypt.tenant = 'stat';
INSERT INTO pupil VALUES (4711, 'stat', 'Anna', NULL);
RESET ROLE;
SELECT unwraps = 1 AS one_unwrap, misses = 1 AS one_miss, hits = 0 AS no_hit FROM later();
SET ROLE regress_app;
SELECT name FROM pupil WHERE id = 4711;
SELECT name FROM pupil WHERE id = 4711;
RESET nomp_crypt.tenant;
RESET ROLE;
SELECT unwraps = 1 AS still_one_unwrap, misses = 1 AS still_one_miss, hits = 2 AS two_hits FROM later();
SELECT cached_keys, lease_end BETWEEN now() + interval '3 hours' AND now() + interval '4 hours' AS leased,
	last_used BETWEEN now() - interval '1 minute' AND now() AS used_now, state, key_version, kek_generation,
	key_age >= '0' AS aged, kek_age >= '0' AS kek_aged, read, written
FROM nomp_crypt.stat_tenants WHERE id = 'stat';
SELECT entries > 0 AND entries <= capacity AS has_entries, evictions, soonest_lease_end > now() AS leased FROM nomp_crypt.stat_keyring;
SELECT keystore, creates > 0 AS creates, p50_ms > 0 AND p50_ms <= p95_ms AND p95_ms <= p99_ms AND p99_ms <= max_ms AS ordered,
	last_ok > since AS answered, since < now() AS since, queue, waiting
FROM nomp_crypt.stat_keystore;
SELECT nomp_crypt.revoke_tenant('stat', 'regress_app');
SELECT revocations AS before FROM nomp_crypt.stat_keyring \gset
CALL nomp_crypt.erase_tenant('stat', 'test');
SELECT revocations > :before AS revoked FROM nomp_crypt.stat_keyring;
SELECT state, cached_keys, lease_end, key_version, kek_generation FROM nomp_crypt.stat_tenants WHERE id = 'stat';
-- the access log's counts, while it has any
SET nomp_crypt.log_access = hourly;
SET ROLE regress_app;
SET nomp_crypt.tenant = 'ribersborg';
INSERT INTO pupil VALUES (4712, 'ribersborg', 'Anna', NULL);
SELECT name FROM pupil WHERE id = 4712;
RESET nomp_crypt.tenant;
RESET ROLE;
RESET nomp_crypt.log_access;
SELECT read > 0 AS read, written > 0 AS written FROM nomp_crypt.stat_tenants WHERE id = 'ribersborg';

-- who may look: members of pg_monitor, administrators, nobody else
CREATE ROLE regress_watcher;
GRANT pg_monitor TO regress_watcher;
CREATE ROLE regress_stat_admin;
SELECT nomp_crypt.grant_admin('regress_stat_admin');
CREATE FUNCTION looks() RETURNS TABLE (what text, outcome text) LANGUAGE sql AS $$
	SELECT what, outcome('SELECT * FROM nomp_crypt.' || what) FROM unnest('{health(),stat_keystore,stat_keyring,stat_tenants,
		_keyring_uses(),_server_facts(),_pin_file(),_settings_anywhere(),tenant,tenant_key,kek,keystore_status()}'::text[]) what
$$;
SET ROLE regress_watcher;
SELECT * FROM looks();
SET ROLE regress_stat_admin;
SELECT * FROM looks();
SET ROLE regress_app;
SELECT * FROM looks();
RESET ROLE;
-- nothing secret: neither path nor PIN nor wrapped key in anything they see
SET ROLE regress_watcher;
SELECT count(*) AS rows_with_a_path FROM (
	SELECT h::text FROM nomp_crypt.health() h UNION ALL SELECT s::text FROM nomp_crypt.stat_keystore s
	UNION ALL SELECT r::text FROM nomp_crypt.stat_keyring r UNION ALL SELECT t::text FROM nomp_crypt.stat_tenants t) all_of_it (line)
WHERE line ~ 'file:|/tmp|pkcs11:|\\x';
RESET ROLE;
-- statistics are no place to write
\set VERBOSITY sqlstate
UPDATE nomp_crypt.stat_tenants SET state = 'active';
DELETE FROM nomp_crypt.stat_keystore;

-- checks that rows of ours make fail, and pass again
CREATE FUNCTION check_says(wanted text) RETURNS text LANGUAGE sql AS $$
	SELECT severity || coalesce(': ' || detail, '') FROM nomp_crypt.health() WHERE name = wanted
$$;
-- a retired KEK past its date
SELECT check_says('old_keks') AS before;
INSERT INTO nomp_crypt.kek (uuid, tenant, generation, keystore, label, state, destroy_after)
SELECT 'aaaaaaaa-0000-0000-0000-000000000001', t.uuid, 99, 'pkcs11:serial=0', 'regress', 'retired', '2026-01-01 12:00+00'
FROM nomp_crypt.tenant t WHERE t.id = 'ribersborg';
SET TimeZone = 'UTC';
SELECT check_says('old_keks') AS past;
UPDATE nomp_crypt.kek SET destroy_after = 'infinity' WHERE generation = 99;
SELECT check_says('old_keks') AS kept;
DELETE FROM nomp_crypt.kek WHERE generation = 99;
-- everybody may do what only administrators should
SELECT check_says('public') AS before;
GRANT EXECUTE ON FUNCTION nomp_crypt.adopt_keystore(boolean) TO PUBLIC;
SELECT check_says('public') AS granted;
REVOKE EXECUTE ON FUNCTION nomp_crypt.adopt_keystore(boolean) FROM PUBLIC;
GRANT SELECT ON nomp_crypt.tenant_key TO PUBLIC;
SELECT check_says('public') AS granted;
REVOKE SELECT ON nomp_crypt.tenant_key FROM PUBLIC;
SELECT check_says('public') AS revoked;
-- an erasure that stopped on its way
SELECT check_says('erasures') AS before;
INSERT INTO nomp_crypt.erasure (case_id, tenant, reason, requested_by, state)
SELECT 'aaaaaaaa-0000-0000-0000-000000000001', t.uuid, 'test', current_user, 'submitted' FROM nomp_crypt.tenant t WHERE t.id = 'ribersborg';
SELECT check_says('erasures') AS interrupted;
UPDATE nomp_crypt.erasure SET state = 'requested', requested_at = now() - interval '1 minute' WHERE case_id = 'aaaaaaaa-0000-0000-0000-000000000001';
SELECT check_says('erasures') AS due;
UPDATE nomp_crypt.erasure SET state = 'withdrawn' WHERE case_id = 'aaaaaaaa-0000-0000-0000-000000000001';
SELECT check_says('erasures') AS withdrawn;
DELETE FROM nomp_crypt.erasure WHERE case_id = 'aaaaaaaa-0000-0000-0000-000000000001';
-- what can be logged, for the server or for a role
CREATE TEMP VIEW logged AS SELECT check_says('log') AS log;
SELECT * FROM logged;
ALTER ROLE regress_watcher SET log_statement = 'mod';
SELECT * FROM logged;
ALTER ROLE regress_watcher SET log_statement = 'ddl';
SELECT * FROM logged;
ALTER ROLE regress_watcher SET log_min_duration_statement = '1s';
SELECT * FROM logged;
ALTER ROLE regress_watcher SET log_min_duration_statement = -1;
ALTER ROLE regress_watcher SET debug_print_plan = on;
SELECT * FROM logged;
ALTER ROLE regress_watcher RESET ALL;
SELECT * FROM logged;
-- TLS is asked for and cannot be had
SELECT check_says('tls') AS before;
ALTER ROLE regress_watcher SET nomp_crypt.require_tls = on;
SELECT check_says('tls') AS wanted;
ALTER ROLE regress_watcher RESET ALL;
SELECT check_says('tls') AS after;
-- rights of roles that are gone, of predefined ones, of superusers
CREATE ROLE regress_gone;
SELECT nomp_crypt.grant_tenant('ribersborg', 'regress_gone', '{decrypt}');
DROP ROLE regress_gone;
SELECT check_says('grants') LIKE 'warning: % rights are held by roles that are gone: %regress_gone%' AS gone;
SELECT nomp_crypt.revoke_tenant('ribersborg', 'regress_gone');
SELECT check_says('grants') LIKE '%regress_gone%' AS still;

DELETE FROM pupil WHERE id IN (4711, 4712);
DROP FUNCTION check_says(text) CASCADE;
DROP FUNCTION looks();
DROP FUNCTION later();
DROP OWNED BY regress_stat_admin;
DROP ROLE regress_watcher, regress_stat_admin;
