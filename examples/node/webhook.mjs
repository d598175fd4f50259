// Receive webhooks, and verify them with the Standard Webhooks library.
//
//     npm ci
//     WEBHOOK_SECRETS=whsec_... PORT=8080 node webhook.mjs
//
// WEBHOOK_SECRETS holds the secrets of the endpoint (REGWORKER_ENDPOINTS__<NAME>__SECRETS), separated
// by commas: the old one and the new one while you change them. The same event may arrive twice,
// under the same webhook-id. So the program appends the id to the file HANDLED (default:
// handled.txt), and then answers 2xx; the worker sends the event again after any other answer. If
// you have a database, store the id there, in the same transaction as the event's effects.
import { appendFileSync, readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { Webhook } from 'standardwebhooks';

for (const name of ['WEBHOOK_SECRETS']) {
  if (!process.env[name]) throw new Error(`set ${name}: see the first lines of this file`);
}

const webhooks = process.env.WEBHOOK_SECRETS.split(',').map((secret) => new Webhook(secret));
const file = process.env.HANDLED ?? 'handled.txt';
appendFileSync(file, '');
const handled = new Set(readFileSync(file, 'utf8').split('\n'));

const LARGEST = 1024 * 1024; // bytes; events are much smaller

function verified(webhook, body, headers) {
  try {
    webhook.verify(body, headers); // also checks that it is not older than five minutes
    return true;
  } catch {
    return false;
  }
}

async function received(request) {
  const parts = [];
  let size = 0;
  for await (const part of request) {
    size += part.length;
    if (size > LARGEST) return 413;
    parts.push(part);
  }
  const body = Buffer.concat(parts).toString(); // unchanged: the signature covers these bytes
  if (!webhooks.some((webhook) => verified(webhook, body, request.headers))) {
    console.log('refused: not signed with a secret of ours, or too old');
    return 401;
  }
  const id = request.headers['webhook-id'];
  if (!handled.has(id)) {
    const event = JSON.parse(body);
    console.log('verified', event.type, event.data.idempotency_key ?? event.subject);
    appendFileSync(file, `${id}\n`);
    handled.add(id);
  }
  return 204;
}

const server = createServer({ requestTimeout: 15_000 }, async (request, response) => {
  const status = await received(request).catch(() => 500);
  response.writeHead(status).end();
});
server.listen(Number(process.env.PORT ?? 8080), '127.0.0.1', () => {
  console.log(`listening on http://127.0.0.1:${server.address().port}/`);
});
