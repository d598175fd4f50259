// Read results with ioredis, as one consumer of a group on the results stream.
//
//     npm ci
//     REGWORKER_REDIS_URL=redis://127.0.0.1:6399/0 node consume.mjs crm crm-1
//
// The first argument is the group: each group gets every event. The second is this consumer's name;
// each process needs its own. You may kill it at any time: the server delivers an event that was not
// acknowledged again, to this consumer or to another one of the group. So the program stores the id
// of each handled event in Redis for a week. If you have a database, store the id there, in the same
// transaction as the event's effects.
import { Redis } from 'ioredis';

// Without it the client would connect to whatever listens on its default port.
for (const name of ['REGWORKER_REDIS_URL']) {
  if (!process.env[name]) throw new Error(`set ${name}: see the first lines of this file`);
}

const STREAM = '{reg}:results';
// Milliseconds after which this consumer takes over an event that another one has not acknowledged.
// Must be longer than the handling of an event takes.
const TAKE_OVER_AFTER = 60_000;
const WEEK = 7 * 24 * 3600;

const [group, consumer] = process.argv.slice(2);
if (!group || !consumer) throw new Error('usage: node consume.mjs GROUP CONSUMER');
const redis = new Redis(process.env.REGWORKER_REDIS_URL);

function handle(event) {
  const { idempotency_key: key = event.subject, outcome, errors = [] } = event.data;
  // An outcome holds the customer's credentials: store it like a secret, and don't log it.
  const what = outcome ? Object.keys(outcome).sort() : errors.map(({ code }) => code);
  console.log(event.type, key, ...what);
}

async function take([entry, fields]) {
  const event = JSON.parse(fields[fields.indexOf('event') + 1]);
  const remembered = `${group}:handled:${event.id}`;
  if (!(await redis.exists(remembered))) {
    handle(event);
    await redis.set(remembered, entry, 'EX', WEEK);
  }
  await redis.xack(STREAM, group, entry);
}

await redis.xgroup('CREATE', STREAM, group, '0', 'MKSTREAM').catch((error) => {
  if (!error.message.startsWith('BUSYGROUP')) throw error; // the group exists already
});
for (;;) {
  const [, left] = await redis.xautoclaim(
    STREAM, group, consumer, TAKE_OVER_AFTER, '0', 'COUNT', 50);
  const answer = await redis.xreadgroup(
    'GROUP', group, consumer, 'COUNT', 50, 'BLOCK', 2000, 'STREAMS', STREAM, '>');
  const fresh = answer ? answer[0][1] : [];
  for (const entry of [...left, ...fresh]) await take(entry);
}
