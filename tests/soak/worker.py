"""One process of the soak: a few worlds side by side, because most of a schedule's time is waiting."""

from __future__ import annotations

import asyncio
import gc
import re
import tempfile
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.soak.invariant import Violation
from tests.soak.quick import make_quick
from tests.soak.run import Outcome, run_seed
from tests.soak.schedule import schedule
from tests.soak.watch import strays, watch
from tests.soak.world import SECRET, TOKEN, World

_THREADS = 64
_LONGEST_SCHEDULE = 240.0
_SLACK = 40
"""File descriptors and threads that come and go with connections and libraries."""
_SIGNATURE = re.compile(r"Signature=[0-9a-f]{8}|" + re.escape(SECRET) + "|" + re.escape(TOKEN))


@contextmanager
def room() -> Iterator[Path]:
    """A folder for workers, in memory where there is one: syncing files is not what the soak is about."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="dfagent-soak-", dir=shared if shared.is_dir() else None, ignore_cleanup_errors=True
    ) as name:
        yield Path(name)


@dataclass
class Done:
    """What a process made of a chunk of seeds; `problems` can't be told to one of them."""

    outcomes: list[Outcome] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Worker:
    """A process's event loop and worlds, kept from one chunk to the next."""

    def __init__(self, lanes: int, folder: Path) -> None:
        make_quick()
        self._path = Path(tempfile.mkdtemp(dir=folder))
        self._temporary = self._path / "tmp"
        self._temporary.mkdir()
        self._loop = asyncio.new_event_loop()
        self._threads = ThreadPoolExecutor(_THREADS)
        self._loop.set_default_executor(self._threads)
        watch(self._loop)
        self._stack = AsyncExitStack()
        self._worlds = [self._loop.run_until_complete(self._world(lane)) for lane in range(lanes)]
        self._started_with: tuple[int, int] | None = None
        gc.freeze()  # collecting what only the libraries' start made takes a second each time

    async def _world(self, lane: int) -> World:
        return await self._stack.enter_async_context(World(self._path / f"lane-{lane}"))

    def close(self) -> None:
        self._loop.run_until_complete(self._stack.aclose())
        self._threads.shutdown()
        self._loop.close()

    def run(self, seeds: list[int]) -> Done:
        """The outcomes of the seeds, in the order in which they ended."""
        done = Done()
        before, tempfile.tempdir = tempfile.tempdir, str(self._temporary)
        try:
            self._loop.run_until_complete(self._run_lanes(iter(seeds), done))
        finally:
            tempfile.tempdir = before
        done.problems += [f"left in the folder for temporary files: {path.name}" for path in self._temporary.iterdir()]
        done.problems += [line for line in strays() if _matters(line)] + self._grown()
        done.problems = [f"{problem}\n  in one of the seeds {seeds}" for problem in done.problems]
        return done

    async def _run_lanes(self, seeds: Iterator[int], done: Done) -> None:
        async def lane(world: World) -> None:
            for seed in seeds:
                done.outcomes.append(await _guarded(world, seed))

        await asyncio.gather(*(lane(world) for world in self._worlds))

    def _grown(self) -> list[str]:
        """More file descriptors or threads than after the first chunk."""
        now = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
        if self._started_with is None:
            self._started_with = now
        names = ("file descriptors", "threads")
        return [
            f"{count} {name} are open, there were {first}"
            for name, count, first in zip(names, now, self._started_with, strict=True)
            if count > first + _SLACK
        ]


async def _guarded(world: World, seed: int) -> Outcome:
    plan = schedule(seed)
    try:
        return await asyncio.wait_for(run_seed(world, seed), _LONGEST_SCHEDULE)
    except Exception:  # noqa: BLE001 — what the soak itself does wrong is told, and the others go on
        outcome = Outcome(seed, plan.transport, plan.pair)
        outcome.violations.append(Violation("soak", traceback.format_exc()))
        return outcome


def _matters(line: str) -> bool:
    """Whether a line that no pass logged tells of a fault of dfagent's; a killed gRPC server complains by itself."""
    return bool(_SIGNATURE.search(line)) or (line.startswith("event loop:") and "grpc" not in line)


_WORKERS: list[Worker] = []


def run_chunk(seeds: list[int], lanes: int, folder: Path) -> Done:
    """Runs in a process of a pool, which keeps its worker."""
    if not _WORKERS:
        _WORKERS.append(Worker(lanes, folder))
    return _WORKERS[0].run(seeds)
