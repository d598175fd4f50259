"""`regworker sandbox`."""

from json import loads
from pathlib import Path
from typing import Annotated, Any

import typer


def _json(text: str) -> Any:
    try:
        return loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"is not JSON: {error}") from None


def sandbox(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")
    ] = 8900,
    accounts_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the accounts made over restarts.")
    ] = None,
    settings: Annotated[
        Any,
        typer.Option(parser=_json, metavar="JSON", help="As PUT /sandbox/settings takes them."),
    ] = None,
    faults: Annotated[
        Any, typer.Option(parser=_json, metavar="JSON", help="As PUT /sandbox/faults takes them.")
    ] = None,
    webhook_secret: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHSEC",
            help="Receive webhooks signed with this (whsec_...) under /hooks/NAME. Repeatable.",
        ),
    ] = None,
) -> None:
    """Run both providers' stand-ins, to develop against.

    They answer as SkyPostal and Open2b are documented to, keep account of every customer made,
    and fail on request: lost answers, 429, 5xx, half a body. Prints one line with its address
    when it is ready, and serves until Ctrl-C.

    Examples:
        regworker sandbox --port 8900
        regworker sandbox --port 0 --webhook-secret whsec_c2VjcmV0c2VjcmV0c2VjcmV0
    """
    from sandbox.checks import BadControl
    from sandbox.server import serve

    try:
        serve(
            host,
            port,
            accounts_file=accounts_file,
            settings=settings,
            faults=faults,
            webhook_secrets=webhook_secret or [],
        )
    except BadControl as error:
        raise typer.BadParameter(str(error)) from None
