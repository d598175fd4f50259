"""Read results from a queue on RabbitMQ, with plain AMQP: an endpoint of kind `queue`.

    pip install pika
    AMQP_URL=amqp://guest:guest@127.0.0.1:5672/%2F python queue_consumer.py crm.results

The argument is the queue's name (REGWORKER_ENDPOINTS__<NAME>__QUEUE). The same event may arrive
twice. So the program inserts its id into BOOKS (default: books.db), in the same transaction as the
event's effects, before it acknowledges the message.
"""

import json
import os
import sqlite3
import sys

import pika

if len(sys.argv) != 2 or not all(sys.argv):
    sys.exit("usage: python queue_consumer.py QUEUE")
queue = sys.argv[1]
books = sqlite3.connect(os.environ.get("BOOKS", "books.db"))
books.execute("CREATE TABLE IF NOT EXISTS events (id PRIMARY KEY, body)")

connection = pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"]))
channel = connection.channel()
# Declared as the workers declare it, in case that this program starts first.
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
