-- What is stored must mean the same on a standby, a subscriber and a shard: no
-- oid, no sequence, no key id that a node makes up; and functions must not
-- depend on what the caller's session, there, finds in its search_path.

-- columns of the extension's tables that are an oid or its kin, or a place in the
-- WAL: only where the fence of an erasure lies, for the node that executes it,
-- and which file pg_repack made, for the node where that is found again
SELECT format_type(a.atttypid, a.atttypmod) AS type,
	string_agg(format('%s.%s', c.relname, a.attname), ', ' ORDER BY c.relname COLLATE "C", a.attnum) FILTER (
		WHERE a.atttypid NOT IN ('uuid'::regtype, 'text'::regtype, 'text[]'::regtype, 'name'::regtype,
			'bytea'::regtype, 'boolean'::regtype, 'integer'::regtype, 'bigint'::regtype, 'timestamptz'::regtype,
			'interval'::regtype, 'jsonb'::regtype)) AS columns
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
JOIN pg_extension e ON e.oid = d.refobjid AND d.refclassid = 'pg_extension'::regclass
WHERE e.extname = 'nomp_crypt' AND c.relkind = 'r'
GROUP BY 1
HAVING count(*) FILTER (
		WHERE a.atttypid NOT IN ('uuid'::regtype, 'text'::regtype, 'text[]'::regtype, 'name'::regtype,
			'bytea'::regtype, 'boolean'::regtype, 'integer'::regtype, 'bigint'::regtype, 'timestamptz'::regtype,
			'interval'::regtype, 'jsonb'::regtype)) > 0
ORDER BY 1;

-- no sequence, no default that counts
SELECT c.relname FROM pg_class c JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
JOIN pg_extension e ON e.oid = d.refobjid AND d.refclassid = 'pg_extension'::regclass
WHERE e.extname = 'nomp_crypt' AND c.relkind = 'S';
SELECT d.adrelid::regclass, pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef d JOIN pg_class c ON c.oid = d.adrelid
WHERE c.relnamespace = 'nomp_crypt'::regnamespace AND pg_get_expr(d.adbin, d.adrelid) ~ 'nextval|oid|txid|pg_current_xact';

-- every table can be replicated logically: a primary key, and dumped with the rest;
-- but not which schools were busy in one cluster, and what ends with a transaction
-- or a call that is repeated, which nobody need restore
SELECT c.relname FROM pg_class c
WHERE c.relnamespace = 'nomp_crypt'::regnamespace AND c.relkind = 'r'
	AND (NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)
		 OR c.relreplident <> 'd'
		 OR NOT c.oid = ANY (SELECT unnest(extconfig) FROM pg_extension WHERE extname = 'nomp_crypt'))
ORDER BY c.relname COLLATE "C";

-- changes that logical replication applies are noticed: its rows fire row
-- triggers that are enabled for replicas, and nothing else
SELECT c.relname, string_agg(t.tgname, ', ' ORDER BY t.tgname COLLATE "C") AS triggers
FROM pg_class c JOIN pg_trigger t ON t.tgrelid = c.oid
WHERE c.relnamespace = 'nomp_crypt'::regnamespace AND t.tgenabled IN ('R', 'A') AND t.tgtype & 1 = 1
GROUP BY 1 ORDER BY c.relname COLLATE "C";

-- a key's id follows from the key
SELECT nomp_crypt.create_tenant('every-node') IS NOT NULL AS created;
SELECT count(*) > 0 AS keys, bool_and(k.key_id = substr(k.key_check, 1, 8)) AS derived FROM nomp_crypt.tenant_key k;

-- routines that are not in C and whose search_path is the caller's: procedures,
-- which commit, and name everything with its schema
SELECT p.proname, p.prokind FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
JOIN pg_extension e ON e.oid = d.refobjid AND d.refclassid = 'pg_extension'::regclass
WHERE e.extname = 'nomp_crypt' AND l.lanname NOT IN ('c', 'internal')
	AND NOT 'search_path=pg_catalog, pg_temp' = ANY (coalesce(p.proconfig, '{}')) AND p.prokind <> 'p'
ORDER BY p.proname COLLATE "C";

-- and those work with nothing in it, and with traps in it
CREATE SCHEMA traps;
CREATE FUNCTION traps.trapped(text, text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION 'trapped';
END
$$;
CREATE OPERATOR traps.= (LEFTARG = text, RIGHTARG = text, FUNCTION = traps.trapped);
CREATE OPERATOR traps.<> (LEFTARG = text, RIGHTARG = text, FUNCTION = traps.trapped);
SET search_path = '';
CALL nomp_crypt.create_tenants('{every-node,every-node-2}');
CALL nomp_crypt.erase_tenant('every-node', 'test');
SET search_path = traps, pg_catalog;
CALL nomp_crypt.create_tenants('{every-node-3}');
CALL nomp_crypt.erase_tenant('every-node-2', 'test');
CALL nomp_crypt.erase_tenant('every-node-3', 'test');
RESET search_path;
SELECT id, state FROM nomp_crypt.tenants WHERE id LIKE 'every-node%' ORDER BY id COLLATE "C";
SET client_min_messages = warning;
DROP SCHEMA traps CASCADE;
