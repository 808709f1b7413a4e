// verify.mjs FOLDER PUBLIC-KEY < TOKENS: a line for each token, with jose from
// FOLDER/node_modules: its payload's type and number, or the error's code.
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';

const [folder, pemFile] = process.argv.slice(2);
const require = createRequire(folder + '/');
const { compactVerify, importSPKI } = await import(pathToFileURL(require.resolve('jose')));
const key = await importSPKI(readFileSync(pemFile, 'utf8'), 'ES256');

for (const token of readFileSync(0, 'utf8').split('\n').filter(Boolean)) {
  try {
    const { payload } = await compactVerify(token, key, { algorithms: ['ES256'] });
    const record = JSON.parse(new TextDecoder().decode(payload));
    console.log(record.type, record.number, record.data.school);
  } catch (error) {
    console.log(error.code);
  }
}
