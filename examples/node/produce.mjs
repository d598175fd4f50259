// Hand in a registration job with ioredis: one XADD to the job stream.
//
//     npm ci
//     REGWORKER_REDIS_URL=redis://127.0.0.1:6399/0 node produce.mjs crm-8841 holmes@example.com
//
// Once XADD has answered, the job will have an outcome: workers take it from the stream, and answer
// on `reply_to` (REPLY_TO: names of endpoints, with commas; default: results), also where they
// refuse it. In doubt, run it again: the same key with the same content is the same job.
import { Redis } from 'ioredis';

// Without it the client would take whatever listens on its default port.
for (const name of ['REGWORKER_REDIS_URL']) {
  if (!process.env[name]) throw new Error(`set ${name}: see the first lines of this file`);
}

const [key, email] = process.argv.slice(2);
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
// No MAXLEN: what stands in this stream is not done with, and workers take it out themselves.
console.log(await redis.xadd('{reg}:jobs', '*', 'job', JSON.stringify(job)));
await redis.quit();
