/*
 * rewrite_parts.c
 *		What is known of an expression of our type, and the expressions that
 *		take its place.
 */
#include "postgres.h"

#include "catalog.h"
#include "catalog/pg_type.h"
#include "errors.h"
#include "inner.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parse_node.h"
#include "parser/parse_oper.h"
#include "rewrite_parts.h"
#include "session.h"
#include "sqlnames.h"
#include "typemod.h"
#include "utils/lsyscache.h"

void
rewrite_refuse(const char *what, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("encrypted values cannot be %s", what),
			 errhint("%s", hint)));
}

/* ---- what is known of an expression ---- */

bool
rewrite_is_ours(Node *expr, Oid ours)
{
	Oid			type = exprType(expr);

	return type == ours ||
		(type >= FirstNormalObjectId && getBaseType(type) == ours);
}

bool
rewrite_holds_ours(Node *array, Oid ours)
{
	Oid			element = get_base_element_type(exprType(array));

	return element == ours ||
		(element >= FirstNormalObjectId && getBaseType(element) == ours);
}

int32
rewrite_modifier(Node *expr, Oid ours)
{
	int32		typmod = exprTypmod(expr);
	Oid			type = exprType(expr);

	while (typmod < 0 && IsA(expr, RelabelType))
	{
		/* the parser drops a domain's modifier */
		expr = (Node *) ((RelabelType *) expr)->arg;
		type = exprType(expr);
		typmod = exprTypmod(expr);
	}
	return getBaseTypeAndTypmod(type, &typmod) == ours ? typmod : -1;
}

/* varchar compares as text, as in PostgreSQL. */
Oid
rewrite_compared_type(int32 typmod)
{
	Oid			type = inner_type(typemod_type_code(typmod));

	if (type == VARCHAROID)
		return TEXTOID;
	return type == VARCHARARRAYOID ? TEXTARRAYOID : type;
}

/*
 * With an unknown modifier, that of the parts: coalesce(name, 'nobody') is of
 * name's type, because the literal has none of its own.
 */
Oid
rewrite_inner_type(Node *expr, Oid ours)
{
	int32		typmod = rewrite_modifier(expr, ours);
	List	   *parts = NIL;
	ListCell   *lc;

	check_stack_depth();
	if (typmod >= 0)
		return rewrite_compared_type(typmod);
	switch (nodeTag(expr))
	{
		case T_CoalesceExpr:
			return rewrite_common_type(((CoalesceExpr *) expr)->args, ours);
		case T_MinMaxExpr:
			return rewrite_common_type(((MinMaxExpr *) expr)->args, ours);
		case T_NullIfExpr:
			return rewrite_common_type(list_make1(linitial(((NullIfExpr *) expr)->args)), ours);
		case T_RelabelType:
			return rewrite_inner_type((Node *) ((RelabelType *) expr)->arg, ours);
		case T_CaseExpr:
			foreach(lc, ((CaseExpr *) expr)->args)
				parts = lappend(parts, lfirst_node(CaseWhen, lc)->result);
			if (((CaseExpr *) expr)->defresult != NULL)
				parts = lappend(parts, ((CaseExpr *) expr)->defresult);
			return rewrite_common_type(parts, ours);
		case T_Aggref:
			/* min and max give what they get */
			foreach(lc, ((Aggref *) expr)->args)
				parts = lappend(parts, lfirst_node(TargetEntry, lc)->expr);
			return list_length(parts) == 1 ? rewrite_common_type(parts, ours) : InvalidOid;
		case T_FuncExpr:
			if (((FuncExpr *) expr)->funcid == sql_function(SQL_LARGER) ||
				((FuncExpr *) expr)->funcid == sql_function(SQL_SMALLER))
				return rewrite_common_type(((FuncExpr *) expr)->args, ours);
			return InvalidOid;
		default:
			return InvalidOid;
	}
}

/* The type inside all of these that have one; InvalidOid if they differ. */
Oid
rewrite_common_type(List *exprs, Oid ours)
{
	Oid			common = InvalidOid;
	ListCell   *lc;

	foreach(lc, exprs)
	{
		Oid			type = rewrite_is_ours(lfirst(lc), ours) ?
		rewrite_inner_type(lfirst(lc), ours) : InvalidOid;

		if (!OidIsValid(type))
			continue;
		if (OidIsValid(common) && common != type)
			return InvalidOid;
		common = type;
	}
	return common;
}

bool
rewrite_same_search(int32 a, int32 b)
{
	return typemod_searchable(a) && typemod_searchable(b) &&
		typemod_normal(a) == typemod_normal(b);
}

/* ---- building expressions ---- */

Node *
rewrite_int_constant(int32 value)
{
	return (Node *) makeConst(INT4OID, -1, InvalidOid, sizeof(int32),
							  Int32GetDatum(value), false, true);
}

/*
 * Comparing what is inside is for sessions inside a tenant: said already when
 * the query is planned, even if it would find no row.
 */
Node *
rewrite_plain(Node *expr, Oid type)
{
	Oid			collation = exprCollation(expr);
	bool		once = !contain_var_clause(expr) && !IsA(expr, CaseTestExpr) &&
		!contain_volatile_functions(expr);
	FuncExpr   *call;

	if (session_tenant() == NULL)
		error_no_tenant("encrypted values cannot be compared");
	call = makeFuncExpr(sql_function(SQL_PLAIN), type,
						list_make3(expr, makeNullConst(type, -1, get_typcollation(type)),
								   makeBoolConst(once, false)),
						OidIsValid(get_typcollation(type)) ? collation : InvalidOid,
						collation, COERCE_EXPLICIT_CALL);
	return (Node *) call;
}

/* A fingerprint to compare a searchable column with. */
Node *
rewrite_probe(Node *expr, int32 typmod, Oid ours)
{
	return (Node *) makeFuncExpr(sql_function(SQL_PROBE), ours,
								 list_make2(expr, rewrite_int_constant(typmod)),
								 exprCollation(expr), exprCollation(expr),
								 COERCE_EXPLICIT_CALL);
}

/* The implicit casts that the parser would add take the collation along. */
void
rewrite_give_collation(Node *expr, Oid collation)
{
	if (OidIsValid(get_typcollation(exprType(expr))) && !OidIsValid(exprCollation(expr)))
		exprSetCollation(expr, collation);
}

/* The same operator, by name, of what is inside. */
OpExpr *
rewrite_base_operation(const char *operator, Node *left, Node *right, Oid collation)
{
	ParseState *pstate = make_parsestate(NULL);
	OpExpr	   *op = (OpExpr *) make_op(pstate, list_make2(makeString("pg_catalog"),
														   makeString(pstrdup(operator))),
										left, right, NULL, -1);

	if (op->opresulttype != BOOLOID || op->opretset)
		elog(ERROR, "operator \"%s\" does not compare", operator);
	rewrite_give_collation(linitial(op->args), collation);
	rewrite_give_collation(lsecond(op->args), collation);
	op->inputcollid = collation;
	return op;
}

/* Apply something to every element of an array. */
Node *
rewrite_map_array(Node *array, Oid result_element, Node *element_expr)
{
	ArrayCoerceExpr *map = makeNode(ArrayCoerceExpr);

	map->arg = (Expr *) array;
	map->elemexpr = (Expr *) element_expr;
	map->resulttype = get_array_type(result_element);
	map->resulttypmod = -1;
	map->resultcollid = exprCollation(array);
	map->coerceformat = COERCE_EXPLICIT_CAST;
	map->location = -1;
	return (Node *) map;
}

Node *
rewrite_any_element(Node *array)
{
	CaseTestExpr *element = makeNode(CaseTestExpr);

	element->typeId = get_base_element_type(exprType(array));
	element->typeMod = exprTypmod(array);
	element->collation = exprCollation(array);
	return (Node *) element;
}
