// Hand in a registration job as a Celery task: `registrations.register`, with celery-node.
//
//     npm ci
//     BROKER_URL=redis://127.0.0.1:6399/0 node celery.mjs crm-8841 holmes@example.com
//
// BROKER_URL is the workers' REGWORKER_BROKER_URL, or else their REGWORKER_REDIS_URL. Any client
// that speaks Celery's message protocol can do it: one argument, the job, on queue `registrations`.
//
// celery-node always declares the queue, as a classic one. So on RabbitMQ let the virtual host's
// default queue type be `quorum`, as which workers declare it. RabbitMQ from 4.1 on refuses its old
// AMQP library unless BROKER_URL ends in `?frameMax=8192`.
import celery from 'celery-node';
import { randomUUID } from 'node:crypto';

// Without it the client would take whatever listens on its default port.
for (const name of ['BROKER_URL']) {
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
};
const broker = process.env.BROKER_URL;
// No result is kept in Celery's backend: outcomes come to the endpoints. It wants an URL all the same.
const client = celery.createClient(broker, broker, 'registrations');
await client.isReady();
// What `applyAsync` does, but for waiting until the broker has it.
const { body, headers, properties } = client.createTaskMessage(
  randomUUID(), 'registrations.register', [job], {});
await client.broker.publish(body, '', 'registrations', headers, properties);
await client.disconnect();
console.log('sent', key);
