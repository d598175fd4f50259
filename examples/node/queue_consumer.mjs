// Read results from a queue on RabbitMQ, with plain AMQP: an endpoint of kind `queue`.
//
//     npm ci
//     AMQP_URL=amqp://guest:guest@127.0.0.1:5672/%2F node queue_consumer.mjs crm.results
//
// The argument is the queue's name (REGWORKER_ENDPOINTS__<NAME>__QUEUE). The same event may arrive
// twice. So the program appends its id to the file HANDLED (default: handled.txt) before it
// acknowledges the message. If you have a database, store the id there, in the same transaction as
// the event's effects.
import amqp from 'amqplib';
import { appendFileSync, readFileSync } from 'node:fs';

// Without it the client would connect to whatever listens on its default port.
for (const name of ['AMQP_URL']) {
  if (!process.env[name]) throw new Error(`set ${name}: see the first lines of this file`);
}

const [queue] = process.argv.slice(2);
if (!queue) throw new Error('usage: node queue_consumer.mjs QUEUE');
const file = process.env.HANDLED ?? 'handled.txt';
appendFileSync(file, '');
const handled = new Set(readFileSync(file, 'utf8').split('\n'));

const connection = await amqp.connect(process.env.AMQP_URL);
const channel = await connection.createChannel();
// Declared as the workers declare it, in case that this program starts first.
await channel.assertQueue(queue, { durable: true, arguments: { 'x-queue-type': 'quorum' } });
await channel.prefetch(20);
await channel.consume(queue, (message) => {
  const event = JSON.parse(message.content.toString());
  if (!handled.has(event.id)) {
    console.log(event.type, event.data.idempotency_key ?? event.subject);
    appendFileSync(file, `${event.id}\n`);
    handled.add(event.id);
  }
  channel.ack(message);
});
console.log('waiting for events');
