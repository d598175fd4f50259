"""Sealed text opens only with its key, and errors show nothing of its content."""

import base64
import inspect
import json
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwe
from joserfc.jwk import OctKey

from regworker.domain.errors import SealingError, SettingsError, WrongSeal
from regworker.domain.job import Job
from regworker.sealing import seals
from regworker.sealing.keyring import Keyring
from regworker.sealing.seals import Seal

OLD, NEW = Keyring.new("2025"), Keyring.new("2026")
RING = Keyring.parse(f"{NEW},{OLD}")
SEAL = seals.event("job-1.1.registered", "crm")
SAID = {"typ": "event", "sub": "job-1.1.registered", "aud": ["crm"]}

#: Accepts the names of claims in a header, as RFC 7519 defines them.
REGISTRY = jwe.JWERegistry(strict_check_header=False, algorithms=["dir", "A256GCM"])


def key_of(entry: str) -> OctKey:
    """The key of a setting's entry, for another library."""
    encoded = entry.partition(":")[2]
    return OctKey.import_key(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))


def flip(sealed: str, part: int) -> str:
    """The same text with one bit of one of its five parts changed."""
    parts = sealed.split(".")
    raw = bytearray(base64.urlsafe_b64decode(parts[part] + "=" * (-len(parts[part]) % 4)))
    raw[0] ^= 1
    parts[part] = base64.urlsafe_b64encode(bytes(raw)).decode().rstrip("=")
    return ".".join(parts)


@given(st.binary(max_size=500))
def test_what_is_sealed_opens_again(plain: bytes) -> None:
    """Any bytes come back unchanged."""
    assert RING.open(RING.seal(plain, SEAL), SEAL) == plain


def test_a_sealed_text_is_a_compact_jwe_that_names_its_key() -> None:
    """JOSE libraries of any language can open it: `dir`, `A256GCM`, `kid` in the header."""
    sealed = RING.seal(b"plain", SEAL)
    header = json.loads(base64.urlsafe_b64decode(sealed.split(".")[0] + "=="))
    assert header == {"alg": "dir", "enc": "A256GCM", "kid": "2026", **SAID}
    found = jwe.decrypt_compact(sealed, key_of(NEW), registry=REGISTRY)
    assert found.plaintext == b"plain"


def test_what_another_library_sealed_opens() -> None:
    """A producer in another language can seal its jobs."""
    header = {"alg": "dir", "enc": "A256GCM", "kid": "2025", **SAID}
    sealed = jwe.encrypt_compact(header, b"plain", key_of(OLD), registry=REGISTRY)
    assert RING.open(sealed, SEAL) == b"plain"


def test_a_header_may_be_spelled_in_any_way() -> None:
    """Other libraries order the fields of a header differently, or use spaces."""
    header = {**SAID, "kid": "2025", "enc": "A256GCM", "alg": "dir"}
    sealed = jwe.encrypt_compact(header, b"plain", key_of(OLD), registry=REGISTRY)
    assert sealed.partition(".")[0] != Keyring.parse(OLD).seal(b"plain", SEAL).partition(".")[0]
    assert RING.open(sealed, SEAL) == b"plain"


@given(st.binary(max_size=500))
def test_what_joserfc_seals_and_opens_is_the_same(plain: bytes) -> None:
    """Our own implementation gives the same text as the library, including the header."""
    header = {"alg": "dir", "enc": "A256GCM", "kid": "2026", **SAID}
    sealed = jwe.encrypt_compact(header, plain, key_of(NEW), registry=REGISTRY)
    ours = RING.seal(plain, SEAL)
    assert list(map(len, ours.split("."))) == list(map(len, sealed.split(".")))
    assert ours.partition(".")[0] == sealed.partition(".")[0]
    assert jwe.decrypt_compact(ours, key_of(NEW), registry=REGISTRY).plaintext == plain


def test_many_threads_seal_and_open_with_one_keyring() -> None:
    """A producer is shared between threads."""
    texts = [str(number).encode() * 50 for number in range(500)]
    with ThreadPoolExecutor(8) as threads:
        assert (
            list(threads.map(lambda text: RING.open(RING.seal(text, SEAL), SEAL), texts)) == texts
        )


def test_two_seals_of_one_text_differ() -> None:
    """Sealed texts do not show whether their contents are the same."""
    assert RING.seal(b"plain", SEAL) != RING.seal(b"plain", SEAL)


def test_the_first_key_seals_and_all_open() -> None:
    """An operator rotates keys by putting a new one in front."""
    assert RING.open(Keyring.parse(OLD).seal(b"plain", SEAL), SEAL) == b"plain"
    assert Keyring.parse(NEW).open(RING.seal(b"plain", SEAL), SEAL) == b"plain"


def test_a_key_that_is_gone_is_named() -> None:
    """The error names the missing key and its setting."""
    sealed = Keyring.parse(OLD).seal(b"plain", SEAL)
    with pytest.raises(SealingError, match=r"'2025'.*REGWORKER_SEALING_KEYS"):
        Keyring.parse(NEW).open(sealed, SEAL)


def respelled(sealed: str) -> Iterator[str]:
    """The same bytes, encoded or divided differently."""
    header, _, iv, ciphertext, tag = sealed.split(".")
    yield f"{header}..{iv}.{ciphertext}.{tag}="
    yield f"{header}..{iv}.{ciphertext}\n.{tag}"
    yield f"{header}..{iv}.{ciphertext}.{tag[:-1]}{chr(ord(tag[-1]) + 1)}"
    yield f"{header}..{iv}.{ciphertext}{tag[:4]}.{tag[4:]}"
    yield f"{header}.AAAA.{iv}.{ciphertext}.{tag}"
    yield f"{header}..{iv}.{ciphertext}.{tag}."


@pytest.mark.parametrize("number", range(6))
def test_a_sealed_text_has_one_spelling(number: int) -> None:
    """A text that was changed does not open, even if it decodes to the same bytes."""
    plain = b"of a length that base64 ends without padding"[:42]
    with pytest.raises(SealingError):
        RING.open(list(respelled(RING.seal(plain, SEAL)))[number], SEAL)


@pytest.mark.parametrize("part", [2, 3, 4], ids=["iv", "ciphertext", "tag"])
def test_a_text_that_was_changed_does_not_open(part: int) -> None:
    """One changed bit is enough."""
    with pytest.raises(SealingError):
        RING.open(flip(RING.seal(b"plain", SEAL), part), SEAL)


def test_a_text_under_a_known_kid_but_another_key_does_not_open() -> None:
    """The name of a key is no proof."""
    with pytest.raises(SealingError):
        Keyring.parse(Keyring.new("2026")).open(RING.seal(b"plain", SEAL), SEAL)


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "dir", "enc": "A256GCM"},
        {"alg": "dir", "enc": "A256GCM", "kid": ["2026"]},
        {"alg": "dir", "enc": "A256GCM", "kid": None},
        {"alg": "none", "enc": "A256GCM", "kid": "2026"},
        {"alg": "A256KW", "enc": "A256GCM", "kid": "2026"},
        {"alg": "dir", "enc": "A256CBC-HS512", "kid": "2026"},
        {"alg": "dir", "enc": "A256GCM", "kid": "2026", "zip": "DEF"},
        {"alg": "dir", "enc": "A256GCM", "kid": "2026", "crit": ["x"], "x": 1},
        ["dir"],
    ],
    ids=str,
)
def test_a_header_of_another_kind_is_refused(header: object) -> None:
    """Any header that we would not write gives a `SealingError`, and no crash."""
    encoded = base64.urlsafe_b64encode(json.dumps(header).encode()).decode().rstrip("=")
    rest = RING.seal(b"plain", SEAL).partition(".")[2]
    with pytest.raises(SealingError):
        RING.open(f"{encoded}.{rest}", SEAL)


@given(st.text(max_size=60) | st.lists(st.text("aZ_-=", max_size=9)).map(".".join))
def test_what_is_no_sealed_text_is_refused(text: str) -> None:
    """Any other input gives a `SealingError`, which does not repeat the input."""
    with pytest.raises(SealingError) as caught:
        RING.open(text, SEAL)
    assert len(text) < 8 or text not in str(caught.value)


# kind and owner of a sealed text


def job(**changes: Any) -> Job:
    """A job."""
    asked = {"provider": "skypostal", "idempotency_key": "crm-1", "registration": {}}
    return Job.model_validate({**asked, **changes})


def handed_in(**changes: Any) -> Seal:
    """The seal that a sender puts on a registration."""
    return seals.registration(job(**changes).model_dump())


KINDS: dict[str, tuple[Seal, list[Seal]]] = {
    "registration": (
        handed_in(),
        [
            handed_in(idempotency_key="crm-2"),
            handed_in(provider="open2b"),
            handed_in(account="other"),
            handed_in(reply_to=["crm"]),
            handed_in(reply_to=["results", "crm"]),
        ],
    ),
    "payload": (
        seals.payload(job()),
        [
            seals.payload(job(idempotency_key="crm-2")),
            seals.payload(job(if_exists="adopt")),
            seals.payload(job(reply_to=["crm"])),
            seals.payload(job(reply_to=[])),
            seals.payload(job(reply_to=["results", "crm"])),
            seals.payload(job(metadata={"customer": 2})),
        ],
    ),
    "kept": (seals.kept(job().id), [seals.kept(job(idempotency_key="crm-2").id)]),
    "event": (
        SEAL,
        [
            seals.event("job-2.1.registered", "crm"),
            seals.event("job-1.2.registered", "crm"),
            seals.event("job-1.1.registered", "erp"),
        ],
    ),
    "quarantine": (
        seals.quarantine("0123456789ab", "registrations"),
        [
            seals.quarantine("ba9876543210", "registrations"),
            seals.quarantine("0123456789ab", "celery"),
        ],
    ),
}
"""Each kind: one seal of it, and other seals that must not open it."""


def test_every_kind_is_in_the_table() -> None:
    """A new kind must be added to the table."""
    functions = inspect.getmembers(seals, inspect.isfunction)
    assert {name for name, one in functions if one.__module__ == seals.__name__} == set(KINDS)


@pytest.mark.parametrize("place", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_text_opens_as_its_own_kind_only(kind: str, place: str) -> None:
    """The error names both kinds, and shows no content."""
    own, there = KINDS[kind][0], KINDS[place][0]
    sealed = RING.seal(b"canary", own)
    if kind == place:
        assert RING.open(sealed, own) == b"canary"
        return
    with pytest.raises(WrongSeal, match=f"{kind}.*{place}") as caught:
        RING.open(sealed, there)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("own", "other"), [(own, other) for own, others in KINDS.values() for other in others], ids=str
)
def test_a_text_opens_as_nobody_elses(own: Seal, other: Seal) -> None:
    """It does not open for another job, another request or another endpoint."""
    with pytest.raises(WrongSeal, match=r"sealed (as|for)") as caught:
        RING.open(RING.seal(b"canary", own), other)
    assert "canary" not in str(caught.value)


@given(st.builds(Seal, st.sampled_from(sorted(KINDS)), st.text(max_size=40)))
def test_what_a_text_says_of_itself_comes_back(seal: Seal) -> None:
    """Any name works in the header, although its JSON is written by hand."""
    sealed = RING.seal(b"plain", seal)
    header = json.loads(base64.urlsafe_b64decode(sealed.split(".")[0] + "=="))
    assert (header["typ"], header["sub"]) == (seal.typ, seal.sub)
    assert RING.open(sealed, seal) == b"plain"
    with pytest.raises(WrongSeal):
        RING.open(sealed, Seal(seal.typ, f"{seal.sub}x"))


def test_its_header_cannot_be_changed() -> None:
    """The header is authenticated with the content."""
    sealed, other = (RING.seal(b"plain", seal) for seal in (SEAL, KINDS["kept"][0]))
    moved = ".".join([other.split(".")[0], *sealed.split(".")[1:]])
    with pytest.raises(SealingError, match="was changed"):
        RING.open(moved, KINDS["kept"][0])


def by_others(kid: str, **said: Any) -> str:
    """A text that another library sealed."""
    header = {"alg": "dir", "enc": "A256GCM", "kid": kid, **said}
    return jwe.encrypt_compact(
        header, b"plain", key_of({"2025": OLD, "2026": NEW}[kid]), registry=REGISTRY
    )


def test_a_sender_may_leave_out_who_gets_the_result() -> None:
    """The audience may be missing in a sender's registration, and in no other text."""
    sub = KINDS["registration"][0].sub
    assert RING.open(by_others("2026", typ="registration", sub=sub), handed_in()) == b"plain"
    one = by_others("2026", typ="registration", sub=sub, aud="results")
    assert RING.open(one, handed_in()) == b"plain"
    with pytest.raises(WrongSeal, match="sealed for 'results'"):
        RING.open(one, handed_in(reply_to=["results", "crm"]))
    with pytest.raises(WrongSeal, match="sealed for None"):
        RING.open(by_others("2026", typ="event", sub=SEAL.sub), SEAL)


@pytest.mark.parametrize("aud", [{}, 1, [["crm"]], [], None, ""], ids=str)
def test_a_strange_audience_is_nobody(aud: object) -> None:
    """Any other JSON value as the audience is refused."""
    with pytest.raises(WrongSeal):
        RING.open(by_others("2026", typ="event", sub=SEAL.sub, aud=aud), SEAL)


@pytest.mark.parametrize("kid", ["2025", "2026"])
def test_a_text_that_does_not_say_what_it_is_is_refused(kid: str) -> None:
    """A text without `typ` and `sub` is refused under each key."""
    for seal, _ in KINDS.values():
        with pytest.raises(SealingError, match="lacks `typ` and `sub`"):
            RING.open(by_others(kid), seal)
        with pytest.raises(WrongSeal):
            RING.open(by_others(kid, typ="JWE"), seal)


def test_a_text_under_an_older_key_that_says_what_it_is_opens_as_that_only() -> None:
    """An older key is no way to avoid the check."""
    with pytest.raises(WrongSeal):
        RING.open(Keyring.parse(OLD).seal(b"plain", SEAL), KINDS["payload"][0])


# fingerprints, keys


def test_fingerprints_are_equal_for_equal_content_only() -> None:
    """A repeat is recognised although its content is not stored."""
    assert RING.fingerprints(b"one") == RING.fingerprints(b"one")
    assert not set(RING.fingerprints(b"one")) & set(RING.fingerprints(b"two"))


def test_a_rotation_during_a_seal_mixes_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings may be read again while another thread seals."""
    ring = Keyring.parse(OLD)

    def rotated(size: int) -> bytes:
        ring.use(Keyring.parse(NEW))
        return secrets.token_bytes(size)

    monkeypatch.setattr("regworker.sealing.keyring.nonce", rotated)
    assert Keyring.parse(OLD).open(ring.seal(b"text", SEAL), SEAL) == b"text"


def test_fingerprints_name_their_key_the_first_keys_first() -> None:
    """After a rotation, the fingerprint under the old key is still in the list."""
    [new, old] = RING.fingerprints(b"one")
    assert (new[:5], old[:5]) == ("2026:", "2025:")
    assert Keyring.parse(OLD).fingerprints(b"one") == [old]


def test_a_fingerprint_needs_the_key() -> None:
    """The content contains a password, which must not be found by guessing."""
    assert Keyring.parse(Keyring.new("2026")).fingerprints(b"one") != RING.fingerprints(b"one")[:1]


def entry(size: int) -> str:
    """An entry of the setting with a key of this size."""
    return base64.urlsafe_b64encode(secrets.token_bytes(size)).decode()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "entry 1 is not of the form"),
        (f"{NEW},", "entry 2 is not of the form"),
        (entry(32), "entry 1 is not of the form"),
        (":" + entry(32), "entry 1 is not of the form"),
        ("a:", "entry 1 is not of the form"),
        ("a:no base64", "'a' is not base64url"),
        ("a:" + "é" * 43, "'a' is not base64url"),
        ("a:" + entry(16), "'a' has 16 bytes; it takes 32"),
        (f"{NEW},{NEW}", "'2026' is given twice"),
    ],
    ids=(
        "nothing",
        "comma",
        "no kid",
        "empty kid",
        "no key",
        "no base64",
        "accents",
        "short",
        "twice",
    ),
)
def test_a_wrong_setting_says_which_entry_is_wrong(text: str, words: str) -> None:
    """The error names the entry, and shows no key."""
    with pytest.raises(SettingsError, match="REGWORKER_SEALING_KEYS") as caught:
        Keyring.parse(text)
    assert words in str(caught.value)
    assert NEW.partition(":")[2] not in str(caught.value)


def test_spaces_and_padding_do_no_harm() -> None:
    """A pasted key may have padding and spaces around it."""
    padded = f" a:{entry(32)} , {OLD}"
    assert Keyring.parse(padded).open(Keyring.parse(OLD).seal(b"plain", SEAL), SEAL) == b"plain"


class Compared(str):
    """A text that counts its comparisons."""

    times = 0

    def __eq__(self, other: object) -> bool:
        Compared.times += 1
        return str(self) == other

    __hash__ = str.__hash__


def test_many_endpoints_are_compared_once_each() -> None:
    """A job for many endpoints, sealed for as many, takes no more comparisons than it has names."""
    names = [f"e{number}" for number in range(1000)]
    sealed = RING.seal(b"plain", seals.event("1", *names))
    wanted = seals.event("1", *map(Compared, names))
    Compared.times = 0
    assert RING.open(sealed, wanted) == b"plain"
    assert Compared.times <= len(names)
