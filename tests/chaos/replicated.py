"""A ledger that fails over: a primary, two replicas and three Sentinels, all behind links.

Every server announces its link's port, so that all connections to it, of a client, a replica or a
Sentinel, go through the proxy. The source port shows who opened a connection: so one replica can be
held back, or a primary cut off together with a Sentinel and a worker.
"""

import os
import shutil
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from tests.chaos.proxy import Proxy, free_port
from tests.sentinels import Server
from worker.cli.local import stack

SERVICE = "ledger"
REPLICAS, WATCHERS = 2, 3

#: Milliseconds. Short, so that a run has many failovers; production has 5000 or so. Longer than an
#: overloaded machine delays a server, or it would cause failovers by itself.
DOWN_AFTER, FAILOVER_TIMEOUT = 1000, 2000

#: Seconds of writes that a power cut removes from the file with `everysec`.
UNSYNCED = 1.0

#: Seconds until all servers must follow one primary again. An overloaded machine delays everything
#: for many seconds.
PATIENCE = 180.0


class Owners:
    """Which connections belong to given processes, by the kernel's tables."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = tuple(pids)

    def __call__(self, source: int, target: int) -> bool:
        """Whether one of the processes opened the connection between these ports."""
        inode = _inode(source, target)
        return any(f"socket:[{inode}]" in _files(pid) for pid in self._pids)

    def others(self, source: int, target: int) -> bool:
        """Whether another process opened it."""
        return not self(source, target)


def _inode(source: int, target: int) -> int | None:
    """The inode of the connection's end at `source`.

    Queried for this connection alone (`sock_diag(7)`): links query each connection that they
    accept, and the list of all connections, `/proc/net/tcp`, takes the kernel milliseconds.
    """
    here = socket.inet_aton("127.0.0.1").ljust(16, b"\0")
    ends = struct.pack("!HH", source, target) + here + here
    body = struct.pack("=BBBBI", socket.AF_INET, socket.IPPROTO_TCP, 0, 0, 0xFFF) + ends
    body += struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
    head = struct.pack("=IHHII", _HEAD + len(body), _BY_FAMILY, _REQUEST, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as kernel:
        kernel.send(head + body)
        answer = kernel.recv(8192)
    if struct.unpack_from("=IHHII", answer)[1] != _BY_FAMILY:
        return None  # no such connection
    return int(struct.unpack_from("=I", answer, _HEAD + _INODE)[0])


#: From Linux's `sock_diag.h` and `inet_diag.h`: names, the length of a header, the inode's offset.
_SOCK_DIAG, _BY_FAMILY, _REQUEST, _HEAD, _INODE = 4, 20, 1, 16, 68


def _files(pid: int) -> Iterator[str]:
    """The open files of a process."""
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                yield str(entry.readlink())


@dataclass
class ReplicatedStore:
    """Used in place of a single `Store`."""

    folder: Path
    proxy: Proxy
    fsync: str
    options: dict[str, str] = field(default_factory=dict)
    clock: None = None
    servers: list[Server] = field(default_factory=list)
    sentinels: list[Server] = field(default_factory=list)
    _sizes: deque[tuple[float, Path, int]] = field(default_factory=lambda: deque(maxlen=400))
    _over: threading.Event = field(default_factory=threading.Event)

    # -- for the cluster ---------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The URL for clients."""
        hosts = ",".join(f"127.0.0.1:{self._port(one)}" for one in self.sentinels)
        return f"sentinel://{hosts}/{SERVICE}/0"

    def start(self) -> None:
        """Start what does not run; ready when all servers follow one primary."""
        if not self.servers:
            self._begin()
        for one in [*self.servers, *self.sentinels]:
            self.revive(one)
        self.wait_until_whole()

    def kill(self) -> None:
        """Kill all servers."""
        self._over.set()
        for one in [*self.sentinels, *self.servers]:
            one.stop()

    # -- roles -------------------------------------------------------------------------------

    @property
    def primary(self) -> Server:
        """The primary by the majority of the Sentinels."""
        named = self.named()
        return next(one for one in self.servers if self._port(one) == named)

    def named(self) -> int:
        """The port of its link."""
        ports = [port for one in self.sentinels if (port := int(self._told(one).get("port", 0)))]
        if not ports:
            raise redis.ConnectionError("no Sentinel answers")
        return max(set(ports), key=ports.count)

    @property
    def failovers(self) -> int:
        """How often another server became the primary, by the Sentinels' logs."""
        logs = [(one.folder / "log").read_text() for one in self.sentinels]
        return max(log.count(" +switch-master ") for log in logs)

    def replicas_of(self, primary: Server) -> list[Server]:
        """All other servers."""
        return [one for one in self.servers if one is not primary]

    def _told(self, sentinel: Server) -> dict[str, str]:
        with suppress(redis.RedisError), sentinel.client() as client:
            replies: Any = client.execute_command("SENTINEL", "MASTER", SERVICE)
            texts = [one.decode() for one in replies]
            return dict(zip(texts[::2], texts[1::2], strict=True))
        return {}

    # -- faults ------------------------------------------------------------------------------

    def cut_power(self, server: Server) -> None:
        """kill -9; with `everysec` the end of its file, which was never synced, is removed."""
        synced = time.monotonic() - UNSYNCED
        server.stop()
        if self.fsync == "always":
            return
        sizes = {path: size for at, path, size in list(self._sizes) if at <= synced}
        for log in (server.folder / "appendonlydir").glob("*.incr.aof"):
            if log in sizes and sizes[log] < log.stat().st_size:
                os.truncate(log, sizes[log])

    def revive(self, server: Server, *, follows: Server | None = None) -> None:
        """Start it on its files, if it does not run; as a replica at once, if `follows` is
        given."""
        if server.process is None or server.process.poll() is not None:
            watches = server in self.sentinels
            more = ["--sentinel"] if watches else []
            if follows is not None:
                more = ["--replicaof", f"127.0.0.1 {self._port(follows)}"]
            server.start(*more)

    def hold(self, primary: Server, replicas: Iterable[Server], *, delay: float = 0.0) -> None:
        """Hold back or slow down the primary's data to these replicas."""
        theirs = Owners(pid for one in replicas if (pid := _pid(one)))
        if delay:
            self.proxy.do("slow_some", self._link(primary), theirs, delay)
        else:
            self.proxy.do("hold_some", self._link(primary), theirs)

    def cut(self, primary: Server, replicas: Iterable[Server]) -> None:
        """Reset the links of these replicas."""
        theirs = Owners(pid for one in replicas if (pid := _pid(one)))
        self.proxy.do("reset_some", self._link(primary), theirs)

    def partition(self, primary: Server, sentinel: Server, *pids: int) -> None:
        """Cut a primary off from everything except one Sentinel and these processes."""
        inside = Owners([_pid(primary), _pid(sentinel), *pids])
        for one in [*self.servers, *self.sentinels]:
            cut_off = inside.others if one in (primary, sentinel) else inside.__call__
            self.proxy.do("hold_some", self._link(one), cut_off)

    def heal(self, how: str = "release") -> None:
        """All links forward data again."""
        for one in [*self.servers, *self.sentinels]:
            self.proxy.do("heal_some", self._link(one), how)

    def copy(self, server: Server, to: Path) -> None:
        """Copy its files, as a backup."""
        shutil.rmtree(to, ignore_errors=True)
        shutil.copytree(server.folder / "appendonlydir", to)

    def restore(self, primary: Server, copy: Path) -> None:
        """Power is cut everywhere; the primary starts on a copy, the replicas without data.

        The Sentinels start last: they could promote a replica that has no data yet.
        """
        for one in self.sentinels:
            one.stop()
        for one in self.replicas_of(primary):
            one.stop()
        primary.stop()
        for one in self.servers:
            shutil.rmtree(one.folder / "appendonlydir", ignore_errors=True)
            (one.folder / "dump.rdb").unlink(missing_ok=True)
        shutil.copytree(copy, primary.folder / "appendonlydir")
        self.revive(primary)
        for one in self.replicas_of(primary):
            self.revive(one, follows=primary)
        stack.until(lambda: self._all_follow(primary), "replicas of the copy", PATIENCE)
        for one in self.sentinels:
            self.revive(one)

    def follow(self, replica: Server, primary: Server) -> None:
        """Make it a replica, as the Sentinels do after a while."""
        with suppress(redis.RedisError), replica.client() as client:
            client.replicaof("127.0.0.1", self._port(primary))

    # -- waiting -----------------------------------------------------------------------------

    def wait_for_failover(self, before: Server, seconds: float = PATIENCE) -> None:
        """Wait until the Sentinels name another primary, and it answers."""

        def followed() -> bool:
            with suppress(redis.RedisError):
                now = self.primary
                return now is not before and now.info()["role"] == "master"
            return False

        stack.until(followed, "another primary", seconds)

    def wait_until_whole(self, seconds: float = PATIENCE, *, demotes: bool = False) -> None:
        """Wait until all run, follow one primary, and every Sentinel knows all servers.

        `demotes`: a second server that considers itself the primary is made a replica at once.
        """

        def whole() -> bool:
            if demotes:
                self._demote()
            return self._whole()

        stack.until(whole, "one primary that all follow", seconds)

    def _demote(self) -> None:
        if any("failover" in self._told(one).get("flags", "") for one in self.sentinels):
            return  # the second primary may be the one that they have chosen
        with suppress(redis.RedisError):
            primary = self.primary
            if primary.info()["role"] == "master":
                for one in self.replicas_of(primary):
                    if one.info()["role"] == "master":
                        self.follow(one, primary)

    def _whole(self) -> bool:
        replies = [self._told(one) for one in self.sentinels]
        known = [(one.get("port"), one.get("num-slaves"), one.get("flags")) for one in replies]
        if set(known) != {(known[0][0], str(REPLICAS), "master")}:
            return False
        if {one["num-other-sentinels"] for one in replies} != {str(WATCHERS - 1)}:
            return False
        with suppress(redis.RedisError):
            return self._all_follow(self.primary)
        return False

    def _all_follow(self, primary: Server) -> bool:
        with suppress(redis.RedisError):
            others = [one.info() for one in self.replicas_of(primary)]
            return primary.info()["role"] == "master" and all(
                (other["role"], other.get("master_port"), other.get("master_link_status"))
                == ("slave", self._port(primary), "up")
                for other in others
            )
        return False

    # -- internal ----------------------------------------------------------------------------

    def _begin(self) -> None:
        for number in range(REPLICAS + 1):
            options = {
                "bind": "127.0.0.1",
                "appendonly": "yes",
                "appendfsync": self.fsync,
                "maxmemory-policy": "noeviction",
                "save": '""',
                "repl-diskless-sync-delay": "0",
                "repl-timeout": "5",
                "repl-ping-replica-period": "1",
                **self.options,
            }
            self.servers.append(self._made(f"server-{number}", options))
        primary = self.servers[0]
        port = self._port(primary)
        self.revive(primary)
        for one in self.replicas_of(primary):
            one.options["replicaof"] = f"127.0.0.1 {port}"
            self.revive(one)
        for number in range(1, WATCHERS + 1):
            options = {
                "bind": "127.0.0.1",
                "sentinel monitor": f"{SERVICE} 127.0.0.1 {port} {WATCHERS // 2 + 1}",
                "sentinel down-after-milliseconds": f"{SERVICE} {DOWN_AFTER}",
                "sentinel failover-timeout": f"{SERVICE} {FAILOVER_TIMEOUT}",
                "sentinel parallel-syncs": f"{SERVICE} {REPLICAS}",
            }
            self.sentinels.append(self._made(f"sentinel-{number}", options))
        if self.fsync != "always":
            threading.Thread(target=self._watch_files, name="files", daemon=True).start()

    def _made(self, name: str, options: dict[str, str]) -> Server:
        server = Server(name, self.folder / name, free_port(), options)
        port = self.proxy.add(f"ledger.{name}", server.port).port
        kind = "sentinel" if name.startswith("sentinel") else "replica"
        options |= {f"{kind} announce-ip": "127.0.0.1", f"{kind} announce-port": str(port)}
        if kind == "replica":
            for what in ("ip", "port"):
                options[f"replica-announce-{what}"] = options.pop(f"replica announce-{what}")
        return server

    def _port(self, server: Server) -> int:
        return self.proxy.links[self._link(server)].port

    def _link(self, server: Server) -> str:
        return f"ledger.{server.name}"

    def _watch_files(self) -> None:
        while not self._over.wait(0.05):
            for one in self.servers:
                with suppress(OSError):
                    for log in (one.folder / "appendonlydir").glob("*.incr.aof"):
                        self._sizes.append((time.monotonic(), log, log.stat().st_size))


def _pid(server: Server) -> int:
    return server.process.pid if server.process is not None else 0
