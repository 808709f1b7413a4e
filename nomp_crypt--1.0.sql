/* nomp_crypt--1.0.sql */

-- complain if the script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION nomp_crypt" to load this file. \quit

-- Values hold UTF-8; from these encodings nothing can be converted reliably.
DO $$
BEGIN
	IF getdatabaseencoding() IN ('SQL_ASCII', 'MULE_INTERNAL') THEN
		RAISE EXCEPTION 'nomp_crypt cannot work in a database with encoding %', getdatabaseencoding()
			USING ERRCODE = 'feature_not_supported',
			HINT = 'Create the database with ENCODING ''UTF8'' TEMPLATE template0. All other encodings work too.';
	END IF;
END
$$;

CREATE SCHEMA nomp_crypt;
GRANT USAGE ON SCHEMA nomp_crypt TO PUBLIC;

-- ---------------------------------------------------------------------------
-- Tables. catalog.c reads them by column number: append only.
-- Keys are uuids or derived; roles are stored by name; no row is inserted here.
-- No foreign keys: pg_restore -j would load the tables in no order, and lose keys.
-- ---------------------------------------------------------------------------

CREATE TABLE nomp_crypt.installation (
	uuid	uuid PRIMARY KEY,
	since	timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX installation_only_one ON nomp_crypt.installation ((true));

CREATE TABLE nomp_crypt.tenant (
	uuid			uuid PRIMARY KEY,
	id				text NOT NULL CHECK (id <> '' AND octet_length(id) < 128),
	state			text NOT NULL DEFAULT 'active'
					CHECK (state IN ('active', 'suspended', 'fenced', 'erased')),
	display_name	text,
	agreement		text,
	created_at		timestamptz NOT NULL DEFAULT now(),
	suspended_at	timestamptz
);
CREATE INDEX tenant_id_idx ON nomp_crypt.tenant (id);
CREATE UNIQUE INDEX tenant_living_id ON nomp_crypt.tenant (id) WHERE state <> 'erased';

CREATE TABLE nomp_crypt.kek (
	uuid			uuid PRIMARY KEY,
	tenant			uuid NOT NULL,
	generation		int NOT NULL CHECK (generation > 0),
	keystore		text NOT NULL,
	label			text NOT NULL CONSTRAINT kek_label_key UNIQUE,
	state			text NOT NULL DEFAULT 'active'
					CHECK (state IN ('active', 'retired', 'destroyed')),
	created_at		timestamptz NOT NULL DEFAULT now(),
	destroy_after	timestamptz,
	destroyed_at	timestamptz,
	retired_at		timestamptz,
	keystore_serial	text,
	submitted_at	timestamptz,
	submitted_lsn	pg_lsn,
	pending_until	timestamptz,				-- destroyed by then, in a keystore that destroys later
	reference		text,						-- what that keystore calls it, when it was submitted
	UNIQUE (tenant, generation)
);

CREATE TABLE nomp_crypt.tenant_key (
	key_id		bytea PRIMARY KEY CHECK (octet_length(key_id) = 8),
	tenant		uuid NOT NULL,
	purpose		text NOT NULL CHECK (purpose IN ('values', 'index')),
	version		int NOT NULL CHECK (version > 0),
	scope		text NOT NULL DEFAULT '',
	kek			uuid NOT NULL,
	wrapped		bytea,
	key_check	bytea NOT NULL CHECK (octet_length(key_check) = 32),
	state		text NOT NULL DEFAULT 'active'
				CHECK (state IN ('active', 'closed', 'erased')),
	created_at	timestamptz NOT NULL DEFAULT now(),
	UNIQUE (tenant, purpose, version, scope)
);
CREATE INDEX tenant_key_tenant_idx ON nomp_crypt.tenant_key (tenant);

-- tenant zero stands for all tenants
CREATE TABLE nomp_crypt.tenant_right (
	role		name NOT NULL,
	tenant		uuid NOT NULL,
	encrypt		boolean NOT NULL DEFAULT false,
	decrypt		boolean NOT NULL DEFAULT false,
	search		boolean NOT NULL DEFAULT false,
	load		boolean NOT NULL DEFAULT false,
	granted_by	name NOT NULL,
	granted_at	timestamptz NOT NULL DEFAULT now(),
	PRIMARY KEY (role, tenant)
);
CREATE INDEX tenant_right_tenant_idx ON nomp_crypt.tenant_right (tenant);

CREATE TABLE nomp_crypt.erasure (
	case_id			uuid PRIMARY KEY,
	tenant			uuid NOT NULL,
	reason			text NOT NULL CHECK (reason IN
					('agreement_ended', 'controller_request', 'school_closed', 'test')),
	reference		text CHECK (reference ~ '^[A-Za-z0-9._/-]{1,64}$'),
	requested_by	name NOT NULL,
	state			text NOT NULL DEFAULT 'requested'
					CHECK (state IN ('requested', 'withdrawn', 'fenced', 'submitted', 'pending',
									 'destroyed', 'certified')),
	requested_at	timestamptz NOT NULL DEFAULT now(),
	fenced_at		timestamptz,
	submitted_at	timestamptz,
	destroyed_at	timestamptz,
	keystore_serial	text,
	keys_seen		text[],
	keys_destroyed	text[],
	checked_at		timestamptz,
	submitted_lsn	pg_lsn,
	keystores		jsonb NOT NULL DEFAULT '{}',	-- by serial: seen, pending, destroyed, when
	pending_until	timestamptz,				-- when the last key will be gone, if it is pending
	voided_at		timestamptz,				-- when it was seen that somebody cancelled that
	voided_keys		text[]
);
CREATE UNIQUE INDEX erasure_one_per_tenant ON nomp_crypt.erasure (tenant) WHERE state <> 'withdrawn';

SELECT pg_catalog.pg_extension_config_dump('nomp_crypt.installation', '');
SELECT pg_catalog.pg_extension_config_dump('nomp_crypt.tenant', '');
SELECT pg_catalog.pg_extension_config_dump('nomp_crypt.kek', '');
SELECT pg_catalog.pg_extension_config_dump('nomp_crypt.tenant_key', '');
SELECT pg_catalog.pg_extension_config_dump('nomp_crypt.tenant_right', '');
SELECT pg_catalog.pg_extension_config_dump('nomp_crypt.erasure', '');

-- ---------------------------------------------------------------------------
-- The type
-- ---------------------------------------------------------------------------

CREATE TYPE @extschema@.encrypted;

CREATE FUNCTION @extschema@.encrypted_in(cstring, oid, integer) RETURNS @extschema@.encrypted
LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'nc_in';
CREATE FUNCTION @extschema@.encrypted_out(@extschema@.encrypted) RETURNS cstring
LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'nc_out';
CREATE FUNCTION @extschema@.encrypted_recv(internal, oid, integer) RETURNS @extschema@.encrypted
LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'nc_recv';
CREATE FUNCTION @extschema@.encrypted_send(@extschema@.encrypted) RETURNS bytea
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'nc_send';
CREATE FUNCTION @extschema@.encrypted_typmod_in(cstring[]) RETURNS integer
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'nc_typmod_in';
CREATE FUNCTION @extschema@.encrypted_typmod_out(integer) RETURNS cstring
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'nc_typmod_out';
CREATE FUNCTION @extschema@.encrypted_analyze(internal) RETURNS boolean
LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'nc_analyze';

CREATE TYPE @extschema@.encrypted (
	INPUT = @extschema@.encrypted_in,
	OUTPUT = @extschema@.encrypted_out,
	RECEIVE = @extschema@.encrypted_recv,
	SEND = @extschema@.encrypted_send,
	TYPMOD_IN = @extschema@.encrypted_typmod_in,
	TYPMOD_OUT = @extschema@.encrypted_typmod_out,
	ANALYZE = @extschema@.encrypted_analyze,
	INTERNALLENGTH = VARIABLE,
	STORAGE = external,
	COLLATABLE = true	-- what is decrypted compares with the column's collation
);
COMMENT ON TYPE @extschema@.encrypted IS
'plaintext inside a tenant, ciphertext outside and in storage; declare as encrypted(text), encrypted(date), ...';

-- ---------------------------------------------------------------------------
-- Casts
-- ---------------------------------------------------------------------------

CREATE FUNCTION @extschema@.encrypted(@extschema@.encrypted, integer, boolean)
RETURNS @extschema@.encrypted
LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'nc_coerce';
CREATE CAST (@extschema@.encrypted AS @extschema@.encrypted)
WITH FUNCTION @extschema@.encrypted(@extschema@.encrypted, integer, boolean) AS IMPLICIT;

-- One pair for each type that can be inside, and for its array. Text goes in
-- by itself, the others by assignment; out of the type everything is explicit.
-- The cast to json has a C function of its own: see nc_to_json.
DO $do$
DECLARE
	scalar text;
	inside text;
BEGIN
	FOREACH scalar IN ARRAY '{text,varchar,bpchar,bytea,bool,int2,int4,int8,float4,float8,numeric,money,
		date,time,timetz,timestamp,timestamptz,interval,uuid,inet,json,jsonb,
		int4range,int8range,numrange,daterange,tsrange,tstzrange}'::text[] LOOP
		FOREACH inside IN ARRAY ARRAY[scalar, scalar || '[]'] LOOP
			EXECUTE format($$CREATE FUNCTION @extschema@.encrypted(pg_catalog.%s, integer, boolean)
				RETURNS @extschema@.encrypted
				LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'nc_from_value'$$, inside);
			EXECUTE format($$CREATE FUNCTION @extschema@.encrypted_to_%s(@extschema@.encrypted)
				RETURNS pg_catalog.%s
				LANGUAGE c STABLE STRICT PARALLEL SAFE COST 100 AS 'MODULE_PATHNAME', %L$$,
				replace(inside, '[]', '_array'), inside,
				CASE inside WHEN 'json' THEN 'nc_to_json' ELSE 'nc_to_value' END);
			EXECUTE format($$CREATE CAST (pg_catalog.%1$s AS @extschema@.encrypted)
				WITH FUNCTION @extschema@.encrypted(pg_catalog.%1$s, integer, boolean) AS %2$s$$, inside,
				CASE WHEN inside IN ('text', 'varchar') THEN 'IMPLICIT' ELSE 'ASSIGNMENT' END);
			EXECUTE format($$CREATE CAST (@extschema@.encrypted AS pg_catalog.%s)
				WITH FUNCTION @extschema@.encrypted_to_%s(@extschema@.encrypted)$$, inside,
				replace(inside, '[]', '_array'));
		END LOOP;
	END LOOP;
END
$do$;

-- ---------------------------------------------------------------------------
-- Comparison. "=" and the opclasses go by fingerprint and need no key; queries
-- are rewritten where that is no answer.
-- ---------------------------------------------------------------------------

CREATE FUNCTION @extschema@.encrypted_eq(@extschema@.encrypted, @extschema@.encrypted) RETURNS boolean
LANGUAGE c IMMUTABLE STRICT LEAKPROOF PARALLEL SAFE AS 'MODULE_PATHNAME', 'nc_eq';
CREATE FUNCTION @extschema@.encrypted_ne(@extschema@.encrypted, @extschema@.encrypted) RETURNS boolean
LANGUAGE c IMMUTABLE STRICT LEAKPROOF PARALLEL SAFE AS 'MODULE_PATHNAME', 'nc_ne';
CREATE FUNCTION @extschema@.encrypted_lt(@extschema@.encrypted, @extschema@.encrypted) RETURNS boolean
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'nc_lt';
CREATE FUNCTION @extschema@.encrypted_le(@extschema@.encrypted, @extschema@.encrypted) RETURNS boolean
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'nc_le';
CREATE FUNCTION @extschema@.encrypted_gt(@extschema@.encrypted, @extschema@.encrypted) RETURNS boolean
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'nc_gt';
CREATE FUNCTION @extschema@.encrypted_ge(@extschema@.encrypted, @extschema@.encrypted) RETURNS boolean
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'nc_ge';
CREATE FUNCTION @extschema@.encrypted_cmp(@extschema@.encrypted, @extschema@.encrypted) RETURNS integer
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'nc_cmp';
CREATE FUNCTION @extschema@.encrypted_hash(@extschema@.encrypted) RETURNS integer
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'nc_hash';
CREATE FUNCTION @extschema@.encrypted_hash_extended(@extschema@.encrypted, bigint) RETURNS bigint
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'nc_hash_extended';

CREATE OPERATOR @extschema@.= (
	LEFTARG = @extschema@.encrypted, RIGHTARG = @extschema@.encrypted,
	FUNCTION = @extschema@.encrypted_eq,
	COMMUTATOR = OPERATOR(@extschema@.=), NEGATOR = OPERATOR(@extschema@.<>),
	RESTRICT = eqsel, JOIN = eqjoinsel, HASHES, MERGES);
CREATE OPERATOR @extschema@.<> (
	LEFTARG = @extschema@.encrypted, RIGHTARG = @extschema@.encrypted,
	FUNCTION = @extschema@.encrypted_ne,
	COMMUTATOR = OPERATOR(@extschema@.<>), NEGATOR = OPERATOR(@extschema@.=),
	RESTRICT = neqsel, JOIN = neqjoinsel);
CREATE OPERATOR @extschema@.< (
	LEFTARG = @extschema@.encrypted, RIGHTARG = @extschema@.encrypted,
	FUNCTION = @extschema@.encrypted_lt,
	COMMUTATOR = OPERATOR(@extschema@.>), NEGATOR = OPERATOR(@extschema@.>=),
	RESTRICT = scalarltsel, JOIN = scalarltjoinsel);
CREATE OPERATOR @extschema@.<= (
	LEFTARG = @extschema@.encrypted, RIGHTARG = @extschema@.encrypted,
	FUNCTION = @extschema@.encrypted_le,
	COMMUTATOR = OPERATOR(@extschema@.>=), NEGATOR = OPERATOR(@extschema@.>),
	RESTRICT = scalarlesel, JOIN = scalarlejoinsel);
CREATE OPERATOR @extschema@.> (
	LEFTARG = @extschema@.encrypted, RIGHTARG = @extschema@.encrypted,
	FUNCTION = @extschema@.encrypted_gt,
	COMMUTATOR = OPERATOR(@extschema@.<), NEGATOR = OPERATOR(@extschema@.<=),
	RESTRICT = scalargtsel, JOIN = scalargtjoinsel);
CREATE OPERATOR @extschema@.>= (
	LEFTARG = @extschema@.encrypted, RIGHTARG = @extschema@.encrypted,
	FUNCTION = @extschema@.encrypted_ge,
	COMMUTATOR = OPERATOR(@extschema@.<=), NEGATOR = OPERATOR(@extschema@.<),
	RESTRICT = scalargesel, JOIN = scalargejoinsel);

CREATE OPERATOR CLASS @extschema@.encrypted_ops DEFAULT FOR TYPE @extschema@.encrypted USING btree AS
	OPERATOR 1 @extschema@.<, OPERATOR 2 @extschema@.<=, OPERATOR 3 @extschema@.=,
	OPERATOR 4 @extschema@.>=, OPERATOR 5 @extschema@.>,
	FUNCTION 1 @extschema@.encrypted_cmp(@extschema@.encrypted, @extschema@.encrypted);
CREATE OPERATOR CLASS @extschema@.encrypted_ops DEFAULT FOR TYPE @extschema@.encrypted USING hash AS
	OPERATOR 1 @extschema@.=,
	FUNCTION 1 @extschema@.encrypted_hash(@extschema@.encrypted),
	FUNCTION 2 @extschema@.encrypted_hash_extended(@extschema@.encrypted, bigint);

-- Comparisons with values of other types, and patterns: placeholders, which
-- queries have rewritten. None for varchar: varchar = varchar would be taken for
-- it, because varchar casts to encrypted by itself.
CREATE FUNCTION @extschema@.encrypted_compare(@extschema@.encrypted, anyelement) RETURNS boolean
LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'nc_not_rewritten';
CREATE FUNCTION @extschema@.encrypted_compare(anyelement, @extschema@.encrypted) RETURNS boolean
LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'nc_not_rewritten';
CREATE FUNCTION @extschema@.encrypted_compare(@extschema@.encrypted, text) RETURNS boolean
LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'nc_not_rewritten';
CREATE FUNCTION @extschema@.encrypted_compare(text, @extschema@.encrypted) RETURNS boolean
LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'nc_not_rewritten';

DO $$
DECLARE
	operator text;
	other text;
	commutator text;
BEGIN
	FOREACH operator IN ARRAY '{=,<>,<,<=,>,>=}'::text[] LOOP
		commutator := CASE operator WHEN '<' THEN '>' WHEN '<=' THEN '>=' WHEN '>' THEN '<'
			WHEN '>=' THEN '<=' ELSE operator END;
		FOREACH other IN ARRAY '{anyelement,text}'::text[] LOOP
			EXECUTE format('CREATE OPERATOR @extschema@.%s (LEFTARG = @extschema@.encrypted, RIGHTARG = %s,
				FUNCTION = @extschema@.encrypted_compare, COMMUTATOR = OPERATOR(@extschema@.%s))',
				operator, other, commutator);
			EXECUTE format('CREATE OPERATOR @extschema@.%s (LEFTARG = %s, RIGHTARG = @extschema@.encrypted,
				FUNCTION = @extschema@.encrypted_compare, COMMUTATOR = OPERATOR(@extschema@.%s))',
				operator, other, commutator);
		END LOOP;
	END LOOP;
	-- members of the family, so that the parser takes them in (a, b) < (c, d)
	FOREACH other IN ARRAY '{anyelement,text}'::text[] LOOP
		EXECUTE format('ALTER OPERATOR FAMILY @extschema@.encrypted_ops USING btree ADD
			OPERATOR 1 @extschema@.< (@extschema@.encrypted, %1$s), OPERATOR 1 @extschema@.< (%1$s, @extschema@.encrypted),
			OPERATOR 2 @extschema@.<= (@extschema@.encrypted, %1$s), OPERATOR 2 @extschema@.<= (%1$s, @extschema@.encrypted),
			OPERATOR 3 @extschema@.= (@extschema@.encrypted, %1$s), OPERATOR 3 @extschema@.= (%1$s, @extschema@.encrypted),
			OPERATOR 4 @extschema@.>= (@extschema@.encrypted, %1$s), OPERATOR 4 @extschema@.>= (%1$s, @extschema@.encrypted),
			OPERATOR 5 @extschema@.> (@extschema@.encrypted, %1$s), OPERATOR 5 @extschema@.> (%1$s, @extschema@.encrypted)', other);
	END LOOP;
	FOREACH operator IN ARRAY '{~~,!~~,~~*,!~~*,~,!~,~*,!~*,^@}'::text[] LOOP
		EXECUTE format('CREATE OPERATOR @extschema@.%s (LEFTARG = @extschema@.encrypted, RIGHTARG = text,
			FUNCTION = @extschema@.encrypted_compare)', operator);
	END LOOP;
END
$$;

-- The order, the larger and the smaller by what is inside, inside a tenant.
CREATE FUNCTION nomp_crypt._compare(@extschema@.encrypted, @extschema@.encrypted) RETURNS integer
LANGUAGE c STABLE STRICT PARALLEL SAFE COST 100 AS 'MODULE_PATHNAME', 'nc_compare';
CREATE FUNCTION nomp_crypt._larger(@extschema@.encrypted, @extschema@.encrypted) RETURNS @extschema@.encrypted
LANGUAGE c STABLE PARALLEL SAFE COST 100 AS 'MODULE_PATHNAME', 'nc_larger';
CREATE FUNCTION nomp_crypt._smaller(@extschema@.encrypted, @extschema@.encrypted) RETURNS @extschema@.encrypted
LANGUAGE c STABLE PARALLEL SAFE COST 100 AS 'MODULE_PATHNAME', 'nc_smaller';
CREATE AGGREGATE @extschema@.max(@extschema@.encrypted) (
	SFUNC = nomp_crypt._larger, STYPE = @extschema@.encrypted,
	COMBINEFUNC = nomp_crypt._larger, PARALLEL = SAFE);
CREATE AGGREGATE @extschema@.min(@extschema@.encrypted) (
	SFUNC = nomp_crypt._smaller, STYPE = @extschema@.encrypted,
	COMBINEFUNC = nomp_crypt._smaller, PARALLEL = SAFE);

-- ---------------------------------------------------------------------------
-- Functions on values; for everybody, rights are checked inside
-- ---------------------------------------------------------------------------

CREATE FUNCTION nomp_crypt.encrypt(value text, tenant text) RETURNS @extschema@.encrypted
LANGUAGE c VOLATILE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'nc_encrypt';
CREATE FUNCTION nomp_crypt.decrypt(value @extschema@.encrypted) RETURNS text
LANGUAGE c STABLE STRICT PARALLEL SAFE COST 100 AS 'MODULE_PATHNAME', 'nc_decrypt';
CREATE FUNCTION nomp_crypt.try_decrypt(value @extschema@.encrypted) RETURNS text
LANGUAGE c STABLE STRICT PARALLEL SAFE COST 100 AS 'MODULE_PATHNAME', 'nc_try_decrypt';
CREATE FUNCTION nomp_crypt.tenant_of(value @extschema@.encrypted) RETURNS text
LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'nc_tenant_of';
CREATE FUNCTION nomp_crypt.key_info(value @extschema@.encrypted,
	OUT format int, OUT type text, OUT key_id text, OUT searchable boolean,
	OUT tenant text, OUT version int, OUT state text)
LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'nc_key_info';
CREATE FUNCTION nomp_crypt._literal(value @extschema@.encrypted, inside boolean)
RETURNS @extschema@.encrypted
LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'nc_literal';
-- For rewritten queries; they check the session and its rights themselves.
-- A side of a comparison, decrypted to the witness's type.
CREATE FUNCTION nomp_crypt._plain(value @extschema@.encrypted, witness anyelement, once boolean)
RETURNS anyelement
LANGUAGE c STABLE CALLED ON NULL INPUT PARALLEL SAFE COST 100 AS 'MODULE_PATHNAME', 'nc_plain';
-- A value about to be stored without a coercion.
CREATE FUNCTION nomp_crypt._store(value @extschema@.encrypted, typmod integer)
RETURNS @extschema@.encrypted
LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'nc_store';

CREATE FUNCTION nomp_crypt.search_values(value text) RETURNS @extschema@.encrypted[]
LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'nc_search_values';
CREATE FUNCTION nomp_crypt._search_values(value text, typmod integer) RETURNS @extschema@.encrypted[]
LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'nc_search_values_as';
CREATE FUNCTION nomp_crypt._probe(value anyelement, typmod integer) RETURNS @extschema@.encrypted
LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'nc_probe';

-- ---------------------------------------------------------------------------
-- Building blocks of administration; for nobody but the functions below
-- ---------------------------------------------------------------------------

-- Sessions remember what these tables say, and are told when it changes: always,
-- on subscribers and for a session that replicates too.
CREATE FUNCTION nomp_crypt._rows_changed() RETURNS trigger
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'nc_rows_changed';
REVOKE ALL ON FUNCTION nomp_crypt._rows_changed() FROM PUBLIC;
DO $$
DECLARE
	remembered text;
BEGIN
	FOREACH remembered IN ARRAY '{tenant,tenant_key,tenant_right}'::text[] LOOP
		EXECUTE format('CREATE TRIGGER rows_changed
			AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON nomp_crypt.%I
			FOR EACH STATEMENT EXECUTE FUNCTION nomp_crypt._rows_changed()', remembered);
		EXECUTE format('ALTER TABLE nomp_crypt.%I ENABLE ALWAYS TRIGGER rows_changed', remembered);
		-- logical replication applies rows without a statement
		EXECUTE format('CREATE TRIGGER rows_applied AFTER INSERT OR UPDATE OR DELETE ON nomp_crypt.%I
			FOR EACH ROW EXECUTE FUNCTION nomp_crypt._rows_changed()', remembered);
		EXECUTE format('ALTER TABLE nomp_crypt.%I ENABLE REPLICA TRIGGER rows_applied', remembered);
	END LOOP;
END
$$;
CREATE FUNCTION nomp_crypt._committed(xid) RETURNS boolean
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_committed';
REVOKE ALL ON FUNCTION nomp_crypt._committed(xid) FROM PUBLIC;
CREATE FUNCTION nomp_crypt._erasure_grace() RETURNS interval
LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'nc_erasure_grace';
REVOKE ALL ON FUNCTION nomp_crypt._erasure_grace() FROM PUBLIC;
CREATE FUNCTION nomp_crypt._require_synced(lsn pg_lsn) RETURNS void
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_require_synced';
REVOKE ALL ON FUNCTION nomp_crypt._require_synced(pg_lsn) FROM PUBLIC;
CREATE FUNCTION nomp_crypt._acting_role() RETURNS name
LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'nc_acting_role';
REVOKE ALL ON FUNCTION nomp_crypt._acting_role() FROM PUBLIC;
CREATE FUNCTION nomp_crypt._lock_keystore(exclusive boolean) RETURNS void
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_lock_keystore';
REVOKE ALL ON FUNCTION nomp_crypt._lock_keystore(boolean) FROM PUBLIC;
CREATE FUNCTION nomp_crypt._wipe(tenant uuid) RETURNS void
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_wipe';
REVOKE ALL ON FUNCTION nomp_crypt._wipe(uuid) FROM PUBLIC;
CREATE FUNCTION nomp_crypt._register_read(OUT installation uuid, OUT ours boolean, OUT neighbour boolean)
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'nc_register_read';
REVOKE ALL ON FUNCTION nomp_crypt._register_read() FROM PUBLIC;
CREATE FUNCTION nomp_crypt._register_founding(wanted uuid) RETURNS uuid
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_register_founding';
REVOKE ALL ON FUNCTION nomp_crypt._register_founding(uuid) FROM PUBLIC;
CREATE FUNCTION nomp_crypt._register_write(installation uuid) RETURNS void
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_register_write';
REVOKE ALL ON FUNCTION nomp_crypt._register_write(uuid) FROM PUBLIC;
-- "serial" is that of the keystore's token, '' for the first keystore
CREATE FUNCTION nomp_crypt._keystore_setup(installation uuid, serial text DEFAULT '', place int DEFAULT 1) RETURNS text
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_keystore_setup';
REVOKE ALL ON FUNCTION nomp_crypt._keystore_setup(uuid, text, int) FROM PUBLIC;
CREATE FUNCTION nomp_crypt._keystore_create(installation uuid, tenant uuid, generation int, serial text DEFAULT '',
	OUT label text, OUT keystore text, OUT purpose text, OUT version int,
	OUT key_id bytea, OUT wrapped bytea, OUT key_check bytea) RETURNS SETOF record
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_keystore_create';
REVOKE ALL ON FUNCTION nomp_crypt._keystore_create(uuid, uuid, int, text) FROM PUBLIC;
CREATE FUNCTION nomp_crypt._keystore_create_kek(installation uuid, tenant uuid, generation int, serial text,
	OUT label text, OUT keystore text)
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_keystore_create_kek';
REVOKE ALL ON FUNCTION nomp_crypt._keystore_create_kek(uuid, uuid, int, text) FROM PUBLIC;
CREATE FUNCTION nomp_crypt._keystore_fresh(installation uuid, keystore text, label text,
	tenant uuid, purpose text, version int, OUT wrapped bytea, OUT key_check bytea)
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_keystore_fresh';
REVOKE ALL ON FUNCTION nomp_crypt._keystore_fresh(uuid, text, text, uuid, text, int) FROM PUBLIC;
CREATE FUNCTION nomp_crypt._keystore_rewrap(installation uuid, from_keystore text, from_label text, confirm boolean,
	keystore text, label text, tenant uuid, purpose text, version int, wrapped bytea, key_check bytea) RETURNS bytea
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_keystore_rewrap';
REVOKE ALL ON FUNCTION nomp_crypt._keystore_rewrap(uuid, text, text, boolean, text, text, uuid, text, int, bytea, bytea)
FROM PUBLIC;
CREATE FUNCTION nomp_crypt._keystore_destroy_kek(installation uuid, label text, serial text,
	OUT destroyed boolean, OUT until timestamptz)
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_keystore_destroy_kek';
REVOKE ALL ON FUNCTION nomp_crypt._keystore_destroy_kek(uuid, text, text) FROM PUBLIC;
CREATE FUNCTION nomp_crypt._keystore_enable(installation uuid, tenants uuid[], enable boolean, serial text,
	OUT keys int, OUT obeyed int)
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_keystore_enable';
REVOKE ALL ON FUNCTION nomp_crypt._keystore_enable(uuid, uuid[], boolean, text) FROM PUBLIC;
CREATE FUNCTION nomp_crypt._keystore_enable(installation uuid, tenant uuid, enable boolean, serial text,
	OUT keys int, OUT obeyed int)
LANGUAGE sql VOLATILE STRICT SET search_path = pg_catalog, pg_temp AS $$ SELECT * FROM nomp_crypt._keystore_enable($1, ARRAY[$2], $3, $4) $$;
REVOKE ALL ON FUNCTION nomp_crypt._keystore_enable(uuid, uuid, boolean, text) FROM PUBLIC;
CREATE FUNCTION nomp_crypt._backup_retention() RETURNS interval
LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'nc_backup_retention';
REVOKE ALL ON FUNCTION nomp_crypt._backup_retention() FROM PUBLIC;
CREATE FUNCTION nomp_crypt._keystore_confirm(installation uuid, label text, serial text) RETURNS void
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_keystore_confirm';
REVOKE ALL ON FUNCTION nomp_crypt._keystore_confirm(uuid, text, text) FROM PUBLIC;
CREATE FUNCTION nomp_crypt._keystore_list(installation uuid, serial text,
	OUT label text, OUT created timestamptz) RETURNS SETOF record
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_keystore_list';
REVOKE ALL ON FUNCTION nomp_crypt._keystore_list(uuid, text) FROM PUBLIC;
CREATE FUNCTION nomp_crypt._keystore_remove(installation uuid, label text, seconds bigint, serial text)
RETURNS boolean
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_keystore_remove';
REVOKE ALL ON FUNCTION nomp_crypt._keystore_remove(uuid, text, bigint, text) FROM PUBLIC;
CREATE FUNCTION nomp_crypt._keystore_see(installation uuid, tenants uuid[], keystore text,
	OUT serial text, OUT labels text[], OUT keys jsonb)
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_keystore_see';
REVOKE ALL ON FUNCTION nomp_crypt._keystore_see(uuid, uuid[], text) FROM PUBLIC;
CREATE FUNCTION nomp_crypt._keystore_see(installation uuid, tenant uuid, keystore text DEFAULT '',
	OUT serial text, OUT labels text[], OUT keys jsonb)
LANGUAGE sql VOLATILE STRICT SET search_path = pg_catalog, pg_temp AS $$ SELECT * FROM nomp_crypt._keystore_see($1, ARRAY[$2], $3) $$;
REVOKE ALL ON FUNCTION nomp_crypt._keystore_see(uuid, uuid, text) FROM PUBLIC;
CREATE FUNCTION nomp_crypt._keystore_look(installation uuid, keys text[], serial text) RETURNS jsonb
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_keystore_look';
REVOKE ALL ON FUNCTION nomp_crypt._keystore_look(uuid, text[], text) FROM PUBLIC;
CREATE FUNCTION nomp_crypt._keystore_destroy(installation uuid, tenants uuid[], serial text,
	OUT labels text[], OUT pending int, OUT until timestamptz)
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_keystore_destroy';
REVOKE ALL ON FUNCTION nomp_crypt._keystore_destroy(uuid, uuid[], text) FROM PUBLIC;
CREATE FUNCTION nomp_crypt._keystore_destroy(installation uuid, tenant uuid, serial text,
	OUT labels text[], OUT pending int, OUT until timestamptz)
LANGUAGE sql VOLATILE STRICT SET search_path = pg_catalog, pg_temp AS $$ SELECT * FROM nomp_crypt._keystore_destroy($1, ARRAY[$2], $3) $$;
REVOKE ALL ON FUNCTION nomp_crypt._keystore_destroy(uuid, uuid, text) FROM PUBLIC;
CREATE FUNCTION nomp_crypt._keystore_status(installation uuid, place int DEFAULT 1,
	OUT keystore text, OUT state text, OUT detail text, OUT token text, OUT serial text,
	OUT manufacturer text, OUT model text, OUT software boolean, OUT canary boolean,
	OUT destroys_at_once boolean, OUT credentials text, OUT lasting_credentials boolean)
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'nc_keystore_status';
REVOKE ALL ON FUNCTION nomp_crypt._keystore_status(uuid, int) FROM PUBLIC;

-- All keystores that are configured, the first one first.
CREATE FUNCTION nomp_crypt._keystores(installation uuid,
	OUT keystore text, OUT state text, OUT detail text, OUT token text, OUT serial text,
	OUT manufacturer text, OUT model text, OUT software boolean, OUT canary boolean,
	OUT destroys_at_once boolean, OUT credentials text, OUT lasting_credentials boolean,
	OUT place int) RETURNS SETOF record
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT s.keystore,
		CASE WHEN s.state = 'ok' AND NOT s.canary THEN 'the token is not this installation''s' ELSE s.state END,
		s.detail, s.token, s.serial, s.manufacturer, s.model, s.software, s.canary,
		s.destroys_at_once, s.credentials, s.lasting_credentials, place
	FROM generate_series(1, 4) place, nomp_crypt._keystore_status($1, place) s
	WHERE s.keystore IS NOT NULL
$$;
REVOKE ALL ON FUNCTION nomp_crypt._keystores(uuid) FROM PUBLIC;
-- As nomp_crypt.kek names the keystore with a token of that serial, or the key
-- service with that ARN.
CREATE FUNCTION nomp_crypt._keystore_name(serial text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT CASE WHEN starts_with($1, 'arn:') THEN $1 ELSE 'pkcs11:serial=' || $1 END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._keystore_name(text) FROM PUBLIC;
-- And back.
CREATE FUNCTION nomp_crypt._keystore_serial(keystore text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$ SELECT regexp_replace($1, '^pkcs11:serial=', '') $$;
REVOKE ALL ON FUNCTION nomp_crypt._keystore_serial(text) FROM PUBLIC;

-- ---------------------------------------------------------------------------
-- Audit: what administrators did, and who used what
-- ---------------------------------------------------------------------------

-- Appended to by the functions below, in their own transactions. Whoever may
-- disable triggers, a superuser, can change it: the server log has it too.
CREATE TABLE nomp_crypt.audit (
	uuid			uuid PRIMARY KEY DEFAULT gen_random_uuid(),
	at				timestamptz NOT NULL DEFAULT clock_timestamp(),
	role			name NOT NULL,
	session_role	name NOT NULL,
	act				text NOT NULL,
	tenant			text,
	detail			jsonb NOT NULL
);
COMMENT ON TABLE nomp_crypt.audit IS 'who did what to keys, tenants and rights; append-only';
CREATE INDEX audit_at_idx ON nomp_crypt.audit (at);
SELECT pg_catalog.pg_extension_config_dump('nomp_crypt.audit', '');

CREATE FUNCTION nomp_crypt._append_only() RETURNS trigger
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	RAISE EXCEPTION 'table "%.%" is append-only', tg_table_schema, tg_table_name
		USING ERRCODE = 'object_not_in_prerequisite_state',
		HINT = 'Its rows are evidence, also of mistakes.';
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._append_only() FROM PUBLIC;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON nomp_crypt.audit
FOR EACH STATEMENT EXECUTE FUNCTION nomp_crypt._append_only();
-- statement triggers do not fire for replication, row triggers do
CREATE TRIGGER append_only_rows BEFORE UPDATE OR DELETE ON nomp_crypt.audit
FOR EACH ROW EXECUTE FUNCTION nomp_crypt._append_only();
ALTER TABLE nomp_crypt.audit ENABLE ALWAYS TRIGGER append_only;
ALTER TABLE nomp_crypt.audit ENABLE ALWAYS TRIGGER append_only_rows;

CREATE FUNCTION nomp_crypt._log_act(act text, tenant text, detail text) RETURNS void
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'nc_log_act';
REVOKE ALL ON FUNCTION nomp_crypt._log_act(text, text, text) FROM PUBLIC;

-- One act on record, in the table and in the server log. No personal data.
CREATE FUNCTION nomp_crypt._audit(act text, tenant text, detail jsonb) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	INSERT INTO nomp_crypt.audit (role, session_role, act, tenant, detail)
	VALUES (nomp_crypt._acting_role(), session_user, _audit.act, _audit.tenant,
			jsonb_strip_nulls(_audit.detail));
	PERFORM nomp_crypt._log_act(_audit.act, _audit.tenant, jsonb_strip_nulls(_audit.detail)::text);
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._audit(text, text, jsonb) FROM PUBLIC;

-- The same for an act on an erasure case.
CREATE FUNCTION nomp_crypt._audit_case(act text, c nomp_crypt.erasure, detail jsonb DEFAULT '{}') RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM nomp_crypt._audit(_audit_case.act,
		(SELECT t.id FROM nomp_crypt.tenant t WHERE t.uuid = c.tenant),
		jsonb_build_object('case', c.case_id, 'uuid', c.tenant) || _audit_case.detail);
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._audit_case(text, nomp_crypt.erasure, jsonb) FROM PUBLIC;

CREATE FUNCTION nomp_crypt._access(OUT hour timestamptz, OUT role name, OUT tenant text,
	OUT read bigint, OUT written bigint, OUT searched bigint) RETURNS SETOF record
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'nc_access';
REVOKE ALL ON FUNCTION nomp_crypt._access() FROM PUBLIC;
CREATE VIEW nomp_crypt.access AS
SELECT hour, role, tenant, read, written, searched FROM nomp_crypt._access();
COMMENT ON VIEW nomp_crypt.access IS
'use of values on this node that the server log does not have yet; see nomp_crypt.log_access';

-- ---------------------------------------------------------------------------
-- The register: what became of schools and their keys, as one chain of signed
-- records; see docs/register.md
-- ---------------------------------------------------------------------------

-- A record is a JWS; its payload has the hash of the record before. Columns
-- but jws are there to find it: what counts is what it says.
CREATE TABLE nomp_crypt.register (
	number	bigint PRIMARY KEY CHECK (number > 0),
	hash	bytea NOT NULL CHECK (octet_length(hash) = 32),	-- SHA-256 of jws
	jws		text NOT NULL,
	at		timestamptz NOT NULL,
	type	text NOT NULL,
	school	uuid,
	case_id	uuid
);
COMMENT ON TABLE nomp_crypt.register IS 'signed records of what became of schools and keys; append-only';
CREATE INDEX register_school_idx ON nomp_crypt.register (school);
CREATE INDEX register_case_idx ON nomp_crypt.register (case_id);
CREATE INDEX register_type_idx ON nomp_crypt.register (type, number);
SELECT pg_catalog.pg_extension_config_dump('nomp_crypt.register', '');
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON nomp_crypt.register
FOR EACH STATEMENT EXECUTE FUNCTION nomp_crypt._append_only();
CREATE TRIGGER append_only_rows BEFORE UPDATE OR DELETE ON nomp_crypt.register
FOR EACH ROW EXECUTE FUNCTION nomp_crypt._append_only();
ALTER TABLE nomp_crypt.register ENABLE ALWAYS TRIGGER append_only;
ALTER TABLE nomp_crypt.register ENABLE ALWAYS TRIGGER append_only_rows;

-- What a transaction will put on record when it commits: the chain is locked
-- and signed last, so that a long transaction keeps nobody waiting.
CREATE TABLE nomp_crypt.register_pending (
	uuid	uuid PRIMARY KEY DEFAULT gen_random_uuid(),
	type	text NOT NULL,
	data	jsonb NOT NULL
);

CREATE FUNCTION nomp_crypt._lock_register() RETURNS void
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'nc_lock_register';
REVOKE ALL ON FUNCTION nomp_crypt._lock_register() FROM PUBLIC;
CREATE FUNCTION nomp_crypt._register_file(OUT trouble text, OUT installation uuid, OUT site uuid, OUT torn text)
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'nc_register_file';
REVOKE ALL ON FUNCTION nomp_crypt._register_file() FROM PUBLIC;
CREATE FUNCTION nomp_crypt._register_lines(after bigint, OUT number bigint, OUT jws text) RETURNS SETOF record
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_register_lines';
REVOKE ALL ON FUNCTION nomp_crypt._register_lines(bigint) FROM PUBLIC;
CREATE FUNCTION nomp_crypt._register_queue(number bigint, jws text, kid text, head text) RETURNS void
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_register_queue';
REVOKE ALL ON FUNCTION nomp_crypt._register_queue(bigint, text, text, text) FROM PUBLIC;
CREATE FUNCTION nomp_crypt._register_extend(number bigint, records text[]) RETURNS void
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_register_extend';
REVOKE ALL ON FUNCTION nomp_crypt._register_extend(bigint, text[]) FROM PUBLIC;
CREATE FUNCTION nomp_crypt._register_make(installation uuid, site uuid, records text[]) RETURNS void
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_register_make';
REVOKE ALL ON FUNCTION nomp_crypt._register_make(uuid, uuid, text[]) FROM PUBLIC;
CREATE FUNCTION nomp_crypt._register_key(generation int, make boolean,
	OUT kid text, OUT jwk text, OUT spki bytea, OUT created boolean, OUT place int)
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_register_key';
REVOKE ALL ON FUNCTION nomp_crypt._register_key(int, boolean) FROM PUBLIC;
CREATE FUNCTION nomp_crypt._register_pin(installation uuid, generations int[], keys bytea[]) RETURNS void
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_register_pin';
REVOKE ALL ON FUNCTION nomp_crypt._register_pin(uuid, int[], bytea[]) FROM PUBLIC;
CREATE FUNCTION nomp_crypt._register_sign(kid text, payload text) RETURNS text
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_register_sign';
REVOKE ALL ON FUNCTION nomp_crypt._register_sign(text, text) FROM PUBLIC;
CREATE FUNCTION nomp_crypt._register_verify(jws text) RETURNS text
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_register_verify';
REVOKE ALL ON FUNCTION nomp_crypt._register_verify(text) FROM PUBLIC;
CREATE FUNCTION nomp_crypt._register_head(kid text, set text DEFAULT NULL) RETURNS text
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'nc_register_head';
REVOKE ALL ON FUNCTION nomp_crypt._register_head(text, text) FROM PUBLIC;
-- Raises that the tenant was erased, NC001, or NC003 if no record proves it.
CREATE FUNCTION nomp_crypt._raise_erased(tenant uuid) RETURNS void
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_raise_erased';
REVOKE ALL ON FUNCTION nomp_crypt._raise_erased(uuid) FROM PUBLIC;

CREATE FUNCTION nomp_crypt._record_hash(jws text) RETURNS bytea
LANGUAGE sql IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp AS $$ SELECT sha256(convert_to($1, 'UTF8')) $$;
REVOKE ALL ON FUNCTION nomp_crypt._record_hash(text) FROM PUBLIC;

-- What a record says, all NULL unless a trusted key signed it. Raises NC004.
CREATE FUNCTION nomp_crypt._record(jws text, OUT number bigint, OUT previous text, OUT installation uuid,
	OUT site uuid, OUT at timestamptz, OUT type text, OUT data jsonb, OUT school uuid, OUT case_id uuid)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	payload jsonb := nomp_crypt._register_verify(jws)::jsonb;
BEGIN
	number := payload ->> 'number';
	previous := payload ->> 'previous';
	installation := payload ->> 'installation';
	site := payload ->> 'site';
	at := payload ->> 'at';
	type := payload ->> 'type';
	data := payload -> 'data';
	school := data ->> 'school';
	case_id := data ->> 'case';
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._record(text) FROM PUBLIC;

-- How the table, this site's file and the head that the keystore remembers
-- agree; the whole chain, or only its end. Changes nothing. state:
--   none         nothing yet
--   ok           they do
--   ahead        the file has more, of what this table's database has forgotten
--   behind       the file lacks records of other sites, or the end of its last line
--   missing, foreign, corrupt, truncated, forked, head ahead: in trouble
-- number and hash are the last record's of both. Raises NC004.
CREATE FUNCTION nomp_crypt._register_look(whole boolean,
	OUT state text, OUT detail text, OUT number bigint, OUT hash bytea, OUT in_table bigint, OUT in_file bigint,
	OUT head text, OUT site uuid, OUT generation int, OUT kid text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	mine uuid := (SELECT i.uuid FROM nomp_crypt.installation i);
	file record;
	line record;
	rec record;
	first bigint;
	before bytea;
	behind boolean := false;
	key_record text;
	head_number bigint;
	head_hash bytea;
BEGIN
	SELECT * INTO file FROM nomp_crypt._register_file();
	SELECT coalesce(max(r.number), 0) INTO in_table FROM nomp_crypt.register r;
	site := file.site;
	number := 0;
	in_file := 0;
	IF mine IS NULL THEN
		state := 'none';
		RETURN;
	ELSIF file.trouble = 'missing' AND in_table > 0 THEN
		state := 'missing';
		detail := 'this site has no file of the register';
	ELSIF file.trouble = 'corrupt' THEN
		state := 'corrupt';
		detail := 'the file''s first line is not that of a register';
	ELSIF file.installation <> mine THEN
		state := 'foreign';
		detail := 'the file is the register of installation ' || file.installation;
	END IF;
	IF state IS NOT NULL AND state <> 'missing' THEN
		RETURN;
	END IF;
	-- the end alone, if both have it
	first := CASE WHEN whole OR in_table = 0 OR state = 'missing' OR
		NOT EXISTS (SELECT FROM nomp_crypt._register_lines(in_table - 1)) THEN 1 ELSE in_table END;
	number := first - 1;
	SELECT r.jws INTO key_record FROM nomp_crypt.register r
	WHERE r.type IN ('founded', 'key') AND r.number < first ORDER BY r.number DESC LIMIT 1;
	FOR line IN
		SELECT coalesce(t.number, f.number) AS number, t.hash, t.jws, t.at, t.type, t.school, t.case_id,
			f.jws AS in_file
		FROM (SELECT * FROM nomp_crypt.register r WHERE r.number >= first) t
		FULL JOIN nomp_crypt._register_lines(first - 1) f ON f.number = t.number
		ORDER BY 1
	LOOP
		IF line.number = -1 THEN
			state := 'corrupt';
			detail := 'the file has a line that is no record';
			RETURN;
		ELSIF line.number <> number + 1 THEN
			state := 'corrupt';
			detail := format('record %s is missing', number + 1);
			RETURN;
		ELSIF line.jws IS NULL AND line.number < in_table THEN
			state := 'corrupt';
			detail := format('the table lacks record %s', line.number);
			RETURN;
		END IF;
		SELECT * INTO rec FROM nomp_crypt._record(coalesce(line.jws, line.in_file));
		IF line.jws <> line.in_file THEN
			state := CASE WHEN rec.number IS NOT NULL AND (nomp_crypt._record(line.in_file)).number = rec.number
				THEN 'forked' ELSE 'corrupt' END;
			detail := format('table and file have different records %s%s', line.number,
				CASE WHEN state = 'forked' THEN ', both signed'
					WHEN rec.number IS NULL THEN '; the table''s is not signed by this installation''s key'
					ELSE '; the file''s is not signed by this installation''s key' END);
			RETURN;
		END IF;
		IF rec.number IS NULL THEN
			state := 'corrupt';
			detail := format('record %s is not signed by this installation''s key', line.number);
			RETURN;
		ELSIF rec.number <> line.number OR rec.installation <> mine OR
			(before IS NOT NULL AND rec.previous <> encode(before, 'hex')) OR
			(line.number = 1 AND rec.previous <> '') THEN
			state := 'corrupt';
			detail := format('record %s does not follow the one before', line.number);
			RETURN;
		ELSIF line.jws IS NOT NULL AND (line.hash <> nomp_crypt._record_hash(line.jws) OR line.type <> rec.type OR
			line.at <> rec.at OR line.school IS DISTINCT FROM rec.school OR line.case_id IS DISTINCT FROM rec.case_id) THEN
			state := 'corrupt';
			detail := format('the table''s columns of record %s are not what it says', line.number);
			RETURN;
		ELSIF line.in_file IS NULL AND state IS DISTINCT FROM 'missing' THEN
			IF rec.site = file.site AND NOT (file.torn <> '' AND number = in_file AND
											 starts_with(line.number || ' ' || line.jws, file.torn)) THEN
				state := 'truncated';
				detail := format('the file lacks record %s, which this site wrote', line.number);
				RETURN;
			END IF;
			behind := true;
		ELSIF behind AND line.in_file IS NOT NULL THEN
			state := 'corrupt';
			detail := format('the file lacks records before %s', line.number);
			RETURN;
		END IF;
		IF rec.type IN ('founded', 'key') THEN
			key_record := coalesce(line.jws, line.in_file);
		END IF;
		before := nomp_crypt._record_hash(coalesce(line.jws, line.in_file));
		number := line.number;
		in_file := CASE WHEN line.in_file IS NOT NULL THEN line.number ELSE in_file END;
	END LOOP;
	hash := before;
	IF number = 0 THEN
		state := 'none';
		RETURN;
	END IF;
	SELECT r.data ->> 'generation', r.data ->> 'kid' INTO generation, kid FROM nomp_crypt._record(key_record) r;
	head := nomp_crypt._register_head(kid);
	head_number := substring(head FROM '^([0-9]{1,18}) [0-9a-f]{64}$');
	IF head <> '' AND head_number IS NULL THEN
		state := 'corrupt';
		detail := 'the head that the keystore remembers is malformed';
		RETURN;
	END IF;
	SELECT coalesce((SELECT nomp_crypt._record_hash(r.jws) FROM nomp_crypt.register r WHERE r.number = head_number),
		(SELECT nomp_crypt._record_hash(l.jws) FROM nomp_crypt._register_lines(head_number - 1) l
		 WHERE l.number = head_number)) INTO head_hash;
	-- a record may have been appended since: then it is here now
	IF head_number > number AND (head_hash IS NULL OR encode(head_hash, 'hex') <> split_part(head, ' ', 2)) THEN
		state := 'head ahead';
		detail := format('the keystore remembers record %s, and the last one here is %s', head_number, number);
	ELSIF head_number IS NOT NULL AND encode(head_hash, 'hex') <> split_part(head, ' ', 2) THEN
		state := 'forked';
		detail := format('the keystore remembers another record %s: another site has appended', head_number);
	ELSIF state IS NULL THEN
		state := CASE WHEN number > in_table THEN 'ahead' WHEN behind THEN 'behind' ELSE 'ok' END;
	END IF;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._register_look(boolean) FROM PUBLIC;

-- What an operator does about it. The sections are those of docs/register.md.
CREATE FUNCTION nomp_crypt._register_advice(state text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT CASE $1
		WHEN 'ahead' THEN 'If this database was restored from a backup: SELECT * FROM nomp_crypt.reconcile();'
		WHEN 'behind' THEN 'The next record brings the file up to date.'
		WHEN 'missing' THEN 'If this site has had no file yet, or it is lost: SELECT * FROM nomp_crypt.repair_register(); it is written from the table.'
		WHEN 'foreign' THEN 'Set nomp_crypt.register_directory to this installation''s own.'
		WHEN 'corrupt' THEN 'Nothing is erased until it is repaired: SELECT * FROM nomp_crypt.repair_register(); it takes each record from where it is whole.'
		WHEN 'truncated' THEN 'Nothing is erased until it is repaired: SELECT * FROM nomp_crypt.repair_register(); the file''s end is taken from the table. Find out why it was lost.'
		WHEN 'head ahead' THEN 'Records are lost here. Look for another site''s file, or a copy, that has them, put it in place, and SELECT * FROM nomp_crypt.reconcile(); see "Lost records" in docs/register.md.'
		WHEN 'forked' THEN 'Two sites have appended. Stop one of them and build it anew from the other, file included; see "A forked register" in docs/register.md.'
		END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._register_advice(text) FROM PUBLIC;

-- Refuse what the register must be whole for: to erase, and to append. Raises
-- 55000, NC004.
CREATE FUNCTION nomp_crypt._register_require(whole boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	now record;
BEGIN
	SELECT * INTO now FROM nomp_crypt._register_look(whole);
	IF now.state NOT IN ('none', 'ok', 'ahead', 'behind') THEN
		RAISE EXCEPTION 'the register is %: nothing is erased', now.state
			USING ERRCODE = 'object_not_in_prerequisite_state', DETAIL = now.detail || '.',
			HINT = nomp_crypt._register_advice(now.state);
	END IF;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._register_require(boolean) FROM PUBLIC;

-- Take over what the file has and the table has not, verified; how many
-- records. The caller holds the lock.
CREATE FUNCTION nomp_crypt._register_catch_up(after bigint) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	taken bigint;
BEGIN
	INSERT INTO nomp_crypt.register (number, hash, jws, at, type, school, case_id)
	SELECT l.number, nomp_crypt._record_hash(l.jws), l.jws, r.at, r.type, r.school, r.case_id
	FROM nomp_crypt._register_lines(_register_catch_up.after) l, nomp_crypt._record(l.jws) r
	ORDER BY l.number;
	GET DIAGNOSTICS taken = ROW_COUNT;
	IF taken > 0 THEN
		PERFORM nomp_crypt._audit('register_catch_up', NULL,
			jsonb_build_object('after', _register_catch_up.after, 'records', taken));
	END IF;
	RETURN taken;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._register_catch_up(bigint) FROM PUBLIC;

-- The register's key for the installation's first record, and the file.
CREATE FUNCTION nomp_crypt._register_found(installation uuid, OUT site uuid, OUT data jsonb)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	key record;
	head text;
BEGIN
	SELECT * INTO key FROM nomp_crypt._register_key(1, true);
	head := nomp_crypt._register_head(key.kid);
	IF head <> '' THEN
		RAISE EXCEPTION 'the register is head ahead: nothing is erased'
			USING ERRCODE = 'object_not_in_prerequisite_state',
			DETAIL = format('The keystore remembers record %s, and there is none here.', split_part(head, ' ', 1)),
			HINT = nomp_crypt._register_advice('head ahead');
	END IF;
	SELECT f.site INTO site FROM nomp_crypt._register_file() f;
	IF site IS NULL THEN
		site := gen_random_uuid();
		PERFORM nomp_crypt._register_make(_register_found.installation, site, '{}');
	END IF;
	PERFORM nomp_crypt._register_pin(_register_found.installation, ARRAY[1], ARRAY[key.spki]);
	data := jsonb_build_object('generation', 1, 'kid', key.kid, 'jwk', key.jwk::jsonb);
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._register_found(uuid) FROM PUBLIC;

-- Sign a record and put it in the table; the file has it before this
-- transaction commits.
CREATE FUNCTION nomp_crypt._register_put(installation uuid, site uuid, number bigint, previous bytea, kid text,
	type text, data jsonb) RETURNS nomp_crypt.register
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	rec nomp_crypt.register;
BEGIN
	rec.number := _register_put.number;
	rec.at := clock_timestamp();
	rec.type := _register_put.type;
	rec.school := data ->> 'school';
	rec.case_id := data ->> 'case';
	rec.jws := nomp_crypt._register_sign(_register_put.kid, jsonb_build_object(
		'version', 1, 'number', rec.number, 'previous', coalesce(encode(_register_put.previous, 'hex'), ''),
		'installation', _register_put.installation, 'site', _register_put.site,
		'at', to_char(rec.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
		'type', rec.type, 'data', jsonb_strip_nulls(data))::text);
	rec.hash := nomp_crypt._record_hash(rec.jws);
	INSERT INTO nomp_crypt.register VALUES (rec.*);
	PERFORM nomp_crypt._register_queue(rec.number, rec.jws, _register_put.kid,
		rec.number || ' ' || encode(rec.hash, 'hex'));
	RETURN rec;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._register_put(uuid, uuid, bigint, bytea, text, text, jsonb) FROM PUBLIC;

-- Append a record now, after what others have appended; the lock is held to
-- the end of the transaction. A first one founds the register. "kid": with
-- that key instead of the one in use. Raises 55000 where this server may not,
-- or the register is in trouble; NC004.
CREATE FUNCTION nomp_crypt._register_add(type text, data jsonb, kid text DEFAULT NULL) RETURNS nomp_crypt.register
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	mine uuid := nomp_crypt._require_owner();
	now record;
	founded record;
	rec nomp_crypt.register;
BEGIN
	PERFORM nomp_crypt._lock_register();
	PERFORM nomp_crypt._register_require(false);
	SELECT * INTO now FROM nomp_crypt._register_look(false);
	IF now.state = 'none' THEN
		SELECT * INTO founded FROM nomp_crypt._register_found(mine);
		rec := nomp_crypt._register_put(mine, founded.site, 1, NULL, founded.data ->> 'kid', 'founded', founded.data);
		RETURN nomp_crypt._register_put(mine, founded.site, 2, rec.hash, founded.data ->> 'kid',
			_register_add.type, _register_add.data);
	ELSIF now.state = 'ahead' THEN
		PERFORM nomp_crypt._register_catch_up(now.in_table);
	ELSIF now.state = 'behind' THEN
		PERFORM nomp_crypt._register_extend(now.in_file + 1,
			ARRAY(SELECT r.jws FROM nomp_crypt.register r WHERE r.number > now.in_file ORDER BY r.number));
	END IF;
	-- a call that is repeated after a crash finds what it had put on record
	SELECT r.* INTO rec FROM nomp_crypt.register r, nomp_crypt._record(r.jws) v
	WHERE _register_add.type IN ('fenced', 'destroyed', 'certificate') AND r.case_id = (_register_add.data ->> 'case')::uuid
		AND v.type = _register_add.type AND v.case_id = r.case_id;
	IF FOUND THEN
		RETURN rec;
	END IF;
	RETURN nomp_crypt._register_put(mine, now.site, now.number + 1, now.hash, coalesce(_register_add.kid, now.kid),
		_register_add.type, _register_add.data);
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._register_add(text, jsonb, text) FROM PUBLIC;

-- Append a record when this transaction commits.
CREATE FUNCTION nomp_crypt._register_append(type text, data jsonb) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	INSERT INTO nomp_crypt.register_pending (type, data) VALUES ($1, $2)
$$;
REVOKE ALL ON FUNCTION nomp_crypt._register_append(text, jsonb) FROM PUBLIC;

CREATE FUNCTION nomp_crypt._register_at_commit() RETURNS trigger
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM nomp_crypt._register_add(NEW.type, NEW.data);
	DELETE FROM nomp_crypt.register_pending p WHERE p.uuid = NEW.uuid;
	RETURN NULL;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._register_at_commit() FROM PUBLIC;
CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON nomp_crypt.register_pending
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION nomp_crypt._register_at_commit();

-- For the operator: is the register whole, all of it verified? Raises nothing
-- for one in trouble, or a keystore.
CREATE FUNCTION nomp_crypt.register_status(OUT state text, OUT detail text, OUT advice text, OUT records bigint,
	OUT in_table bigint, OUT in_file bigint, OUT in_keystore bigint, OUT installation uuid, OUT site uuid, OUT key text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	now record;
BEGIN
	SELECT i.uuid INTO installation FROM nomp_crypt.installation i;
	SELECT * INTO now FROM nomp_crypt._register_look(true);
	state := now.state;
	detail := now.detail;
	advice := nomp_crypt._register_advice(now.state);
	records := now.number;
	in_table := now.in_table;
	in_file := now.in_file;
	in_keystore := nullif(split_part(now.head, ' ', 1), '');
	site := now.site;
	key := now.kid;
EXCEPTION WHEN SQLSTATE 'NC004' OR data_corrupted OR io_error OR undefined_file OR insufficient_privilege THEN
	state := 'unknown';
	GET STACKED DIAGNOSTICS detail = MESSAGE_TEXT, advice = PG_EXCEPTION_HINT;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.register_status() FROM PUBLIC;

-- Every record, as far as a trusted key signed it: valid is false from the
-- first one on that is not what it should be. Raises NC004.
CREATE FUNCTION nomp_crypt.verify_register(OUT number bigint, OUT valid boolean, OUT at timestamptz, OUT type text,
	OUT school uuid, OUT case_id uuid, OUT data jsonb, OUT hash text, OUT jws text) RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	mine uuid := (SELECT i.uuid FROM nomp_crypt.installation i);
	line record;
	rec record;
	before text := '';
BEGIN
	valid := true;
	number := 0;
	FOR line IN SELECT r.number, r.hash, r.jws FROM nomp_crypt.register r ORDER BY r.number LOOP
		SELECT * INTO rec FROM nomp_crypt._record(line.jws);
		valid := valid AND rec.number IS NOT NULL AND line.number = number + 1 AND rec.number = line.number
			AND rec.previous = before AND rec.installation = mine
			AND line.hash = nomp_crypt._record_hash(line.jws);
		number := line.number;
		at := rec.at;
		type := rec.type;
		school := rec.school;
		case_id := rec.case_id;
		data := rec.data;
		hash := encode(line.hash, 'hex');
		jws := line.jws;
		before := hash;
		RETURN NEXT;
	END LOOP;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.verify_register() FROM PUBLIC;

-- For a school, at the beginning of a contract: the key that signs what will be
-- on record about it, and where the chain is. Raises 55000, NC004.
CREATE FUNCTION nomp_crypt.register_key(OUT installation uuid, OUT generation int, OUT kid text, OUT jwk jsonb,
	OUT pem text, OUT fingerprint text, OUT number bigint, OUT hash text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	now record;
	k record;
BEGIN
	SELECT i.uuid INTO installation FROM nomp_crypt.installation i;
	PERFORM nomp_crypt._register_require(false);
	SELECT * INTO now FROM nomp_crypt._register_look(false);
	IF now.state = 'none' THEN
		RAISE EXCEPTION 'there is no register yet' USING ERRCODE = 'object_not_in_prerequisite_state',
			HINT = 'It begins with the first tenant.';
	END IF;
	SELECT * INTO k FROM nomp_crypt._register_key(now.generation, false);
	IF k.kid IS DISTINCT FROM now.kid THEN
		RAISE EXCEPTION 'the keystore is unavailable: no configured keystore has the register''s key'
			USING ERRCODE = 'NC004', HINT = 'See nomp_crypt.keystore_status().';
	END IF;
	generation := now.generation;
	kid := k.kid;
	jwk := k.jwk::jsonb || jsonb_build_object('kid', k.kid, 'alg', 'ES256', 'use', 'sig');
	pem := E'-----BEGIN PUBLIC KEY-----\n' ||
		regexp_replace(replace(encode(k.spki, 'base64'), E'\n', ''), '(.{64})', E'\\1\n', 'g') ||
		E'\n-----END PUBLIC KEY-----\n';
	fingerprint := 'SHA256:' || encode(sha256(k.spki), 'hex');
	number := now.number;
	hash := encode(now.hash, 'hex');
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.register_key() FROM PUBLIC;

-- A public JWK as SubjectPublicKeyInfo of P-256 and its point: RFC 5480.
CREATE FUNCTION nomp_crypt._record_spki(jwk jsonb) RETURNS bytea
LANGUAGE sql IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp AS $$
	SELECT decode('3059301306072a8648ce3d020106082a8648ce3d03010703420004', 'hex') ||
		decode(translate($1 ->> 'x', '-_', '+/') || '=', 'base64') ||
		decode(translate($1 ->> 'y', '-_', '+/') || '=', 'base64')
$$;
REVOKE ALL ON FUNCTION nomp_crypt._record_spki(jsonb) FROM PUBLIC;

-- All keys of the register that this node can be sure of, for its file.
CREATE FUNCTION nomp_crypt._register_pin_all(installation uuid) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	rec record;
	generations int[] := '{}';
	keys bytea[] := '{}';
BEGIN
	FOR rec IN SELECT DISTINCT r.data ->> 'kid' AS kid, (r.data ->> 'generation')::int AS generation,
			r.data -> 'jwk' AS jwk
		FROM nomp_crypt.register g, nomp_crypt._record(g.jws) r WHERE g.type IN ('founded', 'key')
		AND r.data IS NOT NULL ORDER BY 2 LOOP
		generations := generations || rec.generation;
		keys := keys || nomp_crypt._record_spki(rec.jwk);
	END LOOP;
	IF cardinality(keys) > 0 THEN
		PERFORM nomp_crypt._register_pin(_register_pin_all.installation, generations, keys);
	END IF;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._register_pin_all(uuid) FROM PUBLIC;

-- A new key for the register, in the first keystore, signed for by the old
-- one. "lost": the old one is no more, so the new one speaks for itself; schools
-- see that in the record. Returns the new key's generation. Raises 55000, NC004.
CREATE FUNCTION nomp_crypt.rotate_register_key(lost boolean DEFAULT false) RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	mine uuid := nomp_crypt._require_owner();
	now record;
	new_generation int;
	k record;
BEGIN
	PERFORM nomp_crypt._lock_register();
	IF rotate_register_key.lost THEN
		SELECT (r.data ->> 'generation')::int AS generation INTO now
		FROM nomp_crypt.register g, nomp_crypt._record(g.jws) r
		WHERE g.type IN ('founded', 'key') ORDER BY g.number DESC LIMIT 1;
	ELSE
		PERFORM nomp_crypt._register_require(true);
		SELECT * INTO now FROM nomp_crypt._register_look(false);
	END IF;
	IF now.generation IS NULL THEN
		RAISE EXCEPTION 'there is no register yet' USING ERRCODE = 'object_not_in_prerequisite_state',
			HINT = 'It begins with the first tenant.';
	END IF;
	new_generation := now.generation + 1;
	SELECT * INTO k FROM nomp_crypt._register_key(new_generation, true);
	PERFORM nomp_crypt._register_add('key', jsonb_build_object('generation', new_generation, 'kid', k.kid,
		'jwk', k.jwk::jsonb, 'old_key_lost', nullif(rotate_register_key.lost, false)),
		CASE WHEN rotate_register_key.lost THEN k.kid END);
	PERFORM nomp_crypt._register_pin_all(mine);
	PERFORM nomp_crypt._audit('rotate_register_key', NULL, jsonb_build_object('generation', new_generation,
		'kid', k.kid, 'lost', rotate_register_key.lost));
	RETURN new_generation;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.rotate_register_key(boolean) FROM PUBLIC;

-- What a record claims, whoever signed it.
CREATE FUNCTION nomp_crypt._record_claims(jws text, part int DEFAULT 2) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	encoded text := translate(split_part(jws, '.', part), '-_', '+/');
BEGIN
	RETURN convert_from(decode(rpad(encoded, (length(encoded) + 3) / 4 * 4, '='), 'base64'), 'UTF8')::jsonb;
EXCEPTION WHEN OTHERS THEN
	RETURN NULL;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._record_claims(text, int) FROM PUBLIC;

-- The chain from table and file, each record from where it is signed and follows
-- the one before; as far as that goes. "left": others are there behind it.
-- Raises 55000 where both have one.
CREATE FUNCTION nomp_crypt._register_whole(OUT records text[], OUT hash bytea, OUT kid text, OUT "left" boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	mine uuid := (SELECT i.uuid FROM nomp_crypt.installation i);
	candidate record;
	rec record;
	next text;
BEGIN
	records := '{}';
	LOOP
		next := NULL;
		FOR candidate IN SELECT r.jws FROM nomp_crypt.register r WHERE r.number = cardinality(records) + 1
			UNION SELECT l.jws FROM nomp_crypt._register_lines(cardinality(records)) l
				  WHERE l.number = cardinality(records) + 1 LOOP
			SELECT * INTO rec FROM nomp_crypt._record(candidate.jws);
			CONTINUE WHEN rec.number IS DISTINCT FROM cardinality(records) + 1 OR rec.installation <> mine
				OR rec.previous <> coalesce(encode(hash, 'hex'), '');
			IF next IS NOT NULL THEN
				RAISE EXCEPTION 'the register is forked: nothing is erased'
					USING ERRCODE = 'object_not_in_prerequisite_state',
					DETAIL = format('Table and file have different records %s, both signed.', rec.number),
					HINT = nomp_crypt._register_advice('forked');
			END IF;
			next := candidate.jws;
			kid := CASE WHEN rec.type IN ('founded', 'key') THEN rec.data ->> 'kid' ELSE kid END;
		END LOOP;
		EXIT WHEN next IS NULL;
		records := records || next;
		hash := nomp_crypt._record_hash(next);
	END LOOP;
	"left" := EXISTS (SELECT FROM nomp_crypt.register r, nomp_crypt._record(r.jws) v
					  WHERE r.number > cardinality(records) AND v.number > cardinality(records))
		OR EXISTS (SELECT FROM nomp_crypt._register_lines(cardinality(records)) l, nomp_crypt._record(l.jws) v
				   WHERE v.number > cardinality(records));
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._register_whole() FROM PUBLIC;

-- Make table and file whole again, each record from where it is whole; the old
-- file is kept beside it. Refuses where records are lost on both, unless
-- accept_loss: then that is put on record. Returns what was done. Raises 55000,
-- NC004.
CREATE FUNCTION nomp_crypt.repair_register(accept_loss boolean DEFAULT false) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	mine uuid := nomp_crypt._require_owner();
	whole record;
	site uuid;
	head text;
	head_number bigint;
	lost boolean;
	changed bigint;
	n bigint;
BEGIN
	PERFORM nomp_crypt._lock_register();
	SELECT f.site INTO site FROM nomp_crypt._register_file() f WHERE f.installation = mine;
	SELECT * INTO whole FROM nomp_crypt._register_whole();
	n := cardinality(whole.records);
	IF n = 0 AND NOT whole."left" AND NOT EXISTS (SELECT FROM nomp_crypt.register) THEN
		RETURN 'there is no register yet';
	END IF;
	head := nomp_crypt._register_head(whole.kid);
	head_number := substring(head FROM '^([0-9]{1,18}) ');
	lost := n = 0 OR whole."left" OR coalesce(head_number > n, false);
	IF head_number <= n AND
		encode(nomp_crypt._record_hash(whole.records[head_number]), 'hex') <> split_part(head, ' ', 2) THEN
		RAISE EXCEPTION 'the register is forked: nothing is erased'
			USING ERRCODE = 'object_not_in_prerequisite_state',
			DETAIL = format('The keystore remembers another record %s.', head_number),
			HINT = nomp_crypt._register_advice('forked');
	ELSIF lost AND (NOT repair_register.accept_loss OR n = 0) THEN
		RAISE EXCEPTION 'record % of the register is lost, in the table and in the file', n + 1
			USING ERRCODE = 'object_not_in_prerequisite_state',
			HINT = 'Look for another site''s file, or a copy, that has it. If there is none: repair_register(accept_loss => true) goes on without, and puts that on record.';
	END IF;
	-- the one place where rows of the register change: what is not signed goes
	ALTER TABLE nomp_crypt.register DISABLE TRIGGER append_only;
	ALTER TABLE nomp_crypt.register DISABLE TRIGGER append_only_rows;
	DELETE FROM nomp_crypt.register r WHERE r.number > n OR r.jws <> whole.records[r.number]
		OR (r.number, r.hash, r.jws, r.at, r.type, r.school, r.case_id) IS DISTINCT FROM
		   (SELECT (v.number, nomp_crypt._record_hash(r.jws), r.jws, v.at, v.type, v.school, v.case_id) FROM nomp_crypt._record(r.jws) v);
	GET DIAGNOSTICS changed = ROW_COUNT;
	ALTER TABLE nomp_crypt.register ENABLE ALWAYS TRIGGER append_only;
	ALTER TABLE nomp_crypt.register ENABLE ALWAYS TRIGGER append_only_rows;
	INSERT INTO nomp_crypt.register (number, hash, jws, at, type, school, case_id)
	SELECT v.number, nomp_crypt._record_hash(w.jws), w.jws, v.at, v.type, v.school, v.case_id
	FROM unnest(whole.records) w(jws), nomp_crypt._record(w.jws) v
	WHERE NOT EXISTS (SELECT FROM nomp_crypt.register r WHERE r.number = v.number);
	PERFORM nomp_crypt._register_make(mine, coalesce(site, gen_random_uuid()), whole.records);
	PERFORM nomp_crypt._register_pin_all(mine);
	IF lost THEN
		PERFORM nomp_crypt._register_put(mine, (SELECT f.site FROM nomp_crypt._register_file() f), n + 1, whole.hash,
			whole.kid, 'lost', jsonb_build_object('head', nullif(head, '')));
	END IF;
	PERFORM nomp_crypt._audit('repair_register', NULL, jsonb_build_object('records', n, 'removed', changed,
		'lost', lost, 'head', head));
	RETURN format('%s records are whole in table and file%s', n, CASE WHEN lost THEN '; the loss is on record' ELSE '' END);
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.repair_register(boolean) FROM PUBLIC;

-- A site takes the installation over: its file is written from the table unless
-- a copy of another site's is there, and the keys are pinned. An empty keystore gets a new key, since the old one is no
-- more.
CREATE FUNCTION nomp_crypt._register_adopt(installation uuid, empty_keystore boolean, newly boolean) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	file record;
	k record;
BEGIN
	PERFORM nomp_crypt._lock_register();
	SELECT * INTO file FROM nomp_crypt._register_file();
	IF NOT EXISTS (SELECT FROM nomp_crypt.register) THEN
		RETURN;
	END IF;
	IF file.trouble = 'missing' THEN
		PERFORM nomp_crypt._register_make(_register_adopt.installation, gen_random_uuid(),
			ARRAY(SELECT r.jws FROM nomp_crypt.register r ORDER BY r.number));
	ELSIF newly AND file.installation = _register_adopt.installation AND NOT EXISTS (
		SELECT FROM nomp_crypt._register_lines(0) l WHERE l.number < 0) THEN
		-- a copy of another site's: from here on it is this one's
		PERFORM nomp_crypt._register_make(_register_adopt.installation, gen_random_uuid(),
			ARRAY(SELECT l.jws FROM nomp_crypt._register_lines(0) l ORDER BY l.number));
	END IF;
	IF _register_adopt.empty_keystore THEN
		-- nothing can vouch for the old keys but what this database says of them
		PERFORM nomp_crypt._register_pin(_register_adopt.installation, array_agg((c ->> 'generation')::int ORDER BY n),
			array_agg(nomp_crypt._record_spki(c -> 'jwk') ORDER BY n))
		FROM (SELECT r.number, nomp_crypt._record_claims(r.jws) -> 'data' FROM nomp_crypt.register r
			  WHERE r.type IN ('founded', 'key')) r(n, c) HAVING count(*) > 0;
		PERFORM nomp_crypt.rotate_register_key(true);
	END IF;
	PERFORM nomp_crypt._register_pin_all(_register_adopt.installation);
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._register_adopt(uuid, boolean, boolean) FROM PUBLIC;

-- Schools have moved to the first keystore: so does the register's key.
CREATE FUNCTION nomp_crypt._register_follow() RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	now record;
BEGIN
	SELECT * INTO now FROM nomp_crypt._register_look(false);
	IF now.kid IS NOT NULL AND (SELECT k.place FROM nomp_crypt._register_key(now.generation, false) k) > 1 THEN
		PERFORM nomp_crypt.rotate_register_key();
	END IF;
EXCEPTION WHEN SQLSTATE 'NC004' THEN
	RAISE WARNING 'the register''s key did not follow to the first keystore: %', SQLERRM
		USING HINT = 'SELECT nomp_crypt.rotate_register_key() before the other one is taken away.';
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._register_follow() FROM PUBLIC;

CREATE FUNCTION nomp_crypt._register_mark(mark text) RETURNS text
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'nc_register_mark';
REVOKE ALL ON FUNCTION nomp_crypt._register_mark(text) FROM PUBLIC;

-- Whoever copies the register's file away says how far: health() warns when
-- that is long ago. Raises 22023 for a record that is not in the register.
CREATE FUNCTION nomp_crypt.register_archived(number bigint) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF NOT EXISTS (SELECT FROM nomp_crypt.register r WHERE r.number = register_archived.number) THEN
		RAISE EXCEPTION 'the register has no record %', register_archived.number USING ERRCODE = 'invalid_parameter_value',
			HINT = 'Give the number at the beginning of the copy''s last line.';
	END IF;
	PERFORM nomp_crypt._register_mark(register_archived.number::text);
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.register_archived(bigint) FROM PUBLIC;

-- ---------------------------------------------------------------------------
-- Rows and sessions of one tenant; for everybody
-- ---------------------------------------------------------------------------

-- A trigger: the row's values are of the tenant that the named column says.
CREATE FUNCTION nomp_crypt.enforce_tenant() RETURNS trigger
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'nc_enforce_tenant';
-- A trigger: what is written again unchanged stays as it is stored.
CREATE FUNCTION nomp_crypt.keep_unchanged() RETURNS trigger
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'nc_keep_unchanged';
-- The tenant in force, NULL outside; for policies.
CREATE FUNCTION nomp_crypt.current_tenant() RETURNS text
LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'nc_current_tenant';

-- ---------------------------------------------------------------------------
-- The installation
-- ---------------------------------------------------------------------------

-- This database's installation, if this server may create and destroy its
-- keys; raises 55000 if not. A first call founds it.
CREATE FUNCTION nomp_crypt._require_owner() RETURNS uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	mine uuid;
	reg record;
	status record;
BEGIN
	IF pg_is_in_recovery() THEN
		RAISE EXCEPTION 'keys cannot be created or destroyed on a standby'
			USING ERRCODE = 'read_only_sql_transaction';
	END IF;
	SELECT uuid INTO mine FROM nomp_crypt.installation;
	SELECT * INTO reg FROM nomp_crypt._register_read();
	IF mine IS NULL AND reg.installation IS NULL THEN
		-- one session of the server at a time founds; another may have done it by now
		PERFORM nomp_crypt._lock_keystore(true);
		SELECT uuid INTO mine FROM nomp_crypt.installation;
		SELECT * INTO reg FROM nomp_crypt._register_read();
	END IF;
	IF mine IS NOT NULL THEN
		IF reg.installation IS DISTINCT FROM mine OR NOT reg.ours THEN
			RAISE EXCEPTION 'this server may not create or destroy keys of installation %', mine
				USING ERRCODE = 'object_not_in_prerequisite_state',
				DETAIL = CASE
					WHEN reg.installation IS NULL THEN 'The register directory holds no installation.'
					WHEN reg.installation <> mine THEN 'The register directory belongs to another installation.'
					ELSE 'The register directory does not name this database of this data directory.' END,
				HINT = 'A copy must not. If this is the original, or takes its place: SELECT nomp_crypt.adopt_keystore();';
		END IF;
		RETURN mine;
	END IF;
	IF reg.installation IS NULL THEN
		-- the canary first: a file without one would make an empty token look like
		-- ours. If this fails, the next call finds the canary by the same uuid
		mine := nomp_crypt._register_founding(gen_random_uuid());
		PERFORM nomp_crypt._keystore_setup(mine);
		PERFORM nomp_crypt._register_write(mine);
	ELSIF NOT reg.neighbour THEN
		RAISE EXCEPTION 'the register directory belongs to another server'
			USING ERRCODE = 'object_not_in_prerequisite_state',
			HINT = 'Give this server its own nomp_crypt.register_directory, or join that installation: SELECT nomp_crypt.adopt_keystore();';
	ELSE
		mine := reg.installation;
		SELECT * INTO status FROM nomp_crypt._keystore_status(mine);
		IF status.canary IS DISTINCT FROM true THEN
			RAISE EXCEPTION 'the keystore is unavailable: %',
				CASE WHEN status.state = 'ok' THEN 'the token is not this installation''s' ELSE status.state END
				USING ERRCODE = 'NC004', HINT = 'Check nomp_crypt.keystore; see nomp_crypt.keystore_status().';
		END IF;
		PERFORM nomp_crypt._register_write(mine);
	END IF;
	INSERT INTO nomp_crypt.installation (uuid) VALUES (mine);
	PERFORM nomp_crypt._audit('found_installation', NULL, jsonb_build_object('installation', mine));
	RETURN mine;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._require_owner() FROM PUBLIC;

-- Take ownership deliberately: this server, with its register directory, may
-- create and destroy the keys of this database's installation. new_keystore:
-- the keystore is empty and shall become this installation's. Raises 55000,
-- NC004.
CREATE FUNCTION nomp_crypt.adopt_keystore(new_keystore boolean DEFAULT false) RETURNS uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	mine uuid;
	reg record;
	status record;
BEGIN
	IF pg_is_in_recovery() THEN
		RAISE EXCEPTION 'a standby cannot adopt a keystore'
			USING ERRCODE = 'read_only_sql_transaction', HINT = 'Promote it first.';
	END IF;
	SELECT uuid INTO mine FROM nomp_crypt.installation;
	SELECT * INTO reg FROM nomp_crypt._register_read();
	IF mine IS NULL AND reg.installation IS NULL THEN
		RETURN nomp_crypt._require_owner();
	END IF;
	mine := coalesce(mine, reg.installation);
	SELECT * INTO status FROM nomp_crypt._keystore_status(mine);
	IF status.state <> 'ok' THEN
		RAISE EXCEPTION 'the keystore is unavailable: %', status.state USING ERRCODE = 'NC004';
	END IF;
	IF NOT status.canary AND NOT new_keystore THEN
		RAISE EXCEPTION 'the keystore is unavailable: the token is not this installation''s'
			USING ERRCODE = 'NC004',
			HINT = 'If it is meant to become this installation''s: adopt_keystore(new_keystore => true).';
	END IF;
	PERFORM nomp_crypt._register_write(mine);
	PERFORM nomp_crypt._keystore_setup(mine);
	INSERT INTO nomp_crypt.installation (uuid) VALUES (mine) ON CONFLICT DO NOTHING;
	PERFORM nomp_crypt._register_adopt(mine, NOT status.canary, NOT reg.ours);
	PERFORM nomp_crypt._audit('adopt_keystore', NULL, jsonb_build_object('installation', mine,
		'serial', status.serial, 'canary', status.canary, 'new_keystore', new_keystore));
	RETURN mine;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.adopt_keystore(boolean) FROM PUBLIC;

-- For the operator: what each keystore says now, the first one first, and one
-- that is no longer configured though keys are in it. "keys" are those on
-- record there that are not destroyed. Never raises for a keystore in trouble.
CREATE FUNCTION nomp_crypt.keystore_status(
	OUT keystore text, OUT state text, OUT detail text, OUT token text, OUT serial text,
	OUT manufacturer text, OUT model text, OUT software boolean, OUT canary boolean,
	OUT installation uuid, OUT keys bigint, OUT destroys_at_once boolean, OUT credentials text,
	OUT lasting_credentials boolean) RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	s record;
	known text[] := '{}';
	in_trouble boolean := false;
BEGIN
	SELECT i.uuid INTO installation FROM nomp_crypt.installation i;
	FOR s IN SELECT * FROM nomp_crypt._keystores(installation) LOOP
		keystore := s.keystore;
		state := s.state;
		detail := s.detail;
		token := s.token;
		serial := s.serial;
		manufacturer := s.manufacturer;
		model := s.model;
		software := s.software;
		canary := s.canary;
		destroys_at_once := s.destroys_at_once;
		credentials := s.credentials;
		lasting_credentials := s.lasting_credentials;
		SELECT count(*) INTO keys FROM nomp_crypt.kek k
		WHERE k.keystore = nomp_crypt._keystore_name(s.serial) AND k.state <> 'destroyed';
		known := known || nomp_crypt._keystore_name(s.serial);
		in_trouble := in_trouble OR s.state <> 'ok';
		RETURN NEXT;
	END LOOP;
	IF in_trouble THEN
		RETURN;		-- it may be the one that others are missed in
	END IF;
	FOR s IN SELECT k.keystore AS name, count(*) AS n FROM nomp_crypt.kek k
			 WHERE k.state <> 'destroyed' AND k.keystore <> ALL (known) GROUP BY 1 ORDER BY 1 LOOP
		keystore := NULL;
		state := 'the one that holds the key is not configured';
		detail := '';
		token := NULL;
		serial := nomp_crypt._keystore_serial(s.name);
		manufacturer := NULL;
		model := NULL;
		software := NULL;
		canary := NULL;
		destroys_at_once := NULL;
		credentials := NULL;
		lasting_credentials := NULL;
		keys := s.n;
		RETURN NEXT;
	END LOOP;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.keystore_status() FROM PUBLIC;

-- ---------------------------------------------------------------------------
-- Tenants
-- ---------------------------------------------------------------------------

-- A new school with a KEK of its own in the keystore and its first data keys.
-- Aborting leaves a provisional key there (reconcile_keystore). Raises 42710
-- if a living tenant has that id, 55000, NC004.
CREATE FUNCTION nomp_crypt.create_tenant(id text, display_name text DEFAULT NULL, agreement text DEFAULT NULL)
RETURNS uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	installation uuid;
	new_tenant uuid := gen_random_uuid();
	new_kek uuid := gen_random_uuid();
	made record;
	made_label text;
BEGIN
	IF create_tenant.id IS NULL OR create_tenant.id = '' OR octet_length(create_tenant.id) >= 128 THEN
		RAISE EXCEPTION 'a tenant''s id must have 1 to 127 bytes'
			USING ERRCODE = 'invalid_parameter_value';
	END IF;
	IF pg_is_in_recovery() THEN
		RAISE EXCEPTION 'a tenant cannot be created on a standby'
			USING ERRCODE = 'read_only_sql_transaction';
	END IF;
	-- founding the installation is for one session at a time
	PERFORM nomp_crypt._lock_keystore(NOT EXISTS (SELECT FROM nomp_crypt.installation));
	installation := nomp_crypt._require_owner();
	BEGIN
		INSERT INTO nomp_crypt.tenant (uuid, id, display_name, agreement)
		VALUES (new_tenant, create_tenant.id, create_tenant.display_name, create_tenant.agreement);
	EXCEPTION WHEN unique_violation THEN
		RAISE EXCEPTION 'tenant "%" exists', create_tenant.id USING ERRCODE = 'duplicate_object';
	END;
	FOR made IN SELECT * FROM nomp_crypt._keystore_create(installation, new_tenant, 1) LOOP
		INSERT INTO nomp_crypt.kek (uuid, tenant, generation, keystore, label)
		VALUES (new_kek, new_tenant, 1, made.keystore, made.label)
		ON CONFLICT (uuid) DO NOTHING;
		INSERT INTO nomp_crypt.tenant_key (key_id, tenant, purpose, version, kek, wrapped, key_check)
		VALUES (made.key_id, new_tenant, made.purpose, made.version, new_kek, made.wrapped, made.key_check);
		made_label := made.label;
	END LOOP;
	PERFORM nomp_crypt._audit('create_tenant', create_tenant.id,
		jsonb_build_object('uuid', new_tenant, 'key', made_label));
	PERFORM nomp_crypt._register_kek('born', new_tenant, 1);
	RETURN new_tenant;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.create_tenant(text, text, text) FROM PUBLIC;

-- Many schools, each in a transaction of its own; those that exist are passed
-- over, so a call that was interrupted is simply repeated.
-- It commits, so its search_path is the caller's: every name is qualified.
CREATE PROCEDURE nomp_crypt.create_tenants(ids text[])
LANGUAGE plpgsql AS $$
DECLARE
	id pg_catalog.text;
	created pg_catalog.int4 := 0;
BEGIN
	FOREACH id IN ARRAY ids LOOP
		IF NOT nomp_crypt._tenant_exists(id) THEN
			PERFORM nomp_crypt.create_tenant(id);
			created := created OPERATOR(pg_catalog.+) 1;
		END IF;
		COMMIT;
	END LOOP;
	RAISE NOTICE '% tenants created, % existed', created,
		pg_catalog.cardinality(ids) OPERATOR(pg_catalog.-) created;
END
$$;
REVOKE ALL ON PROCEDURE nomp_crypt.create_tenants(text[]) FROM PUBLIC;

CREATE FUNCTION nomp_crypt._tenant_exists(id text) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT EXISTS (SELECT FROM nomp_crypt.tenant t WHERE t.id = $1 AND t.state <> 'erased')
$$;
REVOKE ALL ON FUNCTION nomp_crypt._tenant_exists(text) FROM PUBLIC;

-- Keys that a transaction made and did not commit: 'confirmed' if this
-- database has them after all, 'orphan' if not, 'removed' if asked to. Only
-- ever removes keys that are marked provisional and at least that old. Run it
-- in every database of the server before removing.
CREATE FUNCTION nomp_crypt.reconcile_keystore(remove boolean DEFAULT false,
	older_than interval DEFAULT '1 hour',
	OUT label text, OUT created timestamptz, OUT action text) RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	installation uuid;
	leftover record;
	base text;
	store record;
	serials text[] := '{}';
	owner text;
BEGIN
	installation := nomp_crypt._require_owner();
	PERFORM nomp_crypt._lock_keystore(true);
	FOR store IN SELECT s.state, s.serial FROM nomp_crypt._keystores(installation) s LOOP
		IF store.state <> 'ok' THEN
			RAISE EXCEPTION 'the keystore is unavailable: %', store.state
				USING ERRCODE = 'NC004', HINT = 'See nomp_crypt.keystore_status().';
		END IF;
		serials := serials || store.serial;
	END LOOP;
	FOR leftover IN SELECT serial, l.* FROM unnest(serials) serial,
					nomp_crypt._keystore_list(installation, serial) l LOOP
		base := regexp_replace(leftover.label, ':provisional@.*$', '');
		label := base;
		created := leftover.created;
		SELECT k.keystore INTO owner FROM nomp_crypt.kek k WHERE k.label = base;
		-- one of that name in another keystore that is configured is a leftover here
		IF FOUND AND (owner = nomp_crypt._keystore_name(leftover.serial) OR NOT EXISTS (
				SELECT FROM unnest(serials) serial WHERE owner = nomp_crypt._keystore_name(serial))) THEN
			PERFORM nomp_crypt._keystore_confirm(installation, base, leftover.serial);
			action := 'confirmed';
		ELSIF remove AND leftover.created < clock_timestamp() - older_than AND
			nomp_crypt._keystore_remove(installation, leftover.label,
				greatest(0, floor(extract(epoch FROM older_than)))::bigint, leftover.serial) THEN
			action := 'removed';
			PERFORM nomp_crypt._audit('reconcile_keystore', NULL, jsonb_build_object('removed', leftover.label));
			PERFORM nomp_crypt._register_append('removed', jsonb_build_object('school', split_part(base, ':', 3),
				'key', base, 'serial', leftover.serial));
		ELSE
			action := 'orphan';
		END IF;
		RETURN NEXT;
	END LOOP;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.reconcile_keystore(boolean, interval) FROM PUBLIC;

-- ---------------------------------------------------------------------------
-- Rights
-- ---------------------------------------------------------------------------

-- The living tenant of that id. Raises 42704.
CREATE FUNCTION nomp_crypt._tenant_uuid(id text) RETURNS uuid
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	target uuid;
BEGIN
	SELECT t.uuid INTO target FROM nomp_crypt.tenant t
	WHERE t.id = _tenant_uuid.id ORDER BY t.state = 'erased', t.created_at DESC LIMIT 1;
	IF target IS NULL THEN
		RAISE EXCEPTION 'tenant "%" does not exist', id USING ERRCODE = 'undefined_object',
			HINT = 'See nomp_crypt.tenants.';
	END IF;
	RETURN target;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._tenant_uuid(text) FROM PUBLIC;

CREATE FUNCTION nomp_crypt._set_rights(tenant uuid, role name, rights text[], give boolean) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	unknown text;
BEGIN
	SELECT r INTO unknown FROM unnest(rights) r
	WHERE r IS NULL OR r NOT IN ('encrypt', 'decrypt', 'search', 'load') LIMIT 1;
	IF FOUND OR rights IS NULL THEN
		RAISE EXCEPTION 'unknown right "%"', unknown USING ERRCODE = 'invalid_parameter_value',
			HINT = 'Rights are encrypt, decrypt, search and load.';
	END IF;
	IF give AND NOT EXISTS (SELECT FROM pg_roles WHERE rolname = _set_rights.role) THEN
		RAISE EXCEPTION 'role "%" does not exist', _set_rights.role USING ERRCODE = 'undefined_object';
	END IF;
	IF give THEN
		INSERT INTO nomp_crypt.tenant_right AS t (role, tenant, encrypt, decrypt, search, load, granted_by)
		VALUES (_set_rights.role, _set_rights.tenant, 'encrypt' = ANY (rights), 'decrypt' = ANY (rights),
				'search' = ANY (rights), 'load' = ANY (rights), nomp_crypt._acting_role())
		ON CONFLICT (role, tenant) DO UPDATE SET
			encrypt = t.encrypt OR excluded.encrypt, decrypt = t.decrypt OR excluded.decrypt,
			search = t.search OR excluded.search, load = t.load OR excluded.load,
			granted_by = excluded.granted_by, granted_at = excluded.granted_at;
	ELSE
		UPDATE nomp_crypt.tenant_right t SET
			encrypt = t.encrypt AND NOT 'encrypt' = ANY (rights),
			decrypt = t.decrypt AND NOT 'decrypt' = ANY (rights),
			search = t.search AND NOT 'search' = ANY (rights),
			load = t.load AND NOT 'load' = ANY (rights)
		WHERE t.role = _set_rights.role AND t.tenant = _set_rights.tenant;
		DELETE FROM nomp_crypt.tenant_right t
		WHERE t.role = _set_rights.role AND t.tenant = _set_rights.tenant
			AND NOT (t.encrypt OR t.decrypt OR t.search OR t.load);
	END IF;
	PERFORM nomp_crypt._audit(
		CASE WHEN give THEN 'grant' ELSE 'revoke' END ||
		CASE WHEN _set_rights.tenant = '00000000-0000-0000-0000-000000000000' THEN '_all_tenants' ELSE '_tenant' END,
		(SELECT t.id FROM nomp_crypt.tenant t WHERE t.uuid = _set_rights.tenant),
		jsonb_build_object('role', _set_rights.role, 'rights', rights));
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._set_rights(uuid, name, text[], boolean) FROM PUBLIC;

-- Give a role rights in one school, or in all. Raises 42704, 22023.
CREATE FUNCTION nomp_crypt.grant_tenant(tenant text, role name, rights text[]) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT nomp_crypt._set_rights(nomp_crypt._tenant_uuid($1), $2, $3, true)
$$;
REVOKE ALL ON FUNCTION nomp_crypt.grant_tenant(text, name, text[]) FROM PUBLIC;
CREATE FUNCTION nomp_crypt.grant_all_tenants(role name, rights text[]) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT nomp_crypt._set_rights('00000000-0000-0000-0000-000000000000', $1, $2, true)
$$;
REVOKE ALL ON FUNCTION nomp_crypt.grant_all_tenants(name, text[]) FROM PUBLIC;

-- Take them back; takes effect at the role's next transaction.
CREATE FUNCTION nomp_crypt.revoke_tenant(tenant text, role name,
	rights text[] DEFAULT '{encrypt,decrypt,search,load}') RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT nomp_crypt._set_rights(nomp_crypt._tenant_uuid($1), $2, $3, false)
$$;
REVOKE ALL ON FUNCTION nomp_crypt.revoke_tenant(text, name, text[]) FROM PUBLIC;
CREATE FUNCTION nomp_crypt.revoke_all_tenants(role name,
	rights text[] DEFAULT '{encrypt,decrypt,search,load}') RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT nomp_crypt._set_rights('00000000-0000-0000-0000-000000000000', $1, $2, false)
$$;
REVOKE ALL ON FUNCTION nomp_crypt.revoke_all_tenants(name, text[]) FROM PUBLIC;

CREATE VIEW nomp_crypt.tenants AS
SELECT t.id, t.display_name, t.agreement, t.state, t.created_at, t.uuid,
	(SELECT max(k.version) FROM nomp_crypt.tenant_key k
	 WHERE k.tenant = t.uuid AND k.purpose = 'values') AS key_version,
	(SELECT max(k.generation) FROM nomp_crypt.kek k WHERE k.tenant = t.uuid) AS kek_generation,
	t.suspended_at
FROM nomp_crypt.tenant t;
COMMENT ON VIEW nomp_crypt.tenants IS 'one row per school';

CREATE VIEW nomp_crypt.rights AS
SELECT r.role, t.id AS tenant, r.encrypt, r.decrypt, r.search, r.load, r.granted_by, r.granted_at
FROM nomp_crypt.tenant_right r LEFT JOIN nomp_crypt.tenant t ON t.uuid = r.tenant;
COMMENT ON VIEW nomp_crypt.rights IS 'who may do what; tenant is null for a right in all';

-- ---------------------------------------------------------------------------
-- Erasure: the steps, each safe alone and harmless when repeated
-- ---------------------------------------------------------------------------

-- A key of a school, on record: its first, or another one.
CREATE FUNCTION nomp_crypt._register_kek(type text, school uuid, generation int) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT nomp_crypt._register_append($1, jsonb_build_object('school', k.tenant, 'generation', k.generation,
		'key', k.label, 'serial', nomp_crypt._keystore_serial(k.keystore)))
	FROM nomp_crypt.kek k WHERE k.tenant = $2 AND k.generation = $3
$$;
REVOKE ALL ON FUNCTION nomp_crypt._register_kek(text, uuid, int) FROM PUBLIC;

-- What the register says of a school, verified: the table's records, and what
-- the file has beyond them. Raises NC004.
CREATE FUNCTION nomp_crypt._register_of(school uuid, OUT number bigint, OUT at timestamptz, OUT type text,
	OUT data jsonb) RETURNS SETOF record
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT r.number, r.at, r.type, r.data
	FROM (SELECT g.jws FROM nomp_crypt.register g WHERE g.school = $1
		  UNION SELECT l.jws FROM nomp_crypt._register_lines(
			(SELECT coalesce(max(g.number), 0) FROM nomp_crypt.register g)) l) g, nomp_crypt._record(g.jws) r
	WHERE r.school = $1
$$;
REVOKE ALL ON FUNCTION nomp_crypt._register_of(uuid) FROM PUBLIC;

-- What stops an erasure by the register, whatever the tables say: a backup was
-- restored, or a row was changed by hand. Raises 55000, NC004.
CREATE FUNCTION nomp_crypt._register_allows(c nomp_crypt.erasure) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	needed int := greatest(c.approvals_needed, current_setting('nomp_crypt.erasure_approvals')::int);
	given int;
	r record;
BEGIN
	SELECT o.* INTO r FROM nomp_crypt._register_of(c.tenant) o
	WHERE o.type = 'hold' AND NOT EXISTS (SELECT FROM nomp_crypt._register_of(c.tenant) x
		WHERE x.type = 'released' AND x.data ->> 'reference' = o.data ->> 'reference' AND x.number > o.number)
	ORDER BY o.number LIMIT 1;
	IF FOUND THEN
		RAISE EXCEPTION 'tenant "%" is under legal hold %, by record % of the register',
			nomp_crypt._erase_tenant_id(c.case_id), r.data ->> 'reference', r.number
			USING ERRCODE = 'object_not_in_prerequisite_state',
			HINT = 'This database does not know of it: it was restored from a backup. SELECT * FROM nomp_crypt.reconcile();';
	END IF;
	SELECT o.* INTO r FROM nomp_crypt._register_of(c.tenant) o
	WHERE o.type = 'withdrawn' AND o.data ->> 'case' = c.case_id::text LIMIT 1;
	IF FOUND THEN
		RAISE EXCEPTION 'erasure case % of tenant "%" was withdrawn, by record % of the register',
			c.case_id, nomp_crypt._erase_tenant_id(c.case_id), r.number
			USING ERRCODE = 'object_not_in_prerequisite_state',
			HINT = 'This database does not know of it: it was restored from a backup. SELECT * FROM nomp_crypt.reconcile();';
	END IF;
	SELECT coalesce(max((o.data ->> 'given')::int), 0) INTO given FROM nomp_crypt._register_of(c.tenant) o
	WHERE o.type = 'approved' AND o.data ->> 'case' = c.case_id::text;
	IF given < needed THEN
		RAISE EXCEPTION '% of % approvals of the erasure of tenant "%" are not on record in the register',
			needed - given, needed, nomp_crypt._erase_tenant_id(c.case_id)
			USING ERRCODE = 'object_not_in_prerequisite_state',
			HINT = 'Rows of nomp_crypt.erasure_approval that were not made by nomp_crypt.approve_erasure() do not count. Withdraw the request and begin again.';
	END IF;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._register_allows(nomp_crypt.erasure) FROM PUBLIC;

-- Before the point of no return: the register, which the caller has found
-- whole, says nothing against it, and every key that it knows of this school has
-- been seen now, or its end is on record. A database restored from before a key
-- was replaced knows less. Then the fence is put on record. Raises 55000, NC003,
-- NC004.
CREATE FUNCTION nomp_crypt._register_fence(c nomp_crypt.erasure, seen jsonb) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
	missing record;
BEGIN
	PERFORM nomp_crypt._register_allows(c);
	SELECT r.data ->> 'key' AS key, r.data ->> 'serial' AS serial INTO missing
	FROM nomp_crypt._register_of(c.tenant) r
	WHERE r.type IN ('born', 'moved')
		AND NOT EXISTS (SELECT FROM jsonb_each(_register_fence.seen) s, jsonb_array_elements_text(s.value -> 'seen') l
			WHERE l = r.data ->> 'key' OR starts_with(l, (r.data ->> 'key') || ':provisional@'))
		AND NOT EXISTS (SELECT FROM nomp_crypt.register e, nomp_crypt._record(e.jws) x
			WHERE e.school = c.tenant AND e.type IN ('expired', 'removed') AND x.type IN ('expired', 'removed')
			AND x.data ->> 'key' = r.data ->> 'key')
		AND NOT EXISTS (SELECT FROM nomp_crypt.kek k
			WHERE k.label = r.data ->> 'key' AND k.tenant = c.tenant AND k.submitted_at IS NOT NULL)
	LIMIT 1;
	IF FOUND THEN
		RAISE EXCEPTION 'key % is on record in the register and in no keystore that was seen, so its destruction cannot be witnessed',
			missing.key USING ERRCODE = 'NC003', DETAIL = format('It was made in the keystore with serial number %s.', missing.serial),
			HINT = 'The school stays suspended. Name that keystore in nomp_crypt.other_keystores, or find its backup.';
	END IF;
	PERFORM nomp_crypt._register_append('fenced', jsonb_build_object('school', c.tenant, 'case', c.case_id,
		'reason', c.reason, 'reference', c.reference, 'requested_at', c.requested_at, 'keystores', _register_fence.seen));
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._register_fence(nomp_crypt.erasure, jsonb) FROM PUBLIC;

-- The keys are destroyed and were not seen again: on record, once.
CREATE FUNCTION nomp_crypt._register_destroyed(case_id uuid) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
#variable_conflict use_column
DECLARE
	c nomp_crypt.erasure;
BEGIN
	SELECT * INTO c FROM nomp_crypt.erasure e WHERE e.case_id = _register_destroyed.case_id;
	PERFORM nomp_crypt._register_append('destroyed', jsonb_build_object('school', c.tenant, 'case', c.case_id,
		'reason', c.reason, 'reference', c.reference, 'requested_at', c.requested_at, 'fenced_at', c.fenced_at,
		'submitted_at', c.submitted_at, 'destroyed_at', c.destroyed_at, 'keystores', c.keystores));
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._register_destroyed(uuid) FROM PUBLIC;

-- Put the case on record and suspend the school. Returns the case.
CREATE FUNCTION nomp_crypt._erase_request(id text, reason text, reference text) RETURNS uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	target uuid;
	open_case nomp_crypt.erasure;
	new_case uuid := gen_random_uuid();
BEGIN
	-- a stale repetition must not reach a new tenant of the same id
	SELECT e.* INTO open_case FROM nomp_crypt.erasure e JOIN nomp_crypt.tenant t ON t.uuid = e.tenant
	WHERE t.id = _erase_request.id AND e.reference = _erase_request.reference
		AND e.state IN ('destroyed', 'certified');
	IF FOUND THEN
		RAISE NOTICE 'tenant "%" was erased at % under this reference', _erase_request.id, open_case.destroyed_at;
		RETURN open_case.case_id;
	END IF;
	target := nomp_crypt._tenant_uuid(_erase_request.id);
	PERFORM nomp_crypt._lock_tenant(target);
	SELECT * INTO open_case FROM nomp_crypt.erasure e
	WHERE e.tenant = target AND e.state <> 'withdrawn';
	-- a finished case may have come by replication: what is left is this node's memory
	IF FOUND AND open_case.state IN ('destroyed', 'certified') THEN
		RAISE NOTICE 'tenant "%" was erased at %', _erase_request.id, open_case.destroyed_at;
		RETURN open_case.case_id;
	END IF;
	PERFORM nomp_crypt._require_owner();
	IF open_case.case_id IS NOT NULL THEN
		RETURN open_case.case_id;
	END IF;
	IF _erase_request.reason IS NULL OR
		_erase_request.reason NOT IN ('agreement_ended', 'controller_request', 'school_closed', 'test') THEN
		RAISE EXCEPTION 'unknown reason "%"', _erase_request.reason
			USING ERRCODE = 'invalid_parameter_value',
			HINT = 'Reasons are agreement_ended, controller_request, school_closed and test.';
	END IF;
	IF _erase_request.reference !~ '^[A-Za-z0-9._/-]{1,64}$' THEN
		RAISE EXCEPTION 'malformed reference' USING ERRCODE = 'invalid_parameter_value',
			HINT = 'Give the agreement''s number: up to 64 letters, digits, and . _ / -, no personal data.';
	END IF;
	INSERT INTO nomp_crypt.erasure (case_id, tenant, reason, reference, requested_by, requesters, approvals_needed)
	VALUES (new_case, target, _erase_request.reason, _erase_request.reference, nomp_crypt._acting_role(),
		nomp_crypt._actors(), current_setting('nomp_crypt.erasure_approvals')::int);
	UPDATE nomp_crypt.tenant t SET state = 'suspended' WHERE t.uuid = target AND t.state = 'active';
	SELECT * INTO open_case FROM nomp_crypt.erasure e WHERE e.case_id = new_case;
	PERFORM nomp_crypt._audit_case('erase_request', open_case,
		jsonb_build_object('reason', open_case.reason, 'reference', open_case.reference));
	RETURN new_case;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_request(text, text, text) FROM PUBLIC;

-- Lock a tenant's row, and do not wait for ever for whoever has it: a prepared
-- transaction can stay for years. Raises 55P03, and says who it is.
CREATE FUNCTION nomp_crypt._lock_tenant(tenant uuid) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '30s' AS $$
BEGIN
	PERFORM FROM nomp_crypt.tenant t WHERE t.uuid = _lock_tenant.tenant FOR UPDATE;
EXCEPTION WHEN lock_not_available THEN
	RAISE EXCEPTION 'the tenant''s row has been held by another transaction for 30 seconds'
		USING ERRCODE = 'lock_not_available',
		DETAIL = (SELECT 'It can be ' || string_agg(DISTINCT CASE WHEN l.pid IS NULL
					THEN format('prepared transaction "%s" of %s', p.gid, p.owner)
					ELSE format('process %s of %s', l.pid, a.usename) END, ', ') || '.'
			FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
			LEFT JOIN pg_locks x ON x.virtualtransaction = l.virtualtransaction AND x.pid IS NULL AND x.transactionid IS NOT NULL
			LEFT JOIN pg_prepared_xacts p ON p.transaction = x.transactionid
			WHERE l.relation = 'nomp_crypt.tenant'::regclass AND l.mode IN ('RowShareLock', 'RowExclusiveLock')
				AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()),
		HINT = 'End it, or commit or roll back what is prepared, and repeat the call.';
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._lock_tenant(uuid) FROM PUBLIC;

-- The case, locked, after its tenant, as everywhere. Raises 42704, 55P03.
CREATE FUNCTION nomp_crypt._erase_case(case_id uuid) RETURNS nomp_crypt.erasure
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	wanted nomp_crypt.erasure;
BEGIN
	PERFORM nomp_crypt._lock_tenant(e.tenant) FROM nomp_crypt.erasure e WHERE e.case_id = _erase_case.case_id;
	SELECT * INTO wanted FROM nomp_crypt.erasure e WHERE e.case_id = _erase_case.case_id FOR UPDATE;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'erasure case % does not exist', _erase_case.case_id USING ERRCODE = 'undefined_object';
	END IF;
	RETURN wanted;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_case(uuid) FROM PUBLIC;

-- Wipe the school's keys from this node's memory, if it is not active.
CREATE FUNCTION nomp_crypt._erase_wipe(case_id uuid) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	c nomp_crypt.erasure := nomp_crypt._erase_case(case_id);
BEGIN
	PERFORM nomp_crypt._wipe(t.uuid) FROM nomp_crypt.tenant t
	WHERE t.uuid = c.tenant AND t.state <> 'active';
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_wipe(uuid) FROM PUBLIC;

-- Empty if the erasure may be executed now, else what it waits for. NULL if it
-- was executed.
CREATE FUNCTION nomp_crypt._erase_due(case_id uuid) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	c nomp_crypt.erasure := nomp_crypt._erase_case(case_id);
BEGIN
	IF c.state IN ('destroyed', 'certified') THEN
		RETURN NULL;
	END IF;
	IF c.state = 'requested' THEN
		-- one at a time, for the limit of a day
		PERFORM FROM nomp_crypt.installation FOR UPDATE;
	END IF;
	RETURN coalesce(nomp_crypt._erase_waits(c), '');
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_due(uuid) FROM PUBLIC;

-- Refuse to go on in the transaction of the step before: each step commits
-- before the next one acts on it.
CREATE FUNCTION nomp_crypt._erase_committed(case_id uuid) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF NOT (SELECT nomp_crypt._committed(e.xmin) FROM nomp_crypt.erasure e
			WHERE e.case_id = _erase_committed.case_id) THEN
		RAISE EXCEPTION 'erasure case % has not committed its last step', case_id
			USING ERRCODE = 'object_not_in_prerequisite_state',
			HINT = 'CALL nomp_crypt.erase_tenant() goes through all steps.';
	END IF;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_committed(uuid) FROM PUBLIC;

-- End a school's requested case, that one or whichever it is: the school is as
-- it was before. Returns it, NULL if there is none.
CREATE FUNCTION nomp_crypt._erase_withdraw(school uuid, case_id uuid) RETURNS nomp_crypt.erasure
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	c nomp_crypt.erasure;
BEGIN
	UPDATE nomp_crypt.erasure e SET state = 'withdrawn'
	WHERE e.tenant = _erase_withdraw.school AND e.state = 'requested'
		AND e.case_id = coalesce(_erase_withdraw.case_id, e.case_id)
	RETURNING e.* INTO c;
	-- a school that was suspended before the request stays so
	UPDATE nomp_crypt.tenant t SET state = 'active'
	WHERE t.uuid = c.tenant AND t.state = 'suspended' AND t.suspended_at IS NULL;
	RETURN c;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_withdraw(uuid, uuid) FROM PUBLIC;

-- Take a request back during its grace period: the school is as it was before.
-- Raises 42704, 55000 after the fence.
CREATE FUNCTION nomp_crypt.withdraw_erasure(id text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	target uuid := nomp_crypt._tenant_uuid(withdraw_erasure.id);
	c nomp_crypt.erasure;
BEGIN
	PERFORM FROM nomp_crypt.tenant t WHERE t.uuid = target FOR UPDATE;
	c := nomp_crypt._erase_withdraw(target, NULL);
	IF c.case_id IS NULL THEN
		RAISE EXCEPTION 'tenant "%" has no erasure that could be withdrawn', withdraw_erasure.id
			USING ERRCODE = 'object_not_in_prerequisite_state',
			HINT = 'See nomp_crypt.erasure; from the fence on an erasure is final.';
	END IF;
	PERFORM nomp_crypt._audit_case('withdraw_erasure', c);
	PERFORM nomp_crypt._register_append('withdrawn', jsonb_build_object('school', c.tenant, 'case', c.case_id));
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.withdraw_erasure(text) FROM PUBLIC;

-- Every keystore that is configured and in use, with the schools' keys that are
-- seen there, in one look at each. Raises NC004 if one is in trouble.
CREATE FUNCTION nomp_crypt._erase_look_everywhere(installation uuid, tenants uuid[]) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	store record;
	seen record;
	found_in jsonb := '{}';
BEGIN
	FOR store IN SELECT * FROM nomp_crypt._keystores(_erase_look_everywhere.installation) LOOP
		IF store.state <> 'ok' AND store.canary IS NOT FALSE THEN
			RAISE EXCEPTION 'the keystore is unavailable: %', store.state
				USING ERRCODE = 'NC004', DETAIL = format('It is %s.', store.keystore),
				HINT = 'Nothing was destroyed; every keystore that is configured must be seen. See nomp_crypt.keystore_status().';
		END IF;
		CONTINUE WHEN store.state <> 'ok';	-- never used: it lacks the canary
		SELECT * INTO seen FROM nomp_crypt._keystore_see(_erase_look_everywhere.installation,
			_erase_look_everywhere.tenants, store.serial);
		found_in := found_in || jsonb_build_object(seen.serial, jsonb_build_object('seen', to_jsonb(seen.labels),
			'keys', seen.keys, 'at_once', store.destroys_at_once));
	END LOOP;
	IF found_in = '{}' THEN
		RAISE EXCEPTION 'the keystore is unavailable: no token is this installation''s'
			USING ERRCODE = 'NC004', HINT = 'Nothing was destroyed. See nomp_crypt.keystore_status().';
	END IF;
	RETURN found_in;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_look_everywhere(uuid, uuid[]) FROM PUBLIC;

-- Every keystore with one school's keys that were seen there, by serial: those
-- on record, and the others that are configured, where an interrupted call may
-- have left one. Raises NC004 if one is not configured, NC003 if a key is not
-- where it should be.
CREATE FUNCTION nomp_crypt._erase_see(installation uuid, tenant uuid, everywhere jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	prefix text := format('nomp_crypt:%s:%s:', _erase_see.installation, _erase_see.tenant);
	k record;
	stripped jsonb;
	found_in jsonb;
BEGIN
	SELECT jsonb_object_agg(s.key, s.value || jsonb_build_object(
		'seen', (SELECT coalesce(jsonb_agg(l ORDER BY n), '[]')
			FROM jsonb_array_elements_text(s.value -> 'seen') WITH ORDINALITY l(l, n) WHERE starts_with(l, prefix)),
		'keys', (SELECT coalesce(jsonb_agg(l ORDER BY n), '[]')
			FROM jsonb_array_elements(s.value -> 'keys') WITH ORDINALITY l(l, n) WHERE starts_with(l ->> 'label', prefix))))
	INTO found_in FROM jsonb_each(_erase_see.everywhere) s;
	FOR k IN SELECT e.label, nomp_crypt._keystore_serial(e.keystore) AS serial,
				-- seen there to be destroyed, by a call that may have gone on or not
				e.submitted_at IS NOT NULL AND e.keystore = nomp_crypt._keystore_name(e.keystore_serial) AS witnessed,
				e.reference
			 FROM nomp_crypt.kek e WHERE e.tenant = _erase_see.tenant AND e.state <> 'destroyed'
			 ORDER BY e.generation LOOP
		IF NOT found_in ? k.serial THEN
			RAISE EXCEPTION 'the keystore is unavailable: the one with serial number % is not configured', k.serial
				USING ERRCODE = 'NC004',
				HINT = format('It has the school''s key %s. Nothing was destroyed. Name it in nomp_crypt.other_keystores.', k.label);
		END IF;
		CONTINUE WHEN EXISTS (SELECT FROM jsonb_array_elements_text(found_in -> k.serial -> 'seen') l
							  WHERE l = k.label OR starts_with(l, k.label || ':provisional@'));
		-- one that was submitted by its name: there under another label, or gone
		stripped := NULL;
		IF k.reference IS NOT NULL THEN
			stripped := (SELECT jsonb_agg(s || jsonb_build_object('label', k.label, 'stripped', true)) FROM jsonb_array_elements(
				nomp_crypt._keystore_look(_erase_see.installation, ARRAY[k.reference], k.serial)) s);
			PERFORM nomp_crypt._refuse_stripped(stripped);
		END IF;
		IF stripped IS NOT NULL THEN
			found_in := jsonb_set(jsonb_set(found_in, ARRAY[k.serial, 'keys'], (found_in -> k.serial -> 'keys') || stripped),
				ARRAY[k.serial, 'seen'], (found_in -> k.serial -> 'seen') || to_jsonb(k.label));
		ELSIF NOT coalesce(k.witnessed, false) THEN
			RAISE EXCEPTION 'key % is not in the keystore, so its destruction cannot be witnessed', k.label
				USING ERRCODE = 'NC003',
				HINT = 'The school stays suspended. Find the keystore that holds the key, or its backup.';
		END IF;
	END LOOP;
	RETURN found_in;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_see(uuid, uuid, jsonb) FROM PUBLIC;

-- Fence a requested case that is due, its keys seen in that look; NULL: now.
-- The register is whole. Raises 55000, NC003, NC004.
CREATE FUNCTION nomp_crypt._erase_pass(c nomp_crypt.erasure, installation uuid, everywhere jsonb) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	seen jsonb;
	all_seen text[];
	waits text;
BEGIN
	PERFORM nomp_crypt._erase_committed(c.case_id);
	waits := nomp_crypt._erase_due(c.case_id);
	IF waits <> '' THEN
		RAISE EXCEPTION 'the erasure of tenant "%" %', nomp_crypt._erase_tenant_id(c.case_id), waits
			USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'See nomp_crypt.erasures.';
	END IF;
	seen := nomp_crypt._erase_see(_erase_pass.installation, c.tenant, coalesce(_erase_pass.everywhere,
		nomp_crypt._erase_look_everywhere(_erase_pass.installation, ARRAY[c.tenant])));
	all_seen := ARRAY(SELECT l FROM jsonb_each(seen) k, jsonb_array_elements_text(k.value -> 'seen') l
					  ORDER BY l);
	UPDATE nomp_crypt.erasure e SET state = 'fenced', fenced_at = clock_timestamp(),
		keystore_serial = (SELECT string_agg(k, ' ' ORDER BY k) FROM jsonb_object_keys(seen) k),
		keystores = seen, keys_seen = all_seen
	WHERE e.case_id = c.case_id;
	UPDATE nomp_crypt.tenant t SET state = 'fenced' WHERE t.uuid = c.tenant;
	PERFORM nomp_crypt._register_fence(c, seen);
	PERFORM nomp_crypt._audit_case('erase_fence', c, jsonb_build_object('keys', all_seen,
		'serial', (SELECT string_agg(k, ' ' ORDER BY k) FROM jsonb_object_keys(seen) k)));
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_pass(nomp_crypt.erasure, uuid, jsonb) FROM PUBLIC;

-- The point of no return: every key that the school ever had is seen in the
-- keystore, and the school is fenced. Repeated, it writes again, so that the
-- caller has a commit to wait for.
CREATE FUNCTION nomp_crypt._erase_fence(case_id uuid) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	c nomp_crypt.erasure := nomp_crypt._erase_case(_erase_fence.case_id);
	installation uuid := nomp_crypt._require_owner();
BEGIN
	IF c.state NOT IN ('requested', 'fenced') THEN
		RETURN;
	END IF;
	IF c.state = 'requested' THEN
		PERFORM nomp_crypt._register_require(true);
		PERFORM nomp_crypt._erase_pass(c, installation, NULL);
	END IF;
	UPDATE nomp_crypt.erasure e SET checked_at = clock_timestamp() WHERE e.case_id = c.case_id;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_fence(uuid) FROM PUBLIC;

-- After the fence: the keys are disabled in every keystore that does so, for
-- nodes and backups that have not got the news. How far that went is on
-- record; it is not required, since the keys will be destroyed.
CREATE FUNCTION nomp_crypt._erase_disable(case_id uuid) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	c nomp_crypt.erasure := nomp_crypt._erase_case(_erase_disable.case_id);
	installation uuid := nomp_crypt._require_owner();
	serial text;
	done record;
	told jsonb := '{}';
BEGIN
	IF c.state <> 'fenced' THEN
		RETURN;
	END IF;
	PERFORM nomp_crypt._erase_committed(c.case_id);
	FOR serial IN SELECT k FROM jsonb_object_keys(c.keystores) k ORDER BY k LOOP
		BEGIN
			SELECT * INTO done FROM nomp_crypt._keystore_enable(installation, c.tenant, false, serial);
			told := told || jsonb_build_object(serial, jsonb_build_object('disabled', done.obeyed));
		EXCEPTION WHEN SQLSTATE 'NC004' THEN
			told := told || jsonb_build_object(serial, jsonb_build_object('disabled', 0, 'trouble', SQLERRM));
		END;
	END LOOP;
	UPDATE nomp_crypt.erasure e SET keystores =
		(SELECT jsonb_object_agg(k.key, k.value || (told -> k.key)) FROM jsonb_each(e.keystores) k)
	WHERE e.case_id = c.case_id;
	PERFORM nomp_crypt._audit_case('erase_disable', c, jsonb_build_object('serial', c.keystore_serial,
		'disabled', (SELECT sum((k.value ->> 'disabled')::int) FROM jsonb_each(told) k)));
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_disable(uuid) FROM PUBLIC;

CREATE FUNCTION nomp_crypt._erase_submit(case_id uuid) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	c nomp_crypt.erasure := nomp_crypt._erase_case(_erase_submit.case_id);
BEGIN
	PERFORM nomp_crypt._require_owner();
	IF c.state = 'fenced' THEN
		PERFORM nomp_crypt._erase_committed(c.case_id);
		-- the fence lies before this point of the WAL
		UPDATE nomp_crypt.erasure e SET state = 'submitted', submitted_at = clock_timestamp(),
			submitted_lsn = pg_current_wal_insert_lsn()
		WHERE e.case_id = c.case_id;
		PERFORM nomp_crypt._audit_case('erase_submit', c);
	END IF;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_submit(uuid) FROM PUBLIC;

-- The keys of a case are gone from one of its keystores.
CREATE FUNCTION nomp_crypt._erase_gone(c nomp_crypt.erasure, serial text, gone text[]) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
	UPDATE nomp_crypt.erasure e SET keys_destroyed = coalesce(e.keys_destroyed, '{}') || gone,
		keystores = jsonb_set(e.keystores, ARRAY[_erase_gone.serial], e.keystores -> _erase_gone.serial ||
			jsonb_build_object('destroyed', to_jsonb(gone), 'at', clock_timestamp()))
	WHERE e.case_id = (_erase_gone.c).case_id;
	UPDATE nomp_crypt.kek k SET state = 'destroyed', destroyed_at = clock_timestamp()
	WHERE k.tenant = (_erase_gone.c).tenant AND k.state <> 'destroyed'
		AND k.keystore = nomp_crypt._keystore_name(_erase_gone.serial);
	PERFORM nomp_crypt._audit_case('erase_destroy', c, jsonb_build_object('serial', serial, 'keys', gone));
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_gone(nomp_crypt.erasure, text, text[]) FROM PUBLIC;

-- The keys of a case that were witnessed in a keystore, by its own names for
-- them, with their labels: at the fence, by the table and by the register, and
-- each time that they were pending. None in a keystore without such names.
CREATE FUNCTION nomp_crypt._erase_witnessed(c nomp_crypt.erasure, serial text,
	OUT reference text, OUT label text) RETURNS SETOF record
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT k ->> 'reference', min(k ->> 'label')
	FROM (SELECT ($1).keystores -> $2
		  UNION ALL
		  SELECT r.data -> 'keystores' -> $2 FROM nomp_crypt._register_of(($1).tenant) r
		  WHERE r.type = 'fenced' AND r.data ->> 'case' = ($1).case_id::text) s(store),
		jsonb_path_query(s.store, '$.** ? (exists (@.reference))') k
	GROUP BY 1
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_witnessed(nomp_crypt.erasure, text) FROM PUBLIC;

-- The keys of a case that a keystore has now: those with the school's label,
-- and those that were witnessed there, whatever label they have by now
-- ("stripped"; "label" is the one that they had).
CREATE FUNCTION nomp_crypt._erase_present(c nomp_crypt.erasure, installation uuid, serial text) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	seen record;
	others jsonb;
BEGIN
	SELECT * INTO seen FROM nomp_crypt._keystore_see(installation, c.tenant, serial);
	SELECT jsonb_object_agg(w.reference, w.label) INTO others FROM nomp_crypt._erase_witnessed(c, serial) w
	WHERE NOT EXISTS (SELECT FROM jsonb_array_elements(seen.keys) k WHERE k ->> 'reference' = w.reference);
	IF others IS NULL THEN
		RETURN seen.keys;
	END IF;
	RETURN seen.keys || (
		SELECT coalesce(jsonb_agg(k || jsonb_build_object('label', others -> (k ->> 'reference'), 'stripped', true)), '[]')
		FROM jsonb_array_elements(nomp_crypt._keystore_look(installation, ARRAY(SELECT jsonb_object_keys(others)), serial)) k);
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_present(nomp_crypt.erasure, uuid, text) FROM PUBLIC;

-- Raises NC004 for a key that is not pending and has lost its label, so that
-- its keystore cannot be asked to destroy it as this school's.
CREATE FUNCTION nomp_crypt._refuse_stripped(keys jsonb) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	k jsonb;
BEGIN
	FOR k IN SELECT s FROM jsonb_array_elements(keys) s WHERE (s ->> 'stripped')::boolean AND s ->> 'state' <> 'pending' LOOP
		RAISE EXCEPTION 'the keystore is unavailable: it has key % (%), whose tags were changed, and is not asked to destroy it',
			k ->> 'label', k ->> 'reference' USING ERRCODE = 'NC004',
			HINT = format('Find out who changed them. Set its tag nomp_crypt:label to "%s" again, or schedule its deletion by hand, and repeat the call.',
				k ->> 'label');
	END LOOP;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._refuse_stripped(jsonb) FROM PUBLIC;

-- Ask a keystore to destroy the keys of a case, and put on record for which it
-- was asked: others were pending by somebody else's request, or by that of a
-- call that was lost.
CREATE FUNCTION nomp_crypt._erase_ask(c nomp_crypt.erasure, installation uuid, serial text,
	OUT labels text[], OUT pending int)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
	SELECT a.labels, a.pending INTO _erase_ask.labels, _erase_ask.pending
	FROM nomp_crypt._keystore_destroy(_erase_ask.installation, (_erase_ask.c).tenant, _erase_ask.serial) a;
	UPDATE nomp_crypt.erasure e SET keystores = jsonb_set(e.keystores, ARRAY[_erase_ask.serial, 'asked'],
		coalesce(e.keystores -> _erase_ask.serial -> 'asked', '[]') || to_jsonb(_erase_ask.labels))
	WHERE e.case_id = (_erase_ask.c).case_id AND _erase_ask.labels <> '{}';
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_ask(nomp_crypt.erasure, uuid, text) FROM PUBLIC;

-- Are these two different dates of a key's end? Both are what the keystore said
-- of the key when it was looked at, in whole seconds.
CREATE FUNCTION nomp_crypt._other_date(witnessed timestamptz, seen timestamptz) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	rounding CONSTANT interval := '5 seconds';
BEGIN
	RETURN coalesce(seen NOT BETWEEN witnessed - rounding AND witnessed + rounding, false);
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._other_date(timestamptz, timestamptz) FROM PUBLIC;

-- The keys that were witnessed pending in a keystore, and whose destruction was
-- cancelled since: they are not pending, or they are until another date, which
-- is set by nothing but another request after a cancellation. "was" is the date
-- that was witnessed.
CREATE FUNCTION nomp_crypt._erase_saved(witnessed jsonb, present jsonb) RETURNS jsonb
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT coalesce(jsonb_agg(DISTINCT jsonb_strip_nulls(jsonb_build_object('label', w ->> 'label',
		'reference', w ->> 'reference', 'was', w ->> 'until', 'state', p ->> 'state', 'until', p ->> 'until'))), '[]')
	FROM jsonb_array_elements($1) w, jsonb_array_elements($2) p
	WHERE CASE WHEN p ->> 'state' = 'pending' THEN p ->> 'reference' = w ->> 'reference'
			AND nomp_crypt._other_date((w ->> 'until')::timestamptz, (p ->> 'until')::timestamptz)
		ELSE w ->> 'label' = p ->> 'label' OR w ->> 'reference' = p ->> 'reference' END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_saved(jsonb, jsonb) FROM PUBLIC;

-- A keystore that destroys later was asked to do so: see that every key that is
-- there is pending, and witness it. What was witnessed before stays as it was,
-- with its date: if that is another one by now, the next look says so. A key
-- that was pending before it was asked for has the date that it has now.
CREATE FUNCTION nomp_crypt._erase_schedule(c nomp_crypt.erasure, installation uuid, serial text,
	destroyed text[]) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	present jsonb := nomp_crypt._erase_present(c, installation, serial);
	last timestamptz := (SELECT max((k ->> 'until')::timestamptz) FROM jsonb_array_elements(present) k);
	witnessed jsonb := coalesce(c.keystores -> serial -> 'pending', '[]');
BEGIN
	PERFORM nomp_crypt._refuse_stripped(present);
	IF present = '[]' OR EXISTS (SELECT FROM jsonb_array_elements(present) k WHERE k ->> 'state' <> 'pending') THEN
		RAISE EXCEPTION 'the keystore is unavailable: it does not show yet that all keys will be destroyed'
			USING ERRCODE = 'NC004', HINT = 'Repeat the call.';
	END IF;
	UPDATE nomp_crypt.erasure e SET
		keystores = jsonb_set(e.keystores, ARRAY[_erase_schedule.serial], e.keystores -> _erase_schedule.serial ||
			jsonb_build_object('until', last,
				'pending', witnessed || (SELECT coalesce(jsonb_agg(k), '[]') FROM jsonb_array_elements(present) k
					WHERE NOT EXISTS (SELECT FROM jsonb_array_elements(witnessed) w WHERE w ->> 'reference' = k ->> 'reference')),
				'scheduled_at', coalesce(e.keystores -> _erase_schedule.serial -> 'scheduled_at', to_jsonb(clock_timestamp()))))
	WHERE e.case_id = (_erase_schedule.c).case_id;
	PERFORM nomp_crypt._audit_case('erase_schedule', c, jsonb_build_object('serial', serial, 'keys', destroyed,
		'pending', jsonb_path_query_array(present, '$[*].label'), 'until', last));
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_schedule(nomp_crypt.erasure, uuid, text, text[]) FROM PUBLIC;

-- Look again at a keystore in which keys were pending. Those whose destruction
-- somebody cancelled there are put on record as saved; returns their labels.
-- Those that were never pending are a key that turned up late: the keystore is
-- asked for them too. None is believed to be gone before the keystore's own date.
CREATE FUNCTION nomp_crypt._erase_look(c nomp_crypt.erasure, installation uuid, serial text) RETURNS text[]
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
	witnessed jsonb := c.keystores -> serial -> 'pending';
	labels text[] := ARRAY(SELECT k ->> 'label' FROM jsonb_array_elements(witnessed) k ORDER BY 1);
	present jsonb := nomp_crypt._erase_present(c, installation, serial);
	saved jsonb := nomp_crypt._erase_saved(witnessed, present);
	asked record;
BEGIN
	IF saved <> '[]' THEN
		UPDATE nomp_crypt.erasure e SET keystores = jsonb_set(e.keystores, ARRAY[serial, 'saved'], saved)
		WHERE e.case_id = c.case_id;
		RETURN ARRAY(SELECT DISTINCT k ->> 'label' FROM jsonb_array_elements(saved) k ORDER BY 1);
	END IF;
	IF present = '[]' THEN
		IF clock_timestamp() >= (c.keystores -> serial ->> 'until')::timestamptz THEN
			PERFORM nomp_crypt._erase_gone(c, serial, labels);
		END IF;
	ELSIF EXISTS (SELECT FROM jsonb_array_elements(present) k WHERE k ->> 'label' <> ALL (labels)) THEN
		SELECT * INTO asked FROM nomp_crypt._erase_ask(c, installation, serial);
		PERFORM nomp_crypt._erase_schedule(c, installation, serial, asked.labels);
	END IF;
	RETURN '{}';
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_look(nomp_crypt.erasure, uuid, text) FROM PUBLIC;

-- Somebody cancelled the destruction in the keystore: say so, and do nothing
-- more until it is decided.
CREATE FUNCTION nomp_crypt._erase_void(c nomp_crypt.erasure, saved text[]) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	again jsonb := (SELECT jsonb_agg(k ORDER BY k ->> 'label')
		FROM nomp_crypt.erasure e, jsonb_each(e.keystores) s, jsonb_array_elements(s.value -> 'saved') k
		WHERE e.case_id = (_erase_void.c).case_id AND k ->> 'state' = 'pending');
BEGIN
	IF (_erase_void.c).voided_at IS NULL THEN
		UPDATE nomp_crypt.erasure e SET voided_at = clock_timestamp(), voided_keys = saved
		WHERE e.case_id = (_erase_void.c).case_id;
		PERFORM nomp_crypt._audit_case('erase_voided', c, jsonb_strip_nulls(jsonb_build_object('keys', saved,
			'pending_again', again)));
	END IF;
	RAISE WARNING 'the destruction of key % of an erased tenant was cancelled in the keystore', array_to_string(saved, ', ')
		USING DETAIL = concat_ws(' ', format('Erasure case %s. The tenant stays unreadable; nothing else happens by itself.', (c).case_id),
			(SELECT string_agg(format('Key %s is pending again, by somebody else''s request: until %s, not %s. In between it could be used.',
				k ->> 'label', (k ->> 'until')::timestamptz, (k ->> 'was')::timestamptz), ' ') FROM jsonb_array_elements(again) k)),
		HINT = 'Find out who cancelled it, and why. CALL nomp_crypt.resubmit_erasure() asks the keystore again.';
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_void(nomp_crypt.erasure, text[]) FROM PUBLIC;

-- Where a submitted or pending case stands when all keystores were asked: at
-- its end, with a tombstone, or pending until the last key is gone.
CREATE FUNCTION nomp_crypt._erase_settle(case_id uuid) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	c nomp_crypt.erasure := nomp_crypt._erase_case(_erase_settle.case_id);
	last timestamptz;
BEGIN
	IF EXISTS (SELECT FROM jsonb_each(c.keystores) k WHERE NOT k.value ? 'destroyed') THEN
		SELECT max((k.value ->> 'until')::timestamptz) INTO last
		FROM jsonb_each(c.keystores) k WHERE NOT k.value ? 'destroyed';
		UPDATE nomp_crypt.erasure e SET state = 'pending', pending_until = last WHERE e.case_id = c.case_id;
		IF last > clock_timestamp() THEN
			RAISE NOTICE 'the keystore will destroy the last key of the tenant at %', last
				USING HINT = 'The tenant is not readable any more. Call erase_tenant again then: only what is seen to be gone is erased.';
		ELSE
			RAISE NOTICE 'the keystore should have destroyed the last key of the tenant at %, and has not yet', last
				USING HINT = 'Call erase_tenant again later.';
		END IF;
		RETURN;
	END IF;
	UPDATE nomp_crypt.erasure e SET state = 'destroyed', destroyed_at = clock_timestamp(), pending_until = NULL
	WHERE e.case_id = c.case_id;
	UPDATE nomp_crypt.tenant_key k SET state = 'erased', wrapped = NULL WHERE k.tenant = c.tenant;
	UPDATE nomp_crypt.tenant t SET state = 'erased' WHERE t.uuid = c.tenant;
	PERFORM nomp_crypt._register_destroyed(c.case_id);
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_settle(uuid) FROM PUBLIC;

-- When the last key of a try that was cancelled was to be gone, by what was seen
-- when that was noticed; NULL if one of them was not pending then.
CREATE FUNCTION nomp_crypt._erase_foreseen(cancelled jsonb) RETURNS timestamptz
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT CASE WHEN bool_and(k ->> 'state' = 'pending') THEN
		greatest(max((k ->> 'until')::timestamptz), ($1 ->> 'until')::timestamptz) END
	FROM jsonb_array_elements($1 -> 'saved') k
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_foreseen(jsonb) FROM PUBLIC;

-- Destroy every key of the school in one of the keystores where they were
-- seen, and see that none is left there, or that it will be gone; after the
-- last one leave a tombstone. Returns how many keystores are left: each is a
-- transaction of its own, so that what was witnessed in one stays on record
-- whatever happens in another. Of a pending case, look again at all of them.
CREATE FUNCTION nomp_crypt._erase_destroy(case_id uuid) RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	c nomp_crypt.erasure := nomp_crypt._erase_case(_erase_destroy.case_id);
	installation uuid := nomp_crypt._require_owner();
	next_serial text;
	asked record;
	saved text[] := '{}';
	remaining int;
	later boolean;
	earliest timestamptz;
BEGIN
	IF c.state IN ('destroyed', 'certified') THEN
		RETURN 0;
	END IF;
	IF c.state NOT IN ('submitted', 'pending') THEN
		RAISE EXCEPTION 'erasure case % is not submitted', c.case_id
			USING ERRCODE = 'object_not_in_prerequisite_state',
			HINT = 'CALL nomp_crypt.erase_tenant() goes through all steps.';
	END IF;
	PERFORM nomp_crypt._erase_committed(c.case_id);
	PERFORM nomp_crypt._require_synced(c.submitted_lsn);
	PERFORM nomp_crypt._register_require();
	IF c.voided_at IS NOT NULL THEN
		PERFORM nomp_crypt._erase_void(c, c.voided_keys);
		RETURN 0;
	END IF;
	IF c.state = 'pending' THEN
		FOR next_serial IN SELECT k.key FROM jsonb_each(c.keystores) k WHERE NOT k.value ? 'destroyed' ORDER BY 1 LOOP
			saved := saved || nomp_crypt._erase_look(c, installation, next_serial);
		END LOOP;
		IF saved <> '{}' THEN
			PERFORM nomp_crypt._erase_void(c, saved);
		ELSE
			PERFORM nomp_crypt._erase_settle(c.case_id);
		END IF;
		RETURN 0;
	END IF;
	SELECT min(k.key), count(*) - 1 INTO next_serial, remaining
	FROM jsonb_each(c.keystores) k WHERE NOT k.value ? 'destroyed' AND NOT k.value ? 'pending';
	later := NOT coalesce((c.keystores -> next_serial ->> 'at_once')::boolean, true);
	SELECT * INTO asked FROM nomp_crypt._erase_ask(c, installation, next_serial);
	earliest := coalesce(nomp_crypt._erase_foreseen(c.keystores #> ARRAY[next_serial, 'cancelled', '-1']),
		c.submitted_at + interval '7 days');
	IF asked.pending > 0 OR (later AND nomp_crypt._erase_present(c, installation, next_serial) <> '[]') THEN
		PERFORM nomp_crypt._erase_schedule(c, installation, next_serial, asked.labels);
	-- no keystore of this kind destroys earlier
	ELSIF later AND asked.labels = '{}' AND c.keystores -> next_serial -> 'seen' <> '[]'
		AND clock_timestamp() < earliest THEN
		RAISE EXCEPTION 'the keys of the tenant are not in the keystore, so their destruction cannot be witnessed'
			USING ERRCODE = 'NC003', DETAIL = format('Keystore %s, erasure case %s.', next_serial, c.case_id),
			HINT = 'They were there when the tenant was fenced, and no destruction was pending. Find out where they are.';
	ELSE
		-- with what was seen there and is gone by a call that could not say so
		PERFORM nomp_crypt._erase_gone(c, next_serial, asked.labels || ARRAY(
			SELECT l FROM jsonb_array_elements_text(c.keystores -> next_serial -> 'seen') l
			WHERE regexp_replace(l, ':provisional@.*$', '') NOT IN (
				SELECT regexp_replace(a, ':provisional@.*$', '') FROM unnest(asked.labels) a) ORDER BY l));
	END IF;
	IF remaining = 0 THEN
		PERFORM nomp_crypt._erase_settle(c.case_id);
	END IF;
	RETURN remaining;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_destroy(uuid) FROM PUBLIC;

-- A case whose destruction was cancelled in the keystore is submitted again;
-- the cancelled try stays on record. Returns the case. Raises 42704, 55000.
CREATE FUNCTION nomp_crypt._erase_resubmit(id text) RETURNS uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	c nomp_crypt.erasure;
BEGIN
	PERFORM nomp_crypt._require_owner();
	SELECT e.* INTO c FROM nomp_crypt.erasure e JOIN nomp_crypt.tenant t ON t.uuid = e.tenant
	WHERE t.id = _erase_resubmit.id AND e.state IN ('submitted', 'pending') ORDER BY e.requested_at DESC LIMIT 1;
	IF c.case_id IS NULL THEN
		RAISE EXCEPTION 'tenant "%" has no erasure whose keys are about to be destroyed', _erase_resubmit.id
			USING ERRCODE = 'undefined_object', HINT = 'See nomp_crypt.erasure.';
	END IF;
	c := nomp_crypt._erase_case(c.case_id);
	-- resubmitted already, and interrupted: it only goes on
	IF c.state = 'submitted' AND EXISTS (SELECT FROM jsonb_each(c.keystores) k WHERE k.value ? 'cancelled') THEN
		RETURN c.case_id;
	END IF;
	IF c.voided_at IS NULL THEN
		RAISE EXCEPTION 'the destruction of the keys of tenant "%" was not cancelled', _erase_resubmit.id
			USING ERRCODE = 'object_not_in_prerequisite_state',
			HINT = 'CALL nomp_crypt.erase_tenant() looks at the keystore again.';
	END IF;
	UPDATE nomp_crypt.erasure e SET state = 'submitted', submitted_at = clock_timestamp(),
		submitted_lsn = pg_current_wal_insert_lsn(), voided_at = NULL, voided_keys = NULL, pending_until = NULL,
		-- a keystore in which none was cancelled was asked, and is waited for
		keystores = (SELECT jsonb_object_agg(k.key, CASE WHEN NOT k.value ? 'saved' THEN k.value ELSE
			(k.value - '{pending,until,scheduled_at,asked,saved}'::text[]) || jsonb_build_object('cancelled',
				coalesce(k.value -> 'cancelled', '[]') || jsonb_strip_nulls(jsonb_build_object('pending', k.value -> 'pending',
					'until', k.value -> 'until', 'scheduled_at', k.value -> 'scheduled_at', 'asked', k.value -> 'asked',
					'noticed_at', c.voided_at, 'saved', k.value -> 'saved'))) END)
			FROM jsonb_each(e.keystores) k)
	WHERE e.case_id = c.case_id;
	PERFORM nomp_crypt._audit_case('erase_resubmit', c, jsonb_build_object('keys', c.voided_keys));
	RETURN c.case_id;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_resubmit(text) FROM PUBLIC;

-- Ask the keystore once more to destroy the keys of an erased school, after
-- somebody cancelled it there: see erase.c.
CREATE PROCEDURE nomp_crypt.resubmit_erasure(id text)
LANGUAGE c AS 'MODULE_PATHNAME', 'nc_resubmit_erasure';
REVOKE ALL ON PROCEDURE nomp_crypt.resubmit_erasure(text) FROM PUBLIC;

-- Erase a school: see erase.c. With a grace period the first call requests,
-- and the same call after it executes. Harmless when repeated.
CREATE PROCEDURE nomp_crypt.erase_tenant(id text, reason text, reference text DEFAULT NULL)
LANGUAGE c AS 'MODULE_PATHNAME', 'nc_erase_tenant';
REVOKE ALL ON PROCEDURE nomp_crypt.erase_tenant(text, text, text) FROM PUBLIC;

-- ---------------------------------------------------------------------------
-- After a restore
-- ---------------------------------------------------------------------------

-- What the register says and this database does not: a backup was restored.
-- Reads the table alone; whether the file has more is _register_look's.
CREATE FUNCTION nomp_crypt._reconcile_due(OUT school uuid, OUT action text, OUT record jsonb) RETURNS SETOF record
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	WITH r AS (
		SELECT g.number, g.type, g.school, nomp_crypt._record_claims(g.jws) || jsonb_build_object('number', g.number) AS record
		FROM nomp_crypt.register g WHERE g.school IS NOT NULL)
	SELECT r.school, 'erase', r.record FROM r JOIN nomp_crypt.tenant t ON t.uuid = r.school
	WHERE r.type = 'destroyed' AND t.state <> 'erased'
	UNION ALL
	SELECT DISTINCT ON (r.school) r.school, 'fence', r.record FROM r JOIN nomp_crypt.tenant t ON t.uuid = r.school
	WHERE r.type = 'fenced' AND t.state IN ('active', 'suspended')
		AND NOT EXISTS (SELECT FROM r d WHERE d.school = r.school AND d.type = 'destroyed')
	UNION ALL
	SELECT r.school, 'note key', r.record FROM r JOIN nomp_crypt.tenant t ON t.uuid = r.school
	WHERE r.type IN ('born', 'moved') AND t.state <> 'erased'
		AND NOT EXISTS (SELECT FROM nomp_crypt.kek k WHERE k.label = r.record -> 'data' ->> 'key')
		AND NOT EXISTS (SELECT FROM r d WHERE d.school = r.school AND (d.type = 'destroyed'
			OR (d.type IN ('expired', 'removed') AND d.record -> 'data' ->> 'key' = r.record -> 'data' ->> 'key')))
	UNION ALL
	SELECT r.school, 'end key', r.record FROM r
	JOIN nomp_crypt.kek k ON k.label = r.record -> 'data' ->> 'key' AND k.tenant = r.school
	WHERE r.type = 'expired' AND k.state <> 'destroyed'
	UNION ALL
	-- the last word on each hold counts
	SELECT h.school, h.type, h.record
	FROM (SELECT DISTINCT ON (r.school, r.record -> 'data' ->> 'reference') r.* FROM r
		  WHERE r.type IN ('hold', 'released')
		  ORDER BY r.school, r.record -> 'data' ->> 'reference', r.number DESC) h
	JOIN nomp_crypt.tenant t ON t.uuid = h.school
	WHERE (h.type = 'released' OR t.state IN ('active', 'suspended'))
		AND (h.type = 'hold') <> EXISTS (SELECT FROM nomp_crypt.legal_hold l WHERE l.tenant = h.school
			AND l.reference = h.record -> 'data' ->> 'reference' AND l.released_at IS NULL)
	UNION ALL
	SELECT r.school, 'withdrawn', r.record FROM r
	JOIN nomp_crypt.erasure e ON e.tenant = r.school AND e.case_id::text = r.record -> 'data' ->> 'case'
	WHERE r.type = 'withdrawn' AND e.state = 'requested'
	UNION ALL
	SELECT r.school, 'missing', r.record FROM r
	WHERE r.type = 'born' AND NOT EXISTS (SELECT FROM nomp_crypt.tenant t WHERE t.uuid = r.school)
		AND NOT EXISTS (SELECT FROM r d WHERE d.school = r.school AND (d.type = 'destroyed'
			OR (d.type = 'removed' AND d.record -> 'data' ->> 'key' = r.record -> 'data' ->> 'key')))
$$;
REVOKE ALL ON FUNCTION nomp_crypt._reconcile_due() FROM PUBLIC;

-- After a restore: make this database say what the register says, record by
-- record, each verified. What was erased since the backup is erased, what was
-- fenced is fenced, what was withdrawn is withdrawn, holds are what they were,
-- keys that were made since are known. Approvals must be given again, and so
-- must word of the data's return. A row for each thing done, and for each school
-- that was made since and is not here. Harmless when repeated. Raises 55000 if
-- the register is in trouble or comes by a subscription, NC004.
CREATE FUNCTION nomp_crypt.reconcile(OUT tenant text, OUT school uuid, OUT action text, OUT since timestamptz,
	OUT detail text) RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	now record;
	due record;
	rec record;
	k record;
BEGIN
	IF pg_is_in_recovery() THEN
		RAISE EXCEPTION 'a standby follows its primary' USING ERRCODE = 'read_only_sql_transaction',
			HINT = 'Reconcile there.';
	END IF;
	IF EXISTS (SELECT FROM pg_subscription_rel s WHERE s.srrelid = 'nomp_crypt.register'::regclass) THEN
		-- what it would write comes from there too, and would stop the subscription
		RAISE EXCEPTION 'a subscriber follows its publisher' USING ERRCODE = 'object_not_in_prerequisite_state',
			HINT = 'Reconcile there. If this database is to go on without it: DROP SUBSCRIPTION first.';
	END IF;
	PERFORM nomp_crypt._lock_register();
	PERFORM nomp_crypt._register_require(true);
	SELECT * INTO now FROM nomp_crypt._register_look(false);
	PERFORM nomp_crypt._register_catch_up(now.in_table);
	FOR due IN SELECT * FROM nomp_crypt._reconcile_due() ORDER BY (record ->> 'number')::bigint LOOP
		SELECT * INTO rec FROM nomp_crypt._record((SELECT r.jws FROM nomp_crypt.register r
			WHERE r.number = (due.record ->> 'number')::bigint));
		PERFORM FROM nomp_crypt.tenant t WHERE t.uuid = due.school FOR UPDATE;
		tenant := (SELECT t.id FROM nomp_crypt.tenant t WHERE t.uuid = due.school);
		school := due.school;
		since := rec.at;
		detail := 'record ' || rec.number;
		CASE due.action
		WHEN 'erase' THEN
			action := 'erased';
			PERFORM nomp_crypt._reconcile_case(rec.school, rec.data, 'destroyed');
			UPDATE nomp_crypt.kek k SET state = 'destroyed', destroyed_at = rec.at
			WHERE k.tenant = rec.school AND k.state <> 'destroyed';
			UPDATE nomp_crypt.tenant_key k SET state = 'erased', wrapped = NULL WHERE k.tenant = rec.school;
			UPDATE nomp_crypt.tenant t SET state = 'erased' WHERE t.uuid = rec.school;
		WHEN 'fence' THEN
			action := 'fenced';
			PERFORM nomp_crypt._reconcile_case(rec.school, rec.data, 'fenced');
			UPDATE nomp_crypt.tenant t SET state = 'fenced' WHERE t.uuid = rec.school;
			detail := detail || '; CALL nomp_crypt.erase_tenant again to go on';
		WHEN 'note key' THEN
			-- not in use here; backups from after this one's time may need it
			action := 'key noted';
			INSERT INTO nomp_crypt.kek (uuid, tenant, generation, keystore, label, state, retired_at, destroy_after)
			VALUES (gen_random_uuid(), rec.school, (rec.data ->> 'generation')::int,
				nomp_crypt._keystore_name(rec.data ->> 'serial'), rec.data ->> 'key', 'retired', clock_timestamp(),
				clock_timestamp() + nomp_crypt._backup_retention());
			detail := format('%s: generation %s', detail, rec.data ->> 'generation');
		WHEN 'end key' THEN
			action := 'key ended';
			SELECT e.uuid, EXISTS (SELECT FROM nomp_crypt.tenant_key u WHERE u.kek = e.uuid) AS needed INTO k
			FROM nomp_crypt.kek e WHERE e.label = rec.data ->> 'key';
			UPDATE nomp_crypt.kek e SET state = 'destroyed', destroyed_at = rec.at WHERE e.uuid = k.uuid;
			detail := format('%s: generation %s%s', detail, rec.data ->> 'generation',
				CASE WHEN k.needed THEN '; this backup is older than nomp_crypt.backup_retention, its values do not open' END);
		WHEN 'hold' THEN
			action := 'held';
			INSERT INTO nomp_crypt.legal_hold (tenant, reference, placed_at)
			VALUES (rec.school, rec.data ->> 'reference', rec.at) ON CONFLICT DO NOTHING;
			detail := format('%s: legal hold %s', detail, rec.data ->> 'reference');
		WHEN 'released' THEN
			action := 'released';
			UPDATE nomp_crypt.legal_hold l SET released_at = rec.at
			WHERE l.tenant = rec.school AND l.reference = rec.data ->> 'reference' AND l.released_at IS NULL;
			detail := format('%s: legal hold %s', detail, rec.data ->> 'reference');
		WHEN 'withdrawn' THEN
			action := 'withdrawn';
			PERFORM nomp_crypt._erase_withdraw(rec.school, (rec.data ->> 'case')::uuid);
		WHEN 'missing' THEN
			action := 'missing';
			detail := detail || '; made since this backup, or its making failed';
		END CASE;
		IF due.action IN ('erase', 'fence') THEN
			PERFORM nomp_crypt._wipe(rec.school);
		END IF;
		IF due.action <> 'missing' THEN
			PERFORM nomp_crypt._audit('reconcile', tenant, jsonb_build_object('uuid', rec.school, 'action', action,
				'record', rec.number));
		END IF;
		RETURN NEXT;
	END LOOP;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.reconcile() FROM PUBLIC;

-- The case as its record has it.
CREATE FUNCTION nomp_crypt._reconcile_case(school uuid, data jsonb, state text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	labels text[] := ARRAY(SELECT l FROM jsonb_each(data -> 'keystores') s,
		jsonb_array_elements_text(s.value -> 'seen') l ORDER BY l);
BEGIN
	-- a request that the backup has open is another case, or this one
	UPDATE nomp_crypt.erasure e SET state = 'withdrawn'
	WHERE e.tenant = _reconcile_case.school AND e.case_id <> (data ->> 'case')::uuid AND e.state = 'requested';
	INSERT INTO nomp_crypt.erasure (case_id, tenant, reason, reference, requested_by, state, requested_at, fenced_at,
		submitted_at, destroyed_at, keystores, keys_seen, keystore_serial)
	VALUES ((data ->> 'case')::uuid, _reconcile_case.school, data ->> 'reason', data ->> 'reference',
		nomp_crypt._acting_role(), _reconcile_case.state, (data ->> 'requested_at')::timestamptz,
		coalesce((data ->> 'fenced_at')::timestamptz, clock_timestamp()), (data ->> 'submitted_at')::timestamptz,
		(data ->> 'destroyed_at')::timestamptz, data -> 'keystores', labels,
		(SELECT string_agg(k, ' ' ORDER BY k) FROM jsonb_object_keys(data -> 'keystores') k))
	ON CONFLICT (case_id) DO UPDATE SET state = excluded.state, fenced_at = excluded.fenced_at,
		submitted_at = excluded.submitted_at, destroyed_at = excluded.destroyed_at, keystores = excluded.keystores,
		keys_seen = excluded.keys_seen, keystore_serial = excluded.keystore_serial;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._reconcile_case(uuid, jsonb, text) FROM PUBLIC;

-- ---------------------------------------------------------------------------
-- Erasure: what a case waits for. Approvals by other roles, legal holds, the
-- data's return, the grace period, and a limit for a day.
-- ---------------------------------------------------------------------------

ALTER TABLE nomp_crypt.erasure
	ADD COLUMN group_id uuid,			-- of the cases of one agreement
	ADD COLUMN requesters text[],		-- everybody that the requester was
	ADD COLUMN approvals_needed int NOT NULL DEFAULT 0;

CREATE TABLE nomp_crypt.erasure_approval (
	case_id		uuid NOT NULL,
	role		name NOT NULL,
	actors		text[] NOT NULL,		-- everybody that it was: the role, the session's, the one logged in
	approved_at	timestamptz NOT NULL DEFAULT clock_timestamp(),
	PRIMARY KEY (case_id, role)
);
COMMENT ON TABLE nomp_crypt.erasure_approval IS 'who has approved which erasure';

CREATE TABLE nomp_crypt.legal_hold (
	uuid		uuid PRIMARY KEY DEFAULT gen_random_uuid(),
	tenant		uuid NOT NULL,
	reference	text NOT NULL CHECK (reference ~ '^[A-Za-z0-9._/-]{1,64}$'),
	placed_by	name,			-- NULL: reconcile() has it from the register, which does not say who
	placed_at	timestamptz NOT NULL DEFAULT clock_timestamp(),
	released_by	name,
	released_at	timestamptz
);
CREATE UNIQUE INDEX legal_hold_in_force ON nomp_crypt.legal_hold (tenant, reference) WHERE released_at IS NULL;
COMMENT ON TABLE nomp_crypt.legal_hold IS 'schools that must not be erased, since when, and until when';

CREATE TABLE nomp_crypt.data_return (
	uuid			uuid PRIMARY KEY DEFAULT gen_random_uuid(),
	tenant			uuid NOT NULL,
	manifest_sha256	text CHECK (manifest_sha256 ~ '^[0-9a-f]{64}$'),	-- NULL: the controller wants none
	recorded_by		name NOT NULL,
	recorded_at		timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX data_return_tenant_idx ON nomp_crypt.data_return (tenant);
COMMENT ON TABLE nomp_crypt.data_return IS 'data given back to the controller before an erasure, or word that it is not wanted';

SELECT pg_catalog.pg_extension_config_dump('nomp_crypt.erasure_approval', '');
SELECT pg_catalog.pg_extension_config_dump('nomp_crypt.legal_hold', '');
SELECT pg_catalog.pg_extension_config_dump('nomp_crypt.data_return', '');

CREATE FUNCTION nomp_crypt._actors() RETURNS text[]
LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'nc_actors';
REVOKE ALL ON FUNCTION nomp_crypt._actors() FROM PUBLIC;

-- What a requested case waits for: a row for each thing, in words.
CREATE FUNCTION nomp_crypt._erase_missing(c nomp_crypt.erasure, OUT kind text, OUT missing text) RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	h nomp_crypt.legal_hold;
	needed int := greatest(c.approvals_needed, current_setting('nomp_crypt.erasure_approvals')::int);
	per_day int := current_setting('nomp_crypt.max_erasures_per_day')::int;
	given text[];
	due timestamptz := c.requested_at + nomp_crypt._erasure_grace();
	passed timestamptz[];
BEGIN
	IF c.state <> 'requested' THEN
		RETURN;
	END IF;
	kind := 'hold';
	FOR h IN SELECT l.* FROM nomp_crypt.legal_hold l WHERE l.tenant = c.tenant AND l.released_at IS NULL
			 ORDER BY l.placed_at LOOP
		missing := format('the release of legal hold %s, placed at %s%s', h.reference, h.placed_at, ' by ' || h.placed_by);
		RETURN NEXT;
	END LOOP;
	given := ARRAY(SELECT a.role::text FROM nomp_crypt.erasure_approval a WHERE a.case_id = c.case_id ORDER BY a.approved_at);
	IF cardinality(given) < needed THEN
		kind := 'approval';
		missing := format('%s of %s approvals, by roles other than %s', needed - cardinality(given), needed,
			array_to_string(coalesce(c.requesters, ARRAY[c.requested_by::text]) || given, ', '));
		RETURN NEXT;
	END IF;
	IF current_setting('nomp_crypt.erasure_requires_return')::boolean AND NOT EXISTS (
			SELECT FROM nomp_crypt.data_return r WHERE r.tenant = c.tenant) THEN
		kind := 'return';
		missing := 'the data''s return to the controller, or word that it is not wanted (nomp_crypt.data_returned)';
		RETURN NEXT;
	END IF;
	IF clock_timestamp() < due THEN
		kind := 'grace';
		missing := format('the end of the grace period at %s', due);
		RETURN NEXT;
	END IF;
	IF per_day > 0 THEN
		passed := ARRAY(
			SELECT max(e.fenced_at) FROM nomp_crypt.erasure e
			WHERE e.fenced_at > clock_timestamp() - interval '1 day'
			GROUP BY coalesce(e.group_id, e.case_id)
			HAVING coalesce(e.group_id, e.case_id) <> coalesce(c.group_id, c.case_id)
			ORDER BY 1);
		IF cardinality(passed) >= per_day THEN
			kind := 'limit';
			missing := format('room in nomp_crypt.max_erasures_per_day (%s), until %s', per_day,
				passed[cardinality(passed) - per_day + 1] + interval '1 day');
			RETURN NEXT;
		END IF;
	END IF;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_missing(nomp_crypt.erasure) FROM PUBLIC;

-- The same as the rest of a sentence, NULL if nothing is missing.
CREATE FUNCTION nomp_crypt._erase_waits(c nomp_crypt.erasure) RETURNS text
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT CASE WHEN bool_and(m.kind = 'grace') THEN format('can be executed from %s on', ($1).requested_at + nomp_crypt._erasure_grace())
		ELSE 'waits for ' || string_agg(m.missing, '; ' ORDER BY m.n) END
	FROM nomp_crypt._erase_missing($1) WITH ORDINALITY m(kind, missing, n)
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_waits(nomp_crypt.erasure) FROM PUBLIC;

-- The school's case that is not finished, NULL if there is none.
CREATE FUNCTION nomp_crypt._erase_open(id text) RETURNS uuid
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT e.case_id FROM nomp_crypt.erasure e JOIN nomp_crypt.tenant t ON t.uuid = e.tenant
	WHERE t.id = $1 AND e.state NOT IN ('withdrawn', 'destroyed', 'certified')
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_open(text) FROM PUBLIC;

CREATE FUNCTION nomp_crypt._erase_tenant_id(case_id uuid) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT t.id FROM nomp_crypt.erasure e JOIN nomp_crypt.tenant t ON t.uuid = e.tenant WHERE e.case_id = $1
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_tenant_id(uuid) FROM PUBLIC;

-- Raises 55000 if more than time is missing to a case.
CREATE FUNCTION nomp_crypt._erase_refuse(case_id uuid) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	c nomp_crypt.erasure := nomp_crypt._erase_case(_erase_refuse.case_id);
BEGIN
	IF EXISTS (SELECT FROM nomp_crypt._erase_missing(c) m WHERE m.kind <> 'grace') THEN
		RAISE EXCEPTION 'the erasure of tenant "%" %', nomp_crypt._erase_tenant_id(c.case_id), nomp_crypt._erase_waits(c)
			USING ERRCODE = 'object_not_in_prerequisite_state',
			HINT = 'The tenant stays suspended. See nomp_crypt.erasures; nomp_crypt.withdraw_erasure() takes the request back.';
	END IF;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_refuse(uuid) FROM PUBLIC;

-- The next case after that one which waits for nothing, or which an
-- interrupted call has left; NULL if there is none.
CREATE FUNCTION nomp_crypt._erase_next(after uuid) RETURNS uuid
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT e.case_id FROM nomp_crypt.erasure e
	WHERE ($1 IS NULL OR e.case_id > $1) AND e.state IN ('requested', 'fenced', 'submitted', 'pending')
		AND nomp_crypt._erase_waits(e) IS NULL
		-- a keystore that destroys later has its own date, and somebody may have cancelled it there
		AND coalesce((to_jsonb(e) ->> 'pending_until')::timestamptz, '-infinity') <= clock_timestamp()
		AND to_jsonb(e) ->> 'voided_at' IS NULL
	ORDER BY e.case_id LIMIT 1
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_next(uuid) FROM PUBLIC;

-- The same of one agreement's cases, whatever they wait for.
CREATE FUNCTION nomp_crypt._erase_next_of(group_id uuid, after uuid) RETURNS uuid
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT e.case_id FROM nomp_crypt.erasure e
	WHERE e.group_id = $1 AND ($2 IS NULL OR e.case_id > $2) AND e.state <> 'withdrawn'
	ORDER BY e.case_id LIMIT 1
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_next_of(uuid, uuid) FROM PUBLIC;

-- The number of an agreement's cases that are not finished.
CREATE FUNCTION nomp_crypt._erase_group(agreement text) RETURNS uuid
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT e.group_id FROM nomp_crypt.erasure e JOIN nomp_crypt.tenant t ON t.uuid = e.tenant
	WHERE t.agreement = $1 AND e.group_id IS NOT NULL AND e.state NOT IN ('withdrawn', 'destroyed', 'certified')
	ORDER BY e.requested_at LIMIT 1
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_group(text) FROM PUBLIC;

-- A case for each living school of the agreement that has none. Returns their
-- number; NULL if all schools are erased. Raises 42704 if there is none.
CREATE FUNCTION nomp_crypt._erase_request_agreement(agreement text, reason text, reference text) RETURNS uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	common uuid := coalesce(nomp_crypt._erase_group(_erase_request_agreement.agreement), gen_random_uuid());
	school nomp_crypt.tenant;
	c nomp_crypt.erasure;
	requested uuid;
	alone text[] := '{}';
	schools int := 0;
BEGIN
	IF NOT EXISTS (SELECT FROM nomp_crypt.tenant t WHERE t.agreement = _erase_request_agreement.agreement) THEN
		RAISE EXCEPTION 'no tenant has agreement "%"', _erase_request_agreement.agreement
			USING ERRCODE = 'undefined_object', HINT = 'See nomp_crypt.tenants.';
	END IF;
	FOR school IN SELECT t.* FROM nomp_crypt.tenant t
				  WHERE t.agreement = _erase_request_agreement.agreement AND t.state <> 'erased'
				  ORDER BY t.uuid LOOP
		SELECT e.* INTO c FROM nomp_crypt.erasure e WHERE e.tenant = school.uuid AND e.state <> 'withdrawn';
		IF NOT FOUND THEN
			requested := nomp_crypt._erase_request(school.id,
				_erase_request_agreement.reason, _erase_request_agreement.reference);
			SELECT e.* INTO c FROM nomp_crypt.erasure e WHERE e.case_id = requested;
			CONTINUE WHEN c.tenant <> school.uuid;	-- an earlier school of that id, and the same reference
			UPDATE nomp_crypt.erasure e SET group_id = common WHERE e.case_id = c.case_id;
		ELSIF c.group_id IS DISTINCT FROM common THEN
			alone := alone || school.id;
			CONTINUE;
		END IF;
		schools := schools + 1;
	END LOOP;
	IF cardinality(alone) > 0 THEN
		RAISE NOTICE 'tenants that have a case of their own already, which goes on by itself: %',
			array_to_string(alone, ', ');
	END IF;
	RETURN CASE WHEN schools > 0 THEN common END;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_request_agreement(text, text, text) FROM PUBLIC;

-- What an agreement's cases still wait for, in a sentence; NULL if for nothing.
CREATE FUNCTION nomp_crypt._erase_group_waits(group_id uuid) RETURNS text
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT string_agg(format('the erasure of %s tenants (%s) %s', w.n, CASE WHEN w.n > 5 THEN w.ids[1] || ', ...' ELSE array_to_string(w.ids, ', ') END, w.waits), '; ')
	FROM (SELECT count(*) AS n, array_agg(t.id ORDER BY t.id) AS ids, nomp_crypt._erase_waits(e) AS waits
		  FROM nomp_crypt.erasure e JOIN nomp_crypt.tenant t ON t.uuid = e.tenant
		  WHERE e.group_id = $1 AND e.state = 'requested'
		  GROUP BY nomp_crypt._erase_waits(e)) w
	WHERE w.waits IS NOT NULL
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_group_waits(uuid) FROM PUBLIC;

CREATE FUNCTION nomp_crypt._erase_refuse_group(group_id uuid) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF EXISTS (SELECT FROM nomp_crypt.erasure e, nomp_crypt._erase_missing(e) m
			   WHERE e.group_id = _erase_refuse_group.group_id AND m.kind <> 'grace') THEN
		RAISE EXCEPTION '%', nomp_crypt._erase_group_waits(_erase_refuse_group.group_id)
			USING ERRCODE = 'object_not_in_prerequisite_state',
			HINT = 'These tenants stay suspended; the others of the agreement are erased. See nomp_crypt.erasures.';
	END IF;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_refuse_group(uuid) FROM PUBLIC;

-- Many cases with one look at the keystore. Each step is one transaction for
-- all of them: what is in the way of one stops it, and then they go one by one.

-- Up to 50 requested cases of an agreement that wait for nothing; NULL if there
-- is one at most, or a keystore that destroys later, which is asked case by case.
CREATE FUNCTION nomp_crypt._erase_batch(group_id uuid) RETURNS uuid[]
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT CASE WHEN count(*) > 1 AND NOT EXISTS (
		SELECT FROM nomp_crypt._keystores((SELECT i.uuid FROM nomp_crypt.installation i)) k WHERE k.destroys_at_once IS FALSE)
		THEN array_agg(b.case_id) END
	FROM (SELECT e.case_id FROM nomp_crypt.erasure e
		  WHERE e.group_id = $1 AND e.state = 'requested' AND nomp_crypt._erase_waits(e) IS NULL
		  ORDER BY e.tenant LIMIT 50) b
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_batch(uuid) FROM PUBLIC;

-- The next agreement's number after that one which has cases that are due.
CREATE FUNCTION nomp_crypt._erase_next_group(after uuid) RETURNS uuid
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT e.group_id FROM nomp_crypt.erasure e
	WHERE e.group_id IS NOT NULL AND ($1 IS NULL OR e.group_id > $1) AND e.state = 'requested'
		AND nomp_crypt._erase_waits(e) IS NULL
	ORDER BY e.group_id LIMIT 1
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_next_group(uuid) FROM PUBLIC;

-- The cases, all in that state and committed, locked in one order as everywhere.
CREATE FUNCTION nomp_crypt._erase_cases(cases uuid[], state text) RETURNS nomp_crypt.erasure[]
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	id uuid;
	c nomp_crypt.erasure;
	locked nomp_crypt.erasure[] := '{}';
BEGIN
	FOR id IN SELECT e.case_id FROM nomp_crypt.erasure e WHERE e.case_id = ANY (_erase_cases.cases) ORDER BY e.tenant LOOP
		c := nomp_crypt._erase_case(id);
		IF c.state <> _erase_cases.state OR c.voided_at IS NOT NULL THEN
			RAISE EXCEPTION 'erasure case % is %', c.case_id, c.state USING ERRCODE = 'object_not_in_prerequisite_state';
		END IF;
		PERFORM nomp_crypt._erase_committed(c.case_id);
		locked := locked || c;
	END LOOP;
	IF cardinality(locked) = 0 THEN
		RAISE EXCEPTION 'no such erasure case' USING ERRCODE = 'undefined_object';
	END IF;
	RETURN locked;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_cases(uuid[], text) FROM PUBLIC;

CREATE FUNCTION nomp_crypt._erase_fence_together(cases uuid[]) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	locked nomp_crypt.erasure[] := nomp_crypt._erase_cases(cases, 'requested');
	installation uuid := nomp_crypt._require_owner();
	everywhere jsonb;
	c nomp_crypt.erasure;
BEGIN
	PERFORM nomp_crypt._register_require(true);
	everywhere := nomp_crypt._erase_look_everywhere(installation, ARRAY(SELECT l.tenant FROM unnest(locked) l));
	FOREACH c IN ARRAY locked LOOP
		PERFORM nomp_crypt._erase_pass(c, installation, everywhere);
	END LOOP;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_fence_together(uuid[]) FROM PUBLIC;

-- A token that does not disable every one of the keys is asked case by case.
CREATE FUNCTION nomp_crypt._erase_disable_together(cases uuid[]) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	locked nomp_crypt.erasure[] := nomp_crypt._erase_cases(cases, 'fenced');
	installation uuid := nomp_crypt._require_owner();
	serial text;
	done record;
	told jsonb := '{}';
	c nomp_crypt.erasure;
BEGIN
	FOR serial IN SELECT DISTINCT k FROM unnest(locked) l, jsonb_object_keys(l.keystores) k ORDER BY 1 LOOP
		SELECT * INTO done FROM nomp_crypt._keystore_enable(installation, ARRAY(SELECT l.tenant FROM unnest(locked) l),
			false, serial);
		IF done.obeyed < done.keys THEN
			PERFORM nomp_crypt._erase_disable(l.case_id) FROM unnest(locked) l;
			RETURN;
		END IF;
	END LOOP;
	FOREACH c IN ARRAY locked LOOP
		UPDATE nomp_crypt.erasure e SET keystores = (SELECT jsonb_object_agg(k.key, k.value ||
			jsonb_build_object('disabled', jsonb_array_length(k.value -> 'seen'))) FROM jsonb_each(e.keystores) k)
		WHERE e.case_id = c.case_id;
		PERFORM nomp_crypt._audit_case('erase_disable', c, jsonb_build_object('serial', c.keystore_serial,
			'disabled', cardinality(c.keys_seen)));
	END LOOP;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_disable_together(uuid[]) FROM PUBLIC;

CREATE FUNCTION nomp_crypt._erase_submit_together(cases uuid[]) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT nomp_crypt._erase_submit(l.case_id) FROM unnest(nomp_crypt._erase_cases($1, 'fenced')) l
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_submit_together(uuid[]) FROM PUBLIC;

-- As _erase_destroy: one of the keystores, in which every key of all of these
-- schools is seen, destroyed, and then not seen. Returns how many are left.
CREATE FUNCTION nomp_crypt._erase_destroy_together(cases uuid[]) RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
	locked nomp_crypt.erasure[] := nomp_crypt._erase_cases(cases, 'submitted');
	installation uuid := nomp_crypt._require_owner();
	next_serial text;
	remaining int;
	asked record;
	c nomp_crypt.erasure;
BEGIN
	PERFORM nomp_crypt._require_synced((SELECT max(l.submitted_lsn) FROM unnest(locked) l));
	PERFORM nomp_crypt._register_require();
	SELECT min(k.key), count(DISTINCT k.key) - 1 INTO next_serial, remaining
	FROM unnest(locked) l, jsonb_each(l.keystores) k WHERE NOT k.value ? 'destroyed';
	SELECT * INTO asked FROM nomp_crypt._keystore_destroy(installation,
		ARRAY(SELECT l.tenant FROM unnest(locked) l WHERE l.keystores ? next_serial), next_serial);
	IF asked.pending > 0 THEN
		RAISE EXCEPTION 'the keystore destroys later' USING ERRCODE = 'object_not_in_prerequisite_state';
	END IF;
	FOREACH c IN ARRAY locked LOOP
		IF c.keystores ? next_serial THEN
			PERFORM nomp_crypt._erase_gone(c, next_serial, ARRAY(SELECT l FROM unnest(asked.labels) l
				WHERE starts_with(l, format('nomp_crypt:%s:%s:', installation, c.tenant))));
		END IF;
		IF remaining = 0 THEN
			PERFORM nomp_crypt._erase_settle(c.case_id);
		END IF;
	END LOOP;
	RETURN remaining;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_destroy_together(uuid[]) FROM PUBLIC;

-- All schools of an agreement, as erase_tenant: see erase_case.c.
CREATE PROCEDURE nomp_crypt.erase_agreement(agreement text, reason text, reference text DEFAULT NULL)
LANGUAGE c AS 'MODULE_PATHNAME', 'nc_erase_agreement';
REVOKE ALL ON PROCEDURE nomp_crypt.erase_agreement(text, text, text) FROM PUBLIC;

-- Everything that is due, for pg_cron: see erase_case.c.
CREATE PROCEDURE nomp_crypt.run_due_erasures()
LANGUAGE c AS 'MODULE_PATHNAME', 'nc_run_due_erasures';
REVOKE ALL ON PROCEDURE nomp_crypt.run_due_erasures() FROM PUBLIC;

-- Approve a requested case: by its number, by the number of an agreement's
-- cases, or by the agreement, which means all of its cases that are requested
-- now. Returns how many cases that is. Nobody approves twice, or what he has
-- asked for, under whatever role of his. Raises 42704, 55000, NC004.
CREATE FUNCTION nomp_crypt.approve_erasure(case_or_agreement text) RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	mine text[] := nomp_crypt._actors();
	c nomp_crypt.erasure;
	other record;
	approved int := 0;
	earlier record;
BEGIN
	FOR c IN SELECT e.* FROM nomp_crypt.erasure e JOIN nomp_crypt.tenant t ON t.uuid = e.tenant
			 WHERE e.state = 'requested' AND (e.case_id::text = case_or_agreement OR
				e.group_id::text = case_or_agreement OR t.agreement = case_or_agreement)
			 ORDER BY e.case_id FOR UPDATE OF e LOOP
		IF mine && coalesce(c.requesters, ARRAY[c.requested_by::text]) THEN
			RAISE EXCEPTION 'the erasure of tenant "%" was asked for by %, who cannot approve it',
				nomp_crypt._erase_tenant_id(c.case_id), array_to_string(c.requesters, ', ')
				USING ERRCODE = 'object_not_in_prerequisite_state',
				HINT = 'Another person, logged in as another role, must do that.';
		END IF;
		SELECT a.role, a.approved_at INTO other FROM nomp_crypt.erasure_approval a
		WHERE a.case_id = c.case_id AND a.actors && mine;
		IF FOUND THEN
			earlier := other;
			CONTINUE;	-- a school may have been added to an agreement since
		END IF;
		INSERT INTO nomp_crypt.erasure_approval (case_id, role, actors)
		VALUES (c.case_id, nomp_crypt._acting_role(), mine);
		PERFORM nomp_crypt._audit_case('approve_erasure', c, jsonb_build_object('actors', to_jsonb(mine)));
		PERFORM nomp_crypt._register_append('approved', jsonb_build_object('school', c.tenant, 'case', c.case_id,
			'given', (SELECT count(*) FROM nomp_crypt.erasure_approval a WHERE a.case_id = c.case_id),
			'needed', greatest(c.approvals_needed, current_setting('nomp_crypt.erasure_approvals')::int)));
		approved := approved + 1;
	END LOOP;
	IF approved = 0 AND earlier IS NOT NULL THEN
		RAISE EXCEPTION 'the same person has approved this already, as % at %', earlier.role, earlier.approved_at
			USING ERRCODE = 'object_not_in_prerequisite_state',
			HINT = 'Another person, logged in as another role, must do that.';
	ELSIF approved = 0 THEN
		SELECT e.state INTO other FROM nomp_crypt.erasure e JOIN nomp_crypt.tenant t ON t.uuid = e.tenant
		WHERE e.case_id::text = case_or_agreement OR e.group_id::text = case_or_agreement OR t.agreement = case_or_agreement
		LIMIT 1;
		IF FOUND THEN
			RAISE EXCEPTION 'no erasure of "%" waits for approval: it is %', case_or_agreement, other.state
				USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'See nomp_crypt.erasures.';
		END IF;
		RAISE EXCEPTION 'no erasure has number or agreement "%"', case_or_agreement
			USING ERRCODE = 'undefined_object', HINT = 'See nomp_crypt.erasures.';
	END IF;
	RETURN approved;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.approve_erasure(text) FROM PUBLIC;

-- The living school, and its case, locked in that order; raises 55000 past
-- the fence, 42704.
CREATE FUNCTION nomp_crypt._before_fence(id text) RETURNS uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	target uuid := nomp_crypt._tenant_uuid(_before_fence.id);
	now_state text;
BEGIN
	PERFORM nomp_crypt._lock_tenant(target);
	PERFORM FROM nomp_crypt.erasure e WHERE e.tenant = target AND e.state <> 'withdrawn' FOR UPDATE;
	SELECT t.state INTO now_state FROM nomp_crypt.tenant t WHERE t.uuid = target;
	IF now_state IN ('fenced', 'erased') THEN
		RAISE EXCEPTION 'tenant "%" is %: its erasure is final', _before_fence.id, now_state
			USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'See nomp_crypt.erasures.';
	END IF;
	RETURN target;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._before_fence(text) FROM PUBLIC;

CREATE FUNCTION nomp_crypt._require_reference(reference text) RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF reference IS NULL OR reference !~ '^[A-Za-z0-9._/-]{1,64}$' THEN
		RAISE EXCEPTION 'malformed reference' USING ERRCODE = 'invalid_parameter_value',
			HINT = 'Give the file''s number: up to 64 letters, digits, and . _ / -, no personal data.';
	END IF;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._require_reference(text) FROM PUBLIC;

-- The school must not be erased until the hold is released; several can be in
-- force, by their references. It can be read as before. Harmless when
-- repeated. Raises 22023, 42704, 55000, and NC004 if that cannot be signed.
CREATE FUNCTION nomp_crypt.hold_tenant(id text, reference text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	target uuid := nomp_crypt._before_fence(hold_tenant.id);
BEGIN
	PERFORM nomp_crypt._require_reference(hold_tenant.reference);
	INSERT INTO nomp_crypt.legal_hold (tenant, reference, placed_by)
	VALUES (target, hold_tenant.reference, nomp_crypt._acting_role())
	ON CONFLICT DO NOTHING;
	IF FOUND THEN
		PERFORM nomp_crypt._audit('hold_tenant', hold_tenant.id,
			jsonb_build_object('uuid', target, 'reference', hold_tenant.reference));
		PERFORM nomp_crypt._register_append('hold', jsonb_build_object('school', target,
			'reference', hold_tenant.reference));
	END IF;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.hold_tenant(text, text) FROM PUBLIC;

-- Raises 42704, also if no such hold is in force, 55000, NC004.
CREATE FUNCTION nomp_crypt.release_hold(id text, reference text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	target uuid := nomp_crypt._tenant_uuid(release_hold.id);
BEGIN
	UPDATE nomp_crypt.legal_hold l SET released_at = clock_timestamp(), released_by = nomp_crypt._acting_role()
	WHERE l.tenant = target AND l.reference = release_hold.reference AND l.released_at IS NULL;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'tenant "%" is under no legal hold "%"', release_hold.id, release_hold.reference
			USING ERRCODE = 'undefined_object', HINT = 'See nomp_crypt.legal_hold.';
	END IF;
	PERFORM nomp_crypt._audit('release_hold', release_hold.id,
		jsonb_build_object('uuid', target, 'reference', release_hold.reference));
	PERFORM nomp_crypt._register_append('released', jsonb_build_object('school', target,
		'reference', release_hold.reference));
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.release_hold(text, text) FROM PUBLIC;

-- The school's data was given to the controller, in an export with that
-- manifest (scripts/export-tenant prints its sum), or 'not wanted'. Before the
-- fence, also before the request. Raises 22023, 42704, 55000, NC004.
CREATE FUNCTION nomp_crypt.data_returned(id text, manifest_sha256 text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	target uuid := nomp_crypt._before_fence(data_returned.id);
	sum text := nullif(data_returned.manifest_sha256, 'not wanted');
BEGIN
	IF data_returned.manifest_sha256 IS NULL OR sum !~ '^[0-9a-f]{64}$' THEN
		RAISE EXCEPTION 'malformed sum' USING ERRCODE = 'invalid_parameter_value',
			HINT = 'Give the manifest''s SHA-256 sum, 64 digits of lower-case hex, or ''not wanted''.';
	END IF;
	INSERT INTO nomp_crypt.data_return (tenant, manifest_sha256, recorded_by)
	VALUES (target, sum, nomp_crypt._acting_role());
	PERFORM nomp_crypt._audit('data_returned', data_returned.id,
		jsonb_build_object('uuid', target, 'manifest', data_returned.manifest_sha256));
	PERFORM nomp_crypt._register_append('returned', jsonb_build_object('school', target,
		'wanted', sum IS NOT NULL, 'manifest_sha256', sum));
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.data_returned(text, text) FROM PUBLIC;

-- What happens next in a case, in words.
CREATE FUNCTION nomp_crypt._erase_step(c nomp_crypt.erasure) RETURNS text
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT CASE WHEN to_jsonb($1) ->> 'voided_at' IS NOT NULL THEN
		'the destruction was cancelled in the keystore: find out why, then CALL nomp_crypt.resubmit_erasure'
		ELSE CASE ($1).state
		WHEN 'requested' THEN coalesce('it ' || nomp_crypt._erase_waits($1),
			'it can be executed: CALL nomp_crypt.erase_tenant again, or nomp_crypt.run_due_erasures()')
		WHEN 'withdrawn' THEN 'nothing: it was withdrawn'
		WHEN 'pending' THEN format('the keystore destroys the keys at %s; then CALL nomp_crypt.run_due_erasures()',
			coalesce(to_jsonb($1) ->> 'pending_until', 'a time of its own'))
		WHEN 'destroyed' THEN 'the keys are destroyed: CALL nomp_crypt.certify_erasure'
		WHEN 'certified' THEN 'nothing is left to do but nomp_crypt.purge_tenant'
		ELSE 'it goes on, or was interrupted: CALL nomp_crypt.erase_tenant again, or nomp_crypt.run_due_erasures()' END END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_step(nomp_crypt.erasure) FROM PUBLIC;

CREATE VIEW nomp_crypt.erasures AS
SELECT e.case_id, e.group_id, t.id AS tenant, t.agreement, e.state, e.reason, e.reference,
	e.requested_by, e.requested_at,
	(SELECT count(*) FROM nomp_crypt.erasure_approval a WHERE a.case_id = e.case_id) AS approvals,
	e.approvals_needed,
	EXISTS (SELECT FROM nomp_crypt.legal_hold l WHERE l.tenant = e.tenant AND l.released_at IS NULL) AS held,
	(SELECT coalesce(r.manifest_sha256, 'not wanted') FROM nomp_crypt.data_return r WHERE r.tenant = e.tenant
	 ORDER BY r.recorded_at DESC LIMIT 1) AS data_returned,
	CASE WHEN e.state = 'requested' THEN e.requested_at + nomp_crypt._erasure_grace() END AS not_before,
	nomp_crypt._erase_step(e) AS next,
	e.fenced_at, e.destroyed_at
FROM nomp_crypt.erasure e JOIN nomp_crypt.tenant t ON t.uuid = e.tenant;
COMMENT ON VIEW nomp_crypt.erasures IS 'one row per erasure: what happens next, and what or who is missing';

-- ---------------------------------------------------------------------------
-- The life of keys: new data keys, new KEKs, suspension, the end of KEKs
-- ---------------------------------------------------------------------------

-- The tenant, locked. Raises 42704, NC001 if it was erased.
CREATE FUNCTION nomp_crypt._living_tenant(id text) RETURNS nomp_crypt.tenant
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	target uuid := nomp_crypt._tenant_uuid(_living_tenant.id);
	wanted nomp_crypt.tenant;
BEGIN
	SELECT t.* INTO wanted FROM nomp_crypt.tenant t WHERE t.uuid = target FOR UPDATE;
	IF wanted.state = 'erased' THEN
		PERFORM nomp_crypt._raise_erased(wanted.uuid);
	END IF;
	RETURN wanted;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._living_tenant(text) FROM PUBLIC;

-- The same, if its keys may be changed. Raises NC002, too.
CREATE FUNCTION nomp_crypt._active_tenant(id text) RETURNS nomp_crypt.tenant
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	wanted nomp_crypt.tenant := nomp_crypt._living_tenant(_active_tenant.id);
BEGIN
	IF wanted.state <> 'active' THEN
		RAISE EXCEPTION 'tenant "%" is suspended', _active_tenant.id USING ERRCODE = 'NC002',
			HINT = 'Its keys are changed when it is active again.';
	END IF;
	RETURN wanted;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._active_tenant(text) FROM PUBLIC;

-- The two functions below, for keys that were made before a time; NULL if
-- there is nothing to do.
CREATE FUNCTION nomp_crypt._rotate(id text, made_before timestamptz) RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	installation uuid := nomp_crypt._require_owner();
	t nomp_crypt.tenant := nomp_crypt._active_tenant(_rotate.id);
	wraps nomp_crypt.kek;
	newest record;
	fresh record;
BEGIN
	SELECT k.version, k.created_at INTO newest FROM nomp_crypt.tenant_key k
	WHERE k.tenant = t.uuid AND k.purpose = 'values' AND k.scope = '' ORDER BY k.version DESC LIMIT 1;
	IF newest.created_at >= made_before THEN
		RETURN NULL;
	END IF;
	SELECT k.* INTO wraps FROM nomp_crypt.kek k WHERE k.tenant = t.uuid AND k.state = 'active';
	IF newest.version IS NULL OR wraps.uuid IS NULL THEN
		RAISE EXCEPTION 'the keys of tenant "%" are not known in this database', t.id USING ERRCODE = 'NC003',
			HINT = 'Rows in nomp_crypt.tenant_key or nomp_crypt.kek are missing: restore the tables of schema nomp_crypt together.';
	END IF;
	SELECT * INTO fresh FROM nomp_crypt._keystore_fresh(installation, wraps.keystore, wraps.label, t.uuid, 'values',
		newest.version + 1);
	UPDATE nomp_crypt.tenant_key k SET state = 'closed'
	WHERE k.tenant = t.uuid AND k.purpose = 'values' AND k.scope = '' AND k.state = 'active';
	INSERT INTO nomp_crypt.tenant_key (key_id, tenant, purpose, version, kek, wrapped, key_check)
	VALUES (substring(fresh.key_check FROM 1 FOR 8), t.uuid, 'values', newest.version + 1, wraps.uuid,
			fresh.wrapped, fresh.key_check);
	PERFORM nomp_crypt._audit('rotate_tenant', t.id,
		jsonb_build_object('uuid', t.uuid, 'version', newest.version + 1));
	RETURN newest.version + 1;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._rotate(text, timestamptz) FROM PUBLIC;

-- The new KEK is made in the keystore of that serial, '' for the first. For a
-- move: unless the school's KEK is there.
CREATE FUNCTION nomp_crypt._rewrap(id text, made_before timestamptz, serial text DEFAULT '') RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	installation uuid := nomp_crypt._require_owner();
	t nomp_crypt.tenant;
	new_kek uuid := gen_random_uuid();
	generation int;
	made record;
	keys int;
	retired timestamptz;
BEGIN
	installation := nomp_crypt._require_owner();
	-- the lock before the row's: reconcile_keystore must not take the new KEK for a leftover
	PERFORM nomp_crypt._lock_keystore(false);
	t := nomp_crypt._active_tenant(_rewrap.id);
	IF NOT EXISTS (SELECT FROM nomp_crypt.kek k
				   WHERE k.tenant = t.uuid AND k.state = 'active' AND k.created_at < made_before
				   AND k.keystore <> nomp_crypt._keystore_name(_rewrap.serial)) THEN
		RETURN NULL;
	END IF;
	-- a transaction that failed, or a site that was left, may have used a number that is not in the table
	SELECT max(g) + 1 INTO generation FROM (
		SELECT k.generation AS g FROM nomp_crypt.kek k WHERE k.tenant = t.uuid
		UNION ALL
		SELECT substring(l FROM '^(?:[^:]*:){3}([0-9]{1,9})(?![0-9])')::int
		FROM nomp_crypt._keystore_see(installation, t.uuid, _rewrap.serial) s, unnest(s.labels) l) numbers;
	SELECT * INTO made FROM nomp_crypt._keystore_create_kek(installation, t.uuid, generation, _rewrap.serial);
	INSERT INTO nomp_crypt.kek (uuid, tenant, generation, keystore, label)
	VALUES (new_kek, t.uuid, generation, made.keystore, made.label);
	-- each key is unwrapped, compared with its key_check, wrapped, and unwrapped again
	UPDATE nomp_crypt.tenant_key k SET kek = new_kek,
		wrapped = nomp_crypt._keystore_rewrap(installation, e.keystore, e.label, nomp_crypt._committed(e.xmin),
											  made.keystore, made.label, k.tenant, k.purpose, k.version, k.wrapped, k.key_check)
	FROM nomp_crypt.kek e
	WHERE e.uuid = k.kek AND k.tenant = t.uuid;
	GET DIAGNOSTICS keys = ROW_COUNT;
	retired := clock_timestamp();
	IF EXISTS (SELECT FROM nomp_crypt.tenant_key k
			   WHERE k.tenant = t.uuid AND (k.kek <> new_kek OR k.wrapped IS NULL)) THEN
		RAISE EXCEPTION 'a key of tenant "%" cannot be wrapped anew', t.id USING ERRCODE = 'NC003',
			HINT = 'Its row in nomp_crypt.tenant_key, or that of its KEK in nomp_crypt.kek, is not whole. Nothing was changed.';
	END IF;
	UPDATE nomp_crypt.kek k SET state = 'retired', retired_at = retired,
		destroy_after = retired + nomp_crypt._backup_retention()
	WHERE k.tenant = t.uuid AND k.state = 'active' AND k.uuid <> new_kek;
	PERFORM nomp_crypt._audit(CASE _rewrap.serial WHEN '' THEN 'rewrap_tenant' ELSE 'migrate_tenant' END, t.id,
		jsonb_build_object('uuid', t.uuid, 'generation', generation, 'key', made.label, 'keys', keys,
						   'serial', nullif(_rewrap.serial, '')));
	PERFORM nomp_crypt._register_kek('moved', t.uuid, generation);
	RETURN generation;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._rewrap(text, timestamptz, text) FROM PUBLIC;

-- A new data key for the tenant's new values; its version. What is stored
-- stays readable with the old ones. Raises 42704, NC001, NC002, NC004, 55000.
CREATE FUNCTION nomp_crypt.rotate_tenant(id text) RETURNS int
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT nomp_crypt._rotate($1, 'infinity')
$$;
REVOKE ALL ON FUNCTION nomp_crypt.rotate_tenant(text) FROM PUBLIC;

-- A new KEK for the tenant, and all its data keys wrapped by it; its
-- generation. No value changes. The KEK before stays, for backups, until
-- destroy_expired_keks. Raises the same, and NC003 and NC005 for keys that do
-- not open.
CREATE FUNCTION nomp_crypt.rewrap_tenant(id text) RETURNS int
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT nomp_crypt._rewrap($1, 'infinity')
$$;
REVOKE ALL ON FUNCTION nomp_crypt.rewrap_tenant(text) FROM PUBLIC;

-- Schools that a policy says need a new data key, or KEK.
CREATE FUNCTION nomp_crypt._due_tenants(made_before timestamptz, rewrap boolean) RETURNS text[]
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT coalesce(array_agg(t.id ORDER BY t.created_at, t.id), '{}') FROM nomp_crypt.tenant t
	WHERE t.state = 'active' AND $1 > CASE WHEN $2
		THEN (SELECT max(k.created_at) FROM nomp_crypt.kek k WHERE k.tenant = t.uuid AND k.state = 'active')
		ELSE (SELECT max(k.created_at) FROM nomp_crypt.tenant_key k
			  WHERE k.tenant = t.uuid AND k.purpose = 'values' AND k.scope = '' AND k.state = 'active') END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._due_tenants(timestamptz, boolean) FROM PUBLIC;

-- A new data key for every school whose own is older than that, or a new KEK;
-- each school in a transaction of its own. What is done is not due any more,
-- so a call that was interrupted is simply repeated. Raises 22023.
-- It commits, so its search_path is the caller's: every name is qualified.
CREATE PROCEDURE nomp_crypt.rotate_all(older_than interval, rewrap boolean DEFAULT false)
LANGUAGE plpgsql AS $$
DECLARE
	made_before pg_catalog.timestamptz := pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) older_than;
	due pg_catalog.text[];
	id pg_catalog.text;
	seen pg_catalog.int4 := 0;
	changed pg_catalog.int4 := 0;
	made pg_catalog.int4;
BEGIN
	IF older_than IS NULL OR older_than OPERATOR(pg_catalog.<) '0'::pg_catalog.interval THEN
		RAISE EXCEPTION 'older_than must be an age' USING ERRCODE = 'invalid_parameter_value';
	END IF;
	COMMIT;	-- refused where it is not allowed, before anything is made
	due := nomp_crypt._due_tenants(made_before, rewrap);
	FOREACH id IN ARRAY due LOOP
		BEGIN
			IF rewrap THEN
				made := nomp_crypt._rewrap(id, made_before);
			ELSE
				made := nomp_crypt._rotate(id, made_before);
			END IF;
		EXCEPTION WHEN SQLSTATE 'NC001' OR SQLSTATE 'NC002' OR undefined_object THEN
			made := NULL;	-- erased or suspended since
		END;
		COMMIT;
		seen := seen OPERATOR(pg_catalog.+) 1;
		PERFORM nomp_crypt._progress('rotate_all', '', 'making keys', 'tenants', seen, pg_catalog.cardinality(due));
		IF made IS NOT NULL THEN
			changed := changed OPERATOR(pg_catalog.+) 1;
		END IF;
		IF seen OPERATOR(pg_catalog.%) 100 OPERATOR(pg_catalog.=) 0 THEN
			RAISE NOTICE '% of % tenants done', seen, pg_catalog.cardinality(due);
		END IF;
	END LOOP;
	PERFORM nomp_crypt._progress(NULL, NULL, NULL, NULL, NULL, NULL);
	IF rewrap THEN
		RAISE NOTICE 'tenants with a new KEK: %', changed;
	ELSE
		RAISE NOTICE 'tenants with a new data key: %', changed;
	END IF;
END
$$;
REVOKE ALL ON PROCEDURE nomp_crypt.rotate_all(interval, boolean) FROM PUBLIC;

-- Suspension, in steps that are safe alone and harmless when repeated. First
-- the state, which sessions and standbys go by.
CREATE FUNCTION nomp_crypt._suspend(id text) RETURNS uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	t nomp_crypt.tenant;
BEGIN
	PERFORM nomp_crypt._require_owner();
	t := nomp_crypt._living_tenant(_suspend.id);
	IF t.state = 'fenced' THEN
		RAISE EXCEPTION 'the erasure of tenant "%" is under way', t.id
			USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'It is not readable any more.';
	END IF;
	IF t.suspended_at IS NULL THEN
		UPDATE nomp_crypt.tenant u SET state = 'suspended', suspended_at = clock_timestamp() WHERE u.uuid = t.uuid;
		PERFORM nomp_crypt._audit('suspend_tenant', t.id, jsonb_build_object('uuid', t.uuid));
	END IF;
	RETURN t.uuid;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._suspend(text) FROM PUBLIC;

-- Then this node's memory.
CREATE FUNCTION nomp_crypt._suspend_wipe(tenant uuid) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT nomp_crypt._wipe(t.uuid) FROM nomp_crypt.tenant t WHERE t.uuid = $1 AND t.state <> 'active'
$$;
REVOKE ALL ON FUNCTION nomp_crypt._suspend_wipe(uuid) FROM PUBLIC;

-- Lets a tenant's keys be used, or not, in every keystore where it has any.
CREATE FUNCTION nomp_crypt._enable_keys(installation uuid, tenant uuid, enable boolean,
	OUT keys bigint, OUT obeyed bigint)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT coalesce(sum(e.keys), 0), coalesce(sum(e.obeyed), 0)
	FROM (SELECT DISTINCT k.keystore FROM nomp_crypt.kek k WHERE k.tenant = $2 AND k.state <> 'destroyed') k,
		nomp_crypt._keystore_enable($1, $2, $3, nomp_crypt._keystore_serial(k.keystore)) e
$$;
REVOKE ALL ON FUNCTION nomp_crypt._enable_keys(uuid, uuid, boolean) FROM PUBLIC;

-- A tenant's keys whose destruction is pending in a keystore; expired: because
-- no backup needs them any more.
CREATE FUNCTION nomp_crypt._pending_keys(installation uuid, tenant uuid,
	OUT label text, OUT until timestamptz, OUT expired boolean) RETURNS SETOF record
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT s ->> 'label', (s ->> 'until')::timestamptz, EXISTS (
		SELECT FROM nomp_crypt.kek e WHERE e.tenant = $2 AND e.label = s ->> 'label' AND e.pending_until IS NOT NULL)
	FROM (SELECT DISTINCT k.keystore FROM nomp_crypt.kek k WHERE k.tenant = $2 AND k.state <> 'destroyed') k,
		nomp_crypt._keystore_see($1, $2, nomp_crypt._keystore_serial(k.keystore)) seen,
		jsonb_array_elements(seen.keys) s
	WHERE s ->> 'state' = 'pending'
$$;
REVOKE ALL ON FUNCTION nomp_crypt._pending_keys(uuid, uuid) FROM PUBLIC;

-- Then the keystore, so that no backup and no node that has not got the news
-- can read. Returns whether the keystores did it, with every key on record that
-- nobody has asked them to destroy: they may find fewer than there are.
CREATE FUNCTION nomp_crypt._suspend_keys(tenant uuid) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	installation uuid := nomp_crypt._require_owner();
	school record;
	done record;
	recorded bigint;
BEGIN
	SELECT t.id, t.uuid, t.state, t.suspended_at, nomp_crypt._committed(t.xmin) AS committed INTO school
	FROM nomp_crypt.tenant t WHERE t.uuid = _suspend_keys.tenant FOR UPDATE;
	IF school.state IS DISTINCT FROM 'suspended' OR school.suspended_at IS NULL OR NOT school.committed THEN
		RAISE EXCEPTION 'the tenant is not suspended, or not yet committed so'
			USING ERRCODE = 'object_not_in_prerequisite_state',
			HINT = 'CALL nomp_crypt.suspend_tenant() goes through all steps.';
	END IF;
	SELECT * INTO done FROM nomp_crypt._enable_keys(installation, school.uuid, false);
	SELECT count(*) INTO recorded FROM nomp_crypt.kek k
	WHERE k.tenant = school.uuid AND k.state <> 'destroyed' AND k.submitted_at IS NULL;
	PERFORM nomp_crypt._audit('disable_keys', school.id,
		jsonb_build_object('uuid', school.uuid, 'keys', greatest(done.keys, recorded), 'disabled', done.obeyed));
	RETURN done.obeyed >= greatest(done.keys, recorded);
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._suspend_keys(uuid) FROM PUBLIC;

-- Back: the keystore first, then the state.
CREATE FUNCTION nomp_crypt._resume_keys(id text) RETURNS uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	installation uuid := nomp_crypt._require_owner();
	t nomp_crypt.tenant := nomp_crypt._living_tenant(_resume_keys.id);
	done record;
	pending record;
BEGIN
	IF t.state = 'active' THEN
		RETURN t.uuid;
	END IF;
	IF t.suspended_at IS NULL OR EXISTS (
		SELECT FROM nomp_crypt.erasure e WHERE e.tenant = t.uuid AND e.state <> 'withdrawn') THEN
		RAISE EXCEPTION 'tenant "%" cannot be resumed: its erasure has been requested', t.id
			USING ERRCODE = 'object_not_in_prerequisite_state',
			HINT = 'See nomp_crypt.erasure; before the fence nomp_crypt.withdraw_erasure() takes it back.';
	END IF;
	SELECT * INTO done FROM nomp_crypt._enable_keys(installation, t.uuid, true);
	-- those that no backup needs, and that will be destroyed anyway, may stay as they are
	SELECT count(*) FILTER (WHERE p.expired), min(p.label) FILTER (WHERE NOT p.expired),
		max(p.until) FILTER (WHERE NOT p.expired) INTO pending
	FROM nomp_crypt._pending_keys(installation, t.uuid) p WHERE done.obeyed < done.keys;
	IF pending.min IS NOT NULL THEN
		RAISE EXCEPTION 'key % of tenant "%" will be destroyed by its keystore at %', pending.min, t.id, pending.max
			USING ERRCODE = 'NC004', DETAIL = 'A key whose destruction is pending cannot be enabled.',
			HINT = 'Cancel the destruction in the keystore before that date, and repeat the call. Find out who asked for it.';
	END IF;
	IF done.obeyed + pending.count < done.keys THEN
		RAISE EXCEPTION 'the keystore is unavailable: it does not enable % of % keys of tenant "%"',
			done.keys - done.obeyed - pending.count, done.keys, t.id USING ERRCODE = 'NC004',
			HINT = 'Enable them with the keystore''s own tools (in a token: CKA_ENCRYPT and CKA_DECRYPT), and repeat the call.';
	END IF;
	PERFORM nomp_crypt._audit('enable_keys', t.id, jsonb_build_object('uuid', t.uuid, 'keys', done.keys));
	RETURN t.uuid;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._resume_keys(text) FROM PUBLIC;

CREATE FUNCTION nomp_crypt._resume(tenant uuid) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	name text;
BEGIN
	PERFORM nomp_crypt._require_owner();
	PERFORM FROM nomp_crypt.tenant t WHERE t.uuid = _resume.tenant FOR UPDATE;
	UPDATE nomp_crypt.tenant t SET state = 'active', suspended_at = NULL
	WHERE t.uuid = _resume.tenant AND t.state = 'suspended' AND t.suspended_at IS NOT NULL
		AND NOT EXISTS (SELECT FROM nomp_crypt.erasure e WHERE e.tenant = t.uuid AND e.state <> 'withdrawn')
	RETURNING t.id INTO name;
	IF FOUND THEN
		PERFORM nomp_crypt._audit('resume_tenant', name, jsonb_build_object('uuid', _resume.tenant));
	END IF;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._resume(uuid) FROM PUBLIC;

-- Make a school unreadable for a while, and readable again: see lifecycle.c.
CREATE PROCEDURE nomp_crypt.suspend_tenant(id text)
LANGUAGE c AS 'MODULE_PATHNAME', 'nc_suspend_tenant';
REVOKE ALL ON PROCEDURE nomp_crypt.suspend_tenant(text) FROM PUBLIC;
CREATE PROCEDURE nomp_crypt.resume_tenant(id text)
LANGUAGE c AS 'MODULE_PATHNAME', 'nc_resume_tenant';
REVOKE ALL ON PROCEDURE nomp_crypt.resume_tenant(text) FROM PUBLIC;

-- May a KEK go? Also by the setting as it is now, if that was raised since;
-- and never by a label that is another's.
CREATE FUNCTION nomp_crypt._expired(k nomp_crypt.kek) RETURNS boolean
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT k.state = 'retired' AND clock_timestamp() >= k.destroy_after
		AND clock_timestamp() >= k.retired_at + nomp_crypt._backup_retention()
		AND k.label = (SELECT format('nomp_crypt:%s:%s:%s', i.uuid, k.tenant, k.generation) FROM nomp_crypt.installation i)
		AND NOT EXISTS (SELECT FROM nomp_crypt.tenant_key u WHERE u.kek = k.uuid)
		AND EXISTS (SELECT FROM nomp_crypt.kek a WHERE a.tenant = k.tenant AND a.state = 'active')
		AND EXISTS (SELECT FROM nomp_crypt.tenant t WHERE t.uuid = k.tenant AND t.state IN ('active', 'suspended'))
$$;
REVOKE ALL ON FUNCTION nomp_crypt._expired(nomp_crypt.kek) FROM PUBLIC;

-- The next KEK that may go, in order of uuid; those already submitted, or the
-- others. What was submitted under another WAL's numbers counts as not.
CREATE FUNCTION nomp_crypt._next_expired(after uuid, submitted boolean) RETURNS uuid
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT k.uuid FROM nomp_crypt.kek k
	WHERE k.state = 'retired' AND ($1 IS NULL OR k.uuid > $1)
		AND $2 = coalesce(k.submitted_at IS NOT NULL AND k.submitted_lsn <= pg_current_wal_insert_lsn(), false)
		AND nomp_crypt._expired(k)
	ORDER BY k.uuid LIMIT 1
$$;
REVOKE ALL ON FUNCTION nomp_crypt._next_expired(uuid, boolean) FROM PUBLIC;

-- The KEK, its tenant locked first, as everywhere.
CREATE FUNCTION nomp_crypt._expired_kek(kek uuid) RETURNS nomp_crypt.kek
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	k nomp_crypt.kek;
BEGIN
	PERFORM FROM nomp_crypt.tenant t
	WHERE t.uuid = (SELECT e.tenant FROM nomp_crypt.kek e WHERE e.uuid = _expired_kek.kek) FOR UPDATE;
	SELECT e.* INTO k FROM nomp_crypt.kek e WHERE e.uuid = _expired_kek.kek;
	IF k.uuid IS NULL OR (k.state <> 'destroyed' AND NOT nomp_crypt._expired(k)) THEN
		RAISE EXCEPTION 'key % must not be destroyed', coalesce(k.label, _expired_kek.kek::text)
			USING ERRCODE = 'object_not_in_prerequisite_state',
			HINT = 'It is in use, or a backup may need it until nomp_crypt.kek.destroy_after.';
	END IF;
	RETURN k;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._expired_kek(uuid) FROM PUBLIC;

-- See the KEK in the keystore, and write down that it is about to go. False
-- if it is not there.
CREATE FUNCTION nomp_crypt._expire_submit(kek uuid) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	installation uuid := nomp_crypt._require_owner();
	k nomp_crypt.kek := nomp_crypt._expired_kek(_expire_submit.kek);
	seen record;
BEGIN
	IF k.state = 'destroyed' THEN
		RETURN true;
	END IF;
	SELECT * INTO seen FROM nomp_crypt._keystore_see(installation, k.tenant, nomp_crypt._keystore_serial(k.keystore));
	-- one that was submitted before may have been destroyed since
	IF NOT EXISTS (SELECT FROM unnest(seen.labels) l WHERE l = k.label OR starts_with(l, k.label || ':provisional@'))
		AND k.keystore_serial IS DISTINCT FROM seen.serial THEN
		RAISE WARNING 'key % is not in the keystore, so its destruction cannot be witnessed', k.label
			USING HINT = 'Find the keystore that holds the key.';
		RETURN false;
	END IF;
	-- the commit that retired it lies before this point of the WAL
	UPDATE nomp_crypt.kek e SET submitted_at = clock_timestamp(), submitted_lsn = pg_current_wal_insert_lsn(),
		keystore_serial = seen.serial,
		reference = coalesce((SELECT max(s ->> 'reference') FROM jsonb_array_elements(seen.keys) s
			WHERE s ->> 'label' = k.label OR starts_with(s ->> 'label', k.label || ':provisional@')), e.reference)
	WHERE e.uuid = k.uuid;
	PERFORM nomp_crypt._audit('expire_submit', (SELECT t.id FROM nomp_crypt.tenant t WHERE t.uuid = k.tenant),
		jsonb_build_object('key', k.label, 'serial', seen.serial));
	RETURN true;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._expire_submit(uuid) FROM PUBLIC;

-- Who may still read with what the WAL up to there has changed: standbys and
-- subscribers by name, NULL if there is none. Those that receive WAL and say
-- nothing of replay (pg_receivewal) count by what they have received.
CREATE FUNCTION nomp_crypt._behind(lsn pg_lsn) RETURNS text
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT string_agg(who, ', ' ORDER BY who) FROM (
		SELECT format('%s "%s"', CASE s.slot_type WHEN 'logical' THEN 'subscriber' ELSE 'standby' END,
			coalesce(nullif(r.application_name, ''), r.pid::text))
		FROM pg_stat_replication r LEFT JOIN pg_replication_slots s ON s.active_pid = r.pid
		WHERE r.state IS DISTINCT FROM 'backup' AND (s.database IS NULL OR s.database = current_database())
			AND coalesce(r.replay_lsn, r.flush_lsn, r.write_lsn, '0/0') < $1
		UNION ALL
		SELECT format('slot "%s"', s.slot_name) FROM pg_replication_slots s
		WHERE NOT s.active AND NOT s.temporary AND (s.database IS NULL OR s.database = current_database())
			AND (s.wal_status = 'lost' OR coalesce(s.confirmed_flush_lsn, s.restart_lsn) < $1)) b(who)
$$;
REVOKE ALL ON FUNCTION nomp_crypt._behind(pg_lsn) FROM PUBLIC;

-- How far the WAL must have been replayed before KEKs may go.
CREATE FUNCTION nomp_crypt._expire_lsn() RETURNS pg_lsn
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT max(k.submitted_lsn) FROM nomp_crypt.kek k WHERE k.state = 'retired' AND nomp_crypt._expired(k)
$$;
REVOKE ALL ON FUNCTION nomp_crypt._expire_lsn() FROM PUBLIC;

-- The KEK as its keystore has it now, by its label or by the name by which it
-- was submitted, whatever label it has by now; NULL if it is not there.
CREATE FUNCTION nomp_crypt._expire_present(k nomp_crypt.kek, installation uuid) RETURNS jsonb
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT coalesce(
		(SELECT s FROM nomp_crypt._keystore_see($2, ($1).tenant, ($1).keystore_serial) seen, jsonb_array_elements(seen.keys) s
		 WHERE s ->> 'label' = ($1).label LIMIT 1),
		(SELECT nomp_crypt._keystore_look($2, ARRAY[($1).reference], ($1).keystore_serial) -> 0
			|| jsonb_build_object('label', ($1).label, 'stripped', true)
		 WHERE ($1).reference IS NOT NULL))
$$;
REVOKE ALL ON FUNCTION nomp_crypt._expire_present(nomp_crypt.kek, uuid) FROM PUBLIC;

-- A KEK whose destruction is pending: has somebody cancelled that in the
-- keystore? Then it counts as retired just now, because somebody needed it.
CREATE FUNCTION nomp_crypt._expire_cancelled(k nomp_crypt.kek, installation uuid) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
	until timestamptz := clock_timestamp() + nomp_crypt._backup_retention();
BEGIN
	IF k.pending_until IS NULL OR
		coalesce(nomp_crypt._expire_present(k, installation) ->> 'state', 'pending') = 'pending' THEN
		RETURN false;
	END IF;
	UPDATE nomp_crypt.kek e SET pending_until = NULL, submitted_at = NULL, submitted_lsn = NULL,
		keystore_serial = NULL, destroy_after = until
	WHERE e.uuid = k.uuid;
	PERFORM nomp_crypt._audit('expire_cancelled', (SELECT t.id FROM nomp_crypt.tenant t WHERE t.uuid = k.tenant),
		jsonb_build_object('key', k.label, 'serial', k.keystore_serial, 'destroy_after', until));
	RAISE WARNING 'the destruction of key % was cancelled in the keystore', k.label
		USING HINT = format('It is kept until %s, and then the keystore is asked again.', until);
	RETURN true;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._expire_cancelled(nomp_crypt.kek, uuid) FROM PUBLIC;

-- A KEK is pending until another date than was witnessed: that was cancelled
-- there, and asked for again. It cannot be kept, but is on record.
CREATE FUNCTION nomp_crypt._expire_again(k nomp_crypt.kek, until timestamptz) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM nomp_crypt._audit('expire_cancelled', (SELECT t.id FROM nomp_crypt.tenant t WHERE t.uuid = k.tenant),
		jsonb_build_object('key', k.label, 'serial', k.keystore_serial, 'was', k.pending_until, 'until', until));
	RAISE WARNING 'the destruction of key % was cancelled in the keystore', k.label
		USING DETAIL = format('It is pending again, by somebody else''s request: until %s, not %s. In between it could be used.',
			until, k.pending_until),
		HINT = 'Find out who cancelled it, and why. If a backup needs the key, cancel the destruction there; otherwise nothing need be done.';
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._expire_again(nomp_crypt.kek, timestamptz) FROM PUBLIC;

-- Destroy the KEK, on the token where it was seen, and see that it is gone: 1.
-- Or see that it will be, in a keystore that destroys later: 0. NULL if that
-- was cancelled there.
CREATE FUNCTION nomp_crypt._expire_destroy(kek uuid) RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	installation uuid := nomp_crypt._require_owner();
	k nomp_crypt.kek := nomp_crypt._expired_kek(_expire_destroy.kek);
	behind text;
	asked record;
	present jsonb;
	until timestamptz;
BEGIN
	IF k.state = 'destroyed' THEN
		RETURN 1;
	END IF;
	IF k.submitted_at IS NULL OR NOT
		(SELECT nomp_crypt._committed(e.xmin) FROM nomp_crypt.kek e WHERE e.uuid = k.uuid) THEN
		RAISE EXCEPTION 'the destruction of key % is not submitted, or not yet committed so', k.label
			USING ERRCODE = 'object_not_in_prerequisite_state',
			HINT = 'CALL nomp_crypt.destroy_expired_keks() goes through all steps.';
	END IF;
	IF nomp_crypt._expire_cancelled(k, installation) THEN
		RETURN NULL;
	END IF;
	PERFORM nomp_crypt._require_synced(k.submitted_lsn);
	behind := nomp_crypt._behind(k.submitted_lsn);
	IF behind IS NOT NULL THEN
		RAISE EXCEPTION 'key % may still be needed: % has not replayed that it was replaced', k.label, behind
			USING ERRCODE = 'object_not_in_prerequisite_state',
			HINT = 'Nothing was destroyed. Repeat the call when all have caught up, or drop what will not come back.';
	END IF;
	SELECT * INTO asked FROM nomp_crypt._keystore_destroy_kek(installation, k.label, k.keystore_serial);
	until := asked.until;
	IF until IS NULL AND k.reference IS NOT NULL THEN
		present := nomp_crypt._expire_present(k, installation);
		PERFORM nomp_crypt._refuse_stripped(jsonb_build_array(present)) WHERE present IS NOT NULL;
		until := (present ->> 'until')::timestamptz;
		-- no keystore destroys before the date that it gave
		until := coalesce(until, CASE WHEN k.pending_until > clock_timestamp() THEN k.pending_until END);
	END IF;
	IF until IS NOT NULL THEN
		IF nomp_crypt._other_date(k.pending_until, until) THEN
			PERFORM nomp_crypt._expire_again(k, until);
		END IF;
		UPDATE nomp_crypt.kek e SET pending_until = until WHERE e.uuid = k.uuid;
		IF asked.destroyed THEN
			PERFORM nomp_crypt._audit('expire_schedule', (SELECT t.id FROM nomp_crypt.tenant t WHERE t.uuid = k.tenant),
				jsonb_build_object('key', k.label, 'serial', k.keystore_serial, 'until', until));
		END IF;
		RETURN 0;
	END IF;
	UPDATE nomp_crypt.kek e SET state = 'destroyed', destroyed_at = clock_timestamp(), pending_until = NULL
	WHERE e.uuid = k.uuid;
	PERFORM nomp_crypt._audit('expire_destroy', (SELECT t.id FROM nomp_crypt.tenant t WHERE t.uuid = k.tenant),
		jsonb_build_object('key', k.label, 'serial', k.keystore_serial, 'destroyed_now', asked.destroyed));
	PERFORM nomp_crypt._register_append('expired', jsonb_build_object('school', k.tenant, 'key', k.label,
		'generation', k.generation, 'serial', k.keystore_serial, 'destroyed_now', asked.destroyed));
	RETURN 1;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._expire_destroy(uuid) FROM PUBLIC;

-- Destroy the KEKs that no backup needs any more: see lifecycle.c.
CREATE PROCEDURE nomp_crypt.destroy_expired_keks()
LANGUAGE c AS 'MODULE_PATHNAME', 'nc_destroy_expired_keks';
REVOKE ALL ON PROCEDURE nomp_crypt.destroy_expired_keks() FROM PUBLIC;

-- ---------------------------------------------------------------------------
-- Moving to another keystore
-- ---------------------------------------------------------------------------

-- Make a keystore that is configured one of the installation's: it gets a
-- canary. It is named by the serial of its token, or by its URI, since a key
-- service has no serial before. Another configured one must have a canary
-- already. Harmless when repeated. Raises 42704 if none is configured with that
-- serial, 55000, NC004.
CREATE FUNCTION nomp_crypt.add_keystore(serial text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	mine uuid;
	stores jsonb;
BEGIN
	IF pg_is_in_recovery() THEN
		RAISE EXCEPTION 'a keystore cannot be added on a standby'
			USING ERRCODE = 'read_only_sql_transaction';
	END IF;
	PERFORM nomp_crypt._lock_keystore(true);
	mine := nomp_crypt._require_owner();
	SELECT jsonb_agg(to_jsonb(k)) INTO stores FROM nomp_crypt._keystores(mine) k;
	CASE (SELECT count(*) FROM jsonb_array_elements(stores) k WHERE add_keystore.serial IN (k ->> 'serial', k ->> 'keystore'))
		WHEN 0 THEN
			RAISE EXCEPTION 'no configured keystore has a token with serial number "%"', add_keystore.serial
				USING ERRCODE = 'undefined_object',
				HINT = 'nomp_crypt.keystore_status() shows those that have.';
		WHEN 1 THEN
			NULL;
		ELSE
			RAISE EXCEPTION 'several configured keystores have a token with serial number "%"', add_keystore.serial
				USING ERRCODE = 'object_not_in_prerequisite_state',
				HINT = 'Keys are found by the serial number of their token, so each must have its own.';
	END CASE;
	IF NOT EXISTS (SELECT FROM jsonb_array_elements(stores) k WHERE k ->> 'state' = 'ok') THEN
		RAISE EXCEPTION 'the keystore is unavailable: no token is this installation''s'
			USING ERRCODE = 'NC004',
			HINT = 'Configure the keystore that the keys are in, too; see nomp_crypt.keystore_status().';
	END IF;
	PERFORM nomp_crypt._audit('add_keystore', NULL, jsonb_build_object('installation', mine, 'serial',
		(SELECT nomp_crypt._keystore_setup(mine, coalesce(k ->> 'serial', ''), (k ->> 'place')::int)
		 FROM jsonb_array_elements(stores) k WHERE add_keystore.serial IN (k ->> 'serial', k ->> 'keystore'))));
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.add_keystore(text) FROM PUBLIC;

-- The serial of a keystore that schools may move to: that one, or for NULL the
-- first. Raises 42704, NC004.
CREATE FUNCTION nomp_crypt._migration_target(serial text) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	target record;
BEGIN
	SELECT k.* INTO target FROM nomp_crypt._keystores((SELECT i.uuid FROM nomp_crypt.installation i)) k
	WHERE _migration_target.serial IS NULL OR k.serial = _migration_target.serial LIMIT 1;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'no configured keystore has a token with serial number "%"', _migration_target.serial
			USING ERRCODE = 'undefined_object',
			HINT = 'nomp_crypt.keystore_status() shows those that have.';
	ELSIF target.state <> 'ok' THEN
		RAISE EXCEPTION 'the keystore is unavailable: %', target.state
			USING ERRCODE = 'NC004', HINT = 'See nomp_crypt.keystore_status(), and nomp_crypt.add_keystore().';
	END IF;
	RETURN target.serial;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._migration_target(text) FROM PUBLIC;

-- Move a tenant to another configured keystore, named by its token's serial,
-- or to the first: a new KEK there, all data keys wrapped by it, unwrapped
-- again, and used from the commit on. The old KEK stays in its keystore, for
-- backups, until destroy_expired_keks. Returns the generation of the tenant's
-- KEK; harmless when repeated. Raises as rewrap_tenant, and 42704.
CREATE FUNCTION nomp_crypt.migrate_tenant(id text, keystore text DEFAULT NULL) RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	RETURN coalesce(
		nomp_crypt._rewrap(migrate_tenant.id, 'infinity', nomp_crypt._migration_target(keystore)),
		(SELECT max(k.generation) FROM nomp_crypt.kek k
		 WHERE k.tenant = nomp_crypt._tenant_uuid(migrate_tenant.id) AND k.state = 'active'));
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.migrate_tenant(text, text) FROM PUBLIC;

-- A person says that a token is no more, and that its keys were restored to
-- another, which is configured: the keys that are seen there are on record
-- there from now on. Others stay as they are, with a warning. Returns how many
-- are. Raises 42704, 55000 if the old token is configured, NC004.
CREATE FUNCTION nomp_crypt.replace_keystore(old_serial text, new_serial text) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	mine uuid := nomp_crypt._require_owner();
	target text := nomp_crypt._migration_target(coalesce(new_serial, ''));
	school uuid;
	seen record;
	moved bigint := 0;
	now_moved bigint;
	missing bigint;
BEGIN
	IF EXISTS (SELECT FROM nomp_crypt._keystores(mine) k WHERE k.serial = old_serial) THEN
		RAISE EXCEPTION 'the token with serial number "%" is still configured', old_serial
			USING ERRCODE = 'object_not_in_prerequisite_state',
			HINT = 'Schools move from it with nomp_crypt.migrate_tenants().';
	END IF;
	FOR school IN SELECT DISTINCT k.tenant FROM nomp_crypt.kek k
		WHERE k.keystore = nomp_crypt._keystore_name(old_serial) AND k.state <> 'destroyed' LOOP
		PERFORM FROM nomp_crypt.tenant t WHERE t.uuid = school FOR UPDATE;
		SELECT * INTO seen FROM nomp_crypt._keystore_see(mine, school, target);
		UPDATE nomp_crypt.kek k SET keystore = nomp_crypt._keystore_name(target)
		WHERE k.tenant = school AND k.keystore = nomp_crypt._keystore_name(old_serial) AND k.state <> 'destroyed'
			AND EXISTS (SELECT FROM unnest(seen.labels) l
						WHERE l = k.label OR starts_with(l, k.label || ':provisional@'));
		GET DIAGNOSTICS now_moved = ROW_COUNT;
		moved := moved + now_moved;
	END LOOP;
	SELECT count(*) INTO missing FROM nomp_crypt.kek k
	WHERE k.keystore = nomp_crypt._keystore_name(old_serial) AND k.state <> 'destroyed';
	IF missing > 0 THEN
		RAISE WARNING '% keys are not in the token with serial number "%"', missing, target
			USING HINT = 'They stay on record where they were: see nomp_crypt.kek.';
	END IF;
	PERFORM nomp_crypt._audit('replace_keystore', NULL, jsonb_build_object('old', old_serial, 'new', target,
		'keys', moved, 'missing', missing));
	PERFORM nomp_crypt._register_append('moved', jsonb_build_object('from_serial', old_serial, 'to_serial', target,
		'keys', moved, 'missing', missing));
	RETURN moved;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.replace_keystore(text, text) FROM PUBLIC;

-- The tenants whose KEK in use is not in that keystore, by state.
CREATE FUNCTION nomp_crypt._tenants_elsewhere(serial text, OUT id text, OUT state text) RETURNS SETOF record
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT t.id, t.state FROM nomp_crypt.tenant t
	WHERE t.state <> 'erased' AND EXISTS (SELECT FROM nomp_crypt.kek k WHERE k.tenant = t.uuid
		AND k.state = 'active' AND k.keystore <> nomp_crypt._keystore_name($1))
	ORDER BY t.id
$$;
REVOKE ALL ON FUNCTION nomp_crypt._tenants_elsewhere(text) FROM PUBLIC;

-- The same for all active tenants, each in a transaction of its own; those that
-- are there already are passed over, so a call that was interrupted is simply
-- repeated. A tenant whose keys do not open is left where it is, with a
-- warning. It commits, so its search_path is the caller's: every name is
-- qualified.
CREATE PROCEDURE nomp_crypt.migrate_tenants(keystore text DEFAULT NULL)
LANGUAGE plpgsql AS $$
DECLARE
	target pg_catalog.text;
	ids pg_catalog.text[];
	one pg_catalog.text;
	moved pg_catalog.int4 := 0;
	failed pg_catalog.int4 := 0;
	others pg_catalog.int8;
BEGIN
	COMMIT;		-- refuses a transaction block before anything was made
	target := nomp_crypt._migration_target(keystore);
	ids := ARRAY(SELECT e.id FROM nomp_crypt._tenants_elsewhere(target) e
				 WHERE e.state OPERATOR(pg_catalog.=) 'active');
	FOREACH one IN ARRAY ids LOOP
		BEGIN
			PERFORM nomp_crypt.migrate_tenant(one, target);
			moved := moved OPERATOR(pg_catalog.+) 1;
			IF moved OPERATOR(pg_catalog.%) 100 OPERATOR(pg_catalog.=) 0 THEN
				RAISE NOTICE '% of % tenants moved', moved, pg_catalog.cardinality(ids);
			END IF;
		EXCEPTION
			WHEN SQLSTATE 'NC001' OR SQLSTATE 'NC002' OR undefined_object THEN
				NULL;		-- erased or suspended meanwhile
			WHEN SQLSTATE 'NC003' OR SQLSTATE 'NC005' THEN
				failed := failed OPERATOR(pg_catalog.+) 1;
				RAISE WARNING 'tenant "%" was not moved: %', one, SQLERRM;
		END;
		COMMIT;
		PERFORM nomp_crypt._progress('migrate_tenants', '', 'wrapping keys', 'tenants',
			moved OPERATOR(pg_catalog.+) failed, pg_catalog.cardinality(ids));
	END LOOP;
	PERFORM nomp_crypt._progress(NULL, NULL, NULL, NULL, NULL, NULL);
	PERFORM nomp_crypt._register_follow();
	COMMIT;
	SELECT pg_catalog.count(*) INTO others FROM nomp_crypt._tenants_elsewhere(target) e
	WHERE e.state OPERATOR(pg_catalog.<>) 'active';
	RAISE NOTICE '% tenants moved, % failed, % suspended ones left', moved, failed, others;
END
$$;
REVOKE ALL ON PROCEDURE nomp_crypt.migrate_tenants(text) FROM PUBLIC;

-- ---------------------------------------------------------------------------
-- Values under other keys: re-encrypting, moving rows, verifying. For
-- everybody: these work with the caller's own rights on tables and schools.
-- ---------------------------------------------------------------------------

-- How far long commands are; they report through _progress, from SQL or C.
CREATE FUNCTION nomp_crypt._progress(command text, object text, phase text, unit text,
	done bigint, total bigint) RETURNS void
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'nc_progress_note';
CREATE FUNCTION nomp_crypt._progress_read(OUT pid int, OUT command text, OUT object text,
	OUT phase text, OUT unit text, OUT done bigint, OUT total bigint,
	OUT started timestamptz, OUT phase_started timestamptz) RETURNS SETOF record
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'nc_progress';
REVOKE ALL ON FUNCTION nomp_crypt._progress_read() FROM PUBLIC;
CREATE VIEW nomp_crypt.progress AS
SELECT p.pid, p.command, p.object, p.phase, p.done, p.total, p.unit, r.rate,
	CASE WHEN r.rate > 0 THEN make_interval(secs => greatest(p.total - p.done, 0) / r.rate) END AS time_left,
	p.started
FROM nomp_crypt._progress_read() p,
	LATERAL (SELECT round((p.done / nullif(extract(epoch FROM clock_timestamp() - p.phase_started), 0))::numeric, 1)) r(rate);
COMMENT ON VIEW nomp_crypt.progress IS
'long commands under way in this database on this node; rate is units per second';

-- A value under the newest key of its own tenant, or of another one.
CREATE FUNCTION nomp_crypt.reencrypt(value @extschema@.encrypted, to_tenant text DEFAULT NULL)
RETURNS @extschema@.encrypted
LANGUAGE c VOLATILE PARALLEL SAFE AS 'MODULE_PATHNAME', 'nc_reencrypt';
CREATE FUNCTION nomp_crypt._reencrypt(value anyelement, to_tenant text, typmod int) RETURNS anyelement
LANGUAGE c VOLATILE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'nc_reencrypt_inside';

-- All values of a table: see reencrypt_table.c. Texts, not regclass and name:
-- literals could not be told from the function's otherwise.
CREATE PROCEDURE nomp_crypt.reencrypt(table_name text, column_name text DEFAULT NULL,
	batch_size int DEFAULT 1000, max_lag text DEFAULT '64MB', delay interval DEFAULT '0',
	patience interval DEFAULT '30 seconds', INOUT remaining bigint DEFAULT NULL)
LANGUAGE c AS 'MODULE_PATHNAME', 'nc_reencrypt_table';

-- What of a table's values opens, or of all tables': see verify.c.
CREATE FUNCTION nomp_crypt.verify_values(of_table regclass DEFAULT NULL,
	OUT table_name text, OUT column_name text, OUT tenant text, OUT status text,
	OUT "values" bigint, OUT "rows" text[]) RETURNS SETOF record
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'nc_verify_values';
CREATE PROCEDURE nomp_crypt.verify(table_name regclass DEFAULT NULL, INOUT problems bigint DEFAULT NULL)
LANGUAGE c AS 'MODULE_PATHNAME', 'nc_verify';

-- Rows that move to another school: move_rows and its steps, each with the
-- caller's rights, outside any tenant, and refused where row-level security
-- would hide rows.
CREATE FUNCTION nomp_crypt._condition(of_table regclass, condition text) RETURNS text
LANGUAGE c VOLATILE STRICT SET nomp_crypt.tenant = '' AS 'MODULE_PATHNAME', 'nc_condition';
CREATE FUNCTION nomp_crypt._move_column(of_table regclass, tenant_column name, to_tenant text) RETURNS name
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'nc_move_column';
CREATE FUNCTION nomp_crypt._holds_values(of_type oid) RETURNS boolean
LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'nc_holds_values';

-- An SQL expression that names a row of the alias, by its place and its
-- primary key, without encrypted columns.
CREATE FUNCTION nomp_crypt._row_name(of_table regclass, alias text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT format('%I.ctid::text', alias) ||
		coalesce(string_agg(format(' || %L || coalesce(left(%I.%I::text, 100), ''null'')', ' ' || a.attname || '=', alias, a.attname), ''
							ORDER BY a.attnum), '')
	FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey::int2[])
	WHERE i.indrelid = of_table AND i.indisprimary AND NOT nomp_crypt._holds_values(a.atttypid)
$$;

-- One sentence for each collision that the move would end in, by the unique
-- indexes of the table that have the tenant's column or a searchable one.
CREATE FUNCTION nomp_crypt._move_collisions(of_table regclass, condition text, tenant_column name, to_tenant text)
RETURNS SETOF text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp SET nomp_crypt.tenant = '' SET row_security = off AS $$
DECLARE
	idx record;
	statement text;
	-- an index of a parent has no rows of children, but of partitions
	relation text := (SELECT CASE WHEN c.relkind = 'p' THEN '' ELSE 'ONLY ' END || of_table
		FROM pg_class c WHERE c.oid = of_table);
BEGIN
	FOR idx IN
		SELECT i.indexrelid::regclass AS index_name,
			string_agg(CASE WHEN a.attname = tenant_column THEN format('o.%I = $1::%s', a.attname, format_type(a.atttypid, NULL))
				ELSE format('o.%1$I OPERATOR(%2$I.%3$s) m.%1$I', a.attname, n.nspname, op.oprname) END, ' AND ') AS matches,
			string_agg(format('m.%I', a.attname), ', ') FILTER (WHERE a.attname <> tenant_column) AS keys,
			string_agg(format('m.%I IS NOT NULL', a.attname), ' AND ')
				FILTER (WHERE a.attname <> tenant_column) AS present
		FROM pg_index i
		CROSS JOIN LATERAL unnest(i.indkey::int2[], i.indclass::oid[]) WITH ORDINALITY k(attnum, opclass, place)
		JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
		JOIN pg_opclass c ON c.oid = k.opclass
		JOIN pg_amop amop ON amop.amopfamily = c.opcfamily AND amop.amopstrategy = 3
			AND amop.amoplefttype = c.opcintype AND amop.amoprighttype = c.opcintype
		JOIN pg_operator op ON op.oid = amop.amopopr
		JOIN pg_namespace n ON n.oid = op.oprnamespace
		WHERE i.indrelid = of_table AND i.indisunique AND i.indpred IS NULL AND i.indexprs IS NULL
			AND k.place <= i.indnkeyatts
		GROUP BY i.indexrelid
		HAVING bool_or(a.attname = tenant_column OR nomp_crypt._holds_values(a.atttypid))
	LOOP
		-- as the rows would be; the row type gives the columns their modifiers
		statement := format($q$
			WITH moved AS MATERIALIZED (
				SELECT %1$s AS "nomp_crypt row", nomp_crypt._reencrypt(t, $1, -1) AS new
				FROM %2$s t WHERE (%3$s) AND t.%4$I IS DISTINCT FROM $1::%5$s),
			m AS (SELECT "nomp_crypt row", (new).* FROM moved)$q$,
			nomp_crypt._row_name(of_table, 't'), relation, condition, tenant_column,
			(SELECT format_type(a.atttypid, NULL) FROM pg_attribute a
			 WHERE a.attrelid = of_table AND a.attname = tenant_column));
		RETURN QUERY EXECUTE format($q$%s
			SELECT 'Row ' || m."nomp_crypt row" || ' would collide with row ' || %s || ' in ' || %L || '.'
			FROM m JOIN %s o ON %s LIMIT 20$q$,
			statement, nomp_crypt._row_name(of_table, 'o'), idx.index_name, relation, idx.matches)
		USING to_tenant;
		RETURN QUERY EXECUTE format($q$%s
			SELECT 'Rows ' || string_agg(m."nomp_crypt row", ', ' ORDER BY m."nomp_crypt row") || ' would collide in ' || %L || '.'
			FROM m WHERE %s %s HAVING count(*) > 1 LIMIT 20$q$,
			statement, idx.index_name, coalesce(idx.present, 'true'),
			coalesce('GROUP BY ' || idx.keys, ''))
		USING to_tenant;
	END LOOP;
END
$$;

-- Move up to so many rows; how many.
CREATE FUNCTION nomp_crypt._move_batch(of_table regclass, condition text, tenant_column name, to_tenant text,
	batch_size int) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp SET nomp_crypt.tenant = '' SET row_security = off AS $$
DECLARE
	tenant_type text;
	assignments text;
	relations oid[];
	places tid[];
BEGIN
	SELECT format_type(a.atttypid, a.atttypmod) INTO tenant_type FROM pg_attribute a
	WHERE a.attrelid = of_table AND a.attname = tenant_column AND a.attnum > 0 AND NOT a.attisdropped;
	SELECT string_agg(format(', %1$I = nomp_crypt._reencrypt(t.%1$I, $1, %2$s)', a.attname, a.atttypmod), '' ORDER BY a.attnum)
	INTO assignments FROM pg_attribute a
	WHERE a.attrelid = of_table AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
		AND nomp_crypt._holds_values(a.atttypid);
	-- two statements: the second sees the rows as they are locked
	EXECUTE format('SELECT array_agg(l.tableoid), array_agg(l.place) FROM (
			SELECT t.tableoid, t.ctid AS place FROM %s t WHERE (%s) AND t.%I IS DISTINCT FROM $1::%s
			LIMIT $2 FOR UPDATE) l', of_table, condition, tenant_column, tenant_type)
	INTO relations, places USING to_tenant, batch_size;
	EXECUTE format('UPDATE %s t SET %I = $1::%s%s
			FROM unnest($2, $3) l(relation, place) WHERE t.tableoid = l.relation AND t.ctid = l.place',
		of_table, tenant_column, tenant_type, coalesce(assignments, ''))
	USING to_tenant, relations, places;
	RETURN coalesce(cardinality(places), 0);
END
$$;

-- The rows of a table that meet a condition, to another school: its column,
-- values and fingerprints in one UPDATE. Batches are atomic each; a move of no
-- more than one can be part of a transaction. Collisions in unique indexes
-- are named before anything is changed (23505). Raises 22023, 42601, 42703,
-- 42704, 42501, NC001 to NC005.
-- It may commit, so its search_path is the caller's: every name is qualified.
CREATE PROCEDURE nomp_crypt.move_rows(table_name regclass, condition text, to_tenant text,
	tenant_column name DEFAULT NULL, batch_size int DEFAULT 10000, INOUT moved bigint DEFAULT NULL)
LANGUAGE plpgsql AS $$
DECLARE
	checked pg_catalog.text;
	collisions pg_catalog.text[];
	batch pg_catalog.int8;
BEGIN
	IF table_name IS NULL OR condition IS NULL OR to_tenant IS NULL OR
		(batch_size OPERATOR(pg_catalog.>) 0) IS NOT TRUE THEN
		RAISE EXCEPTION 'a table, a condition, a tenant and a batch size above 0 are needed'
			USING ERRCODE = 'invalid_parameter_value',
			HINT = 'All rows are meant by the condition ''true''.';
	END IF;
	tenant_column := nomp_crypt._move_column(table_name, tenant_column, to_tenant);
	checked := nomp_crypt._condition(table_name, condition);
	moved := 0;
	PERFORM nomp_crypt._progress('move_rows', table_name::pg_catalog.text, 'looking for collisions', 'rows', 0, 0);
	collisions := ARRAY(SELECT nomp_crypt._move_collisions(table_name, checked, tenant_column, to_tenant));
	IF pg_catalog.cardinality(collisions) OPERATOR(pg_catalog.>) 0 THEN
		RAISE EXCEPTION 'rows cannot be moved to tenant "%": % would collide', to_tenant,
			pg_catalog.cardinality(collisions)
			USING ERRCODE = 'unique_violation', DETAIL = pg_catalog.array_to_string(collisions, pg_catalog.chr(10)),
			HINT = 'Nothing was changed. Merge or remove one of each first.';
	END IF;
	LOOP
		batch := nomp_crypt._move_batch(table_name, checked, tenant_column, to_tenant, batch_size);
		moved := moved OPERATOR(pg_catalog.+) batch;
		EXIT WHEN batch OPERATOR(pg_catalog.<) batch_size;
		COMMIT;
		PERFORM nomp_crypt._progress('move_rows', table_name::pg_catalog.text, 'moving', 'rows', moved, 0);
	END LOOP;
	PERFORM nomp_crypt._progress(NULL, NULL, NULL, NULL, NULL, NULL);
END
$$;

-- A new index key for the tenant; its version. For index_key.c alone, which
-- takes all fingerprints anew in the same transaction.
CREATE FUNCTION nomp_crypt._new_index_key(id text) RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	installation uuid := nomp_crypt._require_owner();
	t nomp_crypt.tenant := nomp_crypt._active_tenant(_new_index_key.id);
	wraps nomp_crypt.kek;
	newest int;
	fresh record;
BEGIN
	SELECT max(k.version) INTO newest FROM nomp_crypt.tenant_key k
	WHERE k.tenant = t.uuid AND k.purpose = 'index';
	SELECT k.* INTO wraps FROM nomp_crypt.kek k WHERE k.tenant = t.uuid AND k.state = 'active';
	IF newest IS NULL OR wraps.uuid IS NULL THEN
		RAISE EXCEPTION 'the keys of tenant "%" are not known in this database', t.id USING ERRCODE = 'NC003',
			HINT = 'Rows in nomp_crypt.tenant_key or nomp_crypt.kek are missing: restore the tables of schema nomp_crypt together.';
	END IF;
	SELECT * INTO fresh FROM nomp_crypt._keystore_fresh(installation, wraps.keystore, wraps.label, t.uuid, 'index', newest + 1);
	UPDATE nomp_crypt.tenant_key k SET state = 'closed'
	WHERE k.tenant = t.uuid AND k.purpose = 'index' AND k.state = 'active';
	INSERT INTO nomp_crypt.tenant_key (key_id, tenant, purpose, version, kek, wrapped, key_check)
	VALUES (substring(fresh.key_check FROM 1 FOR 8), t.uuid, 'index', newest + 1, wraps.uuid,
			fresh.wrapped, fresh.key_check);
	PERFORM nomp_crypt._audit('rotate_index_key', t.id,
		jsonb_build_object('uuid', t.uuid, 'version', newest + 1));
	RETURN newest + 1;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._new_index_key(text) FROM PUBLIC;
-- A new index key, and all fingerprints of the tenant in this database by it:
-- see index_key.c.
CREATE FUNCTION nomp_crypt.rotate_index_key(tenant text) RETURNS int
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_rotate_index_key';
REVOKE ALL ON FUNCTION nomp_crypt.rotate_index_key(text) FROM PUBLIC;

-- ---------------------------------------------------------------------------
-- Erasure: what it reaches. Counting a school's values needs no key and no
-- right, also after the erasure; these functions look into every table.
-- ---------------------------------------------------------------------------

CREATE FUNCTION nomp_crypt._values_of(value anyelement, tenant uuid) RETURNS int
LANGUAGE c STABLE PARALLEL SAFE COST 10 AS 'MODULE_PATHNAME', 'nc_values_of';
CREATE FUNCTION nomp_crypt._first_value(value anyelement, tenant uuid) RETURNS @extschema@.encrypted
LANGUAGE c STABLE PARALLEL SAFE COST 10 AS 'MODULE_PATHNAME', 'nc_first_value';

-- For other nodes that verify an erasure: can a ciphertext be read here?
CREATE FUNCTION nomp_crypt._reading(sample bytea) RETURNS text
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_reading';

-- The columns that can hold values, with their relations: tables, partitions
-- and materialized views.
CREATE FUNCTION nomp_crypt._value_columns(OUT relation regclass, OUT name text, OUT kind "char",
	OUT column_name name, OUT place int2, OUT not_null boolean, OUT generated boolean) RETURNS SETOF record
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT c.oid::regclass, format('%I.%I', n.nspname, c.relname), c.relkind, a.attname, a.attnum, a.attnotnull,
		a.attgenerated <> ''
	FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
	JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
	WHERE c.relkind IN ('r', 'm') AND c.relpersistence <> 't' AND nomp_crypt._holds_values(a.atttypid)
	ORDER BY 2, a.attnum
$$;
REVOKE ALL ON FUNCTION nomp_crypt._value_columns() FROM PUBLIC;

-- The school's values by table and column, and for a NULL column the rows
-- that have any. Goes through all of them, block by block, and shows how far.
CREATE FUNCTION nomp_crypt._count_values(tenant uuid, command text, OUT relation regclass, OUT name text,
	OUT column_name name, OUT amount bigint) RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET nomp_crypt.tenant = '' AS $$
DECLARE
	step CONSTANT bigint := 1024;
	done bigint := 0;
	total bigint;
	blocks bigint;
	t record;
	counted bigint[];
	sums bigint[];
	query text;
BEGIN
	SELECT sum(pg_relation_size(r) / current_setting('block_size')::bigint) INTO total
	FROM (SELECT DISTINCT v.relation FROM nomp_crypt._value_columns() v) r(r);
	FOR t IN SELECT v.relation, v.name, array_agg(v.column_name ORDER BY v.place) AS columns
			 FROM nomp_crypt._value_columns() v GROUP BY 1, 2 ORDER BY 2 LOOP
		blocks := pg_relation_size(t.relation) / current_setting('block_size')::bigint;
		sums := array_fill(0::bigint, ARRAY[cardinality(t.columns) + 1]);
		SELECT format('SELECT ARRAY[count(*) FILTER (WHERE %s), %s] FROM ONLY %s t WHERE t.ctid >= $2 AND t.ctid < $3',
			string_agg(format('nomp_crypt._values_of(t.%I, $1) > 0', c), ' OR ' ORDER BY n),
			string_agg(format('coalesce(sum(nomp_crypt._values_of(t.%I, $1)), 0)::bigint', c), ', ' ORDER BY n), t.relation)
		INTO query FROM unnest(t.columns) WITH ORDINALITY u(c, n);
		FOR at IN 0 .. (blocks - 1) / step LOOP
			EXECUTE query INTO counted USING tenant, format('(%s,0)', at * step)::tid,
				format('(%s,0)', (at + 1) * step)::tid;
			sums := ARRAY(SELECT a + b FROM unnest(sums, counted) u(a, b));
			PERFORM nomp_crypt._progress(command, t.name, 'counting', 'blocks',
				done + least(blocks, (at + 1) * step), total);
		END LOOP;
		done := done + blocks;
		relation := t.relation;
		name := t.name;
		FOR i IN 1 .. cardinality(sums) LOOP
			column_name := t.columns[i - 1];
			amount := sums[i];
			RETURN NEXT;
		END LOOP;
	END LOOP;
	PERFORM nomp_crypt._progress(NULL, NULL, NULL, NULL, NULL, NULL);
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._count_values(uuid, text) FROM PUBLIC;

-- The databases of this server that the installation's file names, but this
-- one; NULL for those of other data directories.
CREATE FUNCTION nomp_crypt._other_databases() RETURNS SETOF text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	RETURN QUERY SELECT CASE WHEN m[2] = here.directory THEN d.datname::text END
	FROM regexp_matches(pg_read_file(current_setting('nomp_crypt.register_directory') || '/installation'),
			'^database (\d+) of (.*)$', 'gn') m
	CROSS JOIN current_setting('data_directory') here(directory)
	LEFT JOIN pg_database d ON d.oid = m[1]::oid
	WHERE m[2] <> here.directory OR d.datname <> current_database();
EXCEPTION WHEN OTHERS THEN
	RETURN;		-- who must know asks _require_owner
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._other_databases() FROM PUBLIC;

-- Before an erasure: how many values of the school it makes unreadable, and
-- what destroying the keys will not reach. Reads every table with encrypted
-- columns. Raises 42704.
CREATE FUNCTION nomp_crypt.erasure_preview(id text, OUT kind text, OUT object text, OUT column_name name,
	OUT amount bigint, OUT detail text) RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
	target uuid := nomp_crypt._tenant_uuid(erasure_preview.id);
	counted record;
	found_in jsonb := '[]';
	others text[];
	past record;
BEGIN
	FOR counted IN SELECT * FROM nomp_crypt._count_values(target, 'erasure_preview') LOOP
		CONTINUE WHEN counted.amount = 0;
		kind := CASE WHEN counted.column_name IS NULL THEN 'rows' ELSE 'values' END;
		object := counted.name;
		column_name := counted.column_name;
		amount := counted.amount;
		RETURN NEXT;
		found_in := found_in || jsonb_build_object('name', object, 'column_name', column_name);
	END LOOP;
	kind := 'not reached';
	amount := NULL;
	FOR past IN SELECT i.table_name, i.column_name, i.encrypted_on_disk_since AS since, i.state
		FROM nomp_crypt.inventory i JOIN jsonb_to_recordset(found_in) p(name text, column_name name)
			ON p.name = i.table_name AND p.column_name = i.column_name
		WHERE i.encrypted_on_disk_since IS NULL OR i.encrypted_on_disk_since > clock_timestamp() - nomp_crypt._backup_retention() LOOP
		object := past.table_name;
		column_name := past.column_name;
		detail := CASE WHEN past.since IS NULL THEN past.state
			ELSE format('encrypted on disk since %s: backups from before have it plain until %s', past.since,
				past.since + nomp_crypt._backup_retention()) END;
		RETURN NEXT;
	END LOOP;
	column_name := NULL;
	FOR object, amount, detail IN SELECT p.name, count(*), 'findings of nomp_crypt.lint(): ' || string_agg(DISTINCT l.rule, ', ')
		FROM nomp_crypt._lint(0, false) l, jsonb_to_recordset(found_in) p(name text, column_name name)
		WHERE p.column_name IS NULL AND to_regclass(p.name)::oid = ANY (l.relations) AND l.severity IN ('error', 'warning', 'info')
		GROUP BY 1 ORDER BY 1 LOOP
		RETURN NEXT;
	END LOOP;
	amount := NULL;
	others := ARRAY(SELECT o FROM nomp_crypt._other_databases() o WHERE o IS NOT NULL ORDER BY 1);
	IF cardinality(others) > 0 THEN
		object := 'databases ' || array_to_string(others, ', ');
		detail := 'they are of the same installation: a tenant of this name made there has keys of its own; erase it there, too';
		RETURN NEXT;
	END IF;
	amount := (SELECT count(*) FROM nomp_crypt._other_databases() o WHERE o IS NULL);
	IF amount > 0 THEN
		object := 'databases of other servers';
		detail := 'the installation''s file names them; a tenant of this name made there has keys of its own';
		RETURN NEXT;
	END IF;
	amount := NULL;
	object := 'what is not encrypted';
	detail := 'columns in clear beside the values, the number of rows, and the tenant''s id, name, agreement and rights';
	RETURN NEXT;
	object := 'copies of keys';
	detail := 'backups of the keystore and copies of a software token''s folder: whoever has one, and a backup of the database, reads the values';
	RETURN NEXT;
	object := 'copies of plaintext';
	detail := 'exports, logs, mail, and whatever else applications keep outside encrypted columns';
	RETURN NEXT;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.erasure_preview(text) FROM PUBLIC;

-- ---------------------------------------------------------------------------
-- Erasure: verifying, and certifying what holds
-- ---------------------------------------------------------------------------

ALTER TABLE nomp_crypt.erasure
	ADD COLUMN sample text,				-- a ciphertext of the school, as it was
	ADD COLUMN lease_acknowledged_by name,
	ADD COLUMN lease_acknowledged_at timestamptz,
	ADD COLUMN verification jsonb NOT NULL DEFAULT '{}',	-- what the last check has found
	ADD COLUMN certified_at timestamptz;

CREATE FUNCTION nomp_crypt._ask_nodes(sample text, OUT node text, OUT answer text, OUT detail text,
	OUT lease_seconds int, OUT standby boolean) RETURNS SETOF record
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_ask_nodes';
REVOKE ALL ON FUNCTION nomp_crypt._ask_nodes(text) FROM PUBLIC;

-- A ciphertext of the school's from its tables, kept with the case, so that
-- there is one to ask for when they are empty; or what looks like one, under
-- its last key. NULL if there was no key.
CREATE FUNCTION nomp_crypt._keep_sample(tenant uuid) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET nomp_crypt.tenant = '' AS $$
#variable_conflict use_column
DECLARE
	kept text;
	v record;
	bytes bytea;
BEGIN
	SELECT e.sample INTO kept FROM nomp_crypt.erasure e
	WHERE e.tenant = _keep_sample.tenant AND e.state IN ('destroyed', 'certified');
	IF kept IS NOT NULL OR NOT FOUND THEN
		RETURN kept;
	END IF;
	FOR v IN SELECT * FROM nomp_crypt._value_columns() LOOP
		PERFORM nomp_crypt._progress('certify_erasure', v.name, 'looking for a value', 'tables', 0, 0);
		EXECUTE format('SELECT @extschema@.encrypted_send(nomp_crypt._first_value(t.%1$I, $1)) FROM ONLY %2$s t
			WHERE nomp_crypt._values_of(t.%1$I, $1) > 0 LIMIT 1', v.column_name, v.relation)
		INTO bytes USING _keep_sample.tenant;
		EXIT WHEN bytes IS NOT NULL;
	END LOOP;
	PERFORM nomp_crypt._progress(NULL, NULL, NULL, NULL, NULL, NULL);
	IF bytes IS NULL THEN
		-- a node that has the key finds that it does not open, and one that has not asks no further
		SELECT '\x1001'::bytea || k.key_id || decode(repeat('00', 40), 'hex') INTO bytes
		FROM nomp_crypt.tenant_key k WHERE k.tenant = _keep_sample.tenant AND k.purpose = 'values'
		ORDER BY k.version DESC LIMIT 1;
	END IF;
	kept := 'nc1:' || translate(encode(bytes, 'base64'), E'\n', '');
	UPDATE nomp_crypt.erasure e SET sample = kept
	WHERE e.tenant = _keep_sample.tenant AND e.state IN ('destroyed', 'certified');
	RETURN kept;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._keep_sample(uuid) FROM PUBLIC;

-- The school's last finished case, locked. Raises 42704, 55000.
CREATE FUNCTION nomp_crypt._finished_case(id text) RETURNS nomp_crypt.erasure
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	c nomp_crypt.erasure;
BEGIN
	PERFORM nomp_crypt._tenant_uuid(_finished_case.id);
	SELECT e.* INTO c FROM nomp_crypt.erasure e JOIN nomp_crypt.tenant t ON t.uuid = e.tenant
	WHERE t.id = _finished_case.id AND e.state <> 'withdrawn'
	ORDER BY e.state IN ('destroyed', 'certified') DESC, e.requested_at DESC LIMIT 1;
	IF c.state IS NULL OR c.state NOT IN ('destroyed', 'certified') THEN
		RAISE EXCEPTION 'tenant "%" has not been erased', _finished_case.id
			USING ERRCODE = 'object_not_in_prerequisite_state',
			HINT = CASE WHEN c.case_id IS NULL THEN 'No erasure was asked for.' ELSE 'See nomp_crypt.erasures.' END;
	END IF;
	RETURN nomp_crypt._erase_case(c.case_id);
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._finished_case(text) FROM PUBLIC;

-- A person says that no node can have the school's keys in memory any more,
-- though the longest lease is not over. Raises 42704, 55000.
CREATE FUNCTION nomp_crypt.acknowledge_lease(case_id uuid) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	c nomp_crypt.erasure := nomp_crypt._erase_case(acknowledge_lease.case_id);
BEGIN
	IF c.state <> 'destroyed' THEN
		RAISE EXCEPTION 'erasure case % is %', c.case_id, c.state
			USING ERRCODE = 'object_not_in_prerequisite_state',
			HINT = 'This can be said between the destruction and the certificate.';
	END IF;
	UPDATE nomp_crypt.erasure e SET lease_acknowledged_by = nomp_crypt._acting_role(),
		lease_acknowledged_at = clock_timestamp()
	WHERE e.case_id = c.case_id;
	PERFORM nomp_crypt._audit_case('acknowledge_lease', c);
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.acknowledge_lease(uuid) FROM PUBLIC;

-- Check what a certificate needs, keep what was found, and certify if nothing
-- is in the way: NULL, or else what is, in words.
CREATE FUNCTION nomp_crypt._certify(id text, accept_not_asked boolean) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
	c nomp_crypt.erasure := nomp_crypt._finished_case(_certify.id);
	kept text;
	asked jsonb := '[]';
	silent text[];
	readable text[];
	standbys text[];
	lease interval := current_setting('nomp_crypt.key_lease')::interval;
	wraps bigint;
	in_the_way text[] := '{}';
BEGIN
	IF c.state = 'certified' THEN
		RAISE NOTICE 'the erasure of tenant "%" was certified at %', _certify.id, c.certified_at;
		RETURN NULL;
	END IF;
	PERFORM nomp_crypt._require_owner();
	SELECT count(*) INTO wraps FROM nomp_crypt.tenant_key k JOIN nomp_crypt.kek e ON e.uuid = k.kek
	WHERE e.tenant = c.tenant AND (k.wrapped IS NOT NULL OR k.state <> 'erased');
	IF wraps > 0 THEN
		in_the_way := in_the_way || format('%s rows of nomp_crypt.tenant_key have a wrapped key again', wraps);
	END IF;
	IF EXISTS (SELECT FROM nomp_crypt.kek k WHERE k.tenant = c.tenant AND k.state <> 'destroyed') THEN
		in_the_way := in_the_way || 'a key of nomp_crypt.kek is not marked as destroyed'::text;
	END IF;
	kept := nomp_crypt._keep_sample(c.tenant);
	IF kept IS NOT NULL THEN
		SELECT coalesce(jsonb_agg(jsonb_strip_nulls(to_jsonb(a)) ORDER BY a.node), '[]') INTO asked
		FROM nomp_crypt._ask_nodes('\x' || encode(decode(substr(kept, 5), 'base64'), 'hex')) a;
	END IF;
	silent := ARRAY(SELECT a ->> 'node' FROM jsonb_array_elements(asked) a
					WHERE a ->> 'answer' NOT IN ('NC001', 'NC003', 'NC005', 'readable') ORDER BY 1);
	-- NC005: the key is there, and the sample is not whole
	readable := ARRAY(SELECT a ->> 'node' FROM jsonb_array_elements(asked) a
					  WHERE a ->> 'answer' IN ('NC005', 'readable') ORDER BY 1);
	standbys := ARRAY(SELECT format('standby "%s"', r.application_name) FROM pg_stat_replication r
					  LEFT JOIN pg_replication_slots s ON s.active_pid = r.pid
					  WHERE r.state IS DISTINCT FROM 'backup' AND s.slot_type IS DISTINCT FROM 'logical' ORDER BY 1);
	-- a connection string and a standby cannot be told to be the same node; their numbers can
	IF (SELECT count(*) FROM jsonb_array_elements(asked) a WHERE (a ->> 'standby')::boolean) < cardinality(standbys) THEN
		silent := silent || standbys;
	END IF;
	IF cardinality(readable) > 0 THEN
		in_the_way := in_the_way || ('values can still be read on ' || array_to_string(readable, ', '));
	END IF;
	IF cardinality(silent) > 0 AND NOT accept_not_asked THEN
		in_the_way := in_the_way || ('there is no answer from ' || array_to_string(silent, ', '));
	END IF;
	SELECT greatest(lease, max(make_interval(secs => (a ->> 'lease_seconds')::int)),
		CASE WHEN cardinality(silent) > 0 THEN interval '24 hours' END) INTO lease
	FROM jsonb_array_elements(asked) a;
	IF clock_timestamp() < c.destroyed_at + lease AND c.lease_acknowledged_at IS NULL THEN
		in_the_way := in_the_way || format('a node that nobody knows of may have a key in memory until %s', c.destroyed_at + lease);
	END IF;
	UPDATE nomp_crypt.erasure e SET
		verification = jsonb_strip_nulls(jsonb_build_object('at', clock_timestamp(), 'by', nomp_crypt._acting_role(),
			'sample', CASE WHEN kept IS NULL THEN 'none' ELSE 'kept' END,
			'nodes', asked, 'not_asked', to_jsonb(silent), 'longest_lease', lease,
			'lease_acknowledged_by', c.lease_acknowledged_by, 'lease_acknowledged_at', c.lease_acknowledged_at,
			'in_the_way', CASE WHEN in_the_way <> '{}' THEN to_jsonb(in_the_way) END)),
		state = CASE WHEN in_the_way = '{}' THEN 'certified' ELSE e.state END,
		certified_at = CASE WHEN in_the_way = '{}' THEN clock_timestamp() END
	WHERE e.case_id = c.case_id;
	IF in_the_way <> '{}' THEN
		RETURN array_to_string(in_the_way, '; ');
	END IF;
	PERFORM nomp_crypt._audit_case('certify_erasure', c, jsonb_build_object('not_asked', to_jsonb(silent)));
	PERFORM nomp_crypt.certificate(c.case_id);
	RETURN NULL;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._certify(text, boolean) FROM PUBLIC;

-- A finished erasure is certified if nothing wraps under its keys, a value of
-- the school can be read on none of nomp_crypt.nodes and the longest lease is
-- over or acknowledged. Nodes that do not answer are in the way, or, with
-- accept_not_asked, named in the certificate. What was found is kept either
-- way. Raises 2D000 inside a transaction block, 42704, 55000.
-- It commits, so its search_path is the caller's: every name is qualified.
CREATE PROCEDURE nomp_crypt.certify_erasure(id text, accept_not_asked boolean DEFAULT false)
LANGUAGE plpgsql AS $$
DECLARE
	in_the_way pg_catalog.text;
BEGIN
	COMMIT;		-- refuses a transaction block before anything was made
	in_the_way := nomp_crypt._certify(id, accept_not_asked);
	COMMIT;
	IF in_the_way IS NOT NULL THEN
		RAISE EXCEPTION 'the erasure of tenant "%" cannot be certified: %', id, in_the_way
			USING ERRCODE = 'object_not_in_prerequisite_state',
			HINT = 'See nomp_crypt.erasure.verification. Repeat the call; nomp_crypt.acknowledge_lease() and accept_not_asked => true put a person''s word on record.';
	END IF;
END
$$;
REVOKE ALL ON PROCEDURE nomp_crypt.certify_erasure(text, boolean) FROM PUBLIC;

-- ---------------------------------------------------------------------------
-- Erasure: removing what cannot be read any more, with the caller's own rights
-- ---------------------------------------------------------------------------

-- What refers to the relation, or to the partitioned table that it is of: for
-- each foreign key the condition that a child row "c" refers to the row "p".
CREATE FUNCTION nomp_crypt._referrers(relation regclass, OUT child regclass, OUT parent regclass, OUT constraint_name name,
	OUT action "char", OUT condition text) RETURNS SETOF record
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT f.conrelid::regclass, f.confrelid::regclass, f.conname, f.confdeltype,
		(SELECT string_agg(format('c.%I OPERATOR(%I.%s) p.%I', ca.attname, n.nspname, o.oprname, pa.attname), ' AND ')
		 FROM unnest(f.conkey, f.confkey, f.conpfeqop) k(child, parent, operator)
		 JOIN pg_attribute ca ON ca.attrelid = f.conrelid AND ca.attnum = k.child
		 JOIN pg_attribute pa ON pa.attrelid = f.confrelid AND pa.attnum = k.parent
		 JOIN pg_operator o ON o.oid = k.operator JOIN pg_namespace n ON n.oid = o.oprnamespace)
	FROM pg_constraint f
	WHERE f.contype = 'f' AND f.conparentid = 0
		AND f.confrelid IN (SELECT $1 UNION SELECT a FROM pg_partition_ancestors($1) a)
	ORDER BY f.conrelid::regclass::text, f.conname
$$;
REVOKE ALL ON FUNCTION nomp_crypt._referrers(regclass) FROM PUBLIC;

-- That any column of the alias's row has a value of tenant $1.
CREATE FUNCTION nomp_crypt._owned(relation regclass, alias text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT coalesce(string_agg(format('nomp_crypt._values_of(%I.%I, $1) > 0', $2, a.attname), ' OR ' ORDER BY a.attnum), 'false')
	FROM pg_attribute a WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped AND nomp_crypt._holds_values(a.atttypid)
$$;
REVOKE ALL ON FUNCTION nomp_crypt._owned(regclass, text) FROM PUBLIC;

-- Relations with values of the school, those that refer to others first.
CREATE FUNCTION nomp_crypt._purge_order(relations oid[]) RETURNS SETOF regclass
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	remaining oid[] := relations;
	next oid;
BEGIN
	WHILE cardinality(remaining) > 0 LOOP
		-- one that no other of them refers to; in a circle, any
		SELECT r INTO next FROM unnest(remaining) WITH ORDINALITY u(r, n)
		ORDER BY EXISTS (SELECT FROM nomp_crypt._referrers(r) f, unnest(remaining) o
			WHERE o <> r AND (f.child = o OR f.child IN (SELECT a FROM pg_partition_ancestors(o) a))), n LIMIT 1;
		RETURN NEXT next::regclass;
		remaining := array_remove(remaining, next);
	END LOOP;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._purge_order(oid[]) FROM PUBLIC;

-- One sentence for each foreign key by which rows that are not the school's
-- depend on rows that are.
CREATE FUNCTION nomp_crypt._purge_dependents(tenant uuid, relations oid[]) RETURNS SETOF text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp SET nomp_crypt.tenant = '' SET row_security = off AS $$
DECLARE
	r regclass;
	f record;
	n bigint;
BEGIN
	FOREACH r IN ARRAY relations LOOP
		FOR f IN SELECT * FROM nomp_crypt._referrers(r) LOOP
			EXECUTE format('SELECT count(*) FROM %s c WHERE NOT (%s) AND EXISTS (SELECT FROM ONLY %s p WHERE (%s) AND %s)',
				f.child, nomp_crypt._owned(f.child, 'c'), r, nomp_crypt._owned(r, 'p'), f.condition)
			INTO n USING tenant;
			IF n > 0 THEN
				RETURN NEXT format('%s rows of %s depend on rows of %s by %I (ON DELETE %s).', n, f.child, r, f.constraint_name,
					CASE f.action WHEN 'a' THEN 'NO ACTION' WHEN 'r' THEN 'RESTRICT' WHEN 'c' THEN 'CASCADE'
						WHEN 'n' THEN 'SET NULL' ELSE 'SET DEFAULT' END);
			END IF;
		END LOOP;
	END LOOP;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._purge_dependents(uuid, oid[]) FROM PUBLIC;

-- Delete the rows of other tables that refer to rows "p" of this one which
-- meet the condition, those that refer to them first; where PostgreSQL takes
-- the reference away by itself, leave them. $1 to $3 are the caller's.
CREATE FUNCTION nomp_crypt._purge_children(relation regclass, condition text, tenant uuid, first tid, last tid, path name[])
RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp SET nomp_crypt.tenant = '' SET row_security = off AS $$
DECLARE
	f record;
	inner_condition text;
BEGIN
	FOR f IN SELECT * FROM nomp_crypt._referrers(relation) LOOP
		CONTINUE WHEN f.action IN ('n', 'd') OR f.constraint_name = ANY (path);	-- a circle ends where it began
		inner_condition := format('EXISTS (SELECT FROM ONLY %s p WHERE (%s) AND %s)', relation, condition, f.condition);
		IF f.child <> relation THEN
			PERFORM nomp_crypt._purge_children(f.child,
				format('EXISTS (SELECT FROM %s c WHERE c.tableoid = p.tableoid AND c.ctid = p.ctid AND %s)', f.child, inner_condition),
				tenant, first, last, path || f.constraint_name);
		END IF;
		EXECUTE format('DELETE FROM %s c WHERE %s', f.child, inner_condition) USING tenant, first, last;
	END LOOP;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._purge_children(regclass, text, uuid, tid, tid, name[]) FROM PUBLIC;

-- Remove the school's values, or its rows, in some blocks; how many rows.
CREATE FUNCTION nomp_crypt._purge_batch(relation regclass, tenant uuid, mode text, dependents boolean,
	from_block bigint, blocks bigint) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp SET nomp_crypt.tenant = '' SET row_security = off AS $$
DECLARE
	first tid := format('(%s,0)', from_block)::tid;
	last tid := format('(%s,0)', from_block + blocks)::tid;
	columns name[];
	removed bigint;
	more bigint;
	range text := '%1$s.ctid >= $2 AND %1$s.ctid < $3 AND (%2$s)';
BEGIN
	IF mode = 'rows' THEN
		IF dependents THEN
			PERFORM nomp_crypt._purge_children(relation, format(range, 'p', nomp_crypt._owned(relation, 'p')), tenant, first, last, '{}');
		END IF;
		EXECUTE format('DELETE FROM ONLY %s t WHERE %s', relation, format(range, 't', nomp_crypt._owned(relation, 't')))
		USING tenant, first, last;
		GET DIAGNOSTICS removed = ROW_COUNT;
		RETURN removed;
	END IF;
	columns := ARRAY(SELECT v.column_name FROM nomp_crypt._value_columns() v
					 WHERE v.relation = _purge_batch.relation AND NOT v.generated ORDER BY v.place);
	-- rows that are the school's altogether at once, then what is left, column by column
	EXECUTE format('UPDATE ONLY %s t SET %s WHERE %s AND %s', relation,
		(SELECT string_agg(format('%I = NULL', c), ', ') FROM unnest(columns) c),
		format(range, 't', nomp_crypt._owned(relation, 't')),
		(SELECT string_agg(format('nomp_crypt._values_of(t.%1$I, $1) = nomp_crypt._values_of(t.%1$I, NULL)', c), ' AND ') FROM unnest(columns) c))
	USING tenant, first, last;
	GET DIAGNOSTICS removed = ROW_COUNT;
	FOR i IN 1 .. cardinality(columns) LOOP
		EXECUTE format('UPDATE ONLY %1$s t SET %2$I = NULL WHERE t.ctid >= $2 AND t.ctid < $3 AND nomp_crypt._values_of(t.%2$I, $1) > 0
			AND nomp_crypt._values_of(t.%2$I, $1) = nomp_crypt._values_of(t.%2$I, NULL)', relation, columns[i])
		USING tenant, first, last;
		GET DIAGNOSTICS more = ROW_COUNT;
		removed := removed + more;
	END LOOP;
	RETURN removed;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._purge_batch(regclass, uuid, text, boolean, bigint, bigint) FROM PUBLIC;

-- The relations with values of the school; refuses what cannot be done.
CREATE FUNCTION nomp_crypt._purge_plan(id text, mode text, dependents boolean, OUT tenant uuid, OUT relations oid[])
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	c nomp_crypt.erasure := nomp_crypt._finished_case(id);
	trouble text[];
	v record;
BEGIN
	IF mode IS NULL OR mode NOT IN ('values', 'rows') THEN
		RAISE EXCEPTION 'unknown mode "%"', mode USING ERRCODE = 'invalid_parameter_value',
			HINT = 'Modes are values, which become NULL, and rows, which are deleted.';
	END IF;
	tenant := c.tenant;
	PERFORM nomp_crypt._keep_sample(tenant);
	relations := '{}';
	trouble := '{}';
	FOR v IN SELECT n.relation, n.name, n.column_name, d.not_null, d.kind FROM nomp_crypt._count_values(tenant, 'purge_tenant') n
			 LEFT JOIN nomp_crypt._value_columns() d ON d.relation = n.relation AND d.column_name = n.column_name
			 WHERE n.amount > 0 LOOP
		IF v.kind = 'm' THEN
			RAISE NOTICE '% is a materialized view: refresh it afterwards', v.name;
		ELSIF v.column_name IS NULL THEN
			relations := relations || v.relation::oid;
		ELSIF v.not_null AND mode = 'values' THEN
			trouble := trouble || format('%s.%I', v.name, v.column_name);
		END IF;
	END LOOP;
	relations := ARRAY(SELECT r FROM unnest(relations) r JOIN pg_class k ON k.oid = r WHERE k.relkind = 'r');
	IF trouble <> '{}' THEN
		RAISE EXCEPTION 'values in columns that are NOT NULL cannot be removed alone: %', array_to_string(trouble, ', ')
			USING ERRCODE = 'not_null_violation',
			HINT = 'Nothing was changed. Remove the rows: mode => ''rows''. Or drop the constraints first.';
	END IF;
	IF mode = 'rows' AND NOT dependents THEN
		trouble := ARRAY(SELECT nomp_crypt._purge_dependents(tenant, relations));
		IF trouble <> '{}' THEN
			RAISE EXCEPTION 'other rows depend on those of tenant "%"', id
				USING ERRCODE = 'foreign_key_violation', DETAIL = array_to_string(trouble, chr(10)),
				HINT = 'Nothing was changed. With dependents => true they are deleted, too.';
		END IF;
	END IF;
	relations := ARRAY(SELECT nomp_crypt._purge_order(relations)::oid);
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._purge_plan(text, text, boolean) FROM PUBLIC;

-- After its erasure, remove what cannot be read of a school any more: its
-- values, which become NULL, or the rows that have any. With the caller's
-- rights on the tables; triggers fire. In batches of blocks, a transaction
-- each: repeat it after an interruption. Rows of other tables that depend on
-- those to be deleted are named first (23503) and deleted if told so. Returns
-- how many rows were changed or deleted. Raises 2D000 inside a transaction
-- block, 22023, 42704, 55000 if the school is not erased, 23502 for values in
-- NOT NULL columns, 42501.
-- It commits, so its search_path is the caller's: every name is qualified.
CREATE PROCEDURE nomp_crypt.purge_tenant(id text, mode text DEFAULT 'values', dependents boolean DEFAULT false,
	batch_blocks int DEFAULT 128, INOUT purged bigint DEFAULT NULL)
LANGUAGE plpgsql AS $$
DECLARE
	plan pg_catalog.record;
	one pg_catalog.oid;
	blocks pg_catalog.int8;
	at pg_catalog.int8;
	left_over pg_catalog.int8;
BEGIN
	COMMIT;		-- refuses a transaction block before anything was changed
	IF (batch_blocks OPERATOR(pg_catalog.>) 0) IS NOT TRUE THEN
		RAISE EXCEPTION 'batch_blocks must be positive' USING ERRCODE = 'invalid_parameter_value';
	END IF;
	SELECT * INTO plan FROM nomp_crypt._purge_plan(id, mode, dependents);
	COMMIT;
	purged := 0;
	FOREACH one IN ARRAY plan.relations LOOP
		blocks := pg_catalog.pg_relation_size(one::pg_catalog.regclass) OPERATOR(pg_catalog./)
			pg_catalog.current_setting('block_size')::pg_catalog.int8;
		at := 0;
		WHILE at OPERATOR(pg_catalog.<) blocks LOOP
			purged := purged OPERATOR(pg_catalog.+)
				nomp_crypt._purge_batch(one::pg_catalog.regclass, plan.tenant, mode, dependents, at, batch_blocks);
			at := at OPERATOR(pg_catalog.+) batch_blocks;
			COMMIT;
			PERFORM nomp_crypt._progress('purge_tenant', one::pg_catalog.regclass::pg_catalog.text, 'removing', 'blocks',
				least(at, blocks), blocks);
		END LOOP;
	END LOOP;
	SELECT pg_catalog.sum(c.amount) INTO left_over FROM nomp_crypt._count_values(plan.tenant, 'purge_tenant') c
	WHERE c.column_name IS NOT NULL;
	IF left_over OPERATOR(pg_catalog.>) 0 THEN
		RAISE NOTICE '% values of the tenant are left: beside other tenants'' in arrays or composites, in materialized views, or written meanwhile', left_over;
	END IF;
	PERFORM nomp_crypt._purged(plan.tenant, mode, purged);
	COMMIT;
END
$$;
REVOKE ALL ON PROCEDURE nomp_crypt.purge_tenant(text, text, boolean, int, bigint) FROM PUBLIC;

CREATE FUNCTION nomp_crypt._purged(tenant uuid, mode text, "rows" bigint) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT nomp_crypt._audit_case('purge_tenant', e, jsonb_build_object('mode', $2, 'rows', $3))
	FROM nomp_crypt.erasure e WHERE e.tenant = $1 AND e.state IN ('destroyed', 'certified')
$$;
REVOKE ALL ON FUNCTION nomp_crypt._purged(uuid, text, bigint) FROM PUBLIC;

-- ---------------------------------------------------------------------------
-- Reports: after a leak, and for a municipality's audit
-- ---------------------------------------------------------------------------

-- If a backup of that time and a key of the keystore came into the same hands:
-- a row for each key that the backup needs, with the school that it opens, and
-- one for each column, with what is known of it at that time.
CREATE FUNCTION nomp_crypt.exposure_report(as_of timestamptz, OUT kind text, OUT tenant text, OUT object text,
	OUT keystore text, OUT since timestamptz, OUT destroyed_at timestamptz, OUT exposed boolean, OUT detail text)
RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
	k record;
	col record;
BEGIN
	IF as_of IS NULL OR as_of > clock_timestamp() THEN
		RAISE EXCEPTION 'a time in the past is needed' USING ERRCODE = 'invalid_parameter_value';
	END IF;
	kind := 'key';
	FOR k IN SELECT t.id, t.state AS school_state, e.* FROM nomp_crypt.tenant t JOIN nomp_crypt.kek e ON e.tenant = t.uuid
			 -- one that was replaced just before is in the WAL that goes with the backup
			 WHERE e.created_at <= as_of AND coalesce(e.retired_at, 'infinity') >= as_of - interval '1 day'
				AND coalesce(e.destroyed_at, 'infinity') > as_of
			 ORDER BY t.id, e.generation LOOP
		tenant := k.id;
		object := k.label;
		keystore := k.keystore;
		since := k.created_at;
		destroyed_at := k.destroyed_at;
		exposed := k.destroyed_at IS NULL;
		detail := CASE WHEN k.destroyed_at IS NOT NULL THEN 'destroyed since: the backup''s values of this school cannot be read'
			WHEN k.retired_at < as_of THEN 'replaced shortly before; older values in the backup''s WAL may need it'
			WHEN k.retired_at IS NOT NULL THEN format('replaced since, kept until %s: the backup needs it', k.destroy_after)
			WHEN k.school_state <> 'active' THEN 'the school is ' || k.school_state || '; the key is there'
			ELSE 'in use' END;
		RETURN NEXT;
	END LOOP;
	kind := 'column';
	tenant := NULL;
	keystore := NULL;
	destroyed_at := NULL;
	FOR col IN SELECT v.name, v.column_name FROM nomp_crypt._value_columns() v LOOP
		object := format('%s.%I', col.name, col.column_name);
		SELECT i.encrypted_on_disk_since, i.encrypted_on_disk_since > exposure_report.as_of, CASE
				WHEN i.encrypted_on_disk_since <= exposure_report.as_of THEN 'encrypted then: readable with the keys above only'
				WHEN i.encrypted_on_disk_since > exposure_report.as_of THEN 'plain then, in part or all of it: readable without a key' ELSE i.state END
		INTO since, exposed, detail
		FROM nomp_crypt.inventory i WHERE i.table_name = col.name AND i.column_name = col.column_name;
		RETURN NEXT;
	END LOOP;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.exposure_report(timestamptz) FROM PUBLIC;

-- The words of tenant_report, in escapes: the script has to load into
-- databases of every encoding.
CREATE FUNCTION nomp_crypt._report_words(language text) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $do$
	SELECT CASE $1 WHEN 'en' THEN $${
		"title": "Report on a school's encrypted data", "lead": "What is encrypted and since when, with which keys, and who may read it, on {at}.",
		"unsigned": "This is what database \"{database}\" of installation {installation} says. It is not signed: what became of keys is proved by the register and by certificates.",
		"tenant": "School", "id": "Id", "name": "Name", "agreement": "Agreement", "state": "State", "since": "Registered",
		"active": "in use", "suspended": "suspended: nobody can read the values", "fenced": "being erased: nobody can read the values", "erased": "erased: nobody can ever read the values again",
		"encryption": "Encryption", "method": "Method", "aes": "AES-256-GCM for each value (XAES-256-GCM), under data keys of this school alone; these are wrapped by keys that never leave the keystore",
		"keks": "Keys in the keystore", "generation": "Generation %s in %s", "made": "made %s", "retired": "replaced %s", "kept": "kept for backups until %s", "destroyed": "destroyed %s",
		"deks": "Data keys", "version": "Version %s (%s)", "values": "values", "index": "search", "closed": "closed for writing", "key_erased": "destroyed", "key_active": "in use",
		"columns": "Encrypted columns", "column_since": "encrypted on disk since %s", "column_unknown": "since when is not known",
		"rights": "Who may read", "all": "in all schools", "granted": "%s: %s, granted %s by %s", "decrypt": "read", "encrypt": "write", "search": "search", "load": "store ciphertext", "none": "nobody",
		"members": "and its members: %s", "superusers": "Superusers", "may_grant": "%s: can give themselves these rights, which leaves a trace",
		"erasure": "Erasure", "requested": "asked for %s by %s (%s)", "next": "Next", "holds": "Legal holds", "hold": "%s, since %s", "by_register": "by the register", "returned": "Data returned"}$$::jsonb
	WHEN 'sv' THEN $${
		"title": "Rapport om en skolas krypterade uppgifter", "lead": "Vad som \u00e4r krypterat och sedan n\u00e4r, med vilka nycklar, och vem som f\u00e5r l\u00e4sa, den {at}.",
		"unsigned": "S\u00e5 s\u00e4ger databasen \"{database}\" i installation {installation}. Rapporten \u00e4r inte signerad: vad som h\u00e4nt med nycklar bevisas av registret och av intyg.",
		"tenant": "Skola", "id": "Id", "name": "Namn", "agreement": "Avtal", "state": "Tillst\u00e5nd", "since": "Upplagd",
		"active": "i bruk", "suspended": "sp\u00e4rrad: ingen kan l\u00e4sa uppgifterna", "fenced": "h\u00e5ller p\u00e5 att raderas: ingen kan l\u00e4sa uppgifterna", "erased": "raderad: ingen kan n\u00e5gonsin mer l\u00e4sa uppgifterna",
		"encryption": "Kryptering", "method": "Metod", "aes": "AES-256-GCM f\u00f6r varje v\u00e4rde (XAES-256-GCM), med datanycklar som \u00e4r skolans egna; dessa \u00e4r krypterade med nycklar som aldrig l\u00e4mnar nyckelf\u00f6rvaret",
		"keks": "Nycklar i nyckelf\u00f6rvaret", "generation": "Generation %s i %s", "made": "skapad %s", "retired": "ersatt %s", "kept": "bevaras f\u00f6r s\u00e4kerhetskopior till %s", "destroyed": "f\u00f6rst\u00f6rd %s",
		"deks": "Datanycklar", "version": "Version %s (%s)", "values": "uppgifter", "index": "s\u00f6kning", "closed": "anv\u00e4nds inte l\u00e4ngre f\u00f6r skrivning", "key_erased": "f\u00f6rst\u00f6rd", "key_active": "i bruk",
		"columns": "Krypterade kolumner", "column_since": "krypterad p\u00e5 disk sedan %s", "column_unknown": "sedan n\u00e4r \u00e4r inte k\u00e4nt",
		"rights": "Vem som f\u00e5r l\u00e4sa", "all": "i alla skolor", "granted": "%s: %s, gavs %s av %s", "decrypt": "l\u00e4sa", "encrypt": "skriva", "search": "s\u00f6ka", "load": "lagra chiffertext", "none": "ingen",
		"members": "och dess medlemmar: %s", "superusers": "Superanv\u00e4ndare", "may_grant": "%s: kan ge sig sj\u00e4lva dessa r\u00e4ttigheter, vilket l\u00e4mnar sp\u00e5r",
		"erasure": "Radering", "requested": "beg\u00e4rd %s av %s (%s)", "next": "N\u00e4sta steg", "holds": "R\u00e4ttsliga sp\u00e4rrar mot radering", "hold": "%s, sedan %s", "by_register": "enligt registret", "returned": "Uppgifterna \u00e5terl\u00e4mnade"}$$::jsonb
	END
$do$;
REVOKE ALL ON FUNCTION nomp_crypt._report_words(text) FROM PUBLIC;

CREATE FUNCTION nomp_crypt._report_time(at timestamptz) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$ SELECT to_char($1, 'YYYY-MM-DD HH24:MI TZ') $$;
REVOKE ALL ON FUNCTION nomp_crypt._report_time(timestamptz) FROM PUBLIC;

-- For a municipality's audit: what is encrypted since when, with which keys,
-- who may read, and in what state the school is; in Swedish or English, with
-- the session's time zone.
-- Raises 22023, 42704.
CREATE FUNCTION nomp_crypt.tenant_report(id text, language text DEFAULT 'sv', OUT section text, OUT item text, OUT value text)
RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
	t nomp_crypt.tenant;
	w jsonb := nomp_crypt._report_words(language);
	r record;
	since timestamptz;
BEGIN
	IF w IS NULL THEN
		RAISE EXCEPTION 'unknown language "%"', language USING ERRCODE = 'invalid_parameter_value',
			HINT = 'Languages are sv and en.';
	END IF;
	SELECT x.* INTO t FROM nomp_crypt.tenant x WHERE x.uuid = nomp_crypt._tenant_uuid(tenant_report.id);
	section := w ->> 'tenant';
	FOR item, value IN VALUES (w ->> 'id', t.id), ('UUID', t.uuid::text), (w ->> 'name', t.display_name),
			(w ->> 'agreement', t.agreement), (w ->> 'state', w ->> t.state), (w ->> 'since', nomp_crypt._report_time(t.created_at)) LOOP
		CONTINUE WHEN value IS NULL;
		RETURN NEXT;
	END LOOP;
	section := w ->> 'encryption';
	item := w ->> 'method';
	value := w ->> 'aes';
	RETURN NEXT;
	section := w ->> 'keks';
	FOR r IN SELECT k.* FROM nomp_crypt.kek k WHERE k.tenant = t.uuid ORDER BY k.generation LOOP
		item := format(w ->> 'generation', r.generation, r.keystore);
		value := concat_ws(', ', format(w ->> 'made', nomp_crypt._report_time(r.created_at)),
			CASE WHEN r.retired_at IS NOT NULL THEN format(w ->> 'retired', nomp_crypt._report_time(r.retired_at)) END,
			CASE WHEN r.state = 'retired' THEN format(w ->> 'kept', nomp_crypt._report_time(r.destroy_after)) END,
			CASE WHEN r.destroyed_at IS NOT NULL THEN format(w ->> 'destroyed', nomp_crypt._report_time(r.destroyed_at)) END);
		RETURN NEXT;
	END LOOP;
	section := w ->> 'deks';
	FOR r IN SELECT k.* FROM nomp_crypt.tenant_key k WHERE k.tenant = t.uuid ORDER BY k.purpose DESC, k.version LOOP
		item := format(w ->> 'version', r.version, w ->> r.purpose);
		value := concat_ws(', ', format(w ->> 'made', nomp_crypt._report_time(r.created_at)),
			CASE r.state WHEN 'active' THEN w ->> 'key_active' WHEN 'closed' THEN w ->> 'closed' ELSE w ->> 'key_erased' END);
		RETURN NEXT;
	END LOOP;
	section := w ->> 'columns';
	FOR r IN SELECT v.name, v.column_name, format_type(a.atttypid, a.atttypmod) AS type
			 FROM nomp_crypt._value_columns() v JOIN pg_attribute a ON a.attrelid = v.relation AND a.attnum = v.place LOOP
		item := format('%s.%I', r.name, r.column_name);
		SELECT i.encrypted_on_disk_since INTO since
		FROM nomp_crypt.inventory i WHERE i.table_name = r.name AND i.column_name = r.column_name;
		value := concat_ws(', ', r.type, CASE WHEN since IS NULL THEN w ->> 'column_unknown' ELSE format(w ->> 'column_since', nomp_crypt._report_time(since)) END);
		RETURN NEXT;
	END LOOP;
	section := w ->> 'rights';
	item := w ->> 'none';
	FOR r IN SELECT g.* FROM nomp_crypt.tenant_right g
			 WHERE g.tenant IN (t.uuid, '00000000-0000-0000-0000-000000000000') ORDER BY g.role, g.tenant LOOP
		item := r.role;
		value := format(w ->> 'granted', CASE WHEN r.tenant = t.uuid THEN t.id ELSE w ->> 'all' END,
			concat_ws(', ', CASE WHEN r.decrypt THEN w ->> 'decrypt' END, CASE WHEN r.encrypt THEN w ->> 'encrypt' END,
				CASE WHEN r.search THEN w ->> 'search' END, CASE WHEN r.load THEN w ->> 'load' END),
				nomp_crypt._report_time(r.granted_at), r.granted_by)
			|| coalesce(', ' || (SELECT format(w ->> 'members', string_agg(m.rolname, ', ' ORDER BY m.rolname))
				FROM pg_roles m JOIN pg_roles g ON g.rolname = r.role
				WHERE m.oid <> g.oid AND NOT m.rolsuper AND pg_has_role(m.oid, g.oid, 'USAGE')
				HAVING count(*) > 0), '');
		RETURN NEXT;
	END LOOP;
	IF item = w ->> 'none' THEN
		value := NULL;
		RETURN NEXT;
	END IF;
	item := w ->> 'superusers';
	value := format(w ->> 'may_grant', (SELECT string_agg(m.rolname, ', ' ORDER BY m.rolname) FROM pg_roles m WHERE m.rolsuper));
	RETURN NEXT;
	section := w ->> 'holds';
	FOR r IN SELECT l.* FROM nomp_crypt.legal_hold l WHERE l.tenant = t.uuid AND l.released_at IS NULL ORDER BY l.placed_at LOOP
		item := r.reference;
		value := format(w ->> 'hold', coalesce(r.placed_by, w ->> 'by_register'), nomp_crypt._report_time(r.placed_at));
		RETURN NEXT;
	END LOOP;
	section := w ->> 'erasure';
	FOR r IN SELECT e.* FROM nomp_crypt.erasure e WHERE e.tenant = t.uuid ORDER BY e.requested_at LOOP
		item := r.case_id::text;
		value := concat_ws(', ', format(w ->> 'requested', nomp_crypt._report_time(r.requested_at), r.requested_by, concat_ws(', ', r.reason, r.reference)), r.state,
			CASE WHEN r.destroyed_at IS NOT NULL THEN format(w ->> 'destroyed', nomp_crypt._report_time(r.destroyed_at)) END);
		RETURN NEXT;
	END LOOP;
	FOR r IN SELECT d.* FROM nomp_crypt.data_return d WHERE d.tenant = t.uuid ORDER BY d.recorded_at LOOP
		item := w ->> 'returned';
		value := concat_ws(', ', nomp_crypt._report_time(r.recorded_at), r.recorded_by, coalesce(r.manifest_sha256, '-'));
		RETURN NEXT;
	END LOOP;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.tenant_report(text, text) FROM PUBLIC;

-- ---------------------------------------------------------------------------
-- Foreign tables
-- ---------------------------------------------------------------------------

-- postgres_fdw's handler, for a wrapper whose tables send and receive values
-- as they are stored, inside a tenant too. Raises 58P01 without postgres_fdw.
CREATE FUNCTION nomp_crypt.postgres_fdw_handler() RETURNS fdw_handler
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_postgres_fdw_handler';
REVOKE ALL ON FUNCTION nomp_crypt.postgres_fdw_handler() FROM PUBLIC;

-- ---------------------------------------------------------------------------
-- Watching: statistics of this node, and health(). For superusers, for
-- administrators and for members of pg_monitor; no secret, no path, no value.
-- ---------------------------------------------------------------------------

CREATE FUNCTION nomp_crypt._stat_keystore(OUT keystore text,
	OUT unwraps bigint, OUT checks bigint, OUT creates bigint, OUT destroys bigint, OUT others bigint,
	OUT renewals bigint, OUT timeouts bigint, OUT helper_failures bigint, OUT login_failures bigint,
	OUT token_failures bigint, OUT module_failures bigint, OUT absent_keys bigint,
	OUT damaged_keys bigint, OUT refusals bigint,
	OUT p50_ms float8, OUT p95_ms float8, OUT p99_ms float8, OUT max_ms float8,
	OUT queue bigint, OUT queue_longest bigint, OUT waiting bigint, OUT helper_restarts bigint,
	OUT last_ok timestamptz, OUT last_failed timestamptz, OUT since timestamptz) RETURNS SETOF record
LANGUAGE c VOLATILE ROWS 1 AS 'MODULE_PATHNAME', 'nc_stat_keystore';
REVOKE ALL ON FUNCTION nomp_crypt._stat_keystore() FROM PUBLIC;
CREATE FUNCTION nomp_crypt._stat_keyring(OUT entries bigint, OUT capacity bigint,
	OUT hits bigint, OUT misses bigint, OUT evictions bigint, OUT expirations bigint,
	OUT revocations bigint, OUT soonest_lease_end timestamptz)
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'nc_stat_keyring';
REVOKE ALL ON FUNCTION nomp_crypt._stat_keyring() FROM PUBLIC;
CREATE FUNCTION nomp_crypt._keyring_uses(OUT tenant uuid, OUT lease_end timestamptz,
	OUT used_at timestamptz, OUT busyness bigint) RETURNS SETOF record
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'nc_keyring_uses';
REVOKE ALL ON FUNCTION nomp_crypt._keyring_uses() FROM PUBLIC;

CREATE VIEW nomp_crypt.stat_keystore AS SELECT * FROM nomp_crypt._stat_keystore();
COMMENT ON VIEW nomp_crypt.stat_keystore IS 'one row per keystore: what this node asked it and what became of it';
CREATE VIEW nomp_crypt.stat_keyring AS SELECT * FROM nomp_crypt._stat_keyring();
COMMENT ON VIEW nomp_crypt.stat_keyring IS 'the unwrapped keys in this node''s memory';

-- Three sequential scans and hash joins, whatever the number of schools.
CREATE VIEW nomp_crypt.stat_tenants AS
SELECT t.id, t.uuid, t.state, coalesce(u.keys, 0) AS cached_keys, u.lease_end, u.last_used,
	k.version AS key_version, now() - k.created_at AS key_age,
	g.generation AS kek_generation, now() - g.created_at AS kek_age,
	a.read, a.written, a.searched
FROM nomp_crypt.tenant t
LEFT JOIN (SELECT tenant, count(*) AS keys, min(lease_end) AS lease_end, max(used_at) AS last_used
		   FROM nomp_crypt._keyring_uses() GROUP BY tenant) u ON u.tenant = t.uuid
LEFT JOIN (SELECT DISTINCT ON (tenant) tenant, version, created_at FROM nomp_crypt.tenant_key
		   WHERE purpose = 'values' AND state = 'active' ORDER BY tenant, version DESC) k ON k.tenant = t.uuid
LEFT JOIN (SELECT DISTINCT ON (tenant) tenant, generation, created_at FROM nomp_crypt.kek
		   WHERE state = 'active' ORDER BY tenant, generation DESC) g ON g.tenant = t.uuid
LEFT JOIN (SELECT tenant, sum(read)::bigint AS read, sum(written)::bigint AS written,
				  sum(searched)::bigint AS searched
		   FROM nomp_crypt._access() GROUP BY tenant) a ON a.tenant = t.id AND t.state <> 'erased';
COMMENT ON VIEW nomp_crypt.stat_tenants IS 'one row per school: its keys, and their use on this node';

CREATE FUNCTION nomp_crypt._server_facts(OUT library text, OUT broker boolean, OUT protected boolean,
	OUT cores boolean, OUT swap boolean, OUT register_beside_data boolean)
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'nc_server_facts';
REVOKE ALL ON FUNCTION nomp_crypt._server_facts() FROM PUBLIC;
CREATE FUNCTION nomp_crypt._pin_file(OUT trouble text, OUT changed timestamptz) RETURNS SETOF record
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'nc_pin_file';
REVOKE ALL ON FUNCTION nomp_crypt._pin_file() FROM PUBLIC;

-- The server's settings and those of roles and databases: what can be in force
-- somewhere. The server's own is not shown where the caller's role or database
-- has another; it is in the files then.
CREATE FUNCTION nomp_crypt._settings_anywhere(OUT name text, OUT value text, OUT place text) RETURNS SETOF record
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT s.name, s.reset_val, 'the server' FROM pg_settings s WHERE s.source NOT IN ('database', 'user', 'database user')
	UNION ALL
	SELECT s.name, coalesce((SELECT f.setting FROM pg_file_settings f WHERE f.name = s.name AND f.applied), s.boot_val), 'the server'
	FROM pg_settings s WHERE s.source IN ('database', 'user', 'database user')
	UNION ALL
	SELECT split_part(c, '=', 1), substr(c, strpos(c, '=') + 1), concat_ws(' in ', 'role ' || quote_ident(r.rolname), 'database ' || quote_ident(b.datname))
	FROM pg_db_role_setting d CROSS JOIN unnest(d.setconfig) c
	LEFT JOIN pg_roles r ON r.oid = d.setrole LEFT JOIN pg_database b ON b.oid = d.setdatabase
$$;
REVOKE ALL ON FUNCTION nomp_crypt._settings_anywhere() FROM PUBLIC;

-- Those that let values get into the log, with statements, plans or parameters,
-- into what is logged of errors, or into the statistics of statements.
CREATE FUNCTION nomp_crypt._telling_settings(OUT tells text, OUT name text, OUT value text, OUT place text) RETURNS SETOF record
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT t.tells, s.name, s.value, s.place FROM nomp_crypt._settings_anywhere() s, LATERAL (SELECT CASE
		WHEN (s.name = 'log_statement' AND s.value IN ('mod', 'all'))
			OR (s.name IN ('log_min_duration_statement', 'log_min_duration_sample') AND s.value !~ '^\s*-')
			OR (s.name = 'log_transaction_sample_rate' AND s.value !~ '^[0.]*$')
			OR (s.name = 'pgaudit.log' AND s.value !~ '^\s*(none)?\s*$') THEN 'statements'
		WHEN (s.name = 'auto_explain.log_min_duration' AND s.value !~ '^\s*-')
			OR (s.name IN ('debug_print_parse', 'debug_print_rewritten', 'debug_print_plan')
				AND s.value IN ('on', 'true', 'yes', '1')) THEN 'plans'
		WHEN (s.name IN ('log_parameter_max_length', 'auto_explain.log_parameter_max_length') AND s.value <> '0')
			OR (s.name = 'pgaudit.log_parameter' AND s.value IN ('on', 'true', 'yes', '1')) THEN 'parameters'
		WHEN (s.name = 'log_parameter_max_length_on_error' AND s.value <> '0')
			OR (s.name = 'log_min_error_statement' AND s.value NOT IN ('error', 'fatal', 'panic')) THEN 'errors'
		WHEN s.name = 'pg_stat_statements.track_utility' AND s.value IN ('on', 'true', 'yes', '1') THEN 'statistics' END) t(tells)
	WHERE t.tells IS NOT NULL
$$;
REVOKE ALL ON FUNCTION nomp_crypt._telling_settings() FROM PUBLIC;

-- One check of health(); what it needs to know of server and keystore is in
-- facts, so that the keystore is asked once. Leaves severity NULL if all is well.
CREATE FUNCTION nomp_crypt._health_check(name text, facts jsonb, max_pin_age interval,
	max_key_age interval, OUT severity text, OUT detail text, OUT advice text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	reachable boolean := facts ->> 'state' = 'ok' AND coalesce((facts ->> 'canary')::boolean, false);
	ring record;
	found_row record;
	n bigint;
	names text;
BEGIN
	CASE _health_check.name
	WHEN 'library' THEN
		SELECT e.extversion INTO names FROM pg_extension e WHERE e.extname = 'nomp_crypt';
		IF names <> facts ->> 'library' THEN
			severity := 'critical';
			detail := format('the library is for version %s, this database has version %s', facts ->> 'library', names);
			advice := 'Install the same version of both, then ALTER EXTENSION nomp_crypt UPDATE.';
		END IF;
	WHEN 'broker' THEN
		IF NOT (facts ->> 'broker')::boolean THEN
			severity := 'critical';
			detail := 'the broker is not running';
			advice := 'It is started again after a second. If not, the server log says why; a restart starts it.';
		END IF;
	WHEN 'keystore' THEN
		IF facts ->> 'state' <> 'ok' AND facts ->> 'canary' IS DISTINCT FROM 'false' THEN
			severity := 'critical';
			detail := facts ->> 'state';
			advice := 'See "Keystore trouble" in docs/operations.md. Schools whose keys are in memory go on until their lease ends.';
		ELSIF current_setting('nomp_crypt.keystore_timeout')::interval < '5 seconds'
			AND concat_ws(', ', current_setting('nomp_crypt.keystore'), current_setting('nomp_crypt.other_keystores')) ~ '(^|[\s,])aws-kms:' THEN
			severity := 'warning';
			detail := format('nomp_crypt.keystore_timeout is %s: too short for a key service to make, move or end a key in',
				current_setting('nomp_crypt.keystore_timeout'));
			advice := 'Set it to 5s or more, see "When it does not work" in docs/aws-kms.md.';
		END IF;
	WHEN 'canary' THEN
		IF facts ->> 'canary' = 'false' THEN
			severity := 'critical';
			detail := 'the token is not this installation''s: its canary is missing';
			advice := 'Correct nomp_crypt.keystore, or restore the token. Do not adopt it: the schools'' keys are not in it.';
		ELSIF facts ->> 'installation' IS NULL THEN
			severity := 'info';
			detail := 'no school has been created yet';
		END IF;
	WHEN 'keystore_software' THEN
		IF (facts ->> 'software')::boolean THEN
			severity := 'warning';
			detail := 'the keystore is software: whoever has its files has the keys, and a copy brings a destroyed key back';
			advice := 'Use it for trying and for tests; in production, an HSM.';
		END IF;
	WHEN 'leases' THEN
		SELECT * INTO ring FROM nomp_crypt._stat_keyring();
		IF ring.entries > 0 AND NOT reachable THEN
			severity := 'critical';
			detail := format('the keystore does not confirm the %s keys in memory; the first lease ends at %s',
				ring.entries, ring.soonest_lease_end);
			advice := 'Bring the keystore back before that: nothing else renews a lease.';
		ELSIF current_setting('nomp_crypt.key_check_interval')::interval >= current_setting('nomp_crypt.key_lease')::interval THEN
			severity := 'warning';
			detail := 'leases end before they are renewed: nomp_crypt.key_check_interval is not shorter than nomp_crypt.key_lease';
			advice := 'Make the interval a small part of the lease.';
		ELSIF current_setting('nomp_crypt.key_lease')::interval > '8 hours' THEN
			severity := 'info';
			detail := 'a node that cannot ask the keystore can read an erased school for up to ' || current_setting('nomp_crypt.key_lease');
			advice := 'Shorten nomp_crypt.key_lease, unless outages that long must be survived.';
		END IF;
	WHEN 'keyring' THEN
		SELECT * INTO ring FROM nomp_crypt._stat_keyring();
		SELECT count(*), count(DISTINCT k.tenant) INTO n, names FROM nomp_crypt.tenant_key k
		JOIN nomp_crypt.tenant t ON t.uuid = k.tenant WHERE t.state = 'active' AND k.wrapped IS NOT NULL;
		IF ring.evictions > 0 OR ring.entries > 0.95 * ring.capacity THEN
			severity := 'warning';
			detail := format('%s of %s places are taken, %s keys were evicted since the server started',
				ring.entries, ring.capacity, ring.evictions);
			advice := 'Raise nomp_crypt.max_cached_keys (restart).';
		ELSIF ring.capacity < n THEN
			severity := 'info';
			detail := format('%s places for the %s keys of %s active schools', ring.capacity, n, names);
			advice := 'Raise nomp_crypt.max_cached_keys (restart), unless few of the schools are in use at a time.';
		END IF;
	WHEN 'credentials' THEN
		SELECT * INTO found_row FROM nomp_crypt._pin_file() p ORDER BY p.trouble NULLS LAST, p.changed LIMIT 1;
		IF found_row.trouble IS NOT NULL THEN
			severity := 'critical';
			detail := 'the PIN file ' || found_row.trouble;
			advice := 'It must belong to the server''s user or root, mode 600. If others could read it, change the PIN.';
		ELSIF clock_timestamp() - found_row.changed > max_pin_age THEN
			severity := 'warning';
			detail := 'the PIN file has not changed since ' || found_row.changed::date;
			advice := 'Change the PIN, see "Changing the PIN" in docs/operations.md.';
		ELSIF facts ->> 'lasting_credentials' IS NOT NULL THEN
			severity := 'warning';
			detail := 'the key service''s credentials do not expire; they come from: ' || (facts ->> 'lasting_credentials');
			advice := 'Whoever copies them can read until they are revoked. Give the machine a role instead: see "Credentials" in docs/aws-kms.md.';
		END IF;
	WHEN 'memory' THEN
		IF NOT (facts ->> 'protected')::boolean THEN
			severity := 'warning';
			detail := 'the pages that hold keys could not be locked, or not be kept out of core dumps';
			advice := 'Raise the server''s limit of locked memory (LimitMEMLOCK) and restart.';
		END IF;
	WHEN 'core_dumps' THEN
		IF (facts ->> 'cores')::boolean THEN
			severity := 'info';
			detail := 'a crash can leave a core dump, with the plaintext that the process worked on';
			advice := 'Start the server with LimitCORE=0, and let kernel.core_pattern name no program.';
		END IF;
	WHEN 'swap' THEN
		IF (facts ->> 'swap')::boolean THEN
			severity := 'info';
			detail := 'the machine swaps: plaintext that a process works on can get to disk';
			advice := 'Encrypt the swap space, or switch it off.';
		END IF;
	WHEN 'register' THEN
		-- raises what is wrong with the directory
		SELECT * INTO found_row FROM nomp_crypt._register_read();
		IF facts ->> 'installation' IS NULL THEN
			NULL;
		ELSIF found_row.installation IS NOT NULL AND found_row.installation::text <> facts ->> 'installation' THEN
			severity := 'critical';
			detail := 'the register directory belongs to another installation';
			advice := 'Set nomp_crypt.register_directory to this node''s own.';
		ELSIF NOT found_row.ours AND NOT pg_is_in_recovery() THEN
			severity := 'warning';
			detail := 'the register directory does not name this database: schools can neither be created nor erased here';
			advice := 'If this server has taken the original''s place: SELECT nomp_crypt.adopt_keystore(); in a copy, leave it.';
		ELSIF (facts ->> 'register_beside_data')::boolean THEN
			severity := 'info';
			detail := 'the register directory is on the data directory''s file system';
			advice := 'A snapshot or an image of that file system carries it along: move it elsewhere, or see that copies are not started with it.';
		END IF;
		IF reachable AND NOT pg_is_in_recovery() AND found_row.ours THEN
			SELECT * INTO found_row FROM nomp_crypt._register_look(false);
			IF found_row.state NOT IN ('none', 'ok', 'ahead', 'behind') THEN
				severity := 'critical';
				detail := format('the register is %s: %s', found_row.state, found_row.detail);
				advice := nomp_crypt._register_advice(found_row.state);
			END IF;
		END IF;
	WHEN 'register_archive' THEN
		SELECT count(*), min(r.number) INTO n, names FROM nomp_crypt.register r
		WHERE r.number > coalesce(nomp_crypt._register_mark(NULL)::bigint, 0) AND r.at < clock_timestamp() - interval '7 days';
		IF n > 0 AND NOT pg_is_in_recovery() THEN
			severity := 'warning';
			detail := format('register not archived: %s records from %s on are older than a week', n, names);
			advice := 'Copy the register''s file to where this site''s backups cannot be lost with it, then SELECT nomp_crypt.register_archived(<its last number>).';
		END IF;
	WHEN 'reconcile' THEN
		SELECT count(*) INTO n FROM nomp_crypt._reconcile_due() d WHERE d.action <> 'missing';
		IF n = 0 AND reachable AND NOT pg_is_in_recovery() AND (SELECT r.ours FROM nomp_crypt._register_read() r) THEN
			SELECT l.number - l.in_table INTO n FROM nomp_crypt._register_look(false) l WHERE l.state = 'ahead';
		END IF;
		IF n > 0 THEN
			severity := 'critical';
			detail := format('the register has %s things that this database does not know: it was restored from a backup', n);
			advice := 'SELECT * FROM nomp_crypt.reconcile();';
		END IF;
	WHEN 'grants' THEN
		SELECT count(*), string_agg(DISTINCT quote_ident(r.role), ', ') INTO n, names FROM nomp_crypt.tenant_right r
		WHERE NOT EXISTS (SELECT FROM pg_roles p WHERE p.rolname = r.role);
		IF n > 0 THEN
			severity := 'warning';
			detail := format('%s rights are held by roles that are gone: %s', n, names);
			advice := 'Revoke them with nomp_crypt.revoke_tenant and nomp_crypt.revoke_all_tenants: a new role of the name would have them.';
		ELSE
			SELECT count(*), string_agg(DISTINCT quote_ident(r.role), ', ') INTO n, names FROM nomp_crypt.tenant_right r
			JOIN pg_roles p ON p.rolname = r.role WHERE starts_with(r.role, 'pg_') OR p.rolsuper;
			IF n > 0 THEN
				severity := CASE WHEN EXISTS (SELECT FROM nomp_crypt.tenant_right r WHERE starts_with(r.role, 'pg_'))
					THEN 'warning' ELSE 'info' END;
				detail := format('%s rights are held by superusers or predefined roles: %s', n, names);
				advice := 'Give rights to the applications'' own roles.';
			END IF;
		END IF;
	WHEN 'public' THEN
		-- what PUBLIC may do beyond what the extension gave it
		SELECT count(*), string_agg(p.oid::regprocedure::text, ', ') INTO n, names
		FROM pg_proc p JOIN pg_init_privs i ON i.classoid = 'pg_proc'::regclass AND i.objoid = p.oid,
			aclexplode(p.proacl) a
		WHERE p.pronamespace = 'nomp_crypt'::regnamespace AND a.grantee = 0
			AND NOT EXISTS (SELECT FROM aclexplode(i.initprivs) b WHERE b.grantee = 0);
		IF n = 0 THEN
			SELECT count(*), string_agg(c.oid::regclass::text, ', ') INTO n, names
			FROM pg_class c, aclexplode(c.relacl) a
			WHERE c.relnamespace = 'nomp_crypt'::regnamespace AND a.grantee = 0;
		END IF;
		IF n > 0 THEN
			severity := 'critical';
			detail := 'everybody has been given rights on ' || names;
			advice := 'REVOKE them FROM PUBLIC.';
		END IF;
	WHEN 'old_keks' THEN
		SELECT count(*), min(k.destroy_after) INTO n, names FROM nomp_crypt.kek k
		WHERE k.state = 'retired' AND k.destroy_after < clock_timestamp()
			AND (k.pending_until IS NULL OR k.pending_until + interval '1 day' < clock_timestamp());
		IF n > 0 THEN
			severity := 'warning';
			detail := format('%s retired keys in the keystore could be destroyed, the first since %s', n, names);
			advice := 'CALL nomp_crypt.destroy_expired_keks(), at best regularly.';
		END IF;
	WHEN 'erasures' THEN
		SELECT count(*), string_agg(quote_literal(t.id), ', ') INTO n, names
		FROM nomp_crypt.erasure e JOIN nomp_crypt.tenant t ON t.uuid = e.tenant WHERE e.voided_at IS NOT NULL;
		IF n > 0 THEN
			severity := 'critical';
			detail := format('the destruction of keys of %s tenants under erasure was cancelled in the keystore: %s', n, names);
			advice := 'Find out who cancelled it, and why. CALL nomp_crypt.resubmit_erasure() asks the keystore again.';
			RETURN;
		END IF;
		SELECT count(*), string_agg(quote_literal(t.id), ', ') INTO n, names
		FROM nomp_crypt.erasure e JOIN nomp_crypt.tenant t ON t.uuid = e.tenant
		WHERE e.state IN ('fenced', 'submitted') OR (e.state = 'pending' AND e.pending_until < clock_timestamp())
			OR (e.state = 'requested' AND nomp_crypt._erase_waits(e) IS NULL);
		IF n > 0 THEN
			severity := 'warning';
			detail := format('%s erasures are due or were interrupted: %s', n, names);
			advice := 'Unless a session is at it, CALL nomp_crypt.run_due_erasures(), at best regularly.';
		END IF;
	WHEN 'provisional_keys' THEN
		IF reachable THEN
			SELECT count(*) INTO n FROM nomp_crypt._keystores((facts ->> 'installation')::uuid) k,
				nomp_crypt._keystore_list((facts ->> 'installation')::uuid, k.serial) l
			WHERE l.created < clock_timestamp() - interval '1 hour';
			IF n > 0 THEN
				severity := 'info';
				detail := format('%s keys in the keystore were made more than an hour ago and not confirmed', n);
				advice := 'SELECT * FROM nomp_crypt.reconcile_keystore();';
			END IF;
		END IF;
	WHEN 'data_keys' THEN
		SELECT count(*) INTO n FROM nomp_crypt.tenant t
		WHERE t.state = 'active' AND (SELECT max(k.created_at) FROM nomp_crypt.tenant_key k
			WHERE k.tenant = t.uuid AND k.purpose = 'values') < clock_timestamp() - max_key_age;
		IF n > 0 THEN
			severity := 'info';
			detail := format('%s schools write with a key that is older than %s', n, max_key_age);
			advice := 'CALL nomp_crypt.rotate_all.';
		END IF;
	WHEN 'tls' THEN
		IF current_setting('ssl') = 'off' AND EXISTS (SELECT FROM nomp_crypt._settings_anywhere() s
			WHERE s.name = 'nomp_crypt.require_tls' AND s.value IN ('on', 'true', 'yes', '1')) THEN
			severity := 'warning';
			detail := 'nomp_crypt.require_tls is on and ssl is off: clients over TCP are refused';
			advice := 'Set ssl = on, with a certificate, and hostssl in pg_hba.conf.';
		END IF;
	WHEN 'log' THEN
		SELECT string_agg(DISTINCT t.name, ', ' ORDER BY t.name) INTO names FROM nomp_crypt._telling_settings() t
		WHERE t.tells IN ('statements', 'plans');
		IF names IS NOT NULL THEN
			IF EXISTS (SELECT FROM nomp_crypt._telling_settings() t WHERE t.tells = 'parameters') THEN
				severity := 'warning';
				detail := 'statements are logged with the values in them and in their parameters: ' || names;
				advice := 'Switch it off for roles that send personal data, or set log_parameter_max_length = 0 and send values as parameters only.';
			ELSE
				severity := 'info';
				detail := 'statements are logged with the values that are written in them as literals: ' || names;
				advice := 'Send values as parameters only.';
			END IF;
		END IF;
	WHEN 'tenant_setting' THEN
		SELECT count(*) INTO n FROM pg_db_role_setting d, unnest(d.setconfig) c
		WHERE starts_with(c, 'nomp_crypt.tenant=');
		IF n > 0 THEN
			severity := 'critical';
			detail := format('nomp_crypt.tenant is among the settings of %s roles or databases', n);
			advice := 'ALTER ROLE ... RESET nomp_crypt.tenant; it belongs into the session.';
		END IF;
	WHEN 'replication' THEN
		IF pg_is_in_recovery() THEN
			IF pg_is_wal_replay_paused() THEN
				severity := 'warning';
				detail := 'replay is paused: erasures and rights of the primary are not followed';
				advice := 'SELECT pg_wal_replay_resume();';
			ELSIF NOT EXISTS (SELECT FROM pg_stat_wal_receiver w WHERE w.status = 'streaming') THEN
				severity := 'warning';
				detail := 'this standby does not stream from its primary';
				advice := 'See primary_conninfo and the server log.';
			ELSIF pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn() AND
				clock_timestamp() - pg_last_xact_replay_timestamp() > interval '1 minute' THEN
				severity := 'warning';
				detail := 'this standby is at ' || pg_last_xact_replay_timestamp();
				advice := 'Long queries here can hold replay up: see max_standby_streaming_delay.';
			END IF;
		ELSE
			SELECT count(*), string_agg(quote_ident(r.application_name), ', ') INTO n, names
			FROM pg_stat_replication r WHERE r.replay_lag > interval '1 minute';
			IF n > 0 THEN
				severity := 'warning';
				detail := 'standbys are more than a minute behind: ' || names;
				advice := 'An erased or suspended school is readable there until they have replayed it.';
			END IF;
		END IF;
	END CASE;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._health_check(text, jsonb, interval, interval) FROM PUBLIC;

-- What is known of server and keystore. Asks the keystore.
CREATE FUNCTION nomp_crypt._health_facts() RETURNS jsonb
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT (SELECT to_jsonb(f) FROM nomp_crypt._server_facts() f)
		|| jsonb_build_object('state', coalesce(string_agg(s.state, '; ') FILTER (WHERE s.state <> 'ok'), 'ok'),
			'canary', bool_and(s.canary), 'software', bool_or(s.software), 'installation', max(s.installation::text),
			'lasting_credentials', string_agg(DISTINCT s.credentials, ', ') FILTER (WHERE s.lasting_credentials))
	FROM nomp_crypt.keystore_status() s
$$;
REVOKE ALL ON FUNCTION nomp_crypt._health_facts() FROM PUBLIC;

-- Is all well? One row per check. Never raises because something is in
-- trouble; writes nothing, so it runs on standbys. Asks the keystore, which
-- takes up to nomp_crypt.keystore_timeout while it hangs.
CREATE FUNCTION nomp_crypt.health(max_pin_age interval DEFAULT '1 year', max_key_age interval DEFAULT '1 year',
	OUT name text, OUT severity text, OUT detail text, OUT advice text) RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
	facts jsonb;
	register text := current_setting('nomp_crypt.register_directory', true);
BEGIN
	BEGIN
		facts := nomp_crypt._health_facts();
	EXCEPTION WHEN OTHERS THEN
		-- without the library nothing else can be known
		name := 'library';
		severity := 'critical';
		GET STACKED DIAGNOSTICS detail = MESSAGE_TEXT, advice = PG_EXCEPTION_HINT;
		RETURN NEXT;
		RETURN;
	END;
	FOREACH name IN ARRAY '{library,broker,keystore,canary,keystore_software,leases,keyring,credentials,
		memory,core_dumps,swap,register,register_archive,reconcile,grants,public,old_keks,erasures,provisional_keys,data_keys,
		tls,log,tenant_setting,replication}'::text[] LOOP
		BEGIN
			SELECT c.severity, left(c.detail, 400), c.advice INTO severity, detail, advice
			FROM nomp_crypt._health_check(name, facts, max_pin_age, max_key_age) c;
		EXCEPTION WHEN OTHERS THEN
			severity := 'warning';
			GET STACKED DIAGNOSTICS detail = MESSAGE_TEXT, advice = PG_EXCEPTION_HINT;
			detail := replace(detail, register, '...');
		END;
		severity := coalesce(severity, 'ok');
		RETURN NEXT;
	END LOOP;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.health(interval, interval) FROM PUBLIC;

-- Functions in a view are called with the rights of whoever selects from it.
GRANT EXECUTE ON FUNCTION nomp_crypt.health(interval, interval), nomp_crypt._stat_keystore(),
	nomp_crypt._stat_keyring(), nomp_crypt._keyring_uses(), nomp_crypt._access() TO pg_monitor;
GRANT SELECT ON nomp_crypt.stat_keystore, nomp_crypt.stat_keyring, nomp_crypt.stat_tenants TO pg_monitor;

-- ---------------------------------------------------------------------------
-- Warming up: the busiest schools' keys are in memory before they are needed
-- ---------------------------------------------------------------------------

-- The schools that were in use, the busiest first, and when each last was, by
-- the system identifier of the cluster that wrote it down: a row per cluster,
-- so that clusters that replicate to each other do not collide. Ids only.
-- Standbys read it.
CREATE TABLE nomp_crypt.busy (
	cluster		text PRIMARY KEY,
	tenants		uuid[] NOT NULL,
	used_on		date[] NOT NULL DEFAULT '{}',
	at			timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE nomp_crypt.busy IS 'schools whose keys are loaded ahead, the busiest first; written by the server';

CREATE FUNCTION nomp_crypt._load_keys(tenant uuid) RETURNS int
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_load_keys';
REVOKE ALL ON FUNCTION nomp_crypt._load_keys(uuid) FROM PUBLIC;

-- This cluster's schools that were in use, and those of others that still
-- write theirs down; the busiest first.
CREATE FUNCTION nomp_crypt._remembered(OUT tenant uuid, OUT place bigint, OUT used_on date) RETURNS SETOF record
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT u.tenant, min(u.n), max(u.used_on) FILTER (WHERE b.cluster = c.system_identifier::text)
	FROM pg_control_system() c, nomp_crypt.busy b,
		unnest(b.tenants, b.used_on) WITH ORDINALITY u(tenant, used_on, n)
	WHERE b.cluster = c.system_identifier::text OR b.at > now() - interval '30 days'
	GROUP BY u.tenant
$$;
REVOKE ALL ON FUNCTION nomp_crypt._remembered() FROM PUBLIC;

-- Load the keys of schools in that order, as far as there is room; how many
-- keys that is. Raises NC004.
CREATE FUNCTION nomp_crypt._load_all(tenants uuid[]) RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	tenant uuid;
	keys int;
	loaded int := 0;
BEGIN
	FOREACH tenant IN ARRAY coalesce(tenants, '{}') LOOP
		keys := nomp_crypt._load_keys(tenant);
		EXIT WHEN keys IS NULL AND tenant IS NOT NULL;
		loaded := loaded + coalesce(keys, 0);
	END LOOP;
	RETURN loaded;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._load_all(uuid[]) FROM PUBLIC;

-- Load the keys of these schools into this node's memory, or of the busiest
-- and then of all others; of at most "max" schools, and as far as there is
-- room. Returns the number of keys loaded. Raises 42704, NC004.
CREATE FUNCTION nomp_crypt.prewarm(tenants text[] DEFAULT NULL, max int DEFAULT NULL) RETURNS int
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF tenants IS NOT NULL THEN
		RETURN nomp_crypt._load_all(ARRAY(SELECT nomp_crypt._tenant_uuid(u.id)
			FROM unnest(tenants) WITH ORDINALITY u(id, n) ORDER BY u.n LIMIT max));
	END IF;
	RETURN nomp_crypt._load_all(ARRAY(
		SELECT t.uuid FROM nomp_crypt.tenant t LEFT JOIN nomp_crypt._remembered() r ON r.tenant = t.uuid
		WHERE t.state = 'active' ORDER BY r.place NULLS LAST, t.created_at LIMIT max));
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.prewarm(text[], int) FROM PUBLIC;

-- The warmer's work in one database: load what is remembered and not here;
-- then, on a primary, remember who is busy. In this order, so that a node that
-- is still loading does not forget the rest. A school that nobody used for a
-- week is forgotten. Written when the schools have changed, or once a day.
CREATE FUNCTION nomp_crypt._keep_warm() RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	mine text := (SELECT system_identifier::text FROM pg_control_system());
	before nomp_crypt.busy;
	after nomp_crypt.busy;
BEGIN
	PERFORM nomp_crypt._load_all(ARRAY(
		SELECT r.tenant FROM nomp_crypt._remembered() r
		WHERE r.tenant NOT IN (SELECT u.tenant FROM nomp_crypt._keyring_uses() u) ORDER BY r.place));
	IF pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean THEN
		RETURN;
	END IF;
	SELECT array_agg(k.tenant ORDER BY k.busyness DESC, k.used_on DESC),
		array_agg(k.used_on ORDER BY k.busyness DESC, k.used_on DESC)
	INTO after.tenants, after.used_on
	FROM (SELECT u.tenant, max(u.busyness) AS busyness,
				 coalesce(greatest(max(u.used_at)::date, max(r.used_on)), current_date) AS used_on
		  FROM nomp_crypt._keyring_uses() u
		  JOIN nomp_crypt.tenant t ON t.uuid = u.tenant AND t.state = 'active'
		  LEFT JOIN nomp_crypt._remembered() r ON r.tenant = u.tenant
		  GROUP BY u.tenant) k
	WHERE k.used_on > current_date - 7;
	SELECT b.* INTO before FROM nomp_crypt.busy b WHERE b.cluster = mine;
	IF after.tenants IS NULL OR (before.at > now() - interval '1 day' AND
		ARRAY(SELECT u FROM unnest(after.tenants) u ORDER BY u) =
		ARRAY(SELECT u FROM unnest(before.tenants) u ORDER BY u)) THEN
		RETURN;
	END IF;
	INSERT INTO nomp_crypt.busy (cluster, tenants, used_on) VALUES (mine, after.tenants, after.used_on)
	ON CONFLICT (cluster) DO UPDATE
	SET tenants = excluded.tenants, used_on = excluded.used_on, at = excluded.at;
EXCEPTION WHEN SQLSTATE 'NC004' THEN
	RETURN;	-- the next one tries again; health() says what is wrong
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._keep_warm() FROM PUBLIC;

-- ---------------------------------------------------------------------------
-- The certificate: a record of the register, for the school
-- ---------------------------------------------------------------------------

-- What only a person can know, said by a role.
CREATE TABLE nomp_crypt.attestation (
	case_id		uuid NOT NULL,
	statement	text NOT NULL CHECK (statement IN
				('no_keystore_backups', 'keystore_backups_destroyed', 'other_nodes_stopped', 'exports_deleted')),
	role		name NOT NULL,
	at			timestamptz NOT NULL DEFAULT clock_timestamp(),
	PRIMARY KEY (case_id, statement)
);
COMMENT ON TABLE nomp_crypt.attestation IS 'what somebody vouches for in a certificate';
SELECT pg_catalog.pg_extension_config_dump('nomp_crypt.attestation', '');

-- Vouch for what no program can observe. Raises 42704, 22023, 55000 once the
-- case is certified.
CREATE FUNCTION nomp_crypt.attest_erasure(case_id uuid, statement text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	c nomp_crypt.erasure := nomp_crypt._erase_case(attest_erasure.case_id);
BEGIN
	IF attest_erasure.statement IS NULL OR attest_erasure.statement NOT IN
		('no_keystore_backups', 'keystore_backups_destroyed', 'other_nodes_stopped', 'exports_deleted') THEN
		RAISE EXCEPTION 'unknown statement "%"', attest_erasure.statement USING ERRCODE = 'invalid_parameter_value',
			HINT = 'Statements are no_keystore_backups, keystore_backups_destroyed, other_nodes_stopped and exports_deleted.';
	ELSIF c.state = 'certified' THEN
		RAISE EXCEPTION 'erasure case % is certified', c.case_id USING ERRCODE = 'object_not_in_prerequisite_state',
			HINT = 'A certificate is not changed any more.';
	END IF;
	INSERT INTO nomp_crypt.attestation (case_id, statement, role)
	VALUES (c.case_id, attest_erasure.statement, nomp_crypt._acting_role())
	ON CONFLICT (case_id, statement) DO UPDATE SET role = excluded.role, at = excluded.at;
	PERFORM nomp_crypt._audit_case('attest_erasure', c, jsonb_build_object('statement', attest_erasure.statement));
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.attest_erasure(uuid, text) FROM PUBLIC;

-- Every KEK that a school ever had, by what the register and the case say, and
-- how each ended; end is NULL for one whose end nobody witnessed.
CREATE FUNCTION nomp_crypt._certificate_keys(c nomp_crypt.erasure, OUT label text, OUT key jsonb, OUT ended boolean)
RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
#variable_conflict use_column
DECLARE
	k record;
	ending jsonb;
BEGIN
	FOR k IN
		WITH records AS (
			SELECT r.* FROM nomp_crypt.register g, nomp_crypt._record(g.jws) r
			WHERE g.school = c.tenant AND r.school = c.tenant),
		seen AS (
			SELECT s.key AS serial, regexp_replace(l, ':provisional@.*$', '') AS label, (s.value ->> 'at')::timestamptz AS at,
				NOT coalesce((s.value ->> 'at_once')::boolean, true) AND NOT EXISTS (
					SELECT FROM jsonb_array_elements_text(s.value -> 'asked') a
					WHERE regexp_replace(a, ':provisional@.*$', '') = regexp_replace(l, ':provisional@.*$', '')) AS already_pending
			FROM jsonb_each(c.keystores) s, jsonb_array_elements_text(s.value -> 'seen') l
			WHERE s.value ? 'destroyed')
		SELECT n.label, m.data ->> 'serial' AS serial, (m.data ->> 'generation')::int AS generation, m.at AS made_at,
			array_agg(DISTINCT s.serial) FILTER (WHERE s.serial IS NOT NULL) AS seen_in, max(s.at) AS gone_at,
			bool_or(s.already_pending) AS already_pending,
			e.type AS end_type, e.at AS end_at, e.number AS end_record
		FROM (SELECT r.data ->> 'key' AS label FROM records r WHERE r.type IN ('born', 'moved')
			  UNION SELECT s.label FROM seen s) n
		LEFT JOIN LATERAL (SELECT r.* FROM records r WHERE r.type IN ('born', 'moved') AND r.data ->> 'key' = n.label
						   ORDER BY r.number LIMIT 1) m ON true
		LEFT JOIN LATERAL (SELECT r.* FROM records r WHERE r.type IN ('expired', 'removed') AND r.data ->> 'key' = n.label
						   ORDER BY r.number LIMIT 1) e ON true
		LEFT JOIN seen s ON s.label = n.label
		GROUP BY 1, 2, 3, 4, 8, 9, 10 ORDER BY 3 NULLS LAST, 1
	LOOP
		ending := CASE
			WHEN k.seen_in IS NOT NULL THEN jsonb_build_object('how', 'destroyed', 'at', k.gone_at, 'in', to_jsonb(k.seen_in),
				'already_pending', nullif(k.already_pending, false))
			WHEN k.end_type IS NOT NULL THEN jsonb_build_object('how', k.end_type, 'at', k.end_at, 'record', k.end_record)
			-- an expired key's end that was begun, and that the crash's repetition did not see
			WHEN EXISTS (SELECT FROM nomp_crypt.kek e WHERE e.label = k.label AND e.tenant = c.tenant
						 AND e.submitted_at IS NOT NULL AND e.state = 'destroyed')
				THEN jsonb_build_object('how', 'expired') END;
		label := k.label;
		key := jsonb_strip_nulls(jsonb_build_object('label', k.label, 'generation', k.generation, 'keystore', k.serial,
			'made_at', k.made_at, 'end', ending));
		ended := ending IS NOT NULL;
		RETURN NEXT;
	END LOOP;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._certificate_keys(nomp_crypt.erasure) FROM PUBLIC;

-- This database's encrypted columns, and since when nothing plain of them is on
-- disk, where that is known.
CREATE FUNCTION nomp_crypt._certificate_columns() RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
BEGIN
	RETURN coalesce((SELECT jsonb_agg(jsonb_strip_nulls(jsonb_build_object('table', i.table_name, 'column', i.column_name,
		'encrypted_since', i.encrypted_on_disk_since)) ORDER BY i.table_name, i.column_name) FROM nomp_crypt.inventory i), '[]');
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._certificate_columns() FROM PUBLIC;

-- What was ordered of a case's keys, and cancelled by somebody in a keystore that
-- destroys later, key by key; NULL if nothing was. Between scheduled_at and
-- scheduled_again_at the key could be used for some time.
CREATE FUNCTION nomp_crypt._certificate_cancelled(c nomp_crypt.erasure) RETURNS jsonb
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
	SELECT jsonb_agg(jsonb_build_object('key', regexp_replace(k ->> 'label', ':provisional@.*$', ''), 'keystore', s.key,
			'found', CASE k ->> 'state' WHEN 'pending' THEN 'pending_until_another_date' ELSE 'not_pending' END,
			'scheduled_at', (t.try ->> 'scheduled_at')::timestamptz, 'noticed_at', (t.try ->> 'noticed_at')::timestamptz,
			-- or that it was seen to be gone
			'scheduled_again_at', coalesce(s.value -> 'cancelled' -> t.n::int ->> 'scheduled_at', s.value ->> 'scheduled_at',
				s.value ->> 'at')::timestamptz)
		ORDER BY t.try ->> 'noticed_at', k ->> 'label')
	FROM jsonb_each(($1).keystores) s, jsonb_array_elements(s.value -> 'cancelled') WITH ORDINALITY t(try, n),
		jsonb_array_elements(t.try -> 'saved') k
$$;
REVOKE ALL ON FUNCTION nomp_crypt._certificate_cancelled(nomp_crypt.erasure) FROM PUBLIC;

-- What a certificate says: docs/certificate.schema.json has its form. Nothing
-- in it is personal data.
CREATE FUNCTION nomp_crypt._certificate_data(c nomp_crypt.erasure, keys jsonb, stores jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
	t nomp_crypt.tenant;
	lease interval := (c.verification ->> 'longest_lease')::interval;
	retention interval := nomp_crypt._backup_retention();
	k record;
BEGIN
	SELECT * INTO t FROM nomp_crypt.tenant u WHERE u.uuid = c.tenant;
	SELECT * INTO k FROM nomp_crypt.register_key();
	RETURN jsonb_strip_nulls(jsonb_build_object(
		'case', c.case_id, 'school', c.tenant,
		-- as far as it is a number of an agreement, and no free text
		'agreement', substring(t.agreement FROM '^[A-Za-z0-9._/-]{1,64}$'),
		'reason', c.reason, 'reference', c.reference,
		'statement', 'The keys that encrypted this school''s values were destroyed.',
		'method', jsonb_build_object('name', 'cryptographic erasure', 'cipher', 'AES-256',
			'by', 'destroying every key-encryption key in its keystore'),
		'timeline', jsonb_build_object('requested_at', c.requested_at, 'fenced_at', c.fenced_at,
			'submitted_at', c.submitted_at, 'destroyed_at', c.destroyed_at, 'verified_at', clock_timestamp()),
		'cancelled', nomp_crypt._certificate_cancelled(c),
		'keys', keys,
		'keystores', stores,
		'observed', jsonb_build_array('every_key_seen_before',
			CASE WHEN jsonb_path_exists(keys, '$[*].end.already_pending') THEN 'destroyed_on_request_unless_already_pending'
				ELSE 'every_key_destroyed_on_request' END,
			'no_key_seen_after', 'canary_seen_before_and_after', 'no_wrapped_key_left_in_the_database', 'no_key_in_this_servers_memory',
			'register_verified'),
		'attested', coalesce((SELECT jsonb_agg(jsonb_build_object('statement', a.statement, 'role', a.role, 'at', a.at) ORDER BY a.at)
			FROM (SELECT b.statement, b.role, b.at FROM nomp_crypt.attestation b WHERE b.case_id = c.case_id
				UNION ALL
				SELECT 'no_node_has_a_key_in_memory', c.lease_acknowledged_by, c.lease_acknowledged_at
				WHERE c.lease_acknowledged_at IS NOT NULL) a(statement, role, at)), '[]'),
		'approvals', (SELECT jsonb_agg(jsonb_build_object('role', a.role, 'at', a.approved_at, 'record', (
				SELECT max(o.number) FROM nomp_crypt._register_of(c.tenant) o WHERE o.type = 'approved'
				AND o.data ->> 'case' = c.case_id::text AND (o.data ->> 'given')::int = a.given)) ORDER BY a.given)
			FROM (SELECT p.*, row_number() OVER (ORDER BY p.approved_at) AS given
				FROM nomp_crypt.erasure_approval p WHERE p.case_id = c.case_id) a),
		'holds', (SELECT jsonb_agg(jsonb_build_object('placed_at', h.at, 'placed_record', h.number,
				'released_at', x.at, 'released_record', x.number) ORDER BY h.number)
			FROM nomp_crypt._register_of(c.tenant) h
			LEFT JOIN LATERAL (SELECT o.* FROM nomp_crypt._register_of(c.tenant) o WHERE o.type = 'released'
				AND o.data ->> 'reference' = h.data ->> 'reference' AND o.number > h.number ORDER BY o.number LIMIT 1) x ON true
			WHERE h.type = 'hold'),
		'returned', (SELECT jsonb_build_object('manifest_sha256', r.manifest_sha256, 'role', r.recorded_by, 'at', r.recorded_at,
				'record', (SELECT max(o.number) FROM nomp_crypt._register_of(c.tenant) o WHERE o.type = 'returned'
					AND o.data ->> 'manifest_sha256' IS NOT DISTINCT FROM r.manifest_sha256))
			FROM nomp_crypt.data_return r WHERE r.tenant = c.tenant ORDER BY r.recorded_at DESC LIMIT 1),
		'nodes', jsonb_build_object('asked', '["this_server"]' || coalesce((SELECT jsonb_agg(a ->> 'node' ORDER BY a ->> 'node')
				FROM jsonb_array_elements(c.verification -> 'nodes') a
				WHERE NOT c.verification -> 'not_asked' ? (a ->> 'node')), '[]'),
			'not_asked', coalesce(c.verification -> 'not_asked', '[]')),
		'longest_lease_seconds', extract(epoch FROM lease)::bigint,
		'leases_ended', clock_timestamp() >= c.destroyed_at + lease,
		'columns', nomp_crypt._certificate_columns(),
		'remains', jsonb_build_object(
			'unreadable', jsonb_build_array('values_in_this_database', 'values_in_backups_and_wal'),
			'backups_until', c.destroyed_at + retention,
			'backup_retention_seconds', extract(epoch FROM retention)::bigint,
			'not_reached', jsonb_build_array('plaintext_from_before_a_column_was_encrypted', 'logs_and_exports',
				'keystore_backups')),
		'versions', jsonb_build_object('nomp_crypt', (SELECT e.extversion FROM pg_extension e WHERE e.extname = 'nomp_crypt'),
			'postgresql', current_setting('server_version')),
		'key', jsonb_build_object('kid', k.kid, 'generation', k.generation, 'fingerprint', k.fingerprint)));
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._certificate_data(nomp_crypt.erasure, jsonb, jsonb) FROM PUBLIC;

-- The keystores of a case, in none of which a key of the school is seen now.
-- Raises NC004, 55000.
CREATE FUNCTION nomp_crypt._certificate_stores(c nomp_crypt.erasure) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
	mine uuid := nomp_crypt._require_owner();
	store record;
	present jsonb;
	now jsonb;
	stores jsonb := '[]';
BEGIN
	SELECT jsonb_object_agg(s.serial, to_jsonb(s)) INTO now FROM nomp_crypt._keystores(mine) s WHERE s.serial IS NOT NULL;
	FOR store IN SELECT s.key AS serial, s.value AS done FROM jsonb_each(c.keystores) s ORDER BY 1 LOOP
		present := nomp_crypt._erase_present(c, mine, store.serial);
		IF present <> '[]' OR NOT store.done ? 'destroyed' THEN
			RAISE EXCEPTION 'a key of the school is in the keystore: nothing is certified'
				USING ERRCODE = 'object_not_in_prerequisite_state',
				DETAIL = format('Keystore %s, keys %s.', store.serial,
					(SELECT string_agg(k ->> 'label', ', ') FROM jsonb_array_elements(present) k)),
				HINT = 'Somebody put it back after it was destroyed. Find out who, destroy it there, and repeat the call.';
		END IF;
		stores := stores || jsonb_strip_nulls(jsonb_build_object('serial', store.serial,
			'manufacturer', now -> store.serial ->> 'manufacturer', 'model', now -> store.serial ->> 'model',
			'software', now -> store.serial -> 'software', 'destroyed_at', (store.done ->> 'at')::timestamptz,
			'last_looked_at', clock_timestamp()));
	END LOOP;
	RETURN stores;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._certificate_stores(nomp_crypt.erasure) FROM PUBLIC;

-- The certificate of a case, a compact JWS; made once, after everything was
-- verified again. Raises 42704, 55000 if the keys are not destroyed or the
-- register is in trouble, NC003 if the end of a key was not witnessed, NC004.
CREATE FUNCTION nomp_crypt.certificate(case_id uuid) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	c nomp_crypt.erasure;
	made text;
	keys jsonb;
	unwitnessed text;
BEGIN
	SELECT r.jws INTO made FROM nomp_crypt.register r, nomp_crypt._record(r.jws) v
	WHERE r.case_id = certificate.case_id AND v.type = 'certificate' AND v.case_id = r.case_id;
	IF FOUND THEN
		RETURN made;
	END IF;
	c := nomp_crypt._erase_case(certificate.case_id);
	IF c.state NOT IN ('destroyed', 'certified') THEN
		RAISE EXCEPTION 'the keys of erasure case % are not destroyed', c.case_id
			USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'See nomp_crypt.erasures.';
	ELSIF c.state = 'destroyed' THEN
		RAISE EXCEPTION 'the destruction of the keys of erasure case % has not been verified', c.case_id
			USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'CALL nomp_crypt.certify_erasure() does that.';
	END IF;
	PERFORM nomp_crypt._register_require(true);
	IF NOT EXISTS (SELECT FROM nomp_crypt.register r, nomp_crypt._record(r.jws) v
				   WHERE r.case_id = c.case_id AND v.type = 'destroyed' AND v.case_id = c.case_id
				   AND v.school = c.tenant) THEN
		RAISE EXCEPTION 'no record of the register proves that the keys of erasure case % were destroyed', c.case_id
			USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'See nomp_crypt.register_status().';
	END IF;
	IF EXISTS (SELECT FROM nomp_crypt.tenant_key k WHERE k.tenant = c.tenant AND k.wrapped IS NOT NULL) THEN
		RAISE EXCEPTION 'a wrapped key of the school is in nomp_crypt.tenant_key: nothing is certified'
			USING ERRCODE = 'object_not_in_prerequisite_state',
			HINT = 'Somebody put it back. It cannot be opened any more; find out who, and remove it.';
	ELSIF EXISTS (SELECT FROM nomp_crypt._keyring_uses() u WHERE u.tenant = c.tenant) THEN
		RAISE EXCEPTION 'a key of the school is in this server''s memory: nothing is certified'
			USING ERRCODE = 'object_not_in_prerequisite_state',
			HINT = 'CALL nomp_crypt.erase_tenant again: it wipes it.';
	END IF;
	SELECT jsonb_agg(k.key), min(k.label) FILTER (WHERE NOT k.ended) INTO keys, unwitnessed
	FROM nomp_crypt._certificate_keys(c) k;
	IF unwitnessed IS NOT NULL OR keys IS NULL THEN
		RAISE EXCEPTION 'the end of key % was not witnessed: nothing is certified', coalesce(unwitnessed, 'of the school')
			USING ERRCODE = 'NC003', HINT = 'It is on record in the register and was in no keystore that was seen.';
	END IF;
	made := (nomp_crypt._register_add('certificate',
		nomp_crypt._certificate_data(c, keys, nomp_crypt._certificate_stores(c)))).jws;
	PERFORM nomp_crypt._audit_case('certificate', c);
	RETURN made;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.certificate(uuid) FROM PUBLIC;

-- Is it a certificate of this installation? Only ES256 by one of its keys is
-- believed; reason says what is wrong, or that this database's register does
-- not have it. Raises NC004 if the keys cannot be known now.
CREATE FUNCTION nomp_crypt.verify_certificate(jws text, OUT valid boolean, OUT reason text, OUT payload jsonb)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	compact text := btrim(verify_certificate.jws, E' \t\r\n');
	header jsonb := nomp_crypt._record_claims(compact, 1);
	rec record;
	mine nomp_crypt.register;
BEGIN
	valid := false;
	IF compact IS NULL OR compact !~ '^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*$' OR jsonb_typeof(header) IS DISTINCT FROM 'object' THEN
		reason := 'not a compact JWS';
		RETURN;
	ELSIF header ->> 'alg' IS DISTINCT FROM 'ES256' THEN
		reason := 'the algorithm is not ES256';
		RETURN;
	ELSIF header - '{alg,kid,typ}'::text[] <> '{}' THEN
		reason := 'the header has more than alg, kid and typ: keys in it are not believed';
		RETURN;
	END IF;
	SELECT * INTO rec FROM nomp_crypt._record(compact);
	SELECT * INTO mine FROM nomp_crypt.register r WHERE r.number = rec.number;
	IF rec.number IS NULL THEN
		reason := CASE WHEN EXISTS (SELECT FROM nomp_crypt.register g, nomp_crypt._record(g.jws) k
				WHERE k.type IN ('founded', 'key') AND k.data ->> 'kid' = header ->> 'kid')
			THEN 'the signature is wrong' ELSE 'it is signed by another key' END;
	ELSIF rec.type <> 'certificate' OR rec.installation IS DISTINCT FROM (SELECT i.uuid FROM nomp_crypt.installation i) THEN
		reason := 'a record, but no certificate';
	ELSIF mine.hash <> nomp_crypt._record_hash(compact) THEN
		reason := 'the register has another record of that number';
	ELSE
		valid := true;
		payload := nomp_crypt._record_claims(compact);
		reason := CASE WHEN mine.number IS NULL THEN 'this database''s register does not have it' ELSE '' END;
	END IF;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.verify_certificate(text) FROM PUBLIC;

CREATE FUNCTION nomp_crypt._html(value text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT replace(replace(replace(replace(replace(coalesce($1, ''), '&', '&amp;'), '<', '&lt;'), '>', '&gt;'), '"', '&quot;'), '''', '&#39;')
$$;
REVOKE ALL ON FUNCTION nomp_crypt._html(text) FROM PUBLIC;

-- The page's words.
CREATE FUNCTION nomp_crypt._certificate_words(language text) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	CASE language
	WHEN 'en' THEN
		RETURN $json${
"title": "Certificate of erasure by destruction of keys",
"lead": "The keys that encrypted this school's values were destroyed on {at}. Without them the values cannot be read again, wherever copies of them are.",
"not": "This certificate says that keys were destroyed and what was observed. It does not say that every copy of the encrypted values is gone: what remains, and until when, stands below.",
"software": "The keystore was software. Whoever copied its files before has the keys, so this certificate proves nothing about a real hardware security module.",
"school": "School", "uuid": "The school's id", "agreement": "Agreement", "reference": "Reference", "reason": "Reason", "case": "Case",
"number": "Record in the register", "issued": "Issued", "installation": "Installation",
"agreement_ended": "the agreement has ended", "controller_request": "the controller asked for it", "school_closed": "the school was closed", "test": "a test",
"timeline": "What was done, and when", "requested_at": "Requested; the school became unreadable", "fenced_at": "Point of no return", "submitted_at": "Destruction ordered", "destroyed_at": "Keys destroyed, and not seen any more", "verified_at": "Verified again",
"before": "What had to be settled before", "approved": "Approved by role {role}", "held": "Legal hold placed", "released": "Legal hold released", "returned": "Data returned to the controller, manifest with SHA-256 {sum}", "not_wanted": "The controller did not want the data returned",
"cancelled": "Cancelled in between", "cancelled_text": "Their destruction was ordered, and somebody with rights in the keystore cancelled it there. For some time between the two dates the key could have been used, outside this system. Afterwards it was to be destroyed again, and was.", "between": "Between", "not_pending": "The keystore was found not to be about to destroy it", "pending_until_another_date": "The keystore was found to be about to destroy it on another date, by somebody else's request",
"method": "How", "method_text": "Each school has key-encryption keys of its own in the keystore, which never leave it. They encrypt the keys that encrypt the school's values (AES-256). Every one of them was destroyed: cryptographic erasure as in NIST SP 800-88.",
"keys": "Keys that the school ever had", "label": "Key", "keystore": "Keystore", "made": "Made", "end": "End", "destroyed": "destroyed", "expired": "destroyed earlier, after it was replaced", "removed": "removed, it was never used", "already_pending": "its destruction was already pending when the keystore was asked",
"observed": "What the system observed",
"every_key_seen_before": "Every key on record was in its keystore before it was destroyed.", "every_key_destroyed_on_request": "The keystore destroyed every one of them when asked to.", "destroyed_on_request_unless_already_pending": "The keystore destroyed the keys when asked to, except where it says that the destruction was already pending: that was somebody else's request, or an earlier one of this system.", "no_key_seen_after": "No key of this school was seen in the keystore afterwards, and again when this certificate was made.", "canary_seen_before_and_after": "Each look was at the right keystore: a known key was found in it before and after.", "no_wrapped_key_left_in_the_database": "The database holds no wrapped key of this school.", "no_key_in_this_servers_memory": "This server's memory holds no key of this school.", "register_verified": "The chain of signed records was verified from its beginning.",
"attested": "What somebody vouches for", "nothing_attested": "Nothing. No statement was made about keystore backups, other servers or exports.",
"no_keystore_backups": "There were no backups of the keystore.", "keystore_backups_destroyed": "Backups of the keystore that held the keys were destroyed.", "no_node_has_a_key_in_memory": "No server has a key of the school in memory.", "other_nodes_stopped": "Other servers that could read the school were stopped.", "exports_deleted": "Exports of the school's data were deleted.", "by": "by role", "on": "on",
"remains": "What remains, and until when",
"values_in_this_database": "Unreadable values in this database, until they are removed.", "values_in_backups_and_wal": "Unreadable values in backups and logs of changes, until {until} at the latest.",
"plaintext_from_before_a_column_was_encrypted": "Not reached: what was stored before a column was encrypted, in files and backups from then.", "logs_and_exports": "Not reached: logs, reports and exports that were taken out of the database.", "keystore_backups": "Not reached: backups of the keystore itself, if there are any.",
"lease": "A server that was not asked could still read until its lease ended, at the latest {lease} after the destruction, on {ended}.", "nodes": "Servers", "asked": "Asked", "this_server": "this server", "not_asked": "Not asked", "none": "none that is connected",
"columns": "Encrypted columns of the database", "since": "encrypted since", "unknown_since": "not known since when",
"keystores": "Keystores", "is_software": "software", "is_hardware": "not known to be software",
"versions": "Versions", "check": "How to check this certificate",
"check_text": "You need the public key that you were given at the beginning of the contract (key.pem), with this fingerprint:", "check_openssl": "With OpenSSL: save the text below as certificate.jws, then", "check_jose": "With any JOSE library: verify the compact JWS with that key, and accept the algorithm ES256 only. Its payload is the content of this page.", "jws": "The certificate itself"}$json$;
	WHEN 'sv' THEN
		RETURN $json${
"title": "Intyg om radering genom f\u00f6rst\u00f6ring av nycklar",
"lead": "Nycklarna som krypterade skolans uppgifter f\u00f6rst\u00f6rdes {at}. Utan dem kan uppgifterna inte l\u00e4sas igen, var det \u00e4n finns kopior av dem.",
"not": "Intyget s\u00e4ger att nycklar har f\u00f6rst\u00f6rts och vad som observerades. Det s\u00e4ger inte att varje kopia av de krypterade uppgifterna \u00e4r borta: vad som finns kvar, och hur l\u00e4nge, st\u00e5r nedan.",
"software": "Nyckelf\u00f6rvaringen var ett program. Den som tidigare kopierade dess filer har nycklarna, s\u00e5 intyget bevisar ingenting om en riktig s\u00e4kerhetsmodul (HSM).",
"school": "Skola", "uuid": "Skolans id", "agreement": "Avtal", "reference": "Referens", "reason": "Anledning", "case": "\u00c4rende",
"number": "Post i registret", "issued": "Utf\u00e4rdat", "installation": "Installation",
"agreement_ended": "avtalet har upph\u00f6rt", "controller_request": "den personuppgiftsansvarige beg\u00e4rde det", "school_closed": "skolan har lagts ned", "test": "ett prov",
"timeline": "Vad som gjordes, och n\u00e4r", "requested_at": "Beg\u00e4rd; skolan blev ol\u00e4sbar", "fenced_at": "D\u00e4refter o\u00e5terkallelig", "submitted_at": "F\u00f6rst\u00f6ringen best\u00e4lld", "destroyed_at": "Nycklarna f\u00f6rst\u00f6rda, och inte l\u00e4ngre sedda", "verified_at": "Kontrollerat igen",
"before": "Vad som f\u00f6rst var tvunget att klaras ut", "approved": "Godk\u00e4nd av rollen {role}", "held": "R\u00e4ttslig sp\u00e4rr mot radering satt", "released": "R\u00e4ttslig sp\u00e4rr h\u00e4vd", "returned": "Uppgifterna \u00e5terl\u00e4mnade till den personuppgiftsansvarige, manifest med SHA-256 {sum}", "not_wanted": "Den personuppgiftsansvarige ville inte ha uppgifterna tillbaka",
"cancelled": "Avbruten d\u00e4remellan", "cancelled_text": "F\u00f6rst\u00f6ringen var best\u00e4lld, och n\u00e5gon med r\u00e4ttigheter i nyckelf\u00f6rvaringen avbr\u00f6t den d\u00e4r. Under n\u00e5gon tid mellan de tv\u00e5 tidpunkterna kunde nyckeln ha anv\u00e4nts, utanf\u00f6r det h\u00e4r systemet. Sedan skulle den \u00e5ter f\u00f6rst\u00f6ras, och f\u00f6rst\u00f6rdes.", "between": "Mellan", "not_pending": "Nyckelf\u00f6rvaringen befanns inte vara p\u00e5 v\u00e4g att f\u00f6rst\u00f6ra den", "pending_until_another_date": "Nyckelf\u00f6rvaringen befanns vara p\u00e5 v\u00e4g att f\u00f6rst\u00f6ra den en annan dag, p\u00e5 beg\u00e4ran av n\u00e5gon annan",
"method": "Hur", "method_text": "Varje skola har egna nyckelkrypteringsnycklar i nyckelf\u00f6rvaringen, som aldrig l\u00e4mnar den. De krypterar de nycklar som krypterar skolans uppgifter (AES-256). Alla har f\u00f6rst\u00f6rts: kryptografisk radering enligt NIST SP 800-88.",
"keys": "Nycklar som skolan n\u00e5gonsin har haft", "label": "Nyckel", "keystore": "Nyckelf\u00f6rvaring", "made": "Skapad", "end": "Slut", "destroyed": "f\u00f6rst\u00f6rd", "expired": "f\u00f6rst\u00f6rd tidigare, sedan den ersatts", "removed": "borttagen, anv\u00e4ndes aldrig", "already_pending": "var redan p\u00e5 v\u00e4g att f\u00f6rst\u00f6ras n\u00e4r nyckelf\u00f6rvaringen tillfr\u00e5gades",
"observed": "Vad systemet observerade",
"every_key_seen_before": "Varje k\u00e4nd nyckel fanns i sin nyckelf\u00f6rvaring innan den f\u00f6rst\u00f6rdes.", "every_key_destroyed_on_request": "Nyckelf\u00f6rvaringen f\u00f6rst\u00f6rde var och en av dem p\u00e5 beg\u00e4ran.", "destroyed_on_request_unless_already_pending": "Nyckelf\u00f6rvaringen f\u00f6rst\u00f6rde nycklarna p\u00e5 beg\u00e4ran, utom d\u00e4r det st\u00e5r att de redan var p\u00e5 v\u00e4g att f\u00f6rst\u00f6ras: det hade n\u00e5gon annan beg\u00e4rt, eller det h\u00e4r systemet tidigare.", "no_key_seen_after": "Ingen av skolans nycklar syntes i nyckelf\u00f6rvaringen efter\u00e5t, och inte heller n\u00e4r intyget gjordes.", "canary_seen_before_and_after": "Varje kontroll g\u00e4llde r\u00e4tt nyckelf\u00f6rvaring: en k\u00e4nd nyckel fanns i den f\u00f6re och efter.", "no_wrapped_key_left_in_the_database": "Databasen har ingen krypterad nyckel kvar f\u00f6r skolan.", "no_key_in_this_servers_memory": "Serverns minne har ingen nyckel f\u00f6r skolan.", "register_verified": "Kedjan av signerade poster kontrollerades fr\u00e5n b\u00f6rjan.",
"attested": "Vad n\u00e5gon g\u00e5r i god f\u00f6r", "nothing_attested": "Ingenting. Ingen har uttalat sig om s\u00e4kerhetskopior av nyckelf\u00f6rvaringen, andra servrar eller exporter.",
"no_node_has_a_key_in_memory": "Ingen server har en nyckel till skolan i minnet.", "no_keystore_backups": "Det fanns inga s\u00e4kerhetskopior av nyckelf\u00f6rvaringen.", "keystore_backups_destroyed": "S\u00e4kerhetskopior av nyckelf\u00f6rvaringen som hade nycklarna har f\u00f6rst\u00f6rts.", "other_nodes_stopped": "Andra servrar som kunde l\u00e4sa skolan har stoppats.", "exports_deleted": "Exporter av skolans uppgifter har raderats.", "by": "av rollen", "on": "den",
"remains": "Vad som finns kvar, och hur l\u00e4nge",
"values_in_this_database": "Ol\u00e4sbara uppgifter i databasen, tills de tas bort.", "values_in_backups_and_wal": "Ol\u00e4sbara uppgifter i s\u00e4kerhetskopior och \u00e4ndringsloggar, l\u00e4ngst till {until}.",
"plaintext_from_before_a_column_was_encrypted": "Omfattas inte: det som lagrades innan en kolumn krypterades, i filer och s\u00e4kerhetskopior fr\u00e5n den tiden.", "logs_and_exports": "Omfattas inte: loggar, rapporter och exporter som har tagits ut ur databasen.", "keystore_backups": "Omfattas inte: s\u00e4kerhetskopior av sj\u00e4lva nyckelf\u00f6rvaringen, om det finns n\u00e5gra.",
"lease": "En server som inte tillfr\u00e5gades kunde l\u00e4sa tills dess l\u00e5n av nyckeln gick ut, l\u00e4ngst {lease} efter f\u00f6rst\u00f6ringen, {ended}.", "nodes": "Servrar", "asked": "Tillfr\u00e5gade", "this_server": "denna server", "not_asked": "Inte tillfr\u00e5gade", "none": "inga anslutna",
"columns": "Databasens krypterade kolumner", "since": "krypterad sedan", "unknown_since": "ok\u00e4nt sedan n\u00e4r",
"keystores": "Nyckelf\u00f6rvaringar", "is_software": "program", "is_hardware": "inte k\u00e4nd som program",
"versions": "Versioner", "check": "Hur intyget kontrolleras",
"check_text": "Ni beh\u00f6ver den publika nyckel som ni fick vid avtalets b\u00f6rjan (key.pem), med detta fingeravtryck:", "check_openssl": "Med OpenSSL: spara texten nedan som certificate.jws, och k\u00f6r", "check_jose": "Med ett JOSE-bibliotek: verifiera JWS-texten med den nyckeln, och godta bara algoritmen ES256. Dess inneh\u00e5ll \u00e4r det som st\u00e5r p\u00e5 den h\u00e4r sidan.", "jws": "Sj\u00e4lva intyget"}$json$;
	ELSE
		RAISE EXCEPTION 'unknown language "%"', language USING ERRCODE = 'invalid_parameter_value',
			HINT = 'Languages are sv and en.';
	END CASE;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._certificate_words(text) FROM PUBLIC;

-- A row of a table, its cells escaped, the first one a heading.
CREATE FUNCTION nomp_crypt._html_row(VARIADIC cells text[]) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT '<tr>' || string_agg(CASE c.n WHEN 1 THEN '<th scope="row">' || nomp_crypt._html(c.cell) || '</th>'
		ELSE '<td>' || nomp_crypt._html(c.cell) || '</td>' END, '' ORDER BY c.n) || E'</tr>\n'
	FROM unnest($1) WITH ORDINALITY c(cell, n)
$$;
REVOKE ALL ON FUNCTION nomp_crypt._html_row(text[]) FROM PUBLIC;

-- A list of words for the codes of an array.
CREATE FUNCTION nomp_crypt._html_list(words jsonb, codes jsonb) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT '<ul>' || coalesce(string_agg('<li>' || nomp_crypt._html(coalesce($1 ->> c.code, c.code)) || '</li>', E'\n' ORDER BY c.n), '')
		|| E'</ul>\n'
	FROM jsonb_array_elements_text($2) WITH ORDINALITY c(code, n)
$$;
REVOKE ALL ON FUNCTION nomp_crypt._html_list(jsonb, jsonb) FROM PUBLIC;

-- One page that can be printed and filed: no script, nothing from elsewhere.
-- The body is HTML, title and lead are not.
CREATE FUNCTION nomp_crypt._html_page(language text, title text, lead text, body text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $do$
	SELECT '<!DOCTYPE html>' || E'\n<html lang="' || nomp_crypt._html($1) || E'">\n<head>\n<meta charset="utf-8">\n'
		|| $$<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>$$ || nomp_crypt._html($2) || $$</title>
<style>
@page { margin: 18mm }
body { font: 11pt/1.45 Georgia, serif; color: #111; max-width: 46em; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em; border-bottom: 3px solid #111; padding-bottom: .3em }
h2 { font-size: 1.1em; margin: 1.4em 0 .3em }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .2em .6em .2em 0; border-bottom: 1px solid #ccc; overflow-wrap: anywhere }
th { font-weight: normal; color: #444 }
.lead { font-size: 1.1em }
.note { border-left: 4px solid #a00; padding: .3em .8em; background: #fdf3f3 }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: 8.5pt/1.35 monospace; background: #f5f5f5; padding: .6em }
</style>
</head>
<body>
<h1>$$ || nomp_crypt._html($2) || E'</h1>\n<p class="lead">' || nomp_crypt._html($3) || E'</p>\n' || $4 || E'</body>\n</html>\n'
$do$;
REVOKE ALL ON FUNCTION nomp_crypt._html_page(text, text, text, text) FROM PUBLIC;

-- A certificate as one page that can be printed and filed, in Swedish (sv) or
-- English (en): no script, nothing from elsewhere. Raises as certificate, and
-- 22023.
CREATE FUNCTION nomp_crypt.certificate_html(case_id uuid, language text DEFAULT 'sv') RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
	w jsonb := nomp_crypt._certificate_words(language);
	jws text := nomp_crypt.certificate(case_id);
	checked record;
	p jsonb;
	d jsonb;
	t nomp_crypt.tenant;
	day text := 'YYYY-MM-DD HH24:MI "UTC"';
	page text;
	attested text;
BEGIN
	SELECT * INTO checked FROM nomp_crypt.verify_certificate(jws);
	IF NOT checked.valid THEN
		RAISE EXCEPTION 'the certificate is not valid: %', checked.reason USING ERRCODE = 'data_corrupted';
	END IF;
	p := checked.payload;
	d := p -> 'data';
	SELECT * INTO t FROM nomp_crypt.tenant u WHERE u.uuid = (d ->> 'school')::uuid;
	w := w || jsonb_build_object(
		'lead', replace(w ->> 'lead', '{at}', to_char((d #>> '{timeline,destroyed_at}')::timestamptz, day)),
		'values_in_backups_and_wal', replace(w ->> 'values_in_backups_and_wal', '{until}',
			to_char((d #>> '{remains,backups_until}')::timestamptz, day)),
		'lease', replace(replace(w ->> 'lease', '{lease}', make_interval(secs => (d ->> 'longest_lease_seconds')::float8)::text),
			'{ended}', to_char((d #>> '{timeline,destroyed_at}')::timestamptz +
				make_interval(secs => (d ->> 'longest_lease_seconds')::float8), day)));
	page := '<p>' || nomp_crypt._html(w ->> 'not') || E'</p>\n';
	IF jsonb_path_exists(d, '$.keystores[*] ? (@.software == true)') THEN
		page := page || '<p class="note" id="software">' || nomp_crypt._html(w ->> 'software') || E'</p>\n';
	END IF;
	page := page || '<table>'
		|| nomp_crypt._html_row(w ->> 'school', concat_ws(', ', t.display_name, t.id))
		|| nomp_crypt._html_row(w ->> 'uuid', d ->> 'school')
		|| nomp_crypt._html_row(w ->> 'agreement', d ->> 'agreement')
		|| nomp_crypt._html_row(w ->> 'reference', d ->> 'reference')
		|| nomp_crypt._html_row(w ->> 'reason', w ->> (d ->> 'reason'))
		|| nomp_crypt._html_row(w ->> 'case', d ->> 'case')
		|| nomp_crypt._html_row(w ->> 'number', p ->> 'number')
		|| nomp_crypt._html_row(w ->> 'issued', to_char((p ->> 'at')::timestamptz, day))
		|| nomp_crypt._html_row(w ->> 'installation', p ->> 'installation') || E'</table>\n'
		|| '<h2>' || nomp_crypt._html(w ->> 'timeline') || E'</h2>\n<table>'
		|| (SELECT string_agg(nomp_crypt._html_row(w ->> e.step, to_char((d -> 'timeline' ->> e.step)::timestamptz, day)), '' ORDER BY e.n)
			FROM unnest('{requested_at,fenced_at,submitted_at,destroyed_at,verified_at}'::text[]) WITH ORDINALITY e(step, n)
			WHERE d -> 'timeline' ? e.step) || E'</table>\n'
		|| coalesce('<h2>' || nomp_crypt._html(w ->> 'before') || E'</h2>\n<table>' || (
			SELECT string_agg(nomp_crypt._html_row(b.what, to_char(b.at::timestamptz, day)), '' ORDER BY b.at::timestamptz)
			FROM (SELECT replace(w ->> 'approved', '{role}', a ->> 'role'), a ->> 'at' FROM jsonb_array_elements(d -> 'approvals') a
				UNION ALL SELECT w ->> 'held', h ->> 'placed_at' FROM jsonb_array_elements(d -> 'holds') h
				UNION ALL SELECT w ->> 'released', h ->> 'released_at' FROM jsonb_array_elements(d -> 'holds') h
				UNION ALL SELECT CASE WHEN d -> 'returned' ? 'manifest_sha256'
					THEN replace(w ->> 'returned', '{sum}', d #>> '{returned,manifest_sha256}') ELSE w ->> 'not_wanted' END,
					d #>> '{returned,at}') b(what, at)
			WHERE b.at IS NOT NULL) || E'</table>\n', '')
		|| coalesce('<div class="note" id="cancelled"><h2>' || nomp_crypt._html(w ->> 'cancelled') || E'</h2>\n<p>'
			|| nomp_crypt._html(w ->> 'cancelled_text') || E'</p>\n<table>' || nomp_crypt._html_row(w ->> 'label', w ->> 'between', w ->> 'observed')
			|| (SELECT string_agg(nomp_crypt._html_row(x.gap ->> 'key', concat_ws(E' \u2013 ', to_char((x.gap ->> 'scheduled_at')::timestamptz, day),
					to_char((x.gap ->> 'scheduled_again_at')::timestamptz, day)),
					concat_ws(', ', w ->> (x.gap ->> 'found'), to_char((x.gap ->> 'noticed_at')::timestamptz, day))), '' ORDER BY x.n)
				FROM jsonb_array_elements(d -> 'cancelled') WITH ORDINALITY x(gap, n)) || E'</table></div>\n', '')
		|| '<h2>' || nomp_crypt._html(w ->> 'method') || E'</h2>\n<p>' || nomp_crypt._html(w ->> 'method_text') || E'</p>\n'
		|| '<h2>' || nomp_crypt._html(w ->> 'keys') || E'</h2>\n<table>'
		|| nomp_crypt._html_row(w ->> 'label', w ->> 'keystore', w ->> 'made', w ->> 'end')
		|| (SELECT string_agg(nomp_crypt._html_row(k.key ->> 'label', k.key ->> 'keystore',
				to_char((k.key ->> 'made_at')::timestamptz, day),
				concat_ws(', ', w ->> (k.key #>> '{end,how}'), to_char((k.key #>> '{end,at}')::timestamptz, day),
					CASE WHEN (k.key #>> '{end,already_pending}')::boolean THEN w ->> 'already_pending' END)), '' ORDER BY k.n)
			FROM jsonb_array_elements(d -> 'keys') WITH ORDINALITY k(key, n)) || E'</table>\n'
		|| '<h2>' || nomp_crypt._html(w ->> 'observed') || E'</h2>\n' || nomp_crypt._html_list(w, d -> 'observed')
		|| '<h2>' || nomp_crypt._html(w ->> 'attested') || E'</h2>\n';
	SELECT string_agg('<li>' || nomp_crypt._html(format('%s (%s %s, %s %s)', w ->> (a.said ->> 'statement'), w ->> 'by',
			a.said ->> 'role', w ->> 'on', to_char((a.said ->> 'at')::timestamptz, 'YYYY-MM-DD'))) || E'</li>\n', '' ORDER BY a.n)
	INTO attested FROM jsonb_array_elements(d -> 'attested') WITH ORDINALITY a(said, n);
	page := page || coalesce('<ul>' || attested || E'</ul>\n', '<p>' || nomp_crypt._html(w ->> 'nothing_attested') || E'</p>\n')
		|| '<h2>' || nomp_crypt._html(w ->> 'remains') || E'</h2>\n'
		|| nomp_crypt._html_list(w, (d #> '{remains,unreadable}') || (d #> '{remains,not_reached}'))
		|| '<p>' || nomp_crypt._html(w ->> 'lease') || E'</p>\n<table>'
		|| nomp_crypt._html_row(w ->> 'asked', (SELECT string_agg(coalesce(w ->> n, n), ', ')
			FROM jsonb_array_elements_text(d #> '{nodes,asked}') n))
		|| nomp_crypt._html_row(w ->> 'not_asked', coalesce((SELECT string_agg(n, ', ')
			FROM jsonb_array_elements_text(d #> '{nodes,not_asked}') n), w ->> 'none')) || E'</table>\n'
		|| '<h2>' || nomp_crypt._html(w ->> 'columns') || E'</h2>\n<table>'
		|| coalesce((SELECT string_agg(nomp_crypt._html_row(concat(c.col ->> 'table', '.', c.col ->> 'column'),
				coalesce((w ->> 'since') || ' ' || to_char((c.col ->> 'encrypted_since')::timestamptz, 'YYYY-MM-DD'),
						 w ->> 'unknown_since')), '' ORDER BY c.n)
			FROM jsonb_array_elements(d -> 'columns') WITH ORDINALITY c(col, n)), '') || E'</table>\n'
		|| '<h2>' || nomp_crypt._html(w ->> 'keystores') || E'</h2>\n<table>'
		|| (SELECT string_agg(nomp_crypt._html_row(s.store ->> 'serial', concat_ws(', ', s.store ->> 'manufacturer', s.store ->> 'model'),
				w ->> CASE WHEN (s.store ->> 'software')::boolean THEN 'is_software' ELSE 'is_hardware' END), '' ORDER BY s.n)
			FROM jsonb_array_elements(d -> 'keystores') WITH ORDINALITY s(store, n)) || E'</table>\n'
		|| '<h2>' || nomp_crypt._html(w ->> 'versions') || E'</h2>\n<table>'
		|| (SELECT string_agg(nomp_crypt._html_row(v.key, v.value), '' ORDER BY v.key) FROM jsonb_each_text(d -> 'versions') v) || E'</table>\n'
		|| '<h2>' || nomp_crypt._html(w ->> 'check') || E'</h2>\n<p>' || nomp_crypt._html(w ->> 'check_text') || '<br><code id="fingerprint">'
		|| nomp_crypt._html(d #>> '{key,fingerprint}') || E'</code></p>\n<p>' || nomp_crypt._html(w ->> 'check_openssl') || E'</p>\n<pre id="openssl">'
		|| nomp_crypt._html($sh$openssl pkey -pubin -in key.pem -outform DER | openssl dgst -sha256
cut -d. -f1,2 certificate.jws | tr -d '\n' > signed
printf '%s==' "$(cut -d. -f3 certificate.jws | tr -- '-_' '+/')" | openssl base64 -d -A > rs
hex=$(od -An -v -tx1 rs | tr -d ' \n')
printf 'asn1=SEQUENCE:s\n[s]\nr=INTEGER:0x%.64s\ns=INTEGER:0x%s\n' "$hex" "${hex#????????????????????????????????????????????????????????????????}" > asn1
openssl asn1parse -genconf asn1 -noout -out signature
openssl dgst -sha256 -verify key.pem -signature signature signed$sh$) || E'</pre>\n<p>' || nomp_crypt._html(w ->> 'check_jose') || E'</p>\n<h2>'
		|| nomp_crypt._html(w ->> 'jws') || E'</h2>\n<pre id="jws">' || nomp_crypt._html(jws) || E'</pre>\n';
	RETURN nomp_crypt._html_page(language, w ->> 'title', w ->> 'lead', page);
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.certificate_html(uuid, text) FROM PUBLIC;

-- tenant_report as such a page. Raises as that.
CREATE FUNCTION nomp_crypt.tenant_report_html(id text, language text DEFAULT 'sv') RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
	w jsonb := nomp_crypt._report_words(language);
	sections text;
BEGIN
	SELECT string_agg(format(E'<h2>%s</h2>\n<table>%s</table>\n', nomp_crypt._html(s.section), s.lines), '' ORDER BY s.n)
	INTO sections
	FROM (SELECT min(r.n) AS n, r.section, string_agg(nomp_crypt._html_row(r.item, r.value), '' ORDER BY r.n) AS lines
		  FROM nomp_crypt.tenant_report(tenant_report_html.id, tenant_report_html.language)
			WITH ORDINALITY r(section, item, value, n)
		  GROUP BY r.section) s;
	RETURN nomp_crypt._html_page(language, w ->> 'title',
		replace(w ->> 'lead', '{at}', nomp_crypt._report_time(clock_timestamp())),
		'<p>' || nomp_crypt._html(replace(replace(w ->> 'unsigned', '{installation}',
				coalesce((SELECT i.uuid::text FROM nomp_crypt.installation i), '-')), '{database}', current_database()))
			|| E'</p>\n' || sections);
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.tenant_report_html(text, text) FROM PUBLIC;

-- ---------------------------------------------------------------------------
-- Existing tables: plain columns become encrypted ones, and back. For
-- everybody: these work with the caller's own rights on tables and schools.
-- ---------------------------------------------------------------------------

-- What became of columns, for nomp_crypt.inventory. Tables by name: oids differ
-- from node to node. 'gone' is what is plain again, or has another name;
-- 'statistics' is the whole database's. Event triggers and rewrite_table write
-- it: whoever owns a table cannot say of it what is not so.
CREATE TABLE nomp_crypt.column_history (
	uuid			uuid PRIMARY KEY DEFAULT gen_random_uuid(),
	at				timestamptz NOT NULL DEFAULT clock_timestamp(),
	table_name		text NOT NULL,
	column_name		name NOT NULL,
	event			text NOT NULL CHECK (event IN ('born', 'converted', 'rewritten', 'statistics', 'gone')),
	role			name NOT NULL,
	file			oid						-- that a table was born with, while it was empty
);
COMMENT ON TABLE nomp_crypt.column_history IS 'when columns became encrypted, and when what was plain before left the files';
CREATE INDEX column_history_table_idx ON nomp_crypt.column_history (table_name);
SELECT pg_catalog.pg_extension_config_dump('nomp_crypt.column_history', '');

-- A table's name as column_history has it.
CREATE FUNCTION nomp_crypt._table_name(of_table regclass) RETURNS text
LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp AS $$
	SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
	WHERE c.oid = $1
$$;

-- For definer functions: whoever called owns the table. Raises 42501.
CREATE FUNCTION nomp_crypt._require_table_owner(of_table regclass) RETURNS void
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF pg_has_role(nomp_crypt._acting_role(), (SELECT c.relowner FROM pg_class c WHERE c.oid = of_table), 'USAGE') IS NOT TRUE THEN
		RAISE EXCEPTION 'must be owner of table %', of_table USING ERRCODE = 'insufficient_privilege';
	END IF;
END
$$;

CREATE FUNCTION nomp_crypt._encrypt_as(value anyelement, tenant text, modifier int) RETURNS @extschema@.encrypted
LANGUAGE c VOLATILE PARALLEL SAFE AS 'MODULE_PATHNAME', 'nc_encrypt_as';
CREATE FUNCTION nomp_crypt._says_the_same(plain anyelement, value @extschema@.encrypted, tenant text, modifier int)
RETURNS boolean
LANGUAGE c STABLE PARALLEL SAFE COST 100 AS 'MODULE_PATHNAME', 'nc_says_the_same';
CREATE FUNCTION nomp_crypt._school_trouble(id text, read boolean) RETURNS text
LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'nc_school_trouble';
CREATE FUNCTION nomp_crypt._inner_type(modifier int) RETURNS text
LANGUAGE c IMMUTABLE STRICT AS 'MODULE_PATHNAME', 'nc_inner_type';
CREATE FUNCTION nomp_crypt._tenant_expression(of_table regclass, of_column name, tenant_expression text,
	OUT school name, OUT expression text, OUT columns text[], OUT subquery boolean)
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_tenant_expression';

-- A column that can be converted, one way or back. Raises 42703, 42809,
-- 42804, 42501, 0A000.
CREATE FUNCTION nomp_crypt._convertible(of_table regclass, of_column name, back boolean, OUT attnum int2,
	OUT type oid, OUT plain text, OUT modifier int)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	c pg_class;
	a pg_attribute;
	base record;
	obstacle text;
BEGIN
	SELECT r.* INTO c FROM pg_class r WHERE r.oid = of_table;
	IF c.relkind IS DISTINCT FROM 'r' AND c.relkind IS DISTINCT FROM 'p' THEN
		RAISE EXCEPTION '% is not a table', of_table USING ERRCODE = 'wrong_object_type';
	ELSIF c.relnamespace IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace, 'nomp_crypt'::regnamespace) THEN
		RAISE EXCEPTION '% is a table of the system', of_table USING ERRCODE = 'insufficient_privilege';
	ELSIF NOT pg_has_role(c.relowner, 'USAGE') THEN
		RAISE EXCEPTION 'must be owner of table %', of_table USING ERRCODE = 'insufficient_privilege';
	END IF;
	SELECT r.* INTO a FROM pg_attribute r
	WHERE r.attrelid = of_table AND r.attname = of_column AND r.attnum > 0 AND NOT r.attisdropped;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'column "%" of relation % does not exist', of_column, of_table USING ERRCODE = 'undefined_column';
	END IF;
	-- domains looked through; the modifier is the innermost that is one
	WITH RECURSIVE b AS (
		SELECT a.atttypid AS oid, a.atttypmod AS typmod
		UNION ALL SELECT t.typbasetype, CASE WHEN b.typmod >= 0 THEN b.typmod ELSE t.typtypmod END
		FROM b JOIN pg_type t ON t.oid = b.oid WHERE t.typtype = 'd')
	SELECT b.oid, b.typmod INTO base FROM b JOIN pg_type t ON t.oid = b.oid WHERE t.typtype <> 'd';
	IF back THEN
		IF base.oid <> '@extschema@.encrypted'::regtype THEN
			RAISE EXCEPTION 'column "%" of relation % is not encrypted', of_column, of_table
				USING ERRCODE = 'datatype_mismatch';
		END IF;
		plain := nomp_crypt._inner_type(base.typmod);
	ELSE
		IF nomp_crypt._holds_values(a.atttypid) THEN
			RAISE EXCEPTION 'column "%" of relation % is encrypted', of_column, of_table
				USING ERRCODE = 'datatype_mismatch';
		END IF;
		plain := format_type(base.oid, base.typmod);
	END IF;
	attnum := a.attnum;
	type := base.oid;
	modifier := base.typmod;
	SELECT what INTO obstacle FROM (VALUES
		(a.attinhcount > 0, 'it is inherited: convert it in the parent'),
		(c.reloftype <> 0, 'its table is of a composite type'),
		(a.attidentity <> '' OR EXISTS (SELECT FROM pg_depend d WHERE d.refclassid = 'pg_class'::regclass
			AND d.refobjid = of_table AND d.refobjsubid = a.attnum AND d.classid = 'pg_class'::regclass
			AND d.objid IN (SELECT s.oid FROM pg_class s WHERE s.relkind = 'S')), 'a sequence belongs to it'),
		(a.attgenerated <> '', 'it is computed from other columns'),
		(EXISTS (SELECT FROM pg_partition_tree(of_table) p
			JOIN pg_attribute k ON k.attrelid = p.relid AND k.attname = of_column
			JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = p.relid AND d.objsubid = k.attnum
				AND d.refclassid = 'pg_class'::regclass AND d.refobjid = p.relid AND d.refobjsubid = 0 AND d.deptype = 'i'),
		 'the table is partitioned by it'),
		(EXISTS (SELECT FROM pg_depend d WHERE d.refclassid = 'pg_type'::regclass AND d.refobjid = c.reltype
			AND d.classid = 'pg_class'::regclass AND d.objsubid > 0), 'a column of another table has the table''s row type'),
		(EXISTS (SELECT FROM pg_partition_tree(of_table) p JOIN pg_class f ON f.oid = p.relid WHERE f.relkind = 'f'),
			'a partition is a foreign table')
		) o(applies, what) WHERE o.applies LIMIT 1;
	IF obstacle IS NOT NULL THEN
		RAISE EXCEPTION 'column "%" of relation % cannot be converted: %', of_column, of_table, obstacle
			USING ERRCODE = 'feature_not_supported';
	END IF;
END
$$;

CREATE FUNCTION nomp_crypt._enabled(state "char") RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT CASE $1 WHEN 'D' THEN 'DISABLE' WHEN 'A' THEN 'ENABLE ALWAYS' WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'ENABLE' END
$$;

-- The statement that comments on something, or none.
CREATE FUNCTION nomp_crypt._comment(on_what text, comment text) RETURNS text[]
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT CASE WHEN $2 IS NULL THEN '{}'::text[] ELSE ARRAY[format('COMMENT ON %s IS %L', $1, $2)] END
$$;

-- The statements that give a relation, or a column of it, the rights that it has.
CREATE FUNCTION nomp_crypt._grants(relation regclass, acl aclitem[], of_column name) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT coalesce(array_agg(format('GRANT %s%s ON %s TO %s%s', a.privilege_type, '(' || quote_ident($3) || ')', $1,
		CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,
		CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
		ORDER BY a.grantee, a.privilege_type), '{}')
	FROM aclexplode($2) a
$$;

-- The statements that make a view again.
CREATE FUNCTION nomp_crypt._view_statements(view regclass) RETURNS text[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM set_config('search_path', 'pg_catalog, @extschema@, pg_temp', true);
	RETURN (SELECT ARRAY[format('CREATE VIEW %s%s AS %s', nomp_crypt._table_name($1),
			(SELECT ' WITH (' || string_agg(format('%I = %L', o.option_name, o.option_value), ', ') || ')'
			 FROM pg_options_to_table(c.reloptions) o), pg_get_viewdef(c.oid))]
		|| CASE WHEN c.relowner <> (SELECT r.oid FROM pg_roles r WHERE r.rolname = current_user) THEN
			ARRAY[format('ALTER VIEW %s OWNER TO %I', $1, pg_get_userbyid(c.relowner))] ELSE '{}' END
		|| CASE WHEN c.relacl IS NULL THEN '{}' ELSE
			ARRAY[format('REVOKE ALL ON %s FROM %I', $1, pg_get_userbyid(c.relowner))] || nomp_crypt._grants($1, c.relacl, NULL) END
		|| ARRAY(SELECT g FROM pg_attribute a, unnest(nomp_crypt._grants($1, a.attacl, a.attname)) g
			WHERE a.attrelid = c.oid AND a.attacl IS NOT NULL AND NOT a.attisdropped ORDER BY a.attnum, g)
		|| ARRAY(SELECT format('ALTER VIEW %s ALTER COLUMN %I SET DEFAULT %s', $1, a.attname, pg_get_expr(d.adbin, d.adrelid))
			FROM pg_attrdef d JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
			WHERE d.adrelid = c.oid ORDER BY a.attnum)
		|| ARRAY(SELECT pg_get_ruledef(r.oid) FROM pg_rewrite r WHERE r.ev_class = c.oid AND r.rulename <> '_RETURN' ORDER BY r.rulename)
		|| ARRAY(SELECT pg_get_triggerdef(t.oid) FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal ORDER BY t.tgname)
		|| nomp_crypt._comment(format('VIEW %s', $1), obj_description(c.oid, 'pg_class'))
		|| ARRAY(SELECT k FROM pg_attribute a, unnest(nomp_crypt._comment(format('COLUMN %s.%I', $1, a.attname), col_description(c.oid, a.attnum))) k
			WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum)
	FROM pg_class c WHERE c.oid = $1);
END
$$;

-- What hangs on a column and cannot stay while its type changes, in the order
-- in which it can be dropped: statements that drop it, and those that make it
-- again, with owner, rights and comments. "fate" is 'recreated'; 'kept' where
-- PostgreSQL makes it anew by itself; 'dropped' where it would mean something
-- else afterwards, or nothing. "searchable" says what the column will be; NULL
-- that it will be plain.
CREATE FUNCTION nomp_crypt._dependents(of_table regclass, of_column name, searchable boolean,
	OUT kind text, OUT object text, OUT fate text, OUT reason text, OUT drop_it text, OUT make_it text[], OUT id oid, OUT validate_it text)
RETURNS SETOF record
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	number int2 := (SELECT a.attnum FROM pg_attribute a WHERE a.attrelid = of_table AND a.attname = of_column);
BEGIN
	-- here and below: so that the type's operators are written without a schema,
	-- and are those of another type when they are read again
	PERFORM set_config('search_path', 'pg_catalog, @extschema@, pg_temp', true);
	-- views, and views over them, the outermost first
	RETURN QUERY
	WITH RECURSIVE v AS (
		SELECT r.ev_class AS oid, 1 AS depth FROM pg_depend d JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
		WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = of_table AND d.refobjsubid = number AND r.ev_class <> of_table
		UNION
		SELECT r.ev_class, v.depth + 1 FROM v JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = v.oid
		JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
		WHERE r.ev_class <> v.oid AND v.depth < 100)
	SELECT CASE c.relkind WHEN 'm' THEN 'materialized view' WHEN 'v' THEN 'view' ELSE 'rule' END,
		c.oid::regclass::text,
		CASE c.relkind WHEN 'v' THEN 'recreated' ELSE 'dropped' END,
		CASE c.relkind WHEN 'v' THEN NULL
			WHEN 'm' THEN 'it would keep what its query shows whoever refreshes it: make it again as it should be'
			ELSE 'a rule of that table uses the column' END,
		CASE c.relkind WHEN 'm' THEN format('DROP MATERIALIZED VIEW %s', c.oid::regclass)
			WHEN 'v' THEN format('DROP VIEW %s', c.oid::regclass)
			ELSE (SELECT string_agg(format('DROP RULE %I ON %s', r.rulename, c.oid::regclass), '; ') FROM pg_rewrite r
				JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid AND d.refclassid = 'pg_class'::regclass
				WHERE r.ev_class = c.oid AND d.refobjid = of_table AND d.refobjsubid = number) END,
		CASE c.relkind WHEN 'v' THEN nomp_crypt._view_statements(c.oid) END, c.oid, NULL::text
	FROM (SELECT v.oid, max(v.depth) AS depth FROM v GROUP BY v.oid) v JOIN pg_class c ON c.oid = v.oid
	ORDER BY v.depth DESC, c.oid;

	RETURN QUERY
	SELECT 'rule', format('%I on %s', r.rulename, of_table), 'recreated', NULL,
		format('DROP RULE %I ON %s', r.rulename, of_table),
		ARRAY[pg_get_ruledef(r.oid)] || CASE WHEN r.ev_enabled <> 'O' THEN
			format('ALTER TABLE %s %s RULE %I', of_table, nomp_crypt._enabled(r.ev_enabled), r.rulename) END, r.oid, NULL::text
	FROM pg_rewrite r WHERE r.ev_class = of_table AND r.rulename <> '_RETURN' AND EXISTS (
		SELECT FROM pg_depend d WHERE d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
		AND d.refclassid = 'pg_class'::regclass AND d.refobjid = of_table AND d.refobjsubid = number)
	ORDER BY r.rulename;

	RETURN QUERY
	SELECT 'policy', format('%I on %s', p.polname, p.polrelid::regclass), 'recreated', NULL,
		format('DROP POLICY %I ON %s', p.polname, p.polrelid::regclass),
		ARRAY[format('CREATE POLICY %I ON %s AS %s FOR %s TO %s%s%s', p.polname, p.polrelid::regclass,
			CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
			CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE' ELSE 'ALL' END,
			(SELECT string_agg(CASE r WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(r)) END, ', ') FROM unnest(p.polroles) r),
			' USING (' || pg_get_expr(p.polqual, p.polrelid) || ')', ' WITH CHECK (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')')]
		|| nomp_crypt._comment(format('POLICY %I ON %s', p.polname, p.polrelid::regclass), obj_description(p.oid, 'pg_policy')), p.oid, NULL::text
	FROM pg_policy p WHERE EXISTS (
		SELECT FROM pg_depend d WHERE d.classid = 'pg_policy'::regclass AND d.objid = p.oid
		AND d.refclassid = 'pg_class'::regclass AND d.refobjid = of_table AND d.refobjsubid = number)
	ORDER BY p.polrelid, p.polname;

	RETURN QUERY
	SELECT 'trigger', format('%I on %s', t.tgname, t.tgrelid::regclass), 'recreated', NULL,
		format('DROP TRIGGER %I ON %s', t.tgname, t.tgrelid::regclass),
		ARRAY[pg_get_triggerdef(t.oid)] || CASE WHEN t.tgenabled <> 'O' THEN
			format('ALTER TABLE %s %s TRIGGER %I', t.tgrelid::regclass, nomp_crypt._enabled(t.tgenabled), t.tgname) END
		|| nomp_crypt._comment(format('TRIGGER %I ON %s', t.tgname, t.tgrelid::regclass), obj_description(t.oid, 'pg_trigger')), t.oid, NULL::text
	FROM pg_trigger t WHERE NOT t.tgisinternal AND t.tgparentid = 0 AND EXISTS (
		SELECT FROM pg_depend d WHERE d.classid = 'pg_trigger'::regclass AND d.objid = t.oid
		AND d.refclassid = 'pg_class'::regclass AND d.refobjid = of_table AND d.refobjsubid = number)
	ORDER BY t.tgrelid, t.tgname;

	RETURN QUERY
	SELECT 'publication', p.pubname::text, 'recreated', NULL,
		format('ALTER PUBLICATION %I DROP TABLE %s', p.pubname, of_table),
		ARRAY[format('ALTER PUBLICATION %I ADD TABLE %s%s%s', p.pubname, of_table,
			(SELECT ' (' || string_agg(quote_ident(a.attname), ', ' ORDER BY u.place) || ')'
			 FROM unnest(r.prattrs::int2[]) WITH ORDINALITY u(attnum, place)
			 JOIN pg_attribute a ON a.attrelid = r.prrelid AND a.attnum = u.attnum),
			' WHERE (' || pg_get_expr(r.prqual, r.prrelid) || ')')], r.oid, NULL::text
	FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
	WHERE r.prrelid = of_table AND EXISTS (
		SELECT FROM pg_depend d WHERE d.classid = 'pg_publication_rel'::regclass AND d.objid = r.oid
		AND d.refclassid = 'pg_class'::regclass AND d.refobjid = of_table AND d.refobjsubid = number)
	ORDER BY p.pubname;

	RETURN QUERY
	SELECT 'function', p.oid::regprocedure::text, 'dropped', 'its body is bound to the column''s type',
		format('DROP ROUTINE %s', p.oid::regprocedure), NULL::text[], p.oid, NULL::text
	FROM pg_proc p WHERE EXISTS (
		SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid
		AND d.refclassid = 'pg_class'::regclass AND d.refobjid = of_table AND d.refobjsubid = number)
	ORDER BY p.oid;

	RETURN QUERY
	SELECT 'generated column', a.attname::text, 'dropped', 'it is computed from the column, and would keep what it says',
		format('ALTER TABLE %s DROP COLUMN %I', of_table, a.attname), NULL::text[], g.oid, NULL::text
	FROM pg_attrdef g JOIN pg_attribute a ON a.attrelid = g.adrelid AND a.attnum = g.adnum
	WHERE g.adrelid = of_table AND a.attgenerated <> '' AND EXISTS (
		SELECT FROM pg_depend d WHERE d.classid = 'pg_attrdef'::regclass AND d.objid = g.oid
		AND d.refclassid = 'pg_class'::regclass AND d.refobjid = of_table AND d.refobjsubid = number)
	ORDER BY a.attnum;

	RETURN QUERY
	SELECT CASE n.contype WHEN 'f' THEN 'foreign key' WHEN 'c' THEN 'check constraint' WHEN 'p' THEN 'primary key'
			WHEN 'u' THEN 'unique constraint' ELSE 'exclusion constraint' END,
		format('%I on %s', n.conname, n.conrelid::regclass),
		CASE WHEN n.contype = 'c' THEN 'recreated'
			WHEN n.contype IN ('p', 'u') AND searchable IS DISTINCT FROM false THEN 'kept' ELSE 'dropped' END,
		CASE WHEN n.contype = 'f' THEN 'both sides must be converted alike; then make it again'
			WHEN n.contype IN ('p', 'u') AND searchable IS DISTINCT FROM false THEN NULL
			WHEN n.contype <> 'c' THEN 'values that are not searchable cannot be told equal' END,
		format('ALTER TABLE %s DROP CONSTRAINT %I', n.conrelid::regclass, n.conname),
		CASE WHEN n.contype = 'c' THEN
			ARRAY[format('ALTER TABLE %s ADD CONSTRAINT %I %s', n.conrelid::regclass, n.conname, pg_get_constraintdef(n.oid))]
			|| nomp_crypt._comment(format('CONSTRAINT %I ON %s', n.conname, n.conrelid::regclass), obj_description(n.oid, 'pg_constraint')) END,
		CASE WHEN n.contype IN ('p', 'u') THEN n.conindid ELSE n.oid END,
		CASE WHEN n.contype = 'c' AND n.convalidated THEN format('ALTER TABLE %s VALIDATE CONSTRAINT %I', nomp_crypt._table_name(n.conrelid), n.conname) END
	FROM pg_constraint n WHERE n.contype IN ('f', 'c', 'p', 'u', 'x') AND n.conparentid = 0 AND n.coninhcount = 0 AND EXISTS (
		SELECT FROM pg_depend d WHERE d.classid = 'pg_constraint'::regclass AND d.objid = n.oid
		AND d.refclassid = 'pg_class'::regclass AND d.refobjid = of_table AND d.refobjsubid = number)
	-- what refers to a key goes before the key
	ORDER BY n.contype <> 'f', n.conrelid, n.conname;

	RETURN QUERY
	SELECT 'index', i.indexrelid::regclass::text, x.fate,
		CASE WHEN x.fate = 'dropped' THEN CASE WHEN x.key THEN 'values that are not searchable cannot be looked up'
			ELSE 'it would have to hold decrypted values, or compare them' END END,
		format('DROP INDEX %s', i.indexrelid::regclass), NULL::text[], i.indexrelid, NULL::text
	FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam,
		LATERAL (SELECT number = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]) AS key,
			-- what is left of its expressions without those that any value can answer
			regexp_replace(coalesce(pg_get_expr(i.indexprs, i.indrelid), '') || ' ' || coalesce(pg_get_expr(i.indpred, i.indrelid), ''),
				'\(' || regexp_replace(quote_ident(of_column), '([^[:alnum:]_])', '\\\1', 'g') || ' IS (NOT )?NULL\)', '', 'g') AS rest) u,
		LATERAL (SELECT u.key, CASE
			WHEN (u.key AND searchable IS NOT DISTINCT FROM false)
				OR position(quote_ident(of_column) IN u.rest) > 0 THEN 'dropped'
			WHEN u.key AND searchable AND (m.amname NOT IN ('btree', 'hash') OR EXISTS (
				SELECT FROM unnest(i.indkey::int2[], i.indclass::oid[]) k(attnum, opclass) JOIN pg_opclass o ON o.oid = k.opclass
				WHERE k.attnum = number AND NOT o.opcdefault)) THEN 'dropped'
			ELSE 'kept' END AS fate) x
	WHERE i.indrelid = of_table
		AND NOT EXISTS (SELECT FROM pg_constraint n WHERE n.conindid = i.indexrelid AND n.contype IN ('p', 'u', 'x'))
		AND (number = ANY (i.indkey::int2[]) OR EXISTS (
			SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
			AND d.refclassid = 'pg_class'::regclass AND d.refobjid = of_table AND d.refobjsubid = number))
	ORDER BY i.indexrelid::regclass::text COLLATE "C";

	RETURN QUERY
	SELECT 'statistics', format('%I.%I', n.nspname, s.stxname),
		CASE WHEN s.stxexprs IS NULL THEN 'kept' ELSE 'dropped' END,
		CASE WHEN s.stxexprs IS NOT NULL THEN 'they may keep decrypted values' END,
		format('DROP STATISTICS %I.%I', n.nspname, s.stxname), NULL::text[], s.oid, NULL::text
	FROM pg_statistic_ext s JOIN pg_namespace n ON n.oid = s.stxnamespace
	WHERE s.stxrelid = of_table AND (number = ANY (s.stxkeys::int2[]) OR EXISTS (
		SELECT FROM pg_depend d WHERE d.classid = 'pg_statistic_ext'::regclass AND d.objid = s.oid
		AND d.refclassid = 'pg_class'::regclass AND d.refobjid = of_table AND d.refobjsubid = number))
	ORDER BY s.stxname;

	RETURN QUERY
	WITH RECURSIVE b AS (
		SELECT a.atttypid AS oid FROM pg_attribute a WHERE a.attrelid = of_table AND a.attnum = number
		UNION ALL SELECT t.typbasetype FROM b JOIN pg_type t ON t.oid = b.oid WHERE t.typtype = 'd')
	SELECT 'domain', b.oid::regtype::text, 'dropped', 'the type inside is encrypted, and the domain''s own constraints hold no longer',
		NULL, NULL::text[], t.oid, NULL::text
	FROM b JOIN pg_type t ON t.oid = b.oid WHERE t.typtype = 'd' AND searchable IS NOT NULL
		AND (t.typnotnull OR EXISTS (SELECT FROM pg_constraint n WHERE n.contypid = t.oid));

	RETURN QUERY
	SELECT 'default', pg_get_expr(e.adbin, e.adrelid), 'recreated', NULL,
		format('ALTER TABLE %s ALTER COLUMN %I DROP DEFAULT', of_table, of_column),
		ARRAY[format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT %s', of_table, of_column, pg_get_expr(e.adbin, e.adrelid))], e.oid, NULL::text
	FROM pg_attrdef e WHERE e.adrelid = of_table AND e.adnum = number;
END
$$;

-- Drop what cannot stay while the column's type changes; what _put_back needs.
-- Raises 2BP01 for what could not be made again, unless it shall be dropped.
CREATE FUNCTION nomp_crypt._take_away(of_table regclass, of_column name, searchable boolean, drop_dependents boolean)
RETURNS jsonb
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	all_of_them jsonb;
	lost text;
	statement text;
BEGIN
	PERFORM set_config('search_path', 'pg_catalog, @extschema@, pg_temp', true);
	SELECT coalesce(jsonb_agg(to_jsonb(d) ORDER BY d.ordinality), '[]') INTO all_of_them
	FROM nomp_crypt._dependents(of_table, of_column, searchable) WITH ORDINALITY d WHERE d.fate <> 'kept';
	SELECT string_agg(format('%s %s: %s', d ->> 'kind', d ->> 'object', d ->> 'reason'), chr(10)) INTO lost
	FROM jsonb_array_elements(all_of_them) d WHERE d ->> 'fate' = 'dropped';
	IF lost IS NOT NULL AND NOT drop_dependents THEN
		RAISE EXCEPTION 'column "%" of relation % has dependents that cannot stay', of_column, of_table
			USING ERRCODE = 'dependent_objects_still_exist', DETAIL = lost,
			HINT = 'Drop them first, or repeat the call with drop_dependents => true; afterwards make them again as they shall be.';
	END IF;
	FOR statement IN SELECT d ->> 'drop_it' FROM jsonb_array_elements(all_of_them) d WHERE d ->> 'drop_it' IS NOT NULL LOOP
		EXECUTE statement;
	END LOOP;
	RETURN all_of_them;
END
$$;

-- Make it again, in the other order. What does not work with the new type is
-- refused, with its own SQLSTATE, or left out if that was said.
CREATE FUNCTION nomp_crypt._put_back(all_of_them jsonb, drop_dependents boolean) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	item jsonb;
	statement text;
	state text;
	message text;
BEGIN
	PERFORM set_config('search_path', 'pg_catalog, @extschema@, pg_temp', true);
	FOR item IN SELECT d FROM jsonb_array_elements(all_of_them) WITH ORDINALITY e(d, n) ORDER BY n DESC LOOP
		IF item ->> 'fate' = 'dropped' THEN
			RAISE NOTICE '% % was dropped: %', item ->> 'kind', item ->> 'object', item ->> 'reason';
			CONTINUE;
		END IF;
		BEGIN
			FOR statement IN SELECT s FROM jsonb_array_elements_text(item -> 'make_it') s WHERE s IS NOT NULL LOOP
				EXECUTE statement;
			END LOOP;
		EXCEPTION WHEN OTHERS THEN
			GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT;
			IF NOT drop_dependents THEN
				RAISE EXCEPTION '% % does not work with the new type: %', item ->> 'kind', item ->> 'object', message
					USING ERRCODE = state,
					HINT = 'Drop it first, or repeat the call with drop_dependents => true; afterwards make it again as it shall be.';
			END IF;
			RAISE NOTICE '% % was dropped: %', item ->> 'kind', item ->> 'object', message;
		END;
	END LOOP;
END
$$;

-- The type that a column becomes, by name and as a modifier. Raises 22023, 0A000.
CREATE FUNCTION nomp_crypt._encrypted_type(plain text, searchable boolean, normalise text,
	OUT name text, OUT modifier int)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	flags text := concat_ws(' ', CASE WHEN searchable THEN 'searchable' END, normalise);
BEGIN
	modifier := @extschema@.encrypted_typmod_in((CASE WHEN flags = '' THEN ARRAY[plain] ELSE ARRAY[plain, flags] END)::cstring[]);
	name := '@extschema@.encrypted' || @extschema@.encrypted_typmod_out(modifier)::text;
END
$$;

-- Rows by what the tenant expression says where no value can be encrypted;
-- with "of_what", an SQL expression over "t". Never the column's own value.
CREATE FUNCTION nomp_crypt._unknown_schools(of_table regclass, of_column name, school text,
	OUT tenant text, OUT "rows" bigint, OUT trouble text) RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET nomp_crypt.tenant = '' SET row_security = off AS $$
BEGIN
	RETURN QUERY EXECUTE format('SELECT s.tenant, s.n, nomp_crypt._school_trouble(s.tenant, false)
		FROM (SELECT %s AS tenant, count(*) AS n FROM %s t WHERE %I IS NOT NULL GROUP BY 1) s
		WHERE nomp_crypt._school_trouble(s.tenant, false) IS NOT NULL ORDER BY s.n DESC, s.tenant', school, of_table, of_column);
END
$$;

-- Refuse rows of no school. Raises 42704.
CREATE FUNCTION nomp_crypt._require_schools(of_table regclass, of_column name, school text) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	n bigint;
	examples text[];
BEGIN
	SELECT sum(u.rows), array_agg(format('%s: %s rows (%s)', coalesce(quote_literal(left(u.tenant, 100)), 'null'), u.rows, u.trouble))
	INTO n, examples FROM nomp_crypt._unknown_schools(of_table, of_column, school) u;
	IF n > 0 THEN
		RAISE EXCEPTION 'column "%" of relation % has % rows for whose tenant nothing can be encrypted', of_column, of_table, n
			USING ERRCODE = 'undefined_object',
			DETAIL = format('By what the tenant expression gives: %s%s.', array_to_string(examples[:5], ', '),
				CASE WHEN cardinality(examples) > 5 THEN format(', and %s more', cardinality(examples) - 5) ELSE '' END),
			HINT = 'Create those tenants (nomp_crypt.create_tenant), grant the right "encrypt" in them, or correct the rows. Nothing was changed.';
	END IF;
END
$$;

-- The expression that gives a row's tenant, as it can be used where subqueries
-- are not allowed: itself, or a call of a function that is made here.
CREATE FUNCTION nomp_crypt._school_function(of_table regclass, school_expression text, columns text[], function_name text)
RETURNS text
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	EXECUTE format('CREATE FUNCTION %s(%s) RETURNS text LANGUAGE sql STABLE AS %L', function_name,
		(SELECT string_agg(format_type(a.atttypid, NULL), ', ' ORDER BY u.n) FROM unnest(columns) WITH ORDINALITY u(c, n)
		 JOIN pg_attribute a ON a.attrelid = of_table AND a.attname = u.c),
		format('SELECT %s FROM (SELECT %s) t', school_expression,
			(SELECT string_agg(format('$%s AS %I', u.n, u.c), ', ' ORDER BY u.n) FROM unnest(columns) WITH ORDINALITY u(c, n))));
	EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', function_name);
	RETURN format('%s(%s)', function_name, (SELECT string_agg(quote_ident(c), ', ') FROM unnest(columns) c));
END
$$;

-- The trigger that ties a row's values to its school, where there is none.
CREATE FUNCTION nomp_crypt._install_enforcement(of_table regclass, school name) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = of_table AND t.tgfoid = 'nomp_crypt.enforce_tenant()'::regprocedure) THEN
		EXECUTE format('CREATE TRIGGER nomp_crypt_tenant BEFORE INSERT OR UPDATE ON %s
			FOR EACH ROW EXECUTE FUNCTION nomp_crypt.enforce_tenant(%L)', of_table, school);
		EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER nomp_crypt_tenant', of_table);
	END IF;
END
$$;

-- encrypt_column without what convert_rewrite.c does.
CREATE FUNCTION nomp_crypt._encrypt_column(of_table regclass, of_column name, school name, school_expression text,
	columns text[], subquery boolean, searchable boolean, normalise text, drop_dependents boolean, enforce boolean)
RETURNS bigint
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET nomp_crypt.tenant = '' SET row_security = off AS $$
DECLARE
	what record := nomp_crypt._convertible(of_table, of_column, false);
	target record := nomp_crypt._encrypted_type(what.plain, searchable, normalise);
	function_name text;
	dependents jsonb;
	encrypted bigint;
BEGIN
	EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', of_table);
	PERFORM nomp_crypt._progress('encrypt_column', nomp_crypt._table_name(of_table), 'looking for unknown tenants', 'rows', 0, 0);
	PERFORM nomp_crypt._require_schools(of_table, of_column, school_expression);
	dependents := nomp_crypt._take_away(of_table, of_column, searchable, drop_dependents);
	IF subquery THEN
		function_name := (SELECT format('%I.%I', n.nspname, 'nomp_crypt_tenant_' || replace(gen_random_uuid()::text, '-', ''))
			FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = of_table);
		school_expression := nomp_crypt._school_function(of_table, school_expression, columns, function_name);
	END IF;
	PERFORM nomp_crypt._progress('encrypt_column', nomp_crypt._table_name(of_table), 'rewriting the table', 'rows', 0, 0);
	EXECUTE format('ALTER TABLE %s ALTER COLUMN %I TYPE %s USING nomp_crypt._encrypt_as(%I::%s, %s, %s)',
		of_table, of_column, target.name, of_column, what.plain, school_expression, target.modifier);
	IF subquery THEN
		EXECUTE format('DROP FUNCTION %s', function_name);
	END IF;
	PERFORM nomp_crypt._put_back(dependents, drop_dependents);
	IF enforce AND school IS NOT NULL THEN
		PERFORM nomp_crypt._install_enforcement(of_table, school);
	END IF;
	EXECUTE format('SELECT count(%I) FROM %s', of_column, of_table) INTO encrypted;
	PERFORM nomp_crypt._progress(NULL, NULL, NULL, NULL, NULL, NULL);
	RETURN encrypted;
END
$$;

-- A plain column becomes an encrypted one, each value for the tenant that the
-- expression gives for its row: see convert_rewrite.c.
CREATE FUNCTION nomp_crypt.encrypt_column(table_name regclass, column_name name, tenant_expression text,
	searchable boolean DEFAULT false, normalise text DEFAULT NULL, drop_dependents boolean DEFAULT false,
	enforce boolean DEFAULT true) RETURNS bigint
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'nc_encrypt_column';

-- An encrypted column becomes a plain one again. Values of erased tenants
-- become null if that is said. Needs the right "decrypt" in all tenants that
-- have values in it. The number of values that are plain now. Raises 2BP01,
-- 42501, 42703, 42804, 42809, NC001 to NC005.
CREATE FUNCTION nomp_crypt.decrypt_column(table_name regclass, column_name name, drop_dependents boolean DEFAULT false,
	erased_to_null boolean DEFAULT false) RETURNS bigint
LANGUAGE plpgsql VOLATILE STRICT
SET search_path = pg_catalog, pg_temp SET nomp_crypt.tenant = '' SET row_security = off AS $$
DECLARE
	what record := nomp_crypt._convertible(table_name, column_name, true);
	tenant record;
	dependents jsonb;
	decrypted bigint;
BEGIN
	EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', table_name);
	PERFORM nomp_crypt._progress('decrypt_column', nomp_crypt._table_name(table_name), 'looking for tenants', 'rows', 0, 0);
	FOR tenant IN EXECUTE format('SELECT i.tenant, i.state, count(*) AS n FROM %s t, LATERAL nomp_crypt.key_info(t.%I) i
			WHERE t.%I IS NOT NULL GROUP BY 1, 2 ORDER BY 1, 2', table_name, column_name, column_name) LOOP
		IF tenant.state = 'erased' AND NOT erased_to_null THEN
			RAISE EXCEPTION 'column "%" of relation % has % values of tenant "%", which has been erased',
				column_name, table_name, tenant.n, tenant.tenant USING ERRCODE = 'NC001',
				HINT = 'They can never be read again. Repeat the call with erased_to_null => true to make them null.';
		ELSIF tenant.state IS DISTINCT FROM 'erased' AND nomp_crypt._school_trouble(tenant.tenant, true) LIKE 'right%' THEN
			RAISE EXCEPTION 'right "decrypt" missing for tenant "%", of which column "%" of relation % has % values',
				tenant.tenant, column_name, table_name, tenant.n USING ERRCODE = 'insufficient_privilege',
				HINT = format('SELECT nomp_crypt.grant_tenant(%L, %L, ''{decrypt}'');', tenant.tenant, current_user);
		END IF;
	END LOOP;
	dependents := nomp_crypt._take_away(table_name, column_name, NULL, drop_dependents);
	PERFORM nomp_crypt._progress('decrypt_column', nomp_crypt._table_name(table_name), 'rewriting the table', 'rows', 0, 0);
	EXECUTE format('ALTER TABLE %1$s ALTER COLUMN %2$I TYPE %3$s USING %4$s%2$I::%3$s%5$s', table_name, column_name, what.plain,
		CASE WHEN erased_to_null THEN format('CASE WHEN nomp_crypt.try_decrypt(%I) IS NOT NULL THEN ', column_name) END,
		CASE WHEN erased_to_null THEN ' END' END);
	PERFORM nomp_crypt._put_back(dependents, drop_dependents);
	IF NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = table_name AND a.attnum > 0 AND NOT a.attisdropped
			AND nomp_crypt._holds_values(a.atttypid))
		AND EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = table_name AND t.tgname = 'nomp_crypt_tenant') THEN
		EXECUTE format('DROP TRIGGER nomp_crypt_tenant ON %s', table_name);
	END IF;
	EXECUTE format('SELECT count(%I) FROM %s', column_name, table_name) INTO decrypted;
	PERFORM nomp_crypt._progress(NULL, NULL, NULL, NULL, NULL, NULL);
	RETURN decrypted;
END
$$;

-- ---------------------------------------------------------------------------
-- The inventory: what is encrypted, and since when on disk
-- ---------------------------------------------------------------------------

-- The last event of a column.
CREATE FUNCTION nomp_crypt._last_event(of_table text, of_column name) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT h.event FROM nomp_crypt.column_history h WHERE h.table_name = $1 AND h.column_name = $2 ORDER BY h.at DESC LIMIT 1
$$;
REVOKE ALL ON FUNCTION nomp_crypt._last_event(text, name) FROM PUBLIC;

-- Definitions are seen by event triggers: a table that is made with an
-- encrypted column, a column that is there later, or no longer, a rewrite.
-- Whatever goes wrong in them is no reason to refuse somebody's definition: the
-- column's past is then not known.
CREATE FUNCTION nomp_crypt._notice_columns() RETURNS event_trigger
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	WITH seen AS (
		SELECT c.objid AS oid, c.command_tag <> 'ALTER TABLE' AS born, false AS rewritten
		FROM pg_event_trigger_ddl_commands() c
		WHERE tg_event = 'ddl_command_end' AND c.classid = 'pg_class'::regclass
		UNION SELECT pg_event_trigger_table_rewrite_oid(), false, true WHERE tg_event = 'table_rewrite'),
	relation AS (
		SELECT s.*, nomp_crypt._table_name(r.oid) AS name FROM seen s JOIN pg_class r ON r.oid = s.oid
		WHERE r.relkind IN ('r', 'm') AND r.relpersistence <> 't'),
	encrypted AS (
		SELECT r.*, a.attname FROM relation r JOIN pg_attribute a ON a.attrelid = r.oid
		WHERE a.attnum > 0 AND NOT a.attisdropped AND nomp_crypt._holds_values(a.atttypid)),
	event AS (
		SELECT e.name, e.attname, 'born' AS event FROM encrypted e WHERE e.born
		UNION SELECT e.name, e.attname, 'converted' FROM encrypted e
		WHERE NOT e.born AND coalesce(nomp_crypt._last_event(e.name, e.attname), 'gone') = 'gone'
		UNION SELECT e.name, e.attname, 'rewritten' FROM encrypted e WHERE e.rewritten
		UNION SELECT h.table_name, h.column_name, 'gone' FROM relation r JOIN nomp_crypt.column_history h ON h.table_name = r.name
		WHERE NOT EXISTS (SELECT FROM encrypted e WHERE e.name = r.name AND e.attname = h.column_name)
			AND nomp_crypt._last_event(h.table_name, h.column_name) <> 'gone')
	INSERT INTO nomp_crypt.column_history (at, table_name, column_name, event, role, file)
	SELECT clock_timestamp(), v.name, v.attname, v.event, nomp_crypt._acting_role(),
		CASE WHEN v.event = 'born' THEN (SELECT pg_relation_filenode(r.oid) FROM relation r WHERE r.name = v.name LIMIT 1) END
	FROM event v ORDER BY v.event;
EXCEPTION WHEN OTHERS THEN
	NULL;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._notice_columns() FROM PUBLIC;
CREATE EVENT TRIGGER nomp_crypt_definitions ON ddl_command_end
WHEN TAG IN ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'CREATE MATERIALIZED VIEW', 'ALTER TABLE')
EXECUTE FUNCTION nomp_crypt._notice_columns();
ALTER EVENT TRIGGER nomp_crypt_definitions ENABLE ALWAYS;
CREATE EVENT TRIGGER nomp_crypt_rewrites ON table_rewrite
EXECUTE FUNCTION nomp_crypt._notice_columns();
ALTER EVENT TRIGGER nomp_crypt_rewrites ENABLE ALWAYS;

-- What is known of a column's past: since when nothing plain of it is in the
-- table's files and the statistics, and what is missing if that is not known.
CREATE FUNCTION nomp_crypt._column_past(of_table text, of_column name,
	OUT since timestamptz, OUT known text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	WITH h AS (SELECT h.event, h.at FROM nomp_crypt.column_history h
			   WHERE (h.table_name = $1 AND h.column_name = $2) OR h.event = 'statistics'),
		-- a table that was made anew under the name begins anew
		b AS (SELECT coalesce(max(h.at) FILTER (WHERE h.event = 'born'), '-infinity') AS born,
				max(h.at) FILTER (WHERE h.event IN ('converted', 'gone')) AS plain FROM h),
		c AS (SELECT b.born, b.plain, min(h.at) FILTER (WHERE h.event = 'rewritten' AND h.at >= b.plain) AS files,
				min(h.at) FILTER (WHERE h.event = 'statistics' AND h.at >= b.plain) AS statistics
			  FROM b LEFT JOIN h ON true GROUP BY b.born, b.plain)
	SELECT CASE WHEN c.plain IS NULL OR c.born > c.plain THEN nullif(c.born, '-infinity')
			ELSE CASE WHEN c.files IS NOT NULL AND c.statistics IS NOT NULL THEN greatest(c.files, c.statistics) END END,
		CASE WHEN c.plain IS NULL AND c.born = '-infinity' THEN 'unknown'
			WHEN c.plain IS NULL OR c.born > c.plain THEN 'encrypted since its table was made'
			WHEN c.files IS NULL THEN 'plain values may be left in the table''s files'
			WHEN c.statistics IS NULL THEN 'plain values may be left in pg_statistic'
			ELSE 'rewritten' END
	FROM c
$$;
REVOKE ALL ON FUNCTION nomp_crypt._column_past(text, name) FROM PUBLIC;

CREATE VIEW nomp_crypt.inventory AS
SELECT nomp_crypt._table_name(c.oid) AS table_name, a.attname AS column_name,
	format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull AS not_null,
	format_type(a.atttypid, a.atttypmod) ~ ', searchable' AS searchable,
	CASE WHEN c.reltuples >= 0 THEN c.reltuples::bigint END AS rows_estimate,
	s.school, s.schools_estimate,
	CASE WHEN p.known <> 'unknown' AND p.since IS NOT NULL THEN p.since END AS encrypted_on_disk_since,
	p.known AS state,
	CASE WHEN p.known = 'rewritten' THEN p.since + nomp_crypt._backup_retention() END AS backups_with_plaintext_until
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped,
	LATERAL nomp_crypt._column_past(nomp_crypt._table_name(c.oid), a.attname) p
	LEFT JOIN LATERAL (
		SELECT k.attname AS school, CASE WHEN d.n_distinct >= 0 THEN d.n_distinct ELSE -d.n_distinct * c.reltuples END::bigint AS schools_estimate
		FROM pg_trigger t JOIN pg_attribute k ON k.attrelid = c.oid AND k.attname = rtrim(encode(t.tgargs, 'escape'), '\000')
		LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
		LEFT JOIN pg_stats d ON d.schemaname = n.nspname AND d.tablename = c.relname AND d.attname = k.attname
		WHERE t.tgrelid = c.oid AND t.tgfoid = 'nomp_crypt.enforce_tenant()'::regprocedure LIMIT 1) s ON true
WHERE c.relkind IN ('r', 'm') AND c.relpersistence <> 't' AND nomp_crypt._holds_values(a.atttypid);
COMMENT ON VIEW nomp_crypt.inventory IS 'one row per encrypted column of a table, partition or materialized view';
GRANT EXECUTE ON FUNCTION nomp_crypt._column_past(text, name), nomp_crypt._backup_retention() TO pg_monitor;
GRANT SELECT ON nomp_crypt.inventory TO pg_monitor;

-- The exact numbers: values of a column by tenant. Needs no key; SELECT on the
-- column.
CREATE FUNCTION nomp_crypt.column_tenants(table_name regclass, column_name name,
	OUT tenant text, OUT "values" bigint) RETURNS SETOF record
LANGUAGE plpgsql STABLE STRICT SET search_path = pg_catalog, pg_temp SET nomp_crypt.tenant = '' SET row_security = off AS $$
BEGIN
	RETURN QUERY EXECUTE format('SELECT nomp_crypt.tenant_of(t.%1$I), count(*) FROM %2$s t WHERE t.%1$I IS NOT NULL GROUP BY 1 ORDER BY 1',
		column_name, table_name);
END
$$;

-- The steps of rewrite_table. That its files were rewritten:
CREATE FUNCTION nomp_crypt._note_rewrite(of_table regclass) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	INSERT INTO nomp_crypt.column_history (at, table_name, column_name, event, role)
	SELECT clock_timestamp(), nomp_crypt._table_name($1), a.attname, e.event, nomp_crypt._acting_role()
	FROM (VALUES ('converted'), ('rewritten')) e(event) CROSS JOIN pg_attribute a
	WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped AND nomp_crypt._holds_values(a.atttypid)
		AND (e.event = 'rewritten' OR coalesce(nomp_crypt._last_event(nomp_crypt._table_name($1), a.attname), 'gone') = 'gone')
	ORDER BY e.event
$$;
REVOKE ALL ON FUNCTION nomp_crypt._note_rewrite(regclass) FROM PUBLIC;
-- Has pg_repack given the table the file that it has, and was that one made,
-- empty, after the last of its columns was plain? Then nothing plain is in it,
-- for rows are all that was put there. The old file belongs to pg_repack's own
-- table until that is dropped.
CREATE FUNCTION nomp_crypt._repacked(of_table regclass) RETURNS boolean
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT to_regclass('repack.table_' || $1::oid) IS NULL AND EXISTS (
		SELECT FROM nomp_crypt.column_history h
		WHERE h.table_name = 'repack.table_' || $1::oid AND h.event = 'born' AND h.file = pg_relation_filenode($1)
			AND h.at > ALL (SELECT p.at FROM nomp_crypt.column_history p
							WHERE p.table_name = nomp_crypt._table_name($1) AND p.event IN ('converted', 'gone')))
$$;
REVOKE ALL ON FUNCTION nomp_crypt._repacked(regclass) FROM PUBLIC;
-- For the table's owner: must its files be rewritten, by what is on record?
-- Raises 42501, 42809.
CREATE FUNCTION nomp_crypt._needs_rewrite(of_table regclass, force boolean) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM nomp_crypt._require_table_owner(of_table);
	IF force THEN
		RETURN true;
	ELSIF NOT EXISTS (SELECT FROM pg_attribute a, LATERAL nomp_crypt._column_past(nomp_crypt._table_name(of_table), a.attname) p
		WHERE a.attrelid = of_table AND a.attnum > 0 AND NOT a.attisdropped AND nomp_crypt._holds_values(a.atttypid)
			AND p.known IN ('unknown', 'plain values may be left in the table''s files')) THEN
		RETURN false;
	ELSIF nomp_crypt._repacked(of_table) THEN
		PERFORM nomp_crypt._note_rewrite(of_table);
		RETURN false;
	END IF;
	RETURN true;
END
$$;
-- The same for the statistics, of which there is one set for all tables.
CREATE FUNCTION nomp_crypt._needs_statistics(of_table regclass) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM nomp_crypt._require_table_owner(of_table);
	RETURN EXISTS (SELECT FROM (SELECT of_table AS relid UNION SELECT p.relid FROM pg_partition_tree(of_table) p) t
		JOIN pg_attribute a ON a.attrelid = t.relid AND a.attnum > 0 AND NOT a.attisdropped,
		LATERAL nomp_crypt._column_past(nomp_crypt._table_name(t.relid), a.attname) p
		WHERE nomp_crypt._holds_values(a.atttypid) AND p.known = 'plain values may be left in pg_statistic');
END
$$;
CREATE FUNCTION nomp_crypt._note_statistics(of_table regclass, since timestamptz) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF nomp_crypt._needs_statistics(of_table) THEN
		INSERT INTO nomp_crypt.column_history (at, table_name, column_name, event, role)
		VALUES (since, '', '', 'statistics', nomp_crypt._acting_role());
	END IF;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._note_statistics(regclass, timestamptz) FROM PUBLIC;

-- No plain value of converted columns is left in a table's files, nor in the
-- statistics: see convert_files.c. Locks the table for as long as it takes.
CREATE PROCEDURE nomp_crypt.rewrite_table(table_name regclass, force boolean DEFAULT false,
	lock_timeout interval DEFAULT '2 seconds', tries int DEFAULT 60, patience interval DEFAULT '1 hour')
LANGUAGE c AS 'MODULE_PATHNAME', 'nc_rewrite_table';

-- ---------------------------------------------------------------------------
-- The same while others write: an encrypted copy beside the plain column, kept
-- in step by a trigger, takes its place in the end.
-- ---------------------------------------------------------------------------

-- One row per conversion; "after" is what remains to be done after the swap.
CREATE TABLE nomp_crypt.conversion (
	uuid			uuid PRIMARY KEY,
	table_name		text NOT NULL,
	column_name		name NOT NULL,
	shadow			name NOT NULL,
	plain_type		text NOT NULL,
	type			text NOT NULL,
	modifier		int NOT NULL,
	tenant_expression text NOT NULL,
	school			name,
	columns			text[] NOT NULL,
	drop_dependents	boolean NOT NULL,
	enforce			boolean NOT NULL,
	role			name NOT NULL,
	state			text NOT NULL DEFAULT 'begun' CHECK (state IN ('begun', 'filling', 'swapped', 'done', 'cancelled')),
	after			text[] NOT NULL DEFAULT '{}',
	started_at		timestamptz NOT NULL DEFAULT clock_timestamp(),
	swapped_at		timestamptz,
	ended_at		timestamptz
);
COMMENT ON TABLE nomp_crypt.conversion IS 'tables that are, or were, converted while others wrote to them';
CREATE UNIQUE INDEX conversion_one_per_column ON nomp_crypt.conversion (table_name, column_name)
WHERE state NOT IN ('done', 'cancelled');
SELECT pg_catalog.pg_extension_config_dump('nomp_crypt.conversion', '');

-- What belongs to a conversion is named after its first eight digits.
CREATE FUNCTION nomp_crypt._conversion_name(conversion uuid, what text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT 'nomp_crypt_' || left($1::text, 8) || '_' || $2
$$;
-- In the table's schema.
CREATE FUNCTION nomp_crypt._conversion_object(of_table regclass, conversion uuid, what text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT format('%I.%I', n.nspname, nomp_crypt._conversion_name($2, $3))
	FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1
$$;

-- For convert_row.c, which asks as a superuser.
CREATE FUNCTION nomp_crypt._conversion_facts(conversion uuid, OUT "table" oid, OUT column_name name, OUT shadow name,
	OUT modifier int, OUT school name, OUT function oid, OUT columns text[], OUT role oid, OUT sequence oid) RETURNS SETOF record
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT t.oid, c.column_name, c.shadow, c.modifier, c.school,
		to_regproc(nomp_crypt._conversion_object(t.oid, c.uuid, 'tenant'))::oid, c.columns, r.oid,
		to_regclass(nomp_crypt._conversion_object(t.oid, c.uuid, 'missed'))::oid
	FROM nomp_crypt.conversion c, to_regclass(c.table_name) t, pg_roles r
	WHERE c.uuid = $1 AND c.state = 'filling' AND r.rolname = c.role
$$;
REVOKE ALL ON FUNCTION nomp_crypt._conversion_facts(uuid) FROM PUBLIC;
CREATE FUNCTION nomp_crypt._convert_row() RETURNS trigger
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'nc_convert_row';

-- The conversion of a column that is under way, or of that uuid, for the
-- table's owner. Raises 42501.
CREATE FUNCTION nomp_crypt._conversion_of(of_table regclass, of_column name) RETURNS nomp_crypt.conversion
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM nomp_crypt._require_table_owner(of_table);
	RETURN (SELECT c FROM nomp_crypt.conversion c WHERE c.table_name = nomp_crypt._table_name(of_table)
		AND c.column_name = of_column AND c.state NOT IN ('done', 'cancelled'));
END
$$;
CREATE FUNCTION nomp_crypt._conversion(conversion uuid) RETURNS nomp_crypt.conversion
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	c nomp_crypt.conversion := (SELECT v FROM nomp_crypt.conversion v WHERE v.uuid = conversion);
BEGIN
	IF c.uuid IS NULL OR to_regclass(c.table_name) IS NULL THEN
		RAISE EXCEPTION 'the conversion, or its table, does not exist any more' USING ERRCODE = 'undefined_object';
	END IF;
	PERFORM nomp_crypt._require_table_owner(to_regclass(c.table_name));
	RETURN c;
END
$$;

-- Begin one. It is the caller's: nobody can begin one for another role.
CREATE FUNCTION nomp_crypt._conversion_begin(of_table regclass, of_column name, shadow name, plain_type text, type text,
	modifier int, tenant_expression text, school name, columns text[], drop_dependents boolean, enforce boolean) RETURNS uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	new_conversion uuid := gen_random_uuid();
BEGIN
	PERFORM nomp_crypt._require_table_owner(of_table);
	INSERT INTO nomp_crypt.conversion (uuid, table_name, column_name, shadow, plain_type, type, modifier, tenant_expression,
		school, columns, drop_dependents, enforce, role)
	VALUES (new_conversion, nomp_crypt._table_name(of_table), of_column, shadow, plain_type, type, modifier, tenant_expression,
		school, columns, drop_dependents, enforce, nomp_crypt._acting_role());
	RETURN new_conversion;
END
$$;

-- The next state, in which something remains to be done perhaps; for the
-- table's owner.
CREATE FUNCTION nomp_crypt._conversion_state(conversion uuid, state text, after text[]) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM nomp_crypt._conversion(conversion);
	UPDATE nomp_crypt.conversion c SET state = _conversion_state.state, after = coalesce(_conversion_state.after, c.after),
		swapped_at = CASE WHEN _conversion_state.state = 'swapped' THEN coalesce(c.swapped_at, clock_timestamp()) ELSE c.swapped_at END,
		ended_at = CASE WHEN _conversion_state.state IN ('done', 'cancelled') THEN clock_timestamp() END
	WHERE c.uuid = conversion;
END
$$;

-- Tables whose new column a subscriber would miss.
CREATE FUNCTION nomp_crypt._publications(of_table regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT string_agg(quote_ident(p.pubname), ', ' ORDER BY p.pubname) FROM pg_publication p
	WHERE EXISTS (SELECT FROM (SELECT $1 AS oid UNION SELECT t.relid FROM pg_partition_tree($1) t
							   UNION SELECT a.relid FROM pg_partition_ancestors($1) a) r
		JOIN pg_class c ON c.oid = r.oid
		WHERE p.puballtables
			OR EXISTS (SELECT FROM pg_publication_rel u WHERE u.prpubid = p.oid AND u.prrelid = c.oid AND u.prattrs IS NULL)
			OR EXISTS (SELECT FROM pg_publication_namespace u WHERE u.pnpubid = p.oid AND u.pnnspid = c.relnamespace))
$$;

-- See whether it can be done, and put it on record; or the conversion that is
-- under way. Refuses what encrypt_column refuses, and 0A000.
CREATE FUNCTION nomp_crypt._online_begin(of_table regclass, of_column name, school name, school_expression text,
	columns text[], searchable boolean, normalise text, drop_dependents boolean, enforce boolean) RETURNS uuid
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET nomp_crypt.tenant = '' SET row_security = off AS $$
DECLARE
	c nomp_crypt.conversion := nomp_crypt._conversion_of(of_table, of_column);
	what record;
	target record;
	lost text;
BEGIN
	IF c.uuid IS NOT NULL THEN
		IF c.role <> current_user THEN
			RAISE EXCEPTION 'the conversion of column "%" of relation % was begun by role "%"', of_column, of_table, c.role
				USING ERRCODE = 'insufficient_privilege', HINT = 'Go on as that role, or CALL nomp_crypt.cancel_conversion().';
		END IF;
		RAISE NOTICE 'going on with the conversion of column "%" of relation %', of_column, of_table
			USING HINT = 'Whose a row is, the type and the options are as they were given then.';
		RETURN c.uuid;
	END IF;
	what := nomp_crypt._convertible(of_table, of_column, false);
	target := nomp_crypt._encrypted_type(what.plain, searchable, normalise);
	IF EXISTS (SELECT FROM pg_inherits i JOIN pg_class r ON r.oid = i.inhparent WHERE i.inhparent = of_table AND r.relkind = 'r') THEN
		RAISE EXCEPTION 'relation % has children that inherit from it', of_table USING ERRCODE = 'feature_not_supported',
			HINT = 'Convert it by nomp_crypt.encrypt_column.';
	ELSIF nomp_crypt._publications(of_table) IS NOT NULL THEN
		RAISE EXCEPTION 'relation % is published with all its columns, and subscribers would miss the new one', of_table
			USING ERRCODE = 'object_not_in_prerequisite_state',
			DETAIL = format('Publications: %s.', nomp_crypt._publications(of_table)),
			HINT = 'Give the publications a list of columns, or convert the table by nomp_crypt.encrypt_column, there too.';
	ELSIF EXISTS (SELECT FROM pg_class r WHERE r.oid = of_table AND r.relkind = 'p') AND EXISTS (
		SELECT FROM nomp_crypt._dependents(of_table, of_column, searchable) d
		WHERE d.fate = 'kept' AND d.kind IN ('index', 'primary key', 'unique constraint')) THEN
		RAISE EXCEPTION 'column "%" of partitioned table % has indexes, which cannot be built while others write', of_column, of_table
			USING ERRCODE = 'feature_not_supported',
			HINT = 'Drop them first and make them again afterwards, or convert the table by nomp_crypt.encrypt_column.';
	END IF;
	SELECT string_agg(format('%s %s: %s', d.kind, d.object, d.reason), chr(10)) INTO lost
	FROM nomp_crypt._dependents(of_table, of_column, searchable) d WHERE d.fate = 'dropped';
	IF lost IS NOT NULL AND NOT drop_dependents THEN
		RAISE EXCEPTION 'column "%" of relation % has dependents that cannot stay', of_column, of_table
			USING ERRCODE = 'dependent_objects_still_exist', DETAIL = lost,
			HINT = 'Drop them first, or repeat the call with drop_dependents => true; afterwards make them again as they shall be.';
	END IF;
	PERFORM nomp_crypt._require_schools(of_table, of_column, school_expression);
	RETURN nomp_crypt._conversion_begin(of_table, of_column, left(of_column, 50) || '_nomp_crypt', what.plain, target.name,
		target.modifier, school_expression, school, columns, drop_dependents, enforce);
END
$$;

-- The column beside it and what keeps it in step, in one short transaction.
CREATE FUNCTION nomp_crypt._online_prepare(conversion uuid) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET nomp_crypt.tenant = '' AS $$
DECLARE
	c nomp_crypt.conversion := nomp_crypt._conversion(conversion);
	of_table regclass := c.table_name::regclass;
	trigger_name text;
BEGIN
	EXECUTE format('ALTER TABLE %s ADD COLUMN %I %s', of_table, c.shadow, c.type);
	EXECUTE format('COMMENT ON COLUMN %s.%I IS %L', of_table, c.shadow, 'made by nomp_crypt.encrypt_column_online, see nomp_crypt.conversion');
	EXECUTE format('CREATE SEQUENCE %s', nomp_crypt._conversion_object(of_table, conversion, 'missed'));
	IF c.school IS NULL THEN
		PERFORM nomp_crypt._school_function(of_table, c.tenant_expression, c.columns,
			nomp_crypt._conversion_object(of_table, conversion, 'tenant'));
	END IF;
	-- triggers fire in the order of their names
	FOREACH trigger_name IN ARRAY CASE WHEN EXISTS (
			SELECT FROM pg_trigger t WHERE t.tgrelid = of_table AND t.tgfoid = 'nomp_crypt.enforce_tenant()'::regprocedure)
		THEN ARRAY['!', '~'] ELSE ARRAY['~'] END LOOP
		EXECUTE format('CREATE TRIGGER %I BEFORE INSERT OR UPDATE ON %s FOR EACH ROW EXECUTE FUNCTION nomp_crypt._convert_row(%L%s)',
			trigger_name || nomp_crypt._conversion_name(conversion, 'step'), of_table, conversion, CASE trigger_name WHEN '!' THEN ', ''clear''' END);
		EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', of_table, trigger_name || nomp_crypt._conversion_name(conversion, 'step'));
	END LOOP;
	PERFORM nomp_crypt._conversion_state(conversion, 'filling', NULL);
END
$$;

-- Whatever of the table's triggers could keep ours from having the last word,
-- as it is now. Raises 55000 if one does.
CREATE FUNCTION nomp_crypt._online_triggers(conversion uuid) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	c nomp_crypt.conversion := nomp_crypt._conversion(conversion);
	of_table regclass := c.table_name::regclass;
	ours text := '~' || nomp_crypt._conversion_name(conversion, 'step');
	trouble text;
	mark text;
BEGIN
	SELECT string_agg(format('trigger %I on %s fires after it', t.tgname, t.tgrelid::regclass), ', ') INTO trouble
	FROM pg_trigger t WHERE t.tgtype & 3 = 3 AND t.tgtype & 20 <> 0 AND t.tgname > ours COLLATE "C" AND t.tgname NOT LIKE '~nomp\_crypt\_%'
		AND t.tgrelid IN (SELECT of_table UNION SELECT p.relid FROM pg_partition_tree(of_table) p);
	SELECT coalesce(trouble, string_agg(format('on %s it is missing or disabled', r.oid), ', ')) INTO trouble
	FROM (SELECT of_table AS oid UNION SELECT p.relid FROM pg_partition_tree(of_table) p) r
	WHERE NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = r.oid AND t.tgname = ours AND t.tgenabled = 'A');
	IF trouble IS NOT NULL THEN
		RAISE EXCEPTION 'the trigger that keeps the encrypted column in step does not have the last word: %', trouble
			USING ERRCODE = 'object_not_in_prerequisite_state',
			HINT = 'Rename or drop such triggers for the time of the conversion, or CALL nomp_crypt.cancel_conversion().';
	END IF;
	SELECT string_agg(concat_ws(' ', t.oid, t.xmin, t.tgenabled), ',' ORDER BY t.oid) INTO mark FROM pg_trigger t
	WHERE t.tgtype & 3 = 3 AND t.tgrelid IN (SELECT of_table UNION SELECT p.relid FROM pg_partition_tree(of_table) p);
	RETURN mark;
END
$$;

-- How often the trigger could not make a copy.
CREATE FUNCTION nomp_crypt._online_missed(conversion uuid) RETURNS bigint
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	missed bigint;
BEGIN
	EXECUTE format('SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM %s', nomp_crypt._conversion_object(
		(nomp_crypt._conversion(conversion)).table_name::regclass, conversion, 'missed')) INTO missed;
	RETURN missed;
END
$$;

-- Every row, decrypted and compared, in one snapshot: where the copy is
-- missing or says something else, by block.
CREATE FUNCTION nomp_crypt._online_wrong(conversion uuid, OUT relation oid, OUT block bigint, OUT "rows" bigint) RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET nomp_crypt.tenant = '' SET row_security = off AS $$
DECLARE
	c nomp_crypt.conversion := nomp_crypt._conversion(conversion);
BEGIN
	RETURN QUERY EXECUTE format('SELECT t.tableoid, (t.ctid::text::point)[0]::bigint, count(*) FROM %s t
		WHERE NOT nomp_crypt._says_the_same(t.%I::%s, t.%I, %s, %s) GROUP BY 1, 2 ORDER BY 1, 2 LIMIT 10000',
		c.table_name, c.column_name, c.plain_type, c.shadow,
		CASE WHEN c.school IS NOT NULL THEN c.tenant_expression ELSE format('%s(%s)',
			nomp_crypt._conversion_object(c.table_name::regclass, conversion, 'tenant'),
			(SELECT string_agg(format('t.%I', u), ', ') FROM unnest(c.columns) u)) END, c.modifier);
END
$$;

-- What an index would be on another column, under another name.
CREATE FUNCTION nomp_crypt._index_on(index_oid oid, of_column name, other name, new_name text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT format('CREATE %sINDEX CONCURRENTLY %I ON %s USING %I (%s)%s%s%s%s%s',
		CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END, $4, nomp_crypt._table_name(i.indrelid), m.amname,
		string_agg(k.item || k.options, ', ' ORDER BY k.n) FILTER (WHERE k.n <= i.indnkeyatts),
		' INCLUDE (' || string_agg(k.item, ', ' ORDER BY k.n) FILTER (WHERE k.n > i.indnkeyatts) || ')',
		CASE WHEN i.indnullsnotdistinct THEN ' NULLS NOT DISTINCT' END,
		(SELECT ' WITH (' || string_agg(format('%I = %L', o.option_name, o.option_value), ', ') || ')' FROM pg_options_to_table(c.reloptions) o),
		(SELECT format(' TABLESPACE %I', s.spcname) FROM pg_tablespace s WHERE s.oid = c.reltablespace),
		' WHERE ' || replace(pg_get_expr(i.indpred, i.indrelid), quote_ident($2) || ' IS ', quote_ident($3) || ' IS '))
	FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam,
		LATERAL (SELECT n, CASE WHEN a.attname = $2 THEN quote_ident($3) ELSE pg_get_indexdef(i.indexrelid, n::int, false) END AS item,
			CASE WHEN a.attname = $2 THEN '' ELSE coalesce((SELECT format(' COLLATE %I.%I', ns.nspname, co.collname) FROM pg_collation co
				JOIN pg_namespace ns ON ns.oid = co.collnamespace WHERE co.oid = i.indcollation[n - 1] AND co.collname <> 'default'), '')
				|| coalesce((SELECT format(' %I.%I', ns.nspname, op.opcname) FROM pg_opclass op JOIN pg_namespace ns ON ns.oid = op.opcnamespace
				WHERE op.oid = i.indclass[n - 1] AND NOT op.opcdefault), '') END
			|| CASE WHEN m.amname <> 'btree' OR n > i.indnkeyatts THEN '' ELSE
				CASE WHEN i.indoption[n - 1] & 1 = 1 THEN ' DESC' ELSE '' END
				|| CASE WHEN i.indoption[n - 1] & 2 = 2 THEN ' NULLS FIRST' ELSE ' NULLS LAST' END END AS options
			FROM generate_series(1, i.indnatts) n LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[n - 1]) k
	WHERE i.indexrelid = $1
	GROUP BY i.indexrelid, i.indisunique, i.indrelid, m.amname, i.indnullsnotdistinct, c.reloptions, c.reltablespace, i.indpred, i.indnkeyatts
$$;

-- The indexes that stay, by the index of the plain column.
CREATE FUNCTION nomp_crypt._online_indexes(conversion uuid, OUT old oid, OUT new_name text, OUT new oid, OUT valid boolean)
RETURNS SETOF record
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	c nomp_crypt.conversion := nomp_crypt._conversion(conversion);
BEGIN
	RETURN QUERY
	SELECT d.id, n.name, i.indexrelid, i.indisvalid
	FROM nomp_crypt._dependents(c.table_name::regclass, c.column_name, c.type ~ ', searchable') d,
		LATERAL (SELECT nomp_crypt._conversion_name(conversion, left(md5(d.object), 8))) n(name)
		LEFT JOIN pg_index i ON i.indexrelid = to_regclass(format('%I.%I', (SELECT ns.nspname FROM pg_class t
			JOIN pg_namespace ns ON ns.oid = t.relnamespace WHERE t.oid = c.table_name::regclass), n.name))
	WHERE d.fate = 'kept' AND d.kind IN ('index', 'primary key', 'unique constraint');
END
$$;

-- The next statement that builds one of them, or drops what was left of an
-- attempt; NULL if there is none.
CREATE FUNCTION nomp_crypt._online_next_index(conversion uuid) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	c nomp_crypt.conversion := nomp_crypt._conversion(conversion);
BEGIN
	RETURN (SELECT CASE WHEN i.new IS NULL THEN nomp_crypt._index_on(i.old, c.column_name, c.shadow, i.new_name)
			ELSE format('DROP INDEX CONCURRENTLY %s', nomp_crypt._table_name(i.new)) END
		FROM nomp_crypt._online_indexes(conversion) i WHERE i.valid IS NOT TRUE ORDER BY i.old LIMIT 1);
END
$$;

-- Take the trigger and its kin away.
CREATE FUNCTION nomp_crypt._online_clear(c nomp_crypt.conversion, of_table regclass) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	EXECUTE format('DROP TRIGGER IF EXISTS %I ON %s', '~' || nomp_crypt._conversion_name(c.uuid, 'step'), of_table);
	IF EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = of_table AND t.tgname = '!' || nomp_crypt._conversion_name(c.uuid, 'step')) THEN
		EXECUTE format('DROP TRIGGER %I ON %s', '!' || nomp_crypt._conversion_name(c.uuid, 'step'), of_table);
	END IF;
	IF to_regproc(nomp_crypt._conversion_object(of_table, c.uuid, 'tenant')) IS NOT NULL THEN
		EXECUTE format('DROP FUNCTION %s', nomp_crypt._conversion_object(of_table, c.uuid, 'tenant'));
	END IF;
	EXECUTE format('DROP SEQUENCE %s', nomp_crypt._conversion_object(of_table, c.uuid, 'missed'));
END
$$;

-- The encrypted column takes the place of the plain one. False if copies could
-- not be made since "missed", or triggers have changed since "triggers": then
-- all must be looked at again.
CREATE FUNCTION nomp_crypt._online_swap(conversion uuid, missed bigint, triggers text) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET nomp_crypt.tenant = '' SET row_security = off AS $$
DECLARE
	c nomp_crypt.conversion := nomp_crypt._conversion(conversion);
	of_table regclass := c.table_name::regclass;
	a pg_attribute;
	what record;
	comment_on text;
	dependents jsonb;
	stays jsonb;
	item jsonb;
	after text[] := '{}';
	statement text;
BEGIN
	EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', of_table);
	IF nomp_crypt._online_missed(conversion) <> missed OR nomp_crypt._online_triggers(conversion) <> triggers THEN
		RETURN false;
	END IF;
	what := nomp_crypt._convertible(of_table, c.column_name, false);
	IF what.plain <> c.plain_type THEN
		RAISE EXCEPTION 'column "%" of relation % was % when its conversion began, and is % now', c.column_name, of_table, c.plain_type, what.plain
			USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'CALL nomp_crypt.cancel_conversion(), and begin anew.';
	END IF;
	SELECT r.* INTO a FROM pg_attribute r WHERE r.attrelid = of_table AND r.attname = c.column_name;
	comment_on := col_description(of_table, a.attnum);
	-- indexes and constraints that were built beside, with what belongs to them
	IF EXISTS (SELECT FROM nomp_crypt._online_indexes(conversion) i WHERE i.valid IS NOT TRUE) THEN
		RAISE EXCEPTION 'relation % has indexes on column "%" that were made since', of_table, c.column_name
			USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Repeat the call: it goes on where it was.';
	END IF;
	SELECT coalesce(jsonb_agg(jsonb_build_object('new', nomp_crypt._table_name(i.new), 'name', r.relname,
		'constraint', n.conname, 'kind', CASE n.contype WHEN 'p' THEN 'PRIMARY KEY' ELSE 'UNIQUE' END,
		'timing', CASE WHEN n.condeferrable THEN ' DEFERRABLE' || CASE WHEN n.condeferred THEN ' INITIALLY DEFERRED' ELSE '' END ELSE '' END,
		'comment', coalesce(obj_description(n.oid, 'pg_constraint'), obj_description(i.old, 'pg_class')),
		'replident', x.indisreplident, 'clustered', x.indisclustered) ORDER BY i.old), '[]') INTO stays
	FROM nomp_crypt._online_indexes(conversion) i JOIN pg_class r ON r.oid = i.old JOIN pg_index x ON x.indexrelid = i.old
	LEFT JOIN pg_constraint n ON n.conindid = i.old AND n.contype IN ('p', 'u');
	SELECT stays || coalesce(jsonb_agg(jsonb_build_object('statistics', pg_get_statisticsobjdef(d.id))), '[]') INTO stays
	FROM nomp_crypt._dependents(of_table, c.column_name, NULL) d WHERE d.kind = 'statistics' AND d.fate = 'kept';
	PERFORM nomp_crypt._online_clear(c, of_table);
	dependents := nomp_crypt._take_away(of_table, c.column_name, c.type ~ ', searchable', c.drop_dependents);
	EXECUTE format('ALTER TABLE %s DROP COLUMN %I', of_table, c.column_name);
	EXECUTE format('ALTER TABLE %s RENAME COLUMN %I TO %I', of_table, c.shadow, c.column_name);
	FOR item IN SELECT j FROM jsonb_array_elements(stays) j LOOP
		IF item ? 'statistics' THEN
			EXECUTE item ->> 'statistics';
			CONTINUE;
		END IF;
		EXECUTE format('ALTER INDEX %s RENAME TO %I', item ->> 'new', item ->> 'name');
		IF item ->> 'constraint' IS NOT NULL THEN
			EXECUTE format('ALTER TABLE %s ADD CONSTRAINT %I %s USING INDEX %I%s', of_table, item ->> 'constraint', item ->> 'kind',
				item ->> 'name', item ->> 'timing');
		END IF;
		IF (item ->> 'replident')::boolean THEN
			EXECUTE format('ALTER TABLE %s REPLICA IDENTITY USING INDEX %I', of_table, item ->> 'name');
		END IF;
		IF (item ->> 'clustered')::boolean THEN
			EXECUTE format('ALTER TABLE %s CLUSTER ON %I', of_table, item ->> 'name');
		END IF;
		FOREACH statement IN ARRAY CASE WHEN item ->> 'constraint' IS NULL
			THEN nomp_crypt._comment(format('INDEX %s.%I', (SELECT quote_ident(n.nspname) FROM pg_class r JOIN pg_namespace n ON n.oid = r.relnamespace WHERE r.oid = of_table), item ->> 'name'), item ->> 'comment')
			ELSE nomp_crypt._comment(format('CONSTRAINT %I ON %s', item ->> 'constraint', of_table), item ->> 'comment') END LOOP
			EXECUTE statement;
		END LOOP;
	END LOOP;
	-- not null is looked at row by row after the swap, under a weaker lock
	IF a.attnotnull AND NOT EXISTS (SELECT FROM pg_attribute r WHERE r.attrelid = of_table AND r.attname = c.column_name AND r.attnotnull) THEN
		statement := nomp_crypt._conversion_name(conversion, 'not_null');
		EXECUTE format('ALTER TABLE %s ADD CONSTRAINT %I CHECK (%I IS NOT NULL) NOT VALID', of_table, statement, c.column_name);
		after := ARRAY[format('ALTER TABLE %s VALIDATE CONSTRAINT %I', of_table, statement),
			format('ALTER TABLE %s ALTER COLUMN %I SET NOT NULL, DROP CONSTRAINT %I', of_table, c.column_name, statement)];
	END IF;
	-- and so are check constraints
	SELECT coalesce(jsonb_agg(CASE WHEN d ->> 'kind' = 'check constraint' AND d ->> 'fate' = 'recreated' THEN
			jsonb_set(d, '{make_it,0}', to_jsonb(regexp_replace(d -> 'make_it' ->> 0, ' NOT VALID$', '') || ' NOT VALID')) ELSE d END ORDER BY n), '[]'),
		after || coalesce(array_agg(d ->> 'validate_it' ORDER BY n) FILTER (WHERE d ->> 'fate' = 'recreated' AND d ->> 'validate_it' IS NOT NULL), '{}')
	INTO dependents, after FROM jsonb_array_elements(dependents) WITH ORDINALITY e(d, n);
	PERFORM nomp_crypt._put_back(dependents, c.drop_dependents);
	EXECUTE format('COMMENT ON COLUMN %s.%I IS %L', of_table, c.column_name, comment_on);
	IF a.attstattarget >= 0 THEN
		EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET STATISTICS %s', of_table, c.column_name, a.attstattarget);
	END IF;
	FOREACH statement IN ARRAY nomp_crypt._grants(of_table, a.attacl, c.column_name) LOOP
		EXECUTE statement;
	END LOOP;
	IF c.enforce AND c.school IS NOT NULL THEN
		PERFORM nomp_crypt._install_enforcement(of_table, c.school);
	END IF;
	PERFORM nomp_crypt._conversion_state(conversion, 'swapped', after);
	RETURN true;
END
$$;

-- One of the things that remain after the swap; false if nothing does.
CREATE FUNCTION nomp_crypt._online_after(conversion uuid) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	c nomp_crypt.conversion := nomp_crypt._conversion(conversion);
BEGIN
	IF c.role <> current_user THEN
		RAISE EXCEPTION 'the conversion was begun by role "%"', c.role USING ERRCODE = 'insufficient_privilege';
	ELSIF cardinality(c.after) = 0 THEN
		PERFORM nomp_crypt._conversion_state(conversion, 'done', NULL);
		RETURN false;
	END IF;
	EXECUTE c.after[1];
	PERFORM nomp_crypt._conversion_state(conversion, c.state, c.after[2:]);
	RETURN true;
END
$$;

-- Everything as it was.
CREATE FUNCTION nomp_crypt._online_cancel(conversion uuid) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	c nomp_crypt.conversion := nomp_crypt._conversion(conversion);
	of_table regclass := c.table_name::regclass;
BEGIN
	IF c.state = 'filling' THEN
		PERFORM nomp_crypt._online_clear(c, of_table);
		EXECUTE format('ALTER TABLE %s DROP COLUMN %I', of_table, c.shadow);
	ELSIF c.state <> 'begun' THEN
		RAISE EXCEPTION 'the conversion of column "%" of relation % has been done', c.column_name, of_table
			USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'nomp_crypt.decrypt_column makes the column plain again.';
	END IF;
	PERFORM nomp_crypt._conversion_state(conversion, 'cancelled', NULL);
END
$$;

-- A plain column becomes an encrypted one while others write: see
-- convert_online.c. The same call goes on where one was interrupted.
CREATE PROCEDURE nomp_crypt.encrypt_column_online(table_name regclass, column_name name, tenant_expression text,
	searchable boolean DEFAULT false, normalise text DEFAULT NULL, drop_dependents boolean DEFAULT false,
	enforce boolean DEFAULT true, batch_size int DEFAULT 1000, max_lag text DEFAULT '64MB', delay interval DEFAULT '0',
	lock_timeout interval DEFAULT '2 seconds', tries int DEFAULT 60, rewrite boolean DEFAULT false)
LANGUAGE c AS 'MODULE_PATHNAME', 'nc_encrypt_column_online';
-- Until the swap.
CREATE PROCEDURE nomp_crypt.cancel_conversion(table_name regclass, column_name name,
	lock_timeout interval DEFAULT '2 seconds', tries int DEFAULT 60)
LANGUAGE c AS 'MODULE_PATHNAME', 'nc_cancel_conversion';

-- ---------------------------------------------------------------------------
-- Before a conversion: what it would meet
-- ---------------------------------------------------------------------------

CREATE FUNCTION nomp_crypt._refusal(statement text, of_table regclass, other regclass, tenant text) RETURNS text
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'nc_refusal';

-- A temporary table like that one, but for the column's type; NULL if it cannot
-- be converted.
CREATE FUNCTION nomp_crypt._preview_table(of_table regclass, of_column name, searchable boolean, normalise text) RETURNS regclass
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	other text := 'nomp_crypt_' || replace(gen_random_uuid()::text, '-', '');
BEGIN
	EXECUTE format('CREATE TEMPORARY TABLE %I (LIKE %s)', other, of_table);
	EXECUTE format('ALTER TABLE pg_temp.%I ALTER COLUMN %I DROP NOT NULL, ALTER COLUMN %I TYPE %s USING NULL', other, of_column, of_column,
		(nomp_crypt._encrypted_type((nomp_crypt._convertible(of_table, of_column, false)).plain, searchable, normalise)).name);
	RETURN format('pg_temp.%I', other)::regclass;
END
$$;

-- A tenant whose rows are there, if one is near at hand.
CREATE FUNCTION nomp_crypt._preview_tenant(of_table regclass, of_column name, school_expression text) RETURNS text
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET nomp_crypt.tenant = '' AS $$
DECLARE
	tenant text;
BEGIN
	EXECUTE format('SELECT s.tenant FROM (SELECT %s AS tenant FROM %s t WHERE %I IS NOT NULL LIMIT 100) s
		WHERE nomp_crypt._school_trouble(s.tenant, false) IS NULL LIMIT 1', school_expression, of_table, of_column) INTO tenant;
	RETURN tenant;
END
$$;

-- A subquery of the statements that pg_stat_statements has seen and that name
-- the table; NULL where that is not to be had, or the column cannot be
-- converted.
CREATE FUNCTION nomp_crypt._preview_source(of_table regclass, of_column name, searchable boolean, normalise text) RETURNS text
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	place text := (SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'pg_stat_statements');
BEGIN
	PERFORM nomp_crypt._encrypted_type((nomp_crypt._convertible(of_table, of_column, false)).plain, searchable, normalise);
	EXECUTE format('SELECT FROM %I.pg_stat_statements LIMIT 1', place);
	RETURN format('SELECT s.query, pg_catalog.sum(s.calls) AS calls FROM %I.pg_stat_statements s
		WHERE s.dbid OPERATOR(pg_catalog.=) %s::pg_catalog.oid AND pg_catalog.strpos(s.query, %L) OPERATOR(pg_catalog.>) 0 GROUP BY s.query',
		place, (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()),
		(SELECT c.relname FROM pg_class c WHERE c.oid = of_table));
EXCEPTION WHEN OTHERS THEN
	RETURN NULL;
END
$$;

-- Roles that may use the table now and lack rights in one of those tenants.
CREATE FUNCTION nomp_crypt._preview_roles(of_table regclass, tenants text[], OUT role name, OUT missing text) RETURNS SETOF record
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT r.rolname, string_agg(DISTINCT n.needed, ', ')
	FROM pg_roles r, unnest($2) u(id) JOIN nomp_crypt.tenant t ON t.id = u.id AND t.state <> 'erased',
		(VALUES ('SELECT', 'decrypt'), ('INSERT', 'encrypt'), ('UPDATE', 'encrypt')) n(privilege, needed)
	WHERE r.rolcanlogin AND NOT r.rolsuper AND has_table_privilege(r.oid, $1, n.privilege)
		AND NOT EXISTS (SELECT FROM nomp_crypt.tenant_right g JOIN pg_roles m ON m.rolname = g.role
			WHERE (g.tenant = t.uuid OR g.tenant = '00000000-0000-0000-0000-000000000000') AND pg_has_role(r.oid, m.oid, 'USAGE')
			AND CASE n.needed WHEN 'decrypt' THEN g.decrypt ELSE g.encrypt END)
		AND pg_has_role(nomp_crypt._acting_role(), (SELECT c.relowner FROM pg_class c WHERE c.oid = $1), 'USAGE')
	GROUP BY r.rolname ORDER BY r.rolname
$$;

-- encrypt_column_preview without what pg_stat_statements knows.
CREATE FUNCTION nomp_crypt._preview(of_table regclass, of_column name, school name, school_expression text, columns text[],
	subquery boolean, searchable boolean, normalise text,
	OUT topic text, OUT subject text, OUT verdict text, OUT detail text) RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET nomp_crypt.tenant = '' SET row_security = off AS $$
#variable_conflict use_variable
DECLARE
	what record;
	target record;
	n bigint;
	values_there bigint;
	tenants text[];
	unknown bigint;
	bytes bigint := 0;
	begun timestamptz;
	sampled int;
	seconds float8;
BEGIN
	BEGIN
		what := nomp_crypt._convertible(of_table, of_column, false);
		target := nomp_crypt._encrypted_type(what.plain, searchable, normalise);
	EXCEPTION WHEN feature_not_supported OR datatype_mismatch OR invalid_parameter_value THEN
		topic := 'column';
		subject := of_column;
		verdict := 'refused';
		detail := SQLERRM;
		RETURN NEXT;
		RETURN;
	END;
	topic := 'column';
	subject := of_column;
	verdict := 'convertible';
	detail := format('%s becomes %s', what.plain, target.name);
	RETURN NEXT;

	-- how many, and of whom
	EXECUTE format('SELECT count(*), count(%I) FROM %s', of_column, of_table) INTO n, values_there;
	SELECT coalesce(sum(pg_total_relation_size(r.oid)), 0) INTO bytes
	FROM (SELECT of_table::oid AS oid UNION SELECT p.relid FROM pg_partition_tree(of_table) p) r;
	topic := 'rows';
	subject := of_table::text;
	verdict := n::text;
	detail := format('%s of them with a value to encrypt', values_there);
	RETURN NEXT;
	topic := 'size';
	verdict := pg_size_pretty(bytes);
	detail := format('with indexes and what lies out of line; %s on the column''s values', pg_size_pretty(
		(SELECT coalesce(avg(s.avg_width), 0) FROM pg_stats s, pg_class c JOIN pg_namespace ns ON ns.oid = c.relnamespace
		 WHERE c.oid = of_table AND s.schemaname = ns.nspname AND s.tablename = c.relname AND s.attname = of_column)::numeric * values_there));
	RETURN NEXT;
	topic := 'space';
	verdict := pg_size_pretty(bytes + values_there * CASE WHEN searchable THEN 66 ELSE 50 END);
	detail := format('needed while it is rewritten, and as much WAL; a conversion while others write needs up to %s besides, and the rewrite afterwards',
		pg_size_pretty(bytes + values_there * CASE WHEN searchable THEN 66 ELSE 50 END));
	RETURN NEXT;
	topic := 'tenant';
	FOR subject, unknown, detail IN SELECT coalesce(quote_literal(left(u.tenant, 100)), 'null'), u.rows, u.trouble
		FROM nomp_crypt._unknown_schools(of_table, of_column, school_expression) u LIMIT 100 LOOP
		verdict := format('%s rows', unknown);
		RETURN NEXT;
	END LOOP;
	EXECUTE format('SELECT array_agg(s.tenant) FROM (SELECT DISTINCT %s AS tenant FROM %s t WHERE %I IS NOT NULL) s
		WHERE nomp_crypt._school_trouble(s.tenant, false) IS NULL', school_expression, of_table, of_column) INTO tenants;
	subject := 'all';
	verdict := format('%s known tenants', coalesce(cardinality(tenants), 0));
	detail := CASE WHEN school IS NULL THEN 'by an expression: enforce_tenant is not installed, and later changes of what it looks up change no value'
		ELSE format('by column %I, to which enforce_tenant will tie the values', school) END;
	RETURN NEXT;

	-- how long: some values are encrypted, and thrown away
	IF tenants IS NOT NULL THEN
		FOR i IN 1..2 LOOP	-- the first time fetches keys
			begun := clock_timestamp();
			EXECUTE format('SELECT count(nomp_crypt._encrypt_as(s.value, s.tenant, %s)) FROM (
				SELECT %I::%s AS value, %s AS tenant FROM %s t WHERE %I IS NOT NULL LIMIT 2000) s WHERE s.tenant = ANY ($1)',
				target.modifier, of_column, what.plain, school_expression, of_table, of_column) INTO sampled USING tenants;
			seconds := extract(epoch FROM clock_timestamp() - begun);
		END LOOP;
		topic := 'time';
		subject := 'one rewrite';
		verdict := justify_interval(make_interval(secs => round((seconds / greatest(sampled, 1) * values_there + bytes / 20e6)::numeric, 1)::float8))::text;
		detail := format('an estimate: %s values took %s ms to encrypt, and 20 MB a second are assumed for writing the table and its indexes',
			sampled, round((seconds * 1000)::numeric, 1));
		RETURN NEXT;
		subject := 'while others write';
		verdict := justify_interval(make_interval(secs => round((4 * (seconds / greatest(sampled, 1) * values_there + bytes / 20e6))::numeric, 1)::float8))::text;
		detail := 'an estimate: four times as long, and a rewrite afterwards';
		RETURN NEXT;
	END IF;

	topic := 'dependent';
	FOR subject, verdict, detail IN SELECT d.kind || ' ' || d.object, d.fate, d.reason
		FROM nomp_crypt._dependents(of_table, of_column, searchable) d LOOP
		RETURN NEXT;
	END LOOP;
	IF nomp_crypt._publications(of_table) IS NOT NULL THEN
		subject := 'publication ' || nomp_crypt._publications(of_table);
		verdict := 'look';
		detail := 'subscribers need the column converted too, and the keys; while others write it is refused';
		RETURN NEXT;
	END IF;
	IF EXISTS (SELECT FROM pg_class c WHERE c.oid = of_table AND (c.relkind = 'p' OR c.relhassubclass)) THEN
		subject := 'partitions and children';
		verdict := 'converted with it';
		detail := (SELECT count(*)::text FROM pg_inherits i WHERE i.inhparent = of_table);
		RETURN NEXT;
	END IF;
	topic := 'role';
	FOR subject, detail IN SELECT r.role, r.missing FROM nomp_crypt._preview_roles(of_table, tenants) r LOOP
		verdict := 'lacks rights';
		RETURN NEXT;
	END LOOP;
END
$$;

-- What encrypt_column and encrypt_column_online would meet, and which statements
-- that pg_stat_statements has seen would be refused afterwards. Reads the
-- table, changes nothing.
CREATE FUNCTION nomp_crypt.encrypt_column_preview(table_name regclass, column_name name, tenant_expression text,
	searchable boolean DEFAULT false, normalise text DEFAULT NULL,
	OUT topic text, OUT subject text, OUT verdict text, OUT detail text) RETURNS SETOF record
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'nc_encrypt_column_preview';

-- ---------------------------------------------------------------------------
-- lint(): where values may be in clear, beside the encrypted columns. Reads
-- catalogs, settings and samples; decrypts nothing, writes nothing. For
-- superusers, administrators and members of pg_monitor.
-- ---------------------------------------------------------------------------

CREATE FUNCTION nomp_crypt._keeps_decrypted(tree pg_node_tree, whole boolean) RETURNS boolean
LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'nc_keeps_decrypted';
REVOKE ALL ON FUNCTION nomp_crypt._keeps_decrypted(pg_node_tree, boolean) FROM PUBLIC;

-- Findings that somebody has accepted, by whom and why.
CREATE TABLE nomp_crypt.lint_accepted (
	rule	text NOT NULL,
	object	text NOT NULL,
	reason	text NOT NULL CHECK (reason <> ''),
	role	name NOT NULL,
	at		timestamptz NOT NULL DEFAULT now(),
	PRIMARY KEY (rule, object)
);
COMMENT ON TABLE nomp_crypt.lint_accepted IS 'findings of nomp_crypt.lint() that somebody has accepted';
SELECT pg_catalog.pg_extension_config_dump('nomp_crypt.lint_accepted', '');

-- The rules. docs/lint.md explains each.
CREATE FUNCTION nomp_crypt._lint_rules(OUT rule text, OUT severity text, OUT why text, OUT advice text) RETURNS SETOF record
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
	VALUES
	('index_on_decrypted', 'error', 'the index keeps what is inside encrypted values',
	 'Drop it. A searchable column finds equal values by fingerprint.'),
	('statistics_on_decrypted', 'error', 'ANALYZE keeps samples of what is inside encrypted values',
	 'Drop the statistics object.'),
	('generated_from_decrypted', 'error', 'the column keeps what is inside encrypted values',
	 'Drop it, or make it an encrypted column.'),
	('view_of_decrypted', 'error', 'the materialized view keeps what is inside encrypted values',
	 'Make it a view, or keep the columns encrypted in it.'),
	('rule_writes_decrypted', 'error', 'the rule writes what is inside encrypted values',
	 'Drop it, or let it write to encrypted columns.'),
	('function_writes_decrypted', 'warning', 'the function writes what is inside encrypted values',
	 'Let it write to encrypted columns.'),
	('foreign_table_in_clear', 'warning', 'inside a tenant the foreign table''s wrapper gets and sends what is inside encrypted values',
	 'Use a wrapper with the handler nomp_crypt.postgres_fdw_handler.'),
	('trigger_serialises_rows', 'warning', 'a guess from its text: the trigger turns rows into text, which decrypts them inside a tenant',
	 'Name the columns that it needs, and keep them in encrypted columns.'),
	('trigger_uses_decrypted', 'warning', 'a guess from its text: the trigger passes on what is inside encrypted values',
	 'Pass the encrypted value on as it is, into an encrypted column.'),
	('trigger_copies_rows', 'warning', 'a guess from its text: the trigger copies rows into a table whose columns of the same names are not encrypted',
	 'Make these columns encrypted ones.'),
	('function_uses_decrypted', 'info', 'a guess from its text: the function decrypts and writes',
	 'Look at what it writes where.'),
	('trigger_unseen', 'not_checked', 'the trigger''s function is not in a language that can be read here',
	 'Look at what it does with the rows.'),
	('personal_numbers', 'error', 'the column is not encrypted and has personal identity numbers in it',
	 'Encrypt it: nomp_crypt.encrypt_column_preview shows what that would meet.'),
	('email_addresses', 'warning', 'the column is not encrypted and has e-mail addresses in it',
	 'Encrypt it: nomp_crypt.encrypt_column_preview shows what that would meet.'),
	('phone_numbers', 'warning', 'the column is not encrypted and has phone numbers in it',
	 'Encrypt it: nomp_crypt.encrypt_column_preview shows what that would meet.'),
	('personal_name', 'warning', 'the column is not encrypted, and has a name as if personal data were in it',
	 'Encrypt it: nomp_crypt.encrypt_column_preview shows what that would meet.'),
	('rows_unseen', 'not_checked', 'rows were not looked into',
	 'Give the role SELECT on them, or pg_read_all_data; call this as a role with BYPASSRLS; or call it again.'),
	('conversion_unfinished', 'warning', 'the conversion of the column is not finished, and the column is in clear until the swap',
	 'Unless a session is at it, repeat the call of nomp_crypt.encrypt_column_online, or CALL nomp_crypt.cancel_conversion.'),
	('conversion_leftover', 'warning', 'a conversion that is not on record has left it behind',
	 'Drop it.'),
	('files_not_rewritten', 'warning', 'plain values may be left in the table''s files',
	 'CALL nomp_crypt.rewrite_table.'),
	('statistics_not_rewritten', 'warning', 'plain values may be left in pg_statistic',
	 'CALL nomp_crypt.rewrite_table.'),
	('column_past_unknown', 'info', 'it is not known since when the column is encrypted',
	 'CALL nomp_crypt.rewrite_table.'),
	('backups_with_plaintext', 'info', 'backups and WAL archives from before have plain values',
	 'Let none of them live longer than nomp_crypt.backup_retention says.'),
	('slot_keeps_plaintext', 'warning', 'the replication slot keeps WAL from before a column was encrypted',
	 'Let its consumer catch up, or drop the slot.'),
	('backups_unseen', 'not_checked', 'columns were in clear once; that backups older than nomp_crypt.backup_retention are gone cannot be seen from here',
	 'Look at what the backup tool keeps, archives and dumps included; then accept this.'),
	('logs_statements', 'warning', 'statements are logged, with the values that are written in them',
	 'Switch it off for roles that send personal data, or send values as parameters only.'),
	('logs_parameters', 'warning', 'parameters of statements are logged',
	 'Set it to 0, or off.'),
	('logs_plans', 'warning', 'plans are logged, with the values that are in them',
	 'Switch it off for roles that send personal data.'),
	('logs_failed_statements', 'info', 'outside a tenant, more is logged of statements that fail',
	 'Set log_min_error_statement to error, and log_parameter_max_length_on_error to 0.'),
	('keeps_statements', 'info', 'pg_stat_statements keeps utility statements as they were written: CALL, COPY, DO, DECLARE, EXECUTE',
	 'Set pg_stat_statements.track_utility to off, or let them have no personal data in them.'),
	('credentials', 'error', NULL, NULL),
	('memory', 'warning', NULL, NULL),
	('core_dumps', 'info', NULL, NULL),
	('swap', 'info', NULL, NULL),
	('no_tls', 'warning', 'clients send and get values in clear over the network',
	 'Set ssl = on, with a certificate.'),
	('hba_without_tls', 'warning', 'the line lets clients connect over the network without encryption',
	 'Write hostssl for host; or put "hostnossl all all all reject" before it.')
$$;
REVOKE ALL ON FUNCTION nomp_crypt._lint_rules() FROM PUBLIC;

-- The same name in every session, whatever its language and search_path.
CREATE FUNCTION nomp_crypt._lint_object(class regclass, id oid, sub int) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT o.type || ' ' || o.identity FROM pg_identify_object($1, $2, $3) o
$$;
REVOKE ALL ON FUNCTION nomp_crypt._lint_object(regclass, oid, int) FROM PUBLIC;

-- The tables with encrypted columns that a view or rule is over, through views.
CREATE FUNCTION nomp_crypt._lint_sources(relation oid) RETURNS oid[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	WITH RECURSIVE s AS (
		SELECT $1 AS oid
		UNION
		SELECT d.refobjid FROM s JOIN pg_rewrite r ON r.ev_class = s.oid
		JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid AND d.refclassid = 'pg_class'::regclass)
	SELECT array_agg(s.oid) FROM s WHERE EXISTS (
		SELECT FROM pg_attribute a WHERE a.attrelid = s.oid AND a.attnum > 0 AND NOT a.attisdropped
			AND nomp_crypt._holds_values(a.atttypid))
$$;
REVOKE ALL ON FUNCTION nomp_crypt._lint_sources(oid) FROM PUBLIC;

-- What the catalogs know to keep decrypted values.
CREATE FUNCTION nomp_crypt._lint_definitions(OUT rule text, OUT object text, OUT detail text, OUT relations oid[])
RETURNS SETOF record
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT 'index_on_decrypted', nomp_crypt._lint_object('pg_class'::regclass, i.indexrelid, 0), NULL::text, ARRAY[i.indrelid]
	FROM pg_index i WHERE nomp_crypt._keeps_decrypted(i.indexprs, true)
	UNION ALL
	SELECT 'statistics_on_decrypted', nomp_crypt._lint_object('pg_statistic_ext'::regclass, s.oid, 0), NULL, ARRAY[s.stxrelid]
	FROM pg_statistic_ext s WHERE nomp_crypt._keeps_decrypted(s.stxexprs, true)
	UNION ALL
	SELECT 'generated_from_decrypted', nomp_crypt._lint_object('pg_class'::regclass, d.adrelid, d.adnum), NULL, ARRAY[d.adrelid]
	FROM pg_attrdef d JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
	WHERE a.attgenerated = 's' AND nomp_crypt._keeps_decrypted(d.adbin, true)
	UNION ALL
	SELECT 'view_of_decrypted', nomp_crypt._lint_object('pg_class'::regclass, c.oid, 0), NULL, nomp_crypt._lint_sources(c.oid)
	FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class
	WHERE c.relkind = 'm' AND nomp_crypt._keeps_decrypted(r.ev_action, true)
	UNION ALL
	SELECT 'rule_writes_decrypted', nomp_crypt._lint_object('pg_rewrite'::regclass, r.oid, 0), NULL, nomp_crypt._lint_sources(r.ev_class)
	FROM pg_rewrite r WHERE r.ev_type <> '1' AND nomp_crypt._keeps_decrypted(r.ev_action, false)
	UNION ALL
	SELECT 'function_writes_decrypted', nomp_crypt._lint_object('pg_proc'::regclass, p.oid, 0), NULL,
		ARRAY(SELECT DISTINCT d.refobjid FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid
			AND d.refclassid = 'pg_class'::regclass)
	FROM pg_proc p WHERE nomp_crypt._keeps_decrypted(p.prosqlbody, false)
	UNION ALL
	SELECT 'foreign_table_in_clear', nomp_crypt._lint_object('pg_class'::regclass, f.ftrelid, 0), 'its wrapper is ' || quote_ident(w.fdwname), ARRAY[f.ftrelid]
	FROM pg_foreign_table f JOIN pg_foreign_server s ON s.oid = f.ftserver JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw
	WHERE w.fdwhandler <> 'nomp_crypt.postgres_fdw_handler()'::regprocedure AND EXISTS (
		SELECT FROM pg_attribute a WHERE a.attrelid = f.ftrelid AND a.attnum > 0 AND NOT a.attisdropped AND nomp_crypt._holds_values(a.atttypid))
$$;
REVOKE ALL ON FUNCTION nomp_crypt._lint_definitions() FROM PUBLIC;

-- A function's text without its comments.
CREATE FUNCTION nomp_crypt._lint_text(source text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp AS $$
	SELECT regexp_replace($1, '/\*.*?\*/|--[^\n]*', ' ', 'g')
$$;
REVOKE ALL ON FUNCTION nomp_crypt._lint_text(text) FROM PUBLIC;

-- What a text seems to do with encrypted columns of these names: patterns,
-- where "row" is NEW or OLD in a trigger.
CREATE FUNCTION nomp_crypt._lint_pattern(what text, names name[]) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT format(CASE $1
		-- to_jsonb(NEW), hstore(OLD.*), format('%s', NEW), NEW::text, RAISE LOG '%', NEW
		WHEN 'serialise' THEN
			'\m(?:to_jsonb?|row_to_json|array_to_json|jsonb?_(?:build_(?:object|array)|agg|object_agg)|hstore|format|concat|concat_ws|'
			'quote_literal|quote_nullable|xmlforest|pg_notify)\s*\((?:(?:[^();]|\([^()]*\))*,)?\s*(?:new|old)\M\s*(?:\.\s*\*)?\s*[,)]'
			'|\m(?:new|old)\M\s*(?:\.\s*\*)?\s*\)?\s*::|\mcast\s*\(\s*(?:new|old)\s+as\M'
			'|\mraise\s+(?:debug|log|info|notice|warning)\M[^;]*,\s*(?:new|old)\M\s*(?:\.\s*\*)?\s*[,;]'
		-- in a trigger that has all rows as tables: to_jsonb(n), json_agg(n.*)
		WHEN 'rows' THEN '\m(?:to_jsonb?|row_to_json|jsonb?_agg|hstore)\s*\(\s*\w+\s*(?:\.\s*\*)?\s*\)'
		-- the same of a field: nomp_crypt.decrypt(NEW.name), NEW.name::text, ...
		WHEN 'field' THEN
			'\m(?:to_jsonb?|array_to_json|jsonb?_(?:build_(?:object|array)|agg|object_agg)|hstore|format|concat|concat_ws|'
			'quote_literal|quote_nullable|xmlforest|pg_notify|decrypt|try_decrypt)\s*\((?:(?:[^();]|\([^()]*\))*,)?\s*(?:new|old)\s*\.\s*"?(?:%1$s)(?!\w)'
			'|\m(?:new|old)\s*\.\s*"?(?:%1$s)(?!\w)"?\s*\)?\s*::|\mcast\s*\(\s*(?:new|old)\s*\.\s*"?(?:%1$s)"?\s+as\M'
			'|\mraise\s+(?:debug|log|info|notice|warning)\M[^;]*,\s*(?:new|old)\s*\.\s*"?(?:%1$s)(?!\w)'
		-- outside triggers
		WHEN 'decrypt' THEN '\mnomp_crypt\s*\.\s*(?:try_)?decrypt\s*\(|(?:%1$s)(?!\w)"?\s*::\s*(?:text|varchar|date|jsonb?)\M'
		WHEN 'write' THEN
			'\minsert\s+into\M|\mupdate\s+[^;]*\mset\M|\mmerge\s+into\M|\mcopy\M[^;]*\mto\M|\mcreate\s+(?:unlogged\s+)?table\M'
			'|\mselect\M[^;]*\minto\s+(?:unlogged\s+)?table\M|\mraise\s+(?:debug|log|info|notice|warning)\M|\mnotify\M|\mpg_notify\M|\mdblink'
		END, (SELECT string_agg(regexp_replace(n, '([!-/:-@\[-^`{-~ ])', '\\\1', 'g'), '|') FROM unnest($2) n))
$$;
REVOKE ALL ON FUNCTION nomp_crypt._lint_pattern(text, name[]) FROM PUBLIC;

-- What functions seem to do, by their text; and triggers whose text is not to
-- be had.
CREATE FUNCTION nomp_crypt._lint_functions(OUT rule text, OUT object text, OUT detail text, OUT relations oid[])
RETURNS SETOF record
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	WITH encrypted AS (
		SELECT a.attrelid AS oid, c.relname, quote_ident(n.nspname) AS schema, array_agg(a.attname) AS names
		FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND a.attnum > 0 AND NOT a.attisdropped AND nomp_crypt._holds_values(a.atttypid)
		GROUP BY 1, 2, 3),
	written AS MATERIALIZED (	-- by others than us
		SELECT p.oid, p.prorettype, quote_ident(n.nspname) AS schema, l.lanname, nomp_crypt._lint_text(p.prosrc) AS source
		FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang JOIN pg_namespace n ON n.oid = p.pronamespace
		WHERE p.prokind IN ('f', 'p') AND p.prosqlbody IS NULL AND l.lanname <> 'internal'
			AND n.nspname NOT IN ('pg_catalog', 'information_schema')
			AND NOT EXISTS (SELECT FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'nomp_crypt'
				WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e' AND d.refclassid = 'pg_extension'::regclass)),
	fired AS (
		SELECT t.oid, t.tgrelid, w.lanname, w.source,
			coalesce((regexp_match(w.source, nomp_crypt._lint_pattern('serialise', NULL), 'i'))[1],
				CASE WHEN coalesce(t.tgnewtable, t.tgoldtable) IS NOT NULL THEN
					(regexp_match(w.source, nomp_crypt._lint_pattern('rows', NULL), 'i'))[1] END) AS serialised,
			(regexp_match(w.source, nomp_crypt._lint_pattern('field', e.names), 'i'))[1] AS field,
			(SELECT string_agg(DISTINCT m[1], ', ') FROM regexp_matches(w.source,
					'\minsert\s+into\s+((?:\w+|"[^"]+")(?:\.(?:\w+|"[^"]+"))?)[^;]*?(?:(?:values\s*\(|select)[^;]*?\m(?:new|old)\s*\)?\s*\.\s*\*)', 'gi') m
				WHERE NOT EXISTS (SELECT FROM encrypted x WHERE x.names @> e.names AND x.oid IN (to_regclass(m[1]),
					CASE WHEN m[1] !~ '\.' THEN to_regclass(e.schema || '.' || m[1]) END,
					CASE WHEN m[1] !~ '\.' THEN to_regclass(w.schema || '.' || m[1]) END))) AS copied
		FROM pg_trigger t JOIN encrypted e ON e.oid = t.tgrelid JOIN written w ON w.oid = t.tgfoid
		WHERE NOT t.tgisinternal AND t.tgparentid = 0),
	writes AS MATERIALIZED (
		SELECT w.* FROM written w
		WHERE w.lanname <> 'c' AND w.prorettype <> 'trigger'::regtype AND w.source ~* nomp_crypt._lint_pattern('write', NULL))
	SELECT r.rule, nomp_crypt._lint_object('pg_trigger'::regclass, f.oid, 0), r.detail, ARRAY[f.tgrelid]
	FROM fired f, LATERAL (
		SELECT CASE WHEN f.lanname = 'c' THEN 'trigger_unseen'
				WHEN f.serialised IS NOT NULL THEN 'trigger_serialises_rows'
				WHEN f.field IS NOT NULL AND f.source ~* nomp_crypt._lint_pattern('write', NULL) THEN 'trigger_uses_decrypted'
				WHEN f.copied IS NOT NULL THEN 'trigger_copies_rows' END AS rule,
			left(regexp_replace(coalesce(f.serialised, f.field, f.copied), '\s+', ' ', 'g'), 100) AS detail) r
	WHERE r.rule IS NOT NULL
	UNION ALL
	SELECT 'function_uses_decrypted', nomp_crypt._lint_object('pg_proc'::regclass, w.oid, 0), NULL, array_agg(e.oid)
	FROM writes w LEFT JOIN encrypted e ON strpos(lower(w.source), lower(e.relname)) > 0
	WHERE w.source ~* nomp_crypt._lint_pattern('decrypt', coalesce(e.names, '{nomp_crypt}'))
	GROUP BY w.oid
$$;
REVOKE ALL ON FUNCTION nomp_crypt._lint_functions() FROM PUBLIC;

CREATE FUNCTION nomp_crypt._lint_sample(relation oid, "rows" int, OUT column_name name, OUT "values" int, OUT numbers int,
	OUT shapes int, OUT emails int, OUT phones int, OUT trouble text) RETURNS SETOF record
LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'nc_lint_sample';
REVOKE ALL ON FUNCTION nomp_crypt._lint_sample(oid, int) FROM PUBLIC;

-- A name in small letters of ASCII, with "_" between its words; in whatever
-- encoding, Swedish letters without their rings and dots.
CREATE FUNCTION nomp_crypt._lint_words(name text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT regexp_replace(lower(regexp_replace(regexp_replace(regexp_replace(regexp_replace(regexp_replace(regexp_replace(
		encode(convert_to($1, 'UTF8'), 'escape'), '\\303\\20[45]', 'A', 'g'), '\\303\\24[45]', 'a', 'g'), '\\303\\226', 'O', 'g'),
		'\\303\\266', 'o', 'g'), '\\303\\251', 'e', 'g'), '([a-z0-9])([A-Z])', '\1_\2', 'g')), '[^a-z0-9]+', '_', 'g')
$$;
REVOKE ALL ON FUNCTION nomp_crypt._lint_words(text) FROM PUBLIC;

-- What a column of that name, category of types and table holds, in Swedish
-- and English; NULL if nothing personal by its name.
CREATE FUNCTION nomp_crypt._lint_personal(table_name text, column_name text, category "char") RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT p.what FROM nomp_crypt._lint_words($2) w(words), replace(w.words, '_', '') j(joined), (VALUES
		('personal identity numbers', 'SN', '', 'personn(umme)?r|persnr|(^|_)pnr(_|$)|personal_?(identity_?)?(number|no$|id$)|samordningsn(umme)?r'
			'|(^|_)ssn(_|$)|social_?security|national_?id|identity_?number|fodelsen(umme)?r'),
		('names', 'S', '', '(for|efter|mellan|tilltals|full|smek|barn|elev|person|kontakt)_?namn|(first|last|middle|given|family|full|maiden|nick|pupil|student|contact)_?name|surname'),
		('names', 'S', 'elev|pupil|student|person|guardian|vardnadshavare|foralder|parent|teacher|larare|user|anvandare|kontakt|contact|employee|anstalld|barn|child|member|medlem',
			'^(name|namn)$'),
		('e-mail addresses', 'S', '', '(e_?mail|e_?post|mejl|mail)_?(add?ress)?_?[0-9]?$'),
		('addresses', 'S', '', 'add?ress[0-9]?$|(^|_)(street|gata)|zip_?code|post_?(code|n(umme)?r|ort)|postal_?code'),
		('phone numbers', 'SN', '', '(telefon|phone|mobil|mobile|tfn|telnr|cell)_?(n(umme)?r|number|no)?_?[0-9]?$'),
		('dates of birth', 'SDN', '', 'fodelse_?(d(atum|ag)|ar)|(^|_)fodd(_|$)|birth_?(da(te|y)|year)|date_?of_?birth|(^|_)dob(_|$)|(^|_)born(_|$)'),
		('next of kin', 'S', '', 'vardnadshavare|malsman|guardian|next_?of_?kin|anhorig|foralder'),
		('health, belief or origin', 'S', '', 'diagnos|allerg|sjukdom|funktionsned|handikapp|disabilit|religion|modersmal|ethnicit|nationalit|medborgarskap|sarskilt_?stod')
	) p(what, categories, tables, pattern)
	WHERE strpos(p.categories, $3::text) > 0 AND w.words ~ p.pattern AND (p.tables = '' OR nomp_crypt._lint_words($1) ~ p.tables)
		AND j.joined !~ '(ip|mac|web|url|host|server)add?ress$' LIMIT 1
$$;
REVOKE ALL ON FUNCTION nomp_crypt._lint_personal(text, text, "char") FROM PUBLIC;

-- Columns in clear with personal data, by what is in some of their values or by
-- their names. Of a partitioned table, the largest partition is looked into.
CREATE FUNCTION nomp_crypt._lint_columns(sample_rows int, OUT rule text, OUT object text, OUT detail text, OUT relations oid[])
RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
	t record;
	s record;
	found text[] := '{}';
	unseen jsonb := '{}';
BEGIN
	FOR t IN SELECT DISTINCT ON (p.root) c.oid, p.root FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace,
			LATERAL (SELECT CASE WHEN c.relispartition THEN pg_partition_root(c.oid)::oid ELSE c.oid END) p(root)
		WHERE sample_rows > 0 AND c.relkind IN ('r', 'm') AND c.relpersistence <> 't'
			AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'nomp_crypt')
		ORDER BY p.root, c.relpages DESC LOOP
		BEGIN
			FOR s IN SELECT v.*, a.attnum FROM nomp_crypt._lint_sample(t.oid, sample_rows) v
				LEFT JOIN pg_attribute a ON a.attrelid = t.root AND a.attname = v.column_name LOOP
				IF s.trouble IS NOT NULL THEN
					unseen := unseen || jsonb_build_object(s.trouble, coalesce(unseen -> s.trouble, '[]') || to_jsonb(nomp_crypt._table_name(t.oid)));
					CONTINUE;
				END IF;
				object := nomp_crypt._lint_object('pg_class'::regclass, t.root, s.attnum);
				relations := ARRAY[t.root];
				FOR rule, detail IN SELECT r.rule, format('%s of %s values that were looked at', r.n, s.values)
					FROM (VALUES ('personal_numbers', s.numbers, s.numbers * 2 >= s.shapes), ('email_addresses', s.emails, true),
						('phone_numbers', s.phones, s.phones * 20 >= s.values)) r(rule, n, enough)
					WHERE r.n > 0 AND r.enough LOOP
					found := found || object;
					RETURN NEXT;
				END LOOP;
			END LOOP;
		EXCEPTION WHEN OTHERS THEN
			unseen := unseen || jsonb_build_object('error', coalesce(unseen -> 'error', '[]') || to_jsonb(nomp_crypt._table_name(t.oid)));
		END;
	END LOOP;
	rule := 'rows_unseen';
	relations := NULL;
	FOR object, detail IN SELECT 'rows: ' || w.why, (SELECT string_agg(x.n, ', ') FROM (SELECT n FROM jsonb_array_elements_text(u.value) n ORDER BY n COLLATE "C" LIMIT 10) x)
			|| CASE WHEN jsonb_array_length(u.value) > 10 THEN format(' and %s more', jsonb_array_length(u.value) - 10) ELSE '' END
		FROM jsonb_each(unseen) u JOIN (VALUES ('right', 'SELECT is missing'), ('policy', 'row-level security applies'), ('locked', 'the table is locked'),
			('access method', 'the access method cannot read by block'), ('error', 'they could not be read')) w(trouble, why) ON w.trouble = u.key LOOP
		RETURN NEXT;
	END LOOP;
	RETURN QUERY SELECT 'personal_name', i.name, p.what, ARRAY[c.oid]
	FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid
	JOIN pg_type y ON y.oid = a.atttypid, LATERAL nomp_crypt._lint_personal(c.relname, a.attname, y.typcategory) p(what),
		LATERAL nomp_crypt._lint_object('pg_class'::regclass, c.oid, a.attnum) i(name)
	WHERE c.relkind IN ('r', 'p', 'm', 'f') AND NOT c.relispartition AND c.relpersistence <> 't'
		AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'nomp_crypt')
		AND a.attnum > 0 AND NOT a.attisdropped AND a.attinhcount = 0 AND p.what IS NOT NULL
		AND NOT nomp_crypt._holds_values(a.atttypid) AND i.name <> ALL (found)
		AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e');
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._lint_columns(int) FROM PUBLIC;

-- What conversions have left: themselves, and plain values in files, WAL and
-- backups.
CREATE FUNCTION nomp_crypt._lint_conversions(OUT rule text, OUT object text, OUT detail text, OUT relations oid[])
RETURNS SETOF record
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
	RETURN QUERY
	WITH live AS (
		SELECT c.*, to_regclass(c.table_name)::oid AS oid FROM nomp_crypt.conversion c WHERE c.state NOT IN ('done', 'cancelled')),
	called AS (	-- what conversions make has names of this form
		SELECT 'pg_class'::regclass AS class, c.oid, 0 AS sub, c.relname AS name, NULL::oid AS relation FROM pg_class c WHERE c.relkind = 'S'
		UNION ALL SELECT 'pg_proc'::regclass, p.oid, 0, p.proname, NULL FROM pg_proc p
		UNION ALL SELECT 'pg_trigger'::regclass, t.oid, 0, t.tgname, t.tgrelid FROM pg_trigger t WHERE t.tgparentid = 0)
	SELECT 'conversion_unfinished', format('table column %s.%I', l.table_name, l.column_name),
		format('state %s since %s, begun by %I', l.state, coalesce(l.swapped_at, l.started_at)::timestamp(0), l.role)
			|| CASE WHEN l.oid IS NULL THEN '; there is no such table any more' ELSE '' END, ARRAY[l.oid]
	FROM live l
	UNION ALL
	SELECT 'conversion_leftover', nomp_crypt._lint_object(c.class, c.oid, c.sub), NULL, ARRAY[c.relation]
	FROM called c WHERE c.name ~ '^([~!]?nomp_crypt_[0-9a-f]{8}_(step|missed|tenant)|nomp_crypt_tenant_[0-9a-f]{32})$'
		AND NOT EXISTS (SELECT FROM live l WHERE strpos(c.name, nomp_crypt._conversion_name(l.uuid, '')) > 0)
	UNION ALL
	SELECT 'conversion_leftover', nomp_crypt._lint_object('pg_class'::regclass, a.attrelid, a.attnum), NULL, ARRAY[a.attrelid]
	FROM pg_description d JOIN pg_attribute a ON a.attrelid = d.objoid AND a.attnum = d.objsubid
	WHERE d.classoid = 'pg_class'::regclass AND d.objsubid > 0 AND starts_with(d.description, 'made by nomp_crypt.encrypt_column_online')
		AND a.attinhcount = 0 AND NOT EXISTS (SELECT FROM live l WHERE l.oid = a.attrelid AND l.shadow = a.attname)
	UNION ALL
	SELECT r.rule, nomp_crypt._lint_object('pg_class'::regclass, to_regclass(i.table_name), a.attnum),
		CASE r.rule WHEN 'backups_with_plaintext' THEN 'until ' || i.backups_with_plaintext_until::timestamp(0) END, ARRAY[a.attrelid]
	FROM nomp_crypt.inventory i JOIN pg_attribute a ON a.attrelid = to_regclass(i.table_name) AND a.attname = i.column_name,
		LATERAL (SELECT CASE i.state WHEN 'plain values may be left in the table''s files' THEN 'files_not_rewritten'
			WHEN 'plain values may be left in pg_statistic' THEN 'statistics_not_rewritten'
			WHEN 'unknown' THEN 'column_past_unknown'
			ELSE CASE WHEN i.backups_with_plaintext_until > clock_timestamp() THEN 'backups_with_plaintext' END END) r(rule)
	WHERE r.rule IS NOT NULL
	UNION ALL
	SELECT 'backups_unseen', 'backups', NULL, NULL
	WHERE EXISTS (SELECT FROM nomp_crypt.column_history h WHERE h.event = 'converted');
	IF NOT pg_is_in_recovery() THEN
		-- a segment that was last written before then has nothing newer in it
		RETURN QUERY SELECT 'slot_keeps_plaintext', 'replication slot ' || s.slot_name, format('its oldest segment is of %s', w.at::timestamp(0)), NULL::oid[]
		FROM pg_replication_slots s,
			LATERAL (SELECT min(f.modification) AS at FROM pg_ls_waldir() f WHERE substr(f.name, 9) = substr(pg_walfile_name(s.restart_lsn), 9)) w
		WHERE w.at < (SELECT max(i.encrypted_on_disk_since) FROM nomp_crypt.inventory i WHERE i.state = 'rewritten');
	END IF;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._lint_conversions() FROM PUBLIC;

-- Settings of the server, roles and databases that let values get elsewhere.
CREATE FUNCTION nomp_crypt._lint_settings(OUT rule text, OUT object text, OUT detail text, OUT relations oid[])
RETURNS SETOF record
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	WITH t AS MATERIALIZED (SELECT * FROM nomp_crypt._telling_settings())
	SELECT 'logs_' || t.tells, t.name || ' of ' || t.place, t.value, NULL::oid[] FROM t
	WHERE t.tells IN ('statements', 'plans')
		-- parameters, where statements or plans are logged at all
		OR (t.name = 'log_parameter_max_length' AND EXISTS (SELECT FROM t x WHERE x.tells = 'statements' AND x.name <> 'pgaudit.log'))
		OR (t.name = 'auto_explain.log_parameter_max_length' AND EXISTS (SELECT FROM t x WHERE x.name = 'auto_explain.log_min_duration'))
		OR (t.name = 'pgaudit.log_parameter' AND EXISTS (SELECT FROM t x WHERE x.name = 'pgaudit.log'))
	UNION ALL
	SELECT CASE t.tells WHEN 'errors' THEN 'logs_failed_statements' ELSE 'keeps_statements' END, t.name || ' of ' || t.place, t.value, NULL
	FROM t WHERE t.tells IN ('errors', 'statistics')
$$;
REVOKE ALL ON FUNCTION nomp_crypt._lint_settings() FROM PUBLIC;

-- Does the server listen to other machines?
CREATE FUNCTION nomp_crypt._listens_outside() RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT EXISTS (SELECT FROM regexp_split_to_table(current_setting('listen_addresses'), ',') a
		WHERE trim(a) NOT IN ('', 'localhost', '::1') AND trim(a) !~ '^127\.')
$$;
REVOKE ALL ON FUNCTION nomp_crypt._listens_outside() FROM PUBLIC;

-- Lines of pg_hba.conf that let clients in from elsewhere without encryption,
-- unless a line before them has sent all of those away.
CREATE FUNCTION nomp_crypt._lint_network(OUT rule text, OUT object text, OUT detail text, OUT relations oid[])
RETURNS SETOF record
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	WITH line AS (
		SELECT h.*, concat_ws(' ', h.type, array_to_string(h.database, ','), array_to_string(h.user_name, ','), h.address, h.netmask, h.auth_method) AS text,
			h.type IN ('host', 'hostnossl', 'hostnogssenc') AS plain,
			CASE WHEN h.address = 'all' OR h.netmask IN ('0.0.0.0', '::') THEN true ELSE false END AS everywhere
		FROM pg_hba_file_rules h WHERE h.error IS NULL)
	SELECT 'no_tls', 'setting ssl', NULL::text, NULL::oid[]
	WHERE current_setting('ssl') = 'off' AND nomp_crypt._listens_outside()
	UNION ALL
	SELECT DISTINCT 'hba_without_tls', 'pg_hba.conf: ' || l.text, NULL, NULL::oid[] FROM line l
	WHERE l.plain AND l.auth_method <> 'reject' AND nomp_crypt._listens_outside()
		AND NOT (l.address IN ('samehost', 'localhost') OR (l.address LIKE '127.%' AND l.netmask LIKE '255.%') OR l.address = '::1')
		AND NOT EXISTS (SELECT FROM line r WHERE r.line_number < l.line_number AND r.plain AND r.auth_method = 'reject'
			AND r.database = '{all}' AND r.user_name = '{all}' AND r.everywhere
			AND (r.address = 'all' OR family(r.address::inet) = CASE WHEN l.address LIKE '%:%' THEN 6 ELSE 4 END AND l.address ~ '^[0-9a-f.:]+$'))
$$;
REVOKE ALL ON FUNCTION nomp_crypt._lint_network() FROM PUBLIC;

-- The machine, by what health() finds.
CREATE FUNCTION nomp_crypt._lint_host(OUT rule text, OUT object text, OUT detail text, OUT severity text, OUT advice text)
RETURNS SETOF record
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	WITH f AS MATERIALIZED (SELECT nomp_crypt._health_facts() AS facts)
	SELECT r.rule, r.object, c.detail, replace(c.severity, 'critical', 'error'), c.advice
	FROM f, (VALUES ('credentials', 'keystore credentials'), ('memory', 'memory with keys'), ('core_dumps', 'core dumps'),
			('swap', 'swap space')) r(rule, object),
		LATERAL nomp_crypt._health_check(r.rule, f.facts, '1 year', '1 year') c
	WHERE c.severity IS NOT NULL
$$;
REVOKE ALL ON FUNCTION nomp_crypt._lint_host() FROM PUBLIC;

-- All findings, each with the relations that it is about; or those about
-- relations, which asks no keystore.
CREATE FUNCTION nomp_crypt._lint(sample_rows int, everything boolean, OUT severity text, OUT rule text, OUT object text, OUT why text,
	OUT advice text, OUT relations oid[]) RETURNS SETOF record
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET datestyle = 'ISO' AS $$
	SELECT CASE WHEN a.rule IS NULL THEN coalesce(f.severity, r.severity) ELSE 'accepted' END, f.rule, f.object,
		concat_ws(': ', r.why, f.detail) || coalesce('; accepted by ' || quote_ident(a.role) || ' on ' || a.at::date || ': ' || a.reason, ''),
		coalesce(f.advice, r.advice), f.relations
	FROM (SELECT c.*, NULL AS severity, NULL AS advice FROM (
			SELECT * FROM nomp_crypt._lint_definitions()
			UNION ALL SELECT * FROM nomp_crypt._lint_functions()
			UNION ALL SELECT * FROM nomp_crypt._lint_columns($1)
			UNION ALL SELECT * FROM nomp_crypt._lint_conversions()
			UNION ALL SELECT * FROM nomp_crypt._lint_settings() WHERE $2
			UNION ALL SELECT * FROM nomp_crypt._lint_network() WHERE $2) c
		UNION ALL SELECT h.rule, h.object, h.detail, NULL, h.severity, h.advice FROM nomp_crypt._lint_host() h WHERE $2) f
	JOIN nomp_crypt._lint_rules() r ON r.rule = f.rule
	LEFT JOIN nomp_crypt.lint_accepted a ON a.rule = f.rule AND a.object = f.object
$$;
REVOKE ALL ON FUNCTION nomp_crypt._lint(int, boolean) FROM PUBLIC;

-- Where values may be in clear, the worst first. Reads up to that many rows of
-- each table, as the caller may; none with 0.
CREATE FUNCTION nomp_crypt.lint(sample_rows int DEFAULT 1000, OUT severity text, OUT rule text, OUT object text,
	OUT why text, OUT advice text) RETURNS SETOF record
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT l.severity, l.rule, l.object, l.why, l.advice FROM nomp_crypt._lint($1, true) l
	ORDER BY array_position('{error,warning,info,not_checked,accepted}', l.severity), l.rule COLLATE "C", l.object COLLATE "C"
$$;
REVOKE ALL ON FUNCTION nomp_crypt.lint(int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION nomp_crypt.lint(int) TO pg_monitor;

-- Put on record that a finding is known and stays; without a reason, that it
-- is not accepted any more. Raises 22023, 42704.
CREATE FUNCTION nomp_crypt.accept_lint(rule text, object text, reason text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
	IF accept_lint.rule IS NULL OR accept_lint.object IS NULL OR accept_lint.reason = '' THEN
		RAISE EXCEPTION 'rule and object must be given, and a reason or null' USING ERRCODE = 'invalid_parameter_value';
	ELSIF NOT EXISTS (SELECT FROM nomp_crypt._lint_rules() r WHERE r.rule = accept_lint.rule) THEN
		RAISE EXCEPTION 'there is no rule "%"', accept_lint.rule USING ERRCODE = 'undefined_object';
	END IF;
	DELETE FROM nomp_crypt.lint_accepted a WHERE a.rule = accept_lint.rule AND a.object = accept_lint.object;
	IF NOT FOUND AND accept_lint.reason IS NULL THEN
		RAISE EXCEPTION 'rule "%" is not accepted for "%"', accept_lint.rule, accept_lint.object USING ERRCODE = 'undefined_object';
	END IF;
	INSERT INTO nomp_crypt.lint_accepted (rule, object, reason, role)
	SELECT accept_lint.rule, accept_lint.object, accept_lint.reason, nomp_crypt._acting_role() WHERE accept_lint.reason IS NOT NULL;
	PERFORM nomp_crypt._audit('accept_lint', NULL, jsonb_build_object('rule', accept_lint.rule, 'object', accept_lint.object,
		'reason', accept_lint.reason));
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.accept_lint(text, text, text) FROM PUBLIC;

-- ---------------------------------------------------------------------------
-- Staging: a copy of production, at a place that cannot reach production's
-- keystore, becomes an installation of its own with made-up values. No original
-- is read: there is no key for them here, and where there is one it is refused.
-- ---------------------------------------------------------------------------

-- The originals' keys by id, and whose they were; empty but between
-- begin_staging and the end of replace_values.
CREATE TABLE nomp_crypt.original_key (
	key_id			bytea PRIMARY KEY,
	tenant			text NOT NULL,
	installation	uuid NOT NULL
);
COMMENT ON TABLE nomp_crypt.original_key IS 'keys of another installation, whose values replace_values replaces';
SELECT pg_catalog.pg_extension_config_dump('nomp_crypt.original_key', '');

-- Equal originals get equal values, by these numbers: each identity that a
-- searchable column has, among those of its kind.
CREATE TABLE nomp_crypt.made_up_number (
	kind		text NOT NULL,
	identity	bytea NOT NULL,
	number		bigint NOT NULL,
	PRIMARY KEY (kind, identity)
);
COMMENT ON TABLE nomp_crypt.made_up_number IS 'numbers of made-up values, while replace_values is under way';

CREATE FUNCTION nomp_crypt._value_key(value @extschema@.encrypted) RETURNS bytea
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'nc_value_key';
CREATE FUNCTION nomp_crypt._value_identity(value @extschema@.encrypted) RETURNS bytea
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'nc_value_identity';
CREATE FUNCTION nomp_crypt._staging_expression(column_name text, expression text,
	OUT relation regclass, OUT name name, OUT made text)
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_staging_expression';

-- Raises unless no keystore in the settings is that installation's: each must
-- answer, and have no canary of it. Raises 55000, NC004.
CREATE FUNCTION nomp_crypt._require_unreachable(originals uuid) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	store record;
	stores int := 0;
BEGIN
	FOR store IN SELECT * FROM nomp_crypt._keystores(originals) LOOP
		stores := stores + 1;
		IF store.canary THEN
			RAISE EXCEPTION 'the keys of the originals can be reached here'
				USING ERRCODE = 'object_not_in_prerequisite_state',
				DETAIL = format('Keystore "%s" is that of installation %s.', store.token, originals),
				HINT = 'Values are replaced in a copy only, at a place that cannot reach production''s keystore.';
		ELSIF store.canary IS NULL THEN
			RAISE EXCEPTION 'the keystore is unavailable: %', store.state
				USING ERRCODE = 'NC004', HINT = 'It must answer that the keys of the originals are not in it. See nomp_crypt.keystore_status().';
		END IF;
	END LOOP;
	IF stores = 0 THEN
		RAISE EXCEPTION 'the keystore is unavailable: none is configured' USING ERRCODE = 'NC004',
			HINT = 'Give staging a keystore of its own: nomp_crypt.keystore.';
	END IF;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._require_unreachable(uuid) FROM PUBLIC;

-- The first step: this database leaves the installation that it is a copy of,
-- with all keys, cases and records of that, and founds one of its own, or joins
-- this server's. Does nothing in one that has. Raises 25006, 55000, NC004.
CREATE FUNCTION nomp_crypt._begin_staging() RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	originals uuid;
	mine uuid;
	reg record;
	school uuid;
	loaded int;
BEGIN
	IF pg_is_in_recovery() THEN
		RAISE EXCEPTION 'a standby cannot become staging'
			USING ERRCODE = 'read_only_sql_transaction', HINT = 'Take a base backup of it to another place.';
	END IF;
	PERFORM nomp_crypt._lock_keystore(true);
	SELECT uuid INTO originals FROM nomp_crypt.installation;
	SELECT * INTO reg FROM nomp_crypt._register_read();
	IF originals IS NULL THEN
		RAISE EXCEPTION 'this database is a copy of no installation'
			USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Restore a dump or backup of production first, with the keys'' rows in it.';
	ELSIF reg.installation = originals AND EXISTS (SELECT FROM nomp_crypt.original_key o WHERE o.installation <> originals) THEN
		RETURN;
	ELSIF reg.installation = originals THEN
		RAISE EXCEPTION 'this server belongs to installation %, and so do the values', originals
			USING ERRCODE = 'object_not_in_prerequisite_state',
			DETAIL = 'The register directory names it: this is production, or a machine that was cloned with it.',
			HINT = 'Staging needs an empty nomp_crypt.register_directory and a keystore of its own.';
	END IF;
	PERFORM nomp_crypt._require_unreachable(originals);
	-- its canary may be gone, and its keys not
	FOR school IN SELECT t.uuid FROM nomp_crypt.tenant t WHERE t.state = 'active' ORDER BY t.created_at DESC LIMIT 3 LOOP
		BEGIN
			loaded := nomp_crypt._load_keys(school);
		EXCEPTION WHEN SQLSTATE 'NC003' OR SQLSTATE 'NC004' THEN
			loaded := 0;
		END;
		IF loaded > 0 THEN
			RAISE EXCEPTION 'the keys of the originals can be reached here' USING ERRCODE = 'object_not_in_prerequisite_state';
		END IF;
	END LOOP;
	IF EXISTS (SELECT FROM nomp_crypt._keyring_uses() u JOIN nomp_crypt.tenant t ON t.uuid = u.tenant) THEN
		RAISE EXCEPTION 'keys of the originals are in this server''s memory'
			USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Restart the server with staging''s own keystore.';
	END IF;
	INSERT INTO nomp_crypt.original_key (key_id, tenant, installation)
	SELECT k.key_id, t.id, originals FROM nomp_crypt.tenant_key k JOIN nomp_crypt.tenant t ON t.uuid = k.tenant
	ON CONFLICT DO NOTHING;
	DELETE FROM nomp_crypt.tenant_key;
	DELETE FROM nomp_crypt.kek;
	DELETE FROM nomp_crypt.tenant;
	DELETE FROM nomp_crypt.tenant_right r WHERE r.tenant <> '00000000-0000-0000-0000-000000000000';
	DELETE FROM nomp_crypt.erasure;
	DELETE FROM nomp_crypt.erasure_approval;
	DELETE FROM nomp_crypt.legal_hold;
	DELETE FROM nomp_crypt.data_return;
	DELETE FROM nomp_crypt.attestation;
	DELETE FROM nomp_crypt.busy;
	-- the other installation's chain: here a new one begins
	ALTER TABLE nomp_crypt.register DISABLE TRIGGER append_only;
	ALTER TABLE nomp_crypt.register DISABLE TRIGGER append_only_rows;
	DELETE FROM nomp_crypt.register;
	ALTER TABLE nomp_crypt.register ENABLE ALWAYS TRIGGER append_only;
	ALTER TABLE nomp_crypt.register ENABLE ALWAYS TRIGGER append_only_rows;
	DELETE FROM nomp_crypt.installation;
	mine := nomp_crypt._require_owner();
	PERFORM nomp_crypt._audit('begin_staging', NULL, jsonb_build_object('originals', originals, 'installation', mine));
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._begin_staging() FROM PUBLIC;

CREATE FUNCTION nomp_crypt._original_tenants() RETURNS SETOF text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT DISTINCT o.tenant FROM nomp_crypt.original_key o ORDER BY 1
$$;
REVOKE ALL ON FUNCTION nomp_crypt._original_tenants() FROM PUBLIC;

-- A restored copy of production becomes staging: an installation of its own,
-- and in it a new school, with new keys, for each that has a key in the copy.
-- From then on no original can be read here, whatever keystore is configured:
-- their wrapped keys are gone. Interrupted, it is repeated. Raises 55000, NC004.
-- It commits, so its search_path is the caller's: every name is qualified.
CREATE PROCEDURE nomp_crypt.begin_staging()
LANGUAGE plpgsql AS $$
DECLARE
	ids pg_catalog.text[];
BEGIN
	PERFORM nomp_crypt._begin_staging();
	COMMIT;
	ids := ARRAY(SELECT nomp_crypt._original_tenants());
	CALL nomp_crypt.create_tenants(ids);
END
$$;
REVOKE ALL ON PROCEDURE nomp_crypt.begin_staging() FROM PUBLIC;

-- Ten digits and a check digit after a date on which nobody was born who was
-- ever given a number: they have been given since 1947.
CREATE FUNCTION nomp_crypt._made_up_personnummer(number bigint) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	days CONSTANT int := date '1840-01-01' - date '1800-01-01';
	born date := date '1800-01-01' + (number % days)::int;
	digits text := to_char(born, 'YYMMDD') || lpad((1 + number / days)::text, 3, '0');
	d int;
	total int := 0;
BEGIN
	FOR i IN 1 .. 9 LOOP
		d := substr(digits, i, 1)::int * (1 + i % 2);
		total := total + d / 10 + d % 10;
	END LOOP;
	RETURN to_char(born, 'YYYYMMDD') || '-' || substr(digits, 7) || (10 - total % 10) % 10;
END
$$;

-- A made-up text of that kind, the same for the same number: "name",
-- "given name", "surname", "personnummer", "email", "phone", "street",
-- "postcode", "city", "digits", "text". Others for other numbers, up to where
-- the kind ends (54000). Raises 22023 for other kinds.
CREATE FUNCTION nomp_crypt.made_up(kind text, number bigint) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	given CONSTANT text[] := '{Anna,Erik,Maria,Lars,Karin,Anders,Sara,Johan,Emma,Per,Lena,Nils,Eva,Karl,Ida,Olof,Elsa,Hugo,Alva,Axel,
		Maja,Oskar,Ebba,Gustav,Klara,Viktor,Signe,Emil,Linnea,Anton,Stina,Filip,Agnes,Jonas,Sofia,Mats,Ellen,Simon,Tilda,Adam,
		Amir,Fatima,Leila,Omar,Yasmin,Ali,Zahra,Hassan,Mira,Noah,Selma,Isak,Nora,Vera,Sixten,Ingrid,Alma,Love,Elin,David}'::text[];
	surname CONSTANT text[] := '{Andersson,Johansson,Karlsson,Nilsson,Eriksson,Larsson,Olsson,Persson,Svensson,Gustafsson,
		Pettersson,Jonsson,Jansson,Hansson,Bengtsson,Carlsson,Petersson,Lindberg,Magnusson,Lindgren,Axelsson,Berg,Lund,Holm,
		Lindqvist,Mattsson,Eklund,Sandberg,Hedlund,Nordin,Ali,Mohamed,Hassan,Ahmed,Lundin,Wallin,Engman,Dahl,Ek,Falk,Strand}'::text[];
	city CONSTANT text[] := '{Exempelby,Provstad,Mallholm,Utkastlund,Skissvik,Modellfors,Testinge,Figurholm}'::text[];
	n CONSTANT bigint := number;
	first text := given[1 + n % cardinality(given)];
	last text := surname[1 + n / cardinality(given) % cardinality(surname)];
	again bigint := n / (cardinality(given) * cardinality(surname));
BEGIN
	IF n < 0 THEN
		RAISE EXCEPTION 'the number of a made-up value must not be negative' USING ERRCODE = 'invalid_parameter_value';
	END IF;
	CASE kind
		WHEN 'name' THEN RETURN concat_ws(' ', first, last, nullif(again, 0));
		WHEN 'given name' THEN RETURN concat_ws(' ', first, nullif(n / cardinality(given), 0));
		WHEN 'surname' THEN
			RETURN concat_ws(' ', surname[1 + n % cardinality(surname)], nullif(n / cardinality(surname), 0));
		WHEN 'personnummer' THEN
			IF n >= 999 * 14609 THEN
				RAISE EXCEPTION 'there are no more than 14594391 made-up values of kind "personnummer"'
					USING ERRCODE = 'program_limit_exceeded';
			END IF;
			RETURN nomp_crypt._made_up_personnummer(n);
		WHEN 'email' THEN RETURN lower(format('%s.%s.%s@example.org', first, last, n));
		WHEN 'phone' THEN RETURN concat_ws(' ', '070-17406' || lpad((5 + n % 95)::text, 2, '0'), nullif(n / 95, 0));
		WHEN 'street' THEN RETURN 'Exempelgatan ' || 1 + n;
		WHEN 'postcode' THEN RETURN concat_ws(' ', to_char(10000 + n % 90000, 'FM999 99'), nullif(n / 90000, 0));
		WHEN 'city' THEN RETURN concat_ws(' ', city[1 + n % cardinality(city)], nullif(n / cardinality(city), 0));
		WHEN 'digits' THEN RETURN n;
		WHEN 'text' THEN RETURN 'Text ' || n;
		ELSE
			RAISE EXCEPTION 'there is no made-up value of kind "%"', kind USING ERRCODE = 'invalid_parameter_value';
	END CASE;
END
$$;

-- What a column's made-up values shall look like, by its name and the type
-- inside: a kind of made_up for texts, else the type.
CREATE FUNCTION nomp_crypt._made_up_kind(column_name text, inner_type text, digits boolean) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	base text := regexp_replace(inner_type, '\([^)]*\)|\[\]', '', 'g');
	n text := lower(regexp_replace(column_name, '([a-z0-9])([A-Z])', '\1_\2', 'g'));
	kind text;
BEGIN
	IF base NOT IN ('text', 'character varying', 'character') THEN
		RETURN CASE WHEN base IN ('integer', 'bigint', 'numeric', 'real', 'double precision', 'money') THEN 'number' ELSE base END;
	END IF;
	kind := CASE
		WHEN n ~ '(^|_)(ssn|pnr|person_?n(r|ummer)|personal_?(identity_?)?(id|no|number)|samordnings_?n(r|ummer))(_|$)' THEN 'personnummer'
		WHEN n ~ '(mail|mejl|e[_-]?post)' THEN 'email'
		WHEN n ~ '(phone|telefon|mobil|(^|_)tel(_|$))' THEN 'phone'
		WHEN n ~ '(first|given|f.r|till?tals)_?(name|namn)' THEN 'given name'
		WHEN n ~ '(last|family|efter)_?(name|namn)|surname' THEN 'surname'
		WHEN n ~ '(name|namn)' THEN 'name'
		WHEN n ~ '(street|address|adress|gata|gatu)' THEN 'street'
		WHEN n ~ '(zip|postal|post_?n(r|ummer)|post_?code)' THEN 'postcode'
		WHEN n ~ '(^|_)(city|town|ort|post_?ort|stad)(_|$)' THEN 'city'
		ELSE 'text' END;
	RETURN CASE WHEN digits AND kind NOT IN ('personnummer', 'phone') THEN 'digits' ELSE kind END;
END
$$;

-- A made-up value of the type inside a column, as text. "wide": another one for
-- every number, as far as the type goes (54000); else one that looks like the
-- others. "room": how many characters it may have.
CREATE FUNCTION nomp_crypt._made_up(kind text, number bigint, inner_type text, room int, wide boolean) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	base text := regexp_replace(inner_type, '\([^)]*\)', '');
	p int := split_part(substring(inner_type FROM '\(([0-9-]+)'), ',', 1);
	s int := coalesce(substring(inner_type FROM ',(-?[0-9]+)\)')::int, 0);
	most bigint;
	n bigint := number;
	made text;
BEGIN
	IF n IS NULL THEN
		RAISE EXCEPTION 'a value that is to be replaced has no number' USING ERRCODE = 'internal_error';
	ELSIF right(base, 2) = '[]' THEN
		RETURN CASE WHEN wide THEN ARRAY[nomp_crypt._made_up(kind, n, left(inner_type, -2), room, wide)]::text ELSE '{}' END;
	END IF;
	most := CASE
		WHEN base = 'boolean' THEN 2
		WHEN base LIKE 'time%' AND base NOT LIKE 'timestamp%' THEN 86400
		WHEN base = 'smallint' THEN CASE WHEN wide THEN 32767 ELSE 100 END
		WHEN base = 'numeric' AND p IS NOT NULL THEN 10 ^ least(p, CASE WHEN wide THEN 18 ELSE 4 END)
		WHEN NOT wide AND base = 'date' THEN 16 * 365
		WHEN NOT wide AND base LIKE 'timestamp%' THEN 365 * 86400
		WHEN NOT wide AND base = 'inet' THEN 256
		WHEN base = 'date' THEN 1000000
		WHEN base = 'real' THEN CASE WHEN wide THEN 16777216 ELSE 1000 END
		WHEN NOT wide THEN CASE kind WHEN 'name' THEN 60 * 41 WHEN 'given name' THEN 60 WHEN 'surname' THEN 41 WHEN 'personnummer' THEN 14594391
			WHEN 'phone' THEN 95 WHEN 'street' THEN 200 WHEN 'postcode' THEN 90000 WHEN 'city' THEN 8 WHEN 'email' THEN 1000000
			WHEN 'uuid' THEN 281474976710656 ELSE 1000 END
		ELSE 2147483647 END;
	IF wide AND n >= most THEN
		RAISE EXCEPTION 'there are no more than % made-up values of type % that differ', most, inner_type
			USING ERRCODE = 'program_limit_exceeded', HINT = 'Give an expression for the column.';
	END IF;
	n := n % most;
	CASE
		WHEN base IN ('text', 'character varying', 'character') THEN
			made := nomp_crypt.made_up(kind, n);
			IF room IS NULL OR length(made) <= room THEN
				RETURN made;
			ELSIF kind = 'personnummer' AND room = 12 THEN
				RETURN translate(made, '-', '');
			ELSIF kind = 'personnummer' AND room = 11 THEN		-- the sign of somebody who is older than a hundred
				RETURN translate(substr(made, 3), '-', '+');
			ELSIF NOT wide THEN
				RETURN left(made, room);
			ELSIF length(n::text) > room THEN
				RAISE EXCEPTION 'there are more values that differ than % characters can hold', room
					USING ERRCODE = 'program_limit_exceeded', HINT = 'Give an expression for the column.';
			END IF;
			RETURN n;
		WHEN base = 'bytea' THEN RETURN '\x' || lpad(to_hex(n), 16, '0');
		WHEN base = 'boolean' THEN RETURN n = 1;
		WHEN base = 'numeric' AND p IS NOT NULL THEN RETURN n / 10::numeric ^ s;
		WHEN base = 'date' THEN RETURN to_char(CASE WHEN wide THEN date '2000-01-01' ELSE date '2005-01-01' END + n::int, 'YYYY-MM-DD');
		WHEN base LIKE 'timestamp%' THEN
			RETURN to_char(timestamp '2024-01-01' + make_interval(secs => n), 'YYYY-MM-DD HH24:MI:SS')
				|| CASE WHEN base LIKE '%with time zone' THEN '+00' ELSE '' END;
		WHEN base LIKE 'time%' THEN
			RETURN (time '00:00' + make_interval(secs => n))::text || CASE WHEN base LIKE '%with time zone' THEN '+00' ELSE '' END;
		WHEN base LIKE 'interval%' THEN RETURN n || ' hours';
		WHEN base = 'uuid' THEN RETURN '00000000-0000-4000-8000-' || lpad(to_hex(n), 12, '0');
		WHEN base = 'inet' THEN RETURN CASE WHEN wide THEN inet '2001:db8::' + n ELSE inet '192.0.2.0' + n END;
		WHEN base IN ('json', 'jsonb') THEN RETURN CASE WHEN wide THEN format('{"n": %s}', n) ELSE '{}' END;
		WHEN base LIKE '%range' AND NOT wide THEN RETURN 'empty';
		WHEN base IN ('int4range', 'int8range', 'numrange') THEN RETURN format('[%s,%s)', n, n + 1);
		WHEN base = 'daterange' THEN RETURN format('[%s,%s)', date '2000-01-01' + (n % 1000000)::int, date '2000-01-02' + (n % 1000000)::int);
		WHEN base LIKE '%range' THEN
			RETURN format('["%1$s","%1$s"]', to_char(timestamp '2024-01-01' + make_interval(secs => n), 'YYYY-MM-DD HH24:MI:SS'));
		ELSE RETURN n;
	END CASE;
END
$$;

-- The columns that hold values, with what is to be made up for each. Foreign
-- keys have their kind from the column that they refer to in the end, and no
-- more room than it has.
CREATE FUNCTION nomp_crypt._staging_columns(OUT relation regclass, OUT name name, OUT number int2, OUT shape text,
	OUT modifier int, OUT inner_type text, OUT searchable boolean, OUT referring boolean, OUT kind text, OUT room int) RETURNS SETOF record
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET datestyle = ISO AS $$
	WITH RECURSIVE base AS (
		SELECT c.oid AS relation, c.relkind, a.attname, a.attnum, a.attgenerated, a.atttypid AS type, a.atttypmod AS typmod, false AS elements
		FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
		WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND nomp_crypt._holds_values(a.atttypid)
		UNION ALL
		SELECT b.relation, b.relkind, b.attname, b.attnum, b.attgenerated,
			CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.typelem END,
			CASE WHEN b.typmod >= 0 THEN b.typmod ELSE t.typtypmod END, b.elements OR t.typtype <> 'd'
		FROM base b JOIN pg_type t ON t.oid = b.type
		WHERE t.typtype = 'd' OR (t.typcategory = 'A' AND t.typelem <> 0 AND NOT b.elements)),
	held AS (
		SELECT b.*, CASE WHEN t.oid <> '@extschema@.encrypted'::regtype THEN 'composite' WHEN b.elements THEN 'array' ELSE 'value' END AS shape,
			format_type('@extschema@.encrypted'::regtype, b.typmod) AS declared
		FROM base b JOIN pg_type t ON t.oid = b.type
		WHERE NOT (t.typtype = 'd' OR (t.typcategory = 'A' AND t.typelem <> 0 AND NOT b.elements))),
	reference AS (
		SELECT n.conrelid, k.here, n.confrelid, k.there
		FROM pg_constraint n, unnest(n.conkey, n.confkey) k(here, there) WHERE n.contype = 'f'),
	-- each column's way up; the last on it is its origin
	way AS (
		SELECT h.relation, h.attnum, h.relation AS at_relation, h.attnum AS at_number, 0 AS depth FROM held h
		UNION
		SELECT w.relation, w.attnum, r.confrelid, r.there, w.depth + 1
		FROM way w JOIN reference r ON r.conrelid = w.at_relation AND r.here = w.at_number WHERE w.depth < 30),
	origin AS (
		SELECT DISTINCT ON (w.relation, w.attnum) w.relation, w.attnum, o.attname, w.depth > 0 AS referring
		FROM way w JOIN pg_attribute o ON o.attrelid = w.at_relation AND o.attnum = w.at_number
		ORDER BY w.relation, w.attnum, w.depth DESC, o.attname, w.at_relation),
	kinds AS (
		SELECT h.*, o.referring, i.inner_type, h.declared ~ ', searchable' AS searchable, o.attname AS origin,
			nomp_crypt._made_up_kind(o.attname, i.inner_type, h.declared ~ ', searchable.*digits') AS kind,
			CASE WHEN i.inner_type ~ '^character' THEN substring(i.inner_type FROM '\(([0-9]+)\)')::int END AS own_room
		FROM held h JOIN origin o USING (relation, attnum),
			LATERAL (SELECT CASE WHEN h.shape <> 'composite' THEN nomp_crypt._inner_type(h.typmod) END) i(inner_type)),
	fitting AS (
		SELECT k.*, CASE WHEN k.searchable THEN min(k.own_room) OVER (PARTITION BY k.kind, k.origin) ELSE k.own_room END AS room FROM kinds k)
	SELECT f.relation, f.attname, f.attnum, f.shape, f.typmod, f.inner_type, f.searchable,
		f.referring OR EXISTS (SELECT FROM reference r WHERE r.confrelid = f.relation AND r.there = f.attnum), f.kind, f.room
	FROM fitting f WHERE f.relkind = 'r' AND f.attgenerated = '' ORDER BY 1, 3
$$;
REVOKE ALL ON FUNCTION nomp_crypt._staging_columns() FROM PUBLIC;

-- SQL for "t", a row of the relation: holds its column such a value? "which" is
-- a condition on its key, "k.id".
CREATE FUNCTION nomp_crypt._staging_holds(name name, shape text, which text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT format('EXISTS (SELECT FROM %s v(v), LATERAL (SELECT nomp_crypt._value_key(v.v)) k(id) WHERE k.id IS NOT NULL AND %s)',
		format(CASE shape WHEN 'array' THEN 'unnest(t.%I)' ELSE '(SELECT t.%I)' END, name), which)
$$;

-- SQL for the kind of number of a value of "o": types with few values count by
-- school.
CREATE FUNCTION nomp_crypt._staging_kind(kind text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT CASE WHEN kind ~ '^(boolean|smallint|time with)' THEN format('%L || o.tenant', kind || ' ') ELSE quote_literal(kind) END
$$;

-- A number for the rest, by seed, table, column and row.
CREATE FUNCTION nomp_crypt._staging_number(VARIADIC parts text[]) RETURNS bigint
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
	SELECT ('x' || left(encode(sha256(convert_to(parts::text, 'UTF8')), 'hex'), 12))::bit(48)::bigint
$$;

-- Before anything is changed: may values be replaced here, and can all of them
-- be? Raises 42501, 55000, 0A000, NC004.
CREATE FUNCTION nomp_crypt._require_staging() RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET nomp_crypt.tenant = '' SET row_security = off AS $$
DECLARE
	originals uuid;
	c record;
	strangers bigint;
BEGIN
	IF (SELECT r.rolsuper FROM pg_roles r WHERE r.rolname = nomp_crypt._acting_role()) IS NOT TRUE THEN
		RAISE EXCEPTION 'must be superuser to replace values' USING ERRCODE = 'insufficient_privilege';
	ELSIF NOT EXISTS (SELECT FROM nomp_crypt.original_key o, nomp_crypt.installation i WHERE o.installation <> i.uuid) THEN
		RAISE EXCEPTION 'this database is not staging' USING ERRCODE = 'object_not_in_prerequisite_state',
			DETAIL = 'It has no values of another installation.',
			HINT = 'In a copy of production, and nowhere else: CALL nomp_crypt.begin_staging();';
	END IF;
	PERFORM nomp_crypt._require_owner();
	FOR originals IN SELECT DISTINCT o.installation FROM nomp_crypt.original_key o LOOP
		PERFORM nomp_crypt._require_unreachable(originals);
	END LOOP;
	FOR c IN SELECT n.table_name, n.column_name FROM nomp_crypt.conversion n WHERE n.state NOT IN ('done', 'cancelled') LOOP
		RAISE EXCEPTION 'column "%" of % is being converted', c.column_name, c.table_name
			USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Finish or cancel the conversion first.';
	END LOOP;
	FOR c IN SELECT * FROM nomp_crypt._staging_columns() LOOP
		IF c.shape = 'composite' THEN
			EXECUTE format('SELECT count(t.%I) FROM ONLY %s t', c.name, c.relation) INTO strangers;
			IF strangers > 0 THEN
				RAISE EXCEPTION 'column "%" of % holds values within a composite type', c.name, c.relation
					USING ERRCODE = 'feature_not_supported', HINT = 'Make it null first.';
			END IF;
			CONTINUE;
		END IF;
		EXECUTE format('SELECT count(*) FROM ONLY %s t WHERE %s', c.relation, nomp_crypt._staging_holds(c.name, c.shape,
			'NOT EXISTS (SELECT FROM nomp_crypt.original_key o WHERE o.key_id = k.id) AND NOT EXISTS (SELECT FROM nomp_crypt.tenant_key o WHERE o.key_id = k.id)'))
		INTO strangers;
		IF strangers > 0 THEN
			RAISE EXCEPTION 'column "%" of % has values in % rows under keys that the copy does not know', c.name, c.relation, strangers
				USING ERRCODE = 'object_not_in_prerequisite_state',
				DETAIL = 'So nobody can say whose they are.', HINT = 'Make them null first.';
		END IF;
	END LOOP;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._require_staging() FROM PUBLIC;

-- Expressions by column, "oid.name". Raises 0A000 where equal values must stay equal.
CREATE FUNCTION nomp_crypt._staging_plan(columns oid[], names name[], made text[]) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	c record;
BEGIN
	FOR c IN SELECT s.name, s.relation FROM nomp_crypt._staging_columns() s, unnest(columns, names) u(relation, name)
			 WHERE s.name = u.name AND s.referring
				AND u.relation IN (SELECT s.relation UNION SELECT p.relid FROM pg_partition_ancestors(s.relation) p) LOOP
		RAISE EXCEPTION 'column "%" of % is part of a foreign key', c.name, c.relation
			USING ERRCODE = 'feature_not_supported', HINT = 'Its values must equal others: leave them to replace_values.';
	END LOOP;
	RETURN coalesce((SELECT jsonb_object_agg(u.relation || '.' || u.name, u.made) FROM unnest(columns, names, made) u(relation, name, made)), '{}');
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._staging_plan(oid[], name[], text[]) FROM PUBLIC;

-- Number the identities of all searchable columns, once.
CREATE FUNCTION nomp_crypt._staging_count(seed text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET nomp_crypt.tenant = '' SET row_security = off AS $$
DECLARE
	sources text;
BEGIN
	IF EXISTS (SELECT FROM nomp_crypt.made_up_number) THEN
		RETURN;
	END IF;
	SELECT string_agg(format('SELECT %s AS kind, nomp_crypt._value_identity(v.v) AS identity
			FROM ONLY %s t, LATERAL %s v(v) JOIN nomp_crypt.original_key o ON o.key_id = nomp_crypt._value_key(v.v)',
			nomp_crypt._staging_kind(c.kind), c.relation, format(CASE c.shape WHEN 'array' THEN 'unnest(t.%I)' ELSE '(SELECT t.%I)' END, c.name)), ' UNION ')
	INTO sources FROM nomp_crypt._staging_columns() c WHERE c.searchable AND c.shape <> 'composite';
	IF sources IS NOT NULL THEN
		EXECUTE format('INSERT INTO nomp_crypt.made_up_number (kind, identity, number)
			SELECT s.kind, s.identity, row_number() OVER (PARTITION BY s.kind ORDER BY sha256(convert_to($1, ''UTF8'') || s.identity)) - 1
			FROM (%s) s', sources) USING seed;
		ANALYZE nomp_crypt.made_up_number;
	END IF;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._staging_count(text) FROM PUBLIC;

-- What names a row of "t" in every copy: its primary key, or the value's own
-- bytes where there is none.
CREATE FUNCTION nomp_crypt._staging_row(of_table regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT coalesce((SELECT string_agg(format(CASE WHEN nomp_crypt._holds_values(a.atttypid) THEN 'nomp_crypt._value_identity(t.%I)::text'
			ELSE 't.%I::text' END, a.attname), ', ' ORDER BY a.attnum)
		FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey::int2[])
		WHERE i.indrelid = $1 AND i.indisprimary), 'nomp_crypt._value_identity(v.v)::text')
$$;

-- The UPDATE of a relation's rows between two places, $1 and $2; NULL if it
-- has no such column.
CREATE FUNCTION nomp_crypt._staging_statement(of_table regclass, seed text, plan jsonb) RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	c record;
	made text;
	assignments text[] := '{}';
	conditions text[] := '{}';
BEGIN
	FOR c IN SELECT * FROM nomp_crypt._staging_columns() s WHERE s.relation = of_table AND s.shape <> 'composite' LOOP
		made := coalesce((SELECT plan ->> (r.relid || '.' || c.name) FROM
				(SELECT of_table::oid, 0 UNION SELECT p.relid::oid, 1 FROM pg_partition_ancestors(of_table) p) r(relid, far)
				WHERE plan ? (r.relid || '.' || c.name) ORDER BY r.far LIMIT 1),
			format('nomp_crypt._made_up(%L, %s, %L, %L, %L)', c.kind,
				CASE WHEN c.searchable THEN
					format('(SELECT m.number FROM nomp_crypt.made_up_number m WHERE m.kind = %s AND m.identity = nomp_crypt._value_identity(v.v))', nomp_crypt._staging_kind(c.kind))
				ELSE format('nomp_crypt._staging_number(%L, %L, %L, %s)', seed,
					nomp_crypt._table_name(coalesce(pg_partition_root(of_table), of_table)), c.name, nomp_crypt._staging_row(of_table)
					|| CASE c.shape WHEN 'array' THEN ', v.place::text' ELSE '' END) END,
				c.inner_type, c.room, c.searchable));
		made := format('CASE WHEN o.tenant IS NULL THEN v.v ELSE nomp_crypt._encrypt_as((%s)::%s, o.tenant, %s) END', made, c.inner_type, c.modifier);
		assignments := assignments || format(CASE c.shape
			WHEN 'array' THEN '%1$I = (SELECT coalesce(array_agg(%2$s ORDER BY v.place), t.%1$I) FROM unnest(t.%1$I) WITH ORDINALITY v(v, place)
				LEFT JOIN nomp_crypt.original_key o ON o.key_id = nomp_crypt._value_key(v.v))'
			ELSE '%1$I = (SELECT %2$s FROM (SELECT t.%1$I) v(v)
				LEFT JOIN nomp_crypt.original_key o ON o.key_id = nomp_crypt._value_key(v.v))' END, c.name, made);
		conditions := conditions || nomp_crypt._staging_holds(c.name, c.shape,
			'EXISTS (SELECT FROM nomp_crypt.original_key o WHERE o.key_id = k.id)');
	END LOOP;
	RETURN CASE WHEN cardinality(assignments) > 0 THEN
		format('UPDATE ONLY %s t SET %s WHERE t.ctid >= $1 AND t.ctid < $2 AND (%s)', of_table,
			array_to_string(assignments, ', '), array_to_string(conditions, ' OR ')) END;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._staging_statement(regclass, text, jsonb) FROM PUBLIC;

-- One batch, with the caller's rights in the schools: only a superuser may,
-- because no trigger is fired and no foreign key looked at.
CREATE FUNCTION nomp_crypt._staging_batch(of_table regclass, seed text, plan jsonb, from_block bigint, to_block bigint) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp SET nomp_crypt.tenant = '' SET row_security = off
SET session_replication_role = replica SET datestyle = ISO SET timezone = 'UTC' SET jit = off AS $$
DECLARE
	changed bigint;
BEGIN
	EXECUTE nomp_crypt._staging_statement(of_table, seed, plan)
	USING format('(%s,0)', from_block)::tid, format('(%s,0)', to_block)::tid;
	GET DIAGNOSTICS changed = ROW_COUNT;
	RETURN changed;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._staging_batch(regclass, text, jsonb, bigint, bigint) FROM PUBLIC;

-- Nothing of the originals is left, and every foreign key finds what it refers
-- to. Raises 55000, 23503.
CREATE FUNCTION nomp_crypt._staging_verify() RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET nomp_crypt.tenant = '' SET row_security = off AS $$
DECLARE
	c record;
	wrong bigint;
BEGIN
	FOR c IN SELECT * FROM nomp_crypt._staging_columns() s WHERE s.shape <> 'composite' LOOP
		EXECUTE format('SELECT count(*) FROM ONLY %s t WHERE %s', c.relation, nomp_crypt._staging_holds(c.name, c.shape,
			'EXISTS (SELECT FROM nomp_crypt.original_key o WHERE o.key_id = k.id)')) INTO wrong;
		IF wrong > 0 THEN
			RAISE EXCEPTION 'column "%" of % has % originals left', c.name, c.relation, wrong
				USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Somebody wrote them meanwhile, or a trigger puts them back. Repeat the call.';
		END IF;
	END LOOP;
	FOR c IN SELECT n.conname, n.conrelid::regclass AS child, n.confrelid::regclass AS parent,
				string_agg(format('p.%I OPERATOR(%I.%s) t.%I', q.attname, s.nspname, o.oprname, a.attname), ' AND ') AS equal,
				string_agg(format('t.%I IS NOT NULL', a.attname), ' AND ') AS present
			FROM pg_constraint n, unnest(n.conkey, n.confkey, n.conpfeqop) k(here, there, op)
			JOIN pg_operator o ON o.oid = k.op JOIN pg_namespace s ON s.oid = o.oprnamespace,
				pg_attribute a, pg_attribute q
			WHERE n.contype = 'f' AND n.conparentid = 0 AND n.convalidated AND a.attrelid = n.conrelid AND a.attnum = k.here
				AND q.attrelid = n.confrelid AND q.attnum = k.there
			GROUP BY n.oid HAVING bool_or(nomp_crypt._holds_values(a.atttypid)) ORDER BY n.oid LOOP
		EXECUTE format('SELECT count(*) FROM %s t WHERE %s AND NOT EXISTS (SELECT FROM %s p WHERE %s)',
			c.child, c.present, c.parent, c.equal) INTO wrong;
		IF wrong > 0 THEN
			RAISE EXCEPTION 'foreign key "%" of % is violated by % rows', c.conname, c.child, wrong
				USING ERRCODE = 'foreign_key_violation', HINT = 'Both sides must have the same type inside, and the same flags.';
		END IF;
	END LOOP;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._staging_verify() FROM PUBLIC;

-- Who could still see rows as they were before that transaction.
CREATE FUNCTION nomp_crypt._staging_seen_by(before xid8) RETURNS text
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT s.who FROM (
		SELECT format('process %s', a.pid), x.xid FROM pg_stat_activity a, unnest(ARRAY[a.backend_xmin, a.backend_xid]) x(xid)
		WHERE a.pid <> pg_backend_pid()
		UNION ALL SELECT format('replication slot "%s"', r.slot_name), r.xmin FROM pg_replication_slots r
		UNION ALL SELECT format('prepared transaction "%s"', p.gid), p.transaction FROM pg_prepared_xacts p) s(who, xid)
	WHERE s.xid IS NOT NULL AND age(s.xid) > age($1::xid) LIMIT 1
$$;
REVOKE ALL ON FUNCTION nomp_crypt._staging_seen_by(xid8) FROM PUBLIC;

-- Materialized views are made anew; what does not work is for people.
CREATE FUNCTION nomp_crypt._staging_refresh() RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	view regclass;
BEGIN
	FOR view IN SELECT c.oid FROM pg_class c WHERE c.relkind = 'm' AND c.relispopulated ORDER BY c.oid LOOP
		BEGIN
			EXECUTE format('REFRESH MATERIALIZED VIEW %s', view);
		EXCEPTION WHEN OTHERS THEN
			EXECUTE format('REFRESH MATERIALIZED VIEW %s WITH NO DATA', view);
			RAISE WARNING 'materialized view % could not be made anew, and is empty: %', view, SQLERRM;
		END;
	END LOOP;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._staging_refresh() FROM PUBLIC;

-- How many blocks a relation has; or about so many rows of it.
CREATE FUNCTION nomp_crypt._staging_blocks(of_table regclass, "rows" int) RETURNS bigint
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
	SELECT CASE WHEN $2 IS NULL THEN size.blocks
		ELSE greatest(1, ($2 / greatest(1, CASE WHEN c.reltuples > 0 THEN c.reltuples / greatest(1, c.relpages) ELSE 100 END))::bigint) END
	FROM pg_class c, LATERAL (SELECT pg_relation_size(c.oid) / current_setting('block_size')::bigint) size(blocks) WHERE c.oid = $1
$$;

CREATE FUNCTION nomp_crypt._staging_done(replaced bigint) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	DELETE FROM nomp_crypt.original_key;
	TRUNCATE nomp_crypt.made_up_number;
	SELECT nomp_crypt._audit('replace_values', NULL, jsonb_build_object('rows', $1));
$$;
REVOKE ALL ON FUNCTION nomp_crypt._staging_done(bigint) FROM PUBLIC;

-- Every value of the originals, in all tables of the database, is replaced by a
-- made-up one of its school, under keys of this installation; equal ones of a
-- school in searchable columns by equal ones. None is read. "expressions" are
-- SQL over a table's columns by column, {"pupil.name": "'Elev ' || id"}. Then all of
-- these tables are written anew. Repeated after an interruption, it goes on.
-- Raises 22023, 23503, 23505, 42501, 42601, 42703, 54000, 55000, 0A000, NC004.
-- It commits, so its search_path is the caller's: every name is qualified.
CREATE PROCEDURE nomp_crypt.replace_values(seed text, expressions jsonb DEFAULT '{}', batch_size int DEFAULT 10000,
	patience interval DEFAULT '1 hour', INOUT replaced bigint DEFAULT NULL)
LANGUAGE plpgsql AS $$
DECLARE
	plan pg_catalog.jsonb;
	tables pg_catalog.regclass[];
	of_table pg_catalog.regclass;
	step pg_catalog.int8;
	blocks pg_catalog.int8;
	block pg_catalog.int8;
	last_change pg_catalog.xid8;
	deadline pg_catalog.timestamptz;
	seen_by pg_catalog.text;
BEGIN
	IF seed IS NULL OR expressions IS NULL OR (batch_size OPERATOR(pg_catalog.>) 0) IS NOT TRUE OR patience IS NULL THEN
		RAISE EXCEPTION 'a seed, expressions, a batch size above 0 and patience are needed' USING ERRCODE = 'invalid_parameter_value';
	END IF;
	PERFORM nomp_crypt._progress('replace_values', pg_catalog.current_database(), 'looking at the originals', 'rows', 0, 0);
	PERFORM nomp_crypt._require_staging();
	SELECT nomp_crypt._staging_plan(pg_catalog.array_agg(x.relation::pg_catalog.oid), pg_catalog.array_agg(x.name), pg_catalog.array_agg(x.made))
	INTO plan FROM pg_catalog.jsonb_each_text(expressions) e, nomp_crypt._staging_expression(e.key, e.value) x;
	PERFORM nomp_crypt._staging_count(seed);
	COMMIT;
	replaced := 0;
	tables := ARRAY(SELECT DISTINCT c.relation FROM nomp_crypt._staging_columns() c ORDER BY 1);
	FOREACH of_table IN ARRAY tables LOOP
		blocks := nomp_crypt._staging_blocks(of_table, NULL);
		step := nomp_crypt._staging_blocks(of_table, batch_size);
		block := 0;
		WHILE block OPERATOR(pg_catalog.<) blocks LOOP
			replaced := replaced OPERATOR(pg_catalog.+) nomp_crypt._staging_batch(of_table, seed, plan, block, block OPERATOR(pg_catalog.+) step);
			block := block OPERATOR(pg_catalog.+) step;
			COMMIT;
			PERFORM nomp_crypt._progress('replace_values', of_table::pg_catalog.text, 'replacing', 'blocks', block, blocks);
		END LOOP;
	END LOOP;
	PERFORM nomp_crypt._staging_verify();
	last_change := pg_catalog.pg_current_xact_id();
	COMMIT;
	deadline := pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) patience;
	PERFORM nomp_crypt._progress('replace_values', pg_catalog.current_database(), 'waiting for old snapshots', 'tables', 0, 0);
	LOOP
		seen_by := nomp_crypt._staging_seen_by(last_change);
		EXIT WHEN seen_by IS NULL;
		IF pg_catalog.clock_timestamp() OPERATOR(pg_catalog.>) deadline THEN
			RAISE EXCEPTION 'originals may be left in the tables'' files: % can still see them', seen_by
				USING ERRCODE = 'object_in_use', HINT = 'End it, and repeat the call.';
		END IF;
		PERFORM pg_catalog.pg_sleep(0.5);
		COMMIT;
	END LOOP;
	FOREACH of_table IN ARRAY tables OPERATOR(pg_catalog.||) 'nomp_crypt.tenant_key'::pg_catalog.regclass LOOP
		CALL nomp_crypt.rewrite_table(of_table, force => true);
	END LOOP;
	PERFORM nomp_crypt._staging_refresh();
	PERFORM nomp_crypt._staging_done(replaced);
	PERFORM nomp_crypt._progress(NULL, NULL, NULL, NULL, NULL, NULL);
END
$$;
REVOKE ALL ON PROCEDURE nomp_crypt.replace_values(text, jsonb, int, interval, bigint) FROM PUBLIC;

-- ---------------------------------------------------------------------------
-- Administrators
-- ---------------------------------------------------------------------------

-- Let a role administer keys and erase schools: EXECUTE on the functions for
-- it, SELECT on the tables and views (as pg_dump needs it too; the keys in
-- them are wrapped). Gives no right to any value.
CREATE FUNCTION nomp_crypt.grant_admin(role name) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	f regprocedure;
BEGIN
	FOR f IN SELECT p.oid FROM pg_proc p WHERE p.pronamespace = 'nomp_crypt'::regnamespace
		AND (p.proname IN ('adopt_keystore', 'keystore_status', 'create_tenant', 'create_tenants',
						   '_tenant_exists', 'reconcile_keystore', 'grant_tenant', 'grant_all_tenants',
						   'revoke_tenant', 'revoke_all_tenants', 'erase_tenant', 'withdraw_erasure',
						   'rotate_tenant', 'rewrap_tenant', 'rotate_all', '_due_tenants', '_rotate', '_rewrap',
						   'suspend_tenant', '_suspend', '_suspend_wipe', '_suspend_keys',
						   'resume_tenant', '_resume_keys', '_resume', 'destroy_expired_keks', '_next_expired',
						   '_expire_submit', '_expire_lsn', '_behind', '_expire_destroy',
						   'add_keystore', 'replace_keystore', 'migrate_tenant', 'migrate_tenants', '_migration_target',
						   '_tenants_elsewhere')
			 OR p.proname IN ('_progress_read', 'rotate_index_key')
			 OR p.proname IN ('register_status', 'verify_register', 'register_key', 'rotate_register_key',
						   'repair_register', 'register_archived', 'reconcile', '_register_follow',
						   'attest_erasure', 'certificate', 'verify_certificate', 'certificate_html')
			 OR p.proname IN ('health', 'prewarm', '_stat_keystore', '_stat_keyring', '_keyring_uses')
			 OR p.proname IN ('_column_past', '_backup_retention', 'lint', 'accept_lint')
			 OR p.proname IN ('erase_agreement', 'run_due_erasures', 'approve_erasure', 'hold_tenant', 'release_hold',
							  'data_returned', '_erase_open', '_erase_refuse', '_erase_tenant_id', '_erase_next',
							  '_erase_next_of', '_erase_group', '_erase_request_agreement', '_erase_group_waits',
							  '_erase_refuse_group', '_erase_step', '_erasure_grace', '_erase_waits', 'erasure_preview',
							  'acknowledge_lease', 'certify_erasure', '_certify', 'purge_tenant', '_purge_plan',
							  '_purge_order', '_purge_dependents', '_purge_children', '_purge_batch', '_purged',
							  '_referrers', '_owned', '_value_columns', '_count_values', '_finished_case',
							  '_keep_sample', 'exposure_report', 'tenant_report', 'tenant_report_html')
			 OR p.proname IN ('_access', '_erase_request', '_erase_wipe', '_erase_due', '_erase_fence',
							  '_erase_disable', '_erase_submit', '_erase_destroy', '_erase_batch', '_erase_next_group',
							  '_erase_fence_together', '_erase_disable_together', '_erase_submit_together',
							  '_erase_destroy_together')
			 OR p.proname IN ('resubmit_erasure', '_erase_resubmit')) LOOP
		EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO %I', f, role);
	END LOOP;
	EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA nomp_crypt TO %I', role);
	PERFORM nomp_crypt._audit('grant_admin', NULL, jsonb_build_object('role', role));
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.grant_admin(name) FROM PUBLIC;
