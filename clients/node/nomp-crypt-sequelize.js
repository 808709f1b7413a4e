'use strict'
/*
 * nomp_crypt for Sequelize 6: the data type, and the tenant of a transaction.
 *
 *     const { ENCRYPTED, install, tenant } = require('./nomp-crypt-sequelize')
 *     await install(sequelize)
 *     const Pupil = sequelize.define('pupil', {
 *       name: { type: ENCRYPTED(DataTypes.TEXT) },
 *       born: { type: ENCRYPTED(DataTypes.DATEONLY) },
 *       ssn: { type: ENCRYPTED(DataTypes.TEXT, { searchable: true }), unique: true }
 *     })
 *     await tenant(sequelize, 's-0180-42', (transaction) =>
 *       Pupil.findAll({ order: ['name'], transaction }))
 *
 * A value is checked, written and given back as the inner type does it.
 */

const { isDeepStrictEqual } = require('util')
const { DataTypes } = require('sequelize')
const pg = require('pg')
const nomp = require('./nomp-crypt-pg')

// The class itself: what DataTypes exports is a proxy that cannot be extended.
class EncryptedType extends DataTypes.ABSTRACT.prototype.constructor {
  constructor (inner, { searchable = false } = {}) {
    super()
    if (![false, true, 'nocase', 'digits'].includes(searchable)) {
      throw new TypeError("searchable is false, true, 'nocase' or 'digits'")
    }
    const type = typeof inner === 'function' ? new inner() : inner // eslint-disable-line new-cap
    this.inner = DataTypes.postgres[type.key] && !(type instanceof DataTypes.postgres[type.key])
      ? DataTypes.postgres[type.key].extend(type)
      : type
    this.searchable = searchable
    // Sequelize calls these two as functions of their own.
    this._isChanged = (value, original) =>
      this.inner._isChanged ? this.inner._isChanged(value, original) : !isDeepStrictEqual(value, original)
    this._sanitize = (value, options) =>
      this.inner._sanitize ? this.inner._sanitize(value, options) : value
  }

  toSql () {
    const plain = this.inner.toSql().toLowerCase()
    const inner = /^[a-z]+$/.test(plain) ? plain : `'${plain}'`
    const search = this.searchable === true
      ? ', searchable'
      : this.searchable ? `, searchable, ${this.searchable}` : ''
    return `encrypted(${inner}${search})`
  }

  validate (value, options) {
    return this.inner.validate ? this.inner.validate(value, options) : true
  }

  // Whether stringify() writes something that is quoted already.
  get escape () {
    return this.inner.escape
  }

  _stringify (value, options) {
    return this.inner.stringify(value, options)
  }

  _bindParam (value, options) {
    // pg sends a Buffer in binary, which is for ciphertext.
    if (Buffer.isBuffer(value)) return options.bindParam(`\\x${value.toString('hex')}`)
    return this.inner.bindParam(value, options)
  }
}
EncryptedType.key = EncryptedType.prototype.key = 'ENCRYPTED'

/** ENCRYPTED(inner, { searchable }): searchable is false, true, 'nocase' or 'digits'. */
function ENCRYPTED (inner, options) {
  return new EncryptedType(inner, options)
}

/** Once, after the extension exists: native types in results. */
async function install (sequelize) {
  await sequelize.query("SELECT 'encrypted'::regtype").catch(() => {
    throw new Error('there is no type "encrypted": CREATE EXTENSION nomp_crypt')
  })
  await nomp.install(pg, {
    query: async (sql) => ({ rows: await sequelize.query(sql, { type: 'SELECT' }) })
  })
}

/** From now on, to the end of the transaction. */
function setTenant (sequelize, id, transaction) {
  return sequelize.query("SELECT set_config('nomp_crypt.tenant', $1, true)",
    { bind: [id], transaction })
}

/** Runs work(transaction) in a transaction inside that tenant. */
function tenant (sequelize, id, work) {
  return sequelize.transaction(async (transaction) => {
    await setTenant(sequelize, id, transaction)
    return work(transaction)
  })
}

module.exports = { ENCRYPTED, install, setTenant, tenant }
