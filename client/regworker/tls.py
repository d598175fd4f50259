"""TLS: one policy for every connection that leaves a process.

The server's certificate and its host name are always verified, by TLS 1.2 or newer; no setting, no
URL and no `celeryconfig.py` switches that off. Trusted are the certificate authorities of the
system (`SSL_CERT_FILE` or `SSL_CERT_DIR` name others, as everywhere with OpenSSL), and those in
`REGWORKER_CA_FILE` besides.
"""

import os
import ssl
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

#: Options of a URL that only name files: further authorities, and the client's certificate.
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")

#: Options of a URL that state what is always verified.
_VERIFY = {"ssl_cert_reqs": ("required", "CERT_REQUIRED"), "ssl_check_hostname": ("true", "True")}

#: Options that are shown when they are refused. Any other may be a part of a password.
_SHOWN = (*_VERIFY, "ssl", "ssl_min_version", "ssl_ciphers", "ssl_exclude_verify_flags")

_REDIS, _AMQP = ("redis", "rediss", "sentinel"), ("amqp", "amqps", "pyamqp")

_ENCRYPTED = frozenset({"rediss", "sentinels", "amqps"})

#: Schemes of connections that others on the network can read.
_PLAIN = frozenset({"http", "redis", "sentinel", "amqp", "pyamqp"})


def context(ca_file: str | None, *certificate: str | None) -> ssl.SSLContext:
    """The policy as an `ssl` context of Python. `certificate`: the client's, and its key; or
    none."""
    made = ssl.create_default_context()
    if not (os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")):
        # On some systems there are no authorities where OpenSSL looks (Python from python.org on
        # macOS).
        try:
            import certifi
        except ImportError:
            pass  # it is installed with a worker's HTTP client
        else:
            made.load_verify_locations(certifi.where())
    if ca_file:
        made.load_verify_locations(ca_file)
    if certificate and certificate[0]:
        # With a password, since OpenSSL would ask at the terminal for that of an encrypted key.
        file, key = certificate[0], next(iter(certificate[1:]), None)
        made.load_cert_chain(file, key, password="")
    return made


def refused(url: str) -> str | None:
    """The option of a Redis or AMQP URL that would weaken TLS, if there is one."""
    for one in url.split(";"):
        # Not with `urlsplit`, whose errors show the password.
        for name, value in parse_qsl(one.partition("?")[2], keep_blank_values=True):
            if not name.startswith("ssl") or name in _FILES or value in _VERIFY.get(name, ()):
                continue
            return name if name in _SHOWN else "ssl_..."
    return None


def secured(url: str, ca_file: str | None) -> str:
    """A Redis or AMQP URL that names explicitly what its library must verify."""
    return ";".join(_secured(one, ca_file) for one in url.split(";"))


def _secured(url: str, ca_file: str | None) -> str:
    parts = urlsplit(url)
    if parts.scheme not in _ENCRYPTED:
        return url
    more = {"ssl_cert_reqs": "required", "ssl_check_hostname": "true"}
    if ca_file:
        more["ssl_ca_certs"] = ca_file
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    missing = urlencode({name: value for name, value in more.items() if name not in given})
    separator = "&" if parts.query else "" if url.endswith("?") else "?"
    return f"{url}{separator}{missing}" if missing else url


def of_broker(scheme: str, host: str, given: Any) -> Any:
    """The TLS options that kombu must pass to redis-py and py-amqp; `given`: its own options.

    By default kombu verifies nothing for `rediss://`, and no host name for `amqps://`.
    """
    if not given and scheme not in {"rediss", "amqps"}:
        return given
    files = dict(_files(given if isinstance(given, Mapping) else {}))
    if scheme in _REDIS:
        return {**files, "ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}
    if scheme in _AMQP:
        own = {name.removeprefix("ssl_"): file for name, file in files.items()}
        return {**own, "cert_reqs": ssl.CERT_REQUIRED, "server_hostname": host}
    return given


def _files(given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in _FILES:
        if file := given.get(name) or given.get(name.removeprefix("ssl_")):
            yield name, file


def is_plain(url: str) -> bool:
    """Whether others can read the traffic to a URL: not encrypted, and not within this machine."""
    try:
        return any(
            not is_loopback(urlsplit(f"//{host}").hostname)
            for one in url.split(";")
            if urlsplit(one).scheme.lower() in _PLAIN
            # A Sentinel's URL contains several.
            for host in urlsplit(one).netloc.rpartition("@")[2].split(",")
        )
    except ValueError:  # its text would show the password; nothing is sent to such a URL
        return False


def is_loopback(host: str | None) -> bool:
    """Whether a host is this machine by its name alone; no host: a library's own default."""
    if host in {None, "", "localhost"}:
        return True
    try:
        return ip_address(str(host)).is_loopback
    except ValueError:
        return False
