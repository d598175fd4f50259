"""The route out of a network: a proxy, trusted authorities, and a client certificate.

For all connections to providers and webhooks, or for one account or endpoint.
"""

import base64
import ssl
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import unquote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    SecretStr,
    model_validator,
)

from regworker import tls
from regworker.addresses import BAD_ENCODING, unquoted, well_encoded
from regworker.domain.errors import FieldError
from regworker.named_files import unreadable

#: Replaces a proxy: none, for an account or endpoint that is reached directly.
DIRECT = "direct"


def _proxy(text: SecretStr) -> SecretStr:
    """Refuse what is no proxy; no message shows a part of it."""
    value = text.get_secret_value()
    if value == DIRECT:
        return text
    if not well_encoded(value):
        raise FieldError(BAD_ENCODING)
    try:
        parts = urlsplit(value)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    odd = parts.path not in {"", "/"} or parts.query or parts.fragment if host else True
    if odd or parts.scheme != "http" or not port or not value.isascii() or not value.isprintable():
        raise FieldError(
            f"is not of the form http://user:password@host:port, and not `{DIRECT}` "
            "(percent-encode the password; TLS goes through the proxy to the provider)"
        )
    return text


def authorities(file: str) -> str:
    """Refuse a file without a certificate of an authority."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except ssl.SSLError:
        raise FieldError(f"holds no certificates (PEM): {file}") from None
    except OSError as error:
        raise FieldError(unreadable(file, error)) from None
    return file


def _readable(file: str) -> str:
    try:
        with Path(file).open("rb"):
            return file
    except OSError as error:
        raise FieldError(unreadable(file, error)) from None


Proxy = Annotated[SecretStr, BeforeValidator(unquoted), AfterValidator(_proxy)]
Authorities = Annotated[str, AfterValidator(authorities)]
File = Annotated[str, AfterValidator(_readable)]

PROXY = (
    "The HTTP proxy for outgoing connections (`CONNECT`): `http://user:password@host:port`; TLS "
    "goes through it to the other side."
)
CLIENT_CERT_FILE = "The client certificate (PEM), for servers that request one."
CLIENT_KEY_FILE = "Its private key (PEM, not encrypted), if it is in a separate file."


class OwnWayOut(BaseModel):
    """The route of an account or an endpoint; omitted values are those of all."""

    proxy: Annotated[
        Proxy | None,
        Field(description=f"{PROXY} `{DIRECT}`: no proxy, even if `REGWORKER_PROXY` is set."),
    ] = None
    ca_file: Annotated[
        Authorities | None,
        Field(description="Certificates (PEM) of authorities to trust besides the system's."),
    ] = None
    client_cert_file: Annotated[File | None, Field(description=CLIENT_CERT_FILE)] = None
    client_key_file: Annotated[File | None, Field(description=CLIENT_KEY_FILE)] = None

    @model_validator(mode="after")
    def _certificate(self) -> Self:
        check_certificate(self.client_cert_file, self.client_key_file)
        return self


def check_certificate(certificate: str | None, key: str | None) -> None:
    """Refuse a key without a certificate, or one that belongs to another certificate."""
    if key and not certificate:
        raise FieldError("client_key_file is set without client_cert_file")
    if certificate:
        try:
            tls.context(None, certificate, key)
        except (OSError, ValueError):  # ssl.SSLError is an OSError
            raise FieldError(
                "client_cert_file and client_key_file hold no certificate with its private key "
                "(PEM, not encrypted)"
            ) from None


@dataclass(frozen=True, slots=True)
class ProxyServer:
    """A proxy's address, and its `Proxy-Authorization`; empty: none."""

    host: str
    port: int
    credentials: str = field(default="", repr=False)

    @classmethod
    def of(cls, url: SecretStr | None) -> "ProxyServer | None":
        """Parse the proxy of a setting."""
        if url is None or url.get_secret_value() == DIRECT:
            return None
        parts = urlsplit(url.get_secret_value())
        given = ""
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            given = f"Basic {base64.b64encode(pair.encode()).decode()}"
        return cls(parts.hostname or "", parts.port or 0, given)


Versions = tuple[tuple[object, ...], ...]


def versions(files: Iterable[Path]) -> Versions:
    """Changes with the files, also if a symbolic link points to another file."""
    found: list[tuple[object, ...]] = []
    for file in sorted(files):
        try:
            stat = file.stat()
        except OSError:
            found.append((file,))
        else:
            rights = stat.st_mode, stat.st_uid, stat.st_gid
            found.append((file, stat.st_ino, stat.st_mtime_ns, stat.st_size, rights))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class WayOut:
    """How connections to one server are made."""

    proxy: ProxyServer | None = None
    ca_file: str | None = None
    client_cert_file: str | None = None
    client_key_file: str | None = None
    versions: Versions = ()
    """Of its files, if it was `dated`: the route through changed files is another one."""

    def to(self, own: OwnWayOut) -> "WayOut":
        """The route of an account or endpoint, where this is the route of all."""
        pair = self.client_cert_file, self.client_key_file
        if own.client_cert_file:
            pair = own.client_cert_file, own.client_key_file
        proxy = self.proxy if own.proxy is None else ProxyServer.of(own.proxy)
        return WayOut(proxy, own.ca_file or self.ca_file, *pair)

    @property
    def context(self) -> ssl.SSLContext:
        """A new TLS context for this route."""
        return tls.context(self.ca_file, self.client_cert_file, self.client_key_file)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it names."""
        every = (self.ca_file, self.client_cert_file, self.client_key_file)
        return tuple(Path(file) for file in every if file)

    def dated(self) -> "WayOut":
        """The route through its files as they are now."""
        return replace(self, versions=versions(self.files))

    def carries(self, url: str) -> bool:
        """Whether a URL may be called on this route: through a proxy, only if it is encrypted."""
        return self.proxy is None or url.startswith("https://")


NOT_PLAIN = (
    "is http://, which a proxy could read and change: use https://, or set PROXY=direct for it"
)
