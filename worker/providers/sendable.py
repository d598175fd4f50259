"""What HTTP can carry: an account's keys and its base URL are checked when a worker starts.

What fails here would fail with every job. No message shows the value.
"""

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

from pydantic import SecretStr

from regworker.addresses import BAD_ENCODING, well_encoded
from regworker.domain.errors import FieldError
from worker.http.headers import HEADER_VALUE

#: A host that every resolver and HTTP client accepts: labels of a DNS name, in ASCII.
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"(?=.{{1,253}}\.?$){_LABEL}(?:\.{_LABEL})*\.?")

#: Characters of a base URL: longer ones are refused by servers and proxies.
_LONGEST_URL = 2000


def key(secret: SecretStr) -> SecretStr:
    """Refuse a key that was copied together with other characters."""
    text = secret.get_secret_value()
    if text != text.strip():
        raise FieldError("begins or ends with white space: remove it")
    if not text.isprintable():
        raise FieldError("holds a control character: copy the key again")
    return secret


def header_key(secret: SecretStr) -> SecretStr:
    """Refuse a key that no header can carry."""
    if not HEADER_VALUE.fullmatch(secret.get_secret_value()):
        raise FieldError("holds a character that no HTTP header can carry: copy the key again")
    return secret


def base_url(url: str) -> str:
    """Refuse a URL that no client could call."""
    if len(url) > _LONGEST_URL:
        raise FieldError(f"is longer than {_LONGEST_URL} characters")
    if not (url.isascii() and url.isprintable()) or "\\" in url:
        raise FieldError(
            "holds a character that is not allowed in URLs: write a host in its xn-- form, and "
            "percent-encode the rest",
        )
    if not well_encoded(url):
        raise FieldError(BAD_ENCODING)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:  # its text would show a part of the URL
        raise FieldError("is not a URL, or its port is not a number from 1 to 65535") from None
    if port == 0:
        raise FieldError("its port is not a number from 1 to 65535")
    if not (_address(host) or (_HOST.fullmatch(host) and not _like_address(host))):
        raise FieldError("its host is neither a DNS name nor an IP address")
    return url


def _address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _like_address(host: str) -> bool:
    # 256.1.1.1 and 1.2.3.4.5 look like addresses and are none.
    return host.rstrip(".").rpartition(".")[2].isdigit()
