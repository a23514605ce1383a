"""Kills of the agent: `python -m tests.soak.kills --count 300 --seed 1 [--only NUMBER] [--json FILE]`.

Each schedule puts a new version of a model into the bucket, lets a run that is to bring it kill itself (SIGKILL) or end
itself (SIGTERM) at a seeded moment, looks at what is there, and runs again. After the kill the model is exactly the old
version or the new one; after the next run it is the store's, with nothing left over and nothing fetched twice that was
there already. Only schedules whose moment came count.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import unquote

from dfagent.local.object_store import S3Server
from dfagent.repository.config_pbtxt import without_dragonfly
from tests.secrecy.evidence import end, the_evidence
from tests.servers.fault_peer import FaultPeer
from tests.servers.gate import Gate
from tests.servers.program import SettingsFiles, clean_environment
from tests.servers.stand_in_triton import StandInTriton, files_of, stand_in_triton
from tests.soak.kill_server import PHASES, RANGE_SIZE, Ended, Moment, Order

MODEL = "net"
CONFIG = b'name: "net"\nbackend: "python"\nmodel_repository_agents { agents [ { name: "dragonfly" } ] }\n'
TRANSPORTS = ("direct", "direct", "proxy", "dfdaemon")
# No run takes a second; on a busy machine it may take a few.
PROMPT_SECONDS = 15.0
Files = dict[str, bytes]


class Forks:
    """The process that forks dfagents; one at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def run(self, order: Order) -> Ended:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(order)).encode() + b"\n")
        line = await asyncio.wait_for(self._process.stdout.readline(), order.seconds + 30)
        return Ended(**json.loads(line))


@asynccontextmanager
async def forks() -> AsyncIterator[Forks]:
    environment = clean_environment(DFAGENT_TEST_EVIDENCE=str(the_evidence().folder))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.soak.kill_server",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=environment,
    )
    try:
        yield Forks(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


@dataclass(frozen=True)
class Schedule:
    """One kill. `seed` makes its luck; `fresh` begins with an empty folder, `moves_on` with yet another version in the
    bucket after the kill."""

    number: int
    seed: str
    moment: Moment
    command: str
    transport: str
    with_triton: bool
    fresh: bool
    moves_on: bool

    @property
    def label(self) -> str:
        moment = self.moment
        return f"{moment.phase} {moment.when} {moment.signal}".replace("  ", " ")


def schedules(seed: int, transports: tuple[str, ...] = TRANSPORTS) -> Iterator[Schedule]:
    """Every phase, before, during and after, by both signals, over and over, and events of the file system between."""
    table = [
        (phase, when, signal)
        for when in ("during", "before", "after")
        for signal in ("SIGKILL", "SIGTERM")
        for phase in PHASES
    ]
    number = 0
    while True:
        luck = Random(f"{seed}:{number}")
        # Every fourth is an event; the table goes on with the others, so that none of its rows is left out.
        phase, when, signal = table[(number - number // 4) % len(table)]
        if number % 4 == 3:
            phase, when, signal = "event", "", luck.choice(("SIGKILL", "SIGKILL", "SIGTERM"))
        serves, fresh = luck.random() < 0.25, luck.random() < 0.25
        # `serve` goes on until its moment comes, so it has to come.
        calls = 1 if serves or phase in ("list", "publish", "load") else luck.randint(1, 4 if fresh else 2)
        count = luck.randint(1, 110 if fresh else 50) if phase == "event" else calls
        yield Schedule(
            number=number,
            seed=f"{seed}:{number}",
            moment=Moment(phase, when, count, luck.choice((0, 1, 2, 3, 5, 8, 13, 21, 34)), signal),
            command="serve" if serves else "prefetch",
            transport=luck.choice(transports),
            with_triton=phase == "load" or luck.random() < 0.3,
            fresh=fresh,
            moves_on=luck.random() < 0.25,
        )
        number += 1


@dataclass
class Outcome:
    """What became of a schedule; no violation is a pass."""

    schedule: Schedule
    struck: bool
    violations: list[str]


def version(number: int, luck: Random) -> Files:
    """A version of the model: two files that never change, one that always does, and one that comes and goes."""
    files = {
        "config.pbtxt": CONFIG,
        "labels.txt": b"cat\ndog\n",
        "1/same.bin": b"the same in every version" * 4000,
        "1/changes.bin": luck.randbytes(luck.randrange(3 * RANGE_SIZE, 6 * RANGE_SIZE)),
        "1/small.bin": f"version {number}".encode(),
    }
    if number % 2:
        files["extra/odd.bin"] = luck.randbytes(5000)
    return files


@dataclass
class World:
    """A bucket behind a gate, peers, forks, and one model repository after the other."""

    server: S3Server
    bucket: str
    gate: Gate
    peer: FaultPeer
    forks: Forks
    folder: Path
    _client: Any = None
    _numbers: Iterator[int] = field(default_factory=lambda: iter(range(1, 1 << 30)))

    def put(self, prefix: str, files: Files, before: Files) -> None:
        if self._client is None:
            self._client = self.server.client()
        for path, data in files.items():
            if before.get(path) != data:
                self._client.put_object(Bucket=self.bucket, Key=f"{prefix}/{MODEL}/{path}", Body=data)
        for path in before.keys() - files.keys():
            self._client.delete_object(Bucket=self.bucket, Key=f"{prefix}/{MODEL}/{path}")

    def place(self, luck: Random) -> Place:
        number = next(self._numbers)
        base = self.folder / f"node-{number}"
        (base / "tmp").mkdir(parents=True)
        (base / "node").mkdir()
        return Place(self, base, f"repo-{number}", luck)


@dataclass
class Place:
    """One node's folder: versions of the model come to it, run by run."""

    world: World
    base: Path
    prefix: str
    luck: Random
    stored: Files = field(default_factory=dict)
    published: list[Files] = field(default_factory=list)
    _version: int = 0

    @property
    def target(self) -> Path:
        return self.base / "node" / "models"

    @property
    def state(self) -> Path:
        return self.base / "node" / ".dfagent-models"

    async def overwrite(self) -> None:
        """The store gets the next version."""
        self._version += 1
        files = version(self._version, self.luck)
        await asyncio.to_thread(self.world.put, self.prefix, files, self.stored)
        self.stored = files

    def may_be_seen(self) -> Files:
        """What Triton may see of what the store has."""
        return self.stored | {"config.pbtxt": without_dragonfly(CONFIG, "config.pbtxt")}

    async def run(
        self, command: str, transport: str, triton: str = "", moment: Moment | None = None
    ) -> tuple[Ended, str]:
        """One run, and what it printed; `triton` is the address of the one to load into, "" for none."""
        world = self.world
        peers = {"proxy": world.peer.proxy, "socket": str(world.peer.socket), "concurrency": 2}
        key: dict[str, object] = {"key_id": world.server.access_key, "secret_key": world.server.secret_key}
        options = SettingsFiles(self.base, key, peers).options()
        arguments = [
            *(command, f"s3://{world.gate.endpoint}/{world.bucket}/{self.prefix}", f"--to={self.target}"),
            *(f"--transport={transport}", "--stall-timeout=20", *options),
        ]
        if triton:
            arguments += [f"--triton={triton}", *(["--load"] if command == "prefetch" else [])]
        if command == "serve":
            arguments.append("--interval=0.1")
        output = the_evidence().process(arguments)
        order = Order(arguments, str(self.base), str(output.out), str(output.err), moment or Moment())
        ended = await world.forks.run(order)
        return ended, output.err.read_text(errors="replace")

    def seen(self) -> dict[str, Files | str]:
        """The models in DIR: their files, or what is wrong with the entry."""
        found: dict[str, Files | str] = {}
        for path in sorted(self.target.iterdir()) if self.target.exists() else ():
            if not path.is_symlink():
                found[path.name] = "is no link"
            else:
                found[path.name] = files_of(path) if path.is_dir() else "leads nowhere"
        return found

    def staged(self) -> set[str]:
        """The files that were whole when the run ended."""
        return {
            str(path.relative_to(folder))
            for folder in self.state.glob(f"staging/{MODEL}/*")
            for path in folder.rglob("*")
            if path.is_file()
        }

    def generations(self) -> tuple[set[str], set[str], str]:
        """The generations, those that have a manifest, and the published one."""
        manifests = {path.stem for path in self.state.glob(f"manifests/{MODEL}/*")}
        published = Path(os.readlink(self.target / MODEL)).name if (self.target / MODEL).is_symlink() else ""
        return {path.name for path in self.state.glob(f"generations/{MODEL}/*")}, manifests, published

    def without_manifest(self) -> list[str]:
        """Generations of what the store has that nobody would take for whole: the manifest has to come first."""
        generations, manifests, _ = self.generations()
        folder = self.state / "generations" / MODEL
        return [name for name in generations - manifests if files_of(folder / name) == self.may_be_seen()]

    def left_over(self) -> list[str]:
        """What a whole run may not leave."""
        downloads = [
            path for kind in ("staging", "partials") for path in (self.state / kind).rglob("*") if path.is_file()
        ]
        left = [*(self.base / "tmp").iterdir(), *(self.state / "tmp").iterdir(), *downloads]
        return [str(path.relative_to(self.base)) for path in left]

    def asked_for(self) -> list[str]:
        """The files that were asked of the store since the last look, by their GETs."""
        asked = [unquote(head.split()[1].partition("?")[0]) for head in self.world.gate.requests(f"/{self.prefix}/")]
        self.world.gate.heads.clear()
        return [path.partition(f"/{MODEL}/")[2] for path in asked]


@asynccontextmanager
async def world(server: S3Server, folder: Path) -> AsyncIterator[World]:
    """Everything that kills need besides the S3 server."""
    (folder / "peer").mkdir(parents=True)
    bucket = f"kills-{os.urandom(6).hex()}"
    server.client().create_bucket(Bucket=bucket)
    async with AsyncExitStack() as stack:
        gate = await stack.enter_async_context(Gate(server.port))
        peer = await stack.enter_async_context(FaultPeer(folder / "peer"))
        fork = await stack.enter_async_context(forks())
        yield World(server, bucket, gate, peer, fork, folder)


async def play(world: World, schedule: Schedule) -> Outcome:
    """One schedule from its first version to the check of its last run."""
    luck = Random(schedule.seed)
    place = world.place(luck)
    async with AsyncExitStack() as stack:
        triton = None
        if schedule.with_triton:
            place.target.mkdir()
            seconds = luck.choice((0.0, 0.01, 0.03))
            triton = await stack.enter_async_context(stand_in_triton(place.target, seconds))
        act = Act(schedule, place, triton)
        await act.play()
    world.peer.start_anew()
    if not act.violations:
        shutil.rmtree(place.base)
    return Outcome(schedule, act.struck, act.violations)


@dataclass
class Act:
    """The steps of one schedule; what is not as it must be is noted in `violations`."""

    schedule: Schedule
    place: Place
    triton: StandInTriton | None
    struck: bool = False
    violations: list[str] = field(default_factory=list)

    def _expect(self, holds: bool, problem: str) -> None:
        if not holds:
            self.violations.append(problem)

    @property
    def _address(self) -> str:
        return self.triton.address if self.triton else ""

    async def play(self) -> None:
        old: list[Files] = []
        if not self.schedule.fresh:
            await self.place.overwrite()
            ended, said = await self.place.run("prefetch", "direct", self._address)
            self._expect(ended.code == 0, f"the first run ended with {ended.code}: {said}")
            old = [self.place.may_be_seen()]
        await self.place.overwrite()
        await self.kill(old)
        if self.schedule.moves_on:
            await self.place.overwrite()
        await self.recover()

    async def kill(self, old: list[Files]) -> None:
        """The run that does not come to its end."""
        place, schedule = self.place, self.schedule
        place.asked_for()
        ended, said = await place.run(schedule.command, schedule.transport, self._address, schedule.moment)
        self.struck = ended.struck
        self._expect(not ended.hung, f"it hangs: {said}")
        self._expect(ended.seconds_after < PROMPT_SECONDS, f"it took {ended.seconds_after:.1f} s to end")
        self._expect("Traceback" not in said, f"a traceback: {said}")
        if ended.struck:
            self._expect(ended.code in self._codes(), f"it ended with {ended.code}: {said}")
        allowed = [*old, place.may_be_seen()]
        # A plain file, which Triton does not look at; the next run has to remove it.
        seen = {name: files for name, files in place.seen().items() if not name.startswith(".dfagent-probe-")}
        self._expect(set(seen) <= {MODEL}, f"{sorted(seen)} in the model repository")
        self._expect(not old or MODEL in seen, "the model is gone")
        self._expect(all(files in allowed for files in seen.values()), f"not a version: {_told(seen)}")
        self._expect(not place.without_manifest(), f"generation {place.without_manifest()} has no manifest")
        if self.triton:
            served = self.triton.serves.get(MODEL)
            self._expect(served is None or served in allowed, "Triton was given half a model")
        asked = set(place.asked_for()) & {"1/same.bin", "labels.txt"}
        self._expect(not (old and asked), f"{sorted(asked)} was fetched again although it did not change")

    def _codes(self) -> tuple[int, ...]:
        if self.schedule.moment.signal == "SIGKILL":
            return (-9,)
        # A signal at the very end, or at one that the run survives, finds everything done.
        return (0,) if self.schedule.command == "serve" else (143, 0)

    async def recover(self) -> None:
        """The next run, which has to make everything right."""
        place = self.place
        staged = set() if self.schedule.moves_on else place.staged()
        was_published = place.seen().get(MODEL) == place.may_be_seen()
        before = place.generations()[2]
        ended, said = await place.run("prefetch", self.schedule.transport, self._address)
        self._expect(ended.code == 0, f"the next run ended with {ended.code}: {said}")
        self._expect(place.seen() == {MODEL: place.may_be_seen()}, f"not what the store has: {_told(place.seen())}")
        self._expect(not place.left_over(), f"left over: {place.left_over()}")
        generations, manifests, published = place.generations()
        kept = {published} if self.triton else {published, before} - {""}
        self._expect(generations == kept, f"generations {sorted(generations)}, expected {sorted(kept)}")
        self._expect(manifests == generations, f"manifests {sorted(manifests)} for generations {sorted(generations)}")
        again = set(place.asked_for()) & (set(place.stored) if was_published else staged)
        self._expect(not again, f"{sorted(again)} was here and was fetched again")
        if self.triton:
            self._expect(self.triton.serves.get(MODEL) == place.may_be_seen(), "Triton serves another version")
        damage = self.place.world.peer.cache.damage()
        self._expect(not damage, f"written into the peer's cache: {damage}")


def _told(seen: dict[str, Files | str]) -> str:
    """What is there, in few words."""
    return str(
        {
            name: files if isinstance(files, str) else {path: len(data) for path, data in files.items()}
            for name, files in seen.items()
        }
    )


async def sweep(world: World, *, most: int = 400, step: int = 1, first: int = 1) -> list[Outcome]:
    """An update killed at every event of the file system, one after the other, until an update ends before."""
    outcomes = []
    for number in range(first, most + 1, step):
        moment = Moment("event", "", number)
        schedule = Schedule(number, f"sweep:{number}", moment, "prefetch", "direct", False, False, False)
        outcome = await play(world, schedule)
        outcomes.append(outcome)
        if not outcome.struck:
            break
    return outcomes


async def main(arguments: argparse.Namespace) -> int:
    """Plays the schedules, prints what was hit and what was wrong; 1 where anything was."""
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="dfagent-kills-") as folder, S3Server(Path(folder, "s3")) as server:
        async with world(server, Path(folder, "world")) as stage:
            for schedule in schedules(arguments.seed):
                if schedule.number >= arguments.count:
                    break
                if arguments.only in (None, schedule.number):
                    outcomes.append(await play(stage, schedule))
                    _tell(outcomes[-1])
            if arguments.only is None and arguments.sweep:
                outcomes += await sweep(stage)
                for outcome in outcomes:
                    _tell(outcome)
    found = the_evidence().search()
    hits = Counter(outcome.schedule.label for outcome in outcomes if outcome.struck)
    wrong = [outcome for outcome in outcomes if outcome.violations]
    for label, count in sorted(hits.items()):
        print(f"{count:5}  {label}")
    print(f"{len(outcomes)} schedules, {sum(hits.values())} struck, {len(wrong)} wrong, {len(found)} secrets found")
    for finding in found:
        print(finding)
    end()
    if arguments.json:
        Path(arguments.json).write_text(json.dumps([asdict(outcome) for outcome in outcomes]))
    return int(bool(wrong or found))


def _tell(outcome: Outcome) -> None:
    for violation in outcome.violations:
        print(f"WRONG {outcome.schedule.seed} {outcome.schedule}: {violation}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int)
    parser.add_argument("--sweep", action="store_true", help="also every event of the file system in an update")
    parser.add_argument("--json")
    sys.exit(asyncio.run(main(parser.parse_args())))
