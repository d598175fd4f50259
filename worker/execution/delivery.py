"""One delivery of one event to one endpoint: lease, try, settle. At least once, own alarms."""

import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, assert_never

import structlog

from regworker import tracing
from regworker.clock import steady
from regworker.domain.errors import SealingError, WrongSeal
from regworker.domain.event import DisabledData, Notice, moment
from regworker.ledger import AsyncLedger
from regworker.ledger.endpoints import EndpointState, bury, disable, endpoint_key, look_at_endpoint
from regworker.ledger.records import Delivery, Idle, Tried
from regworker.ledger.transitions import Publication, deliver, delivered
from regworker.sealing import seals
from regworker.sealing.keyring import Keyring, kid_of
from worker.monitoring.metrics import Meter
from worker.publishers.base import Arrived, Delivered, Gone, Later, Misplaced, NotTried, Publisher
from worker.telemetry import about, alert

log = structlog.get_logger(__name__)

#: Seconds between tries: Standard Webhooks, "Retries". With the first at once: 75 hours in all.
SCHEDULE = (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)

#: Each pause is longer or shorter by up to this share, so that simultaneous failures spread out.
JITTER = 0.1

#: The longest Retry-After that is obeyed; waiting a year, for example, would lose the event.
LONGEST_WAIT = 86400.0

#: The longest time for which tries are put off, however often an endpoint asks for it: four days,
#: for which the job's record is kept at least.
LONGEST_LIFE = 345600.0

#: Seconds until a delivery is tried again for which this worker lacks the endpoint or the key:
#: short enough to follow a deployment, long enough for thousands of such deliveries.
OWN_FAULT_DELAY = 60.0

#: Seconds for which a try is leased: longer than a publisher's time limit.
LEASE = 30.0

#: Deliveries that one script gives up when an endpoint is disabled: some milliseconds.
BATCH = 200

#: The endpoint that gets the event when another one is disabled: the results stream.
RESULTS = "results"


@dataclass(frozen=True, slots=True)
class DeliveryRules:
    """The rules of all deliveries. `disable_after`: seconds, by endpoint; 0 or none: never.

    `chance`: a number from 0 to 1 that makes a pause longer or shorter.
    """

    source: str
    disable_after: Mapping[str, float] = field(default_factory=dict)
    chance: Callable[[], float] = random.random


class Deliveries:
    """Carries out deliveries."""

    def __init__(
        self,
        ledger: AsyncLedger,
        keyring: Keyring,
        publishers: Mapping[str, Publisher],
        rules: DeliveryRules,
        meter: Meter | None = None,
        unwritten: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """`unwritten`: whether the ledger does not know an endpoint's stray answer yet."""
        self._unwritten = unwritten
        self._meter = meter or Meter()
        self._ledger = ledger
        self._keyring = keyring
        self._publishers = publishers
        self._rules = rules

    async def __call__(self, member: str) -> str:
        """Try a delivery once, if it is due and its endpoint has a free place; the result."""
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
                return f"{state}: {why}"
            case _:
                assert_never(delivery)

    async def _carry_out(self, delivery: Delivery, tell: tracing.Tell) -> str:
        began = steady()
        came = await self._try(delivery)
        took = steady() - began
        # First: if the worker dies in between, the delivery finds its endpoint disabled.
        if isinstance(came, Gone) and not await self._disable(
            delivery.endpoint, came.reason, disables=delivery.disables
        ):
            # It was enabled after this request was sent: an operator has repaired it.
            came = Later(came.reason)
        tried = await self._settle(delivery, came)
        self._meter.delivered(delivery.endpoint, tried.state, took)
        longest = self._rules.disable_after.get(delivery.endpoint, 0.0)
        if longest and tried.failing >= longest and isinstance(came, Later):
            days = tried.failing / 86400
            why = f"all deliveries have failed for {days:.1f} days; last: {came.reason}"
            await self._disable(delivery.endpoint, why, only_if_failing=True)
        facts = {
            "outcome": type(came).__name__.lower(),
            "reason": came.reason,
            "state": tried.state,
        }
        tell(**facts)
        dead = tried.state == "dead"
        log.log(
            logging.ERROR if dead else logging.INFO,
            "delivered" if isinstance(came, Arrived) else "not delivered",
            **facts,
            **({"alert": "dead"} if dead else {}),
            seconds=round(took, 3),
        )
        return f"{tried.state}: {came.reason}"

    async def _try(self, delivery: Delivery) -> Delivered:
        publisher = self._publishers.get(delivery.endpoint)
        if publisher is None:
            self._meter.lacked.add("endpoint", delivery.endpoint)
            return NotTried(f"endpoint {delivery.endpoint} is not configured at this worker")
        try:
            event = self._keyring.open(
                delivery.event, seals.event(delivery.event_id, delivery.endpoint)
            )
        except WrongSeal as error:
            return Misplaced(f"its content is not the event of this delivery: {error}")
        except SealingError as error:
            if (kid := kid_of(delivery.event)) not in self._keyring.kids:
                self._meter.lacked.add("key", kid)
            return NotTried(str(error))
        try:
            with tracing.span("http.client", f"POST {delivery.endpoint}") as tell:
                fresh = delivery.stray or self._unwritten(endpoint_key(delivery.endpoint))
                trace = tracing.onward(delivery.trace)
                came = await publisher.publish(
                    delivery.event_id, event, fresh=fresh, traceparent=trace
                )
                tell(came=type(came).__name__.lower(), reason=came.reason)
                return came
        except Exception as error:
            # An error of the worker must not lose the event: the delivery is retried.
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
            case Misplaced(reason):
                command = delivered(delivery, "dead", reason, 0, blame=False)
            case NotTried(reason):
                verdict = "later" if _left(delivery) > 0 else "dead"
                pause = OWN_FAULT_DELAY * self._jitter()
                command = delivered(delivery, verdict, reason, pause, blame=False)
            case _:
                assert_never(came)
        return await self._ledger(command, patience=60)

    def _pause(self, delivery: Delivery, asked: float) -> float | None:
        """Seconds until the next try; None: no further try. `asked`: the endpoint's Retry-After."""
        left = _left(delivery)
        if delivery.tries >= len(SCHEDULE) or left <= 0:
            return None
        own = SCHEDULE[delivery.tries] * self._jitter()
        # Jitter on top: otherwise all deliveries with the same delay return in the same second.
        obeyed = min(asked, LONGEST_WAIT, left) * (1 + JITTER * self._rules.chance())
        return max(own, obeyed)

    def _jitter(self) -> float:
        return 1 + JITTER * (2 * self._rules.chance() - 1)

    async def _disable(
        self, name: str, why: str, *, disables: int | None = None, only_if_failing: bool = False
    ) -> bool:
        """Send nothing more to an endpoint, publish an event about it, and give up its deliveries;
        False: it is enabled.

        `disables`: not if it was disabled more often than that, and enabled again.
        """
        seen = await self._ledger(look_at_endpoint(name))
        if not seen.disabled:
            if disables not in {None, seen.disables}:
                return False
            publication = self._told(seen, why)
            command = disable(seen, why, publication, only_if_failing=only_if_failing)
            if not await self._ledger(command, patience=60):
                return False
            alert("endpoint disabled", kind="endpoint", endpoint=name, reason=why)
        while await self._ledger(bury(name, BATCH)):
            pass
        return True

    def _told(self, seen: EndpointState, why: str) -> Publication:
        event = Notice(
            # Every worker makes the same id: it is derived from how often the endpoint was
            # disabled.
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
        sealed = self._keyring.seal(text, seals.event(event.id, RESULTS))
        return Publication(event.id, event.type, text, sealed, "", (RESULTS,))


def _left(delivery: Delivery) -> float:
    """Seconds for which a delivery may still be put off."""
    return LONGEST_LIFE - (delivery.at - delivery.started_at) / 1000


def _facts(delivery: Delivery) -> dict[str, Any]:
    """The fields of each log line about a delivery."""
    return {
        "job": delivery.job_id,
        "provider": delivery.provider,
        "account": delivery.account,
        "attempt": delivery.tries + 1,
        "endpoint": delivery.endpoint,
        "event_id": delivery.event_id,
    }
