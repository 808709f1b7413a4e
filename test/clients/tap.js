'use strict'
/* What the Node clients share: lines of TAP, and values to write. */

const { isDeepStrictEqual, inspect } = require('util')

let number = 0

function ok (passed, name, ...why) {
  number++
  console.log(`${passed ? 'ok' : 'not ok'} - ${name}`)
  if (!passed) why.forEach((w) => console.log(`#   ${inspect(w, { depth: 4 }).replace(/\n/g, ' ')}`))
}

/* Equal, and of the same types. */
function same (got, expected, name) {
  ok(isDeepStrictEqual(got, expected), name, got, expected)
}

/* The error that action() rejects with; undefined if it does not. */
async function error (action) {
  try {
    await action()
  } catch (caught) {
    return caught
  }
}

function finish () {
  console.log(`1..${number}`)
}

const ANNA = {
  name: 'Åsa Öberg-Żółć 🎓',
  active: true,
  points: 42,
  weight: '31.50',
  seen: new Date('2024-02-29T12:30:15.250Z'),
  token: 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11',
  photo: Buffer.from([0, 255, 39, 92, 106]),
  notes: { allergy: ['nuts', 'ägg'], ok: true, n: null },
  tags: ['a', 'b "c"', 'ä,{}'],
  ssn: '20140501-1234'
}
const BERTIL = {
  name: 'Bertil',
  active: false,
  points: -7,
  weight: '40.25',
  seen: new Date('2023-01-01T00:00:00Z'),
  token: 'b0eebc99-9c0b-4ef8-bb6d-6bb9bd380a22',
  photo: Buffer.alloc(0),
  notes: { allergy: [] },
  tags: [],
  ssn: '20131231-5678'
}

module.exports = { ANNA, BERTIL, error, finish, ok, same }
