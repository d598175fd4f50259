"""The addresses to which a webhook may be sent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.publishers.address_check import inside


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "unspecified"),
        ("10.0.0.1", "private"),
        ("100.64.0.1", "private"),
        ("100.127.255.255", "private"),
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("169.254.169.254", "link-local"),
        ("172.16.0.1", "private"),
        ("172.31.255.255", "private"),
        ("192.0.0.8", "reserved"),
        ("192.0.2.1", "reserved"),
        ("192.88.99.1", "reserved"),
        ("192.168.1.1", "private"),
        ("198.19.0.1", "reserved"),
        ("203.0.113.9", "reserved"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.250", "multicast"),
        ("240.0.0.1", "reserved"),
        ("255.255.255.255", "reserved"),
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("::1%1", "loopback"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("fec0::1", "private"),
        ("fd12:3456::1", "private"),
        ("ff02::1", "multicast"),
        ("2001:db8::1", "reserved"),
        ("3fff::1", "reserved"),
        ("4000::1", "reserved"),
        ("100::1", "reserved"),
        # IPv4 inside of IPv6: mapped, compatible, NAT64, 6to4, Teredo.
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:7f00:1", "loopback"),
        ("::ffff:169.254.169.254", "link-local"),
        ("::127.0.0.1", "tunnelled"),
        ("::8.8.8.8", "tunnelled"),
        ("64:ff9b::127.0.0.1", "loopback"),
        ("64:ff9b::a00:1", "private"),
        ("64:ff9b:1::808:808", "private"),
        ("2002:7f00:1::", "tunnelled"),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", "tunnelled"),
    ],
)
def test_what_not_everybody_may_have_is_inside(address: str, kind: str) -> None:
    """An address that is not public counts as inside, in any notation and inside any other
    address."""
    assert inside(address) == kind


@pytest.mark.parametrize(
    "address",
    [
        *("1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.0", "172.15.0.1", "172.32.0.1"),
        *("223.255.255.255", "2606:4700::1", "2a00:1450::1", "::ffff:8.8.8.8", "64:ff9b::808:808"),
    ],
)
def test_what_is_public_is_outside(address: str) -> None:
    """This includes an IPv4 address inside an IPv6 address."""
    assert inside(address) is None


@pytest.mark.parametrize(
    "address",
    [
        *("2130706433", "127.1", "0177.0.0.1", "0x7f.0.0.1", "127.0.0.1.", "[::1]", "localhost"),
        *("", " 127.0.0.1", "127.0.0.1%1", "::ffff:127.1"),
    ],
)
def test_what_is_no_address_is_inside(address: str) -> None:
    """Libraries read such texts differently, so none of them is used."""
    assert inside(address) == "misspelt"


@given(st.ip_addresses(v=4))
def test_an_address_that_is_carried_in_another_is_as_it_is_itself(address: object) -> None:
    """For a mapped or NAT64 address, the IPv4 address in it decides."""
    assert inside(f"::ffff:{address}") == inside(f"64:ff9b::{address}") == inside(str(address))
