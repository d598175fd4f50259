"""Opening JWE that any other library sealed: whatever spelling its header has.

What we seal ourselves, `sealing.py` opens without this, and most processes never import it.
"""

from collections.abc import Mapping

from joserfc import jwe
from joserfc.errors import DecodeError, JoseError
from joserfc.jwk import OctKey

from worker.errors import SealingError
from worker.settings import variable

_ALGORITHMS = ["dir", "A256GCM"]
_LONGEST_KID = 64

#: Characters of a ciphertext. What is sealed here is larger than a job in some places; by itself
#: the library refuses to open more than 64 KiB of what it has sealed itself.
LONGEST = 4 * 1024 * 1024


class _Registry(jwe.JWERegistry):
    """What is taken for a sealed text."""

    max_ciphertext_length = LONGEST


def open_compact(sealed: str, keys: Mapping[str, bytes]) -> bytes:
    """Open a JWE compact text. `SealingError` where it cannot be, without its content."""

    def key_of(recipient: object) -> OctKey:
        kid = recipient.headers().get("kid")  # type: ignore[attr-defined]
        key = keys.get(kid)
        if key is None:
            what = f"sealed under kid {_short(kid)}, which {variable('sealing_keys')} does not hold"
            raise SealingError(what)
        return OctKey.import_key(key)

    try:
        found = jwe.decrypt_compact(sealed, key_of, registry=_Registry(None, _ALGORITHMS))
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


def _short(kid: object) -> str:
    # Whoever sealed it named the key; the name goes into an error, and so into an event.
    text = repr(kid)
    return text if len(text) <= _LONGEST_KID else f"{text[:_LONGEST_KID]}..."
