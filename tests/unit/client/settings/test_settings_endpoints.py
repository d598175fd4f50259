"""Endpoints for results: streams, webhooks and queues."""

import re
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

import regworker
import worker
from regworker.settings import LEDGER_WORDS, Settings, StreamEndpoint, WebhookEndpoint
from tests.ambiguous import AMBIGUOUS
from tests.unit.client.settings.loading import SECRET, WEBHOOK, problems


def test_results_is_an_endpoint_without_being_configured() -> None:
    """The results stream always exists."""
    endpoint = Settings.load().endpoint("results")
    assert endpoint == StreamEndpoint(kind="stream", stream="{reg}:results")
    assert Settings.load().endpoint("crm") is None


def test_results_may_be_configured_to_be_something_else(env: Any) -> None:
    """An operator can give the name to another stream."""
    env(ENDPOINTS__RESULTS__KIND="stream", ENDPOINTS__RESULTS__STREAM="{reg}:mine")
    endpoint = Settings.load().endpoint("results")
    assert isinstance(endpoint, StreamEndpoint)
    assert endpoint.stream == "{reg}:mine"


def test_a_webhook_takes_several_secrets(env: Any) -> None:
    """A receiver can change its secret without a gap."""
    env(**{f"ENDPOINTS__CRM__{name}": value for name, value in WEBHOOK.items()})
    env(ENDPOINTS__CRM__SECRETS=f"{SECRET}, {SECRET.replace('12', '22')}")
    endpoint = Settings.load().endpoint("crm")
    assert isinstance(endpoint, WebhookEndpoint)
    assert [one.get_secret_value() for one in endpoint.secrets] == [
        SECRET,
        SECRET.replace("12", "22"),
    ]
    assert "canary" not in repr(Settings.load())


def test_a_webhook_is_encrypted_unless_allowed_otherwise(env: Any) -> None:
    """Events contain customers' keys."""
    env(**{f"ENDPOINTS__CRM__{name}": value for name, value in WEBHOOK.items()})
    env(ENDPOINTS__CRM__URL="http://crm.example.com/hook")
    assert "https://" in problems()["REGWORKER_ENDPOINTS__CRM"]
    env(ENDPOINTS__CRM__ALLOW_HTTP="true")
    assert Settings.load().endpoint("crm") is not None


@pytest.mark.parametrize(
    "url",
    [
        "https://crm.example.com",
        "https://crm.example.com.:8443/a/b?c=d",
        "https://192.0.2.1/hook",
        "https://[2001:db8::1]:8443/hook",
        "https://3com.example/hook",
        "https://bücher.example/hook",
    ],
)
def test_an_url_that_all_read_alike_is_taken(env: Any, url: str) -> None:
    """Host names, and addresses in their usual form; the address itself is checked when it is
    used."""
    env(**{f"ENDPOINTS__CRM__{name}": value for name, value in (WEBHOOK | {"URL": url}).items()})
    endpoint = Settings.load().endpoint("crm")
    assert isinstance(endpoint, WebhookEndpoint)
    assert endpoint.url == url
    assert url not in repr(endpoint), "a path may hold a secret"


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"KIND": "webhook", "URL": "https://x"}, "ENDPOINTS__CRM__SECRETS"),
        ({"KIND": "webhook", "SECRETS": SECRET}, "ENDPOINTS__CRM__URL"),
        ({**WEBHOOK, "URL": "ftp://canary"}, "ENDPOINTS__CRM__URL"),
        ({**WEBHOOK, "COLOR": "canary"}, "ENDPOINTS__CRM__COLOR"),
        ({**WEBHOOK, "SECRETS": "whsec_canary"}, "ENDPOINTS__CRM__SECRETS"),
        ({**WEBHOOK, "SECRETS": f"{SECRET},whsec_-_canary"}, "ENDPOINTS__CRM__SECRETS"),
        ({**WEBHOOK, "SECRETS": "whsec_"}, "ENDPOINTS__CRM__SECRETS"),
        ({**WEBHOOK, "SECRETS": "whsec_canary12"}, "ENDPOINTS__CRM__SECRETS"),
        (
            {**WEBHOOK, "SECRETS": f"whsec_{b64encode(b'x' * 23).decode()}"},
            "ENDPOINTS__CRM__SECRETS",
        ),
        ({**WEBHOOK, "SECRETS": f"{SECRET},whsec_canary12"}, "ENDPOINTS__CRM__SECRETS"),
        ({**WEBHOOK, "URL": "https://canary:canary@x/hook"}, "ENDPOINTS__CRM__URL"),
        ({**WEBHOOK, "URL": "https://x\\@canary/hook"}, "ENDPOINTS__CRM__URL"),
        ({**WEBHOOK, "URL": "https://2130706433/canary"}, "ENDPOINTS__CRM__URL"),
        ({**WEBHOOK, "URL": "https://0x7f.0.0.1/canary"}, "ENDPOINTS__CRM__URL"),
        ({**WEBHOOK, "URL": "https://canary.0x7f/"}, "ENDPOINTS__CRM__URL"),
        ({**WEBHOOK, "URL": "https://0177.0.0.1./canary"}, "ENDPOINTS__CRM__URL"),
        ({**WEBHOOK, "URL": "https://127.1/canary"}, "ENDPOINTS__CRM__URL"),
        ({**WEBHOOK, "URL": "https://[::1/canary"}, "ENDPOINTS__CRM__URL"),
        ({**WEBHOOK, "URL": "https://x:canary/"}, "ENDPOINTS__CRM__URL"),
        ({**WEBHOOK, "URL": "https://:443/canary"}, "ENDPOINTS__CRM__URL"),
        ({**WEBHOOK, "MAX_IN_FLIGHT": "0"}, "ENDPOINTS__CRM__MAX_IN_FLIGHT"),
        ({"KIND": "queue"}, "ENDPOINTS__CRM__QUEUE"),
        ({"KIND": "queue", "QUEUE": "{reg}:jobs"}, "ENDPOINTS__CRM__QUEUE"),
        ({"KIND": "queue", "QUEUE": "registrations.live"}, "ENDPOINTS__CRM__QUEUE"),
        ({"KIND": "stream", "STREAM": "elsewhere"}, "ENDPOINTS__CRM__STREAM"),
        ({"KIND": "pigeon"}, "ENDPOINTS__CRM__KIND"),
        ({"URL": "https://x"}, "ENDPOINTS__CRM__KIND"),
        ({**WEBHOOK, "URL": "https://canary:0/"}, "ENDPOINTS__CRM__URL"),
    ],
    ids=str,
)
def test_an_endpoint_that_is_wrong_is_named(env: Any, fields: dict[str, str], name: str) -> None:
    """The error names the variable to fix."""
    env(**{f"ENDPOINTS__CRM__{field}": value for field, value in fields.items()})
    assert list(problems()) == [f"REGWORKER_{name}"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"KIND": "webhok"}, "is none of stream, webhook, queue"),
        ({"KIND": " ", "URL": "https://x"}, "is required: one of stream, webhook, queue"),
        ({"URL": "https://x"}, "is required: one of stream, webhook, queue"),
    ],
)
def test_a_kind_that_is_missing_is_told_from_a_wrong_one(
    env: Any, fields: dict[str, str], said: str
) -> None:
    """The error lists the kinds."""
    env(**{f"ENDPOINTS__CRM__{field}": value for field, value in fields.items()})
    assert problems() == {"REGWORKER_ENDPOINTS__CRM__KIND": said}


@pytest.mark.parametrize("word", sorted(LEDGER_WORDS))
def test_a_stream_is_none_of_the_ledgers_own_keys(env: Any, word: str) -> None:
    """Such a stream would break the ledger at the first result."""
    env(ENDPOINTS__CRM__KIND="stream", ENDPOINTS__CRM__STREAM=f"{{reg}}:{word}")
    assert "a key of the ledger itself" in problems()["REGWORKER_ENDPOINTS__CRM__STREAM"]


def test_every_key_of_the_ledger_is_known_by_its_first_word() -> None:
    """`LEDGER_WORDS` has the first word of every key in scripts and commands; `results` may be
    used."""
    named = re.compile(r"(?:PREFIX \.\. '|\{PREFIX\}|\{reg\}:)([a-z]+)")
    found = set()
    folders = [Path(one.__file__).parent for one in (regworker, worker)]
    for file in (one for folder in folders for one in folder.rglob("*")):
        if file.suffix in {".py", ".lua"}:
            found |= set(named.findall(file.read_text("utf-8")))
    assert found - {"results"} == LEDGER_WORDS


@pytest.mark.parametrize("value", ["inf", "nan", "1e300"])
def test_an_endpoints_length_of_time_has_an_end(value: str) -> None:
    """A stream must be trimmed some day, and a call to a webhook must end."""
    hook = {"kind": "webhook", "url": "https://a.example", "secrets": [SECRET], "timeout": value}
    named = problems(endpoints={"results": {"kind": "stream", "retention": value}, "crm": hook})
    assert set(named) == {
        "REGWORKER_ENDPOINTS__RESULTS__RETENTION",
        "REGWORKER_ENDPOINTS__CRM__TIMEOUT",
    }


@pytest.mark.parametrize("host", AMBIGUOUS)
def test_a_webhooks_host_that_some_read_as_an_address_is_refused(env: Any, host: str) -> None:
    """In whatever letters it is written: the address check could see another host."""
    env(**{f"ENDPOINTS__CRM__{field}": value for field, value in WEBHOOK.items()})
    env(ENDPOINTS__CRM__URL=f"https://{host}/hook")
    assert list(problems()) == ["REGWORKER_ENDPOINTS__CRM__URL"]


@pytest.mark.parametrize(
    "host",
    [
        *("crm.example.com", "192.0.2.1", "[2001:db8::1]", "m\u00fcnchen.example", "0x7f.example"),
        *("\u043f\u0440\u0438\u043c\u0435\u0440.\u0440\u0444", "xn--p1ai.example", "3com.example"),
        *("\u0909\u0926\u093e\u0939\u0930\u0923.example", "mu\u0308nchen.example", "1.2.3.x4"),
    ],
)
def test_a_webhooks_host_may_be_in_any_language(env: Any, host: str) -> None:
    """Names with digits and with marks, too."""
    env(**{f"ENDPOINTS__CRM__{field}": value for field, value in WEBHOOK.items()})
    env(ENDPOINTS__CRM__URL=f"https://{host}/hook")
    assert "crm" in Settings.load().endpoints
