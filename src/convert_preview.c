/*
 * convert_preview.c
 *		Which statements would a converted column refuse?
 *
 * A statement as pg_stat_statements has it, with its table replaced by one
 * whose column is encrypted, is analysed and rewritten as every query is, and
 * neither planned nor executed: planning would run functions of whoever sent
 * it, with the rights of whoever asks.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog.h"
#include "catalog/pg_type.h"
#include "compare_guard.h"
#include "compat.h"
#include "errors.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "parser/analyze.h"
#include "parser/parser.h"
#include "rewrite.h"
#include "type_io.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

NC_FUNCTION(nc_refusal);
NC_FUNCTION(nc_encrypt_column_preview);

typedef struct Replacement
{
	const char *schema;
	const char *name;
	char	   *new_schema;
	char	   *new_name;
	bool		found;
} Replacement;

/* Does a statement's name mean the table?  The table's schema is in the path. */
static bool
replace(Node *node, Replacement *what)
{
	if (node == NULL || IsA(node, LockingClause))
		return false;
	if (IsA(node, RangeVar))
	{
		RangeVar   *var = (RangeVar *) node;

		if (strcmp(var->relname, what->name) != 0 ||
			(var->schemaname != NULL && strcmp(var->schemaname, what->schema) != 0))
			return false;
		/* columns are qualified by the table's name */
		if (var->alias == NULL)
			var->alias = makeNode(Alias);
		if (var->alias->aliasname == NULL)
			var->alias->aliasname = pstrdup(what->name);
		var->schemaname = what->new_schema;
		var->relname = what->new_name;
		what->found = true;
		return false;
	}
	return raw_expression_tree_walker(node, replace, what);
}

static bool
is_query(Node *stmt)
{
	return IsA(stmt, SelectStmt) || IsA(stmt, InsertStmt) || IsA(stmt, UpdateStmt) ||
		IsA(stmt, DeleteStmt);
}

/* A statement of one query; or NULL.  Raises for what is none. */
static RawStmt *
parse(const char *text)
{
	List	   *statements = raw_parser(text, RAW_PARSE_DEFAULT);
	RawStmt    *raw = list_length(statements) == 1 ? linitial_node(RawStmt, statements) : NULL;

	return raw != NULL && is_query(raw->stmt) ? raw : NULL;
}

/* Raises what the query would raise. */
static void
analyse(RawStmt *raw, const char *text)
{
	Oid		   *types = NULL;
	int			n = 0;
	Query	   *query = parse_analyze_varparams(raw, text, &types, &n, NULL);

	query = rewrite_query(query, catalog_type());
	(void) compare_guard_check((Node *) query, catalog_type(), false);
}

/*
 * Raises what a statement would raise with the other table.  "found" only if
 * it is one that is all right with the table as it is.
 */
static void
try_statement(const char *text, Replacement *what)
{
	RawStmt    *raw = parse(text);

	if (raw == NULL)
		return;
	(void) replace(raw->stmt, what);
	if (!what->found)
		return;
	what->found = false;
	analyse(parse(text), text);
	what->found = true;
	analyse(raw, text);
}

/* In a subtransaction, inside that tenant; the error's message, or NULL. */
static char *
refusal(const char *text, const char *tenant, Replacement *what)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	LiteralMode mode = type_literal_mode;
	char	   *volatile message = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		int			level = NewGUCNestLevel();

		if (tenant != NULL)
			(void) set_config_option("nomp_crypt.tenant", tenant, PGC_USERSET, PGC_S_SESSION,
									 GUC_ACTION_SAVE, true, 0, false);
		type_literal_mode = LITERALS_CHECKED;
		try_statement(text, what);
		AtEOXact_GUC(true, level);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED ||
			ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_OPERATOR_INTERVENTION)
			PG_RE_THROW();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		/* outside a tenant nothing can be compared; inside one it can */
		if (error->sqlerrcode != ERRCODE_NC_NO_TENANT && what->found)
			message = error->message;
	}
	PG_END_TRY();
	type_literal_mode = mode;
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return message;
}

/*
 * nomp_crypt._refusal(statement text, of_table regclass, other regclass, tenant text)
 *		returns text
 *
 * What a statement over a table would be refused with if that were the other
 * one, inside that tenant; NULL if nothing is wrong, if it does not use the
 * table, or cannot be understood.
 */
Datum
nc_refusal(PG_FUNCTION_ARGS)
{
	Oid			table = PG_GETARG_OID(1);
	Oid			other = PG_GETARG_OID(2);
	Replacement what = {0};
	char	   *message;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1) || PG_ARGISNULL(2))
		PG_RETURN_NULL();
	what.schema = get_namespace_name(get_rel_namespace(table));
	what.name = get_rel_name(table);
	what.new_schema = get_namespace_name(get_rel_namespace(other));
	what.new_name = get_rel_name(other);
	if (what.name == NULL || what.new_name == NULL)
		PG_RETURN_NULL();
	message = refusal(text_to_cstring(PG_GETARG_TEXT_PP(0)),
					  PG_ARGISNULL(3) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(3)), &what);
	if (message == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(message));
}

/* ---- the preview ---- */

#define COLUMNS	4

/* Rows of a query: a topic, what it is about, what becomes of it, why. */
static void
take_rows(ReturnSetInfo *result)
{
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		Datum		values[COLUMNS];
		bool		nulls[COLUMNS];

		for (int c = 0; c < COLUMNS; c++)
			values[c] = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, c + 1, &nulls[c]);
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
}

static void
select_rows(const char *sql, int nargs, const Oid *types, const Datum *values, const char *nulls,
			ReturnSetInfo *result)
{
	if (SPI_execute_with_args(sql, nargs, (Oid *) types, (Datum *) values, nulls, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "a step returned no rows");
	if (result != NULL)
		take_rows(result);
}

/* The single text that a step returns, or NULL. */
static char *
select_text(const char *sql, int nargs, const Oid *types, const Datum *values, const char *nulls)
{
	select_rows(sql, nargs, types, values, nulls, NULL);
	return SPI_processed == 1 ? SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1) : NULL;
}

/*
 * What pg_stat_statements has seen, in the caller's search_path: so nothing is
 * named without a schema here.  The other table is a temporary one that is
 * gone with the subtransaction.
 */
static void
preview_statements(const char *source, const Oid *types, const Datum *values, const char *nulls,
				   ReturnSetInfo *result)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	select_rows(psprintf("SELECT 'statement'::pg_catalog.text, pg_catalog.left(q.query, 300), 'refused'::pg_catalog.text, "
						 "pg_catalog.format('%%s; called %%s times', r.refusal, q.calls) "
						 "FROM nomp_crypt._preview_table($1, $2, $4, $5) t, nomp_crypt._tenant_expression($1, $2, $3) e, "
						 "nomp_crypt._preview_tenant($1, $2, e.expression) u, (%s) q, "
						 "LATERAL nomp_crypt._refusal(q.query, $1, t, u) r(refusal) "
						 "WHERE r.refusal IS NOT NULL ORDER BY q.calls DESC LIMIT 100", source),
				5, types, values, nulls, result);
	RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
}

/*
 * nomp_crypt.encrypt_column_preview(table_name regclass, column_name name,
 *		tenant_expression text, searchable boolean, normalise text)
 *		returns setof (topic text, subject text, verdict text, detail text)
 *
 * What encrypt_column and encrypt_column_online would meet; changes nothing.
 * Raises 42501, 42601, 42703, 42809.
 */
Datum
nc_encrypt_column_preview(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	Oid			types[5] = {REGCLASSOID, NAMEOID, TEXTOID, BOOLOID, TEXTOID};
	Datum		values[5];
	char		nulls[5];
	char	   *source;

	for (int i = 0; i < 5; i++)
	{
		if (PG_ARGISNULL(i) && i != 4)
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("only normalise may be null")));
		values[i] = PG_GETARG_DATUM(i);
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
	}
	InitMaterializedSRF(fcinfo, 0);
	(void) SPI_connect();
	select_rows("SELECT p.* FROM nomp_crypt._tenant_expression($1, $2, $3) e, "
				"nomp_crypt._preview($1, $2, e.school, e.expression, e.columns, e.subquery, $4, $5) p",
				5, types, values, nulls, result);
	source = select_text("SELECT nomp_crypt._preview_source($1, $2, $4, $5)", 5, types, values, nulls);
	if (source != NULL && !RecoveryInProgress() && !XactReadOnly)
		preview_statements(source, types, values, nulls, result);
	SPI_finish();
	return (Datum) 0;
}
