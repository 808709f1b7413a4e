'use strict'
/*
 * node-postgres, as an application uses it.
 *
 *     node node_pg.js FOLDER-OF-NOMP-CRYPT-PG HOST PORT
 *
 * NODE_PATH names the folder of its packages.
 */

const path = require('path')
const pg = require('pg')
const { ANNA, BERTIL, error, finish, ok, same } = require('./tap')
const nomp = require(path.join(process.argv[2], 'nomp-crypt-pg'))

const pool = new pg.Pool({ host: process.argv[3], port: +process.argv[4], user: 'app', database: 'postgres' })
const columns = Object.keys(ANNA)
// Dates as text is a choice that applications make: parsers are the client's.
pg.types.setTypeParser(1082, (value) => value)

const north = (work) => nomp.tenant(pool, 'north', work)
const insert = `INSERT INTO person (born, ${columns}) VALUES ($1, ${columns.map((c, i) => `$${i + 2}${c === 'photo' ? '::bytea' : ''}`)}) RETURNING id, born`
const parameters = (born, person) => [born, ...Object.values(person)]

async function writeAndRead () {
  const id = await north(async (client) => {
    const { rows } = await client.query(insert, parameters('2014-05-01', ANNA))
    await client.query(insert, parameters('2013-12-31', BERTIL))
    await client.query('INSERT INTO person DEFAULT VALUES')
    same(rows[0].born, '2014-05-01', 'RETURNING')
    return rows[0].id
  })
  await north(async (client) => {
    const { rows: [row] } = await client.query('SELECT * FROM person WHERE id = $1', [id])
    for (const column of columns) {
      same(row[column], ANNA[column], `${column} comes back as it went in`)
    }
    same(row.born, '2014-05-01', 'a date, by the parser for dates')
    const { rows: [none] } = await client.query('SELECT name, born, active FROM person WHERE name IS NULL')
    same({ ...none }, { name: null, born: null, active: null }, 'NULL is null')
    await client.query('UPDATE person SET points = $1 WHERE id = $2', [43, id])
    const { rows } = await client.query({
      text: 'SELECT points, active FROM person WHERE id = $1', values: [id], rowMode: 'array'
    })
    same(rows, [[43, true]], 'an update, and rows as arrays')
    const { rows: dates } = await client.query({
      text: 'SELECT born FROM person WHERE id = $1',
      values: [id],
      types: { getTypeParser: (oid) => (value) => `${oid}: ${value}` }
    })
    same(dates[0].born, '1082: 2014-05-01', "a query's own parsers")
  })
}

async function compare () {
  await north(async (client) => {
    const names = async (where, ...values) =>
      (await client.query(`SELECT name FROM person WHERE ${where} ORDER BY name`, values)).rows.map((r) => r.name)
    const { name: anna } = ANNA
    const { name: bertil } = BERTIL
    for (const [expected, where, ...values] of [
      [[anna], 'ssn = $1', ANNA.ssn],
      [[bertil, anna], 'ssn = ANY ($1)', [ANNA.ssn, BERTIL.ssn]],
      [[bertil, anna], 'ssn = ANY ($1::text[])', [ANNA.ssn, BERTIL.ssn]],
      [[bertil, anna], 'ssn IN ($1, $2)', ANNA.ssn, BERTIL.ssn],
      [[bertil], 'ssn <> $1', ANNA.ssn],
      [[anna], 'name = $1', anna],
      [[bertil], 'born = $1', '2013-12-31'],
      [[bertil], 'born < $1', '2014-01-01'],
      [[anna], 'active = $1', true],
      [[anna], 'points > $1', 0],
      [[bertil], 'weight >= $1', '40'],
      [[bertil], 'seen < $1', ANNA.seen],
      [[anna], 'token = $1', ANNA.token],
      [[anna], 'name LIKE $1', '%Öberg%'],
      [[bertil], 'name ILIKE $1', 'BERT%']
    ]) {
      same(await names(where, ...values), expected, where)
    }
    const { rows } = await client.query('SELECT born FROM person WHERE born IS NOT NULL ORDER BY born DESC')
    same(rows.map((r) => r.born), ['2014-05-01', '2013-12-31'], 'ORDER BY a date')
  })
}

async function prepared () {
  const found = []
  for (let i = 0; i < 6; i++) {
    await nomp.tenant(pool, i % 2 ? 'north' : 'south', async (client) => {
      await client.query({ name: 'add', text: 'INSERT INTO person (name, ssn) VALUES ($1, $2)', values: [`person ${i}`, `same ${i >> 1}`] })
      const { rows } = await client.query({ name: 'find', text: 'SELECT name FROM person WHERE ssn = $1', values: [`same ${i >> 1}`] })
      found.push(...rows.map((r) => r.name))
    })
  }
  same(found, [0, 1, 2, 3, 4, 5].map((i) => `person ${i}`), 'named statements that change schools')
}

async function errors () {
  const duplicate = await error(() => north((client) =>
    client.query('INSERT INTO person (ssn) VALUES ($1)', [ANNA.ssn])))
  ok(duplicate instanceof pg.DatabaseError && duplicate.code === '23505', 'a duplicate has code 23505', duplicate)
  const nobody = await error(() => pool.query('INSERT INTO person (name) VALUES ($1)', ["nobody's"]))
  ok(nobody instanceof pg.DatabaseError && nobody.code === 'NC006' &&
    /nomp_crypt\.tenant/.test(nobody.message + nobody.hint), 'without a tenant: NC006, and what to do', nobody)
  const { rows } = await pool.query('SELECT born FROM person WHERE born IS NOT NULL LIMIT 1')
  ok(rows[0].born.startsWith('nc1:'), 'without a tenant a date is ciphertext', rows)
  const after = await pool.query("SELECT current_setting('nomp_crypt.tenant') AS tenant")
  same(after.rows[0].tenant, '', 'a client goes back to the pool without a tenant')
}

async function main () {
  await nomp.install(pg, pool)
  await writeAndRead()
  await compare()
  await prepared()
  await errors()
  await pool.end()
  finish()
}

main().catch((e) => {
  console.error(e)
  process.exit(1)
})
