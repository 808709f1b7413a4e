--
-- What everybody may do. A change here is a change of what an attacker with
-- an ordinary login can reach: read the difference twice.
--
-- functions and procedures of the extension that PUBLIC may execute, but the
-- casts: those are counted below
SELECT p.oid::regprocedure::text AS public_may_execute
FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'nomp_crypt'
WHERE EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
			  WHERE a.grantee = 0 AND a.privilege_type = 'EXECUTE')
AND NOT EXISTS (SELECT FROM pg_cast c WHERE c.castfunc = p.oid)
ORDER BY p.oid::regprocedure::text COLLATE "C";
-- and those it may not
SELECT p.oid::regprocedure::text AS public_may_not, p.prosecdef AS definer
FROM pg_proc p WHERE p.pronamespace = 'nomp_crypt'::regnamespace
AND NOT EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
				WHERE a.grantee = 0 AND a.privilege_type = 'EXECUTE')
ORDER BY p.oid::regprocedure::text COLLATE "C";
-- tables and views that PUBLIC may read or write: none
SELECT c.relname FROM pg_class c, aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) a
WHERE c.relnamespace = 'nomp_crypt'::regnamespace AND a.grantee = 0;
-- every definer function has its search_path fixed
SELECT p.oid::regprocedure FROM pg_proc p
WHERE p.pronamespace = 'nomp_crypt'::regnamespace AND p.prosecdef
AND NOT 'search_path=pg_catalog, pg_temp' = ANY (p.proconfig);
-- nothing but functions that are meant for people, the type's and the
-- operators live in the target schema
SELECT d.classid::regclass AS kind, count(*) FROM pg_depend d
JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'nomp_crypt'
WHERE d.deptype = 'e' GROUP BY 1 ORDER BY d.classid::regclass::text COLLATE "C";
-- casts: text and varchar implicit, out of the type all explicit, none immutable
SELECT CASE WHEN castsource = casttarget THEN 'to modifier' WHEN castsource = 'encrypted'::regtype THEN 'out' ELSE 'in' END AS direction,
	castcontext, p.provolatile, p.proisstrict, p.proparallel, p.prosrc, count(*) AS casts,
	CASE WHEN castcontext = 'i' OR count(*) = 1 THEN string_agg(castsource::regtype || ' to ' || casttarget::regtype, ', ' ORDER BY castsource::regtype::text COLLATE "C") END AS which
FROM pg_cast c JOIN pg_proc p ON p.oid = castfunc
WHERE 'encrypted'::regtype IN (castsource, casttarget) GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY 1, 2, 6;
-- settings: who may set what
SELECT name, context, setting FROM pg_settings
WHERE name LIKE 'nomp\_crypt.%' AND name NOT IN ('nomp_crypt.keystore', 'nomp_crypt.register_directory') ORDER BY name COLLATE "C";
SET ROLE regress_other;
\set VERBOSITY terse
SHOW nomp_crypt.keystore;
SHOW nomp_crypt.register_directory;
RESET ROLE;
