"""Every method that we override exists in the library, with the same parameters.

Otherwise an upgrade that renames one would silently restore the library's behaviour."""

import importlib
import inspect
import pkgutil
from importlib.metadata import version
from types import ModuleType
from typing import Any

import amqp
import pytest
import redis.asyncio

import regworker
import worker
from regworker.ledger import bounded, servers, sync_connections
from worker.broker import amqps, redis_transport
from worker.process import consumer, remote_control, wake_requests

LIBRARIES = {
    *("celery", "kombu", "amqp", "redis", "aiohttp"),
    *("pydantic_settings", "typer", "greenlet", "uvicorn"),
}

#: These act when they are imported; only a process's start imports them.
STARTS = {"worker.cli.__main__"}


def modules() -> list[ModuleType]:
    """All modules of both distributions."""
    found = [
        one.name
        for package in (regworker, worker)
        for one in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]
    return [importlib.import_module(name) for name in found if name not in STARTS]


#: Names that only our classes have; all others in these classes are overrides.
OWN = {
    "Channel": {
        *("expendable", "put_many", "probe", "set_wrong_keys_aside", "put_back_as", "lists"),
        *("as_it_came", "queue_of"),
        *("take", "_put_back", "expendable_queues", "sentinels", "master_name", "sentinel_kwargs"),
    },
    "Connection": {"leaving"},
    "QoS": {"_kept_in_mind"},
    "TooFewReplicas": {"__init__"},
    "LeakProofPool": {"_ended", "end"},
    "_Sync": {"_answer"},
    "_Async": {"_answer"},
    "_AsyncTcp": {"_made"},
    "App": {"_broker"},
    "Guard": {"__init__"},
    "Consumer": {
        *("_room", "_free", "set_aside", "_look", "_tick", "_consumes", "_pause", "_mailbox"),
        *("loop", "_queue_of", "_own", "_select", "_leave_out", "_try_again", "_wake_reader"),
        *("_room_for_wakeups", "_claim_broker", "_whose_broker"),
    },
    "WakeRequest": {"_ignore_result"},
    "TaskPool": {"busy", "_start", "_first", "_done", "_tell_when_idle", "hub_waits"},
    "Box": {"_receive", "_found", "_answer"},
    "OurQueue": {"difference"},
    "Connector": {"__init__", "lend"},
    "Watched": {
        *("settled", "write", "rest", "_quiet", "_give_up", "_in_a_message", "_stray", "_doubt"),
        *("unsent", "_in_order", "_has_more", "_interim", "fault"),
    },
    "BoundedConnection": {
        *("held", "_received", "_expect", "_go_on", "_hold", "_parse", "_fault", "_make_room"),
        *("_await", "_await_another", "_stop", "_read", "_end", "_clock", "_unread", "_begun"),
        *("_await_reader", "_still_unread"),
        *("_reading", "_body_awaited", "_idle_since", "_rest", "_was_held"),
    },
    "_Flow": {"__init__"},
    "_Server": {"__init__", "_protocol"},
    "_Environment": {"__init__"},
    "LookUps": {"addresses"},
    "_Guard": {"__init__", "open_socket", "check_target", "_check"},
    "LazyGroup": {"table"},
    "_Commands": {"table"},
    "Settings": {
        *("_lengths", "_only_loop", "_secured", "_consistent", "_streams_agree"),
        *("_apart", "_to_known", "_known", "each_ledger", "_of_its_ledger"),
        *("_ways_out", "way_out", "files", "broker", "streams", "delivered", "endpoint", "load"),
        "load_for_client",
    },
}


#: Mixins, and a connection class that each is combined with.
MIXINS: dict[type, type] = {
    bounded._Bounded: redis.Connection,
    sync_connections._Exact: redis.Connection,
    servers._Sync: redis.Connection,
    servers._Async: redis.asyncio.Connection,
    amqps.Encrypted: amqp.Connection,
}


def overrides() -> list[tuple[type, str]]:
    """Each of our classes with a library's base class, and each name that it defines."""
    found = [
        (one, name)
        for one in MIXINS
        for name in vars(one)
        if inspect.isfunction(vars(one)[name]) and not _skipped(one, name)
    ]
    for module in modules():
        for one in vars(module).values():
            # `type(one)`, because Celery's tasks report another `__class__`.
            if not issubclass(type(one), type) or one.__module__ != module.__name__:
                continue
            # An error class overrides nothing: only our code makes or calls it.
            if issubclass(one, Exception):
                continue
            if LIBRARIES.isdisjoint(base.__module__.partition(".")[0] for base in one.__mro__[1:]):
                continue
            found += [
                (one, name) for name in vars(one) if name != "_abc_impl" and not _skipped(one, name)
            ]
    return found


def _skipped(one: type, name: str) -> bool:
    own = name in OWN.get(one.__name__, ())
    return own or (name.startswith("__") and name != "__init__")


OVERRIDES = overrides()


@pytest.mark.parametrize(("one", "name"), OVERRIDES, ids=lambda one: getattr(one, "__name__", one))
def test_an_overridden_name_is_its_parents_and_takes_the_same(one: Any, name: str) -> None:
    """Parameters have the same names and order, except where ours accepts any."""
    theirs_first = (*MIXINS[one].__mro__,) if one in MIXINS else one.__mro__[1:]
    parent = next((base for base in theirs_first if name in vars(base)), None)
    assert parent is not None, f"{one.__name__}.{name} overrides nothing"
    ours, theirs = vars(one)[name], vars(parent)[name]
    if not inspect.isfunction(ours) or not inspect.isfunction(theirs):
        assert not inspect.isfunction(ours)
        return
    mine = inspect.signature(ours).parameters
    if any(p.kind is p.VAR_POSITIONAL for p in mine.values()):
        return
    his = inspect.signature(theirs).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in mine.values())
    assert [n for n in mine if n in his] == [n for n in his if n in mine]
    missing = {n for n, p in his.items() if n not in mine and p.kind is not p.VAR_KEYWORD}
    assert takes_any or not missing, f"does not take {missing}"
    # A library's method with **kwargs may be called with parameters that only ours has.
    if not any(p.kind in {p.VAR_POSITIONAL, p.VAR_KEYWORD} for p in his.values()):
        assert {n for n, p in mine.items() if n not in his and p.kind is not p.VAR_KEYWORD} == set()


#: Names that we call or set, and do not override.
USED = [
    (redis_transport.stock.Channel, "_lookup _get_message_priority _q_for_pri _handle_message"),
    (
        redis_transport.stock.Channel,
        "_create_client _flush_brpop_reauth _brpop_read conn_or_acquire",
    ),
    (redis_transport.stock.QoS, "_remove_from_indices _flush restore_unacked pipe_or_acquire"),
    (redis.connection.Connection, "connect_check_health on_connect_check_health"),
    (redis.asyncio.Connection, "connect_check_health on_connect_check_health is_connected"),
    (redis_transport.stock, "SentinelTransport"),
    (redis_transport.stock.Transport, "_deliver on_readable register_with_event_loop"),
    (consumer.CeleryConsumer, "_flush_events ensure_connected call_soon update_strategies"),
    (consumer.CeleryConsumer.Blueprint, "default_steps"),
    (remote_control.Pidbox, "stop shutdown"),
    (
        wake_requests.trace,
        "fast_trace_task TraceInfo ExceptionInfo traceback_clear task_has_custom",
    ),
    (wake_requests.state, "requests active_requests total_count all_total_count"),
    (wake_requests.TaskRequest, "_context"),
]


@pytest.mark.parametrize(("one", "names"), USED, ids=lambda one: getattr(one, "__name__", one))
def test_a_name_that_is_relied_on_is_there(one: Any, names: str) -> None:
    """This includes private names."""
    assert [name for name in names.split() if not hasattr(one, name)] == []


def test_celery_says_whether_its_prefetch_count_is_restored() -> None:
    """Without that, wake-ups take Celery's own, longer way."""
    assert f"self.{consumer.RESTORED} = True" in inspect.getsource(consumer.CeleryConsumer.__init__)


def test_celerys_step_for_remote_control_is_the_one_that_is_replaced() -> None:
    """It is listed by its name among the consumer's steps."""
    steps = consumer.Consumer.Blueprint.default_steps
    assert "worker.process.remote_control:Control" in steps
    assert not [one for one in steps if "DelayedDelivery" in one]
    celerys = consumer.CeleryConsumer.Blueprint.default_steps
    assert [one for one in celerys if one.endswith(":DelayedDelivery")]
    assert "celery.worker.consumer.control:Control" not in steps


def test_celery_and_kombu_are_of_the_version_that_was_read() -> None:
    """A developer who raises this limit must check the overrides again."""
    for library in ("celery", "kombu"):
        assert version(library).startswith("5.7.")
