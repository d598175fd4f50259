// Registers a customer with the generated client, as a service that has only the document would.
// Prints its results as JSON. Environment: GATEWAY (its URL), TOKEN, EMAIL.
import { createClient, createConfig } from './generated/client';
import { cancelJob, enqueueJob, enqueueJobs, findJob, getJob, health, readEvents } from './generated';
import type { Event, Job } from './generated';

const { GATEWAY: baseUrl = '', TOKEN: auth = '', EMAIL: email = '' } = process.env;
const client = createClient(createConfig({ baseUrl, auth }));

const job: Job = {
  provider: 'open2b',
  registration: {
    customer: {
      address: { firstName: 'Ada', lastName: 'Lovelace', email },
      password: 'I9bV2crS',
      privacyConsents: [1],
    },
  },
};

async function main(): Promise<void> {
  const seen: Record<string, unknown> = {};
  seen.health = (await health({ client })).response?.status;
  const start = (await readEvents({ client, throwOnError: true })).data.cursor;

  const headers = { 'Idempotency-Key': '"generated-1"' };
  const accepted = await enqueueJob({ client, body: job, headers, throwOnError: true });
  const repeated = await enqueueJob({ client, body: job, headers, throwOnError: true });
  seen.statuses = [accepted.response.status, repeated.response.status];
  seen.same = accepted.data.job_id === repeated.data.job_id;
  const path = { job_id: accepted.data.job_id };

  const found = await getJob({ client, path, query: { wait: 60 }, throwOnError: true });
  seen.state = found.data.state;
  const query = { provider: 'open2b', key: 'generated-1' };
  seen.by_key = (await findJob({ client, query, throwOnError: true })).data.job_id === path.job_id;

  const after = { after: start, wait: 60 };
  const events: Event[] = (await readEvents({ client, query: after, throwOnError: true })).data.events;
  seen.events = events.map((event) => event.type);

  const refused = await enqueueJob({ client, body: { ...job, metadata: { shop: 7 } }, headers });
  seen.conflict = [refused.response?.status, refused.error?.verdict];
  const over = await cancelJob({ client, path });
  seen.cancelled = [over.response?.status, over.error?.verdict];

  const line = JSON.stringify({ ...job, idempotency_key: 'generated-1' });
  const lines = await enqueueJobs({ client, body: `${line}\n`, bodySerializer: null, parseAs: 'text', throwOnError: true });
  seen.batch = String(lines.data).trim().split('\n').map((one) => JSON.parse(one).status);
  console.log(JSON.stringify(seen));
}

main().catch((error: unknown) => {
  console.error(error);
  process.exit(1);
});
