"""Webhooks: signed HTTP requests by the Standard Webhooks specification."""

import asyncio
import ipaddress
import socket
from datetime import UTC, datetime
from typing import Any

import aiohttp
import aiohttp.abc
import aiohttp.resolver
import httpx
from httpx_aiohttp import AiohttpTransport
from standardwebhooks import Webhook

from worker.publishers.base import Arrived, Dead, Delivered, Later
from worker.retry import parse_retry_after
from worker.settings import WebhookEndpoint

#: Seconds for all of one request (Standard Webhooks, "Timeouts": 15 to 30).
BUDGET = 15.0

#: Bytes of an answer that are read. Nothing in it is used but its status.
MOST_ANSWER = 64 * 1024


class WebhookPublisher:
    """Delivers to one configured URL. No redirects, no private addresses unless allowed."""

    def __init__(self, endpoint: WebhookEndpoint) -> None:
        self._endpoint = endpoint
        self._signers = [Webhook(secret.get_secret_value()) for secret in endpoint.secrets]
        self._client: httpx.AsyncClient | None = None

    async def publish(self, event_id: str, event: bytes) -> Delivered:
        """POST the event once: 2xx is success, 410 means never again, all else means later."""
        try:
            async with asyncio.timeout(BUDGET):
                return await self._post(event_id, event)
        except (httpx.HTTPError, OSError) as error:
            # Names only: an address or a body in a log helps nobody but an attacker.
            return Later(type(error).__name__)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()

    async def _post(self, event_id: str, event: bytes) -> Delivered:
        if self._client is None:
            self._client = _client(self._endpoint)
        host = httpx.URL(self._endpoint.url).host
        if not self._endpoint.allow_private and _is_inside(host):
            return Later("the URL's address is private (ALLOW_PRIVATE=true would allow it)")
        headers = {"content-type": "application/cloudevents+json", **self._sign(event_id, event)}
        async with self._client.stream(
            "POST", self._endpoint.url, content=event, headers=headers
        ) as response:
            size = 0
            async for chunk in response.aiter_raw():
                size += len(chunk)
                if size > MOST_ANSWER:
                    break
        status = f"HTTP {response.status_code}"
        if response.is_success:
            return Arrived(status)
        if response.status_code == httpx.codes.GONE:
            return Dead(status)
        return Later(status, parse_retry_after(response.headers.get("retry-after")))

    def _sign(self, event_id: str, event: bytes) -> dict[str, str]:
        now = datetime.now(UTC)
        text = event.decode()
        # One signature for each secret, so that a receiver may change over in its own time.
        signatures = " ".join(signer.sign(event_id, now, text) for signer in self._signers)
        return {
            "webhook-id": event_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": signatures,
        }


class _Outside(aiohttp.abc.AbstractResolver):
    """Resolves names, and refuses those that lead inside: checked on the address connected to."""

    def __init__(self) -> None:
        self._resolver = aiohttp.resolver.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[aiohttp.abc.ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        outside = [one for one in found if not _is_inside(one["host"])]
        if not outside:
            raise OSError("the URL's name leads to a private address")
        return outside

    async def close(self) -> None:
        await self._resolver.close()


def _is_inside(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return not (mapped or address).is_global


def _client(endpoint: WebhookEndpoint) -> httpx.AsyncClient:
    def session() -> aiohttp.ClientSession:
        options: dict[str, Any] = {} if endpoint.allow_private else {"resolver": _Outside()}
        connector = aiohttp.TCPConnector(limit=0, **options)
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())

    return httpx.AsyncClient(
        transport=AiohttpTransport(client=session), trust_env=False, timeout=BUDGET
    )
