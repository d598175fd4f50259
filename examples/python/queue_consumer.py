"""Read results from a queue on RabbitMQ, with plain AMQP: an endpoint of kind `queue`.

    pip install pika
    AMQP_URL=amqp://guest:guest@127.0.0.1:5672/%2F python queue_consumer.py crm.results

The argument is the queue's name (REGWORKER_ENDPOINTS__<NAME>__QUEUE). The same event may come
again: it is looked up by its id in BOOKS (default: books.db), where it is entered together with
what it leads to, before the message is acknowledged.
"""

import json
import os
import sqlite3
import sys

import pika

queue = sys.argv[1]
books = sqlite3.connect(os.environ.get("BOOKS", "books.db"))
books.execute("CREATE TABLE IF NOT EXISTS events (id PRIMARY KEY, body)")

connection = pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"]))
channel = connection.channel()
# As the workers declare it, should this be here first.
channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
channel.basic_qos(prefetch_count=20)
print("waiting for events", flush=True)
for method, _, body in channel.consume(queue):
    event = json.loads(body)
    with books:
        entered = books.execute("INSERT OR IGNORE INTO events VALUES (?, ?)", (event["id"], body))
        if entered.rowcount:
            key = event["data"].get("idempotency_key", event["subject"])
            print(event["type"], key, flush=True)
    channel.basic_ack(method.delivery_tag)
