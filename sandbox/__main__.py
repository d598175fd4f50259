"""`python -m sandbox`: run it in the foreground."""

import argparse
import json
import sys
from pathlib import Path

from sandbox.checks import BadControl
from sandbox.server import serve


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and serve. Exit codes: 0 stopped on request, 1 failed, 2 wrong use."""
    parser = argparse.ArgumentParser(
        prog="python -m sandbox",
        description="Both providers on this machine. Prints one line with its address when ready.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument(
        "--port", type=int, default=8900, help="port to listen on; 0: any free one (%(default)s)"
    )
    parser.add_argument(
        "--accounts-file", type=Path, metavar="FILE", help="keep accounts here over restarts"
    )
    parser.add_argument(
        "--settings", type=_json, metavar="JSON", help="as PUT /sandbox/settings takes them"
    )
    parser.add_argument(
        "--faults", type=_json, metavar="JSON", help="as PUT /sandbox/faults takes them"
    )
    parser.add_argument(
        "--webhook-secret",
        action="append",
        default=[],
        metavar="WHSEC",
        help="receive webhooks signed with this (whsec_...) under /hooks/NAME; may be repeated",
    )
    given = parser.parse_args(arguments)
    try:
        serve(
            given.host,
            given.port,
            accounts_file=given.accounts_file,
            settings=given.settings,
            faults=given.faults,
            webhook_secrets=given.webhook_secret,
        )
    except BadControl as error:
        parser.error(str(error))
    except OSError as error:
        sys.stderr.write(f"sandbox: {error}\n")
        return 1
    return 0


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        raise argparse.ArgumentTypeError("must be JSON") from None


if __name__ == "__main__":
    sys.exit(main())
