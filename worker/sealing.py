"""Sealing: secrets at rest are JWE compact texts (RFC 7516), `dir` with `A256GCM`.

Any language's JOSE library opens them. A keyring holds several keys: the first seals, all open,
so that a key can be rotated while workers run.
"""

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from functools import lru_cache

from joserfc import jwe
from joserfc.errors import DecodeError, JoseError
from joserfc.jwk import OctKey

from worker.errors import SealingError, SettingsError
from worker.settings import variable

_SETTING = variable("sealing_keys")
_KEY_BYTES = 32
_HEADER = {"alg": "dir", "enc": "A256GCM"}
_ALGORITHMS = ["dir", "A256GCM"]
_LONGEST_KID = 64

#: In place of a key's name, where a text names none.
UNKNOWN = "?"


class _Registry(jwe.JWERegistry):
    """What is taken for a sealed text."""

    #: What is sealed here is larger than a job in some places; by itself the library refuses to
    #: open more than 64 KiB of what it has sealed itself.
    max_ciphertext_length = 4 * 1024 * 1024


class Keyring:
    """Keys by `kid`. Make one with `Keyring.parse(settings.sealing_keys.get_secret_value())`."""

    def __init__(self, keys: dict[str, bytes]) -> None:
        self._keys = {kid: OctKey.import_key(key) for kid, key in keys.items()}
        self._first = next(iter(keys))
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
        header = {**_HEADER, "kid": self._first}
        return jwe.encrypt_compact(header, plain, self._keys[self._first], algorithms=_ALGORITHMS)

    def open(self, sealed: str) -> bytes:
        """Open a JWE compact text. `SealingError` where it cannot be, without its content."""
        try:
            found = jwe.decrypt_compact(sealed, self._key_of, registry=_Registry(None, _ALGORITHMS))
        except SealingError:
            raise
        except DecodeError:
            raise SealingError(
                "not a JWE that opens: cut, changed since it was sealed, or sealed under another "
                "key of that kid"
            ) from None
        except (JoseError, ValueError, TypeError, KeyError) as error:
            raise SealingError(f"not a sealed text of ours: {type(error).__name__}") from None
        if found.plaintext is None:
            raise SealingError("a sealed text without content")
        return found.plaintext

    def fingerprints(self, content: bytes) -> list[str]:
        """`kid:hmac` of content under each key, the first key's first."""
        return [
            f"{kid}:{hmac.new(key, content, hashlib.sha256).hexdigest()}"
            for kid, key in self._macs.items()
        ]

    def _key_of(self, recipient: object) -> OctKey:
        kid = recipient.headers().get("kid")  # type: ignore[attr-defined]
        key = self._keys.get(kid)
        if key is None:
            raise SealingError(f"sealed under kid {_short(kid)}, which {_SETTING} does not hold")
        return key


def kid_of(sealed: str) -> str:
    """The name of the key that a text is sealed under, as its header says; `?` if it says none."""
    return _kid_in(sealed.partition(".")[0])


@lru_cache(maxsize=256)
def _kid_in(header: str) -> str:
    # The same few headers stand in front of a million texts.
    try:
        found = json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))
    except ValueError:
        return UNKNOWN
    kid = found.get("kid") if isinstance(found, dict) else None
    return kid if isinstance(kid, str) else UNKNOWN


def _short(kid: object) -> str:
    # Whoever sealed it named the key; the name goes into an error, and so into an event.
    text = repr(kid)
    return text if len(text) <= _LONGEST_KID else f"{text[:_LONGEST_KID]}..."
