"""Forks one `dfagent` after another that kills itself at an exactly chosen moment: `python -m tests.soak.kill_server`.

A fork of a process that has imported everything costs milliseconds, where a new process costs a second. Orders come as
lines of JSON on standard input, answers go as lines to standard output. Nothing of this is in the product: the forked
child wraps the product's own methods, or counts what Python's audit events tell of the file system.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import select
import signal
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any

PHASES = ("list", "sign", "fetch", "verify", "publish", "load")
# Small, so that a few hundred kB have many of them.
BLOCK_SIZE, RANGE_SIZE = 32 << 10, 64 << 10
_PATHS_IN = {
    "open": 1,
    "os.rename": 2,
    "os.link": 2,
    "os.symlink": 2,
    "os.remove": 1,
    "os.mkdir": 1,
    "os.rmdir": 1,
    "os.chmod": 1,
    "os.truncate": 1,
    "shutil.rmtree": 1,
    "sqlite3.connect": 1,
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass(frozen=True)
class Moment:
    """When it happens, and which signal the process then sends to itself.

    At the `count`-th call of `phase` ("before", "during", "after"; `delay` says how far into it, in ms or in reports
    of progress), or at the `count`-th event of the file system where the phase is "event"; never where it is "".
    """

    phase: str = ""
    when: str = ""
    count: int = 0
    delay: int = 0
    signal: str = "SIGKILL"


@dataclass(frozen=True)
class Order:
    """One run: `dfagent` with these arguments; `base` holds everything that it may write to."""

    arguments: list[str]
    base: str
    out: str
    err: str
    moment: Moment = field(default_factory=Moment)
    seconds: float = 60.0


@dataclass(frozen=True)
class Ended:
    """How the run ended (negative: by that signal; `hung`: by us), how long after the moment; its events' number."""

    code: int
    struck: bool
    hung: bool
    seconds_after: float
    events: int = 0


class _Striker:
    """Strikes once, at the moment, and tells the parent just before."""

    def __init__(self, moment: Moment, report: int) -> None:
        self.moment = moment
        self.struck = False
        self._report = report
        self._signal = signal.Signals[moment.signal]
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()

    def is_due(self, phase: str) -> bool:
        with self._lock:
            self._counts[phase] = self._counts.get(phase, 0) + 1
            return phase == self.moment.phase and self._counts[phase] == self.moment.count

    def strike(self) -> None:
        with self._lock:
            if self.struck:
                return
            self.struck = True
        os.write(self._report, b"struck\n")
        os.kill(os.getpid(), self._signal)

    def tell(self) -> None:
        os.write(self._report, f"events {self._counts.get('event', 0)}\n".encode())


def _on_progress(striker: _Striker, request: Any) -> Any:
    """The fetch's request, with a strike at one of its reports of progress."""
    left, report = [striker.moment.delay % 8], request.on_progress

    def progress(count: int) -> None:
        report(count)
        left[0] -= 1
        if left[0] < 0:
            striker.strike()

    return replace(request, on_progress=progress)


def _around_async(owner: type, method: str, phase: str, striker: _Striker) -> None:
    original = getattr(owner, method)

    @wraps(original)
    async def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not striker.is_due(phase):
            return await original(self, *args, **kwargs)
        when = striker.moment.when
        if when == "before":
            striker.strike()
        later = None
        if when == "during" and phase == "fetch":
            args = (_on_progress(striker, args[0]), *args[1:])
        elif when == "during":
            later = asyncio.get_running_loop().call_later(striker.moment.delay / 1000, striker.strike)
        try:
            return await original(self, *args, **kwargs)
        finally:
            if later:
                later.cancel()
            if when != "before":
                striker.strike()

    setattr(owner, method, wrapped)


def _around_listing(owner: type, striker: _Striker) -> None:
    original = owner.list  # type: ignore[attr-defined]

    @wraps(original)
    async def wrapped(self: Any, url: Any) -> AsyncIterator[Any]:
        due = striker.is_due("list")
        if due and striker.moment.when == "before":
            striker.strike()
        async for entry in original(self, url):
            if due and striker.moment.when == "during":
                striker.strike()
            yield entry
        if due:
            striker.strike()

    owner.list = wrapped  # type: ignore[attr-defined]


def _around_publish(owner: type, striker: _Striker, inside: threading.local) -> None:
    original = owner.publish  # type: ignore[attr-defined]

    @wraps(original)
    def wrapped(self: Any, *args: Any) -> Any:
        if not striker.is_due("publish"):
            return original(self, *args)
        if striker.moment.when == "before":
            striker.strike()
        if striker.moment.when == "during":
            inside.left = striker.moment.delay % 3
        try:
            return original(self, *args)
        finally:
            inside.left = -1
            striker.strike()

    owner.publish = wrapped  # type: ignore[attr-defined]


def _count_events(base: str, striker: _Striker, inside: threading.local) -> None:
    """Counts what changes a name or a file below `base`; an event comes just before what it tells of."""

    def happens() -> None:
        if getattr(inside, "left", -1) == 0:
            striker.strike()
        inside.left = getattr(inside, "left", -1) - 1
        if striker.is_due("event"):
            striker.strike()

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        count = _PATHS_IN.get(event)
        if count is None or (event == "open" and not int(arguments[2] or 0) & _WRITES):
            return
        # Below a removed folder names are relative to its descriptor.
        if any(not isinstance(path, str) or path.startswith(base) for path in map(_text, arguments[:count])) or (
            event in ("os.remove", "os.rmdir") and arguments[1] != -1
        ):
            happens()

    sys.addaudithook(audit)
    fsync = os.fsync

    def counted_fsync(fd: int) -> None:
        happens()
        fsync(fd)

    os.fsync = counted_fsync  # type: ignore[assignment]


def _text(path: Any) -> Any:
    return os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else path


def _install(order: Order, report: int) -> _Striker:
    from dfagent import ways
    from dfagent.repository.folder import RepositoryFolder
    from dfagent.stores.s3 import S3Store
    from dfagent.transports.dfdaemon import DfdaemonTransport
    from dfagent.transports.direct import DirectTransport
    from dfagent.transports.proxy import ProxyTransport
    from dfagent.transports.verifying import Verifying
    from dfagent.triton.client import TritonClient

    striker, inside = _Striker(order.moment, report), threading.local()
    _around_listing(S3Store, striker)
    _around_async(S3Store, "sign", "sign", striker)
    for transport in (DirectTransport, ProxyTransport, DfdaemonTransport):
        _around_async(transport, "fetch", "fetch", striker)
    _around_async(Verifying, "_verified", "verify", striker)
    _around_publish(RepositoryFolder, striker, inside)
    _around_async(TritonClient, "load", "load", striker)
    _count_events(order.base, striker, inside)
    defaults: Any = ways.Tuning.__init__
    defaults.__defaults__ = (BLOCK_SIZE, RANGE_SIZE, *defaults.__defaults__[2:])
    return striker


def _become(order: Order, report: int) -> None:
    """In the child: the program itself, from its arguments to its exit code."""
    for fd, path, flags in ((0, os.devnull, os.O_RDONLY), (1, order.out, os.O_WRONLY), (2, order.err, os.O_WRONLY)):
        os.dup2(os.open(path, flags | os.O_CREAT | os.O_APPEND, 0o600), fd)
    tempfile.tempdir = str(Path(order.base, "tmp"))
    from dfagent.cli import main

    striker = _install(order, report)
    sys.argv = ["dfagent", *order.arguments]
    code = 1
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    sys.stdout.flush()
    sys.stderr.flush()
    striker.tell()
    os._exit(code)


def _serve(order: Order) -> Ended:
    reader, report = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            _become(order, report)
        finally:
            sys.excepthook(*sys.exc_info())
            os._exit(70)
    os.close(report)
    said, struck_at, hung = _listen(reader, pid, order.seconds)
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    events = next((int(line.split()[1]) for line in said.splitlines() if line.startswith("events ")), 0)
    after = time.monotonic() - struck_at if struck_at else 0.0
    return Ended(os.waitstatus_to_exitcode(status), bool(struck_at), hung, after, events)


def _listen(reader: int, pid: int, seconds: float) -> tuple[str, float, bool]:
    """What the child reports until it ends, when it struck, and whether it had to be killed for its silence."""
    said, struck_at, deadline = b"", 0.0, time.monotonic() + seconds
    while True:
        ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            os.kill(pid, signal.SIGKILL)
            return said.decode(), struck_at, True
        data = os.read(reader, 4096)
        if not data:
            return said.decode(), struck_at, False
        said += data
        if b"struck" in said and not struck_at:
            struck_at = time.monotonic()


def _import_everything() -> None:
    """What a run would import; no thread and no connection may begin here."""
    for name in (
        *("prefetch", "progress", "report", "running", "serve", "session"),
        *("..sidecar.watch", "..stores.s3_client", "..stores.s3_errors", "..wiring"),
    ):
        importlib.import_module(name if name.startswith(".") else f".{name}", "dfagent.cli")
    importlib.import_module("tritonclient.grpc.aio")
    _keep_sdk_models()


def _keep_sdk_models() -> None:
    """The SDK parses a megabyte of JSON for each client: here once for all children."""
    loader = importlib.import_module("botocore.loaders").JSONFileLoader
    loader.load_file = _remembering(loader.load_file)
    session = importlib.import_module("boto3").Session(aws_access_key_id="AK", aws_secret_access_key="SK")
    session.client("s3", region_name="us-east-1").close()


def _remembering(load: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    known: dict[str, Any] = {}

    def loaded(self: Any, path: str) -> Any:
        if path not in known:
            known[path] = load(self, path)
        return known[path]

    return loaded


def serve(lines: Iterable[str], answer: Callable[[str], None]) -> None:
    """Carries out the orders, one after the other."""
    for line in lines:
        raw = json.loads(line)
        order = Order(**{**raw, "moment": Moment(**raw["moment"])})
        answer(json.dumps(asdict(_serve(order))))


if __name__ == "__main__":
    from tests.secrecy.child import watch

    watch()
    _import_everything()
    serve(sys.stdin, lambda text: print(text, flush=True))
