"""Failed attempts are counted by the address that the client cannot choose."""

import asyncio
from typing import Any

import pytest

from worker.gateway.bearer import FAILURES, Gate
from worker.gateway.client_address import Proxies
from worker.gateway.problems import NotTaken

PROXIES = Proxies(["10.0.0.0/8", "fd00::7"])


def asked(peer: str, *forwarded: str) -> dict[str, Any]:
    """The ASGI scope of a request with these `X-Forwarded-For` headers."""
    headers = [(b"x-forwarded-for", one.encode()) for one in forwarded]
    return {"client": (peer, 1234), "headers": headers, "state": {}}


@pytest.mark.parametrize(
    ("request_", "sender"),
    [
        (asked("192.0.2.1"), "192.0.2.1"),
        (asked("::ffff:192.0.2.1"), "192.0.2.1"),
        (asked("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64"),
        (asked("2001:db8:1:2::9"), "2001:db8:1:2::/64"),
        (asked("fe80::1%eth0"), "fe80::/64"),
        # Not from a trusted proxy: ignored.
        (asked("192.0.2.1", "198.51.100.1"), "192.0.2.1"),
        (asked("2001:db8::1", "10.0.0.1"), "2001:db8::/64"),
        # Only the last address that is not a trusted proxy counts.
        (asked("10.0.0.1"), "10.0.0.1"),
        (asked("10.0.0.1", "198.51.100.1"), "198.51.100.1"),
        (asked("::ffff:10.0.0.1", "203.0.113.9, 198.51.100.1,10.0.0.2"), "198.51.100.1"),
        (asked("fd00::7", "203.0.113.9", "2001:db8:5:6:7::8"), "2001:db8:5:6::/64"),
        (asked("10.0.0.1", "10.0.0.3, 10.0.0.2"), "10.0.0.3"),
        (asked("10.0.0.1", "198.51.100.1, unknown"), "10.0.0.1"),
        (asked("10.0.0.1", "198.51.100.1, unknown, 10.0.0.2"), "10.0.0.2"),
        (asked("10.0.0.1", ""), "10.0.0.1"),
        # Some proxies add the client's port.
        (asked("10.0.0.1", "198.51.100.1:50123"), "198.51.100.1"),
        (asked("10.0.0.1", "203.0.113.9, 198.51.100.1:50123, 10.0.0.2:443"), "198.51.100.1"),
        (asked("10.0.0.1", "[2001:db8:5:6:7::8]:50123"), "2001:db8:5:6::/64"),
        (asked("10.0.0.1", "[2001:db8:5:6:7::8]"), "2001:db8:5:6::/64"),
    ],
)
def test_the_sender_of_a_request(request_: dict[str, Any], sender: str) -> None:
    """It is the peer, or what a trusted proxy reports."""
    assert PROXIES.sender(request_) == sender


def test_requests_without_a_token_are_limited_for_each_client_of_a_proxy() -> None:
    """One client uses up its attempts; another one of the same proxy still gets 401."""
    ledger: Any = None
    gate = Gate(ledger, PROXIES, clock=lambda: 0.0)

    def status(client: str) -> int:
        with pytest.raises(NotTaken) as refused:
            asyncio.run(gate.admit(asked("10.0.0.1", client)))
        return refused.value.problem.status

    assert {status("198.51.100.1") for _ in range(int(FAILURES))} == {401}
    assert status("198.51.100.1") == 429
    assert status("198.51.100.2") == 401
