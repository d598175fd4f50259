"""Send a registration job with nothing but redis-py: one XADD to the job stream.

    pip install redis
    REGWORKER_REDIS_URL=redis://127.0.0.1:6399/0 python produce.py crm-8836 forbes@example.com

Once XADD has answered, the job will have an outcome: a worker takes it from the stream and
publishes the result at the endpoints in `reply_to` (REPLY_TO: comma-separated names of endpoints;
default: results). A worker that refuses the job publishes that there, too. In doubt, run it again:
the same key with the same content is the same job, and one customer.
"""

import json
import os
import sys

import redis

if len(sys.argv) != 3 or not all(sys.argv):
    sys.exit("usage: python produce.py KEY EMAIL")
key, email = sys.argv[1:]
job = {
    "provider": "open2b",
    "idempotency_key": key,
    "registration": {
        "customer": {
            "address": {"firstName": "Sherlock", "lastName": "Holmes", "email": email},
            "privacyConsents": [12],
            "password": "I9bV2crS",
        }
    },
    "reply_to": os.environ.get("REPLY_TO", "results").split(","),
}
client = redis.Redis.from_url(os.environ["REGWORKER_REDIS_URL"], decode_responses=True)
# No MAXLEN: it would drop jobs that no worker has taken yet. Workers remove entries themselves.
print(client.xadd("{reg}:jobs", {"job": json.dumps(job)}))
