// Send a registration job with ioredis: one XADD to the job stream.
//
//     npm ci
//     REGWORKER_REDIS_URL=redis://127.0.0.1:6399/0 node produce.mjs crm-8834 hopkins@example.com
//
// Once XADD has answered, the job will have an outcome: a worker takes it from the stream and
// publishes the result at the endpoints in `reply_to` (REPLY_TO: comma-separated names of endpoints;
// default: results). A worker that refuses the job publishes that there, too. In doubt, run it again:
// the same key with the same content is the same job.
import { Redis } from 'ioredis';

// Without it the client would connect to whatever listens on its default port.
for (const name of ['REGWORKER_REDIS_URL']) {
  if (!process.env[name]) throw new Error(`set ${name}: see the first lines of this file`);
}

const [key, email] = process.argv.slice(2);
if (!key || !email) throw new Error('usage: node produce.mjs KEY EMAIL');
const job = {
  provider: 'open2b',
  idempotency_key: key,
  registration: {
    customer: {
      address: { firstName: 'Sherlock', lastName: 'Holmes', email },
      privacyConsents: [12],
      password: 'I9bV2crS',
    },
  },
  reply_to: (process.env.REPLY_TO ?? 'results').split(','),
};
const redis = new Redis(process.env.REGWORKER_REDIS_URL);
// No MAXLEN: it would drop jobs that no worker has taken yet. Workers remove entries themselves.
console.log(await redis.xadd('{reg}:jobs', '*', 'job', JSON.stringify(job)));
await redis.quit();
