"""`regworker contract`: the schemas of jobs and events."""

import json as json_
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli.lazy import new_app, texts
from worker.cli.output import print_json, print_line

if TYPE_CHECKING:
    from worker.providers.registry import Registry

app = new_app(no_args_is_help=True)

Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="DIR", help="Write files to this folder, and print their paths."
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON on one line: the document, or the written paths.")
]


@app.callback()
def contract() -> None:
    """Print the contract for other services: AsyncAPI, OpenAPI, or JSON Schemas."""


def asyncapi(output: Output = None, json: AsJson = False) -> None:
    """Print the AsyncAPI 3.0 document: all entry points, kinds of endpoints and messages.

    The registrations are those of the providers in REGWORKER_PROVIDERS.

    Examples:
        regworker contract asyncapi > asyncapi.json
        regworker contract asyncapi --output docs/contract/v1
    """
    from worker.contract.schemas import files

    name = "asyncapi.json"
    _give({name: files(_registry())[name]}, output, json=json, alone=True)


def openapi(output: Output = None, json: AsJson = False) -> None:
    """Print the OpenAPI 3.1 document of the HTTP API (`regworker serve`).

    The registrations are those of the providers in REGWORKER_PROVIDERS.

    Examples:
        regworker contract openapi > openapi.json
        regworker contract openapi --output docs/contract/v1
    """
    from worker.contract.schemas import files

    name = "openapi.json"
    _give({name: files(_registry())[name]}, output, json=json, alone=True)


def jsonschema(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[job|cancel|event]", help="Only this schema. Default: all, by name."
        ),
    ] = None,
    output: Output = None,
    json: AsJson = False,
) -> None:
    """Print the JSON Schemas of a job, of a request to cancel one, and of an event.

    The registrations are those of the providers in REGWORKER_PROVIDERS.

    Examples:
        regworker contract jsonschema job
        regworker contract jsonschema | jq '.event."$defs".Code.enum'
        regworker contract jsonschema --output docs/contract/v1
    """
    from worker.contract.schemas import schemas

    found = schemas(_registry())
    if name is not None and name not in found:
        raise typer.BadParameter(f"there is no schema {name!r}; there are: {', '.join(found)}")
    chosen = found if name is None else {name: found[name]}
    if output is not None:
        chosen = {f"{key}.schema.json": schema for key, schema in chosen.items()}
    _give(chosen, output, json=json, alone=name is not None)


def _registry() -> "Registry":
    from regworker.settings import Settings
    from worker.providers.registry import Registry

    # Printing a schema needs no key.
    return Registry(Settings.load(sealing_keys="").providers)


def _give(documents: dict[str, Any], output: Path | None, *, json: bool, alone: bool) -> None:
    """Print the documents, or write each to its file. `alone`: print one document without its
    name."""
    if output is None:
        [shown] = documents.values() if alone else [documents]
        if json:
            print_json(shown)
        else:
            sys.stdout.write(f"{json_.dumps(shown, indent=2)}\n")
        return
    output.mkdir(parents=True, exist_ok=True)
    written = []
    for name, one in documents.items():
        file = output / name
        file.write_text(f"{json_.dumps(one, indent=2)}\n", "utf-8")
        written.append(str(file))
    if json:
        print_json({"written": written})
    else:
        for path in written:
            print_line(path)


app.command("asyncapi", **texts(asyncapi))(asyncapi)
app.command("openapi", **texts(openapi))(openapi)
app.command("jsonschema", **texts(jsonschema))(jsonschema)
