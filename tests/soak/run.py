"""Runs one schedule: a clean pass, the pass with the faults, a pass after them; and what is found wrong on the way."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from tests.soak.invariant import Violation, after_faults, after_recovery, damaged_tasks
from tests.soak.quick import IMPATIENT, PATIENT
from tests.soak.schedule import Schedule, schedule
from tests.soak.world import Ran, World, published


@dataclass
class Outcome:
    """What a seed showed. `fired` counts each fault's label; `ended` is "well" or the error that came first."""

    seed: int
    transport: str
    pair: tuple[str, str]
    counts: bool = False
    fired: dict[str, int] = field(default_factory=dict)
    ended: str = ""
    violations: list[Violation] = field(default_factory=list)
    most_requests: int = 0
    seconds: float = 0.0
    said: list[str] = field(default_factory=list)


async def run_seed(world: World, seed: int) -> Outcome:
    """The outcome of a seed's schedule."""
    plan = schedule(seed)
    outcome = Outcome(seed, plan.transport, plan.pair)
    started = time.monotonic()
    await world.end_faults()
    world.start_anew(plan)
    await _prepare(world, plan, outcome)
    if not outcome.violations:
        await _with_faults(world, plan, outcome)
        await _without_faults(world, plan, outcome)
    outcome.seconds = time.monotonic() - started
    return outcome


async def _prepare(world: World, plan: Schedule, outcome: Outcome) -> None:
    if plan.first:
        world.put(plan.first, plan.checksum)
        ran = await world.run(plan, PATIENT)
        outcome.violations += after_recovery(world, plan, ran)
        _keep(outcome, "before", ran)
    world.put(plan.content, plan.checksum)
    if plan.warm:
        ran = await world.run(plan, PATIENT, "warm")
        outcome.violations += after_recovery(world, plan, ran, "warm")
        _keep(outcome, "warm", ran)
        world.forget("warm")


async def _with_faults(world: World, plan: Schedule, outcome: Outcome) -> None:
    before = published(world.base / "models")
    world.origin.asked.clear()
    world.origin.listings.clear()
    for _, fault in plan.faults:
        (world.origin if fault.op in ("list", "head", "get") else world.peer).plan.add(fault)
    ran = await world.run(plan, IMPATIENT)
    outcome.violations += after_faults(world, plan, ran, before)
    await world.end_faults()
    _keep(outcome, "faults", ran)
    outcome.ended = type(ran.errors[0]).__name__ if ran.errors else "bug" if ran.bug else "well"
    outcome.fired = {label: fault.fired for label, fault in dict(plan.faults).items() if fault.fired}
    outcome.counts = plan.main in outcome.fired
    counts = Counter(asked.key for asked in world.origin.asked if asked.op != "list")
    outcome.most_requests = max(counts.values(), default=0)


async def _without_faults(world: World, plan: Schedule, outcome: Outcome) -> None:
    world.origin.asked.clear()
    ran = await world.run(plan, PATIENT)
    can_delete = "socket" in plan.addresses or not plan.addresses
    if can_delete or not _only_wrong_bytes(ran):
        outcome.violations += after_recovery(world, plan, ran)
    _keep(outcome, "after", ran)
    # Wrong bytes may lie in the cache unseen by this node: whoever meets them next must not suffer from them.
    if damaged_tasks(world, plan) and can_delete and plan.transport != "direct":
        ran = await world.run(plan, PATIENT, "another")
        outcome.violations += after_recovery(world, plan, ran, "another")
        _keep(outcome, "another", ran)
        if still := damaged_tasks(world, plan):
            outcome.violations.append(Violation("cache", f"damaged tasks stay in the cache: {still}"))


def _only_wrong_bytes(ran: Ran) -> bool:
    """Whether the pass ended as it must where a damaged task can't be deleted: typed, and nothing published."""
    return bool(ran.errors) and {type(exc).__name__ for exc in ran.errors} <= {"DigestMismatch", "DamagedTask"}


def _keep(outcome: Outcome, when: str, ran: Ran) -> None:
    outcome.said += [f"[{when}] {line}" for line in (*ran.said, ran.bug) if line]
