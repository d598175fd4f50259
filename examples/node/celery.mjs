// Send a registration job as a Celery task: `registrations.register`, with celery-node.
//
//     npm ci
//     BROKER_URL=redis://127.0.0.1:6399/0 node celery.mjs crm-8835 jones@example.com
//
// BROKER_URL is the workers' REGWORKER_BROKER_URL, or their REGWORKER_REDIS_URL if that is not set.
// Any client that speaks Celery's message protocol can do this: one argument, the job, on queue
// `registrations`.
//
// celery-node always declares the queue, as a classic one; workers declare it as a quorum queue. So
// on RabbitMQ, set the virtual host's default queue type to `quorum`. RabbitMQ 4.1 and later refuse
// celery-node's old AMQP library unless BROKER_URL ends in `?frameMax=8192`.
import celery from 'celery-node';
import { randomUUID } from 'node:crypto';

// Without it the client would connect to whatever listens on its default port.
for (const name of ['BROKER_URL']) {
  if (!process.env[name]) throw new Error(`set ${name}: see the first lines of this file`);
}

const [key, email] = process.argv.slice(2);
if (!key || !email) throw new Error('usage: node celery.mjs KEY EMAIL');
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
};
const broker = process.env.BROKER_URL;
// Workers store no result in Celery's backend, but the client demands its URL.
const client = celery.createClient(broker, broker, 'registrations');
await client.isReady();
// As `applyAsync` does, but this waits until the message has been sent.
const { body, headers, properties } = client.createTaskMessage(
  randomUUID(), 'registrations.register', [job], {});
await client.broker.publish(body, '', 'registrations', headers, properties);
await client.disconnect();
console.log('sent', key);
