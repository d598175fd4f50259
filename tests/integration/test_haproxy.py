"""HAProxy in front of the ledger's servers, with the configuration for operators."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.proxy import free_port
from tests.integration.installation import PATIENCE, ROOT, installation
from tests.integration.load import doctors, load
from tests.programs import needed
from tests.sentinels import Sentinels, sentinels
from worker.cli.local import stack

CONFIGURATION = ROOT / "deploy" / "haproxy" / "ledger.cfg"


@contextmanager
def haproxy(folder: Path, servers: Sentinels) -> Iterator[str]:
    """A real HAProxy; returns the URL by which clients reach the primary."""
    [program] = needed("HAProxy", "haproxy")
    port = free_port()
    text, given = re.subn("bind .*", f"bind 127.0.0.1:{port}", CONFIGURATION.read_text("utf-8"))
    ports = iter([one.port for one in servers.servers])
    text, named = re.subn(
        r"(?m)^(  server \w+) .*", lambda found: f"{found[1]} 127.0.0.1:{next(ports)}", text
    )
    assert (given, named) == (1, len(servers.servers))
    file = folder / "haproxy.cfg"
    file.write_text(text)
    log = folder / "haproxy.log"
    with (
        log.open("wb") as output,
        stack.process([program, "-db", "-f", str(file)], {}, folder, output),
    ):
        # HAProxy treats every server as up until its first check.
        stack.until(
            lambda: log.read_text().count("is DOWN") == len(servers.replicas), "checks", PATIENCE
        )
        yield f"redis://127.0.0.1:{port}/0"


def test_a_failover_behind_haproxy_is_followed(tmp_path: Path) -> None:
    """The primary is killed: worker and producer continue with the same address. They continue
    again when the old primary returns; it claims to be a primary until it is made a replica.
    """
    with (
        sentinels(tmp_path / "servers") as servers,
        haproxy(tmp_path, servers) as url,
        installation(tmp_path, ledger_url=url, broker_url="", replicas="1") as here,
    ):
        assert doctors(here)["role"]["found"] == "primary"
        with load(here) as running:
            stack.until(lambda: len(running.published) > 20, "results", PATIENCE)
            killed = servers.kill_primary()
            servers.wait_for_failover()
            after = len(running.published)
            stack.until(lambda: len(running.published) > after + 20, "results again", PATIENCE)
            killed.start()
            stack.until(lambda: killed.role() == "slave", "a replica again", PATIENCE)
            after = len(running.published)
            stack.until(lambda: len(running.published) > after + 20, "results still", PATIENCE)
        assert here.workers[0].poll() is None
        assert [len(ids) for ids in running.published.values() if len(ids) != 1] == []
