'use strict'
/*
 * Encrypt the personnummer while others write.  The procedure commits: no
 * transaction around it, and nothing beside it.  If it is interrupted, migrate
 * again.
 */

exports.config = { transaction: false }

exports.up = (knex) =>
  knex.raw("CALL nomp_crypt.encrypt_column_online('pupil', 'ssn', 'school', searchable => true)")

exports.down = (knex) =>
  knex.raw("SELECT nomp_crypt.decrypt_column('pupil', 'ssn')")
