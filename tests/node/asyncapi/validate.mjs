// Reads an AsyncAPI document from stdin as its users' tools do; prints what is wrong with it.
// Exit code 1 where there is anything, down to a hint; but for that there is a newer AsyncAPI: 3.0
// is what most tools read.
import { Parser } from '@asyncapi/parser';
import { readFileSync } from 'node:fs';

const { document, diagnostics: all } = await new Parser().parse(readFileSync(0, 'utf8'));
const diagnostics = all.filter(({ code }) => code !== 'asyncapi-latest-version');
for (const { code, message, path, severity } of diagnostics) {
  console.log(`${severity} ${code} at ${path.join('.')}: ${message}`);
}
if (document) {
  const messages = document.allMessages().all().map((message) => message.id());
  console.log(JSON.stringify({ version: document.version(), messages }));
}
process.exit(document && diagnostics.length === 0 ? 0 : 1);
