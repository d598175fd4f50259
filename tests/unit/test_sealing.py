"""What is sealed opens only with its key, and says nothing of itself when it does not."""

import base64
import json
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwe
from joserfc.jwk import OctKey

from worker.errors import SealingError, SettingsError
from worker.sealing import Keyring

OLD, NEW = Keyring.new("2025"), Keyring.new("2026")
RING = Keyring.parse(f"{NEW},{OLD}")


def key_of(entry: str) -> OctKey:
    """The key in an entry of the setting, for another library."""
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
    """Any bytes come back as they were."""
    assert RING.open(RING.seal(plain)) == plain


def test_a_sealed_text_is_a_compact_jwe_that_names_its_key() -> None:
    """Any language's JOSE library opens it: `dir`, `A256GCM`, `kid` in the header."""
    sealed = RING.seal(b"plain")
    header = json.loads(base64.urlsafe_b64decode(sealed.split(".")[0] + "=="))
    assert header == {"alg": "dir", "enc": "A256GCM", "kid": "2026"}
    found = jwe.decrypt_compact(sealed, key_of(NEW), algorithms=["dir", "A256GCM"])
    assert found.plaintext == b"plain"


def test_what_another_library_sealed_opens() -> None:
    """A producer in another language seals for us."""
    header = {"alg": "dir", "enc": "A256GCM", "kid": "2025"}
    sealed = jwe.encrypt_compact(header, b"plain", key_of(OLD), algorithms=["dir", "A256GCM"])
    assert RING.open(sealed) == b"plain"


def test_a_header_may_be_spelled_in_any_way() -> None:
    """Other libraries write its fields in another order, or with spaces."""
    header = {"kid": "2025", "enc": "A256GCM", "alg": "dir"}
    sealed = jwe.encrypt_compact(header, b"plain", key_of(OLD), algorithms=["dir", "A256GCM"])
    assert sealed.partition(".")[0] != Keyring.parse(OLD).seal(b"plain").partition(".")[0]
    assert RING.open(sealed) == b"plain"


@given(st.binary(max_size=500))
def test_what_joserfc_seals_and_opens_is_the_same(plain: bytes) -> None:
    """Ours is made by hand; down to its header it is what the library makes."""
    header = {"alg": "dir", "enc": "A256GCM", "kid": "2026"}
    sealed = jwe.encrypt_compact(header, plain, key_of(NEW), algorithms=["dir", "A256GCM"])
    ours = RING.seal(plain)
    assert list(map(len, ours.split("."))) == list(map(len, sealed.split(".")))
    assert ours.partition(".")[0] == sealed.partition(".")[0]
    assert jwe.decrypt_compact(ours, key_of(NEW), algorithms=["dir", "A256GCM"]).plaintext == plain


def test_many_threads_seal_and_open_with_one_keyring() -> None:
    """A producer is shared between threads."""
    texts = [str(number).encode() * 50 for number in range(500)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda text: RING.open(RING.seal(text)), texts)) == texts


def test_two_seals_of_one_text_differ() -> None:
    """Whoever sees sealed texts cannot tell that two are alike."""
    assert RING.seal(b"plain") != RING.seal(b"plain")


def test_the_first_key_seals_and_all_open() -> None:
    """A key is rotated by putting a new one in front."""
    assert RING.open(Keyring.parse(OLD).seal(b"plain")) == b"plain"
    assert Keyring.parse(NEW).open(RING.seal(b"plain")) == b"plain"


def test_a_key_that_is_gone_is_named() -> None:
    """The error says which key is missing, and where it belongs."""
    sealed = Keyring.parse(OLD).seal(b"plain")
    with pytest.raises(SealingError, match=r"'2025'.*REGWORKER_SEALING_KEYS"):
        Keyring.parse(NEW).open(sealed)


def respelled(sealed: str) -> Iterator[str]:
    """The same bytes in other texts, or in other parts of it."""
    header, _, iv, ciphertext, tag = sealed.split(".")
    yield f"{header}..{iv}.{ciphertext}.{tag}="
    yield f"{header}..{iv}.{ciphertext}\n.{tag}"
    yield f"{header}..{iv}.{ciphertext}.{tag[:-1]}{chr(ord(tag[-1]) + 1)}"
    yield f"{header}..{iv}.{ciphertext}{tag[:4]}.{tag[4:]}"
    yield f"{header}.AAAA.{iv}.{ciphertext}.{tag}"
    yield f"{header}..{iv}.{ciphertext}.{tag}."


@pytest.mark.parametrize("number", range(6))
def test_a_sealed_text_has_one_spelling(number: int) -> None:
    """A text that was touched does not open, even where its bytes are still the same."""
    plain = b"of a length that base64 ends without padding"[:42]
    with pytest.raises(SealingError):
        RING.open(list(respelled(RING.seal(plain)))[number])


@pytest.mark.parametrize("part", [2, 3, 4], ids=["iv", "ciphertext", "tag"])
def test_a_text_that_was_changed_does_not_open(part: int) -> None:
    """One bit is enough."""
    with pytest.raises(SealingError):
        RING.open(flip(RING.seal(b"plain"), part))


def test_a_text_under_a_known_kid_but_another_key_does_not_open() -> None:
    """A `kid` is a name, not a proof."""
    with pytest.raises(SealingError):
        Keyring.parse(Keyring.new("2026")).open(RING.seal(b"plain"))


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
    """Only what we seal ourselves is opened; anything else is a `SealingError`, no crash."""
    encoded = base64.urlsafe_b64encode(json.dumps(header).encode()).decode().rstrip("=")
    rest = RING.seal(b"plain").partition(".")[2]
    with pytest.raises(SealingError):
        RING.open(f"{encoded}.{rest}")


@given(st.text(max_size=60) | st.lists(st.text("aZ_-=", max_size=9)).map(".".join))
def test_what_is_no_sealed_text_is_refused(text: str) -> None:
    """Whatever somebody hands in, the error is ours and does not repeat it."""
    with pytest.raises(SealingError) as caught:
        RING.open(text)
    assert len(text) < 8 or text not in str(caught.value)


def test_fingerprints_are_equal_for_equal_content_only() -> None:
    """A repeat is recognised without its content being kept."""
    assert RING.fingerprints(b"one") == RING.fingerprints(b"one")
    assert not set(RING.fingerprints(b"one")) & set(RING.fingerprints(b"two"))


def test_fingerprints_name_their_key_the_first_keys_first() -> None:
    """After a rotation the fingerprint under the old key is still among them."""
    [new, old] = RING.fingerprints(b"one")
    assert (new[:5], old[:5]) == ("2026:", "2025:")
    assert Keyring.parse(OLD).fingerprints(b"one") == [old]


def test_a_fingerprint_needs_the_key() -> None:
    """Guessing the content does not give the fingerprint: it holds a password."""
    assert Keyring.parse(Keyring.new("2026")).fingerprints(b"one") != RING.fingerprints(b"one")[:1]


def entry(size: int) -> str:
    """A key of a size, as in the setting."""
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
        (f"{NEW},{NEW}", "'2026' stands twice"),
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
    """The setting is named, and no key is shown."""
    with pytest.raises(SettingsError, match="REGWORKER_SEALING_KEYS") as caught:
        Keyring.parse(text)
    assert words in str(caught.value)
    assert NEW.partition(":")[2] not in str(caught.value)


def test_spaces_and_padding_do_no_harm() -> None:
    """A key copied from elsewhere is taken with its padding and the spaces around it."""
    padded = f" a:{entry(32)} , {OLD}"
    assert Keyring.parse(padded).open(Keyring.parse(OLD).seal(b"plain")) == b"plain"
