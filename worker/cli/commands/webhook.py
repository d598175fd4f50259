"""`regworker webhook`: test a webhook, and create signing secrets."""

import asyncio
import base64
import secrets
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli.lazy import new_app, texts
from worker.cli.output import AsJson, plain, print_json, print_line

if TYPE_CHECKING:
    from regworker.settings import Settings, WebhookEndpoint
    from worker.publishers.webhook import Unanswered, WebhookAnswer, WebhookPublisher

app = new_app(no_args_is_help=True)

#: Bytes of a secret: Standard Webhooks allows 24 to 64.
SECRET_BYTES = 32


@app.callback()
def webhook() -> None:
    """Test an endpoint of kind webhook, and create signing secrets."""


def try_(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The endpoint's name in the settings.")
    ],
    json: AsJson = False,
) -> None:
    """Send a signed test event to a webhook, and show its answer.

    The event is a CloudEvent of type `webhook.test`. This machine sends it once, with this
    environment's settings, also to a disabled endpoint. Nothing is stored. Exit code 1 unless the
    answer is 2xx; the reason names the check that refused it, if one did.

    Examples:
        regworker webhook test crm
        regworker webhook test crm --json | jq .status
    """
    from regworker.settings import Settings
    from worker.publishers.webhook import WebhookAnswer, WebhookPublisher

    settings = Settings.load(sealing_keys="")
    endpoint = _webhook(settings, name)
    id_ = f"test.{secrets.token_hex(8)}"
    started = time.monotonic()
    publisher = WebhookPublisher(endpoint, way=settings.way_out)
    came = asyncio.run(_send(publisher, id_, _event(settings, name, id_)))
    seconds = time.monotonic() - started
    ok = isinstance(came, WebhookAnswer) and 200 <= came.status < 300
    found = {"endpoint": name, "webhook_id": id_, "ok": ok, "seconds": round(seconds, 3)}
    found |= _told(came)
    if json:
        print_json(found)
    else:
        for what, value in found.items():
            if value not in (None, ""):
                print_line(f"{what:10} {plain(str(value))}")
    raise typer.Exit(0 if ok else 1)


def secret(json: AsJson = False) -> None:
    """Create a secret that signs webhooks: 32 random bytes, in the form of Standard Webhooks.

    To replace a secret, set both (`SECRETS=<new>,<old>`) until the receiver uses the new one.

    Examples:
        regworker webhook secret
    """
    made = "whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
    if json:
        print_json({"secret": made})
    else:
        print_line(made)


def _webhook(settings: "Settings", name: str) -> "WebhookEndpoint":
    from regworker.settings import WebhookEndpoint, variable

    endpoint = settings.endpoint(name)
    if endpoint is None:
        where = variable("endpoints", name, "kind")
        raise typer.BadParameter(f"no endpoint {name} is configured here ({where})")
    if not isinstance(endpoint, WebhookEndpoint):
        raise typer.BadParameter(f"endpoint {name} is a {endpoint.kind}, not a webhook")
    return endpoint


def _event(settings: "Settings", name: str, id_: str) -> bytes:
    from regworker.domain.event import Notice, TestData, moment

    return Notice(
        id=id_,
        source=settings.source,
        type="webhook.test",
        subject=name,
        time=moment(time.time() * 1000),
        data=TestData(endpoint=name),
    ).encode()


async def _send(
    publisher: "WebhookPublisher", id_: str, event: bytes
) -> "WebhookAnswer | Unanswered":
    try:
        return await publisher.send(id_, event)
    finally:
        await publisher.aclose()


def _told(came: "WebhookAnswer | Unanswered") -> dict[str, Any]:
    from worker.publishers.webhook import WebhookAnswer

    if not isinstance(came, WebhookAnswer):
        return {"status": None, "answer": "", "reason": came.reason}
    reason = ""
    if 300 <= came.status < 400:
        reason = "a redirect, which is not followed"
    elif came.status == 410:
        reason = "a delivery would disable the endpoint"
    elif came.status >= 400:
        reason = "a delivery would be retried"
    return {"status": came.status, "answer": came.head.decode("utf-8", "replace"), "reason": reason}


app.command("test", **texts(try_))(try_)
app.command("secret", **texts(secret))(secret)
