"""Seeded schedules with real dfdaemons: `python -m tests.soak.real --schedules 300 --seed 1 [--json FILE]`.

Each schedule publishes a small old version of a model, brings a larger new one while a fault strikes, lets the fault
end, and runs again. After the fault the model is exactly one version of the store's, or the old one with a typed error;
after the next run it is the new one; and what a dfdaemon keeps was never written by us. Only schedules whose fault
struck while the run went on count; the others are tried again with other luck.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from pathlib import Path
from random import Random

from dfagent.local.object_store import S3Server
from tests.secrecy.child import watch
from tests.secrecy.evidence import end, the_evidence
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


def replayed(seed: str) -> Schedule:
    """The schedule that was told with this seed, `run:number` or `run:number.again`, among those of all kinds."""
    run, number = seed.split(":")
    schedule = next(islice(schedules(int(run)), int(number.split(".")[0]), None))
    return replace(schedule, seed=seed)


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
        for text in run.errors:
            the_evidence().said("error", text)
        must_succeed = schedule.transport == "auto" and kind.helps_itself and where is stage.folder
        await asyncio.to_thread(run.check, must_succeed)
        await stage.heal()
        await run.recover()
    finally:
        stage.forget_rules()
        await stage.heal()
        await run.tidy()
    return Outcome(schedule, struck, run.ended_with, run.detours, run.violations, time.monotonic() - started)


class Soak:
    """Plays schedules in several worlds that share the store; one that did not strike is tried again with other luck.

    A dfdaemon takes four seconds to start, most of them asleep, so worlds side by side save time on two cores.
    """

    def __init__(self, wanted: Iterable[Schedule]) -> None:
        self.outcomes: list[Outcome] = []
        self._wanted = iter(wanted)

    @property
    def struck(self) -> int:
        return sum(outcome.struck for outcome in self.outcomes)

    async def run(self, folder: Path, server: S3Server, worlds: int) -> list[Outcome]:
        async with AsyncExitStack() as stack:
            stages = [await stack.enter_async_context(world(folder / f"world-{n}", server)) for n in range(worlds)]
            await asyncio.gather(*(self._play_in(stage) for stage in stages))
        return self.outcomes

    async def _play_in(self, stage: World) -> None:
        for schedule in self._wanted:
            for again in range(MOST_TRIES):
                seed = f"{schedule.seed}.{again}" if again else schedule.seed
                outcome = await self._play(stage, replace(schedule, seed=seed))
                self.outcomes.append(outcome)
                _tell(outcome, self.struck)
                if outcome.struck:
                    break

    async def _play(self, stage: World, schedule: Schedule) -> Outcome:
        try:
            return await play(stage, schedule)
        except Exception as exc:  # noqa: BLE001 — hours of soaking shall not end with one part that did not come up
            traceback.print_exc()
            return Outcome(schedule, False, f"soak: {type(exc).__name__}", [], [], 0.0)


class _Heard(logging.Handler):
    """Keeps what is logged, for the search for secrets."""

    def emit(self, record: logging.LogRecord) -> None:
        the_evidence().said("log", self.format(record))


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
    parser.add_argument("--replay", metavar="SEED", help="one schedule again, by the seed that was told (1:17)")
    parser.add_argument("--worlds", type=int, default=4, help="sets of dfdaemons, side by side")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every outcome, as JSON")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        # Links and disks are given back however it ends, also where it was started in the background.
        signal.signal(number, signal.default_int_handler)
    watch()
    logging.getLogger("dfagent").addHandler(_Heard())
    logging.getLogger("dfagent").propagate = False  # three hundred runs complain a lot, as they should
    started = time.monotonic()
    wanted = list(islice(schedules(arguments.seed, arguments.kind or KINDS), arguments.schedules))
    if arguments.replay:
        wanted = [replayed(arguments.replay)]
    with tempfile.TemporaryDirectory(prefix="dfagent-soak-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with S3Server(folder / "s3") as server:
            outcomes = asyncio.run(Soak(wanted).run(folder, server, arguments.worlds))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    struck = sum(outcome.struck for outcome in outcomes)
    broken = [outcome for outcome in outcomes if outcome.violations]
    print(table(outcomes))
    if helpless := Counter(outcome.ended_with for outcome in outcomes if outcome.ended_with.startswith("soak:")):
        print(f"parts that did not come up again: {dict(helpless)}")
    secrets = the_evidence().search()
    end()
    print(*secrets, sep="\n", end="")
    print(f"{struck} schedules struck of {len(outcomes)}, {len(broken)} broke the invariant,", end=" ")
    print(f"{len(secrets)} secrets came out, {time.monotonic() - started:.0f} s")
    return 1 if broken or secrets or struck < len(wanted) else 0


if __name__ == "__main__":
    sys.exit(main())
