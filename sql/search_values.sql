--
-- Looking somebody up before the school is known: search_values() makes what
-- a searchable column is compared with, for every active tenant where the
-- role may search; _probe() for the session's tenant alone.
--
\set VERBOSITY terse
CREATE ROLE regress_search;
CREATE FUNCTION found(probes encrypted[]) RETURNS text LANGUAGE sql STABLE
RETURN (SELECT string_agg(t, ' ' ORDER BY t) FROM unnest(probes) p, nomp_crypt.tenant_of(p) t
		WHERE t IN ('searched', 'left_out', 'monbijou'));
CREATE FUNCTION fingerprint(value encrypted) RETURNS bytea LANGUAGE sql STABLE
RETURN substr(encrypted_send(value), 35, 16);
-- modifiers: text exact, nocase, digits; date; and text that is not searchable
\set exact 257
\set nocase 513
\set digits 769
\set born 269
\set plain 1
SELECT nomp_crypt.create_tenant('searched') IS NOT NULL AS created, nomp_crypt.create_tenant('left_out') IS NOT NULL AS created;
SELECT nomp_crypt.grant_tenant('searched', 'regress_search', '{search}');

-- only where the role may search: its own rights, and those it inherits
SET ROLE regress_other;
\set VERBOSITY default
SELECT nomp_crypt.search_values('Anna');
\set VERBOSITY terse
SET ROLE regress_search;
SELECT found(nomp_crypt.search_values('Anna'));
RESET ROLE;
GRANT regress_search TO regress_other;
SET ROLE regress_other;
SELECT found(nomp_crypt.search_values('Anna'));
RESET ROLE;
REVOKE regress_search FROM regress_other;
SELECT nomp_crypt.grant_all_tenants('regress_search', '{search}');
SELECT count(*) AS active FROM nomp_crypt.tenants WHERE state = 'active' \gset
SET ROLE regress_search;
SELECT found(nomp_crypt.search_values('Anna'));
-- the same inside a tenant
SET nomp_crypt.tenant = 'searched';
SELECT cardinality(nomp_crypt.search_values('Anna')) = :active AS all_of_them;

-- one probe of them is the one of the session's tenant; other schools' differ
SELECT count(*) = 1 AS ours_is_one FROM unnest(nomp_crypt.search_values('Anna')) p
WHERE fingerprint(p) = fingerprint(nomp_crypt._probe('Anna'::text, :exact));
SELECT count(DISTINCT fingerprint(p)) = count(*) AS all_differ FROM unnest(nomp_crypt.search_values('Anna')) p;
-- a literal or parameter of the type, which carries no fingerprint itself
SELECT fingerprint(nomp_crypt._probe('Anna'::encrypted, :exact)) = fingerprint(nomp_crypt._probe('Anna'::text, :exact)) AS yes,
	fingerprint(nomp_crypt._probe('anna'::encrypted, :nocase)) = fingerprint(nomp_crypt._probe('ANNA'::text, :nocase)) AS yes;

-- nothing but null comes of null
SELECT nomp_crypt.search_values(NULL) IS NULL AS yes, nomp_crypt._probe(NULL::text, :exact) IS NULL AS yes;

-- a probe can be compared; it cannot be read
RESET nomp_crypt.tenant;
RESET ROLE;
SELECT nomp_crypt.grant_tenant('searched', 'regress_search', '{encrypt,decrypt}');
SET ROLE regress_search;
CREATE TEMP VIEW probe AS SELECT p FROM unnest(nomp_crypt.search_values('Anna')) p WHERE nomp_crypt.tenant_of(p) = 'searched';
SELECT nomp_crypt.decrypt(p) FROM probe;
SELECT outcome('SELECT p::text FROM probe') AS "NC005", outcome('SELECT nomp_crypt.try_decrypt(p) FROM probe') AS "NC005";
-- also when its key is in use
SELECT nomp_crypt.search_values('Anna') IS NOT NULL AS made, outcome('SELECT nomp_crypt.decrypt(p) FROM probe') AS "NC005";
SELECT type, searchable, tenant FROM probe, nomp_crypt.key_info(p);
SELECT octet_length(encrypted_send(p)) AS length, position('Anna'::bytea IN encrypted_send(p)) AS plaintext_at FROM probe;

-- search values pass a column of their kind, and no other
SELECT encrypted_send(nomp_crypt._probe(p, :exact)) = encrypted_send(p) AS unchanged FROM probe;
\set VERBOSITY default
SELECT nomp_crypt._probe(p, :nocase) FROM probe;
\set VERBOSITY terse
SELECT outcome(format('SELECT nomp_crypt._probe(p, %s) FROM probe', :born)) AS "22023",
	outcome(format('SELECT nomp_crypt._probe(p, %s) FROM probe', :plain)) AS "22023";

-- search values of a column's kind
SET ROLE regress_search;
SELECT cardinality(nomp_crypt._search_values('anna', :nocase)) AS schools;
SELECT (nomp_crypt._search_values('ANNA', :nocase))::text = (nomp_crypt._search_values('anna', :nocase))::text AS yes,
	(nomp_crypt._search_values('2014-05-01', :digits))::text = (nomp_crypt._search_values('20140501', :digits))::text AS yes,
	(nomp_crypt._search_values('1 May 2014', :born))::text = (nomp_crypt._search_values('2014-05-01', :born))::text AS yes,
	(nomp_crypt._search_values('anna', :exact))::text = (nomp_crypt._search_values('Anna', :exact))::text AS no;
SELECT nomp_crypt._search_values('not a date', :born);
SELECT nomp_crypt._search_values('Anna', :plain);

-- outside a tenant there is nothing to compare a plain value with
\set VERBOSITY default
SELECT nomp_crypt._probe('Anna'::text, :exact);
\set VERBOSITY terse

-- inside one: rights, and whose value it is
SET nomp_crypt.tenant = 'searched';
SELECT nomp_crypt._probe('Anna'::text, :exact) IS NOT NULL AS made;
RESET ROLE;
SELECT nomp_crypt.revoke_all_tenants('regress_search');
SELECT nomp_crypt.revoke_tenant('searched', 'regress_search', '{search}');
SET ROLE regress_search;
SELECT outcome(format('SELECT nomp_crypt._probe(%L::text, %s)', 'Anna', :exact)) AS "42501";
SELECT outcome(format('SELECT nomp_crypt._probe(%L::encrypted, %s)', 'Anna', :exact)) AS "42501";
RESET ROLE;
SELECT nomp_crypt.grant_all_tenants('regress_search', '{search,encrypt}');
SET ROLE regress_search;
RESET nomp_crypt.tenant;
CREATE TEMP TABLE kept (value encrypted(text));
INSERT INTO kept SELECT nomp_crypt.encrypt('Anna', 'monbijou');
SELECT outcome(format('SELECT nomp_crypt._probe(value, %s) FROM kept', :exact)) AS "NC006";
SET nomp_crypt.tenant = 'searched';
SELECT nomp_crypt._probe(value, :exact) FROM kept;
SET nomp_crypt.tenant = 'monbijou';
SELECT fingerprint(nomp_crypt._probe(value, :exact)) = fingerprint(nomp_crypt._probe('Anna'::text, :exact)) AS yes FROM kept;
RESET nomp_crypt.tenant;

-- what was made for one school is not used in another, within one transaction
DO $$
DECLARE
	school text;
	made bytea;
	seen bytea[];
BEGIN
	FOREACH school IN ARRAY '{searched,monbijou,searched}'::text[] LOOP
		PERFORM set_config('nomp_crypt.tenant', school, true);
		made := encrypted_send(nomp_crypt._probe('Anna'::text, 257));
		seen := seen || made;
	END LOOP;
	RAISE NOTICE 'differs: %, same again: %', seen[1] <> seen[2], seen[1] = seen[3];
END
$$;

-- suspended and erased schools are left out
SELECT found(nomp_crypt.search_values('Anna'));
RESET ROLE;
SELECT nomp_crypt._erase_request('left_out', 'test', 'PUB-1') IS NOT NULL AS suspended;
SET ROLE regress_search;
SELECT found(nomp_crypt.search_values('Anna'));
SET nomp_crypt.tenant = 'left_out';
SELECT outcome(format('SELECT nomp_crypt._probe(%L::text, %s)', 'Anna', :exact)) AS "NC002";
RESET nomp_crypt.tenant;
RESET ROLE;
SELECT nomp_crypt.withdraw_erasure('left_out');
SET ROLE regress_search;
SELECT found(nomp_crypt.search_values('Anna'));
RESET ROLE;
CALL nomp_crypt.erase_tenant('left_out', 'test', 'PUB-2');
SET ROLE regress_search;
SELECT found(nomp_crypt.search_values('Anna'));
SET nomp_crypt.tenant = 'left_out';
SELECT outcome(format('SELECT nomp_crypt._probe(%L::text, %s)', 'Anna', :exact)) AS "NC001";
RESET nomp_crypt.tenant;
RESET ROLE;

-- a school whose key cannot be had is an error, never a shorter answer
BEGIN;
DELETE FROM nomp_crypt.tenant_key k USING nomp_crypt.tenant t
WHERE t.uuid = k.tenant AND t.id = 'searched' AND k.purpose = 'index';
SET LOCAL ROLE regress_search;
SELECT nomp_crypt.search_values('Anna');
ROLLBACK;

DROP VIEW probe;
DROP TABLE kept;
DROP FUNCTION found, fingerprint;
SELECT nomp_crypt.revoke_all_tenants('regress_search');
SELECT nomp_crypt.revoke_tenant('searched', 'regress_search');
DROP ROLE regress_search;
