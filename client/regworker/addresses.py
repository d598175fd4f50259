"""The one reader of URLs in settings: of the ledger, the broker, and whatever else has one.

What two libraries would read differently is refused here, in words that show no part of the URL:
its password may be the part that is wrong.

    redis://user:password@host:6379/0            rediss:// with TLS; also valkey://, valkeys://
    redis://user:password@h1:6379,h2:6379/0      nodes of a cluster
    unix://user:password@/path/to/socket?db=0    also redis+socket://
    sentinel://user:password@h1:26379,h2:26379/service/0     sentinels:// with TLS
    amqp://user:password@host:5672/vhost         amqps:// with TLS; several with semicolons
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, unquote, urlencode

Kind = Literal["redis", "amqp"]

#: Other spellings of schemes.
_ALIASES = {
    "valkey": "redis",
    "valkeys": "rediss",
    "redis+socket": "unix",
    "pyamqp": "amqp",
}

_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("redis", "rediss", "unix", "sentinel", "sentinels"), "redis"),
    **dict.fromkeys(("amqp", "amqps"), "amqp"),
}
_TLS = frozenset({"rediss", "sentinels", "amqps"})
_PORTS = {"redis": 6379, "rediss": 6379, "amqp": 5672, "amqps": 5671}
_SENTINELS_PORT = 26379

_FORMS: dict[Kind, str] = {
    "redis": "redis://user:password@host:port/0 (rediss:// with TLS), unix:///path/to/socket or "
    "sentinel://user:password@host:port,host:port/service/0",
    "amqp": "amqp://user:password@host:port/vhost (amqps:// with TLS)",
}

#: Options of TLS verification, and files for it: `tls.py` checks them.
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs")
_FILES = (*_TLS_OPTIONS, "ssl_check_hostname")

_OPTIONS: dict[str, tuple[str, ...]] = {
    # The URL does not choose the protocol: the option is accepted and ignored.
    **dict.fromkeys(("redis", "rediss", "unix"), ("db", "virtual_host", "protocol", *_FILES)),
    **dict.fromkeys(
        ("sentinel", "sentinels"),
        ("db", "protocol", "sentinel_username", "sentinel_password", *_FILES),
    ),
    **dict.fromkeys(("amqp", "amqps"), ("heartbeat", "login_method", *_FILES)),
}

_ENCODE = (
    "percent-encode the special characters of its user and password "
    "(/ is %2F, ? is %3F, # is %23, @ is %40, [ is %5B, ] is %5D, ; is %3B, % is %25)"
)

#: Libraries keep such a % as it is, or refuse it.
_NO_ENCODING = re.compile(r"%(?![0-9A-Fa-f]{2})")

#: The error for a URL that is not `well_encoded`, and what to do.
BAD_ENCODING = "holds a % that does not encode a UTF-8 character: write % itself as %25"

_HOST = re.compile(r"\[[0-9A-Fa-f:.]+(?:%25[\w.-]+)?\]|[^\s:/\\\[\]@,]+")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is, and how to log in.

    `hosts`: of the Sentinels, if there are any; several without a service: nodes of a cluster.
    """

    scheme: str
    hosts: tuple[tuple[str, int], ...]
    username: str | None
    password: str | None = field(repr=False)
    path: str
    """The path of a socket, or a virtual host of RabbitMQ; otherwise empty."""
    service: str
    """The Sentinels' name for the set of servers; empty without Sentinels."""
    db: int
    options: Mapping[str, str] = field(repr=False)

    @property
    def kind(self) -> Kind:
        """The protocol."""
        return _KINDS[self.scheme]

    @property
    def tls(self) -> bool:
        """Whether it is encrypted."""
        return self.scheme in _TLS

    @property
    def place(self) -> tuple[Any, ...]:
        """Equal for two URLs that name the same database of the same server."""
        return (self.kind, tuple(sorted(self.hosts)), self.path, self.service, self.db)

    def redis_url(self) -> str:
        """The URL for redis-py. With several hosts it contains the first: replace it."""
        options = {name: self.options[name] for name in _FILES if name in self.options}
        if self.scheme == "unix":
            options["db"] = str(self.db)
            return f"unix://{self._credentials()}{quote(self.path)}{_query(options)}"
        host, port = self.hosts[0]
        scheme = "rediss" if self.tls else "redis"
        place = f"{_bracketed(host)}:{port}/{self.db}"
        return f"{scheme}://{self._credentials()}{place}{_query(options)}"

    def _credentials(self) -> str:
        if self.username is None and self.password is None:
            return ""
        password = "" if self.password is None else f":{quote(self.password, safe='')}"
        return f"{quote(self.username or '', safe='')}{password}@"


def unquoted(value: Any) -> Any:
    """A value without the quotes of a `.env` file, which some parsers keep."""
    if not isinstance(value, str):
        return value
    value = value.strip()
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        value = value[1:-1].strip()
    return value


def checked(url: str, *kinds: Kind) -> str:
    """A URL in its normal spelling; `ValueError` says what to change, without any part of it."""
    ones = [one.strip() for one in unquoted(url).split(";")]
    if len(ones) > 1 and "amqp" not in kinds:
        raise ValueError(
            "names several servers, and only one is allowed (one URL names Sentinels, with "
            "sentinel://, or the nodes of a cluster, separated by commas); write a ; in a "
            "password as %3B"
        )
    found = [_checked(one, kinds) for one in ones if one or len(ones) == 1]
    schemes = {one.partition(":")[0] for one in found}
    if len(found) > 1 and any(one.startswith("sentinel") for one in schemes):
        raise ValueError(
            "one sentinel:// URL names all Sentinels, separated by commas, not by semicolons"
        )
    if len({_KINDS[one] for one in schemes}) > 1:
        raise ValueError("names servers of two kinds: use one kind")
    return ";".join(found)


def read(url: str) -> Address:
    """Parse a single URL. `ValueError` as of `checked`."""
    scheme, credentials, hosts, path, options = _parts(url)
    username, colon, password = credentials.partition(":")
    service, db = "", 0
    if _KINDS[scheme] == "redis":
        if scheme.startswith("sentinel"):
            service, _, path = path.partition("/")
            # A number is a database, as in other libraries.
            if not service or service.isdigit():
                raise ValueError(
                    f"names no service of the Sentinels; its form is {_FORMS['redis']}"
                )
        number = options.pop("db", None) or options.pop("virtual_host", None)
        if scheme != "unix":
            if path and number is not None:
                raise ValueError("names its database twice: remove its option db")
            number, path = number or path, ""
        if number and not (number.isascii() and number.isdigit() and len(number) < 6):
            raise ValueError(f"its database is not a number; its form is {_FORMS['redis']}")
        db = int(number or 0)
        if options.pop("protocol", "2") not in {"2", "3"}:
            raise ValueError("its option protocol is neither 2 nor 3: remove it")
    return Address(
        scheme,
        tuple(_host(one, scheme) for one in hosts),
        unquote(username) or None,
        unquote(password) if colon else None,
        unquote(path),
        unquote(service),
        db,
        options,
    )


def well_encoded(text: str) -> bool:
    """Whether each % of a URL, or of a part, starts a percent-encoded character."""
    return not _NO_ENCODING.search(text) and "\N{REPLACEMENT CHARACTER}" not in unquote(text)


def like_an_address(host: str) -> bool:
    """Whether a library may read a host name as an IPv4 address, or a proxy may decode it.

    2130706433, 0x7f.1 and 0177.0.0.1 are all 127.0.0.1 for one library, and a name for another; and
    so they are in the letters and the dots of other scripts.
    """
    found = unicodedata.normalize("NFKC", host).casefold().replace("\N{IDEOGRAPHIC FULL STOP}", ".")
    # Names in the DNS have no marks that are not part of a letter.
    found = "".join(sign for sign in found if unicodedata.category(sign) not in {"Mn", "Cf"})
    last = found.rstrip(".").rpartition(".")[2]
    return last.isdigit() or last.startswith("0x") or ("%" in found and ":" not in found)


def of_a_broker(url: str) -> str:
    """A URL that `checked` has passed; `ValueError` if it names the nodes of a cluster."""
    hosts = url.partition("://")[2].partition("?")[0].rpartition("@")[2]
    if url.startswith("redis") and "," in hosts:
        raise ValueError(
            "names several hosts, as for a Redis Cluster, which cannot be the broker: use "
            "RabbitMQ (amqp://), one Redis outside of the cluster, or Sentinels (sentinel://)"
        )
    return url


def _checked(url: str, kinds: tuple[Kind, ...]) -> str:
    form = " or ".join(_FORMS[kind] for kind in kinds)
    scheme = _scheme(url)
    if scheme not in _KINDS or _KINDS[scheme] not in kinds:
        raise ValueError(f"is not of the form {form}")
    read(url)
    return f"{scheme}://{url.partition('://')[2]}"


def _scheme(url: str) -> str:
    scheme, separator, _ = url.partition("://")
    scheme = scheme.lower() if separator else ""
    return _ALIASES.get(scheme, scheme)


def _parts(url: str) -> tuple[str, str, list[str], str, dict[str, str]]:
    """Scheme, credentials, hosts, path without its slash, options."""
    scheme = _scheme(url)
    if scheme not in _KINDS:
        raise ValueError(f"is not of the form {' or '.join(_FORMS.values())}")
    rest = url.partition("://")[2]
    if not rest.isprintable() or " " in rest or "\\" in rest:
        raise ValueError(f"holds a character that is not allowed in URLs: {_ENCODE}")
    if not well_encoded(rest):
        raise ValueError(f"holds a % that does not encode a UTF-8 character: {_ENCODE}")
    if any(map(_like_a_separator, rest)):
        raise ValueError(f"holds a character that some programs read as / ? # @ or :: {_ENCODE}")
    if "#" in rest:
        raise ValueError(f"holds a #, and everything after it would be ignored: {_ENCODE}")
    before, _, query = rest.partition("?")
    authority, slash, path = before.partition("/")
    credentials, _, where = authority.rpartition("@")
    # A password with a slash or a question mark would be moved there, together with its @.
    if "@" in path or "@" in query or "[" in credentials or "]" in credentials:
        raise ValueError(f"is ambiguous: {_ENCODE}")
    if scheme == "unix":
        if where or not path:
            raise ValueError("names no socket; its form is unix:///path/to/socket")
        return scheme, credentials, [], slash + path, dict(_options(scheme, query))
    hosts = where.split(",") if _KINDS[scheme] == "redis" else [where]
    return scheme, credentials, hosts, path, dict(_options(scheme, query))


def _like_a_separator(character: str) -> bool:
    """Whether `urlsplit`, which libraries use, refuses the URL and shows the password."""
    found = "" if character.isascii() else unicodedata.normalize("NFKC", character)
    return not set(found).isdisjoint("/?#@:")


def _host(place: str, scheme: str) -> tuple[str, int]:
    found = _HOST.match(place)
    if found is None:
        raise ValueError(f"names no host, or not in the form of a URL; {_ENCODE}")
    port = place[found.end() :]
    number = port[1:]
    if port and not (port[0] == ":" and number.isascii() and number.isdigit()):
        raise ValueError(f"its port is not a number from 1 to 65535; {_ENCODE}")
    if port and not (len(number) < 6 and 0 < int(number) < 65536):
        raise ValueError("its port is not a number from 1 to 65535")
    host = unquote(found[0].strip("[]"))
    return host, int(number) if port else _PORTS.get(scheme, _SENTINELS_PORT)


def _options(scheme: str, query: str) -> Iterator[tuple[str, str]]:
    seen = set[str]()
    known = _OPTIONS[scheme]
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            if name.startswith("ssl"):
                continue  # `tls.py` checks it by what it would turn off
            # Its name is not shown: after a ? in a password, it is a part of the password.
            raise ValueError(
                f"has an unknown option: remove it (known: {', '.join(known)}), or, if the ? "
                "belongs to the password, write it as %3F"
            )
        if name in seen:
            raise ValueError(f"its option {name} is given twice")
        seen.add(name)
        yield name, value


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else quote(host, safe="")


def _query(options: Mapping[str, str]) -> str:
    return f"?{urlencode(options)}" if options else ""
