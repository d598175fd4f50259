"""The OpenAPI document against the real service: schemathesis generates the requests."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unicodedata import category

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode, checks

from tests.gateway.service import Gateway
from tests.integration.installation import ROOT

DOCUMENT = json.loads((ROOT / "docs" / "contract" / "v1" / "openapi.json").read_text("utf-8"))

#: Requests of each kind to each operation.
EXAMPLES = 20

#: The longest `wait` of a request here, in seconds.
WAIT = 0.01

#: Seconds for one operation, also on an overloaded machine.
LIMIT = 600

CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]

VALID, INVALID = GenerationMode.POSITIVE, GenerationMode.NEGATIVE

#: Operations, kinds of input, and extra checks. A job that fits the schema may still break a rule
#: of its provider; all other valid input is accepted. A batch may be any bytes.
ASKED = [
    ("enqueueJob", VALID, []),
    ("enqueueJob", INVALID, []),
    ("enqueueJobs", VALID, [checks.positive_data_acceptance]),
    ("findJob", VALID, [checks.positive_data_acceptance]),
    ("findJob", INVALID, []),
    ("getJob", VALID, [checks.positive_data_acceptance]),
    ("getJob", INVALID, []),
    ("cancelJob", VALID, [checks.positive_data_acceptance]),
    ("cancelJob", INVALID, []),
    ("exportJob", VALID, [checks.positive_data_acceptance]),
    ("exportJob", INVALID, []),
    ("forgetJob", VALID, [checks.positive_data_acceptance]),
    ("forgetJob", INVALID, []),
    ("readEvents", VALID, [checks.positive_data_acceptance]),
    ("readEvents", INVALID, []),
    ("health", VALID, [checks.positive_data_acceptance]),
]

bounded = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
)


@schemathesis.serializer("application/x-ndjson")
def _lines(_: Any, value: Any) -> bytes:
    return str(value).encode("utf-8", "surrogatepass")


@pytest.fixture(scope="module")
def shop(gateway: Gateway) -> Iterator[httpx.Client]:
    """A client that may do everything."""
    with gateway.client("--may", "enqueue,read,operate", "--rate", "100000") as client:
        yield client


@pytest.fixture(scope="module")
def document(gateway: Gateway) -> Any:
    """The document for schemathesis. It needs no credentials here, because `send` adds a good
    token (`test_tokens.py`)."""
    found = schemathesis.openapi.from_dict({**DOCUMENT, "security": []})
    found.config.update(base_url=gateway.url)
    return found


def asked(document: Any, name: str, mode: GenerationMode) -> st.SearchStrategy[Case]:
    """Requests to an operation, without sealed registrations, which cannot be generated."""
    found = document.find_operation_by_id(name).as_strategy(generation_mode=mode)
    if mode is VALID:
        found = found.map(with_known_characters)
    if name != "enqueueJob" or mode is INVALID:
        return found
    return found.filter(lambda case: isinstance(case.body["registration"], dict)).map(in_time)


def with_known_characters(case: Case) -> Case:
    """The request with a key of characters that this Python knows: a schema cannot say which."""
    for part in (case.query, case.body):
        for name in ("key", "idempotency_key"):
            if isinstance(part, dict) and isinstance(part.get(name), str):
                part[name] = "".join("x" if category(one) == "Cn" else one for one in part[name])
    return case


def in_time(case: Case) -> Case:
    """The request without a deadline: the schema doesn't say that it must be after the year
    2000."""
    case.body.pop("deadline", None)
    return case


def send(case: Case, shop: httpx.Client) -> Any:
    """Send a request with a good token and a short `wait`."""
    wait = case.query.get("wait") if isinstance(case.query, dict) else None
    if isinstance(wait, int | float) and not isinstance(wait, bool) and 0 <= wait <= 60:
        case.query["wait"] = min(wait, WAIT)
    return case.call(headers={"authorization": shop.headers["authorization"]}, timeout=30)


def test_nothing_is_left_out() -> None:
    """Each operation of the document is tested."""
    operations = {
        one["operationId"]
        for path in DOCUMENT["paths"].values()
        for method, one in path.items()
        if method != "parameters"
    }
    assert {name for name, *_ in ASKED} == operations


@pytest.mark.timeout(LIMIT)
@pytest.mark.parametrize(
    ("name", "mode", "more"), ASKED, ids=[f"{name}-{mode.value}" for name, mode, _ in ASKED]
)
def test_each_answer_is_as_documented(
    gateway: Gateway,
    shop: httpx.Client,
    document: Any,
    name: str,
    mode: GenerationMode,
    more: list[Any],
) -> None:
    """Valid input is accepted, invalid input gets a 4xx, and 201 means that the job is in the
    ledger."""
    statuses: Counter[int] = Counter()
    before = accepted(gateway)

    @seed(14)
    @bounded
    @given(asked(document, name, mode))
    def ask(case: Case) -> None:
        answer = send(case, shop)
        statuses[answer.status_code] += 1
        case.validate_response(answer, checks=[*CHECKS, *more])
        if answer.status_code >= 400:
            assert answer.json()["verdict"] == "not accepted"

    ask()
    assert statuses
    assert accepted(gateway) - before == statuses[201]
    if name == "enqueueJob":
        assert bool(statuses[201]) == (mode is VALID)


@pytest.mark.timeout(LIMIT)
def test_each_line_of_a_batch_has_its_result(
    gateway: Gateway, shop: httpx.Client, document: Any
) -> None:
    """A batch of valid and invalid jobs gets one documented result for each line, in order."""
    from jsonschema import Draft202012Validator  # takes two seconds

    kinds = [asked(document, "enqueueJob", mode) for mode in (VALID, INVALID)]
    parts = DOCUMENT["components"]
    result = Draft202012Validator({**parts["schemas"]["BatchLine"], "components": parts})
    seen: Counter[str] = Counter()
    before = accepted(gateway)

    @seed(14)
    @bounded
    @given(st.lists(st.one_of(kinds), min_size=1, max_size=5))
    def ask(cases: list[Case]) -> None:
        lines = [json.dumps(case.body) for case in cases if isinstance(case.body, dict | list)]
        answer = shop.post("/v1/jobs:batch", content="\n".join(lines).encode())
        assert answer.status_code == 200
        found = [json.loads(line) for line in answer.text.splitlines()]
        assert [line["line"] for line in found] == list(range(1, len(lines) + 1))
        for line in found:
            result.validate(line)
            seen[line["verdict"]] += line["status"] != 200

    ask()
    assert set(seen) == {"accepted", "not accepted"}
    assert accepted(gateway) - before == seen["accepted"]


def accepted(gateway: Gateway) -> int:
    """The number of jobs in the ledger."""
    return int(gateway.ledger.redis.hget("{reg}:stats", "accepted") or 0)


def test_nothing_of_it_was_a_fault(gateway: Gateway) -> None:
    """The log has no traceback."""
    said = gateway.log.read_text("utf-8")
    assert "a request failed" not in said
    assert "traceback" not in said.lower()
