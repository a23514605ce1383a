"""A store, a peer and a node's folders for one schedule after the other, and one pass of the real pipeline."""

from __future__ import annotations

import asyncio
import gc
import shutil
import traceback
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from dfagent.agent import PassResult
from dfagent.cli.progress import Silent
from dfagent.errors import DfagentError
from dfagent.records import ModelRecord, ObjectRecord, to_json_line
from dfagent.settings.credentials import CloudCredentials
from dfagent.settings.dragonfly import DragonflySettings
from dfagent.settings.files import Settings
from dfagent.transports.options import Timeouts
from dfagent.wiring import RunOptions, open_session
from tests.servers.fault_origin import FaultOrigin
from tests.servers.fault_peer import FaultPeer
from tests.soak.quick import TUNING, close_clients
from tests.soak.schedule import PREFIX, RANGE, Schedule
from tests.soak.watch import Pass, open_files

SECRET = "a-secret-key-that-nobody-may-ever-say"
TOKEN = "a-session-token-that-nobody-may-ever-say"
BUCKET = "bucket"
LONGEST_PASS = 30.0
"""Seconds; a pass that takes longer hangs."""
Files = dict[str, bytes]


@dataclass
class Ran:
    """What became of one pass. `bug` is the traceback of anything that is no DfagentError."""

    result: PassResult = field(default_factory=PassResult)
    errors: list[DfagentError] = field(default_factory=list)
    bug: str = ""
    leaks: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    @property
    def outcomes(self) -> dict[str, str]:
        return {record.model: record.outcome for record in self.result.models}


class World:
    """`async with World(folder) as world`: everything that a lane of the soak needs, used again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = folder / "node"
        self.origin = FaultOrigin()
        self.peer = FaultPeer(folder / "peer", piece_length=RANGE, origin_timeout=0.2)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> World:
        await self._stack.enter_async_context(self.origin)
        await self._stack.enter_async_context(self.peer)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def start_anew(self, plan: Schedule) -> None:
        shutil.rmtree(self.base, ignore_errors=True)
        self.base.mkdir(parents=True)
        self.origin.start_anew()
        self.peer.start_anew()
        self.origin.page_size = plan.page_size

    def put(self, content: Files, checksum: str) -> None:
        """Makes this the store's content; an object that stays as it was keeps its version."""
        for key in [key for key in self.origin.versions if key not in content]:
            del self.origin.versions[key]
        for key, data in content.items():
            history = self.origin.versions.get(key)
            if not history or history[-1].data != data:
                self.origin.put(key, data, checksum)

    def forget(self, target: str) -> None:
        """Removes a folder and its state."""
        for name in (target, f".dfagent-{target}"):
            shutil.rmtree(self.base / name, ignore_errors=True)

    async def end_faults(self) -> None:
        await self.origin.end_faults()
        await self.peer.end_faults()

    async def run(self, plan: Schedule, timeouts: Timeouts, target: str = "models", transport: str = "") -> Ran:
        """One pass of the pipeline, with everything that it left open."""
        ran, watched = Ran(), Pass()
        left = await watched.run(self._pass(ran, plan, timeouts, self.base / target, transport or plan.transport))
        ran.said += watched.lines
        ran.said += ["".join(traceback.format_exception(exc)) + exc.hint for exc in ran.errors]
        ran.said += [to_json_line(record).decode() for record in _records(ran)]
        for error in ran.errors:
            _let_go(error)
        ran.leaks += [f"task {task}" for task in left]
        ran.leaks += [f"file {path}" for path in open_files(self.base)]
        if not await _all_closed(self):
            ran.leaks.append(
                f"connections: {self.origin.connections} to the store, {self.peer.connections} to the proxy"
            )
        return ran

    async def _pass(self, ran: Ran, plan: Schedule, timeouts: Timeouts, target: Path, transport: str) -> None:
        options = RunOptions(
            (f"s3://{self.origin.url}/{BUCKET}/{PREFIX}",),
            target=target,
            transport=transport,
            select_all=plan.select_all,
            timeouts=timeouts,
            tuning=TUNING,
        )
        try:
            async with open_session(self._settings(plan), options, Silent()) as session:
                ran.result = await asyncio.wait_for(session.run(), LONGEST_PASS)
                ran.errors += ran.result.errors
        except DfagentError as exc:
            ran.errors.append(exc)
        except Exception:  # noqa: BLE001 — any other exception is a bug, which is what the soak looks for
            ran.bug = traceback.format_exc()

    def _settings(self, plan: Schedule) -> Settings:
        addresses = {"proxy": self.peer.proxy, "socket": str(self.peer.socket)}
        dragonfly = {name: addresses[name] for name in plan.addresses}
        credential = {"key_id": "AKIASOAK", "secret_key": SECRET, "session_token": TOKEN, "region": "us-east-1"}
        return Settings(
            DragonflySettings.model_validate(dragonfly), CloudCredentials.model_validate({"s3": {"": credential}})
        )


def _records(ran: Ran) -> list[ModelRecord | ObjectRecord]:
    return [*ran.result.models, *ran.result.objects]


def _let_go(error: BaseException) -> None:
    """Drops the frames that an error's tracebacks hold: the SDK's connections close when nobody refers to them."""
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop()
        if current is not None:
            waiting += [current.__cause__, current.__context__]
            current.__traceback__ = current.__cause__ = current.__context__ = None


async def _all_closed(world: World) -> bool:
    """Whether the clients closed their connections; a server learns it a moment later.

    A HEAD in a thread can't be given up: it ends with the SDK's attempts, three times the stall timeout.
    """
    for attempt in range(600):
        world.peer.cache.client.close()  # again and again: a peer goes on with what its client has given up
        if not world.origin.connections and not world.peer.connections:
            return True
        if attempt % 100 == 10:
            close_clients(world.origin.url)
            gc.collect()
        await asyncio.sleep(0.005)
    return False


def published(target: Path) -> dict[str, Files]:
    """The models that Triton would find in `target`: the bytes of each one's files, by their paths."""
    return {entry.name: dict(_files(entry)) for entry in target.iterdir()} if target.exists() else {}


def _files(model: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(model.resolve().rglob("*")):
        if path.is_file():
            yield str(path.relative_to(model.resolve())), path.read_bytes()
