"""`regworker webhook`: try a webhook by hand, and make secrets for one."""

import asyncio
import base64
import secrets
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli.lazy import new_app, texts
from worker.cli.output import AsJson, plain, print_json, print_line

if TYPE_CHECKING:
    from worker.publishers.webhook import Answer, Unanswered
    from worker.settings import Settings, WebhookEndpoint

app = new_app(no_args_is_help=True)

#: Bytes of a secret: Standard Webhooks takes 24 to 64.
SECRET_BYTES = 32


@app.callback()
def webhook() -> None:
    """Try an endpoint of kind webhook, and make secrets to sign with."""


def try_(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The endpoint, as it is configured.")],
    json: AsJson = False,
) -> None:
    """Send a signed test event to a webhook, and show what it answered.

    The event is a CloudEvent of type `webhook.test`. It is sent from here, by the settings of this
    environment, once, and also to an endpoint that is disabled. Nothing is kept of it. Exit code 1
    unless the answer is 2xx; the reason says which check refused it, where one did.

    Examples:
        regworker webhook test crm
        regworker webhook test crm --json | jq .status
    """
    from worker.publishers.webhook import Answer
    from worker.settings import Settings

    settings = Settings.load(sealing_keys="")
    endpoint = _webhook(settings, name)
    id_ = f"test.{secrets.token_hex(8)}"
    started = time.monotonic()
    came = asyncio.run(_send(endpoint, id_, _event(settings, name, id_)))
    seconds = time.monotonic() - started
    ok = isinstance(came, Answer) and 200 <= came.status < 300
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
    """Make a secret to sign webhooks with: 32 random bytes, as Standard Webhooks writes them.

    To change over, set both (`SECRETS=<new>,<old>`) until the receiver knows the new one.

    Examples:
        regworker webhook secret
    """
    made = "whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
    if json:
        print_json({"secret": made})
    else:
        print_line(made)


def _webhook(settings: "Settings", name: str) -> "WebhookEndpoint":
    from worker.settings import WebhookEndpoint, variable

    endpoint = settings.endpoint(name)
    if endpoint is None:
        where = variable("endpoints", name, "kind")
        raise typer.BadParameter(f"no endpoint {name} is configured here ({where})")
    if not isinstance(endpoint, WebhookEndpoint):
        raise typer.BadParameter(f"endpoint {name} is a {endpoint.kind}, not a webhook")
    return endpoint


def _event(settings: "Settings", name: str, id_: str) -> bytes:
    from worker.event import Notice, TestData, moment

    return Notice(
        id=id_,
        source=settings.source,
        type="webhook.test",
        subject=name,
        time=moment(time.time() * 1000),
        data=TestData(endpoint=name),
    ).encode()


async def _send(endpoint: "WebhookEndpoint", id_: str, event: bytes) -> "Answer | Unanswered":
    from worker.publishers.webhook import WebhookPublisher

    publisher = WebhookPublisher(endpoint)
    try:
        return await publisher.send(id_, event)
    finally:
        await publisher.aclose()


def _told(came: "Answer | Unanswered") -> dict[str, Any]:
    from worker.publishers.webhook import Answer

    if not isinstance(came, Answer):
        return {"status": None, "answer": "", "reason": came.reason}
    reason = ""
    if 300 <= came.status < 400:
        reason = "a redirect, which is not followed"
    elif came.status == 410:
        reason = "the endpoint would be disabled"
    elif came.status >= 400:
        reason = "would be tried again"
    return {"status": came.status, "answer": came.head.decode("utf-8", "replace"), "reason": reason}


app.command("test", **texts(try_))(try_)
app.command("secret", **texts(secret))(secret)
