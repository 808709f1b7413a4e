/*
 * foreign.c
 *		postgres_fdw, carrying values as they are stored.
 *
 * postgres_fdw sends and receives text, and inside a school text is plaintext:
 * rows of a foreign table could be neither read nor written there.  The handler
 * here is postgres_fdw's with this difference: while it converts rows, text is
 * ciphertext, whatever the session.  So plaintext never travels, and the other
 * server needs no key.
 *
 * Whoever may define what a foreign table shows could make it show ciphertext
 * that was found somewhere, to read it.  So the table's owner must be one who may
 * load ciphertext; whoever reads the table need not be.  Nothing else may be
 * converted under that owner's right: queries of the session's own (InitPlans)
 * that a row's conversion would set off are run before.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_class.h"
#include "compat.h"
#include "executor/executor.h"
#include "executor/nodeSubplan.h"
#include "foreign/fdwapi.h"
#include "nodes/execnodes.h"
#include "nodes/pathnodes.h"
#include "type_io.h"
#include "utils/rel.h"
#include "utils/syscache.h"

NC_FUNCTION(nc_postgres_fdw_handler);

static FdwRoutine original;		/* postgres_fdw's functions */

/* Run one of them with text being ciphertext, vouched for by that role. */
#define AS_STORED(owner, call) \
	do { \
		const TypeWire before_ = type_wire; \
		type_wire = (TypeWire) {true, (owner)}; \
		PG_TRY(); \
		{ \
			call; \
		} \
		PG_FINALLY(); \
		{ \
			type_wire = before_; \
		} \
		PG_END_TRY(); \
	} while (0)

/* The owner of all tables that a scan is about; none if they have several. */
static Oid
scan_owner(ForeignScanState *node)
{
	const Bitmapset *relids = ((ForeignScan *) node->ss.ps.plan)->fs_relids;
	Oid			owner = InvalidOid;
	int			rti = -1;

	while ((rti = bms_next_member(relids, rti)) >= 0)
	{
		RangeTblEntry *rte = exec_rt_fetch(rti, node->ss.ps.state);
		HeapTuple	tuple;
		Oid			this_one;

		if (rte->rtekind != RTE_RELATION)
			continue;
		tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(rte->relid));
		if (!HeapTupleIsValid(tuple))
			return InvalidOid;
		this_one = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
		ReleaseSysCache(tuple);
		if (OidIsValid(owner) && owner != this_one)
			return InvalidOid;
		owner = this_one;
	}
	return owner;
}

/* Evaluate what the remote query's parameters wait for. */
static void
run_init_plans(ForeignScanState *node)
{
	ExprContext *context = node->ss.ps.ps_ExprContext;
	ListCell   *lc;

	foreach(lc, ((ForeignScan *) node->ss.ps.plan)->fdw_exprs)
	{
		Param	   *param = lfirst(lc);
		ParamExecData *value;

		if (!IsA(param, Param) || param->paramkind != PARAM_EXEC)
			continue;
		value = &context->ecxt_param_exec_vals[param->paramid];
		if (value->execPlan != NULL)
			ExecSetParamPlan(value->execPlan, context);
	}
}

static TupleTableSlot *
iterate_scan(ForeignScanState *node)
{
	TupleTableSlot *volatile result = NULL;

	run_init_plans(node);
	AS_STORED(scan_owner(node), result = original.IterateForeignScan(node));
	return result;
}

static TupleTableSlot *
iterate_direct_modify(ForeignScanState *node)
{
	TupleTableSlot *volatile result = NULL;

	run_init_plans(node);
	AS_STORED(scan_owner(node), result = original.IterateDirectModify(node));
	return result;
}

static TupleTableSlot *
insert_row(EState *estate, ResultRelInfo *rel, TupleTableSlot *slot, TupleTableSlot *plan_slot)
{
	TupleTableSlot *volatile result = NULL;

	AS_STORED(rel->ri_RelationDesc->rd_rel->relowner,
			  result = original.ExecForeignInsert(estate, rel, slot, plan_slot));
	return result;
}

static TupleTableSlot **
insert_rows(EState *estate, ResultRelInfo *rel, TupleTableSlot **slots,
			 TupleTableSlot **plan_slots, int *n)
{
	TupleTableSlot **volatile result = NULL;

	AS_STORED(rel->ri_RelationDesc->rd_rel->relowner,
			  result = original.ExecForeignBatchInsert(estate, rel, slots, plan_slots, n));
	return result;
}

static TupleTableSlot *
update_row(EState *estate, ResultRelInfo *rel, TupleTableSlot *slot, TupleTableSlot *plan_slot)
{
	TupleTableSlot *volatile result = NULL;

	AS_STORED(rel->ri_RelationDesc->rd_rel->relowner,
			  result = original.ExecForeignUpdate(estate, rel, slot, plan_slot));
	return result;
}

static TupleTableSlot *
delete_row(EState *estate, ResultRelInfo *rel, TupleTableSlot *slot, TupleTableSlot *plan_slot)
{
	TupleTableSlot *volatile result = NULL;

	AS_STORED(rel->ri_RelationDesc->rd_rel->relowner,
			  result = original.ExecForeignDelete(estate, rel, slot, plan_slot));
	return result;
}

/*
 * nomp_crypt.postgres_fdw_handler() returns fdw_handler
 *
 * For CREATE FOREIGN DATA WRAPPER.  Raises 58P01 where postgres_fdw is not
 * installed.
 */
Datum
nc_postgres_fdw_handler(PG_FUNCTION_ARGS)
{
	PGFunction	theirs = (PGFunction) load_external_function("$libdir/postgres_fdw",
															 "postgres_fdw_handler",
															 true, NULL);
	FdwRoutine *routine = (FdwRoutine *) DatumGetPointer(DirectFunctionCall1(theirs, (Datum) 0));

	original = *routine;
	routine->IterateForeignScan = iterate_scan;
	routine->IterateDirectModify = iterate_direct_modify;
	routine->ExecForeignInsert = insert_row;
	routine->ExecForeignBatchInsert = insert_rows;
	routine->ExecForeignUpdate = update_row;
	routine->ExecForeignDelete = delete_row;
	/* asynchronous scans convert one table's rows in another one's call */
	routine->IsForeignPathAsyncCapable = NULL;
	PG_RETURN_POINTER(routine);
}
