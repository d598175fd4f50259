"""The pages of an installation with very many accounts: each shows some of them, and finds all."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from regworker.ledger import SyncLedger
from regworker.ledger.admin import Limits, announce, hold
from regworker.ledger.snapshot import PAGE
from regworker.ledger.transitions import STATS, job_key
from regworker.settings import Settings
from tests.gateway.conftest import KEYS, start
from tests.gateway.stage import GROUPS, PROXY, SERVE
from worker.cli.local import stack
from worker.gateway.pages.history import CHARTED, History
from worker.gateway.pages.views import CHOICES, MOST
from worker.operations.jobs import HEADS

NAMES = [f"open2b/store{number:04}" for number in range(3 * CHOICES)]


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The settings of an installation with its own ledger."""
    with stack.valkey(tmp_path_factory.mktemp("ledger") / "valkey", fsync="no") as valkey:
        yield {"redis_url": valkey.connection_url, "sealing_keys": KEYS}


@pytest.fixture(scope="module")
def served(
    values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[httpx.Client, SyncLedger]]:
    """A client with the rights of an operator, and the ledger."""
    folder: Path = tmp_path_factory.mktemp("served")
    with ExitStack() as running:
        ledger = SyncLedger(values["redis_url"])
        running.callback(ledger.close)
        limits = [Limits(*name.split("/"), 0, 0, 5) for name in NAMES]
        ledger(announce(limits, ["results"], Settings.load(**values).streams()))
        for number, name in enumerate(NAMES):
            _, account = name.split("/")
            record = {"state": "registered", "provider": "open2b", "account": account, "key": name}
            ledger.redis.hset(job_key(f"job-{number}"), mapping=record)
            ledger.redis.xadd(f"{{reg}}:ended:registered:open2b:{account}", {"i": f"job-{number}"})
            ledger.redis.hset(STATS, f"registered:open2b:{account}", 1)
        environment = {f"REGWORKER_{name.upper()}": value for name, value in values.items()}
        url, _, _ = start(running, folder, {**environment, **SERVE}, "--port", "0")
        headers = {"x-forwarded-user": "me@shop", "x-forwarded-groups": GROUPS["operator"]}
        transport = httpx.HTTPTransport(local_address=PROXY)
        client = httpx.Client(base_url=url, headers=headers, transport=transport, timeout=60)
        yield running.enter_context(client), ledger


def text(client: httpx.Client, path: str) -> str:
    """A page."""
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    return answer.text


def shown(page: str) -> list[str]:
    """The accounts that a page has a section for."""
    return re.findall(r"<h[23][^>]*>(open2b/\w+)</h[23]>", page)


def after(page: str) -> str:
    """The address of the next page; '' if this is the last."""
    found = re.search(r'href="([^"]+)" rel="next"', page)
    return found[1].replace("&amp;", "&") if found else ""


def test_the_accounts_are_shown_page_by_page(served: tuple[httpx.Client, SyncLedger]) -> None:
    """Each of them once, in their order."""
    client, _ = served
    names: list[str] = []
    path = "/accounts"
    for _ in NAMES:
        page = text(client, path)
        assert len(shown(page)) <= MOST
        names += shown(page)
        path = after(page)
        if not path:
            break
    assert names == NAMES


def test_accounts_are_found_by_a_part_of_their_names(
    served: tuple[httpx.Client, SyncLedger],
) -> None:
    """Also when many names contain it; the next page continues the search."""
    client, _ = served
    assert shown(text(client, "/accounts?name=store0123")) == ["open2b/store0123"]
    first = text(client, "/accounts?name=store01")
    second = text(client, after(first))
    assert shown(first) + shown(second) == [one for one in NAMES if "store01" in one]
    assert "No account" in text(client, "/accounts?name=nobody")


def test_the_overview_charts_the_busiest_accounts(
    served: tuple[httpx.Client, SyncLedger],
) -> None:
    """And says how many there are; of many alerts it shows the first."""
    client, ledger = served
    for name in NAMES[:60]:
        ledger(hold((name.split("/")[0], name.split("/")[1]), "pause", "maintenance"))
    page = text(client, "/")
    assert len(shown(page)) == CHARTED
    assert f"the busiest of {len(NAMES)}" in page
    assert f"{NAMES[10]} is paused" in page
    assert f"{NAMES[59]} is paused" not in page
    assert "more</span>" in page


def test_jobs_are_searched_by_an_account_that_is_written(
    served: tuple[httpx.Client, SyncLedger],
) -> None:
    """A list to choose from would be longer than everything else."""
    client, _ = served
    page = text(client, f"/jobs?account={NAMES[7]}")
    assert "<option>open2b/" not in page
    assert f'value="{NAMES[7]}"' in page
    assert re.findall(r'href="/jobs/(job-\d+)"', page) == ["job-7"]


@pytest.mark.parametrize("path", ["/jobs", "/accounts", "/reviews"])
def test_a_page_runs_few_scripts(served: tuple[httpx.Client, SyncLedger], path: str) -> None:
    """Far fewer than there are accounts, though each script reads a bounded number of them."""
    client, ledger = served
    text(client, path)
    ledger.redis.config_resetstat()
    text(client, path)
    stats: Any = ledger.redis.info("commandstats")
    looks = 2 * (1 + len(NAMES) // PAGE + CHARTED)
    assert stats.get("cmdstat_evalsha", {"calls": 0})["calls"] <= looks + len(NAMES) // HEADS + MOST


def test_a_look_for_the_overview_runs_few_scripts(
    served: tuple[httpx.Client, SyncLedger], values: dict[str, Any]
) -> None:
    """It reads 100 accounts with a script, and the jobs of those that have charts. The pages show
    what it found, so that two of them within seconds need no second look."""
    _, ledger = served
    settings = Settings.load(**values)
    for _ in range(2):  # the first look loads the scripts
        ledger.redis.config_resetstat()
        with closing(History(settings)) as history:
            assert len(history.look().snapshot.accounts) == len(NAMES)
    stats: Any = ledger.redis.info("commandstats")
    assert 0 < stats["cmdstat_evalsha"]["calls"] <= 4 + len(NAMES) // PAGE + CHARTED


def test_the_page_after_the_last_account_says_so(served: tuple[httpx.Client, SyncLedger]) -> None:
    """Accounts may be dropped while somebody turns pages; the way back keeps the search."""
    client, _ = served
    page = text(client, "/accounts?name=store01&after=zzz")
    assert "No more accounts follow." in page
    assert 'href="/accounts?name=store01">Back to the first page' in page


def test_an_account_without_its_provider_is_explained(
    served: tuple[httpx.Client, SyncLedger],
) -> None:
    """A list of no jobs would look as if there were none."""
    client, _ = served
    answer = client.get("/jobs?account=store0007")
    assert answer.status_code == 422
    assert "account: must be a provider and an account: provider/account" in answer.text
