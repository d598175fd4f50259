"""`regworker settings`: all settings."""

from typing import Annotated, Any

import typer
from rich.text import Text

from worker.cli.output import AsJson, new_table, out, print_json, print_line

#: Groups of settings in which the user chooses the names.
_NESTED = {
    "accounts": "ACCOUNTS__<PROVIDER>__<ACCOUNT>__<FIELD>",
    "endpoints": "ENDPOINTS__<NAME>__<FIELD>",
    "ledgers": "LEDGERS__<NAME>__<FIELD>",
}


def settings(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    json: AsJson = False,
) -> None:
    """List all settings: environment variable, default, meaning.

    Durations are in seconds. Settings can also be in a TOML file, named by REGWORKER_CONFIG; the
    environment overrides the file.

    Examples:
        regworker settings
        regworker settings --json | jq -r .name
    """
    rows = [*_general(), *_accounts(), *_endpoints(), *_ledgers()]
    if json:
        for name, default, text in rows:
            print_json({"name": name, "default": default, "description": text})
    elif markdown:
        print_line("| variable | default | meaning |\n|---|---|---|")
        for name, default, text in rows:
            shown = f"`{default}`" if default else ""
            print_line(f"| `{name}` | {shown} | {text} |")
    else:
        table = new_table("variable", "default", "meaning")
        for row in rows:
            table.add_row(*map(Text, row))
        out().print(table)


Row = tuple[str, str, str]


def _general() -> list[Row]:
    from regworker.settings import PREFIX, Settings

    return [
        (f"{PREFIX}{_NESTED.get(name, name.upper())}", _default(field), field.description or "")
        for name, field in sorted(Settings.model_fields.items(), key=_of_pages)
    ]


def _of_pages(one: tuple[str, Any]) -> bool:
    # Settings that only the pages need come last.
    return one[0].startswith("serve_")


def _accounts() -> list[Row]:
    from regworker.settings import PREFIX, Settings
    from worker.providers.registry import Registry

    registry = Registry(Settings.model_fields["providers"].get_default(call_default_factory=True))
    return [
        (
            f"{PREFIX}ACCOUNTS__{provider.upper()}__<ACCOUNT>__{name.upper()}",
            _default(field),
            _text(field),
        )
        for provider in registry
        for name, field in registry[provider].Account.model_fields.items()
    ]


def _endpoints() -> list[Row]:
    from regworker.settings import PREFIX, QueueEndpoint, StreamEndpoint, WebhookEndpoint

    rows: list[Row] = []
    kinds_of: dict[str, list[str]] = {}
    for model in (StreamEndpoint, WebhookEndpoint, QueueEndpoint):
        kind = model.model_fields["kind"].annotation.__args__[0]  # type: ignore[union-attr]
        for name, field in model.model_fields.items():
            if name == "kind":
                continue
            variable = f"{PREFIX}ENDPOINTS__<NAME>__{name.upper()}"
            if variable not in kinds_of:
                rows.append((variable, _default(field), _text(field)))
            kinds_of.setdefault(variable, []).append(f"`{kind}`")
    rows = [
        (variable, default, f"kind {' or '.join(kinds_of[variable])}: {text}")
        for variable, default, text in rows
    ]
    kinds = "The kind of the endpoint: `stream`, `webhook` or `queue`."
    return [(f"{PREFIX}ENDPOINTS__<NAME>__KIND", "required", kinds), *rows]


def _ledgers() -> list[Row]:
    from regworker.settings import PREFIX, LedgerServers

    return [
        (f"{PREFIX}LEDGERS__<NAME>__{name.upper()}", _default(field), _text(field))
        for name, field in LedgerServers.model_fields.items()
    ]


def _text(field: Any) -> str:
    return " ".join((field.description or "").split())


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value == {}:
        return ""
    return ",".join(value) if isinstance(value, list) else f"{value}"
