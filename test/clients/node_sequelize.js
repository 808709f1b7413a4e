'use strict'
/*
 * Sequelize, as an application uses it.
 *
 *     node node_sequelize.js FOLDER-OF-NOMP-CRYPT-SEQUELIZE HOST PORT
 *
 * NODE_PATH names the folder of its packages.
 */

const path = require('path')
const { DataTypes, Op, Sequelize, UniqueConstraintError, DatabaseError, ValidationError } = require('sequelize')
const { ANNA, BERTIL, error, finish, ok, same } = require('./tap')
const { ENCRYPTED, install, tenant } = require(path.join(process.argv[2], 'nomp-crypt-sequelize'))

const sequelize = new Sequelize({
  dialect: 'postgres',
  host: process.argv[3],
  port: +process.argv[4],
  username: 'app',
  database: 'postgres',
  logging: false,
  typeValidation: true
})
const searchable = { searchable: true }

const Pupil = sequelize.define('pupil', {
  name: ENCRYPTED(DataTypes.TEXT),
  born: { type: ENCRYPTED(DataTypes.DATEONLY) },
  active: ENCRYPTED(DataTypes.BOOLEAN),
  points: ENCRYPTED(DataTypes.INTEGER),
  weight: ENCRYPTED(DataTypes.DECIMAL(6, 2)),
  seen: ENCRYPTED(DataTypes.DATE),
  token: ENCRYPTED(DataTypes.UUID),
  photo: ENCRYPTED(DataTypes.BLOB),
  notes: ENCRYPTED(DataTypes.JSONB),
  tags: ENCRYPTED(DataTypes.ARRAY(DataTypes.TEXT)),
  city: ENCRYPTED(DataTypes.STRING(30)),
  ssn: { type: ENCRYPTED(DataTypes.TEXT, searchable), unique: true, allowNull: false }
}, { timestamps: false, tableName: 'sq_pupil', defaultScope: { order: ['name'] } })

const Guardian = sequelize.define('guardian', {
  phone: ENCRYPTED(DataTypes.TEXT, { searchable: 'digits' }),
  pupilSsn: {
    type: ENCRYPTED(DataTypes.TEXT, searchable),
    references: { model: Pupil, key: 'ssn' }
  }
}, { timestamps: false, tableName: 'sq_guardian' })
Pupil.hasMany(Guardian, { foreignKey: 'pupilSsn', sourceKey: 'ssn' })
Guardian.belongsTo(Pupil, { foreignKey: 'pupilSsn', targetKey: 'ssn' })

const north = (work) => tenant(sequelize, 'north', work)
const anna = { ...ANNA, born: '2014-05-01', city: 'Malmö' }
const bertil = { ...BERTIL, born: '2013-12-31' }

async function writeAndRead () {
  const id = await north(async (transaction) => {
    const created = await Pupil.create(anna, { transaction })
    await Pupil.bulkCreate([bertil, { name: 'Ceasar', ssn: 'c' }], { transaction })
    same(created.born, anna.born, 'create gives an object back')
    return created.id
  })
  await north(async (transaction) => {
    const found = await Pupil.findByPk(id, { transaction })
    for (const column of Object.keys(anna)) {
      same(found[column], anna[column], `${column} comes back as it went in`)
    }
    const none = await Pupil.findOne({ where: { ssn: 'c' }, transaction })
    same([none.born, none.notes, none.active], [null, null, null], 'NULL is null')
    found.points = 43
    await found.save({ transaction })
    await Pupil.update({ born: '2014-05-01', active: false }, { where: { ssn: 'c' }, transaction })
    const all = await Pupil.findAll({ transaction })
    same(all.map((p) => [p.name, p.points, p.born]),
      [['Bertil', -7, '2013-12-31'], ['Ceasar', null, '2014-05-01'], [anna.name, 43, '2014-05-01']],
      'save and update, in the default order')
  })
}

async function compare () {
  await north(async (transaction) => {
    for (const [expected, what, where] of [
      [[anna.name], '= on searchable', { ssn: anna.ssn }],
      [['Bertil', anna.name], 'IN on searchable', { ssn: [anna.ssn, bertil.ssn] }],
      [['Bertil', 'Ceasar'], '<> on searchable', { ssn: { [Op.ne]: anna.ssn } }],
      [[anna.name], '= on others', { name: anna.name }],
      [[anna.name], 'IN on others', { name: [anna.name, 'x'] }],
      [['Bertil'], '= a date', { born: bertil.born }],
      [['Ceasar', anna.name], 'BETWEEN dates', { born: { [Op.between]: ['2014-01-01', '2015-01-01'] } }],
      [[anna.name], '= a boolean', { active: true }],
      [[anna.name], '> an integer', { points: { [Op.gt]: 0 } }],
      [['Bertil'], '>= a decimal', { weight: { [Op.gte]: 40 } }],
      [['Bertil'], '< a time', { seen: { [Op.lt]: anna.seen } }],
      [[anna.name], '= a uuid', { token: anna.token }],
      [['Ceasar'], 'IS NULL', { weight: null }],
      [[anna.name], 'LIKE', { name: { [Op.like]: '%Öberg%' } }],
      [['Bertil'], 'ILIKE', { name: { [Op.iLike]: 'BERT%' } }],
      [['Bertil'], 'startsWith', { name: { [Op.startsWith]: 'Bert' } }]
    ]) {
      const found = await Pupil.findAll({ where, transaction })
      same(found.map((p) => p.name), expected, what)
    }
    const found = await Pupil.unscoped().findAll({ order: [['born', 'DESC'], ['name', 'DESC']], limit: 2, transaction })
    same(found.map((p) => p.name), [anna.name, 'Ceasar'], 'ORDER BY a date, with a limit')
    same(await Pupil.unscoped().max('born', { transaction }), '2014-05-01', 'max')
    const counted = await Pupil.findAndCountAll({ where: { active: false }, limit: 1, transaction })
    same([counted.count, counted.rows.length], [2, 1], 'findAndCountAll')
  })
}

async function relations () {
  await north(async (transaction) => {
    const pupil = await Pupil.findOne({ where: { ssn: anna.ssn }, transaction })
    await pupil.createGuardian({ phone: '070-123 45 67' }, { transaction })
    const [guardian] = await Guardian.findAll({ where: { phone: '0701234567' }, include: Pupil, transaction })
    same([guardian.phone, guardian.pupil.name, guardian.pupil.born],
      ['070-123 45 67', anna.name, '2014-05-01'], 'a join by an encrypted foreign key')
    const [found, made] = await Pupil.findOrCreate({ where: { ssn: anna.ssn }, defaults: { name: 'new' }, transaction })
    same([found.name, made], [anna.name, false], 'findOrCreate finds')
    const [created, fresh] = await Pupil.findOrCreate({ where: { ssn: 'd' }, defaults: { name: 'David' }, transaction })
    same([created.name, fresh], ['David', true], 'findOrCreate creates')
    await Pupil.upsert({ ssn: 'd', name: 'Doris' }, { conflictFields: ['ssn'], transaction })
    const doris = await Pupil.findOne({ where: { ssn: 'd' }, transaction })
    same(doris.name, 'Doris', 'upsert')
    same(await Pupil.destroy({ where: { ssn: 'd' }, transaction }), 1, 'destroy')
  })
}

async function errors () {
  const duplicate = await error(() => north((transaction) => Pupil.create({ name: 'twin', ssn: anna.ssn }, { transaction })))
  ok(duplicate instanceof UniqueConstraintError, 'a duplicate is a UniqueConstraintError', duplicate)
  const invalid = await error(() => north((transaction) => Pupil.create({ ssn: 'e', points: 'many' }, { transaction })))
  ok(invalid instanceof ValidationError, 'the inner type checks values', invalid)
  await tenant(sequelize, 'south', async (transaction) => {
    await Pupil.create({ name: 'in the south', ssn: anna.ssn }, { transaction })
    const found = await Pupil.findAll({ where: { ssn: anna.ssn }, transaction })
    same(found.map((p) => p.name), ['in the south'], "another school's is no duplicate")
  })
  const nobody = await error(() => Pupil.create({ name: "nobody's", ssn: 'x' }))
  ok(nobody instanceof DatabaseError && nobody.original.code === 'NC006' &&
    /nomp_crypt\.tenant/.test(nobody.message + nobody.original.hint), 'without a tenant: NC006, and what to do', nobody)
  const found = await Pupil.unscoped().findOne({ where: { id: 1 } })
  ok(found.born.startsWith('nc1:'), 'without a tenant a date is ciphertext', found)
}

async function main () {
  await install(sequelize)
  await sequelize.sync()
  await writeAndRead()
  await compare()
  await relations()
  await errors()
  await sequelize.close()
  finish()
}

main().catch((e) => {
  console.error(e)
  process.exit(1)
})
