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
CREATE FUNCTION nomp_crypt._keystore_enable(installation uuid, tenant uuid, enable boolean, serial text,
	OUT keys int, OUT obeyed int)
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_keystore_enable';
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
CREATE FUNCTION nomp_crypt._keystore_see(installation uuid, tenant uuid, keystore text DEFAULT '',
	OUT serial text, OUT labels text[], OUT keys jsonb)
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_keystore_see';
REVOKE ALL ON FUNCTION nomp_crypt._keystore_see(uuid, uuid, text) FROM PUBLIC;
CREATE FUNCTION nomp_crypt._keystore_destroy(installation uuid, tenant uuid, serial text,
	OUT labels text[], OUT pending int, OUT until timestamptz)
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nc_keystore_destroy';
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
		-- the canary first: a file without one would make an empty token look like ours
		mine := gen_random_uuid();
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
	UPDATE nomp_crypt.erasure e SET state = 'withdrawn' WHERE e.tenant = target AND e.state = 'requested'
	RETURNING e.* INTO c;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'tenant "%" has no erasure that could be withdrawn', withdraw_erasure.id
			USING ERRCODE = 'object_not_in_prerequisite_state',
			HINT = 'See nomp_crypt.erasure; from the fence on an erasure is final.';
	END IF;
	-- a school that was suspended before the request stays so
	UPDATE nomp_crypt.tenant t SET state = 'active'
	WHERE t.uuid = target AND t.state = 'suspended' AND t.suspended_at IS NULL;
	PERFORM nomp_crypt._audit_case('withdraw_erasure', c);
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.withdraw_erasure(text) FROM PUBLIC;

-- Every keystore with the school's keys that are seen there, by serial: those
-- on record, and the others that are configured, where an interrupted call may
-- have left one. Raises NC004 if one is not configured or in trouble, NC003 if
-- a key is not where it should be.
CREATE FUNCTION nomp_crypt._erase_see(installation uuid, tenant uuid) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	store record;
	seen record;
	k record;
	found_in jsonb := '{}';
BEGIN
	FOR store IN SELECT * FROM nomp_crypt._keystores(_erase_see.installation) LOOP
		IF store.state <> 'ok' AND store.canary IS NOT FALSE THEN
			RAISE EXCEPTION 'the keystore is unavailable: %', store.state
				USING ERRCODE = 'NC004', DETAIL = format('It is %s.', store.keystore),
				HINT = 'Nothing was destroyed; every keystore that is configured must be seen. See nomp_crypt.keystore_status().';
		END IF;
		CONTINUE WHEN store.state <> 'ok';	-- never used: it lacks the canary
		SELECT * INTO seen FROM nomp_crypt._keystore_see(_erase_see.installation, _erase_see.tenant, store.serial);
		found_in := found_in || jsonb_build_object(seen.serial, jsonb_build_object('seen', to_jsonb(seen.labels),
			'keys', seen.keys, 'at_once', store.destroys_at_once));
	END LOOP;
	FOR k IN SELECT e.label, nomp_crypt._keystore_serial(e.keystore) AS serial,
				-- seen there to be destroyed, by a call that may have gone on or not
				e.submitted_at IS NOT NULL AND e.keystore = nomp_crypt._keystore_name(e.keystore_serial) AS witnessed
			 FROM nomp_crypt.kek e WHERE e.tenant = _erase_see.tenant AND e.state <> 'destroyed'
			 ORDER BY e.generation LOOP
		IF NOT found_in ? k.serial THEN
			RAISE EXCEPTION 'the keystore is unavailable: the one with serial number % is not configured', k.serial
				USING ERRCODE = 'NC004',
				HINT = format('It has the school''s key %s. Nothing was destroyed. Name it in nomp_crypt.other_keystores.', k.label);
		END IF;
		IF NOT coalesce(k.witnessed, false) AND NOT EXISTS (
					   SELECT FROM jsonb_array_elements_text(found_in -> k.serial -> 'seen') l
					   WHERE l = k.label OR starts_with(l, k.label || ':provisional@')) THEN
			RAISE EXCEPTION 'key % is not in the keystore, so its destruction cannot be witnessed', k.label
				USING ERRCODE = 'NC003',
				HINT = 'The school stays suspended. Find the keystore that holds the key, or its backup.';
		END IF;
	END LOOP;
	IF found_in = '{}' THEN
		RAISE EXCEPTION 'the keystore is unavailable: no token is this installation''s'
			USING ERRCODE = 'NC004', HINT = 'Nothing was destroyed. See nomp_crypt.keystore_status().';
	END IF;
	RETURN found_in;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_see(uuid, uuid) FROM PUBLIC;

-- The point of no return: every key that the school ever had is seen in the
-- keystore, and the school is fenced. Repeated, it writes again, so that the
-- caller has a commit to wait for.
CREATE FUNCTION nomp_crypt._erase_fence(case_id uuid) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	c nomp_crypt.erasure := nomp_crypt._erase_case(_erase_fence.case_id);
	installation uuid := nomp_crypt._require_owner();
	seen jsonb;
	all_seen text[];
BEGIN
	IF c.state NOT IN ('requested', 'fenced') THEN
		RETURN;
	END IF;
	IF c.state = 'requested' THEN
		PERFORM nomp_crypt._erase_committed(c.case_id);
		IF nomp_crypt._erase_due(c.case_id) <> '' THEN
			RAISE EXCEPTION 'erasure case % is not due yet', c.case_id
				USING ERRCODE = 'object_not_in_prerequisite_state';
		END IF;
		seen := nomp_crypt._erase_see(installation, c.tenant);
		all_seen := ARRAY(SELECT l FROM jsonb_each(seen) k, jsonb_array_elements_text(k.value -> 'seen') l
						  ORDER BY l);
		UPDATE nomp_crypt.erasure e SET state = 'fenced', fenced_at = clock_timestamp(),
			keystore_serial = (SELECT string_agg(k, ' ' ORDER BY k) FROM jsonb_object_keys(seen) k),
			keystores = seen, keys_seen = all_seen
		WHERE e.case_id = c.case_id;
		UPDATE nomp_crypt.tenant t SET state = 'fenced' WHERE t.uuid = c.tenant;
		PERFORM nomp_crypt._audit_case('erase_fence', c, jsonb_build_object('keys', all_seen,
			'serial', (SELECT string_agg(k, ' ' ORDER BY k) FROM jsonb_object_keys(seen) k)));
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

-- Ask a keystore that destroys later to do so, or see again that it will:
-- every key that is there is pending, and witnessed so.
CREATE FUNCTION nomp_crypt._erase_schedule(c nomp_crypt.erasure, installation uuid, serial text,
	destroyed text[], until timestamptz) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	seen record;
BEGIN
	SELECT * INTO seen FROM nomp_crypt._keystore_see(_erase_schedule.installation, (_erase_schedule.c).tenant,
		_erase_schedule.serial);
	IF EXISTS (SELECT FROM jsonb_array_elements(seen.keys) k WHERE k ->> 'state' <> 'pending') THEN
		RAISE EXCEPTION 'the keystore is unavailable: it does not show yet that all keys will be destroyed'
			USING ERRCODE = 'NC004', HINT = 'Repeat the call.';
	END IF;
	UPDATE nomp_crypt.erasure e SET
		keystores = jsonb_set(e.keystores, ARRAY[_erase_schedule.serial], e.keystores -> _erase_schedule.serial ||
			jsonb_build_object('pending', seen.keys, 'until', _erase_schedule.until, 'scheduled_at', clock_timestamp()))
	WHERE e.case_id = (_erase_schedule.c).case_id;
	PERFORM nomp_crypt._audit_case('erase_schedule', c, jsonb_build_object('serial', serial,
		'keys', destroyed, 'pending', seen.labels, 'until', until));
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_schedule(nomp_crypt.erasure, uuid, text, text[], timestamptz) FROM PUBLIC;

-- Look again at a keystore in which keys were pending. Those that were so and
-- are not: somebody cancelled their destruction there. Returns them. Those
-- that were never so are a key that turned up late: the keystore is asked for
-- them too.
CREATE FUNCTION nomp_crypt._erase_look(c nomp_crypt.erasure, installation uuid, serial text) RETURNS text[]
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
	witnessed text[] := ARRAY(SELECT k ->> 'label' FROM jsonb_array_elements(c.keystores -> serial -> 'pending') k ORDER BY 1);
	seen record;
	saved text[];
	asked record;
BEGIN
	SELECT * INTO seen FROM nomp_crypt._keystore_see(installation, c.tenant, serial);
	saved := ARRAY(SELECT k ->> 'label' FROM jsonb_array_elements(seen.keys) k
				   WHERE k ->> 'state' <> 'pending' AND k ->> 'label' = ANY (witnessed) ORDER BY 1);
	IF saved <> '{}' THEN
		RETURN saved;
	END IF;
	IF seen.labels = '{}' THEN
		PERFORM nomp_crypt._erase_gone(c, serial, witnessed);
		RETURN '{}';
	END IF;
	IF EXISTS (SELECT FROM unnest(seen.labels) l WHERE l <> ALL (witnessed)) THEN
		SELECT * INTO asked FROM nomp_crypt._keystore_destroy(installation, c.tenant, serial);
		PERFORM nomp_crypt._erase_schedule(c, installation, serial, asked.labels, asked.until);
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
BEGIN
	IF (_erase_void.c).voided_at IS NULL THEN
		UPDATE nomp_crypt.erasure e SET voided_at = clock_timestamp(), voided_keys = saved
		WHERE e.case_id = (_erase_void.c).case_id;
		PERFORM nomp_crypt._audit_case('erase_voided', c, jsonb_build_object('keys', saved));
	END IF;
	RAISE WARNING 'the destruction of key % of an erased tenant was cancelled in the keystore', array_to_string(saved, ', ')
		USING DETAIL = format('Erasure case %s. The tenant stays unreadable; nothing else happens by itself.', (c).case_id),
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
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt._erase_settle(uuid) FROM PUBLIC;

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
	SELECT * INTO asked FROM nomp_crypt._keystore_destroy(installation, c.tenant, next_serial);
	IF asked.pending > 0 THEN
		PERFORM nomp_crypt._erase_schedule(c, installation, next_serial, asked.labels, asked.until);
	-- no keystore of this kind destroys earlier
	ELSIF NOT coalesce((c.keystores -> next_serial ->> 'at_once')::boolean, true)
		AND asked.labels = '{}' AND c.keystores -> next_serial -> 'seen' <> '[]'
		AND clock_timestamp() < c.submitted_at + interval '7 days' THEN
		RAISE EXCEPTION 'the keys of the tenant are not in the keystore, so their destruction cannot be witnessed'
			USING ERRCODE = 'NC003', DETAIL = format('Keystore %s, erasure case %s.', next_serial, c.case_id),
			HINT = 'They were there when the tenant was fenced, and no destruction was pending. Find out where they are.';
	ELSE
		PERFORM nomp_crypt._erase_gone(c, next_serial, asked.labels);
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
		keystores = (SELECT jsonb_object_agg(k.key, CASE WHEN k.value ? 'destroyed' THEN k.value ELSE
			(k.value - '{pending,until,scheduled_at}'::text[]) || jsonb_build_object('cancelled',
				coalesce(k.value -> 'cancelled', '[]') || jsonb_build_object('pending', k.value -> 'pending',
					'until', k.value -> 'until', 'scheduled_at', k.value -> 'scheduled_at',
					'noticed_at', c.voided_at, 'keys', to_jsonb(c.voided_keys))) END)
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
	placed_by	name NOT NULL,
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
		missing := format('the release of legal hold %s, placed at %s by %s', h.reference, h.placed_at, h.placed_by);
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
-- asked for, under whatever role of his. Raises 42704, 55000.
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
-- repeated. Raises 22023, 42704, 55000.
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
	END IF;
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.hold_tenant(text, text) FROM PUBLIC;

-- Raises 42704, also if no such hold is in force.
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
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.release_hold(text, text) FROM PUBLIC;

-- The school's data was given to the controller, in an export with that
-- manifest (scripts/export-tenant prints its sum), or 'not wanted'. Before the
-- fence, also before the request. Raises 22023, 42704, 55000.
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
		RAISE EXCEPTION 'tenant "%" has been erased', _living_tenant.id USING ERRCODE = 'NC001';
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
-- can read. Returns whether the token did it.
CREATE FUNCTION nomp_crypt._suspend_keys(tenant uuid) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	installation uuid := nomp_crypt._require_owner();
	school record;
	done record;
BEGIN
	SELECT t.id, t.uuid, t.state, t.suspended_at, nomp_crypt._committed(t.xmin) AS committed INTO school
	FROM nomp_crypt.tenant t WHERE t.uuid = _suspend_keys.tenant FOR UPDATE;
	IF school.state IS DISTINCT FROM 'suspended' OR school.suspended_at IS NULL OR NOT school.committed THEN
		RAISE EXCEPTION 'the tenant is not suspended, or not yet committed so'
			USING ERRCODE = 'object_not_in_prerequisite_state',
			HINT = 'CALL nomp_crypt.suspend_tenant() goes through all steps.';
	END IF;
	SELECT * INTO done FROM nomp_crypt._enable_keys(installation, school.uuid, false);
	PERFORM nomp_crypt._audit('disable_keys', school.id,
		jsonb_build_object('uuid', school.uuid, 'keys', done.keys, 'disabled', done.obeyed));
	RETURN done.obeyed = done.keys;
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
		keystore_serial = seen.serial
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

-- A KEK whose destruction is pending: has somebody cancelled that in the
-- keystore? Then it counts as retired just now, because somebody needed it.
CREATE FUNCTION nomp_crypt._expire_cancelled(k nomp_crypt.kek, installation uuid) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
	seen record;
	until timestamptz := clock_timestamp() + nomp_crypt._backup_retention();
BEGIN
	IF k.pending_until IS NULL THEN
		RETURN false;
	END IF;
	SELECT * INTO seen FROM nomp_crypt._keystore_see(installation, k.tenant, k.keystore_serial);
	IF NOT EXISTS (SELECT FROM jsonb_array_elements(seen.keys) s
				   WHERE s ->> 'label' = k.label AND s ->> 'state' <> 'pending') THEN
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
	IF asked.until IS NOT NULL THEN
		UPDATE nomp_crypt.kek e SET pending_until = asked.until WHERE e.uuid = k.uuid;
		IF asked.destroyed THEN
			PERFORM nomp_crypt._audit('expire_schedule', (SELECT t.id FROM nomp_crypt.tenant t WHERE t.uuid = k.tenant),
				jsonb_build_object('key', k.label, 'serial', k.keystore_serial, 'until', asked.until));
		END IF;
		RETURN 0;
	END IF;
	UPDATE nomp_crypt.kek e SET state = 'destroyed', destroyed_at = clock_timestamp(), pending_until = NULL
	WHERE e.uuid = k.uuid;
	PERFORM nomp_crypt._audit('expire_destroy', (SELECT t.id FROM nomp_crypt.tenant t WHERE t.uuid = k.tenant),
		jsonb_build_object('key', k.label, 'serial', k.keystore_serial, 'destroyed_now', asked.destroyed));
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
	IF to_regclass('nomp_crypt.inventory') IS NULL THEN
		object := 'backups and files';
		column_name := NULL;
		detail := 'since when the columns are encrypted on disk is not known; what was plain before is in backups, WAL and old blocks of that time';
		RETURN NEXT;
	ELSE
		FOR past IN EXECUTE 'SELECT i.table_name, i.column_name, i.encrypted_on_disk_since AS since, i.state
			FROM nomp_crypt.inventory i JOIN jsonb_to_recordset($1) p(name text, column_name name)
				ON p.name = i.table_name AND p.column_name = i.column_name
			WHERE i.encrypted_on_disk_since IS NULL OR i.encrypted_on_disk_since > clock_timestamp() - nomp_crypt._backup_retention()'
			USING found_in LOOP
			object := past.table_name;
			column_name := past.column_name;
			detail := CASE WHEN past.since IS NULL THEN past.state
				ELSE format('encrypted on disk since %s: backups from before have it plain until %s', past.since,
					past.since + nomp_crypt._backup_retention()) END;
			RETURN NEXT;
		END LOOP;
	END IF;
	column_name := NULL;
	IF to_regprocedure('nomp_crypt.lint()') IS NOT NULL THEN
		EXECUTE 'SELECT count(*) FROM nomp_crypt.lint()' INTO amount;
		IF amount > 0 THEN
			object := 'definitions';
			detail := 'places where values may be in clear: see nomp_crypt.lint()';
			RETURN NEXT;
		END IF;
		amount := NULL;
	END IF;
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

-- What a certificate says, as far as the case knows it.
CREATE FUNCTION nomp_crypt._certificate_facts(case_id uuid) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT jsonb_strip_nulls(jsonb_build_object('case', e.case_id, 'group', e.group_id, 'school', e.tenant, 'tenant', t.id,
		'agreement', t.agreement, 'reason', e.reason, 'reference', e.reference,
		'requested', jsonb_build_object('at', e.requested_at, 'by', e.requested_by),
		'approvals', (SELECT jsonb_agg(jsonb_build_object('by', a.role, 'at', a.approved_at) ORDER BY a.approved_at)
			FROM nomp_crypt.erasure_approval a WHERE a.case_id = e.case_id),
		'returned', (SELECT jsonb_build_object('manifest', coalesce(r.manifest_sha256, 'not wanted'), 'by', r.recorded_by, 'at', r.recorded_at)
			FROM nomp_crypt.data_return r WHERE r.tenant = e.tenant ORDER BY r.recorded_at DESC LIMIT 1),
		'holds', (SELECT jsonb_agg(jsonb_build_object('reference', l.reference, 'from', l.placed_at, 'until', l.released_at) ORDER BY l.placed_at)
			FROM nomp_crypt.legal_hold l WHERE l.tenant = e.tenant),
		'fenced', e.fenced_at, 'submitted', e.submitted_at, 'destroyed', e.destroyed_at, 'certified', e.certified_at,
		'keystores', e.keystores, 'verification', e.verification))
	FROM nomp_crypt.erasure e JOIN nomp_crypt.tenant t ON t.uuid = e.tenant WHERE e.case_id = $1
$$;
REVOKE ALL ON FUNCTION nomp_crypt._certificate_facts(uuid) FROM PUBLIC;

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
	IF to_regprocedure('nomp_crypt._register_append(text,jsonb)') IS NOT NULL THEN
		EXECUTE 'SELECT nomp_crypt._register_append($1, $2)' USING 'certificate'::text, nomp_crypt._certificate_facts(c.case_id);
	END IF;
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
		since := NULL;
		exposed := NULL;
		detail := 'since when it is encrypted on disk is not known';
		IF to_regclass('nomp_crypt.inventory') IS NOT NULL THEN
			EXECUTE 'SELECT i.encrypted_on_disk_since, i.encrypted_on_disk_since > $3, CASE
					WHEN i.encrypted_on_disk_since <= $3 THEN ''encrypted then: readable with the keys above only''
					WHEN i.encrypted_on_disk_since > $3 THEN ''plain then, in part or all of it: readable without a key'' ELSE i.state END
				FROM nomp_crypt.inventory i WHERE i.table_name = $1 AND i.column_name = $2'
			INTO since, exposed, detail USING col.name, col.column_name, as_of;
		END IF;
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
		"tenant": "School", "id": "Id", "name": "Name", "agreement": "Agreement", "state": "State", "since": "Registered",
		"active": "in use", "suspended": "suspended: nobody can read the values", "fenced": "being erased: nobody can read the values", "erased": "erased: nobody can ever read the values again",
		"encryption": "Encryption", "method": "Method", "aes": "AES-256-GCM for each value (XAES-256-GCM), under data keys of this school alone; these are wrapped by keys that never leave the keystore",
		"keks": "Keys in the keystore", "generation": "Generation %s in %s", "made": "made %s", "retired": "replaced %s", "kept": "kept for backups until %s", "destroyed": "destroyed %s",
		"deks": "Data keys", "version": "Version %s (%s)", "values": "values", "index": "search", "closed": "closed for writing", "key_erased": "destroyed", "key_active": "in use",
		"columns": "Encrypted columns", "column_since": "encrypted on disk since %s", "column_unknown": "since when is not known",
		"rights": "Who may read", "all": "in all schools", "granted": "%s: %s, granted %s by %s", "decrypt": "read", "encrypt": "write", "search": "search", "load": "store ciphertext", "none": "nobody",
		"erasure": "Erasure", "requested": "asked for %s by %s (%s)", "next": "Next", "holds": "Legal holds", "hold": "%s, since %s", "returned": "Data returned"}$$::jsonb
	WHEN 'sv' THEN $${
		"tenant": "Skola", "id": "Id", "name": "Namn", "agreement": "Avtal", "state": "Tillst\u00e5nd", "since": "Upplagd",
		"active": "i bruk", "suspended": "sp\u00e4rrad: ingen kan l\u00e4sa uppgifterna", "fenced": "h\u00e5ller p\u00e5 att raderas: ingen kan l\u00e4sa uppgifterna", "erased": "raderad: ingen kan n\u00e5gonsin mer l\u00e4sa uppgifterna",
		"encryption": "Kryptering", "method": "Metod", "aes": "AES-256-GCM f\u00f6r varje v\u00e4rde (XAES-256-GCM), med datanycklar som \u00e4r skolans egna; dessa \u00e4r krypterade med nycklar som aldrig l\u00e4mnar nyckelf\u00f6rvaret",
		"keks": "Nycklar i nyckelf\u00f6rvaret", "generation": "Generation %s i %s", "made": "skapad %s", "retired": "ersatt %s", "kept": "bevaras f\u00f6r s\u00e4kerhetskopior till %s", "destroyed": "f\u00f6rst\u00f6rd %s",
		"deks": "Datanycklar", "version": "Version %s (%s)", "values": "uppgifter", "index": "s\u00f6kning", "closed": "anv\u00e4nds inte l\u00e4ngre f\u00f6r skrivning", "key_erased": "f\u00f6rst\u00f6rd", "key_active": "i bruk",
		"columns": "Krypterade kolumner", "column_since": "krypterad p\u00e5 disk sedan %s", "column_unknown": "sedan n\u00e4r \u00e4r inte k\u00e4nt",
		"rights": "Vem som f\u00e5r l\u00e4sa", "all": "i alla skolor", "granted": "%s: %s, gavs %s av %s", "decrypt": "l\u00e4sa", "encrypt": "skriva", "search": "s\u00f6ka", "load": "lagra chiffertext", "none": "ingen",
		"erasure": "Radering", "requested": "beg\u00e4rd %s av %s (%s)", "next": "N\u00e4sta steg", "holds": "R\u00e4ttsliga sp\u00e4rrar mot radering", "hold": "%s, sedan %s", "returned": "Uppgifterna \u00e5terl\u00e4mnade"}$$::jsonb
	END
$do$;
REVOKE ALL ON FUNCTION nomp_crypt._report_words(text) FROM PUBLIC;

-- For a municipality's audit: what is encrypted since when, with which keys,
-- who may read, and in what state the school is; in Swedish or English.
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
			(w ->> 'agreement', t.agreement), (w ->> 'state', w ->> t.state), (w ->> 'since', t.created_at::text) LOOP
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
		value := concat_ws(', ', format(w ->> 'made', r.created_at),
			CASE WHEN r.retired_at IS NOT NULL THEN format(w ->> 'retired', r.retired_at) END,
			CASE WHEN r.state = 'retired' THEN format(w ->> 'kept', r.destroy_after) END,
			CASE WHEN r.destroyed_at IS NOT NULL THEN format(w ->> 'destroyed', r.destroyed_at) END);
		RETURN NEXT;
	END LOOP;
	section := w ->> 'deks';
	FOR r IN SELECT k.* FROM nomp_crypt.tenant_key k WHERE k.tenant = t.uuid ORDER BY k.purpose DESC, k.version LOOP
		item := format(w ->> 'version', r.version, w ->> r.purpose);
		value := concat_ws(', ', format(w ->> 'made', r.created_at),
			CASE r.state WHEN 'active' THEN w ->> 'key_active' WHEN 'closed' THEN w ->> 'closed' ELSE w ->> 'key_erased' END);
		RETURN NEXT;
	END LOOP;
	section := w ->> 'columns';
	FOR r IN SELECT v.name, v.column_name, format_type(a.atttypid, a.atttypmod) AS type
			 FROM nomp_crypt._value_columns() v JOIN pg_attribute a ON a.attrelid = v.relation AND a.attnum = v.place LOOP
		item := format('%s.%I', r.name, r.column_name);
		since := NULL;
		IF to_regclass('nomp_crypt.inventory') IS NOT NULL THEN
			EXECUTE 'SELECT i.encrypted_on_disk_since FROM nomp_crypt.inventory i WHERE i.table_name = $1 AND i.column_name = $2'
			INTO since USING r.name, r.column_name;
		END IF;
		value := concat_ws(', ', r.type, CASE WHEN since IS NULL THEN w ->> 'column_unknown' ELSE format(w ->> 'column_since', since) END);
		RETURN NEXT;
	END LOOP;
	section := w ->> 'rights';
	item := w ->> 'none';
	FOR r IN SELECT g.* FROM nomp_crypt.tenant_right g
			 WHERE g.tenant IN (t.uuid, '00000000-0000-0000-0000-000000000000') ORDER BY g.role, g.tenant LOOP
		item := r.role;
		value := format(w ->> 'granted', CASE WHEN r.tenant = t.uuid THEN t.id ELSE w ->> 'all' END,
			concat_ws(', ', CASE WHEN r.decrypt THEN w ->> 'decrypt' END, CASE WHEN r.encrypt THEN w ->> 'encrypt' END,
				CASE WHEN r.search THEN w ->> 'search' END, CASE WHEN r.load THEN w ->> 'load' END), r.granted_at, r.granted_by);
		RETURN NEXT;
	END LOOP;
	IF item = w ->> 'none' THEN
		value := NULL;
		RETURN NEXT;
	END IF;
	section := w ->> 'holds';
	FOR r IN SELECT l.* FROM nomp_crypt.legal_hold l WHERE l.tenant = t.uuid AND l.released_at IS NULL ORDER BY l.placed_at LOOP
		item := r.reference;
		value := format(w ->> 'hold', r.placed_by, r.placed_at);
		RETURN NEXT;
	END LOOP;
	section := w ->> 'erasure';
	FOR r IN SELECT e.* FROM nomp_crypt.erasure e WHERE e.tenant = t.uuid ORDER BY e.requested_at LOOP
		item := r.case_id::text;
		value := concat_ws(', ', format(w ->> 'requested', r.requested_at, r.requested_by, concat_ws(', ', r.reason, r.reference)), r.state,
			CASE WHEN r.destroyed_at IS NOT NULL THEN format(w ->> 'destroyed', r.destroyed_at) END);
		RETURN NEXT;
	END LOOP;
	FOR r IN SELECT d.* FROM nomp_crypt.data_return d WHERE d.tenant = t.uuid ORDER BY d.recorded_at LOOP
		item := w ->> 'returned';
		value := concat_ws(', ', r.recorded_at, r.recorded_by, coalesce(r.manifest_sha256, '-'));
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
-- somewhere.
CREATE FUNCTION nomp_crypt._settings_anywhere(OUT name text, OUT value text) RETURNS SETOF record
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT s.name, s.reset_val FROM pg_settings s
	UNION
	SELECT split_part(c, '=', 1), substr(c, strpos(c, '=') + 1)
	FROM pg_db_role_setting d, unnest(d.setconfig) c
$$;
REVOKE ALL ON FUNCTION nomp_crypt._settings_anywhere() FROM PUBLIC;

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
		SELECT string_agg(DISTINCT s.name, ', ' ORDER BY s.name) INTO names FROM nomp_crypt._settings_anywhere() s
		WHERE (s.name = 'log_statement' AND s.value IN ('mod', 'all'))
			OR (s.name IN ('log_min_duration_statement', 'log_min_duration_sample', 'auto_explain.log_min_duration')
				AND s.value !~ '^\s*-')
			OR (s.name = 'log_transaction_sample_rate' AND s.value !~ '^[0.]*$')
			OR (s.name IN ('debug_print_parse', 'debug_print_rewritten', 'debug_print_plan')
				AND s.value IN ('on', 'true', 'yes', '1'));
		IF names IS NOT NULL THEN
			IF EXISTS (SELECT FROM nomp_crypt._settings_anywhere() s
				WHERE s.name = 'log_parameter_max_length' AND s.value <> '0') THEN
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
		SELECT to_jsonb(f) INTO facts FROM nomp_crypt._server_facts() f;
		SELECT facts || jsonb_build_object('state', coalesce(string_agg(s.state, '; ') FILTER (WHERE s.state <> 'ok'), 'ok'),
			'canary', bool_and(s.canary), 'software', bool_or(s.software), 'installation', max(s.installation::text),
			'lasting_credentials', string_agg(DISTINCT s.credentials, ', ') FILTER (WHERE s.lasting_credentials))
		INTO facts FROM nomp_crypt.keystore_status() s;
	EXCEPTION WHEN OTHERS THEN
		-- without the library nothing else can be known
		name := 'library';
		severity := 'critical';
		GET STACKED DIAGNOSTICS detail = MESSAGE_TEXT, advice = PG_EXCEPTION_HINT;
		RETURN NEXT;
		RETURN;
	END;
	FOREACH name IN ARRAY '{library,broker,keystore,canary,keystore_software,leases,keyring,credentials,
		memory,core_dumps,swap,register,grants,public,old_keks,erasures,provisional_keys,data_keys,
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
			 OR p.proname IN ('health', 'prewarm', '_stat_keystore', '_stat_keyring', '_keyring_uses')
			 OR p.proname IN ('erase_agreement', 'run_due_erasures', 'approve_erasure', 'hold_tenant', 'release_hold',
							  'data_returned', '_erase_open', '_erase_refuse', '_erase_tenant_id', '_erase_next',
							  '_erase_next_of', '_erase_group', '_erase_request_agreement', '_erase_group_waits',
							  '_erase_refuse_group', '_erase_step', '_erasure_grace', '_erase_waits', 'erasure_preview',
							  'acknowledge_lease', 'certify_erasure', '_certify', 'purge_tenant', '_purge_plan',
							  '_purge_order', '_purge_dependents', '_purge_children', '_purge_batch', '_purged',
							  '_referrers', '_owned', '_value_columns', '_count_values', '_finished_case',
							  '_keep_sample', 'exposure_report', 'tenant_report')
			 OR p.proname IN ('_access', '_erase_request', '_erase_wipe', '_erase_due', '_erase_fence',
							  '_erase_disable', '_erase_submit', '_erase_destroy')
			 OR p.proname IN ('resubmit_erasure', '_erase_resubmit')) LOOP
		EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO %I', f, role);
	END LOOP;
	EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA nomp_crypt TO %I', role);
	PERFORM nomp_crypt._audit('grant_admin', NULL, jsonb_build_object('role', role));
END
$$;
REVOKE ALL ON FUNCTION nomp_crypt.grant_admin(name) FROM PUBLIC;
