"""The broker's URL in the form of kombu and Flower: each library has its own spelling."""

from typing import Any
from urllib.parse import quote

from regworker import addresses
from regworker.ledger.servers import sentinel_options


def of_kombu(broker: str) -> tuple[str, dict[str, Any]]:
    """The settings' URL in kombu's form, and its transport options."""
    if ";" in broker:
        return ";".join(of_kombu(one)[0] for one in broker.split(";")), {}
    address = addresses.read(broker)
    if address.kind == "amqp":
        return broker, {}
    if address.scheme == "unix":
        path = quote(address.path)
        credentials = _credentials(address)
        return f"redis+socket://{credentials}{path}?virtual_host={address.db}", {}
    url = address.redis_url()
    if not address.service:
        return url, {}
    # These are kombu's and Flower's names, except `sentinels`: they take several URLs instead.
    options = {
        "sentinels": [list(one) for one in address.hosts],
        "master_name": address.service,
        "sentinel_kwargs": sentinel_options(address),
    }
    return f"sentinel://{url.partition('://')[2]}", options


def same_place(broker: str, ledger: str) -> bool:
    """Whether two of the settings' URLs name the same database of the same server."""
    if ";" in broker:
        return False
    return addresses.read(broker).place == addresses.read(ledger).place


def _credentials(address: addresses.Address) -> str:
    if address.username is None and address.password is None:
        return ""
    name, password = address.username or "", address.password or ""
    return f"{quote(name, safe='')}:{quote(password, safe='')}@"
