"""The life of one job as a model: every step that anybody can take, and what must always hold.

A `World` is one job in the ledger, the workers, the requests in flight and the accounts at a
provider that creates one for each request. `steps` gives every possible next world; `wrong` and
`wrong_step` name what is broken. `explore.py` goes through all of them.

Time is abstract: the end of a lease, a settle delay, a retry delay or the deadline is a step like
any other, so they happen in every order. The model stores no wake-ups: any idle worker may try a
claim at any time, as if wake-ups were doubled, late and lost.

What a worker does is in `_work`, the ledger's scripts are `_claim`, `_settle`, `_abandon` and
`_people`, the network and the clock are `_network` and `_clock`."""

from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from regworker.domain.states import FINAL, PARKED, State, may
from regworker.ledger.records import TAKEN


class Rules(NamedTuple):
    """The rules that keep the promise; tests turn each one off to see the promise broken."""

    lost_lease_is_unknown: bool = True
    """A lease that runs out while calling means `unknown`, not `queued`."""
    fenced: bool = True
    """A settle counts only under the fence of the last claim, unless it is a fact."""
    settle_delay: bool = True
    """An answer `absent` counts only if its question came after the settle delay."""
    asks_first: bool = True
    """An unknown job is looked up, not sent again."""
    settles_whole: bool = True
    """The final state and its event are one step."""
    alarm_on_retry: bool = True
    """A queued job has an alarm."""
    lease_check: bool = True
    """A worker sends nothing once its lease ran out."""
    deadline_asks: bool = True
    """The deadline ends queued jobs only, never an unknown one."""
    events_numbered_by_ledger: bool = True
    """An event's id counts the events so far, not those at the time of the claim."""
    keeps_doubt: bool = True
    """A job that only the login has denied is not taken for one without a customer."""
    keeps_duplicates: bool = True
    """What the provider has refused because the customer exists does not end because a look-up
    finds nobody."""

    doubts: bool = True
    """A job whose claim the ledger may have forgotten is asked about first."""
    replicated: bool = False
    """Every replica has acknowledged what is answered: no failover forgets a claim."""

    requests_end: bool = True
    """Assumed: no request is carried out after the settle delay."""
    sends_at_once: bool = True
    """Assumed: no worker is stopped between checking the lease and writing the request."""
    ledger_remembers: bool = True
    """Assumed: a claim that was answered is not lost (fsync, failover)."""


class Bounds(NamedTuple):
    """How many faults of each kind may happen."""

    workers: int = 2
    attempts: int = 2
    crashes: int = 2
    pauses: int = 1
    hands: int = 0
    """What operators do: resolve a review, redrive an abandoned job."""
    failovers: int = 0
    """How often the ledger goes back to its state before the current claim."""
    login_only: bool = False
    """The provider cannot be searched, and refuses logins before somebody approves the customer. It
    refuses to create a second one, and after that a search finds nobody either."""


DEFAULT = {
    "two crashes and a pause": Bounds(),
    "operators lend a hand": Bounds(crashes=1, pauses=0, hands=1),
    "a third attempt": Bounds(attempts=3, crashes=1, pauses=0),
    "a third worker": Bounds(workers=3, attempts=1, crashes=1, pauses=0),
    "only the login can be asked": Bounds(crashes=0, pauses=0, hands=1, login_only=True),
}
"""The default: about 240,000 worlds."""

FORGETFUL = {
    "the ledger forgets a claim twice": Bounds(attempts=1, crashes=0, pauses=0, failovers=2),
    "it forgets one, and a worker crashes": Bounds(attempts=1, crashes=1, pauses=0, failovers=1),
    "it forgets one, and a worker pauses": Bounds(attempts=1, crashes=0, pauses=1, failovers=1),
}
"""With a ledger that fails over, is restored, or loses its last second."""

WHOLE = {"all at once": Bounds(hands=1)}
"""More worlds; they show no flaw that the default misses."""


class Due(IntEnum):
    """When a job may be claimed again."""

    NOW = 0
    LATER = 1
    CAPPED = 2
    """Later, but no later than the settle delay's end."""


class Job(NamedTuple):
    """The record in the ledger."""

    state: State = State.QUEUED
    attempts: int = 0
    doubted: bool = False
    """The outcome of some attempt was unknown."""
    held: bool = False
    """A claim has not been settled."""
    lease: bool = False
    """... and its lease has not run out."""
    sure: bool = False
    """... and it was made after the settle delay."""
    due: Due = Due.NOW
    settling: bool = False
    """The settle delay, counted from the lease's end or the settle, has not passed."""
    late: bool = False
    """The deadline has passed."""
    unproved: int = 0
    """1: only the login has denied that there is a customer; `TAKEN`: the provider has refused the
    job because there is one."""
    in_doubt: bool = False
    """The ledger may have forgotten a claim, and none has been made since."""
    alarm: bool = True
    payload: bool = True
    events: tuple[str, ...] = ()


class Worker(NamedTuple):
    """One worker, at one attempt.

    phase: idle | claimed | looked (at its lease) | sent | made (the answer is on its way) |
    knows (has an outcome to settle) | spent (is to abandon the job) | published (is to publish
    the end: only with a broken rule)"""

    phase: str = "idle"
    asking: bool = False
    holder: bool = False
    """The fence of its claim is the one in the record."""
    paused: bool = False
    blind: bool = False
    """Its claim is forgotten, and it does not know that: by its own clock its lease still runs."""
    before: bool = False
    """Its fence was the one in the record before the last claim."""
    outcome: str = ""
    seen: int = 0
    """The number of events at the claim."""


IDLE = Worker()

FORGETS = "the ledger forgets the claim"


class World(NamedTuple):
    """The whole state."""

    job: Job = Job()
    workers: tuple[Worker, ...] = (IDLE, IDLE)
    was: Job | None = None
    """The record before the current claim, if the ledger may forget that claim."""
    adrift: int = 0
    """Requests that no worker waits for any more, and that may still be carried out."""
    accounts: int = 0
    unproved: bool = False
    """A request may have been carried out, and nothing has proved that it was not."""
    taken: bool = False
    """The ledger knows that the provider refuses the job because its customer exists."""
    crashes: int = 0
    pauses: int = 0
    hands: int = 0
    failovers: int = 0
    redriven: int = 0
    broken: str = ""
    """The rule that the last step broke, if it did."""


class Step(NamedTuple):
    """What happened: the actor's number (-1: no worker), and the world after it."""

    act: str
    actor: int = -1
    result: str = ""
    fault: bool = False
    """A fault: a job's end must not depend on it."""

    def __str__(self) -> str:
        who = f"worker {self.actor}: " if self.actor >= 0 else ""
        return f"{who}{self.act}{f' ({self.result})' if self.result else ''}"


def start(bounds: Bounds) -> World:
    """A job that was just accepted."""
    return World(
        workers=(IDLE,) * bounds.workers,
        crashes=bounds.crashes,
        pauses=bounds.pauses,
        hands=bounds.hands,
        failovers=bounds.failovers,
    )


def steps(world: World, rules: Rules, bounds: Bounds) -> Iterator[tuple[Step, World]]:
    """All possible next steps."""
    for i, worker in enumerate(world.workers):
        if worker.phase == "idle":
            yield _claim(world, i, rules, bounds)
        else:
            if not worker.paused:
                yield from _work(world, i, rules, bounds)
            yield from _fate(world, i)
    yield from _network(world, bounds)
    yield from _clock(world, rules)
    yield from _people(world, rules)
    yield from _failover(world, rules)


# ---- a worker ------------------------------------------------------------------------------------


def _work(world: World, i: int, rules: Rules, bounds: Bounds) -> Iterator[tuple[Step, World]]:
    worker, job = world.workers[i], world.job
    may_send = (worker.holder and job.held and job.lease) or worker.blind or not rules.lease_check

    def now(**fields: object) -> World:
        return _worker(world, i, worker._replace(**fields))

    def knows(outcome: str) -> World:
        return now(phase="knows", outcome=outcome)

    match worker.phase:
        case "claimed" if worker.asking:
            if may_send:
                for found in _found(world, rules, bounds):
                    yield Step("asks", i, found), knows(found)
                yield Step("asks", i, "no answer", fault=True), knows("unknown")
                yield Step("asks", i, "cannot be known", fault=True), knows("unresolvable")
            yield Step("cannot ask", i, fault=may_send), knows("retry")
        case "claimed":
            if may_send and rules.sends_at_once:
                yield Step("sends", i), _send(world, i)
            elif may_send:
                yield Step("looks at its lease", i), now(phase="looked")
            yield Step("cannot send", i, fault=may_send), knows("retry")
            yield Step("cannot send", i, "own fault", fault=True), knows("retry for free")
        case "looked":
            yield Step("sends", i), _send(world, i)
        case "sent":
            refused = "unresolvable" if _kept(job, rules) else "rejected"
            yield Step("is refused", i, fault=True), knows(refused)
            yield Step("is asked to wait", i, fault=True), knows("retry")
            if job.doubted:
                fault = not (bounds.login_only and world.accounts)
                yield Step("is refused as a duplicate", i, fault=fault), knows("unresolvable")
            if job.doubted and bounds.login_only and world.accounts:
                yield Step("is refused as a duplicate", i, "not asked", fault=True), knows("taken")
            given_up = knows("unknown")._replace(adrift=world.adrift + 1)
            yield Step("gives up waiting", i, fault=True), given_up
        case "made":
            yield Step("is answered", i), knows("registered")
            yield Step("is refused on the way back", i, fault=True), knows("unknown for free")
            yield Step("gives up waiting", i, fault=True), knows("unknown")
        case "knows":
            yield _settle(world, i, rules)
        case "spent":
            yield _abandon(world, i, rules, bounds)
        case "published":
            finished = job._replace(events=(*job.events, worker.outcome))
            yield Step("publishes", i), _worker(world._replace(job=finished), i, IDLE)


def _found(world: World, rules: Rules, bounds: Bounds) -> Iterator[str]:
    """What an answered lookup may find. Only with `login_only` it may be wrong."""
    if world.taken:
        kept = world.job.unproved == TAKEN
        # A worker of another version may believe it.
        yield ("unresolvable" if world.job.sure else "unknown") if kept else "absent"
        yield "absent"
    if world.accounts or not bounds.login_only:
        yield "registered" if world.accounts else "absent"
    if bounds.login_only:
        yield "unproved"
        if rules.keeps_doubt and _spent(world.job, bounds):
            yield "unresolvable"


def _kept(job: Job, rules: Rules) -> bool:
    return job.unproved > 0 and rules.keeps_doubt


def _spent(job: Job, bounds: Bounds) -> bool:
    return job.late or job.attempts >= bounds.attempts


def _send(world: World, i: int) -> World:
    worker, job = world.workers[i], world.job
    broken = world.broken
    if worker.blind:
        # The request belongs to the forgotten claim: the next claim must ask first.
        world = world._replace(unproved=True)
    elif not (worker.holder and job.state is State.CALLING and job.held):
        broken = "a request left without a claim"
    elif world.unproved:
        broken = "a request followed one that may have been carried out"
    sent = _worker(world, i, worker._replace(phase="sent"))
    return sent._replace(broken=broken)


def _fate(world: World, i: int) -> Iterator[tuple[Step, World]]:
    worker = world.workers[i]
    if worker.paused:
        yield Step("goes on", i), _worker(world, i, worker._replace(paused=False))
    elif world.pauses:
        paused = _worker(world, i, worker._replace(paused=True))
        yield Step("is paused", i, fault=True), paused._replace(pauses=world.pauses - 1)
    if world.crashes:
        dead = _worker(world, i, IDLE)
        adrift = world.adrift + (worker.phase == "sent")
        yield (
            Step("crashes", i, fault=True),
            dead._replace(crashes=world.crashes - 1, adrift=adrift),
        )


# ---- the ledger's scripts ------------------------------------------------------------------------


def _claim(world: World, i: int, rules: Rules, bounds: Bounds) -> tuple[Step, World]:
    job = was = world.job
    # Without an alarm a wake-up may still come, but nothing may depend on it.
    stray = not job.alarm
    if job.held and job.lease:
        return Step("claims", i, "later"), world
    if job.state is State.CALLING:
        world = world._replace(unproved=True)
        job = job._replace(state=State.UNKNOWN, doubted=True, due=Due.NOW, held=False)
        if not rules.lost_lease_is_unknown:
            job = job._replace(state=State.QUEUED)
    if job.in_doubt and rules.doubts and job.state in (State.QUEUED, State.UNKNOWN):
        world = world._replace(unproved=True)
        job = job._replace(
            state=State.UNKNOWN, doubted=True, settling=True, due=Due.NOW, held=False
        )
    if job.state is State.QUEUED or (job.state is State.UNKNOWN and not rules.deadline_asks):
        if job.state is State.QUEUED and _kept(job, rules) and _spent(job, bounds):
            job = job._replace(state=State.UNKNOWN, due=Due.NOW)
        elif job.late or (job.state is State.QUEUED and job.attempts >= bounds.attempts):
            world = world._replace(job=job)
            return Step("claims", i, "spent", stray), _worker(world, i, Worker("spent"))
    elif job.state is not State.UNKNOWN:
        return Step("claims", i, "over"), world
    if job.due is not Due.NOW:
        return Step("claims", i, "later"), world
    asking = job.state is State.UNKNOWN and rules.asks_first
    job = job._replace(
        state=State.UNKNOWN if asking else State.CALLING,
        attempts=job.attempts + (not asking),
        held=True,
        lease=True,
        in_doubt=False,
        sure=asking and not job.settling,
        settling=asking and job.settling,
    )
    forgets = world.failovers > 0 and not rules.replicated
    others = tuple(
        worker._replace(holder=False, before=forgets and was.held and worker.holder)
        for worker in world.workers
    )
    claimed = Worker("claimed", asking, True, seen=_seen(job, rules))
    after = _worker(world._replace(job=job, workers=others), i, claimed)
    after = after._replace(was=was._replace(late=False) if forgets else None)
    return Step("claims", i, "ask" if asking else "call", stray), after


def _settle(world: World, i: int, rules: Rules) -> tuple[Step, World]:
    worker, job = world.workers[i], world.job
    outcome = worker.outcome
    calling = job.state is State.CALLING
    step = Step("settles", i, outcome)
    after = _worker(world, i, IDLE)
    holder = (worker.holder or not rules.fenced) and job.held
    if job.state in FINAL or not (holder or outcome == "registered"):
        return step._replace(result=f"{outcome}, stale"), after

    others = tuple(one._replace(holder=False, before=False) for one in after.workers)
    after = after._replace(workers=others, was=None)
    job = job._replace(held=False, lease=False, sure=False)
    settling = job.settling
    if outcome in {"absent", "unproved"} and not world.job.sure and rules.settle_delay:
        outcome = "unknown"

    match outcome:
        case "registered" | "rejected":
            final = State(outcome)
            if rules.settles_whole:
                return step, after._replace(job=_finish(job, final, worker.seen, rules))
            apart = _finish(job, final, worker.seen, rules)._replace(events=job.events)
            event = _event(job, outcome, worker.seen, rules)
            return step, _worker(after._replace(job=apart), i, Worker("published", outcome=event))
        case "unresolvable":
            event = _event(job, "review", worker.seen, rules)
            # A call was answered: nothing of it is on its way.
            job = job._replace(
                state=State.REVIEW,
                alarm=False,
                settling=settling and not calling,
                due=Due.NOW,
                events=(*job.events, event),
            )
        case "unknown" | "unknown for free" | "taken" if calling:
            taken = outcome == "taken"
            job = job._replace(
                unproved=TAKEN if taken and rules.keeps_duplicates else job.unproved,
                state=State.UNKNOWN,
                doubted=True,
                settling=True,
                due=Due.NOW,
                attempts=job.attempts - (outcome == "unknown for free"),
            )
            after = after._replace(unproved=True, taken=after.taken or taken)
        case "unknown":
            job = job._replace(due=Due.CAPPED if settling else Due.LATER)
        case "retry" if not calling:
            job = job._replace(due=Due.LATER)
        case "absent" | "unproved":
            # Enough to send it again: who cannot be searched creates no second customer.
            unproved = job.unproved if job.unproved == TAKEN else int(outcome == "unproved")
            job = job._replace(state=State.QUEUED, settling=False, due=Due.NOW, unproved=unproved)
            after = after._replace(unproved=False)
        case "retry" | "retry for free":
            job = job._replace(
                state=State.QUEUED,
                settling=False,
                due=Due.LATER,
                attempts=job.attempts - (outcome == "retry for free"),
                alarm=rules.alarm_on_retry,
            )
    return step, after._replace(job=job)


def _abandon(world: World, i: int, rules: Rules, bounds: Bounds) -> tuple[Step, World]:
    job, after = world.job, _worker(world, i, IDLE)
    spent = _spent(job, bounds) and not _kept(job, rules)
    waits = job.state is State.QUEUED or not rules.deadline_asks
    if not (spent and waits and not job.held) or job.state in FINAL:
        return Step("abandons", i, "stale"), after
    done = _finish(job, State.ABANDONED, len(job.events), rules)
    return Step("abandons", i), after._replace(job=done)


def _finish(job: Job, state: State, seen: int, rules: Rules) -> Job:
    events = (*job.events, _event(job, state.value, seen, rules))
    return Job(state, job.attempts, job.doubted, alarm=False, payload=False, events=events)


def _event(job: Job, kind: str, seen: int, rules: Rules) -> str:
    number = len(job.events) if rules.events_numbered_by_ledger else seen
    return f"{number + 1} {kind}"


def _seen(job: Job, rules: Rules) -> int:
    return 0 if rules.events_numbered_by_ledger else len(job.events)


def _people(world: World, rules: Rules) -> Iterator[tuple[Step, World]]:
    job = world.job
    if job.state is State.QUEUED and not job.in_doubt and not _kept(job, rules):
        done = _finish(job, State.CANCELLED, len(job.events), Rules())
        yield Step("cancel", fault=True), world._replace(job=done)
    if not world.hands:
        return
    less = world._replace(hands=world.hands - 1)
    again = job._replace(
        state=State.UNKNOWN,
        attempts=0,
        unproved=0,
        late=False,
        alarm=True,
        due=Due.NOW,
        payload=True,
    )
    if job.state is State.REVIEW:
        if world.accounts:
            done = _finish(job, State.REGISTERED, len(job.events), Rules())
            yield Step("resolve", result="registered", fault=True), less._replace(job=done)
        elif not _on_the_wire(world):
            done = _finish(job, State.REJECTED, len(job.events), Rules())
            yield Step("resolve", result="rejected", fault=True), less._replace(job=done)
        # The person may have changed what the provider finds.
        yield Step("resolve", result="resend", fault=True), less._replace(job=again, taken=False)
    if job.state is State.ABANDONED:
        redriven = less._replace(
            job=again._replace(doubted=True), unproved=True, redriven=world.redriven + 1
        )
        yield Step("redrive", fault=True), redriven


# ---- the network and the clock -------------------------------------------------------------------


def _network(world: World, bounds: Bounds) -> Iterator[tuple[Step, World]]:
    if bounds.login_only and world.accounts:
        return
    more = world.accounts + 1
    for i, worker in enumerate(world.workers):
        if worker.phase == "sent":
            made = _worker(world, i, worker._replace(phase="made"))
            yield Step("has its request carried out", i), made._replace(accounts=more)
    if world.adrift:
        step = Step("a request that nobody waits for is carried out", fault=True)
        yield step, world._replace(accounts=more, adrift=world.adrift - 1)


def _clock(world: World, rules: Rules) -> Iterator[tuple[Step, World]]:
    job = world.job
    if job.held and job.lease:
        out = job._replace(lease=False, settling=job.settling or job.state is State.CALLING)
        alive = any(one.holder and not one.paused for one in world.workers)
        yield Step("the lease runs out", fault=alive), world._replace(job=out)
        if not rules.ledger_remembers and job.state is State.CALLING:
            lost = job._replace(state=State.QUEUED, held=False, lease=False)
            yield Step("the ledger loses the claim", fault=True), world._replace(job=lost)
    if job.settling:
        was = _settled(world.was) if world.was is not None else None
        passed = world._replace(job=_settled(job), was=was)
        if rules.requests_end:
            cut_off = tuple(
                one._replace(phase="knows", outcome="unknown") if one.phase == "sent" else one
                for one in world.workers
            )
            # By then the lease of a forgotten claim has ended, too.
            seeing = tuple(one._replace(blind=False) for one in cut_off)
            passed = passed._replace(adrift=0, workers=seeing)
        yield Step("the settle delay passes"), passed
    if job.due is not Due.NOW:
        yield Step("the retry is due"), world._replace(job=job._replace(due=Due.NOW))
    if not job.late and job.state not in FINAL:
        yield Step("the deadline passes"), world._replace(job=job._replace(late=True))


def _settled(job: Job) -> Job:
    return job._replace(settling=False, due=Due.NOW if job.due is Due.CAPPED else job.due)


def _failover(world: World, rules: Rules) -> Iterator[tuple[Step, World]]:
    """The next server has everything except the claim that is held. Nothing replicated is lost."""
    job = world.job
    if world.was is None or not (world.failovers and job.held) or rules.replicated:
        return
    before = world.was._replace(in_doubt=True, late=job.late)
    workers = tuple(
        one._replace(
            holder=one.before,
            before=False,
            blind=one.blind or (one.holder and job.lease and not one.asking),
        )
        for one in world.workers
    )
    forgotten = world._replace(job=before, workers=workers, was=None, failovers=world.failovers - 1)
    yield Step(FORGETS, fault=True), forgotten


def _worker(world: World, i: int, worker: Worker) -> World:
    workers = world.workers
    return world._replace(workers=(*workers[:i], worker, *workers[i + 1 :]))


def _on_the_wire(world: World) -> bool:
    return world.adrift > 0 or any(worker.phase == "sent" for worker in world.workers)


# ---- what must hold ------------------------------------------------------------------------------


def done(world: World) -> bool:
    """Whether the job has ended, or waits for a person."""
    return world.job.state in FINAL or world.job.state in PARKED


def wrong(world: World) -> str:
    """What is broken in this world; empty if nothing is."""
    job = world.job
    final = job.state in FINAL
    ends = [event for event in job.events if not event.endswith("review")]
    if world.broken:
        return world.broken
    if world.accounts > 1:
        return "two accounts for one job"
    if len(ends) != world.redriven + final:
        return f"{job.state} with {len(ends)} final events"
    if len({event.split()[0] for event in job.events}) < len(job.events):
        return "two events under one id"
    if final and not job.events[-1].endswith(job.state):
        return "the last event is not the job's end"
    if job.alarm is done(world):
        return f"{job.state} {'with' if job.alarm else 'without'} an alarm"
    if job.payload is final:
        return f"{job.state} {'with' if job.payload else 'without'} a payload"
    if job.state is State.REGISTERED and not world.accounts:
        return "registered, and there is no account"
    if final and job.state is not State.REGISTERED and (world.accounts or _on_the_wire(world)):
        return f"{job.state}, and there is or may yet be an account"
    if sum(one.holder for one in world.workers) > 1:
        return "two workers hold the lease"
    return ""


def wrong_step(before: World, step: Step, after: World) -> str:
    """What is broken in the step from one world to another; empty if nothing is."""
    was, now = before.job, after.job
    if step.act == FORGETS:
        return ""  # this returns to an earlier state, and takes no edge
    if was.state is not now.state and not may(was.state, now.state):
        # A claim that finds an expired lease takes two edges in one script.
        noticed = was.state is State.CALLING and step.act == "claims"
        if not (noticed and may(State.UNKNOWN, now.state)):
            return f"no edge leads from {was.state} to {now.state}"
    if step.act == "settles" and was != now:
        worker = before.workers[step.actor]
        if not worker.holder and worker.outcome != "registered":
            return "a stale worker's decision changed the job"
    return ""
