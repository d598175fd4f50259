"""The metrics of a process of `regworker serve`."""

from worker.monitoring.metrics import Tally


def requests() -> Tally:
    """Counts requests."""
    return Tally("regworker_gateway_requests", "Requests by route and status.", ("route", "status"))


def refusals() -> Tally:
    """Counts refused requests."""
    return Tally(
        "regworker_gateway_refused",
        "Requests without a good token (token), too many of these (attempts), too many (rate), "
        "too many that are open for long (waiting; all_waiting: of all tokens), too many "
        "connections (full).",
        ("why",),
    )
