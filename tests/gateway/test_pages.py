"""The pages without a browser: who may look and act, and that no text, form or header can do
harm."""

import html
import re
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import itsdangerous.timed
import pytest
from itsdangerous import URLSafeTimedSerializer
from pydantic import SecretStr

from regworker.domain.actor import Actor
from regworker.domain.event import EventType
from regworker.domain.outcome import Code, Fault
from regworker.event_builder import EventBuilder
from regworker.ledger import SyncLedger
from regworker.ledger.admin import Limits, announce, hold, quarantine, resolve
from regworker.ledger.endpoints import serve
from regworker.ledger.records import Claim, NotNow
from regworker.ledger.snapshot import Beat, beat
from regworker.ledger.transitions import ClaimRules, Decision, SettleRules, claim, settle
from regworker.producer import Producer
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from tests.doubles import differing
from tests.gateway.conftest import KEYS, start
from tests.gateway.stage import GROUPS, PASSWORD, PROXY, SERVE
from tests.integration.jobs import open2b, skypostal
from worker.cli.local import stack
from worker.gateway.auth import Role
from worker.gateway.pages import actions, alerts, sessions
from worker.operations.admin_actions import AdminActions
from worker.operations.audit import AuditFilter, AuditLog
from worker.operations.plans import Item, PlanStore
from worker.operations.tokens import TokenStore

EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}\u202e"

CLAIM = ClaimRules("evil:1", lease=60, settle_delay=0, max_attempts=12, probe=20)
SETTLE = SettleRules(settle_delay=0, breaker_threshold=50, breaker_pause=30, retention=86400)


@dataclass
class Site:
    """The pages, with a ledger in which every text is hostile."""

    url: str
    settings: Settings
    ledger: SyncLedger
    review: str
    queued: str
    plan: str

    @property
    def names(self) -> dict[str, str]:
        """The names that paths contain."""
        return {"review": self.review, "queued": self.queued, "plan": self.plan}

    def client(self, role: Role = "operator", **headers: str) -> httpx.Client:
        """A client with the user and role that the trusted proxy sends."""
        named = {"x-forwarded-user": f"{role}@shop", "x-forwarded-groups": GROUPS[role]}
        return self.at(PROXY, {**named, **headers})

    def at(self, address: str, headers: dict[str, str] | None = None) -> httpx.Client:
        """A client at this address."""
        transport = httpx.HTTPTransport(local_address=address)
        return httpx.Client(base_url=self.url, headers=headers, transport=transport, timeout=60)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One for all tests of this file."""
    folder = tmp_path_factory.mktemp("site")
    with ExitStack() as running:
        valkey = running.enter_context(stack.valkey(folder / "valkey", fsync="no"))
        values: dict[str, Any] = {"redis_url": valkey.connection_url, "sealing_keys": KEYS}
        environment = {f"REGWORKER_{name.upper()}": value for name, value in values.items()}
        settings = Settings.load(**values)
        ledger = SyncLedger(valkey.connection_url)
        running.callback(ledger.close)
        review, queued = hostile(ledger, settings)
        more = {**environment, **SERVE, "REGWORKER_SERVE_SESSION": "3600"}
        url, _, _ = start(running, folder, more, "--port", "0")
        actor = Actor(EVIL, "operator", "page", EVIL)
        words = {"rejected": EVIL}
        plan = PlanStore(ledger).make("review.rejected", words, [Item(review, "")], actor).id
        yield Site(url, settings, ledger, review, queued, plan)


def hostile(ledger: SyncLedger, settings: Settings) -> tuple[str, str]:
    """A hostile version of every text that a job, a provider, an endpoint or a person can
    supply."""
    accounts = [Limits(name, "default", 0, 0, 0) for name in ("skypostal", "open2b")]
    ledger(announce(accounts, ["results", "crm"], settings.streams()))
    ledger(serve({"crm": 5}, 86400))
    with Producer(settings) as producer:
        made = skypostal(idempotency_key=f"key {EVIL}", metadata={EVIL: EVIL})
        review = producer.enqueue(made).job_id
        queued = producer.enqueue(open2b(idempotency_key=f"other {EVIL}")).job_id
    held = ledger(claim(review, CLAIM, 0))
    assert isinstance(held, Claim)
    ledger(settle(held, Decision("unknown", EVIL), SETTLE, None))
    asking = ledger(claim(review, CLAIM, 0))
    assert isinstance(asking, Claim)
    builder = EventBuilder(settings, Keyring.parse(KEYS))
    event = builder.failed(
        EventType.REVIEW, asking.record, ledger.now(), (Fault(Code.PROVIDER_ERROR, EVIL, EVIL),)
    )
    ledger(settle(asking, Decision("unresolvable", EVIL), SETTLE, event))
    ledger(hold(("open2b", "default"), "pause", EVIL, actor=Actor(EVIL, EVIL, EVIL, EVIL)))
    fields: dict[str, Any] = {"queue": EVIL, "reason": EVIL, "size": 1, "whole": 1, "content": ""}
    ledger(quarantine("0123456789ab", fields, 9))
    parts = {"loop": (0.0, 60.0)}
    who = Beat(EVIL, EVIL, 1, EVIL, "loop", 1, 1, 0, "", parts, 0, (f"account:{EVIL}",))
    ledger(beat(who, 600))
    redis: Any = ledger.redis
    redis.hset("{reg}:endpoint:crm", mapping={"disabled": "1", "why": EVIL, "disabled_at": "1"})
    dead = {"job": review, "event_id": "e", "endpoint": "crm", "state": "dead", "why": EVIL}
    redis.hset("{reg}:delivery:d:e:crm", mapping={**dead, "tries": 1, "created_at": 1})
    redis.zadd("{reg}:dead", {"d:e:crm": 1})
    return review, queued


def token(text: str) -> str:
    """The token of a form."""
    found = re.search(r'name="form_token" value="([^"]+)"', text)
    assert found
    return found[1]


def attributes(text: str) -> list[tuple[str, str | None]]:
    """Attributes that could run code."""
    found: list[tuple[str, str | None]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            for name, value in attrs:
                if name.startswith("on") or name == "style" or (value or "").startswith("javas"):
                    found.append((name, value))

    Reader().feed(text)
    return found


PAGES = ["/", "/plans/{plan}", "/jobs", "/jobs/{review}", "/jobs/{queued}", "/reviews",
         "/deliveries", "/accounts", "/quarantine", "/workers", "/audit",
         "/jobs?reason={evil}&metadata=a%3D{evil}",
         "/runbook/RegworkerReview"]  # fmt: skip


@pytest.mark.parametrize("path", PAGES)
def test_no_text_becomes_markup(site: Site, path: str) -> None:
    """Text from a job, provider, endpoint, worker or person is shown as plain text."""
    with site.client(name=EVIL.encode("ascii", "replace").decode()) as client:
        there = path.format(**site.names, evil="%22%3E%3Cscript%3Ealert(1)%3C/script%3E")
        answer = client.get(there)
    assert answer.status_code == 200
    assert "<script>alert" not in answer.text
    assert "<img" not in answer.text
    assert "\u202e" not in answer.text
    assert "{{7*7}}" in answer.text or "49" not in answer.text
    scripts = re.findall(r"<script[^>]*>", answer.text)
    assert len(scripts) == 1
    assert "/static/pages.js" in scripts[0]
    assert not attributes(answer.text)
    if path not in {"/runbook/RegworkerReview", "/jobs/{queued}"}:
        assert "&lt;script&gt;alert" in answer.text


@pytest.mark.parametrize("path", [*PAGES, "/sign-in", "/nothing"])
def test_every_page_has_a_strict_policy(site: Site, path: str) -> None:
    """No page allows inline scripts or styles, frames, content from other hosts, caching or a
    referrer."""
    with site.client() as client:
        answer = client.get(path.format(**site.names, evil="x"))
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "form-action 'self'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "no-referrer"


SUPPORT = ["/jobs/{review}/ask", "/jobs/{review}/found", "/jobs/{review}/registered",
           "/jobs/{review}/rejected", "/jobs/{review}/resend", "/jobs/{queued}/cancel"]  # fmt: skip
OPERATOR = ["/accounts/open2b/default/pause", "/accounts/open2b/default/resume",
            "/deliveries/retry", "/deliveries/replay", "/endpoints/crm/enable",
            "/quarantine/drop", "/quarantine/requeue", "/jobs/{review}/correct/registered",
            "/jobs/{review}/correct/rejected", "/jobs/{review}/export", "/jobs/{review}/forget",
            "/jobs/plan", "/plans/{plan}/carry-out"]  # fmt: skip
ACTS: list[tuple[str, list[Role]]] = [
    *((path, ["viewer"]) for path in SUPPORT),
    *((path, ["viewer", "support"]) for path in OPERATOR),
]


@pytest.mark.parametrize(("path", "roles"), ACTS)
def test_an_act_takes_its_role(site: Site, path: str, roles: list[Role]) -> None:
    """A viewer can look, support can resolve and cancel, and an operator can do everything."""
    there = path.format(**site.names)
    for role in roles:
        with site.client(role) as client:
            form = {"form_token": token(client.get("/").text), "confirm": "yes", "why": "x"}
            answer = client.post(there, data=form)
        assert answer.status_code == 403
        assert "needs the role" in answer.text


@pytest.mark.parametrize("path", [*SUPPORT, *OPERATOR, "/find", "/sign-out"])
def test_a_form_from_elsewhere_does_nothing(site: Site, path: str) -> None:
    """A form without a token, with another person's token, from another site or without
    confirmation is refused."""
    there = path.format(**site.names)
    with site.client() as client, site.client("support") as other:
        own, theirs = token(client.get("/").text), token(other.get("/").text)
        form = {"confirm": "yes", "why": "x", "job": "x", "id": "x", "message": "x"}
        elsewhere = {"sec-fetch-site": "cross-site"}
        answers = [
            client.post(there, data=form),
            client.post(there, data={**form, "form_token": theirs}),
            client.post(there, data={**form, "form_token": own[:-2]}),
            client.post(there, data={**form, "form_token": own}, headers=elsewhere),
            client.get(there),
        ]
        assert [one.status_code for one in answers[:4]] == [403] * 4
        assert answers[4].status_code in {404, 405}
        if path not in {"/find", "/sign-out", "/jobs/{review}/ask", "/jobs/plan"}:
            unsure = client.post(there, data={"form_token": own, "why": "x"})
            assert unsure.status_code == 422
            assert "tick the box" in unsure.text
        same = client.get(f"/jobs/{site.review}").text
    assert 'class="state review"' in same


HEADERS: list[tuple[str, dict[str, str] | list[tuple[str, str]], int]] = [
    ("127.0.0.1", {"x-forwarded-user": "eve", "x-forwarded-groups": "sre"}, 403),
    ("127.0.0.3", {"x-forwarded-user": "eve"}, 403),
    ("127.0.0.1", {"x-forwarded-groups": "sre"}, 403),
    (PROXY, {"x-forwarded-user": "eve", "x-forwarded-groups": "nobody"}, 403),
    (PROXY, {"x-forwarded-user": "eve"}, 403),
    (PROXY, {"x-forwarded-groups": "sre"}, 403),
    (PROXY, [("x-forwarded-user", "ann"), ("x-forwarded-user", "eve")], 403),
    (PROXY, {"x-forwarded-user": "", "x-forwarded-groups": "sre"}, 403),
    ("127.0.0.1", {"x-forwarded-for": PROXY, "forwarded": f"for={PROXY}"}, 303),
    (PROXY, {}, 303),
    (PROXY, {"x-forwarded-user": "ann", "x-forwarded-groups": "a, staff ,b"}, 200),
]


@pytest.mark.parametrize(("address", "headers", "status"), HEADERS)
def test_only_the_trusted_proxy_names_users(
    site: Site, address: str, headers: Any, status: int
) -> None:
    """Its headers are refused from another address, twice, without a name, or without a role."""
    with site.at(address) as client:
        assert client.get("/jobs", headers=headers).status_code == status


def signer(site: Site) -> URLSafeTimedSerializer:
    """A signer of sessions with the gateway's keys."""
    settings = site.settings.model_copy(update={"serve_password": SecretStr(PASSWORD)})
    return URLSafeTimedSerializer(sessions._keys(settings), salt="session")


def test_a_session_begins_with_the_password_and_ends(site: Site) -> None:
    """The cookie is HttpOnly, SameSite and signed; an old, forged or foreign one leads to the
    sign-in."""
    made = signer(site)
    good = made.dumps(["ann", "0123"])
    now = time.time()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(itsdangerous.timed, "time", differing(time, time=lambda: now - 3700))
        old = made.dumps(["ann", "0123"])
    other = URLSafeTimedSerializer("another key", salt="session").dumps(["ann", "0123"])
    form = URLSafeTimedSerializer(made.secret_keys, salt="form").dumps(["ann", "0123"])
    table = {good: 200, old: 303, other: 303, form: 303, good[:-3] + "abc": 303, "x": 303, "": 303}
    for cookie, status in table.items():
        with site.at("127.0.0.1", {"cookie": f"{sessions.COOKIE}={cookie}"}) as client:
            answer = client.get("/jobs")
            assert answer.status_code == status, cookie
            if status == 303:
                assert answer.headers["location"].startswith("/sign-in?next=%2Fjobs")
    with site.at("127.0.0.1") as client:
        answer = client.post(
            "/sign-in", data={"name": "ann", "password": PASSWORD, "next": "/jobs"}
        )
        assert answer.headers["location"] == "/jobs"
        flags = answer.headers["set-cookie"].lower()
        assert "httponly" in flags
        assert "samesite=lax" in flags
        assert "max-age=3600" in flags
        proxied = {"x-forwarded-proto": "https"}
        form_ = {"name": "ann", "password": PASSWORD}
        secured = client.post("/sign-in", data=form_, headers=proxied)
        assert "secure" in secured.headers["set-cookie"].lower()


@pytest.mark.parametrize(
    "to", ["//evil.example", "/\\evil.example", "https://evil.example", "javascript:alert(1)", ""]
)
def test_signing_in_leads_nowhere_else(site: Site, to: str) -> None:
    """A link to the sign-in must not send people to another site."""
    with site.at("127.0.0.4") as client:
        form = {"name": "ann", "password": PASSWORD, "next": to}
        assert client.post("/sign-in", data=form).headers["location"] == "/"


def test_signing_in_leads_to_any_path(site: Site) -> None:
    """Also to one that a header cannot carry as it is."""
    with site.at("127.0.0.4") as client:
        asked = client.get("/jobs/%E6%97%A5?x=%20").headers["location"]
        shown = html.unescape(client.get(asked).text)
        to = re.search(r'name="next" value="([^"]*)"', shown)
        assert to is not None
        form = {"name": "ann", "password": PASSWORD, "next": to[1]}
        assert client.post("/sign-in", data=form).headers["location"] == "/jobs/%E6%97%A5"


def test_wrong_passwords_are_limited(site: Site) -> None:
    """After ten from one address, no password works for some minutes, not even the right one."""
    with site.at("127.0.0.9") as client:
        form = {"name": "eve", "password": "guess"}
        seen = [client.post("/sign-in", data=form).status_code for _ in range(12)]
        assert seen == [403] * 10 + [429] * 2
        right = client.post("/sign-in", data={"name": "eve", "password": PASSWORD})
        assert right.status_code == 429
        assert int(right.headers["retry-after"]) > 0
    with site.at("127.0.0.8") as client:
        assert client.post("/sign-in", data={"name": "a", "password": PASSWORD}).status_code == 303


def test_the_trusted_proxys_clients_are_limited_separately(site: Site) -> None:
    """A stranger's wrong passwords stop neither other clients nor the proxy itself; from elsewhere,
    the header changes nothing."""
    wrong, right = {"name": "eve", "password": "guess"}, {"name": "ann", "password": PASSWORD}
    with site.at(PROXY) as client:

        def statuses(form: dict[str, str], *clients: str) -> list[int]:
            sent = [{"x-forwarded-for": one} for one in clients]
            return [client.post("/sign-in", data=form, headers=one).status_code for one in sent]

        forged = [f"192.0.2.{number}, 198.51.100.1" for number in range(12)]
        assert statuses(wrong, *forged) == [403] * 10 + [429] * 2
        assert statuses(right, "198.51.100.1", "198.51.100.2") == [429, 303]
        assert client.post("/sign-in", data=right).status_code == 303
    with site.at("127.0.0.10") as client:
        forged = [f"192.0.2.{number}" for number in range(12)]
        assert statuses(wrong, *forged) == [403] * 10 + [429] * 2


def new_token(site: Site, *may: str, accounts: tuple[str, ...] = ()) -> tuple[str, str]:
    """The text and the id of a new token."""
    text, made = TokenStore(site.ledger).new("ann", may, accounts)
    return text, made.id


@pytest.mark.parametrize(
    ("may", "role"),
    [(("read:all",), "viewer"), (("support", "read"), "support"), (("operate",), "operator")],
)
def test_a_token_signs_in_with_its_role_until_it_is_revoked(
    site: Site, may: tuple[str, ...], role: str
) -> None:
    """The audit log has the token's name; when it is revoked, its session ends within seconds."""
    text, id_ = new_token(site, *may)
    with site.at("127.0.0.5") as client:
        answer = client.post("/sign-in", data={"token": text, "next": "/jobs"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/jobs")
        assert text not in answer.headers["set-cookie"]
        shown = client.get("/jobs").text
        assert f'ann <span class="role">{role}</span>' in shown
        form = {"form_token": token(shown), "confirm": "yes", "why": "by token"}
        path = "/accounts/skypostal/default/pause"
        assert client.post(path, data=form).status_code == (303 if role == "operator" else 403)
        if role == "operator":
            [entry] = AuditLog(site.ledger).newest(AuditFilter(who="ann"), most=1)
            assert (entry.role, entry.where, entry.why) == ("operator", "page", "by token")
            assert client.post(path.replace("pause", "resume"), data=form).status_code == 303
        TokenStore(site.ledger).revoke(id_)
        stack.until(lambda: client.get("/jobs").status_code == 303, "the end of it", 30)
        assert client.post("/sign-in", data={"token": text}).status_code == 403


def test_other_tokens_open_no_page(site: Site) -> None:
    """A token for own jobs or some accounts, or a wrong one, cannot sign in; too many tries are
    refused."""
    own, _ = new_token(site, "enqueue", "read")
    some, _ = new_token(site, "operate", accounts=("open2b/default",))
    good, id_ = new_token(site, "operate")
    with site.at("127.0.0.6") as client:
        for text in (own, some):
            answer = client.post("/sign-in", data={"token": text})
            assert answer.status_code == 403
            assert "the pages need a token for all accounts" in answer.text
            assert text not in answer.text
        wrong = [f"rwt_{id_}_{'A' * 43}", f"rwt_{'0' * 12}_{'A' * 43}", "nonsense", good[:-1] + "~"]
        seen = [
            client.post("/sign-in", data={"token": wrong[n % 4]}).status_code for n in range(12)
        ]
        assert seen == [403] * 10 + [429] * 2
        assert client.post("/sign-in", data={"token": good}).status_code == 429


BODIES = [
    ("application/json", b'{"job": "x"}', 415),
    ("multipart/form-data; boundary=x", b"--x--", 415),
    ("application/x-www-form-urlencoded", b"a=" + b"x" * 70_000, 413),
    ("application/x-www-form-urlencoded", b"&".join([b"a=1"] * 400), 422),
    ("application/x-www-form-urlencoded", b"job=%ff%fe", 422),
    ("application/x-www-form-urlencoded", "job=é".encode(), 422),
    ("application/x-www-form-urlencoded", b"job=%00", 403),
]


@pytest.mark.parametrize(("kind", "body", "status"), BODIES)
def test_a_body_that_is_no_form_is_refused(site: Site, kind: str, body: bytes, status: int) -> None:
    """A body that is too large, has too many fields, is no text or has another type gets a 4xx."""
    with site.client() as client:
        assert (
            client.post("/find", content=body, headers={"content-type": kind}).status_code == status
        )


QUERIES = [
    ("/jobs?state=nonsense", 422), ("/jobs?metadata=novalue", 422), ("/jobs?after=nonsense", 422),
    ("/jobs?age=9y", 422), ("/jobs?account=%00/%00", 200), ("/audit?before=nonsense", 422),
    ("/audit?before=%D9%A1-%D9%A1", 422), ("/audit?before=1-99999999999999999999", 422),
    ("/audit?before=0-0", 422),
    ("/reviews?after=nonsense", 422), ("/deliveries?after=nonsense", 422),
    ("/deliveries?state=x&skip=-1", 200), ("/jobs/none", 404),
    ("/deliveries?skip=99999999999999999999", 200), ("/runbook/nonsense", 404),
    ("/plans/nonsense", 404), ("/plans/%7Breg%7D", 404),
    ("/static/../sessions.py", 404), ("/static/sessions.py", 404),
]  # fmt: skip


@pytest.mark.parametrize(("path", "status"), QUERIES)
def test_a_strange_question_gets_a_clear_answer(site: Site, path: str, status: int) -> None:
    """A malformed query never causes a server error."""
    with site.client() as client:
        assert client.get(path).status_code == status


def wanted(site: Site, key: str, number: int) -> list[str]:
    """Queued jobs that a search finds by their metadata."""
    with Producer(site.settings) as producer:
        made = [skypostal(metadata={"many": key}) for _ in range(number)]
        return [producer.enqueue(job).job_id for job in made]


def test_a_persons_step_names_the_person(site: Site) -> None:
    """The steps of a job name the person who decided on it; only other steps name a worker."""
    [job] = wanted(site, "named", 1)
    held = site.ledger(claim(job, CLAIM, 0))
    assert isinstance(held, Claim)
    site.ledger(settle(held, Decision("unknown", "ReadTimeout"), SETTLE, None))
    asked = to_review(site, job, "unclear").record
    person = Actor("ann", "operator", "page", "")
    site.ledger(resolve(asked, "resend", person, 3600, 86400, None))
    with site.client() as client:
        text = client.get(f"/jobs/{job}").text
    assert "<strong>ann</strong>: to be sent again" in text
    assert "A worker calls the provider" in text
    assert "A worker to be sent" not in text


def to_review(site: Site, job: str, why: str) -> Claim:
    """A worker cannot find out what came of a job."""
    held = site.ledger(claim(job, CLAIM, 0))
    assert isinstance(held, Claim)
    faults = (Fault(Code.PROVIDER_ERROR, "", why),)
    builder = EventBuilder(site.settings, Keyring.parse(KEYS))
    event = builder.failed(EventType.REVIEW, held.record, site.ledger.now(), faults)
    site.ledger(settle(held, Decision("unresolvable", why), SETTLE, event))
    return held


def seen(text: str) -> str:
    """What a form says of the review that its page shows."""
    [found] = set(re.findall(r'name="seen" value="([^"]+)"', text))
    return str(found)


#: The decisions on a review that need no answer of the provider, with the fields of their forms.
DECISIONS: dict[str, dict[str, str]] = {
    "registered": {"outcome.customer_key": "k", "outcome.customer_box_id": "5"},
    "rejected": {"message": "somebody else's"},
    "resend": {},
}


@pytest.mark.parametrize("decision", DECISIONS)
def test_a_form_of_an_earlier_review_decides_nothing(site: Site, decision: str) -> None:
    """Somebody had the job tried again, and the new review has another reason; nor does a form
    that does not say which review it is about."""
    [job] = wanted(site, f"old-{decision}", 1)
    to_review(site, job, "no customer has this address")
    with site.client("support") as client:
        page = client.get(f"/jobs/{job}").text
        form = {"form_token": token(page), "confirm": "yes", "why": "I looked"}
        form |= DECISIONS[decision]
        with AdminActions(site.settings) as bob:
            bob.resend(job, Actor("bob"))
        to_review(site, job, "the customer exists now")
        for old in ({"seen": seen(page)}, {}):
            answer = client.post(f"/jobs/{job}/{decision}", data={**form, **old})
            assert answer.status_code == 409
            assert "has changed since you looked at it; look again" in answer.text
        now = client.get(f"/jobs/{job}").text
        assert "the customer exists now" in now
        last, *_ = AuditLog(site.ledger).newest(AuditFilter(), most=1)
        assert (last.who, last.what) == ("bob", "review.resend")
        done = client.post(f"/jobs/{job}/{decision}", data={**form, "seen": seen(now)})
        assert done.status_code == 303


def test_each_form_that_decides_a_review_says_which() -> None:
    """Also the form with the provider's answer."""
    text = (Path(actions.__file__).parent / "templates/job.html").read_text("utf-8")
    forms = re.findall(r'action="/jobs/\{\{ job.id \}\}/(\w+)">(.*?)</form>', text, re.DOTALL)
    deciding = {name for name, form in forms if 'name="seen" value="{{ seen }}"' in form}
    assert deciding == {"found", *DECISIONS}


def test_what_a_search_found_is_shown_and_then_done(site: Site) -> None:
    """The plan covers exactly these jobs: a later job is left alone, a changed one is skipped,
    and each is in the audit log."""
    jobs = wanted(site, "a", 3)
    form = {"metadata": "many=a", "act": "job.cancel", "why": "closed shop"}
    with site.client() as client:
        form["form_token"] = token(client.get("/jobs?metadata=many%3Da").text)
        there = client.post("/jobs/plan", data=form).headers["location"]
        shown = client.get(there).text
        assert "chose 3 jobs" in shown
        assert all(job in shown for job in jobs)
        [later] = wanted(site, "a", 1)
        assert isinstance(site.ledger(claim(jobs[0], CLAIM, 0)), Claim)
        sure = {"form_token": form["form_token"], "confirm": "yes"}
        done = client.post(f"{there}/carry-out", data=sure)
        assert done.headers["location"] == there
        assert "2 cancelled. 1 skipped" in client.get(there).text
        assert "Everything is done" in client.get(there).text
        with Producer(site.settings) as producer:
            states = [producer.status(job).state for job in (*jobs, later)]
        assert states == ["calling", "cancelled", "cancelled", "queued"]
        again = client.post(f"{there}/carry-out", data=sure)
        assert again.status_code == 303
    found = AuditLog(site.ledger).newest(AuditFilter(), most=2)
    assert {one.on for one in found} == set(jobs[1:])
    assert {(one.what, one.who, one.why) for one in found} == {
        ("job.cancel", "operator@shop", "closed shop")
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"act": "job.nonsense"}, "is not one of the list"),
        ({"why": ""}, "is required"),
        ({"act": "review.rejected", "message": ""}, "is required"),
        ({"state": "registered"}, "no job that is queued"),
        ({"state": "nonsense"}, "not one of the list"),
    ],
)
def test_what_makes_no_plan_is_refused(site: Site, changes: dict[str, str], said: str) -> None:
    """The answer names the field, and no plan is stored."""
    before = site.ledger.redis.zcard("{reg}:plans")
    with site.client() as client:
        form = {"form_token": token(client.get("/jobs").text), "act": "job.cancel", "why": "x"}
        answer = client.post("/jobs/plan", data={**form, **changes})
    assert answer.status_code == 422
    assert said in answer.text
    assert site.ledger.redis.zcard("{reg}:plans") == before


PLANS: list[tuple[Any, int]] = [
    ({"metadata": "novalue"}, 422), ({"age": "9y"}, 422), ({"account": "\0/\0"}, 303),
    ({"act": ["job.cancel", "job.nonsense"]}, 422), ({"act": "delivery.replay"}, 422),
    ({"act": ""}, 422), ({"act": "{{7*7}}"}, 422), ({"act": "../plans"}, 422),
    ({"why": "x" * 501}, 422), ({"act": "review.rejected", "message": "x" * 201}, 422),
    ({"why": EVIL * 2000}, 413), ({f"f{n}": "x" for n in range(400)}, 422),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "status"), PLANS)
def test_a_strange_form_makes_no_plan_of_a_job(site: Site, changes: Any, status: int) -> None:
    """Wrong types, other actions and too large forms get a 4xx and store nothing; a search
    without results makes an empty plan."""
    before = site.ledger.redis.zcard("{reg}:plans")
    with site.client() as client:
        form = {"form_token": token(client.get("/jobs").text), "act": "job.cancel", "why": "x"}
        answer = client.post("/jobs/plan", data={**form, **changes})
        assert answer.status_code == status, answer.text
        assert "<script>alert" not in answer.text
        if status == 303:
            assert "No job matches" in client.get(answer.headers["location"]).text
    assert site.ledger.redis.zcard("{reg}:plans") == before + (status == 303)


def test_a_search_and_a_plan_with_hostile_texts_show_them_as_text(site: Site) -> None:
    """A job's metadata is shown as text in the search, its hidden fields, the plan's reason and
    the plan's page."""
    # Without the character that pages show as its number, also in a field.
    evil = EVIL.rstrip("\u202e")
    [job] = wanted(site, evil, 1)
    with site.client() as client:
        found = client.get("/jobs", params={"metadata": f"many={evil}"})
        assert job in found.text
        form = {
            "form_token": token(found.text),
            "metadata": html.unescape(
                re.findall(r'name="metadata" value="([^"]*)"', found.text)[1]
            ),
            "act": "job.cancel",
            "why": EVIL,
        }
        assert form["metadata"] == f"many={evil}"
        answer = client.post("/jobs/plan", data=form)
        preview = client.get(answer.headers["location"])
        assert job in preview.text
        for one in (found, preview):
            assert "<script>alert" not in one.text
            assert not attributes(one.text)
            assert "&lt;script&gt;alert" in one.text


def test_a_plan_that_is_gone_or_another_does_nothing(site: Site) -> None:
    """An unknown id, the id of a plan about deliveries and an expired plan all get 404."""
    [job] = wanted(site, "gone", 1)
    plans, actor = PlanStore(site.ledger), Actor("ann", "operator", "page", "x")
    of_deliveries = plans.make("delivery.replay", {}, [Item("d:e:crm", "")], actor).id
    expired = plans.make("job.cancel", {}, [Item(job, "")], actor).id
    with site.client() as client:
        preview = client.get(f"/plans/{expired}")
        assert preview.status_code == 200
        sure = {"form_token": token(preview.text), "confirm": "yes"}
        site.ledger.redis.delete(f"{{reg}}:plan:{expired}")
        ids = (expired, of_deliveries, "0" * 12, "*", "%00", "x" * 5000, f"{job}", "..%2Fjobs")
        for id_ in ids:
            assert client.get(f"/plans/{id_}").status_code == 404, id_
            answer = client.post(f"/plans/{id_}/carry-out", data=sure)
            assert answer.status_code == 404, id_
        assert plans.get(of_deliveries).left == 1
    with Producer(site.settings) as producer:
        assert producer.status(job).state == "queued"


def test_the_audit_names_who_carries_a_plan_out(site: Site) -> None:
    """If one operator made the plan and another one runs it, the audit log names the second."""
    [job] = wanted(site, "theirs", 1)
    actor = Actor("ann", "operator", "page", "planned by ann")
    plan = PlanStore(site.ledger).make("job.cancel", {}, [Item(job, "")], actor).id
    with site.client() as client:
        sure = {"form_token": token(client.get(f"/plans/{plan}").text), "confirm": "yes"}
        assert client.post(f"/plans/{plan}/carry-out", data=sure).status_code == 303
    [entry] = AuditLog(site.ledger).newest(AuditFilter(), most=1)
    assert (entry.on, entry.who, entry.why) == (job, "operator@shop", "planned by ann")


def test_a_persons_data_is_exported_and_erased(site: Site) -> None:
    """The export is a file with all of the person's data; after erasure the page shows none of
    it."""
    [job] = wanted(site, "b", 1)
    with site.client() as client:
        page = client.get(f"/jobs/{job}").text
        form = {"form_token": token(page), "confirm": "yes", "why": "request 4711"}
        file = client.post(f"/jobs/{job}/export", data=form)
        assert file.headers["content-disposition"] == f'attachment; filename="{job}.json"'
        assert file.json()["registration"]["customer_password"]
        assert f"/jobs/{job}/forget" not in page
        early = client.post(f"/jobs/{job}/forget", data=form)
        assert early.status_code == 409
        assert "cancel it first" in early.text
        client.post(f"/jobs/{job}/cancel", data=form)
        assert f"/jobs/{job}/forget" in client.get(f"/jobs/{job}").text
        done = client.post(f"/jobs/{job}/forget", data=form)
        assert (done.status_code, done.headers["location"]) == (303, f"/jobs/{job}")
        after = client.get(f"/jobs/{job}").text
        assert "Erased, with" in after
        assert "Erased on request" in after
        assert "many" not in re.sub(r"<[^>]*>", "", after)
    acts = [one.what for one in AuditLog(site.ledger).newest(AuditFilter(), most=3)]
    assert acts == ["job.forget", "job.cancel", "job.export"]


def test_each_alert_is_in_the_rules_and_in_the_runbook() -> None:
    """Each alert of the overview has the name of a Prometheus alert, and a link to its section."""
    source = Path(alerts.__file__).read_text("utf-8")
    names = set(re.findall(r'"(Regworker\w+)"', source))
    rules = (Path(alerts.__file__).parents[3] / "monitoring" / "rules.yml").read_text("utf-8")
    assert len(names) > 12
    assert not [name for name in names if f"alert: {name}\n" not in rules]
    assert all(alerts.runbook(name) for name in names)


def test_names_that_no_section_of_the_runbook_has_are_not_kept() -> None:
    """However many somebody asks for, and however long they are."""
    alerts.runbook("none")
    tracemalloc.start()
    try:
        for number in range(100):
            assert alerts.runbook(f"{number}" + "a" * 10_000) is None
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()


def test_a_pause_until_the_end_of_time_is_shown(site: Site) -> None:
    """In UTC it ends in the year 10000, which Python does not have."""
    with site.client() as client:
        form = {"form_token": token(client.get("/").text), "confirm": "yes", "why": "never"}
        there = "/accounts/skypostal/default"
        pause = {**form, "until": "9999-12-31T23:59:59-12:00"}
        assert client.post(f"{there}/pause", data=pause).status_code == 303
        shown = client.get("/accounts")
        client.post(f"{there}/resume", data=form)
    assert shown.status_code == 200
    assert "9999-12-31" in shown.text


def test_a_pause_ends_when_it_says(ledger: SyncLedger) -> None:
    """Jobs wait until the pause ends, and then run without an operator's action."""
    settings = Settings.load(
        redis_url=f"redis://127.0.0.1:{ledger.redis.connection_pool.connection_kwargs['port']}",
        sealing_keys=KEYS,
    )
    ledger(announce([Limits("open2b", "default", 0, 0, 0)], ["results"], settings.streams()))
    with Producer(settings) as producer:
        job_id = producer.enqueue(open2b()).job_id
    now = round(ledger.now())
    ledger(hold(("open2b", "default"), "pause", "maintenance", until=now + 5000))
    waits = ledger(claim(job_id, CLAIM, 0))
    assert isinstance(waits, NotNow)
    assert waits.why == "paused"
    assert waits.until <= now + 5000
    ledger(hold(("open2b", "default"), "pause", "maintenance", until=now))
    assert isinstance(ledger(claim(job_id, CLAIM, 0)), Claim)
