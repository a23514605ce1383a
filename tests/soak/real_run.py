"""One run of the agent under a fault, the run after it, and what has to hold after both."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from dfagent.errors import DfagentError
from dfagent.local.dragonfly import Peer
from dfagent.types import ObjectEntry, ObjectRef, TaskIdentity
from tests.servers import program
from tests.soak.real_world import FAR, MIB, START, World

CONFIG = b'name: "net"\nbackend: "python"\nmodel_repository_agents { agents [ { name: "dragonfly" } ] }\n'
LONGEST_RUN = 90.0
"""Seconds; a run that takes longer hangs."""
MOST_GENERATIONS = 3
"""What is published, what was before, and what Triton would fall back to."""
OTHER_SIZES = (0, 1, 4096, MIB, 4 * MIB, 4 * MIB + 1, 6 * MIB)

Files = dict[str, bytes]


def some_files(random: Random) -> Files:
    """One object that Dragonfly shares, and up to two others."""
    files = {"1/weights.bin": random.randbytes(random.randrange(5 * MIB, 14 * MIB))}
    for number in range(random.randrange(3)):
        files[f"1/part-{number}.bin"] = random.randbytes(random.choice(OTHER_SIZES))
    return files


@dataclass
class Run:
    """The agent's attempts to bring a new version of a model whose old version is published.

    `ended_with` is "ok", the name of the typed error, or what must not happen. `violations` are what did not hold.
    """

    world: World
    prefix: str
    peer: Peer
    transport: str
    as_process: bool
    target: Path
    old: Files
    new: Files
    versions: list[Files] = field(default_factory=list)
    tasks: dict[str, bytes] = field(default_factory=dict)
    damaged: dict[str, set[str]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    detours: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    ended_with: str = ""
    _running: asyncio.Task[None] | None = None
    _process: asyncio.subprocess.Process | None = None
    _config: bytes = b""

    @property
    def largest(self) -> str:
        return max(self.new, key=lambda name: len(self.new[name]))

    @property
    def size(self) -> int:
        return sum(map(len, self.new.values()))

    @property
    def done(self) -> bool:
        return self._running is None or self._running.done()

    async def prepare(self) -> None:
        """The old version is published, the new one lies in the store."""
        await asyncio.to_thread(self._put, {"config.pbtxt": CONFIG, **self.old})
        result = await self.world.prefetch(self.prefix, self.peer, self.target, "direct")
        assert not result.errors, result.errors
        self._config = (self.target / "net/config.pbtxt").read_bytes()
        await asyncio.to_thread(self._replace_old)
        self.versions.append(self.new)

    def overwrite(self, random: Random) -> None:
        """Other bytes of the same sizes for all objects."""
        self.new = {name: random.randbytes(len(data)) for name, data in self.new.items()}
        self.versions.append(self.new)
        self._put(self.new)

    def _replace_old(self) -> None:
        for name in self.old.keys() - self.new.keys():
            self.world.client.delete_object(Bucket=self.world.bucket, Key=f"{self.prefix}/net/{name}")
        self._put(self.new)

    def _put(self, files: Files) -> None:
        endpoint = self.world.url(self.prefix, self.peer).split("/")[4]
        for name, data in files.items():
            key = f"{self.prefix}/net/{name}"
            etag = self.world.put(key, data)
            entry = ObjectEntry(ObjectRef("s3", endpoint, self.world.bucket, key), len(data), etag)
            self.tasks[TaskIdentity.of(entry).id] = data

    async def warm(self, peer: Peer) -> None:
        """Lets another run, perhaps of another node, bring the new version into that peer's cache."""
        url = self.world.url(self.prefix, self.peer)
        result = await self.world.prefetch_url(url, peer, None, "dfdaemon")
        assert not result.errors, result.errors

    def start(self) -> asyncio.Task[None]:
        self._running = asyncio.create_task(self._attempt())
        return self._running

    async def ended(self) -> None:
        assert self._running is not None
        await self._running

    def kill(self, number: int) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def until_cached(self, peer: Peer, share: float) -> bool:
        """A moment after the peer has begun with the largest object; False where the run ended before."""
        content = self.world.cached(peer, self._task(self.largest))
        while not self.done and not content.exists():
            await asyncio.sleep(0.005)
        await asyncio.sleep(share * 0.3)
        return not self.done

    def _task(self, name: str) -> str:
        return next(task for task, data in self.tasks.items() if data is self.new[name])

    def damage(self, peer: Peer, random: Random) -> bool:
        """Flips a few bytes of what the peer has of the largest object, as a bad disk would."""
        task = self._task(self.largest)
        content, data = self.world.cached(peer, task), self.new[self.largest]
        if not content.exists() or content.stat().st_size != len(data):
            return False
        with content.open("r+b") as file:
            for _ in range(random.randrange(1, 4)):
                place = random.randrange(len(data))
                file.seek(place)
                file.write(bytes([data[place] ^ random.randrange(1, 256)]))
        self.damaged.setdefault(peer.name, set()).add(task)
        return content.read_bytes() != data

    async def _attempt(self) -> None:
        try:
            await asyncio.wait_for(self._in_process() if self.as_process else self._here(), LONGEST_RUN)
        except asyncio.TimeoutError:
            self.ended_with = "hang"
            self.violations.append(f"the run did not end within {LONGEST_RUN:.0f} s")
            if self._process is not None:
                self._process.kill()

    async def _here(self) -> None:
        try:
            result = await self.world.prefetch(self.prefix, self.peer, self.target, self.transport)
        except DfagentError as exc:
            self._failed(type(exc).__name__, str(exc))
            return
        except Exception as exc:  # noqa: BLE001 — an untyped error is just what is looked for
            self._failed(type(exc).__name__, repr(exc))
            self.violations.append(f"an error that is not typed: {exc!r}")
            return
        self.detours += [f"{detour.tried}: {detour.why}" for record in result.objects for detour in record.detours]
        self.ended_with = "ok"
        for error in result.errors:
            self._failed(type(error).__name__, str(error))

    async def _in_process(self) -> None:
        arguments = self.world.arguments(self.prefix, self.peer, self.target, self.transport)
        inside = self.world.link.inside() if self.peer.name == FAR else ()
        running = await program.start(*arguments, main=START, inside=inside)
        self._process = running.process
        try:
            code = await running.process.wait()
        finally:
            await running.kill()
        if code == 0:
            self.ended_with = "ok"
            return
        self._failed(f"exit {code}", running.err)
        typed = code in range(2, 9) and "error:" in running.err and "bug" not in running.err
        if not typed and code != -signal.SIGKILL:
            self.violations.append(f"ended with {code} and said {running.err[-2000:]}")

    def _failed(self, name: str, text: str) -> None:
        self.ended_with = name
        self.errors.append(text)

    def check(self, must_succeed: bool) -> None:
        """What has to hold after the run under the fault."""
        if self.ended_with == "ok":
            self._check_published(self.versions, "the run that succeeded")
        else:
            self._check_published([self.old], f"the run that ended with {self.ended_with}")
            if must_succeed:
                self.violations.append(f"the store was there, but it ended with {self.errors[-1:]}")

    async def recover(self) -> None:
        """The next run, when all faults have ended: it must succeed, and write nothing into what dfdaemon keeps."""
        before = self._caches()
        self.as_process = self.peer.name == FAR
        faulted = self.ended_with
        await self.start()
        if self.ended_with != "ok":
            self.violations.append(f"the run after the fault ended with {self.ended_with}: {self.errors[-1:]}")
        self._check_published(self.versions[-1:], "the run after the fault")
        self.ended_with = faulted
        self._check_caches(before)
        self._check_leftovers()

    def _check_leftovers(self) -> None:
        state = self.target.with_name(f".dfagent-{self.target.name}")
        left = [path for kind in ("partials", "staging", "tmp") for path in (state / kind).rglob("*") if path.is_file()]
        generations = list((state / "generations" / "net").iterdir())
        if left or len(generations) > MOST_GENERATIONS:
            self.violations.append(f"left behind: {[path.name for path in left]}, {len(generations)} generations")

    def _check_published(self, versions: list[Files], when: str) -> None:
        names = sorted(path.name for path in self.target.iterdir())
        if names != ["net"]:
            self.violations.append(f"after {when} the repository holds {names}")
            return
        model = self.target / "net"
        there = {str(path.relative_to(model)): path.read_bytes() for path in model.rglob("*") if path.is_file()}
        if there not in [{**files, "config.pbtxt": self._config} for files in versions]:
            sizes = {name: len(data) for name, data in there.items()}
            self.violations.append(f"after {when} the model is not what it has to be: {sizes}")

    def _caches(self) -> dict[Path, tuple[int, int, int]]:
        """Inode, mtime and mode of every task that a dfdaemon has finished; then only it may delete them."""
        found = {}
        for peer in self.world.cluster.peers:
            for task in self.tasks:
                content = self.world.cached(peer, task)
                if content.exists() and self.world.has(peer, task):
                    status = content.stat()
                    found[content] = status.st_ino, status.st_mtime_ns, status.st_mode
        return found

    def _check_caches(self, before: dict[Path, tuple[int, int, int]]) -> None:
        for peer in self.world.cluster.peers:
            for task, data in self.tasks.items():
                content = self.world.cached(peer, task)
                if not content.exists() or not self.world.has(peer, task):
                    continue
                status = content.stat()
                now = status.st_ino, status.st_mtime_ns, status.st_mode
                if content in before and before[content][0] == now[0] and before[content] != now:
                    self.violations.append(f"{peer.name}'s cached task {task[:8]} was changed: {before[content]} {now}")
                healthy = hashlib.sha256(content.read_bytes()).digest() == hashlib.sha256(data).digest()
                if not healthy and task not in self.damaged.get(peer.name, set()):
                    self.violations.append(f"{peer.name}'s cached task {task[:8]} holds other bytes than the store")
                if not healthy and peer is self.peer and self.transport != "direct":
                    self.violations.append(f"{peer.name} keeps the damaged task {task[:8]}")

    async def tidy(self) -> None:
        await self.world.forget(set(self.tasks))
        await asyncio.to_thread(shutil.rmtree, self.target.parent, ignore_errors=True)
