"""One delivery of one event to one endpoint: lease, try, settle. At least once, own alarms."""

import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, assert_never

import structlog

from worker import tracing
from worker.clock import steady
from worker.errors import SealingError
from worker.event import DisabledData, Notice, moment
from worker.ledger import AsyncLedger
from worker.ledger.commands import Publication, deliver, delivered
from worker.ledger.endpoints import EndpointState, bury, disable, look_at_endpoint
from worker.ledger.records import Delivery, Idle, Tried, Wake
from worker.metrics import Meter
from worker.publishers.base import Arrived, Delivered, Gone, Later, NotTried, Publisher
from worker.sealing import Keyring
from worker.telemetry import about, alert

log = structlog.get_logger(__name__)

#: Seconds between tries: Standard Webhooks, "Retries". With the first at once: 75 hours in all.
SCHEDULE = (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)

#: Each pause is this much longer or shorter by chance, so that what failed together parts.
JITTER = 0.1

#: The longest an endpoint's Retry-After is obeyed; one that says a year would lose the event.
LONGEST_WAIT = 86400.0

#: Nor are tries put off beyond this, however often an endpoint asks for it: four days, as long as
#: the job's record is kept at the least.
LONGEST_LIFE = 345600.0

#: Seconds a try is leased for: longer than a publisher's whole budget.
LEASE = 30.0

#: Deliveries given up by one script when an endpoint is disabled: some milliseconds at the most.
BATCH = 200

#: The endpoint that is told when another is disabled: the results stream.
TOLD = "results"


@dataclass(frozen=True, slots=True)
class Rules:
    """What all deliveries go by. `disable_after`: seconds, by endpoint; 0 or none: never."""

    source: str
    disable_after: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """What a try came to, in words, and who is to be woken now."""

    text: str
    wakes: tuple[Wake, ...] = ()


class Deliveries:
    """Carries out deliveries."""

    def __init__(
        self,
        ledger: AsyncLedger,
        keyring: Keyring,
        publishers: Mapping[str, Publisher],
        rules: Rules,
        chance: Callable[[], float] = random.random,
        meter: Meter | None = None,
    ) -> None:
        self._meter = meter or Meter()
        self._ledger = ledger
        self._keyring = keyring
        self._publishers = publishers
        self._rules = rules
        self._chance = chance

    async def __call__(self, member: str) -> Report:
        """Try a delivery once, if it is due and its endpoint has a place for it."""
        delivery = await self._ledger(deliver(member, LEASE))
        match delivery:
            case Delivery():
                facts = _facts(delivery)
                with (
                    about(**facts),
                    tracing.transaction("registrations.deliver", delivery.trace, **facts) as tell,
                ):
                    return await self._carry_out(delivery, tell)
            case Idle(state, why):
                return Report(f"{state}: {why}")
            case _:
                assert_never(delivery)

    async def _carry_out(self, delivery: Delivery, tell: tracing.Tell) -> Report:
        began = steady()
        came = await self._try(delivery)
        took = steady() - began
        wakes: tuple[Wake, ...] = ()
        if isinstance(came, Gone):
            # First: whoever dies between the two leaves a delivery that is found disabled.
            wakes += await self._disable(delivery.endpoint, came.reason)
        tried = await self._settle(delivery, came)
        self._meter.delivered(delivery.endpoint, tried.state, took)
        longest = self._rules.disable_after.get(delivery.endpoint, 0.0)
        if longest and tried.failing >= longest and not isinstance(came, Arrived | Gone):
            why = f"nothing but failures for {tried.failing / 86400:.1f} days; last: {came.reason}"
            wakes += await self._disable(delivery.endpoint, why, only_if_failing=True)
        told = {
            "outcome": type(came).__name__.lower(),
            "reason": came.reason,
            "state": tried.state,
        }
        tell(**told)
        dead = tried.state == "dead"
        log.log(
            logging.ERROR if dead else logging.INFO,
            "delivered" if isinstance(came, Arrived) else "not delivered",
            **told,
            **({"alert": "dead"} if dead else {}),
            seconds=round(took, 3),
        )
        return Report(f"{tried.state}: {came.reason}", wakes + tried.wakes)

    async def _try(self, delivery: Delivery) -> Delivered:
        publisher = self._publishers.get(delivery.endpoint)
        if publisher is None:
            return NotTried(f"endpoint {delivery.endpoint} is not configured at this worker")
        try:
            event = self._keyring.open(delivery.event)
        except SealingError as error:
            return NotTried(str(error))
        try:
            with tracing.span("http.client", f"POST {delivery.endpoint}") as tell:
                came = await publisher.publish(delivery.event_id, event)
                tell(came=type(came).__name__.lower(), reason=came.reason)
                return came
        except Exception as error:
            # A fault of ours must not lose the event; it is tried again.
            log.exception("delivery failed")
            return NotTried(f"fault in the worker: {type(error).__name__}")

    async def _settle(self, delivery: Delivery, came: Delivered) -> Tried:
        match came:
            case Arrived(reason):
                command = delivered(delivery, "arrived", reason, 0)
            case Gone(reason):
                command = delivered(delivery, "dead", reason, 0)
            case Later(reason, retry_after):
                pause = self._pause(delivery, retry_after or 0.0)
                verdict = "dead" if pause is None else "later"
                command = delivered(delivery, verdict, reason, pause or 0)
            case NotTried(reason):
                pause = self._pause(delivery, 0.0)
                verdict = "dead" if pause is None else "later"
                command = delivered(delivery, verdict, reason, pause or 0, blame=False)
            case _:
                assert_never(came)
        return await self._ledger(command, patience=60)

    def _pause(self, delivery: Delivery, asked: float) -> float | None:
        """Seconds until the next try; None where there is none. `asked`: as the endpoint did."""
        left = LONGEST_LIFE - (delivery.at - delivery.started_at) / 1000
        if delivery.tries >= len(SCHEDULE) or left <= 0:
            return None
        own = SCHEDULE[delivery.tries] * (1 + JITTER * (2 * self._chance() - 1))
        # Jitter on top, or all that were told the same second come back in the same second.
        obeyed = min(asked, LONGEST_WAIT, left) * (1 + JITTER * self._chance())
        return max(own, obeyed)

    async def _disable(
        self, name: str, why: str, *, only_if_failing: bool = False
    ) -> tuple[Wake, ...]:
        """Send nothing more to an endpoint, say so in an event, and give up what is due to it."""
        seen = await self._ledger(look_at_endpoint(name))
        wakes = None
        if not seen.disabled:
            told = self._told(seen, why)
            command = disable(seen, why, told, only_if_failing=only_if_failing)
            wakes = await self._ledger(command, patience=60)
            if wakes is not None:
                alert("endpoint disabled", kind="endpoint", endpoint=name, reason=why)
        while await self._ledger(bury(name, BATCH)):
            pass
        return wakes or ()

    def _told(self, seen: EndpointState, why: str) -> Publication:
        event = Notice(
            # The same whoever tells it: by how many times the endpoint has been disabled.
            id=f"{seen.name}.{seen.disables + 1}.disabled",
            source=self._rules.source,
            type="endpoint.disabled",
            subject=seen.name,
            time=moment(seen.at),
            data=DisabledData(
                endpoint=seen.name,
                reason=why,
                since=moment(seen.failing_since or seen.at),
                dead=seen.pending,
            ),
        )
        text = event.encode()
        return Publication(event.id, text, self._keyring.seal(text), "", (TOLD,))


def _facts(delivery: Delivery) -> dict[str, Any]:
    """What each line that is told of a delivery says of it."""
    return {
        "job": delivery.job_id,
        "provider": delivery.provider,
        "account": delivery.account,
        "attempt": delivery.tries + 1,
        "endpoint": delivery.endpoint,
        "event_id": delivery.event_id,
    }
