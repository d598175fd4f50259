"""Connections to the server of a URL; with Sentinels, to the present primary.

Each new connection checks what it has reached: a Sentinel cannot have a ledger, and a cluster's
node may be the wrong one (`cluster.py`). A server that Sentinels named is used only while it itself
says that it is a primary: not if it was demoted, or does not know yet that it was promoted.
"""

import asyncio
import socket
from collections.abc import Generator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,  # noqa: A004
    RedisError,
    ResponseError,
)
from redis.retry import Retry

from regworker import addresses, look_ups
from regworker.ledger.bounded import left
from regworker.ledger.cluster import QUESTIONS, Cluster, Place
from regworker.ledger.steps import carry, carry_async
from regworker.ledger.sync_connections import LeakProofPool

#: Seconds for one Sentinel to accept a connection, and to answer. There are others.
SENTINEL_TIMEOUT = 0.5

#: Seconds to connect, where a client has no limit of its own.
CONNECT_TIMEOUT = 5.0

#: For each connection of redis-py's. It would send its name and version to the server: a round trip
#: each. From version 8 on, it would also log in by HELLO, which not every server and proxy knows;
#: then its error would quote the password.
_OPTIONS: Mapping[str, Any] = {
    "protocol": 2,
    **dict.fromkeys(
        ["driver_info"] if find_spec("redis.driver_info") else ["lib_name", "lib_version"]
    ),
}


class WrongServer(ResponseError):  # noqa: N818
    """What was reached cannot have a ledger or a broker. The text says what to do."""


A_SENTINEL = (
    "this server is a Sentinel, which holds no data: name the service that it watches: "
    "sentinel://user:password@host:26379,host:26379/<service>/0"
)
A_CLUSTER = (
    "this server is a node of a Redis Cluster, which can be the ledger but not the broker: the "
    "broker's keys are in many slots. Set REGWORKER_BROKER_URL to RabbitMQ "
    "(amqp://user:password@host:5672/vhost) or to a Redis outside of the cluster"
)
BY_A_SOCKET = (
    "this server is a node of a Redis Cluster, whose nodes are found by host and port, not by a "
    "socket file: name nodes, as redis://user:password@host:6379,host:6379/0"
)
NO_CLUSTER = (
    "several hosts name the nodes of a Redis Cluster, and this server is in no cluster: name one "
    "server, or the Sentinels that watch it (sentinel://)"
)
ITS_DATABASE = "a Redis Cluster has only database 0: end the URL with /0"


class Sentinels:
    """Finds the primary through the Sentinels."""

    def __init__(self, hosts: tuple[Place, ...], service: str, options: Mapping[str, Any]) -> None:
        """`options`: how to connect to a Sentinel, as for redis-py's `Redis`.

        `fallback_username` and `fallback_password` among them are the server's own, for a Sentinel
        that requires a password if none is given.
        """
        self._service = service
        self._order = tuple(hosts)
        given = dict(options)
        names = {"username": "fallback_username", "password": "fallback_password"}
        self._fallback = {name: given.pop(key, None) for name, key in names.items()}
        self._options = given

    def describe(self) -> dict[str, str]:
        """A Sentinel's facts about the service, its quorum for example. Raises like `find`."""
        fault: Exception = ConnectionError("no Sentinel answered")
        for place in self._order:
            try:
                answer = self._ask(place)
            except (RedisError, OSError) as error:
                fault = error
            else:
                return {_text(name): _text(value) for name, value in _pairs(answer)}
        raise fault

    def find(self) -> Place:
        """The primary's host and port. Raises redis-py's `ConnectionError` if no Sentinel
        answers."""
        return carry(self._asking(), self._ask)

    async def find_async(self) -> Place:
        """As `find`."""
        return await carry_async(self._asking(), self._ask_async)

    def _asking(self) -> Generator[Place, Any, Place]:
        """The Sentinels to ask, one after another, until a majority agrees; returns the primary.

        Without a majority the answer of the latest failover counts: a Sentinel that was cut off
        still names the old primary.
        """
        votes: dict[Place, tuple[int, int]] = {}
        silent: list[Place] = []
        fault: Exception = ConnectionError("there is none")
        for place in self._order:
            try:
                answer = yield place
            except (RedisError, OSError) as error:
                fault = error
                silent.append(place)
                continue
            facts = {_text(name): _text(value) for name, value in _pairs(answer)}
            primary = facts["ip"], int(facts["port"])
            number, epoch = votes.get(primary, (0, 0))
            votes[primary] = number + 1, max(epoch, int(facts.get("config-epoch", 0)))
            if 2 * (number + 1) > len(self._order):
                break
        # Sentinels that did not answer are asked last from now on.
        self._order = (*(one for one in self._order if one not in silent), *silent)
        if votes:
            return max(votes, key=lambda one: votes[one][1])
        if isinstance(fault, ResponseError) and "no such master" in str(fault).lower():
            raise WrongServer(
                f"the Sentinels know no service {self._service!r}: use the name after `sentinel "
                "monitor` in their configuration"
            )
        if isinstance(fault, ResponseError) and "unknown command" in str(fault).lower():
            raise WrongServer(
                "this server is not a Sentinel: use redis:// or rediss:// for a server itself"
            )
        if isinstance(fault, AuthenticationError):
            raise WrongServer(
                "the Sentinels refuse the password: set it with the URL's options "
                "sentinel_username and sentinel_password"
            )
        raise ConnectionError(f"no Sentinel answered ({type(fault).__name__})")

    def _ask(self, place: Place) -> Any:
        limit = max(0.001, min(SENTINEL_TIMEOUT, left()))
        while True:
            client = redis.Redis(
                host=place[0],
                port=place[1],
                protocol=2,
                socket_timeout=limit,
                socket_connect_timeout=limit,
                retry=Retry(NoBackoff(), 0),
                **self._options,
            )
            _use(client.connection_pool, _SyncTcp)
            try:
                return client.execute_command("SENTINEL", "MASTER", self._service)  # type: ignore[no-untyped-call]
            except AuthenticationError as error:
                if not self._try_fallback(error):
                    raise
            finally:
                client.close()

    async def _ask_async(self, place: Place) -> Any:
        while True:
            client = redis.asyncio.Redis(
                host=place[0],
                port=place[1],
                protocol=2,
                socket_timeout=SENTINEL_TIMEOUT,
                socket_connect_timeout=SENTINEL_TIMEOUT,
                retry=AsyncRetry(NoBackoff(), 0),
                **self._options,
            )
            _use(client.connection_pool, _AsyncTcp)
            try:
                return await client.execute_command("SENTINEL", "MASTER", self._service)  # type: ignore[no-untyped-call]
            except AuthenticationError as error:
                if not self._try_fallback(error):
                    raise
            finally:
                await client.aclose()

    def _try_fallback(self, error: AuthenticationError) -> bool:
        """Whether to try again with the server's own password: the Sentinel requires one."""
        if self._options.get("password") or not self._fallback["password"]:
            return False
        if "required" not in str(error).lower():
            return False
        self._options = {**self._options, **self._fallback}
        return True


class _Looks:
    """A mix-in for redis-py's connection classes, which have no types for this."""

    host: str
    port: int

    def __init__(
        self,
        *args: Any,
        sentinels: Sentinels | None = None,
        cluster: Cluster | None = None,
        by_a_socket: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self._sentinels = sentinels
        self._cluster = cluster
        self._no_cluster = BY_A_SOCKET if by_a_socket else A_CLUSTER

    def _judge(self, hello: Any, fault: ResponseError | None) -> bool:
        """Raise if the server cannot be used; return whether it is a node of a cluster.

        `fault`: the error of selecting the database, if any.
        """
        facts = {_text(name): _text(value) for name, value in _pairs(hello)}
        if facts.get("mode") == "sentinel":
            raise WrongServer(A_SENTINEL)
        in_cluster = facts.get("mode") == "cluster"
        if in_cluster and self._cluster is None:
            raise WrongServer(self._no_cluster)
        if in_cluster and fault is not None:
            raise WrongServer(ITS_DATABASE)
        if not in_cluster and self._cluster is not None and self._cluster.several:
            raise WrongServer(NO_CLUSTER)
        if fault is not None:
            raise fault
        if self._sentinels is not None and facts.get("role", "master") != "master":
            raise ConnectionError("the server that the Sentinels name is a replica")
        return in_cluster


class _Sync(_Looks):
    def connect_check_health(self, *args: Any, **options: Any) -> None:
        if self._sock:  # type: ignore[attr-defined]
            return
        if self._sentinels is not None:
            self.host, self.port = self._sentinels.find()
        if self._cluster is None:
            super().connect_check_health(*args, **options)  # type: ignore[misc]
            return
        trying = self._cluster.places()
        self.host, self.port = next(trying)
        while True:
            try:
                super().connect_check_health(*args, **options)  # type: ignore[misc]
            except (RedisError, OSError) as error:
                self.host, self.port = trying.send(error)
            else:
                return

    def on_connect_check_health(self, check_health: bool = True) -> None:
        fault: ResponseError | None = None
        try:
            super().on_connect_check_health(check_health=check_health)  # type: ignore[misc]
        except ResponseError as error:  # a Sentinel does not know SELECT
            fault = error
        # Only this command shows a server's role without any permission.
        hello = self._answer("HELLO")
        # A proxy in between may not know it.
        if self._judge(() if isinstance(hello, Exception) else hello, fault):
            answers = [self._answer(*question) for question in QUESTIONS]
            self._cluster.judge((self.host, self.port), *answers)  # type: ignore[union-attr]

    def _answer(self, *command: str) -> Any:
        self.send_command(*command, check_health=False)  # type: ignore[attr-defined]
        try:
            return self.read_response()  # type: ignore[attr-defined]
        except ResponseError as error:
            return error


class _Async(_Looks):
    async def connect_check_health(self, *args: Any, **options: Any) -> None:
        if self.is_connected:  # type: ignore[attr-defined]
            return
        if self._sentinels is not None:
            self.host, self.port = await self._sentinels.find_async()
        if self._cluster is None:
            await super().connect_check_health(*args, **options)  # type: ignore[misc]
            return
        trying = self._cluster.places()
        self.host, self.port = next(trying)
        while True:
            try:
                await super().connect_check_health(*args, **options)  # type: ignore[misc]
            except (RedisError, OSError) as error:
                self.host, self.port = trying.send(error)
            else:
                return

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        # redis-py uses `asyncio.wait_for`. Before Python 3.12, that ignores a cancellation which
        # arrives when the command has just been written: the cancelled task would go on.
        task = asyncio.current_task()
        before = task.cancelling() if task else 0
        await super().send_packed_command(command, check_health)  # type: ignore[misc]
        if task and task.cancelling() > before:
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            raise asyncio.CancelledError

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        fault: ResponseError | None = None
        try:
            await super().on_connect_check_health(check_health=check_health)  # type: ignore[misc]
        except ResponseError as error:
            fault = error
        hello = await self._answer("HELLO")
        if self._judge(() if isinstance(hello, Exception) else hello, fault):
            answers = [await self._answer(*question) for question in QUESTIONS]
            self._cluster.judge((self.host, self.port), *answers)  # type: ignore[union-attr]

    async def _answer(self, *command: str) -> Any:
        await self.send_command(*command, check_health=False)  # type: ignore[attr-defined]
        try:
            return await self.read_response()  # type: ignore[attr-defined]
        except ResponseError as error:
            return error


class _SyncTcp(redis.Connection):
    """The last base of a connection class by TCP: it connects in a bounded time.

    redis-py looks names up without a limit, and gives each address the whole time.
    """

    def _connect(self) -> socket.socket:
        seconds = self.socket_connect_timeout or CONNECT_TIMEOUT
        made = look_ups.connect(self.host, int(self.port), seconds)
        made.settimeout(self.socket_timeout)
        return made


class _AsyncTcp(redis.asyncio.Connection):
    """The same for asyncio. redis-py gives all addresses of a name the time of one: if the first
    does not answer, none is reached. It also ends in a bounded time."""

    _made: socket.socket

    async def _connect(self) -> None:
        seconds = self.socket_connect_timeout or CONNECT_TIMEOUT
        self._made = await look_ups.connect_async(self.host, int(self.port), seconds)
        try:
            await super()._connect()  # type: ignore[no-untyped-call]
            look_ups.watch(self._made)  # newer versions of redis-py have set longer times
        except BaseException:
            self._made.close()
            raise

    async def disconnect(  # type: ignore[override]
        self, nowait: bool = False, **options: Any
    ) -> None:
        # redis-py would wait for the other side, which ends TLS too, and raise if it is gone.
        if (writer := self._writer) is not None:
            writer.transport.abort()
        await super().disconnect(nowait=True, **options)
        if writer is not None and not nowait:
            with suppress(OSError):
                await writer.wait_closed()

    def _connection_arguments(self) -> Mapping[str, Any]:
        tls = isinstance(self, redis.asyncio.SSLConnection)
        return {"sock": self._made, **({"server_hostname": self.host} if tls else {})}


def _made_of(tcp: type, kind: Any, *mixins: type) -> Any:
    """A connection class of redis-py's, with that base if it is by TCP."""
    bases: tuple[type, ...] = (kind,)
    if kind in tcp.__bases__:
        bases = (tcp,)
    elif issubclass(kind, tcp.__bases__):
        bases = (kind, tcp)
    return type(f"Looking{kind.__name__}", (*mixins, *bases), {})


def _use(pool: Any, tcp: type, *mixins: type) -> None:
    pool.connection_class = _made_of(tcp, pool.connection_class, *mixins)


def looking(connection_class: Any) -> Any:
    """A subclass of redis-py's connections that check what they reach; for threads."""
    return _made_of(_SyncTcp, connection_class, _Sync)


def sync_pool(url: str, **options: Any) -> redis.ConnectionPool:
    """A pool of such connections for a URL of the settings."""
    address = addresses.read(url)
    pool = LeakProofPool.from_url(
        address.redis_url(),
        **_finder(address),
        retry=Retry(NoBackoff(), 0),
        # Threads are the limit. redis-py counts those that it has made, also closed ones.
        **{"max_connections": 2**31, **_OPTIONS, **options},
    )
    _use(pool, _SyncTcp, _Sync)
    return pool


def async_pool(url: str, *, follow: bool = True, **options: Any) -> redis.asyncio.ConnectionPool:
    """The same for asyncio. Not `follow`: a cluster is refused, as for a broker."""
    address = addresses.read(url)
    pool = redis.asyncio.ConnectionPool.from_url(
        address.redis_url(),
        **(_finder(address) if follow or address.service else {}),
        retry=AsyncRetry(NoBackoff(), 0),
        **{**_OPTIONS, **options},
    )
    _use(pool, _AsyncTcp, _Async)
    return pool


async def close_idle(pool: redis.asyncio.ConnectionPool) -> None:
    """Close the connections that nobody uses, without a turn of the loop: with redis-py's own
    `disconnect`, a task could get one of them meanwhile."""
    lent: Any = pool
    for connection in tuple(lent._available_connections):
        await connection.disconnect(nowait=True)


def async_client(url: str, **options: Any) -> redis.asyncio.Redis:
    """A separate client for a URL of the settings."""
    return redis.asyncio.Redis.from_pool(async_pool(url, **options))


def sentinel_options(address: addresses.Address) -> dict[str, Any]:
    """How to connect to the Sentinels of an address, for `Sentinels`."""
    found: dict[str, Any] = {
        "username": address.options.get("sentinel_username"),
        "password": address.options.get("sentinel_password"),
        "fallback_username": address.username,
        "fallback_password": address.password,
    }
    if address.tls:
        files = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
        found.update({name: address.options[name] for name in files if name in address.options})
        found.update(ssl=True, ssl_cert_reqs="required", ssl_check_hostname=True)
    return {name: value for name, value in found.items() if value is not None}


def _finder(address: addresses.Address) -> dict[str, Any]:
    """Finds the server for each connection, for `_Looks`."""
    if address.service:
        options = sentinel_options(address)
        return {"sentinels": Sentinels(address.hosts, address.service, options)}
    if address.scheme == "unix":
        return {"by_a_socket": True}
    return {"cluster": Cluster(address.hosts)}


def _pairs(flat: Any) -> list[tuple[Any, Any]]:
    """A server's answer, in RESP 2 or 3, as pairs."""
    if isinstance(flat, Mapping):
        return list(flat.items())
    return list(zip(flat[::2], flat[1::2], strict=False))


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
