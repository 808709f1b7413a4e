'use strict'
/*
 * nomp_crypt for node-postgres: native types from encrypted columns, and the
 * tenant of a transaction.
 *
 *     const pg = require('pg')
 *     const nomp = require('./nomp-crypt-pg')
 *     const pool = new pg.Pool()
 *     await nomp.install(pg, pool)
 *     const { rows } = await nomp.tenant(pool, 's-0180-42', (client) =>
 *       client.query('SELECT name, born FROM pupil WHERE ssn = $1', [ssn]))
 *
 * All encrypted columns have one type; what is inside is said by the column's
 * type modifier. node-postgres chooses a parser by type alone and has no place
 * to say more, so install() extends its Result. The parser is the one that you
 * have for the inner type (pg.types, or a client's own). Parameters are sent
 * as text and need nothing, but for a Buffer, which is sent in binary: write
 * $1::bytea there.
 */

const Result = require('pg/lib/result')

// The type code, the modifier's lowest byte: the type's and its array's oid.
const ARRAY = 0x80
const OIDS = {
  1: [25, 1009], 2: [1043, 1015], 3: [1042, 1014], // text, varchar, char
  4: [17, 1001], 5: [16, 1000], // bytea, bool
  6: [21, 1005], 7: [23, 1007], 8: [20, 1016], // int2, int4, int8
  9: [700, 1021], 10: [701, 1022], 11: [1700, 1231], // float4, float8, numeric
  12: [790, 791], 13: [1082, 1182], // money, date
  14: [1083, 1183], 15: [1266, 1270], // time, timetz
  16: [1114, 1115], 17: [1184, 1185], 18: [1186, 1187], // timestamp, tz, interval
  19: [2950, 2951], 20: [869, 1041], // uuid, inet
  21: [114, 199], 22: [3802, 3807], // json, jsonb
  23: [3904, 3905], 24: [3926, 3927], 25: [3906, 3907], // int4-, int8-, numrange
  26: [3912, 3913], 27: [3908, 3909], 28: [3910, 3911] // date-, ts-, tstzrange
}

const encryptedOids = new Set()
let extended = false

/** The oid of what is inside a column with that type modifier. */
function innerOid (modifier) {
  const code = modifier < 0 ? 1 : modifier & 0xff
  return OIDS[code & ~ARRAY][code & ARRAY ? 1 : 0]
}

function extend (pg) {
  if (extended) return
  extended = true
  const addFields = Result.prototype.addFields
  Result.prototype.addFields = function (fields) {
    addFields.call(this, fields)
    const types = this._types || pg.types
    fields.forEach((field, i) => {
      if (!encryptedOids.has(field.dataTypeID) || field.format === 'binary') return
      const parse = types.getTypeParser(innerOid(field.dataTypeModifier), 'text')
      // Outside a tenant there is ciphertext, and it stays what it is.
      this._parsers[i] = (value) => value.startsWith('nc1:') ? value : parse(value)
    })
  }
}

/**
 * Native types in all results of this process. client is a connected client
 * or a pool of a database with the extension; call it for each such database.
 */
async function install (pg, client) {
  const { rows } = await client.query("SELECT 'encrypted'::regtype::oid::int AS oid")
  encryptedOids.add(rows[0].oid)
  extend(pg)
}

/** From now on, to the end of the transaction. */
function setTenant (client, id) {
  return client.query("SELECT set_config('nomp_crypt.tenant', $1, true)", [id])
}

/** Runs work(client) in a transaction inside that tenant. */
async function tenant (pool, id, work) {
  const client = await pool.connect()
  let broken
  try {
    await client.query('BEGIN')
    await setTenant(client, id)
    const answer = await work(client)
    await client.query('COMMIT')
    return answer
  } catch (error) {
    await client.query('ROLLBACK').catch((e) => { broken = e })
    throw error
  } finally {
    client.release(broken)
  }
}

module.exports = { install, innerOid, setTenant, tenant }
