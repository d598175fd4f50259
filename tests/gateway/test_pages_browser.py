"""The pages in a real Chromium: each page and action, narrow and wide, dark and light, by keyboard.

`python -m tests.screenshot` takes the pictures in docs/images from the same pages."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from regworker.ledger.admin import hold
from sandbox.accounts import _hash
from tests.browser import Page, browser
from tests.gateway.stage import PASSWORD, Stage, pages
from tests.integration.installation import PATIENCE, ROOT
from tests.integration.jobs import ACTOR, open2b
from tests.programs import npm_packages
from worker.cli.local import stack
from worker.operations.plans import Item, PlanStore
from worker.operations.tokens import TokenStore

#: This file starts many programs, one after the other; each may be slow on a busy machine.
pytestmark = pytest.mark.timeout(900)

PHONE, DESK = 390, 1440


@dataclass
class Seen:
    """The installation, and a browser in which a person has signed in."""

    stage: Stage
    page: Page

    def open(self, path: str) -> Page:
        """Open one of the pages."""
        self.page.open(f"{self.stage.url}{path}")
        return self.page

    def path(self) -> str:
        """The path in the browser's address bar."""
        return str(self.page.run("location.pathname"))


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """One of each for all tests of this file."""
    folder = tmp_path_factory.mktemp("pages")
    with pages(folder) as stage, browser(folder, DESK, 900) as page:
        found = Seen(stage, page)
        sign_in(found)
        yield found


@pytest.fixture(autouse=True)
def _usual(seen: Seen) -> None:
    seen.page.resize(DESK, 900)
    seen.page.show()


def sign_in(seen: Seen) -> None:
    """Sign in by keyboard."""
    page = seen.open("/")
    assert seen.path() == "/sign-in"
    focus(page, "#name")
    page.press("jane", "Tab", PASSWORD)
    page.leave(lambda: page.press("Enter"), "the overview")
    assert seen.path() == "/"


def focus(page: Page, selector: str) -> None:
    """Press Tab until it has the focus, because keyboard users have no other way to reach it."""
    for _ in range(80):
        if page.run(f"document.activeElement.matches({selector!r})"):
            outline = page.run("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none", f"the focus on {selector} cannot be seen"
            return
        page.press("Tab")
    raise AssertionError(f"{selector} is not reached by Tab")


def paths(stage: Stage) -> list[str]:
    """Every page."""
    jobs = [f"/jobs/{one}" for one in stage.jobs.values()]
    lists = ["/", "/jobs", "/reviews", "/deliveries", "/accounts", "/quarantine", "/workers"]
    chosen = [Item(stage.jobs["review"], "")]
    words = {"rejected": "another customer has this address"}
    plan = PlanStore(stage.here.ledger).make("review.rejected", words, chosen, ACTOR)
    return [*lists, "/audit", "/runbook/RegworkerReview", f"/plans/{plan.id}", *jobs]


AXE = """
window.found = null;
axe.run(document, {resultTypes: ['violations']}).then(all => {
  window.found = JSON.stringify(all.violations
    .filter(one => ['serious', 'critical'].includes(one.impact))
    .map(one => one.id + ': ' + one.nodes.map(node => node.html).join(' ')));
}); null
"""


@pytest.mark.parametrize(
    ("width", "dark"), [(PHONE, True), (DESK, False)], ids=["narrow and dark", "wide and light"]
)
def test_every_page_is_for_everybody(
    seen: Seen, width: int, dark: bool, pytestconfig: pytest.Config
) -> None:
    """axe-core finds nothing serious; no page is wider than the window; each has one heading."""
    packages = npm_packages(pytestconfig, ROOT / "tests" / "node" / "axe", "pages for everybody")
    axe = (packages / "node_modules" / "axe-core" / "axe.min.js").read_text("utf-8")
    page = seen.page
    page.resize(width, 900)
    page.show(dark=dark)
    troubles = {}
    for path in paths(seen.stage):
        seen.open(path)
        page.run("document.querySelectorAll('details').forEach(one => { one.open = true })")
        assert page.run("document.documentElement.scrollWidth") <= width, path
        assert page.run("document.querySelectorAll('h1').length") == 1, path
        page.run(axe)
        page.run(AXE)
        stack.until(lambda: page.run("window.found !== null"), "axe", PATIENCE)
        if found := json.loads(page.run("window.found")):
            troubles[path] = found
    assert not troubles


def fill(page: Page, form: str, fields: dict[str, str], button: str = "button") -> None:
    """Open a form by keyboard, fill it in, confirm where that is asked, and go to its button."""
    page.run("document.activeElement.blur()")
    if page.run(f"document.querySelector({form!r}).closest('details')?.open === false"):
        focus(page, f"details:has({form}) > summary")
        page.press("Enter")
    for name, value in fields.items():
        focus(page, f'{form} [name="{name}"]')
        if page.run("document.activeElement.matches('select')"):
            for _ in range(page.run("document.activeElement.length")):
                if page.run("document.activeElement.value") != value:
                    page.press("ArrowDown")
            assert page.run("document.activeElement.value") == value
            continue
        page.run("document.activeElement.select()")
        page.press(value)
    if page.run(f"!!document.querySelector('{form} [name=confirm]')"):
        focus(page, f'{form} [name="confirm"]')
        page.press("Space")
    focus(page, f"{form} {button}")


def act(page: Page, form: str, fields: dict[str, str], button: str = "button") -> None:
    """Open a form by keyboard, fill it in, confirm it if asked, and send it."""
    fill(page, form, fields, button)
    page.leave(lambda: page.press("Enter"), "the next page")


@pytest.mark.parametrize("script", [True, False], ids=["with script", "without"])
def test_support_settles_a_review_from_the_page_alone(seen: Seen, script: bool) -> None:
    """From the work list: ask the provider, read what will happen, enter the outcome, and
    confirm."""
    job_id = seen.stage.in_review(f"ours-{script}")
    page = seen.page
    page.show(script=script)
    seen.open("/reviews")
    focus(page, f'a.button[href="/jobs/{job_id}#settle"]')
    page.leave(lambda: page.press("Enter"), "the job")
    focus(page, 'form[action*="/ask"] button')
    page.leave(lambda: page.press("Enter"), "what the provider says")
    assert "The provider cannot tell." in page.text()
    form = f'form[action="/jobs/{job_id}/registered"]'
    fields = page.run(f"[...document.querySelectorAll('{form} input')].map(one => one.name)")
    outcome = [one for one in fields if one.startswith("outcome.")]
    assert outcome == ["outcome.customer_box_id", "outcome.customer_key"]
    values = {"outcome.customer_box_id": "a box", "outcome.customer_key": "key-of-the-customer"}
    act(page, form, {**values, "why": "seen at the provider"})
    # Nothing was done; the page names the mistake, and does not repeat the input.
    assert "Nothing was done" in page.text()
    assert page.run("document.querySelectorAll('[aria-invalid]').length") == 1
    assert "key-of-the-customer" not in page.run("document.documentElement.outerHTML")
    assert seen.stage.here.producer.status(job_id).state == "review"
    values["outcome.customer_box_id"] = "811111"
    act(page, form, values)
    assert "Recorded as registered." in page.text()
    assert "marked as registered" in page.text()
    event = seen.stage.here.producer.wait(job_id, PATIENCE)
    assert event["data"]["outcome"] == {
        "customer_box_id": 811111,
        "customer_key": "key-of-the-customer",
    }
    assert "key-of-the-customer" not in page.text()


def test_what_the_provider_gives_need_not_be_copied(seen: Seen) -> None:
    """If the customer is ours, the page records the provider's data itself, and shows no key."""
    job_id = seen.stage.in_review("found")
    [ours] = seen.stage.here.sandbox.accounts.find(email="found@example.com")
    object.__setattr__(ours, "password_hash", _hash("another found", "salt"))
    page = seen.open(f"/jobs/{job_id}")
    focus(page, 'form[action*="/ask"] button')
    page.leave(lambda: page.press("Enter"), "what the provider says")
    assert "Yes: the customer exists" in page.text()
    act(page, f'form[action="/jobs/{job_id}/found"]', {"why": "the provider found it"})
    assert "Recorded as registered." in page.text()
    outcome: Any = seen.stage.here.producer.wait(job_id, PATIENCE)["data"]["outcome"]
    assert outcome["customer_key"] == ours.customer_key
    assert ours.customer_key not in page.run("document.documentElement.outerHTML")


def test_a_duplicate_is_never_called_absent(seen: Seen) -> None:
    """After a refusal as a duplicate, the page does not say that nobody is there: the address may
    be that of this job's customer."""
    here = seen.stage.here
    here.run(open2b("twice@example.com", idempotency_key="twice-first"))
    made = open2b("twice@example.com", idempotency_key="twice")
    made["registration"]["customer"]["password"] = "another 1"
    rule = {"kind": "drop_before_commit", "email": "twice@example.com"}
    here.sandbox.faults.configure({"script": [rule]})
    job_id = here.producer.enqueue(made).job_id
    here.wait_for(job_id, "review")
    page = seen.open(f"/jobs/{job_id}")
    focus(page, 'form[action*="/ask"] button')
    page.leave(lambda: page.press("Enter"), "what the provider says")
    assert "The provider cannot tell." in page.text()
    assert "refused as a duplicate" in page.text().lower()
    assert "finds no customer" not in page.text()


#: Page, action of the form, its fields, and the text on the next page.
ACTS = [
    ("/jobs/{queued}", "/cancel", {"why": "asked by the shop"}, "The job is cancelled."),
    ("/jobs/{review}", "/rejected", {"why": "seen"}, "Recorded as rejected."),
    (
        "/jobs/{review}",
        "/correct/registered",
        {
            "outcome.customer_box_id": "811112",
            "outcome.customer_key": "the-right-key",
            "why": "seen again",
        },
        "Corrected to registered.",
    ),
    ("/jobs/{again}", "/resend", {"why": "it works again"}, "The job continues"),
    ("/accounts", "/accounts/open2b/default/pause", {"why": "maintenance"}, "is paused"),
    ("/accounts", "/accounts/open2b/default/resume", {}, "is resumed"),
    ("/deliveries", "/endpoints/crm/enable", {}, "The endpoint crm is enabled"),
]


@pytest.mark.parametrize("script", [True, False], ids=["with script", "without"])
def test_each_act_by_keyboard(seen: Seen, script: bool) -> None:
    """Each says what will happen, asks for confirmation, does it, reports it, and is in the
    audit log."""
    stage, page = seen.stage, seen.page
    names = {name: f"{name}-{script}" for name in ("queued", "review", "again")}
    page.resize(DESK if script else PHONE, 900)
    page.show(script=script)
    jobs = {
        "queued": stage.queued(names["queued"]),
        "review": stage.in_review(names["review"]),
        "again": stage.in_review(names["again"]),
    }
    if "disabled" not in seen.open("/deliveries").text():
        stage.dead(f"dead-{script}")
    for path, action, fields, says in ACTS:
        seen.open(path.format(**jobs))
        form = f'form[action$="{action}"]'
        shown = page.run(f"document.querySelector('{form}').textContent")
        assert "What will follow" in shown
        act(page, form, fields)
        assert says in page.text(), action
    for path, action, button, says in (
        ("/deliveries", "/deliveries/retry", "[formaction]", "1 of 1 is sent again"),
        ("/quarantine", "/quarantine/drop", "button.danger", "1 dropped"),
    ):
        if path == "/quarantine" and "Nothing is in quarantine" in seen.open(path).text():
            stage.set_aside()
        seen.open(path)
        focus(page, 'input[name="id"]')
        page.press("Space")
        act(page, f'form[action="{action}"]', {}, button)
        assert says in page.text(), path
    audit = seen.open("/audit").text()
    actions = ("account.pause", "account.resume", "review.rejected", "review.resend")
    for what in (*actions, "review.correct"):
        assert what in audit
    assert "jane" in audit
    assert "maintenance" in audit
    corrected = seen.open(f"/jobs/{jobs['review']}").text()
    assert "corrected to registered" in corrected
    assert "the-right-key" not in page.run("document.documentElement.outerHTML")
    assert not page.run("!!document.querySelector('#correct')"), "it is corrected once"


def many(page: Page, what: str, why: str, jobs: list[str]) -> None:
    """Go from a list to the preview, which shows these jobs and what will happen; then confirm."""
    act(page, 'form[action="/jobs/plan"]', {"act": what, "why": why})
    shown = page.text()
    assert f"chose {len(jobs)} job" in shown
    assert f"Reason: {why}" in shown
    assert "What will follow for each of these jobs" in shown
    listed = page.run("[...document.querySelectorAll('main li')].map(one => one.innerText)")
    assert sorted(listed) == sorted(jobs)
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    act(page, 'form[action$="/carry-out"]', {})
    assert "Everything is done." in page.text()


@pytest.mark.parametrize("script", [True, False], ids=["with script", "without"])
def test_many_jobs_and_one_persons_data_by_keyboard(
    seen: Seen, script: bool, tmp_path: Path
) -> None:
    """Each act on all jobs of a search does what its preview showed; then one job is exported
    and erased."""
    stage, page = seen.stage, seen.page
    key = f"many-{script}"
    in_review = stage.in_review(key, metadata={"many": key})
    with paused(stage):
        made = [open2b(metadata={"many": key}) for _ in range(2)]
        queued = [stage.here.producer.enqueue(job).job_id for job in made]
        page.resize(DESK if script else PHONE, 900)
        page.show(script=script, dark=not script)
        seen.open(f"/jobs?metadata=many%3D{key}")
        many(page, "job.cancel", "closed shop", queued)
    assert "2 cancelled." in page.text()
    assert [stage.here.producer.status(job).state for job in queued] == ["cancelled"] * 2
    seen.open(f"/jobs?metadata=many%3D{key}")
    many(page, "review.resend", "it works again", [in_review])
    assert "1 resent." in page.text()
    stage.here.wait_for(in_review, "review")
    seen.open(f"/jobs?metadata=many%3D{key}")
    many(page, "review.rejected", "seen", [in_review])
    assert "1 rejected." in page.text()
    page.save_into(tmp_path)
    seen.open(f"/jobs/{queued[0]}")
    fill(page, 'form[action$="/export"]', {"why": "request 4711"})
    page.press("Enter")
    file = tmp_path / f"{queued[0]}.json"
    stack.until(file.exists, "the file", PATIENCE)
    assert json.loads(file.read_text())["job_id"] == queued[0]
    act(page, 'form[action$="/forget"]', {"why": "request 4711"})
    assert "Erased, with" in page.text()
    audit = seen.open("/audit").text()
    for what in ("job.cancel", "review.resend", "review.rejected", "job.export", "job.forget"):
        assert what in audit


@contextmanager
def paused(stage: Stage) -> Iterator[None]:
    """New jobs for Open2b stay queued in this block."""
    account = ("open2b", "default")
    stage.here.ledger(hold(account, "pause", "a test", actor=ACTOR))
    try:
        yield
    finally:
        stage.here.ledger(hold(account, "resume", "", actor=ACTOR))


def test_a_token_is_a_way_in(seen: Seen) -> None:
    """A person signs in with it by keyboard, and sees how a decision was corrected, and by whom."""
    stage, page = seen.stage, seen.page
    job_id = stage.in_review("by-token")
    seen.open(f"/jobs/{job_id}")
    rejected = {"why": "seen"}
    act(page, f'form[action="/jobs/{job_id}/rejected"]', rejected)
    focus(page, 'form[action="/sign-out"] button')
    page.leave(lambda: page.press("Enter"), "the page")
    text, _ = TokenStore(stage.here.ledger).new("tom", ("support",))
    focus(page, "#token")
    page.press(text)
    page.leave(lambda: page.press("Enter"), "the overview")
    shown = seen.open(f"/jobs/{job_id}").text()
    assert "tom" in shown
    assert "Correcting requires the role operator" in shown
    focus(page, 'form[action="/sign-out"] button')
    page.leave(lambda: page.press("Enter"), "the page")
    sign_in(seen)


def test_a_job_is_found_by_its_key_and_no_url_tells_it(seen: Seen) -> None:
    """A key can hold any data, so the form sends it in its body."""
    page = seen.open("/")
    focus(page, "#find")
    page.press("order-1001")
    page.leave(lambda: page.press("Enter"), "the job")
    assert seen.path() == f"/jobs/{seen.stage.jobs['registered']}"
    assert "order-1001" not in page.run("location.href")
    assert "order-1001" in page.text()


def test_a_list_goes_on_where_a_page_ends(seen: Seen) -> None:
    """Filters narrow the list down, and its cursor leads to the next page."""
    producer = seen.stage.here.producer
    for job in [producer.enqueue(open2b(metadata={"batch": 9})).job_id for _ in range(52)]:
        producer.wait(job, PATIENCE)
    page = seen.open(_LIST)
    assert len(page.table("table.list")) == 50
    first = {row["Job"] for row in page.table("table.list")}
    focus(page, 'a[rel="next"]')
    page.leave(lambda: page.press("Enter"), "the next page")
    second = {row["Job"] for row in page.table("table.list")}
    assert len(second) == 2
    assert not first & second


_LIST = "/jobs?state=finished&account=open2b%2Fdefault&metadata=batch%3D9"


def test_signing_out_ends_the_session(seen: Seen) -> None:
    """The next page asks the person to sign in."""
    page = seen.open("/")
    focus(page, 'form[action="/sign-out"] button')
    page.leave(lambda: page.press("Enter"), "the page")
    seen.open("/jobs")
    assert seen.path() == "/sign-in"
    sign_in(seen)


def test_pictures(seen: Seen, tmp_path: Path) -> None:
    """`python -m tests.screenshot` can take its pictures."""
    page = seen.open("/")
    page.screenshot(tmp_path / "overview.png", whole=True)
    assert (tmp_path / "overview.png").read_bytes().startswith(b"\x89PNG")
