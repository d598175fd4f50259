"""Whether a failover of the ledger keeps accepted jobs: findings for the doctor."""

from collections.abc import Mapping
from typing import Any

from redis.exceptions import RedisError

from regworker import addresses
from regworker.ledger.servers import Sentinels, WrongServer, sentinel_options
from regworker.settings import variable
from worker.monitoring.doctor import Finding, online

_NAME = variable("replicas")

#: The field of `INFO` that a server shows only if it requires replicas.
_GOOD = "min_slaves_good_slaves"

#: With fewer Sentinels, losing one leaves no majority.
FEWEST = 3


def examine(client: Any, info: Mapping[str, Any], wanted: int, url: str) -> list[Finding]:
    """The findings. `client`: redis-py's; `info`: the server's; `wanted`: replicas."""
    found = []
    if wanted:
        found += [writes(_min_replicas(client), info, wanted), majority(online(info), wanted)]
    address = addresses.read(url)
    if address.service:
        watched = Sentinels(address.hosts, address.service, sentinel_options(address))
        found.append(quorum(_told(watched)))
    return found


def writes(least: int | None, info: Mapping[str, Any], wanted: int) -> Finding:
    """Whether the server refuses writes that too few replicas would receive.

    `least`: its `min-replicas-to-write`; None: not shown.
    """
    subject = "min-replicas-to-write"
    if least is None:
        what = "set" if _GOOD in info else "not set"
        found = f"{what} (only users with permission for CONFIG GET see its value)"
        if _GOOD in info:
            return Finding("ok", subject, found, setting="replicas")
        least = 0
    else:
        found = f"{least}, and {_NAME} is {wanted}"
    if least > online(info):
        advice = f"connect replicas, or lower it: with {online(info)} connected, all writes fail"
        return Finding("unsafe", subject, found, advice)
    if least < wanted:
        advice = (
            f"set `min-replicas-to-write {wanted}` and `min-replicas-max-lag 10` at every server: "
            "then a primary that is cut off refuses writes, instead of accepting writes that it "
            "loses when it becomes a replica"
        )
        return Finding("warning", subject, found, advice)
    return Finding("ok", subject, found)


def majority(connected: int, wanted: int) -> Finding:
    """Whether a promoted replica has every write that counted."""
    subject = "failover"
    if wanted >= connected:
        return Finding(
            "ok", subject, "every connected replica has each write that counts: none is lost"
        )
    found = (
        f"{wanted} of {connected} replicas have each write that counts: the promoted one may not"
    )
    advice = (
        f"set {_NAME}={connected}; otherwise a failover to the wrong replica loses jobs, and "
        "workers ask the provider about others before they send them"
    )
    return Finding("warning", subject, found, advice)


def quorum(answer: Mapping[str, str] | str) -> Finding:
    """Whether a majority of the Sentinels must agree; `answer`: of one Sentinel, or the error."""
    subject = "sentinels"
    if isinstance(answer, str):
        return Finding(
            "warning", subject, answer, "start them, or set the addresses of those that run"
        )
    number, agree = int(answer["num-other-sentinels"]) + 1, int(answer["quorum"])
    most = number // 2 + 1
    found = f"{number} know each other, quorum {agree}"
    if number < FEWEST:
        advice = (
            f"run {FEWEST}, each on its own machine: a failover needs a majority ({most}), so with "
            "fewer the loss of one prevents it"
        )
        return Finding("warning", subject, found, advice)
    if agree < most:
        advice = (
            f"set `sentinel set {{service}} quorum {most}`: {agree} must agree that the primary is "
            f"down, but {most} are needed to replace it, so a minority starts failovers that "
            "cannot complete"
        )
        return Finding("warning", subject, found, advice.format(service=answer["name"]))
    if agree > most:
        advice = f"set the quorum to {most}: if {number - agree + 1} are down, there is no failover"
        return Finding("warning", subject, found, advice)
    return Finding("ok", subject, f"{found}: a failover needs {most}")


def _min_replicas(client: Any) -> int | None:
    try:
        return int(client.config_get("min-replicas-to-write")["min-replicas-to-write"])
    except (RedisError, KeyError, ValueError):
        return None


def _told(watched: Sentinels) -> Mapping[str, str] | str:
    try:
        return watched.describe()
    except (WrongServer, RedisError) as error:
        return str(error)
