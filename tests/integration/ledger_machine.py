"""All users of the ledger: producers, workers, the clock, operators, endpoints.

Hypothesis drives the real Lua scripts, with a simulated provider.
"""

from dataclasses import replace
from typing import Any

import redis
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    initialize,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from regworker.domain.states import FINAL, PARKED, State
from regworker.ledger import Command
from regworker.ledger.admin import Limits, announce, correct, hold, redrive, resolve
from regworker.ledger.endpoints import serve
from regworker.ledger.records import (
    TAKEN,
    Accepted,
    Claim,
    Conflict,
    Delivery,
    NotNow,
    Over,
    Record,
    Settled,
    Spent,
    Stale,
)
from regworker.ledger.transitions import (
    Decision,
    abandon,
    accept,
    cancel,
    claim,
    deliver,
    delivered,
    look,
    renew,
    ring,
    settle,
)
from tests.integration.jobs import ACTOR
from tests.integration.ledger_books import (
    ACCOUNT,
    ACCOUNT_KEY,
    CLAIM,
    CLOCK,
    DEADLINE,
    IDS,
    JOBS,
    LEASE,
    MAX_ATTEMPTS,
    PATIENCE,
    PROVIDER,
    RETENTION,
    RULES,
    SETTLE,
    Books,
    Held,
    load,
)

#: The server determines how long an example takes, and `too_slow` counts that as drawing time.
PROFILE = settings(
    max_examples=150,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


#: What is counted of refusals.
BY_STATUS = "refused by status"


def explore(
    client: redis.Redis, sources: dict[str, str], profile: settings, number: int | None = None
) -> None:
    """Let Hypothesis drive a machine over the scripts; a number makes the run repeatable."""
    digests = load(client, sources)

    def machine() -> LedgerMachine:
        return LedgerMachine(client, digests)

    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine if number is None else seed(number)(machine), settings=profile
    )


class LedgerMachine(Books):
    """All users of the ledger, and the rules that they follow."""

    claims = Bundle("claims")
    spents = Bundle("spents")
    tries = Bundle("tries")
    numbers = st.integers(0, 5)
    fates = st.sampled_from(["made", "late", "nothing"])

    # -- producers --------------------------------------------------------------------------------

    @initialize(cap=st.sampled_from([0, 1, 2]), interval=st.sampled_from([0, 0, 0, 4000, 30_000]))
    def open_shop(self, cap: int, interval: int) -> None:
        """Empty the ledger, announce an account and endpoints, and accept jobs."""
        self.client.flushdb()
        self.client.set(CLOCK, self.now)
        self.do(announce([Limits(PROVIDER, ACCOUNT, interval, 0, cap)], ["results", "crm"]))
        self.do(serve({"crm": 1}, RETENTION / 1000))
        for key in JOBS:
            self.accept(key, "this", False)

    @rule(
        what=st.sampled_from(["accept", "look", "cancel", "pause"]),
        key=st.sampled_from(sorted(JOBS)),
        content=st.sampled_from(["this", "this", "that"]),
        lost=st.booleans(),
    )
    def people(self, what: str, key: str, content: str, lost: bool) -> None:
        """What producers and operators do now and then."""
        match what:
            case "accept":
                self.accept(key, content, lost)
            case "look":
                self.looked[key] = self.do(look(IDS[key]))
            case "cancel" if key in self.looked:
                self.cancel(self.looked[key], lost)
            case "pause":
                self.do(hold((PROVIDER, ACCOUNT), "pause", ""))

    def accept(self, key: str, content: str, lost: bool) -> None:
        """A producer enqueues a job, possibly a repeat."""
        job = JOBS[key]
        command = accept(job, "sealed", [f"k:{content}"], DEADLINE / 1000)
        first = self.contents.setdefault(job.id, content)
        before = self.state(job.id)
        answer = self.do(command)
        if first != content:
            assert answer == Conflict(job.id)
            return
        assert isinstance(answer, Accepted)
        assert answer.repeat == (before is not None)
        assert answer.state == self.state(job.id)
        if lost:
            self.again(command, answer)

    def cancel(self, record: Record, lost: bool) -> None:
        """A producer cancels a job, based on a record that it read some time ago."""
        job = self.seen.jobs[record.id]
        same = int(job.get("attempts", 0)) == record.attempts
        waits = job["state"] == "queued" and not self.unproved[record.id]
        may_be = job["state"] == "cancelled" or (waits and same)
        command = cancel(record, RULES.retention, self.publication(record, "cancelled"))
        answer = self.do(command)
        assert isinstance(answer, Settled) == may_be
        if lost:
            assert type(self.again(command)) is type(answer)

    # -- workers ----------------------------------------------------------------------------------

    @rule(target=claims, number=numbers, lost=st.booleans())
    def claim(self, number: int, lost: bool) -> Any:
        """A worker claims a job it was woken for."""
        taken = self.take(self.pick(number), lost)
        return taken if isinstance(taken, Held) else multiple()

    @precondition(lambda self: self.late_jobs())
    @rule(target=spents, number=numbers)
    def find_spent(self, number: int) -> Any:
        """A worker finds a job past its deadline or out of attempts; it may abandon the job
        later."""
        late = self.late_jobs()
        return self.take(late[number % len(late)])

    def late_jobs(self) -> list[str]:
        """The jobs past their deadline or out of attempts, and provably without a customer."""
        queued = self.among(State.QUEUED)
        return [one for one in queued if self.spent(one) and not self.unproved[one]]

    def spent(self, job_id: str) -> bool:
        """Whether a job is past its deadline or out of attempts."""
        job = self.seen.jobs[job_id]
        return int(job["deadline_at"]) <= self.now or int(job.get("attempts", 0)) >= MAX_ATTEMPTS

    def take(self, job_id: str, lost: bool = False) -> Held | Spent | NotNow | Over:
        """Claim a job, check the answer, and update the test's own records."""
        before, live = self.state(job_id), self.live(job_id)
        doubted = before is State.QUEUED and self.unproved[job_id] > 0 and self.spent(job_id)
        command = claim(job_id, CLAIM, 0.5)
        holder = self.holder.get(job_id)
        if holder and not live and not holder.claim.asking:
            # The lease expired in the middle of a call: no worker can decide any more.
            self.question[job_id] = holder.lease_end + SETTLE
            del self.holder[job_id]
        answer = self.do(command)
        if doubted:
            assert self.state(job_id) is State.UNKNOWN, "not asked about before its end"
            self.question[job_id] = 0
        match answer:
            case Claim(record=record):
                assert not live, "a second lease"
                assert answer.asking == (before is not State.QUEUED or doubted)
                assert record.payload == "sealed"
                known = (self.unproved[job_id], self.refusals[job_id])
                assert (record.unproved, record.refusals) == known, "a worker learns something else"
                if not answer.asking:
                    assert job_id not in self.question, "called again, and nobody knows"
                    self.question[job_id] = float("inf")
                held = self.holder[job_id] = Held(answer, record.lease_until)
                held.truths = ["unknown", "retry"]
                if not answer.asking:
                    held.truths += ["rejected", "absent"]
                if lost:
                    again = self.again(command)
                    assert isinstance(again, Claim)
                    assert again.record.fence == record.fence
                return held
            case Spent():
                assert before is State.QUEUED
            case NotNow(why):
                assert (why == "leased") == live
            case Over():
                assert before is None or before in FINAL | PARKED
        return answer

    @rule(spent=spents, lost=st.booleans())
    def abandon(self, spent: Spent, lost: bool) -> None:
        """A worker abandons a job, based on a record that it read some time ago."""
        job = self.seen.jobs[spent.record.id]
        if job.get("fence", "0") != str(spent.record.fence):
            return  # Redriven since then: no worker pauses for as long as a deadline.
        id_ = spent.record.id
        may_be = job["state"] == State.QUEUED and self.spent(id_) and not self.unproved[id_]
        command = self.give_up(spent)
        assert isinstance(self.do(command), Settled) == may_be
        if lost:
            self.again(command)

    def give_up(self, spent: Spent) -> Command[Settled | Stale]:
        """The command that abandons a spent job."""
        event = self.publication(spent.record, "abandoned")
        return abandon(spent.record, "deadline", MAX_ATTEMPTS, RULES.retention, event)

    @rule(
        held=claims,
        fate=st.sampled_from(["made", "late", "late", "nothing"]),
        after=st.sampled_from([0.1, 0.9, 0.999]),
    )
    def send(self, held: Held, fate: str, after: float) -> None:
        """With a live lease a worker calls or looks up; the provider decides what becomes of it."""
        if held.sent_at is None and not held.reported and held.lease_end > self.now:
            self.deal(held, fate, after)

    def deal(self, held: Held, fate: str, after: float = 0.1) -> None:
        """What the provider does with a request."""
        held.sent_at, job_id = self.now, held.claim.id
        if held.claim.asking:
            nobody = ["unproved", "absent", "absent"]
            found = ["registered"] * 3 if self.accounts[job_id] else nobody
            held.truths = ["unknown", "retry", "unresolvable", *found]
        elif fate == "made":
            self.make(held)
        elif fate == "late":
            self.late.append((self.now + int(SETTLE * after), held))
            held.truths = ["unknown", "absent"]
        else:
            held.truths += ["taken", "unresolvable"]

    def make(self, held: Held) -> None:
        """The provider creates a customer and reports it."""
        self.accounts[held.claim.id] += 1
        held.truths = ["registered", "registered", "unknown"]
        if self.accounts[held.claim.id] > 1:
            self.healthy = False
            raise AssertionError("a second customer")

    @rule(
        held=claims,
        which=st.integers(0, 5),
        health=st.sampled_from(["", "", "", "", "", "ok", "fault", "refused", BY_STATUS]),
        delay=st.sampled_from([0, 5, 90]),
        lost=st.booleans(),
    )
    def settle(self, held: Held, which: int, health: str, delay: int, lost: bool) -> None:
        """A worker settles one of its claims, however old, with a verdict that is true."""
        self.conclude(held, held.truths[which % len(held.truths)], health, delay, lost)

    def conclude(
        self, held: Held, verdict: str, health: str = "", delay: int = 0, lost: bool = False
    ) -> None:
        """Settle; only the holder may decide, but anyone may report facts while the job is open."""
        job_id, fence = held.claim.id, held.claim.record.fence
        state, before = self.state(job_id), self.seen
        assert state is not None
        kinds = {"registered": "registered", "rejected": "rejected", "unresolvable": "review"}
        event = self.publication(held.claim.record, kinds[verdict]) if verdict in kinds else None
        command = settle(
            held.claim, Decision(verdict, "why\nso", delay, True, health), RULES, event
        )
        decides, held.reported = self.holder.get(job_id) is held, True
        if self.settled.get(job_id) == (fence, verdict):
            assert isinstance(self.again(command), Settled)
            return
        if not decides and (verdict != "registered" or state in FINAL):
            assert isinstance(self.do(command), Stale)
            assert self.seen == before, "a stale holder changed something"
            return
        self.holder.pop(job_id, None)
        self.settled[job_id] = (fence, verdict)
        expected = self.expected(held, verdict, state)
        self.keep_doubt(held, verdict, health, expected)
        answer = self.do(command)
        assert isinstance(answer, Settled)
        assert answer.state == self.state(job_id) == expected
        self.note(held, answer.state)
        if lost:
            assert isinstance(self.again(command), Settled)

    def expected(self, held: Held, verdict: str, state: State) -> State:
        """The state to which a verdict leads."""
        if verdict in {"registered", "rejected"}:
            return State(verdict)
        if verdict == "unresolvable":
            return State.REVIEW
        if state is State.CALLING:
            return State.QUEUED if verdict == "retry" else State.UNKNOWN
        denied = verdict in {"absent", "unproved"}
        sure = denied and held.claim.at >= self.question[held.claim.id]
        return State.QUEUED if sure else State.UNKNOWN

    def keep_doubt(self, held: Held, verdict: str, health: str, after: State) -> None:
        """Record what a verdict says about refusals that prove nothing."""
        job_id = held.claim.id
        if after in {State.QUEUED, State.UNKNOWN}:
            self.refusals[job_id] += health == BY_STATUS
        if verdict == "taken":
            self.unproved[job_id] = TAKEN
        elif after is State.QUEUED and verdict != "retry" and self.unproved[job_id] != TAKEN:
            self.unproved[job_id] = int(verdict == "unproved")

    def end_doubt(self, job_id: str) -> None:
        """A person or a producer has a job tried again."""
        self.unproved[job_id] = self.refusals[job_id] = 0

    def note(self, held: Held, state: State) -> None:
        """Record whether it is now known that the customer exists or does not."""
        job_id = held.claim.id
        if state is not State.UNKNOWN:
            self.question.pop(job_id, None)
        elif not held.claim.asking:
            self.question[job_id] = self.now + SETTLE
            delayed = int(self.seen.jobs[job_id]["settle_until"])
            assert delayed >= self.question[job_id], "no settle delay"
            self.question[job_id] = delayed

    @rule(held=st.lists(claims, min_size=1, max_size=3), lost=st.booleans())
    def renew(self, held: list[Held], lost: bool) -> None:
        """A worker renews the leases that it believes to hold."""
        leases = [(one.claim.id, one.claim.record.fence) for one in held]
        expected = tuple(self.holder.get(h.claim.id) is h and self.live(h.claim.id) for h in held)
        for one, alive in zip(held, expected, strict=True):
            if alive:
                one.lease_end = self.now + LEASE
        command = renew(leases, LEASE / 1000)
        assert self.do(command) == expected
        if lost:
            self.again(command, expected)

    @rule(
        target=claims,
        number=numbers,
        fate=fates,
        which=numbers,
    )
    def attempt(self, number: int, fate: str, which: int) -> Any:
        """A worker does one attempt from end to end."""
        return self.work(self.pick(number), fate, which) or multiple()

    @rule(
        target=claims,
        number=numbers,
        again=st.booleans(),
        ms=st.sampled_from([SETTLE, SETTLE, LEASE, 1, DEADLINE]),
        others=st.lists(st.tuples(numbers, st.booleans()), max_size=2),
        settles=st.sampled_from([True, True, False]),
    )
    def attempt_slowly(
        self, number: int, again: bool, ms: int, others: list[tuple[int, bool]], settles: bool
    ) -> Any:
        """A worker pauses before it settles, or dies; others work in the meantime."""
        job_id = self.pick(number)
        if again:
            self.work(job_id, "late", 0)
        held = self.take(job_id)
        if not isinstance(held, Held):
            return multiple()
        self.deal(held, "late", 0.9)
        self.wait(ms)
        for other, whole in others:
            if whole:
                self.work(self.pick(other), "nothing", -1)
            else:
                self.take(self.pick(other))
        if settles:
            self.conclude(held, held.truths[-1])
        return held

    @rule(target=claims, number=numbers, health=st.sampled_from([BY_STATUS, "refused"]))
    def attempt_in_vain(self, number: int, health: str) -> Any:
        """A call or a look-up is refused, and an operator resumes the account."""
        held = self.take(self.pick(number))
        if not isinstance(held, Held):
            return multiple()
        self.deal(held, "nothing")
        self.conclude(held, "retry" if held.claim.asking else "unknown", health)
        self.resume(500)
        return held

    @rule(target=claims, number=numbers, fate=fates, which=numbers)
    def attempt_again(self, number: int, fate: str, which: int) -> Any:
        """The same rule again, so that Hypothesis chooses attempts most often."""
        return self.work(self.pick(number), fate, which) or multiple()

    def work(self, job_id: str, fate: str, which: int) -> Held | None:
        """One attempt; or the end of a job that is spent."""
        taken = self.take(job_id)
        if isinstance(taken, Spent):
            self.do(self.give_up(taken))
            self.again(self.give_up(taken))
        if not isinstance(taken, Held):
            return None
        self.deal(taken, fate)
        self.conclude(taken, taken.truths[which % len(taken.truths)])
        return taken

    # -- the clock --------------------------------------------------------------------------------

    @rule(ms=st.sampled_from([None, None, 1, 900, 5_000, LEASE, LEASE + 1, SETTLE, DEADLINE]))
    def pass_time(self, ms: int | None) -> None:
        """Time passes: by a given step, or until the next alarm is due."""
        self.wait_for_an_alarm() if ms is None else self.wait(ms)

    def wait(self, ms: int) -> None:
        """Time passes; requests that the provider delayed are carried out."""
        self.now += ms
        self.client.set(CLOCK, self.now)
        due = [held for at, held in self.late if at <= self.now]
        self.late = [(at, held) for at, held in self.late if at > self.now]
        for held in due:
            self.make(held)

    def wait_for_an_alarm(self) -> None:
        """Time passes until the next alarm is due."""
        if self.seen.alarms:
            self.wait(max(0, int(min(self.seen.alarms.values())) - self.now))

    @precondition(lambda self: min(self.seen.alarms.values(), default=self.now + 1) <= self.now)
    @rule(most=st.sampled_from([1, 100]))
    def ring(self, most: int) -> None:
        """Alarms ring; the wake-ups are lost."""
        due = [id_ for id_, at in self.seen.alarms.items() if at <= self.now]
        rung = self.do(ring(most))
        assert {wake.member for wake in rung.wakes} <= set(due)
        assert len(rung.wakes) == min(most, len(due))
        for wake in rung.wakes:
            assert self.seen.alarms[wake.member] > self.now

    # -- the operator -----------------------------------------------------------------------------

    @precondition(lambda self: self.held_up())
    @rule(most=st.sampled_from([1, 500]))
    def resume(self, most: int) -> None:
        """An operator closes the account's breaker and resumes the account."""
        self.do(hold((PROVIDER, ACCOUNT), "resume", "", most))

    def held_up(self) -> bool:
        """Whether the account is paused, or its breaker is not closed."""
        account = self.seen.rest[ACCOUNT_KEY]
        return account.get("paused") == "1" or account.get("breaker", "closed") != "closed"

    @precondition(lambda self: self.seen.reviews)
    @rule(
        number=numbers,
        decision=st.sampled_from(["registered", "rejected", "resend", "resend"]),
        lost=st.booleans(),
    )
    def resolve(self, number: int, decision: str, lost: bool) -> None:
        """An operator settles a review."""
        job_id = sorted(self.seen.reviews)[number % len(self.seen.reviews)]
        state, record = self.state(job_id), self.do(look(job_id))
        assert record is not None
        event = None if decision == "resend" else self.publication(record, decision)
        if decision != "resend":
            self.decided.add(record.id)
        else:
            self.question[record.id] = int(self.seen.jobs[record.id].get("settle_until", 0))
        for other in (
            replace(record, reopened=record.reopened + 1),
            replace(record, fence=record.fence + 1),
        ):
            old = resolve(other, decision, ACTOR, DEADLINE / 1000, RULES.retention, event)
            assert self.do(old) == Stale(state)
        if decision == "resend":
            self.end_doubt(record.id)
        command = resolve(record, decision, ACTOR, DEADLINE / 1000, RULES.retention, event)
        assert isinstance(self.do(command), Settled) == (state is State.REVIEW)
        if lost:
            assert isinstance(self.again(command), Settled)

    @precondition(lambda self: self.among(State.REGISTERED, State.REJECTED))
    @rule(number=numbers, to=st.sampled_from(["registered", "rejected"]), lost=st.booleans())
    def correct(self, number: int, to: str, lost: bool) -> None:
        """An operator corrects a person's decision: once only, and no other outcome."""
        over = self.among(State.REGISTERED, State.REJECTED)
        job_id = over[number % len(over)]
        record = self.do(look(job_id))
        assert record is not None
        expected = job_id in self.decided and job_id not in self.corrected
        command = correct(job_id, to, ACTOR, self.publication(record, "corrected"))
        if expected:
            self.corrected.add(job_id)
        assert isinstance(self.do(command), Settled) == expected
        if lost and expected:
            assert isinstance(self.again(command), Settled)

    @precondition(lambda self: self.among(State.ABANDONED))
    @rule(number=numbers, content=st.sampled_from(["this", "this", "that"]), lost=st.booleans())
    def redrive(self, number: int, content: str, lost: bool) -> None:
        """An operator redrives an abandoned job."""
        abandoned = self.among(State.ABANDONED)
        job_id = abandoned[number % len(abandoned)]
        job = next(job for job in JOBS.values() if job.id == job_id)
        command = redrive(job, "sealed", [f"k:{content}"], DEADLINE / 1000)
        if self.contents[job_id] == content:
            self.end_doubt(job_id)
        answer = self.do(command)
        if self.contents[job_id] != content:
            assert answer == Conflict(job_id)
        else:
            assert isinstance(answer, Settled)
            self.question[job_id] = self.now
        if lost:
            assert type(self.again(command)) is type(answer)

    # -- deliveries -------------------------------------------------------------------------------

    @precondition(lambda self: self.seen.deliveries)
    @rule(target=tries, number=numbers, ms=st.sampled_from([0, 30_000]))
    def deliver(self, number: int, ms: int) -> Any:
        """A worker claims a delivery for one try, which may take too long."""
        members = sorted(self.seen.deliveries)
        found = self.do(deliver(members[number % len(members)], 30))
        self.wait(ms)
        if ms:
            self.do(deliver(members[number % len(members)], 30))
        return found if isinstance(found, Delivery) else multiple()

    @rule(one=tries, verdict=st.sampled_from(["arrived", "later", "dead"]), lost=st.booleans())
    def delivered(self, one: Delivery, verdict: str, lost: bool) -> None:
        """A worker settles a try, possibly one that took too long."""
        self.bring(one, verdict, lost)

    def bring(self, one: Delivery, verdict: str, lost: bool = False) -> None:
        """Settle a try; anyone may report an arrival, only the current try anything else."""
        before = self.seen.deliveries.get(one.member)
        command = delivered(one, verdict, "", 300)
        answer = self.do(command)
        if before is None:
            assert answer.state == "gone"
        elif verdict == "arrived":
            assert answer.state == "delivered"
            assert one.member not in self.seen.deliveries
            self.arrived.add(one.event_id)
        elif before["fence"] != str(one.fence) or before["state"] == "dead":
            assert self.seen.deliveries[one.member] == before, "a stale try changed something"
        if lost:
            self.again(command)

    # -- the end ----------------------------------------------------------------------------------

    def teardown(self) -> None:
        """From whatever state was reached, alarms and working attempts alone finish all jobs."""
        if not self.healthy or not self.seen.rest:
            return
        self.resume(500)
        end = self.now + PATIENCE
        while self.seen.alarms:
            assert self.now < end, f"still not over: {self.seen}"
            self.wait_for_an_alarm()
            for wake in self.do(ring(100)).wakes:
                if wake.lane == "delivery":
                    self.finish_delivery(wake.member)
                else:
                    self.finish_job(wake.member)
        for job_id, job in self.seen.jobs.items():
            assert job["state"] in FINAL | PARKED, f"{job_id} is lost"
        assert not self.seen.waiting, "left waiting"
        hooked = {e["id"] for e in self.seen.events if e["subject"] == IDS["hooked"]}
        dead = {one["event_id"] for one in self.seen.deliveries.values()}
        assert hooked == self.arrived | dead, "an event that nobody got"

    def finish_job(self, job_id: str) -> None:
        """One attempt at a provider that works."""
        taken = self.take(job_id)
        if isinstance(taken, Spent):
            self.do(self.give_up(taken))
        if isinstance(taken, Held):
            self.deal(taken, "made")
            [truth] = {"registered", "absent"} & set(taken.truths)
            if truth == "absent" and self.unproved[job_id] == TAKEN:
                truth = "unresolvable"  # as in `decision.asked`
            self.conclude(taken, truth, health="ok", delay=5)

    def finish_delivery(self, member: str) -> None:
        """One delivery to an endpoint that works."""
        one = self.do(deliver(member, 30))
        if isinstance(one, Delivery):
            self.bring(one, "arrived")
