"""`regworker serve`: the HTTP API and the pages."""

import ssl
from pathlib import Path
from typing import Annotated

import typer

from worker.cli.output import print_line

_Pem = Annotated[
    Path | None,
    typer.Option(
        metavar="PEM",
        exists=True,
        dir_okay=False,
        help="For HTTPS; needs both --certfile and --keyfile.",
    ),
]


def serve(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port to listen on; 0: any free port.")
    ] = 8080,
    certfile: _Pem = None,
    keyfile: _Pem = None,
) -> None:
    """Serve the HTTP API for services, and web pages for people.

    A service sends a job with `POST /v1/jobs` and a bearer token; `regworker tokens new` creates
    one. This process needs REGWORKER_REDIS_URL and REGWORKER_SEALING_KEYS, and no account at a
    provider. Without REGWORKER_SEALING_KEYS it accepts only registrations that their sender has
    sealed; a worker opens them. It prints one line with its address when it is ready, and serves
    until Ctrl-C.

    Put a proxy with TLS in front of it, or give it a certificate: otherwise others on the network
    can read tokens and registrations. Several may run at a time; they share only the ledger.

    Examples:
        regworker serve --port 8080
        regworker serve --host 0.0.0.0 --port 8443 --certfile tls.crt --keyfile tls.key
    """
    if (certfile is None) != (keyfile is None):
        raise typer.BadParameter("--certfile and --keyfile go together")
    if certfile is not None and keyfile is not None:
        _check_pair(certfile, keyfile)
    from regworker.results import reader_settings
    from worker.gateway.server import Listen
    from worker.gateway.server import serve as run
    from worker.telemetry.logs import configure_logging

    settings = reader_settings()
    configure_logging(settings)
    if not settings.sealing_keys.get_secret_value():
        print_line("no sealing keys: only registrations that their sender has sealed are accepted")
    listen = Listen(host, port, certfile, keyfile)
    run(settings, listen, lambda url: print_line(f"listening on {url}"))


def _check_pair(certfile: Path, keyfile: Path) -> None:
    """Refuse files that make no HTTPS, by the name of their option."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(certfile)
    except (OSError, ValueError):  # ssl.SSLError is an OSError
        what = f"holds no certificate (PEM) that can be read: {certfile}"
        raise typer.BadParameter(what, param_hint="--certfile") from None
    try:
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # Without a password here, OpenSSL would ask for one at the terminal.
        server.load_cert_chain(certfile, keyfile, password="")
    except (OSError, ValueError) as error:
        what = f"holds no private key (PEM, not encrypted) that can be read: {keyfile}"
        if getattr(error, "reason", "") in {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"}:
            what = f"is the key of another certificate than the first one in {certfile}: {keyfile}"
        raise typer.BadParameter(what, param_hint="--keyfile") from None
