'use strict'
/* Encrypt the names, while the table is locked. */

exports.up = (knex) =>
  knex.raw("SELECT nomp_crypt.encrypt_column('pupil', 'name', 'school')")

exports.down = (knex) =>
  knex.raw("SELECT nomp_crypt.decrypt_column('pupil', 'name')")
