"""Sealing: secrets at rest are JWE compact texts (RFC 7516), `dir` with `A256GCM`.

Any language's JOSE library opens them, and makes them. A keyring holds several keys: the first
seals, all open, so that a key can be rotated while workers run. Each text says in its authenticated
header what it is and whose (`seals.py`), and opens as nothing else.
"""

import base64
import binascii
import hmac
import json
import secrets
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic_core import from_json

from regworker.domain.errors import (
    NoSealingKeys,
    SealingError,
    SettingsError,
    UnknownKey,
    WrongSeal,
)
from regworker.sealing.random import nonce
from regworker.sealing.seals import REGISTRATION, Seal
from regworker.settings import Settings, variable

_SETTING = variable("sealing_keys")
_KEY_BYTES = 32

#: Bytes, by RFC 7518, section 5.3.
_IV, _TAG = 12, 16

#: Characters of the longest sealed text that is opened, and of a name from one that is shown.
_LONGEST, _SHOWN = 4 * 1024 * 1024, 100

_NOT_OURS = "not a valid sealed text: it must be a compact JWE with `dir` and `A256GCM`"
_NOT_OPEN = (
    "the JWE does not decrypt: it is cut off, was changed, or was sealed with another key of that "
    "kid"
)
_UNBOUND = "its protected header lacks `typ` and `sub`: add them (docs/guide/sealing.md)"

#: Replaces a key's name, if a text names none.
UNKNOWN = "?"


class Keyring:
    """Keys by `kid`. Make one with `Keyring.parse(settings.sealing_keys.get_secret_value())`."""

    def __init__(self, keys: dict[str, bytes]) -> None:
        self._ciphers = {kid: AESGCM(key) for kid, key in keys.items()}
        first = next(iter(keys))
        fixed = {"alg": "dir", "enc": "A256GCM", "kid": first}
        # In one tuple: `use` may change the keys while another thread seals.
        self._sealing = json.dumps(fixed, separators=(",", ":"))[:-1], self._ciphers[first]
        # A separate key for fingerprints: one key, one use.
        self._macs = {
            kid: hmac.new(
                hmac.digest(key, b"registration-worker/fingerprint", "sha256"), digestmod="sha256"
            )
            for kid, key in keys.items()
        }
        # Computed once: each accepted job carries the first one.
        self._marks = tuple(
            f"{kid}:{hmac.digest(key, b'registration-worker/announced', 'sha256').hex()[:16]}"
            for kid, key in keys.items()
        )

    @classmethod
    def parse(cls, text: str) -> "Keyring":
        """Read `kid:base64url,kid:base64url`; `SettingsError` says which entry is wrong."""
        keys: dict[str, bytes] = {}
        for number, entry in enumerate(text.split(","), 1):
            kid, colon, encoded = entry.strip().partition(":")
            if not (kid and colon and encoded):
                raise SettingsError(
                    [(_SETTING, f"entry {number} is not of the form kid:base64url")]
                )
            try:
                key = base64.b64decode(
                    encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True
                )
            except (binascii.Error, ValueError):
                raise SettingsError(
                    [(_SETTING, f"the key of kid {kid!r} is not base64url")]
                ) from None
            if len(key) != _KEY_BYTES:
                what = f"the key of kid {kid!r} has {len(key)} bytes; it takes {_KEY_BYTES}"
                raise SettingsError([(_SETTING, what)])
            if kid in keys:
                raise SettingsError([(_SETTING, f"kid {kid!r} is given twice")])
            keys[kid] = key
        return cls(keys)

    @classmethod
    def of(cls, settings: Settings) -> "Keyring":
        """The keys of settings. Without any: a keyring that can neither open nor seal."""
        text = settings.sealing_keys.get_secret_value()
        return cls.parse(text) if text else _NoKeys()

    def use(self, other: "Keyring") -> None:
        """From now on, use the keys of another keyring."""
        self.__dict__.update(other.__dict__)

    @property
    def kids(self) -> tuple[str, ...]:
        """The names of the keys; the first seals."""
        return tuple(self._ciphers)

    @property
    def marks(self) -> tuple[str, ...]:
        """`kid:check` of each key. It is no secret; it distinguishes keys with the same name."""
        return self._marks

    @staticmethod
    def new(kid: str) -> str:
        """A new entry for the setting: `kid:base64url` of 32 random bytes."""
        key = base64.urlsafe_b64encode(secrets.token_bytes(_KEY_BYTES)).decode()
        return f"{kid}:{key.rstrip('=')}"

    def seal(self, plain: bytes, seal: Seal) -> str:
        """Seal bytes under the first key, with a kind and an owner."""
        # Written out: a JSON encoder takes as long as the encryption.
        sub = encode_basestring_ascii(seal.sub)
        begun, cipher = self._sealing
        said = f'{begun},"typ":"{seal.typ}","sub":{sub}{_aud(seal.aud)}}}'
        header, iv = _text(said.encode()), nonce(_IV)
        return _compact(header, iv, cipher.encrypt(iv, plain, header.encode()))

    def open(self, sealed: str, seal: Seal) -> bytes:
        """Open a JWE compact text, whoever sealed it, if its kind and owner are the expected ones.

        `SealingError` if it cannot be opened, `WrongSeal` if its kind or owner is another one;
        neither error contains the content.
        """
        # In this order: a text that is too long is not parsed.
        parts = sealed.split(".", _PARTS) if len(sealed) <= _LONGEST else []
        if len(parts) != _PARTS:
            raise SealingError(_NOT_OURS)
        said = _said(parts[0])
        kid = said.get("kid")
        cipher = self._ciphers.get(kid) if isinstance(kid, str) else None
        if cipher is None:
            raise UnknownKey(f"sealed under kid {_short(kid)}, which {_SETTING} does not hold")
        plain = _decrypted(cipher, sealed, parts)
        _check(said, seal)
        return plain

    def fingerprints(self, content: bytes) -> list[str]:
        """`kid:hmac` of content under each key, the first key's first."""
        return [f"{kid}:{_mac(begun, content)}" for kid, begun in self._macs.items()]


def _mac(begun: hmac.HMAC, content: bytes) -> str:
    # A copy takes two thirds of the time of beginning with the key again.
    mac = begun.copy()
    mac.update(content)
    return mac.hexdigest()


class _NoKeys(Keyring):
    """Opens nothing; everything that needs a key raises `NoSealingKeys`."""

    def __init__(self) -> None:
        self._ciphers, self._macs = {}, {}

    @property
    def marks(self) -> tuple[str, ...]:
        raise _no_keys()

    def seal(self, plain: bytes, seal: Seal) -> str:
        raise _no_keys()

    def fingerprints(self, content: bytes) -> list[str]:
        raise _no_keys()


def _no_keys() -> NoSealingKeys:
    return NoSealingKeys([(_SETTING, "is not set here, and this needs it")])


#: Parts of a compact JWE: header, key, IV, ciphertext, tag.
_PARTS = 5


def _said(header: str) -> dict[str, Any]:
    """The content of a header, if its algorithms are accepted here."""
    try:
        said = from_json(_bytes(header))
    except ValueError:
        said = None
    if not isinstance(said, dict) or "crit" in said or "zip" in said:
        raise SealingError(_NOT_OURS)
    if said.get("alg") != "dir" or said.get("enc") != "A256GCM":
        raise SealingError(_NOT_OURS)
    return said


def _decrypted(cipher: AESGCM, sealed: str, parts: list[str]) -> bytes:
    header = parts[0]
    try:
        iv, ciphertext, tag = map(_bytes, parts[2:])
        content = ciphertext + tag
        # Of all encodings of one text, only our own is opened.
        if len(iv) == _IV and _compact(header, iv, content) == sealed:
            return cipher.decrypt(iv, content, header.encode())
    except (ValueError, InvalidTag):
        pass
    raise SealingError(_NOT_OPEN)


def _check(said: dict[str, Any], seal: Seal) -> None:
    """Refuse an authentic header of another kind, owner or audience."""
    typ, sub, aud = said.get("typ"), said.get("sub"), said.get("aud")
    if typ is None and sub is None:
        raise SealingError(_UNBOUND)
    if typ != seal.typ:
        raise WrongSeal(f"it is sealed as {_short(typ)}, not as {seal.typ!r}")
    if sub != seal.sub:
        raise WrongSeal(f"it is sealed as the {typ} of {_short(sub)}, not of {_short(seal.sub)}")
    if not seal.aud or (aud is None and typ == REGISTRATION):
        return
    named = [aud] if isinstance(aud, str) else aud
    if not isinstance(named, list) or not {one for one in named if isinstance(one, str)}.issuperset(
        seal.aud
    ):
        raise WrongSeal(f"it is sealed for {_short(aud)}, not for {_short(list(seal.aud))}")


def _short(value: object) -> str:
    # The sealer chose it, and it goes into an error, and so into an event.
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


@lru_cache(maxsize=256)
def _aud(names: tuple[str, ...]) -> str:
    # Most events of an installation have the same endpoints.
    return f',"aud":{json.dumps(names)}' if names else ""


def _compact(header: str, iv: bytes, content: bytes) -> str:
    # With `dir` there is no encrypted key, so nothing is between the first two dots.
    return f"{header}..{_text(iv)}.{_text(content[:-_TAG])}.{_text(content[-_TAG:])}"


def _text(value: bytes) -> str:
    # `base64.urlsafe_b64encode` without its two layers: it runs three times for each sealed text.
    encoded = binascii.b2a_base64(value, newline=False)
    return encoded.replace(b"+", b"-").replace(b"/", b"_").rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    # As above. Superfluous padding does no harm.
    return binascii.a2b_base64(text.replace("-", "+").replace("_", "/") + "==")


def kid_of(sealed: str) -> str:
    """The name of the key in a sealed text's header; `?` if it names none."""
    try:
        found = from_json(_bytes(sealed.partition(".")[0]))
    except ValueError:
        return UNKNOWN
    kid = found.get("kid") if isinstance(found, dict) else None
    return kid if isinstance(kid, str) else UNKNOWN
