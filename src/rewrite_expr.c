/*
 * rewrite_expr.c
 *		Comparisons in expressions: by fingerprint, or of what is inside.
 *
 * "=" and its kin with a searchable side keep our operator; the other side
 * becomes nomp_crypt._probe(x, modifier), which is STABLE and free of
 * columns where x is, so that an index serves it.  Every other comparison
 * becomes that of the base type, with both sides in nomp_crypt._plain().
 *
 * The type is collatable, so the parser has chosen the collation by the rules
 * of the base type: it is kept.
 */
#include "postgres.h"

#include "access/stratnum.h"
#include "catalog.h"
#include "catalog/namespace.h"
#include "catalog/pg_language.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "inner.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parse_coerce.h"
#include "parser/parse_node.h"
#include "parser/parse_oper.h"
#include "errors.h"
#include "rewrite_parts.h"
#include "session.h"
#include "sqlnames.h"
#include "typemod.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "utils/typcache.h"
#include "value.h"

#define HINT_TYPE	"What is inside is not known here. Cast it, for example (...)::text, or declare the variable encrypted(text)."

static const char *
equality_name(Oid operator)
{
	char	   *name = get_opname(operator);

	return name != NULL && (strcmp(name, "=") == 0 || strcmp(name, "<>") == 0) ? name : NULL;
}

/* LIKE, regular expressions: the left side is text, whatever is inside. */
static bool
matches_pattern(const char *name)
{
	return name[0] == '~' || (name[0] == '!' && name[1] == '~') || strcmp(name, "^@") == 0;
}

static Oid
type_namespace(Oid type)
{
	HeapTuple	tuple = SearchSysCache1(TYPEOID, ObjectIdGetDatum(type));
	Oid			result = InvalidOid;

	if (HeapTupleIsValid(tuple))
	{
		result = ((Form_pg_type) GETSTRUCT(tuple))->typnamespace;
		ReleaseSysCache(tuple);
	}
	return result;
}

static bool
is_in_c(Oid function)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	bool		result = false;

	if (HeapTupleIsValid(tuple))
	{
		result = ((Form_pg_proc) GETSTRUCT(tuple))->prolang == ClanguageId;
		ReleaseSysCache(tuple);
	}
	return result;
}

/*
 * Our own operator over our type?  Ours are in C; somebody's else in the same
 * schema, on a function of his own, is none of our business.
 */
static bool
our_operator(Oid operator, Oid ours)
{
	HeapTuple	tuple;
	bool		result = false;

	if (operator < FirstNormalObjectId)
		return false;
	tuple = SearchSysCache1(OPEROID, ObjectIdGetDatum(operator));
	if (HeapTupleIsValid(tuple))
	{
		Form_pg_operator form = (Form_pg_operator) GETSTRUCT(tuple);

		result = (form->oprleft == ours || form->oprright == ours) &&
			form->oprnamespace == type_namespace(ours) && is_in_c(form->oprcode);
		ReleaseSysCache(tuple);
	}
	return result;
}

/* The base types that two sides are compared as; refuses if nothing is known. */
static void
choose_types(Node *left, Node *right, Oid ours, Oid *left_type, Oid *right_type)
{
	bool		left_ours = rewrite_is_ours(left, ours);
	bool		right_ours = rewrite_is_ours(right, ours);

	*left_type = left_ours ? rewrite_inner_type(left, ours) : exprType(left);
	*right_type = right_ours ? rewrite_inner_type(right, ours) : exprType(right);
	if (!OidIsValid(*left_type))
		*left_type = *right_type;
	if (!OidIsValid(*right_type))
		*right_type = *left_type;
	if (!OidIsValid(*left_type))
		rewrite_refuse("compared", HINT_TYPE);
}

static Node *
plain_side(Node *expr, Oid type, Oid ours)
{
	return rewrite_is_ours(expr, ours) ? rewrite_plain(expr, type) : expr;
}

/* ---- the kinds of comparison ---- */

typedef enum Way
{
	BY_FINGERPRINT,
	BY_CONTENT
} Way;

/*
 * Can "=" or "<>" be answered by fingerprints?  Then *left and *right become
 * what is to be compared.
 */
static Way
choose_way(Oid operator, Node **left, Node **right, Oid ours)
{
	int32		left_mod = rewrite_is_ours(*left, ours) ? rewrite_modifier(*left, ours) : -1;
	int32		right_mod = rewrite_is_ours(*right, ours) ? rewrite_modifier(*right, ours) : -1;

	if (equality_name(operator) == NULL ||
		(!typemod_searchable(left_mod) && !typemod_searchable(right_mod)))
		return BY_CONTENT;
	if (rewrite_same_search(left_mod, right_mod))
		return BY_FINGERPRINT;
	if (typemod_searchable(left_mod) && typemod_searchable(right_mod))
		rewrite_refuse("compared if one column ignores what the other does not",
					   "The columns are searchable in different ways. Compare what is inside, for example column::text.");
	if (typemod_searchable(left_mod))
		*right = rewrite_probe(*right, left_mod, ours);
	else
		*left = rewrite_probe(*left, right_mod, ours);
	return BY_FINGERPRINT;
}

/* Our "=" or "<>" over two values of our type, whichever it was. */
static Oid
fingerprint_operator(Oid operator, Oid ours)
{
	return OpernameGetOprid(list_make2(makeString(get_namespace_name(type_namespace(ours))),
									   makeString(get_opname(operator))),
							ours, ours);
}

static bool
nothing_known(Node *expr, Oid ours)
{
	return rewrite_is_ours(expr, ours) && !OidIsValid(rewrite_inner_type(expr, ours));
}

/* Variables declared "encrypted" and the like: the values know their types. */
static Node *
compare_when_run(OpExpr *op, const char *name, Node *left, Node *right)
{
	if (session_tenant() == NULL)
		error_no_tenant("encrypted values cannot be compared");
	return (Node *)
		rewrite_base_operation(name,
							   (Node *) makeFuncExpr(sql_function(SQL_COMPARE), INT4OID,
													 list_make2(left, right), InvalidOid,
													 op->inputcollid, COERCE_EXPLICIT_CALL),
							   rewrite_int_constant(0), InvalidOid);
}

/* Of the side that is a column, if one is. */
static Oid
column_collation(Node *left, Node *right)
{
	return exprCollation(IsA(right, Var) && !IsA(left, Var) ? right : left);
}

/* NULLIF by hand: NULL if the operands are equal, else the first. */
static Node *
null_if(Expr *equal, const OpExpr *op)
{
	CaseWhen   *when = makeNode(CaseWhen);
	CaseExpr   *choice = makeNode(CaseExpr);

	when->expr = equal;
	when->result = (Expr *) makeNullConst(op->opresulttype, -1, op->opcollid);
	choice->casetype = op->opresulttype;
	choice->casecollid = op->opcollid;
	choice->args = list_make1(when);
	choice->defresult = (Expr *) copyObject(linitial(op->args));
	return (Node *) choice;
}

/* OpExpr, DistinctExpr, NullIfExpr */
static Node *
rewrite_operation(OpExpr *op, Oid ours)
{
	Node	   *left = linitial(op->args);
	Node	   *right = lsecond(op->args);
	const char *name = get_opname(op->opno);
	Oid			left_type;
	Oid			right_type;
	OpExpr	   *result;

	if (choose_way(op->opno, &left, &right, ours) == BY_FINGERPRINT)
	{
		result = copyObject(op);
		result->opno = fingerprint_operator(op->opno, ours);
		result->opfuncid = get_opcode(result->opno);
		result->args = list_make2(left, right);
		/* NULLIF gives its first operand, which must not be a probe */
		if (IsA(op, NullIfExpr) && left != linitial(op->args))
		{
			NodeSetTag(result, T_OpExpr);
			result->opresulttype = BOOLOID;
			result->opcollid = InvalidOid;
		}
		/* a fingerprint has no collation, but the column's index has one */
		result->inputcollid = column_collation(left, right);
		if (IsA(op, NullIfExpr) && IsA(result, OpExpr))
			return null_if((Expr *) result, op);
		return (Node *) result;
	}
	if (matches_pattern(name))
	{
		left_type = rewrite_inner_type(left, ours);
		if (!OidIsValid(left_type))
			left_type = TEXTOID;
		right_type = exprType(right);
	}
	else if (IsA(op, OpExpr) && nothing_known(left, ours) && nothing_known(right, ours))
		return compare_when_run(op, name, left, right);
	else
		choose_types(left, right, ours, &left_type, &right_type);
	result = rewrite_base_operation(name, plain_side(left, left_type, ours),
							plain_side(right, right_type, ours), op->inputcollid);
	if (IsA(op, DistinctExpr))
		NodeSetTag(result, T_DistinctExpr);
	if (IsA(op, NullIfExpr))
		return null_if((Expr *) result, op);
	return (Node *) result;
}

static Node *
probe_array(Node *array, int32 typmod, Oid ours)
{
	FuncExpr   *call = (FuncExpr *) array;
	ListCell   *lc;

	/* the column says how the tenants' values are to be made */
	if (IsA(array, FuncExpr) && call->funcid == sql_function(SQL_SEARCH_VALUES))
		return (Node *) makeFuncExpr(sql_function(SQL_SEARCH_VALUES_AS), call->funcresulttype,
									 list_make2(linitial(call->args), rewrite_int_constant(typmod)),
									 call->funccollid, call->inputcollid,
									 COERCE_EXPLICIT_CALL);
	if (IsA(array, ArrayExpr) && !((ArrayExpr *) array)->multidims)
	{
		ArrayExpr  *result = copyObject((ArrayExpr *) array);

		foreach(lc, result->elements)
			lfirst(lc) = rewrite_probe(lfirst(lc), typmod, ours);
		result->array_typeid = get_array_type(ours);
		result->element_typeid = ours;
		return (Node *) result;
	}
	return rewrite_map_array(array, ours, rewrite_probe(rewrite_any_element(array), typmod, ours));
}

static Node *
plain_array(Node *array, Oid type)
{
	ListCell   *lc;

	if (IsA(array, ArrayExpr) && !((ArrayExpr *) array)->multidims)
	{
		ArrayExpr  *result = copyObject((ArrayExpr *) array);

		foreach(lc, result->elements)
			lfirst(lc) = rewrite_plain(lfirst(lc), type);
		result->array_typeid = get_array_type(type);
		result->element_typeid = type;
		result->array_collid = OidIsValid(get_typcollation(type)) ? result->array_collid : InvalidOid;
		return (Node *) result;
	}
	return rewrite_map_array(array, type, rewrite_plain(rewrite_any_element(array), type));
}

/* The type inside an array's elements, as far as it is known. */
static Oid
array_inner_type(Node *array, Oid ours)
{
	if (exprTypmod(array) >= 0)
		return rewrite_compared_type(exprTypmod(array));
	if (IsA(array, ArrayExpr))
		return rewrite_common_type(((ArrayExpr *) array)->elements, ours);
	return InvalidOid;
}

static Node *
array_by_fingerprint(ScalarArrayOpExpr *op, Node *left, Node *array, Oid ours)
{
	ScalarArrayOpExpr *result = makeNode(ScalarArrayOpExpr);

	result->opno = fingerprint_operator(op->opno, ours);
	result->opfuncid = get_opcode(result->opno);
	result->useOr = op->useOr;
	result->inputcollid = column_collation(left, array);
	result->args = list_make2(left, array);
	result->location = op->location;
	return (Node *) result;
}

/* x = ANY (array) and its kin */
static Node *
rewrite_array_operation(ScalarArrayOpExpr *op, Oid ours)
{
	Node	   *left = linitial(op->args);
	Node	   *array = lsecond(op->args);
	bool		left_ours = rewrite_is_ours(left, ours);
	bool		array_ours = rewrite_holds_ours(array, ours);
	int32		left_mod = left_ours ? rewrite_modifier(left, ours) : -1;
	int32		array_mod = array_ours ? exprTypmod(array) : -1;
	Oid			left_type = left_ours ? rewrite_inner_type(left, ours) : exprType(left);
	Oid			array_type = array_ours ? array_inner_type(array, ours) :
	get_base_element_type(exprType(array));
	ScalarArrayOpExpr *result;

	if (equality_name(op->opno) != NULL)
	{
		if (rewrite_same_search(left_mod, array_mod))
			return array_by_fingerprint(op, left, array, ours);
		if (typemod_searchable(left_mod) && !typemod_searchable(array_mod))
			return array_by_fingerprint(op, left, probe_array(array, left_mod, ours), ours);
		if (typemod_searchable(array_mod) && !typemod_searchable(left_mod))
			return array_by_fingerprint(op, rewrite_probe(left, array_mod, ours), array, ours);
	}
	if (!OidIsValid(left_type))
		left_type = array_type;
	if (!OidIsValid(array_type))
		array_type = left_type;
	if (!OidIsValid(left_type))
		rewrite_refuse("compared", HINT_TYPE);
	result = (ScalarArrayOpExpr *)
		make_scalar_array_op(make_parsestate(NULL),
							 list_make2(makeString("pg_catalog"),
										makeString(get_opname(op->opno))),
							 op->useOr, plain_side(left, left_type, ours),
							 array_ours ? plain_array(array, array_type) : array, -1);
	rewrite_give_collation(linitial(result->args), op->inputcollid);
	rewrite_give_collation(lsecond(result->args), op->inputcollid);
	result->inputcollid = op->inputcollid;
	return (Node *) result;
}

/* The btree family in which the operator is that comparison. */
static Oid
family_of(Oid operator, RowCompareType rctype)
{
	ListCell   *lc;

	foreach(lc, get_op_btree_interpretation(operator))
	{
		OpBtreeInterpretation *meaning = lfirst(lc);

		if (meaning->strategy == (int) rctype)
			return meaning->opfamily_id;
	}
	rewrite_refuse("compared in this row", "Cast both sides to the same type.");
}

/* (a, b) < (c, d), of which some are ours */
static Node *
rewrite_row_comparison(RowCompareExpr *row, Oid ours)
{
	static const char *const names[] = {
		[ROWCOMPARE_LT] = "<",[ROWCOMPARE_LE] = "<=",
		[ROWCOMPARE_GE] = ">=",[ROWCOMPARE_GT] = ">"
	};
	RowCompareExpr *result = copyObject(row);
	int			n = list_length(row->largs);

	for (int i = 0; i < n; i++)
	{
		Node	   *left = list_nth(row->largs, i);
		Node	   *right = list_nth(row->rargs, i);
		Oid			left_type;
		Oid			right_type;
		OpExpr	   *op;

		if (!rewrite_is_ours(left, ours) && !rewrite_is_ours(right, ours))
			continue;
		choose_types(left, right, ours, &left_type, &right_type);
		op = rewrite_base_operation(names[row->rctype], plain_side(left, left_type, ours),
									plain_side(right, right_type, ours),
									list_nth_oid(row->inputcollids, i));
		list_nth_cell(result->largs, i)->ptr_value = linitial(op->args);
		list_nth_cell(result->rargs, i)->ptr_value = lsecond(op->args);
		list_nth_cell(result->opnos, i)->oid_value = op->opno;
		list_nth_cell(result->opfamilies, i)->oid_value = family_of(op->opno, row->rctype);
	}
	return (Node *) result;
}

/* GREATEST and LEAST; NULLs are passed over, as there. */
static Node *
rewrite_minmax(MinMaxExpr *minmax, Oid ours)
{
	Oid			function = sql_function(minmax->op == IS_GREATEST ? SQL_LARGER : SQL_SMALLER);
	Node	   *result = linitial(minmax->args);
	ListCell   *lc;

	if (session_tenant() == NULL)
		error_no_tenant("encrypted values cannot be compared");
	if (!OidIsValid(rewrite_common_type(minmax->args, ours)))
		rewrite_refuse("compared", HINT_TYPE);
	for_each_from(lc, minmax->args, 1)
		result = (Node *) makeFuncExpr(function, ours, list_make2(result, lfirst(lc)),
									   minmax->minmaxcollid, minmax->inputcollid,
									   COERCE_EXPLICIT_CALL);
	return result;
}

Node *
rewrite_comparison(Node *node, Oid ours)
{
	OpExpr	   *op = (OpExpr *) node;

	switch (nodeTag(node))
	{
		case T_OpExpr:
		case T_DistinctExpr:
		case T_NullIfExpr:
			if (list_length(op->args) == 2 && our_operator(op->opno, ours))
				return rewrite_operation(op, ours);
			return NULL;
		case T_ScalarArrayOpExpr:
			if (our_operator(((ScalarArrayOpExpr *) node)->opno, ours))
				return rewrite_array_operation((ScalarArrayOpExpr *) node, ours);
			return NULL;
		case T_RowCompareExpr:
			for (int i = 0; i < list_length(((RowCompareExpr *) node)->opnos); i++)
			{
				if (our_operator(list_nth_oid(((RowCompareExpr *) node)->opnos, i), ours))
					return rewrite_row_comparison((RowCompareExpr *) node, ours);
			}
			return NULL;
		case T_MinMaxExpr:
			if (((MinMaxExpr *) node)->minmaxtype == ours)
				return rewrite_minmax((MinMaxExpr *) node, ours);
			return NULL;
		default:
			return NULL;
	}
}
