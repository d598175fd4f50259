"""Sealing: secrets at rest are JWE compact texts (RFC 7516), `dir` with `A256GCM`.

Any language's JOSE library opens them. A keyring holds several keys: the first seals, all open,
so that a key can be rotated while workers run.
"""

import base64
import binascii
import hmac
import json
import secrets
from contextlib import suppress
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from worker.errors import SettingsError
from worker.nonce import nonce
from worker.settings import variable

_SETTING = variable("sealing_keys")
_KEY_BYTES = 32
_HEADER = {"alg": "dir", "enc": "A256GCM"}

#: Bytes, by RFC 7518, section 5.3.
_IV, _TAG = 12, 16

#: Characters of a sealed text that is opened here: in a longer one `jose.py` looks for what is
#: wrong with it.
_LONGEST = 4 * 1024 * 1024

#: In place of a key's name, where a text names none.
UNKNOWN = "?"


class Keyring:
    """Keys by `kid`. Make one with `Keyring.parse(settings.sealing_keys.get_secret_value())`."""

    def __init__(self, keys: dict[str, bytes]) -> None:
        self._keys = keys
        self._ciphers = {_header(kid): AESGCM(key) for kid, key in keys.items()}
        self._first = next(iter(self._ciphers))
        # A key of its own for fingerprints: one key, one use.
        self._macs = {
            kid: hmac.digest(key, b"registration-worker/fingerprint", "sha256")
            for kid, key in keys.items()
        }

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
                raise SettingsError([(_SETTING, f"kid {kid!r} stands twice")])
            keys[kid] = key
        return cls(keys)

    @property
    def kids(self) -> tuple[str, ...]:
        """The names of the keys; the first seals."""
        return tuple(self._keys)

    @staticmethod
    def new(kid: str) -> str:
        """A fresh entry for the setting: `kid:base64url` of 32 random bytes."""
        key = base64.urlsafe_b64encode(secrets.token_bytes(_KEY_BYTES)).decode()
        return f"{kid}:{key.rstrip('=')}"

    def seal(self, plain: bytes) -> str:
        """Seal bytes under the first key."""
        header, iv = self._first, nonce(_IV)
        return _compact(header, iv, self._ciphers[header].encrypt(iv, plain, header.encode()))

    def open(self, sealed: str) -> bytes:
        """Open a JWE compact text. `SealingError` where it cannot be, without its content."""
        with suppress(KeyError, ValueError, InvalidTag):
            return self._open(sealed)
        # Sealed by another library; or it can't be opened, and then this one tells why.
        from worker.jose import open_compact

        return open_compact(sealed, self._keys)

    def fingerprints(self, content: bytes) -> list[str]:
        """`kid:hmac` of content under each key, the first key's first."""
        return [
            f"{kid}:{hmac.digest(key, content, 'sha256').hex()}" for kid, key in self._macs.items()
        ]

    def _open(self, sealed: str) -> bytes:
        """Open what is, sign for sign, as we would have sealed it; some error for all else."""
        header, _, *rest = sealed.split(".", 5)
        cipher = self._ciphers[header]
        iv, ciphertext, tag = map(_bytes, rest)
        content = ciphertext + tag
        if len(iv) != _IV or len(sealed) > _LONGEST or _compact(header, iv, content) != sealed:
            raise ValueError
        return cipher.decrypt(iv, content, header.encode())


def _compact(header: str, iv: bytes, content: bytes) -> str:
    # With `dir` there is no encrypted key, and so nothing between the first two dots.
    return f"{header}..{_text(iv)}.{_text(content[:-_TAG])}.{_text(content[-_TAG:])}"


def _header(kid: str) -> str:
    return _text(json.dumps({**_HEADER, "kid": kid}, separators=(",", ":")).encode())


def _text(value: bytes) -> str:
    # `base64.urlsafe_b64encode` without its two layers: three of these are in each sealed text.
    encoded = binascii.b2a_base64(value, newline=False)
    return encoded.translate(_URLSAFE).rstrip(b"=").decode()


_URLSAFE = bytes.maketrans(b"+/", b"-_")


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def kid_of(sealed: str) -> str:
    """The name of the key that a text is sealed under, as its header says; `?` if it says none."""
    return _kid_in(sealed.partition(".")[0])


@lru_cache(maxsize=256)
def _kid_in(header: str) -> str:
    # The same few headers stand in front of a million texts.
    try:
        found = json.loads(_bytes(header))
    except ValueError:
        return UNKNOWN
    kid = found.get("kid") if isinstance(found, dict) else None
    return kid if isinstance(kid, str) else UNKNOWN
