"""Hand in a registration job with nothing but redis-py: one XADD to the job stream.

    pip install redis
    REGWORKER_REDIS_URL=redis://127.0.0.1:6399/0 python produce.py crm-8841 holmes@example.com

Once XADD has answered, the job will have an outcome: workers take it from the stream, and answer on
`reply_to` (REPLY_TO: names of endpoints, with commas; default: results), also where they refuse it.
In doubt, run it again: the same key with the same content is the same job, and one customer.
"""

import json
import os
import sys

import redis

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
# No MAXLEN: what stands in this stream is not done with, and workers take it out themselves.
print(client.xadd("{reg}:jobs", {"job": json.dumps(job)}))
