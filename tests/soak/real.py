"""Seeded schedules with real dfdaemons: `python -m tests.soak.real --schedules 300 --seed 1 [--json FILE]`.

Each schedule publishes a small old version of a model, brings a larger new one while a fault strikes, lets the fault
end, and runs again. After the fault the model is exactly one version of the store's, or the old one with a typed error;
after the next run it is the new one; and what a dfdaemon keeps was never written by us. Only schedules whose fault
struck while the run went on count; the others are made up for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from random import Random

from tests.soak.real_faults import KINDS, Strike
from tests.soak.real_run import Run, some_files
from tests.soak.real_world import SMALL, World, world

TRANSPORTS = ("auto", "dfdaemon", "proxy")
# A kind whose fault comes too late once in a while gets another chance, not endless ones.
MOST_TRIES = 3


@dataclass(frozen=True)
class Schedule:
    """`seed` makes all of a schedule's luck; the same one replays it."""

    kind: str
    transport: str
    seed: str


@dataclass
class Outcome:
    """What became of a schedule. `struck`: its fault came while the run went on."""

    schedule: Schedule
    struck: bool
    ended_with: str
    detours: list[str]
    violations: list[str]
    seconds: float


def schedules(seed: int, kinds: Iterable[str] = KINDS) -> Iterator[Schedule]:
    """Every kind with every transport, over and over."""
    table = [(kind, transport) for kind in kinds for transport in TRANSPORTS]
    for number in count():
        kind, transport = table[number % len(table)]
        yield Schedule(kind, transport, f"{seed}:{number}")


async def play(stage: World, schedule: Schedule) -> Outcome:
    """One schedule, and everything mended behind it."""
    started = time.monotonic()
    random, kind = Random(schedule.seed), KINDS[schedule.kind]
    prefix = f"s-{schedule.seed.replace(':', '-')}-{random.randrange(1 << 32):08x}"
    where = stage.small_disk if kind.peer == SMALL and random.random() < 0.5 else stage.folder
    run = Run(
        world=stage,
        prefix=prefix,
        peer=stage.peer(kind.peer),
        transport=schedule.transport,
        as_process=kind.as_process,
        target=where / prefix / "models",
        old={"1/weights.bin": random.randbytes(2048), "1/old.bin": random.randbytes(16)},
        new=some_files(random),
    )
    await run.prepare()
    try:
        struck = await kind.strike(Strike(stage, run, random))
        await run.ended()
        must_succeed = schedule.transport == "auto" and kind.helps_itself and where is stage.folder
        await asyncio.to_thread(run.check, must_succeed)
        await stage.heal()
        await run.recover()
    finally:
        stage.forget_rules()
        await stage.heal()
        await run.tidy()
    return Outcome(schedule, struck, run.ended_with, run.detours, run.violations, time.monotonic() - started)


async def soak(folder: Path, wanted: int, seed: int, kinds: Iterable[str] = KINDS) -> list[Outcome]:
    """Plays schedules until `wanted` of them struck."""
    outcomes: list[Outcome] = []
    struck = 0
    async with world(folder) as stage:
        for schedule in schedules(seed, kinds):
            outcome = await play(stage, schedule)
            outcomes.append(outcome)
            struck += outcome.struck
            _tell(outcome, struck)
            if struck >= wanted or len(outcomes) >= wanted * MOST_TRIES:
                return outcomes
    raise AssertionError("schedules never end")


def _tell(outcome: Outcome, struck: int) -> None:
    schedule = outcome.schedule
    line = f"{struck:4} {schedule.seed:8} {schedule.kind:20} {schedule.transport:9} {outcome.ended_with:18}"
    line += f" {outcome.seconds:5.1f} s" + ("" if outcome.struck else "  (came too late)")
    print(line, flush=True)
    for violation in outcome.violations:
        print(f"     VIOLATION: {violation}", flush=True)


def table(outcomes: list[Outcome]) -> str:
    """Schedules that struck, and how their runs ended, by kind and transport."""
    lines = []
    for kind in KINDS:
        for transport in TRANSPORTS:
            ends = Counter(
                outcome.ended_with
                for outcome in outcomes
                if outcome.struck and (outcome.schedule.kind, outcome.schedule.transport) == (kind, transport)
            )
            if ends:
                told = ", ".join(f"{name} {number}" for name, number in ends.most_common())
                lines.append(f"{kind:20} {transport:9} {sum(ends.values()):4}  {told}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Random faults with real dfdaemons, replayable by their seed.")
    parser.add_argument("--schedules", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", action="append", choices=sorted(KINDS), help="only this kind (may be given often)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every outcome, as JSON")
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="dfagent-soak-", ignore_cleanup_errors=True) as folder:
        outcomes = asyncio.run(soak(Path(folder), arguments.schedules, arguments.seed, arguments.kind or KINDS))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    struck = sum(outcome.struck for outcome in outcomes)
    broken = [outcome for outcome in outcomes if outcome.violations]
    print(table(outcomes))
    print(f"{struck} schedules struck of {len(outcomes)}, {len(broken)} broke the invariant,", end=" ")
    print(f"{time.monotonic() - started:.0f} s")
    return 1 if broken or struck < arguments.schedules else 0


if __name__ == "__main__":
    sys.exit(main())
