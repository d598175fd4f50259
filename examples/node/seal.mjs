// Send a job whose registration nobody can read on the way: sealed as JWE, with jose.
//
//     npm ci
//     REGWORKER_REDIS_URL=redis://127.0.0.1:6399/0 SEALING_KEY=2026-11:6Yd... \
//         node seal.mjs crm-8833 bradstreet@example.com
//
// SEALING_KEY is one `kid:base64url` of the workers' REGWORKER_SEALING_KEYS: a name and 32 bytes.
// Workers with REGWORKER_REQUIRE_SEALED=true refuse jobs in this stream that are not sealed.
import { Redis } from 'ioredis';
import { CompactEncrypt, base64url } from 'jose';

// Without it the client would connect to whatever listens on its default port.
for (const name of ['REGWORKER_REDIS_URL', 'SEALING_KEY']) {
  if (!process.env[name]) throw new Error(`set ${name}: see the first lines of this file`);
}

const [key, email] = process.argv.slice(2);
if (!key || !email) throw new Error('usage: node seal.mjs KEY EMAIL');
const registration = {
  customer: {
    address: { firstName: 'Sherlock', lastName: 'Holmes', email },
    privacyConsents: [12],
    password: 'I9bV2crS',
  },
};
const [kid, secret] = process.env.SEALING_KEY.split(':');
const sealed = await new CompactEncrypt(new TextEncoder().encode(JSON.stringify(registration)))
  // The kind of text, the job it belongs to, and which endpoints may get the result (`reply_to`).
  .setProtectedHeader({
    alg: 'dir',
    enc: 'A256GCM',
    kid,
    typ: 'registration',
    sub: `open2b/default/${key}`,
    aud: ['results'],
  })
  .encrypt(base64url.decode(secret));
const job = { provider: 'open2b', idempotency_key: key, registration: sealed };

const redis = new Redis(process.env.REGWORKER_REDIS_URL);
console.log(await redis.xadd('{reg}:jobs', '*', 'job', JSON.stringify(job)));
await redis.quit();
