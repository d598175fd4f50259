// Reads an AsyncAPI document from stdin with AsyncAPI's own parser, and prints what is wrong with it.
// The exit code is 1 for any finding, also a hint, except the one that a newer AsyncAPI exists: most
// tools read 3.0.
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
