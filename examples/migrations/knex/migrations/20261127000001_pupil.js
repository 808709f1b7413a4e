'use strict'
/* The table as it was: plain. */

exports.up = (knex) => knex.schema.createTable('pupil', (table) => {
  table.bigIncrements('id')
  table.text('school').notNullable()
  table.text('name')
  table.text('ssn').unique()
})

exports.down = (knex) => knex.schema.dropTable('pupil')
