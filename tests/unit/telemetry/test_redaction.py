"""Logs and reports contain no secret, whatever it is wrapped in."""

import importlib
import json
import logging
import pkgutil
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ConnectionError, ResponseError  # noqa: A004

import worker
from regworker.domain.errors import (
    InvalidJob,
    InvalidOutcome,
    LedgerUnavailable,
    RegistrationWorkerError,
)
from regworker.named_files import NO_FILE
from regworker.sealing import seals
from regworker.sealing.keyring import Keyring
from regworker.testing import FakeProducer
from tests.integration.jobs import open2b, skypostal
from worker.providers.registry import Registry
from worker.telemetry.redaction import (
    is_secret,
    name_of,
    scrub,
    scrub_text,
    speaks,
    text_of,
    traceback_of,
)
from worker.telemetry.sentry import _before_breadcrumb, title_of
from worker.telemetry.third_party_logs import heard

SECRET = "Ky7mUp-canary-x3"
NAMES = [
    "customer_password",
    "password",
    "customer_identity_number",
    "customer_tax_number",
    "personalCode",
    "verificationCode",
    "app_key",
    "appKey",
    "X-Secret-Key",
    "customer_key",
    "REGWORKER_SEALING_KEYS",
    "webhook_secret",
    "secrets",
    "Authorization",
    "webhook-signature",
    "customer_email",
    "phoneNumber",
    "customer_birth_date",
    "payload",
    "sentry_dsn",
]


@pytest.mark.parametrize("name", NAMES)
def test_fields_that_hold_secrets_are_known_by_name(name: str) -> None:
    """In snake case, in camel case, as a header and as a variable."""
    assert is_secret(name)


@pytest.mark.parametrize(
    "name", ["idempotency_key", "job", "monkey", "reason", "keyboard", "state", "traceback", 5]
)
def test_other_fields_are_told(name: object) -> None:
    """For example a producer's own key for its job."""
    assert not is_secret(name)


@pytest.mark.parametrize("name", NAMES)
def test_secrets_are_taken_out_of_whatever_they_stand_in(name: str) -> None:
    """In structures at any depth, JSON in text, JSON in JSON, Python's notation, a query and a
    header."""
    given: dict[str, Any] = {name: SECRET}
    shown: list[Any] = [
        given,
        {"a": [{"b": (given,)}]},
        {name: [SECRET]},
        {name: 4711},
        json.dumps(given),
        {"text": json.dumps({"inner": json.dumps(given)})},
        f"cannot read {json.dumps(given)} here",
        f"cannot read {json.dumps(json.dumps(given))} here",
        f"cannot read {given!r} here",
        f"POST /x?{urlencode(given)}&a=b",
        f"{name}: {SECRET}",
        f"{name} = '{SECRET} and more'",
    ]
    for one in shown:
        clean = repr(scrub(one))
        assert SECRET not in clean, one
        assert "and more" not in clean
        assert "4711" not in clean


#: Ways to write a field with a secret value in a text, which may be cut off anywhere.
NOTATIONS = {
    "a header": "{name}: Basic {secret} and more",
    "a header with a list": "{name}: a=b; c={secret}, d={secret}",
    "a header in a query": "{name}={secret},{secret};{secret}",
    "a sentence": "{name}: {secret} and {secret}",
    "an assignment": "{name} = {secret} and {secret}",
    "a list": "{name}=['{secret}', '{secret}']",
    "a list of texts": '{name}: ["{secret}", "{secret}"]',
    "Ruby and PHP": "'{name}' => '{secret}'",
    "a pair": "[('{name}', '{secret}'), ('a', 'b')]",
    "a pair of bytes": "[(b'{name}', b'{secret}'), (b'a', b'b')]",
    "bytes": "{{b'{name}': b'{secret}'}}",
    "Python": "{{'{name}': '{secret} \\'{secret}'}}",
    "a quote in quotes": "{name}: '{secret}'{secret}'",
    "JSON": '{{"a": "{name}: x", "{name}": "{secret} \\"{secret}"}}',
    "JSON in JSON": '"{{\\"{name}\\": \\"{secret} {secret}\\"}}"',
    "another field's text": '{{"text": "{name}: {secret}", "b": 1',
}


def parts_of_a_secret(text: str) -> bool:
    """Whether a text contains four characters of it in a row."""
    return any(SECRET[at : at + 4] in text for at in range(len(SECRET) - 3))


@pytest.mark.parametrize("notation", NOTATIONS)
@pytest.mark.parametrize("name", ["customer_password", "X-Secret-Key", "Authorization"])
def test_a_text_that_is_cut_off_shows_no_part_of_a_secret(name: str, notation: str) -> None:
    """Wherever it is cut, by others before the redaction or by us after it."""
    if notation == "a header in a query" and name != "Authorization":
        return  # in any other query, only white space and & end a value
    text = NOTATIONS[notation].format(name=name, secret=SECRET)
    for end in range(len(text) + 1):
        assert not parts_of_a_secret(scrub_text(f"sent {text[:end]}")), text[:end]
        assert not parts_of_a_secret(scrub_text(f"sent {text[:end]}\nand then")), text[:end]
    for before in range(300 - len(text), 301, 7):
        said = heard(record("x", "%s %s", "x" * before, text))
        known = heard(record("worker.broker.envelopes", "%s (and %d like it)", text, 1))
        printed = heard(record("x", "x" * before + text))
        for one in (said, known, printed):
            assert one is not None
            assert not parts_of_a_secret(str(scrub({"event": one.event, **one.fields}))), text


def test_a_long_text_shows_no_part_of_a_secret_at_its_end() -> None:
    """A key that is cut in two looks like no key."""
    key = Keyring.new("2026").partition(":")[2]
    for before in range(3900, 4001, 3):
        for long in (key, f"rwt_0123456789ab_{key}", f"whsec_{key}"):
            clean = scrub_text(f"{'x' * before} 2026:{long} {'y ' * 9000}")
            assert len(clean) <= 4000
            assert key[:4] not in clean


def test_texts_of_our_own_about_a_setting_are_told() -> None:
    """An operator must read what is wrong with a key; a dump of the environment is redacted."""
    name = "REGWORKER_ACCOUNTS__SKYPOSTAL__EU__APP_KEY_FILE"
    for what in (NO_FILE, "is required", "Input should be a valid string"):
        assert scrub_text(f"{name}: {what}; {name}: {what}") == f"{name}: {what}; {name}: {what}"
    for dumped in (f"{name}: {SECRET}", f"{name}={SECRET} is", f"{{'{name}': '{SECRET} is set'}}"):
        assert not parts_of_a_secret(scrub_text(dumped))


@given(st.recursive(st.just(SECRET), lambda inner: st.lists(inner) | st.dictionaries(
    st.text(max_size=5), inner)))  # fmt: skip
def test_a_secrets_whole_value_is_taken_out(value: Any) -> None:
    """A value under a secret's name is removed completely, whatever its shape."""
    assert SECRET not in repr(scrub({"a": {"password": value}}))


def test_secrets_are_known_by_their_looks() -> None:
    """Sealed texts, webhook secrets, sealing keys and passwords in URLs need no name."""
    entry = Keyring.new("2026")
    sealed = Keyring.parse(entry).seal(b"plain", seals.kept("job"))
    shown = {
        sealed: "[sealed]",
        "whsec_dGhlIHNlY3JldA==": "whsec_",
        entry: "2026:[secret]",
        "redis://user:hunter2@127.0.0.1/0": "redis://***@127.0.0.1/0",
        f"rwt_0123456789ab_{'x' * 43}": "[secret]",
    }
    for text, instead in shown.items():
        clean = scrub_text(f"before {text} after")
        assert text not in clean
        assert instead.removeprefix("whsec_") in clean
        assert (clean.startswith("before "), clean.endswith(" after")) == (True, True)
    assert "hunter2" not in scrub_text("amqp://guest:hunter2@host//")


def test_what_tells_nothing_is_told_as_it_is() -> None:
    """Times, states and sentences do not change."""
    line = {"event": "called", "seconds": 0.2, "reason": "HTTP 502: bad gateway", "stale": False}
    assert scrub(line) == line


def test_a_structure_without_end_is_cut_off() -> None:
    """Huge texts are shortened, too."""
    loop: list[Any] = []
    loop.append(loop)
    assert "[cut off]" in repr(scrub(loop))
    assert len(scrub_text("a" * 10**6)) < 10_000


def choke(how: type[Exception]) -> Exception:
    """An exception that quotes the secret, with one of another kind as its cause."""
    try:
        _choke(how)
    except how as error:
        return error
    raise AssertionError


def _choke(how: type[Exception]) -> None:
    try:
        {}[SECRET]
    except KeyError as error:
        raise how(f"cannot use {SECRET}") from error


def test_texts_of_exceptions_that_may_quote_are_not_told() -> None:
    """The log has only the kind and the place: file, line, function and code."""
    error = choke(ValueError)
    assert name_of(error) == "ValueError"
    shown = traceback_of(error)
    assert SECRET not in shown
    assert "KeyError" in shown
    assert "_choke: raise how(" in shown


def test_texts_of_exceptions_about_servers_are_told() -> None:
    """They are useful; passwords and a command's arguments are removed."""
    assert "refused" in text_of(ConnectionError("connection to redis://a:pw@h/0 refused"))
    assert "pw" not in text_of(ConnectionError("connection to redis://a:pw@h/0 refused"))
    repeated = ResponseError(f"Command # 1 (SET a {SECRET}) of pipeline caused error: OOM")
    assert text_of(repeated) == "OOM"
    assert SECRET not in text_of(ResponseError(f"unknown command, with args beginning: {SECRET}"))
    assert (
        text_of(FileNotFoundError(2, "No such file or directory", SECRET))
        == "No such file or directory"
    )
    assert text_of(LedgerUnavailable("the ledger did not answer"))


def test_what_is_wrong_with_a_job_is_told() -> None:
    """The whole text of `InvalidJob`, also about a password; and no value of such a field."""
    wrong = open2b()
    wrong["registration"]["customer"] |= {"password": "a", "privacyConsents": []}
    wrong["registration"]["customer"]["address"] |= {"email": "@", "phoneNumber": "1" * 99}
    wrong["registration"] |= {"verificationCode": 7}
    more = skypostal()
    more["registration"] |= {"customer_password": "", "customer_birth_date": "x"}
    more["registration"]["customer_phone"][0].pop("phone_number")
    for job in (wrong, more):
        with pytest.raises(InvalidJob) as caught:
            FakeProducer().enqueue(job)
        assert len(caught.value.problems) > 2
        assert scrub_text(str(caught.value)) == str(caught.value)
    with pytest.raises(InvalidOutcome) as of_a_person:
        Registry(["open2b"]).outcome("open2b", {"customer_key": 5})
    assert "outcome.customer_key: must be text" in scrub_text(str(of_a_person.value))
    for text in (
        f"registration.customer.password: {SECRET}",
        f"outcome.customer_key: {SECRET}",
        f"customer.password: is {SECRET}",
        f"password: must be {SECRET}",
        f"registration.customer.password={SECRET}",
    ):
        assert SECRET not in scrub_text(text)


def test_groups_and_circles_of_exceptions_end() -> None:
    """Each exception is shown once."""
    first, second = ValueError(SECRET), KeyError(SECRET)
    first.__context__, second.__context__ = second, first
    assert traceback_of(first).count("ValueError") == 1
    assert "KeyError" in traceback_of(ExceptionGroup(SECRET, [first]))


def record(name: str, message: str, *args: Any) -> logging.LogRecord:
    """A record of the `logging` module."""
    return logging.LogRecord(name, logging.INFO, "", 0, message, args, None)


def test_noise_is_dropped_and_what_is_new_is_passed_on() -> None:
    """By logger and start of the text; the arguments of a known message become fields."""
    logger = "celery.worker.consumer.consumer"
    assert heard(record(logger, "Global QoS is disabled.")) is None
    connected = heard(record(f"{logger}.connection", "Connected to %s", "redis://"))
    assert connected is not None
    assert (connected.event, connected.fields) == ("broker connected", {"broker": "redis://"})
    new = heard(record(logger, "Something %s\nand a dump", "new"))
    assert new is not None
    assert new.event == "Something new"


def test_an_exception_in_a_message_is_told_by_its_kind() -> None:
    """`%r` of an exception would repeat its text; a wrong format string does no harm."""
    shown = heard(record("x", "failed: %r", choke(ValueError)))
    assert shown is not None
    assert SECRET not in shown.event
    assert heard(record("x", "%d of %d", "one")) is not None


def test_faults_of_a_kind_have_one_title() -> None:
    """Jobs, numbers and ids are no part of the title; the provider is."""
    lines = [
        {"alert": "unknown", "provider": "open2b", "reason": f"HTTP 502 ({n})", "job": n}
        for n in (100000, 200000)
    ]
    assert len({title_of(line) for line in lines}) == 1
    other = {**lines[0], "provider": "skypostal"}
    assert title_of(other) != title_of(lines[0])
    assert title_of({"event": "a loop's turn failed", "loop": "ring"}).endswith("loop ring")
    assert title_of({"alert": "review"}) == "? cannot say whether a customer exists"


def test_a_breadcrumb_is_one_of_our_steps() -> None:
    """Breadcrumbs of Sentry's SDK itself are dropped, because they differ between its versions."""
    step = {"category": "step", "message": "called"}
    assert _before_breadcrumb(step, None) == step
    assert _before_breadcrumb({"category": "httplib", "data": {}}, None) is None


def ours(kind: type[BaseException] = RegistrationWorkerError) -> Iterator[type[BaseException]]:
    """All error classes of this package, wherever they are defined."""
    for found in pkgutil.walk_packages(worker.__path__, "worker."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    left = [kind]
    while left:
        kind = left.pop()
        left += kind.__subclasses__()
        if kind.__module__.startswith("worker."):
            yield kind


def test_the_text_of_each_of_our_errors_is_told() -> None:
    """Otherwise the log would have only the error's name; this includes errors defined in other
    modules."""
    kinds = list(ours())
    assert len({kind.__module__ for kind in kinds}) > 3
    assert [kind for kind in kinds if not speaks(kind)] == []
