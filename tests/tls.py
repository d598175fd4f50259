"""Servers that speak TLS, with certificates of an authority that only tests trust."""

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.loops import end_all

#: Kinds of certificates; only the first one is good.
KINDS = ("good", "other host", "self-signed", "expired")


#: From Python 3.13 on, certificates of an authority must say what they are for, and name keys.
SIGNS = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


@dataclass
class Authority:
    """A certificate authority. Its certificate, and those that it issues, are files in a folder."""

    folder: Path
    _key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    @cached_property
    def file(self) -> Path:
        """The authority's own certificate."""
        file = self.folder / "authority.pem"
        made = (
            self._builder("authority", self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(SIGNS, critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False
            )
        )
        file.write_bytes(_pem(made.sign(self._key, hashes.SHA256())))
        return file

    def certificate(self, kind: str) -> Path:
        """A certificate for `localhost` and its key, in one file; `kind`: one of `KINDS`."""
        file = self.folder / f"{kind}.pem"
        if not file.exists():
            key = ec.generate_private_key(ec.SECP256R1())
            issuer = "authority" if kind != "self-signed" else "localhost"
            names: list[x509.GeneralName] = [x509.DNSName("other.example")]
            if kind != "other host":
                names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
            signer = key if kind == "self-signed" else self._key
            by = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
            made = (
                self._builder(issuer, key, expired=kind == "expired")
                .add_extension(x509.SubjectAlternativeName(names), critical=False)
                .add_extension(by, critical=False)
            )
            file.write_bytes(_private(key) + _pem(made.sign(signer, hashes.SHA256())))
        return file

    def _builder(
        self, issuer: str, key: ec.EllipticCurvePrivateKey, *, expired: bool = False
    ) -> x509.CertificateBuilder:
        subject = "authority" if key is self._key else "localhost"
        end = datetime.now(UTC) + timedelta(days=-1 if expired else 1)
        return (
            x509.CertificateBuilder(_name(issuer), _name(subject))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(end - timedelta(days=3))
            .not_valid_after(end)
        )


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


@dataclass
class Front:
    """A TLS front of a plain server."""

    certificate: Path
    behind: int
    port: int = 0
    taken: int = 0
    """The number of connections whose clients accepted the certificate, and so would send
    secrets."""

    async def serve(self) -> asyncio.Server:
        """Listen on any free port."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.certificate)
        server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0, ssl=context)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.taken += 1
        answers, commands = await asyncio.open_connection("127.0.0.1", self.behind)
        try:
            await asyncio.gather(_carry(reader, commands), _carry(answers, writer))
        finally:
            for one in (writer, commands):
                one.transport.abort()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
    with suppress(OSError):
        writer.close()


@contextmanager
def fronts(*wanted: Front) -> Iterator[None]:
    """Serve until the test ends."""
    loop = asyncio.new_event_loop()
    # If a client refuses a certificate, that is no fault of the server.
    loop.set_exception_handler(lambda *_: None)
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    servers: list[asyncio.Server] = []

    async def start() -> None:
        servers.extend([await one.serve() for one in wanted])

    asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(end_all(*servers), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
