"""One delivery of one event to one endpoint: lease, try, settle. At least once, own alarms."""

import random
from collections.abc import Callable, Mapping

import structlog

from worker.errors import SealingError
from worker.ledger import AsyncLedger
from worker.ledger.commands import deliver, delivered
from worker.ledger.records import Delivery
from worker.publishers.base import Arrived, Dead, Delivered, Later, Publisher
from worker.sealing import Keyring

log = structlog.get_logger(__name__)

#: Seconds between tries: Standard Webhooks, "Retries". With the first at once: 75 hours in all.
SCHEDULE = (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)

#: Each pause is this much longer or shorter by chance, so that what failed together parts.
JITTER = 0.1

#: The longest an endpoint's Retry-After is obeyed; one that says a year would lose the event.
LONGEST_WAIT = 86400.0

#: Seconds a try is leased for: longer than a publisher's whole budget.
LEASE = 30.0


class Deliveries:
    """Carries out deliveries."""

    def __init__(
        self,
        ledger: AsyncLedger,
        keyring: Keyring,
        publishers: Mapping[str, Publisher],
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._ledger = ledger
        self._keyring = keyring
        self._publishers = publishers
        self._chance = chance

    async def __call__(self, member: str) -> str:
        """Try a delivery once, if it is due; what came of it."""
        delivery = await self._ledger(deliver(member, LEASE))
        if delivery is None:
            return "nothing to do"
        came = await self._try(delivery)
        verdict, reason, delay = self._judge(delivery, came)
        state = await self._ledger(delivered(delivery, verdict, reason, delay), patience=60)
        log.info(
            "delivered" if isinstance(came, Arrived) else "not delivered",
            job=delivery.job_id,
            event_id=delivery.event_id,
            endpoint=delivery.endpoint,
            tries=delivery.tries + 1,
            reason=reason,
            state=state,
        )
        return f"{state}: {reason}"

    async def _try(self, delivery: Delivery) -> Delivered:
        publisher = self._publishers.get(delivery.endpoint)
        if publisher is None:
            return Later(f"endpoint {delivery.endpoint} is not configured at this worker")
        try:
            event = self._keyring.open(delivery.event)
        except SealingError as error:
            return Later(str(error))
        try:
            return await publisher.publish(delivery.event_id, event)
        except Exception as error:
            # A fault of ours must not lose the event; it is tried again.
            log.exception("delivery failed", endpoint=delivery.endpoint)
            return Later(f"fault in the worker: {type(error).__name__}")

    def _judge(self, delivery: Delivery, came: Delivered) -> tuple[str, str, float]:
        match came:
            case Arrived(reason):
                return "arrived", reason, 0.0
            case Dead(reason):
                return "dead", reason, 0.0
            case Later(reason, retry_after):
                if delivery.tries >= len(SCHEDULE):
                    return "dead", reason, 0.0
                spread = 1 + JITTER * (2 * self._chance() - 1)
                own = SCHEDULE[delivery.tries] * spread
                return "later", reason, max(own, min(retry_after or 0.0, LONGEST_WAIT))
