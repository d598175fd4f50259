"""Celery, with Redis as broker and result backend ("First Steps with Celery")."""

from collections.abc import Iterable

from celery import Celery

from benchmarks.contestants.calling import Body, caller, redis_url, tuned

app = Celery("bench", broker=redis_url(), backend=redis_url())
if tuned():
    # One client of the result store for all threads; by default there is one for each task.
    app.conf.result_backend_thread_safe = True

call = caller()


@app.task(name="register")  # type: ignore[untyped-decorator]
def register(body: Body) -> Body:
    """Register a customer."""
    return call(body)


class Client:
    """Enqueues."""

    def enqueue(self, bodies: Iterable[Body]) -> list[str]:
        """With `delay`; returns the keys of the results."""
        return [f"celery-task-meta-{register.delay(body).id}" for body in bodies]


def client() -> Client:
    """A client in this process."""
    return Client()
