"""Which pass a task, a log record or a file descriptor belongs to, where several passes share an event loop."""

from __future__ import annotations

import asyncio
import logging
import os
import traceback
from collections.abc import Coroutine
from contextvars import ContextVar
from pathlib import Path
from typing import Any

_PASS: ContextVar[Pass | None] = ContextVar("pass", default=None)
_STRAYS: list[str] = []
_PATIENCE = 3.0


class Pass:
    """What one pass of the program did: its tasks, and the lines that it logged."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[Any]] = []
        self.lines: list[str] = []

    async def run(self, work: Coroutine[Any, Any, None]) -> list[str]:
        """Runs the work to its end; returns the tasks that it left behind."""
        token = _PASS.set(self)
        try:
            task = asyncio.get_running_loop().create_task(work)
        finally:
            _PASS.reset(token)
        self.tasks.remove(task)
        await task
        # What was cancelled needs a turn to end, a gRPC call a word from its own thread.
        if pending := [left for left in self.tasks if not left.done()]:
            await asyncio.wait(pending, timeout=_PATIENCE)
        left = [repr(task) for task in self.tasks if not task.done()]
        # Their errors hold frames, and frames hold connections.
        self.tasks.clear()
        return left


def _make_task(loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **options)
    current = _PASS.get()
    if current is not None:
        current.tasks.append(task)
    return task


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        text = f"{record.levelname} {record.name}: {self.format(record)}"
        current = _PASS.get()
        (current.lines if current else _STRAYS).append(text)


def _stray(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    exc = context.get("exception")
    told = "".join(traceback.format_exception(exc)) if exc else ""
    _STRAYS.append(f"event loop: {context.get('message')}: {context} {told}")


def watch(loop: asyncio.AbstractEventLoop) -> None:
    """Begins to watch the loop and all logging of this process."""
    loop.set_task_factory(_make_task)  # type: ignore[arg-type]
    loop.set_exception_handler(_stray)
    root = logging.getLogger()
    root.handlers = [_Handler()]
    root.setLevel(logging.WARNING)
    logging.getLogger("dfagent").setLevel(logging.DEBUG)


def strays() -> list[str]:
    """What was logged outside of passes since it was last asked: errors of the event loop above all."""
    found, _STRAYS[:] = list(_STRAYS), []
    return found


def open_files(below: Path) -> list[str]:
    """The files and folders below `below` that this process has open."""
    found = []
    for fd in list(Path("/proc/self/fd").iterdir()):
        try:
            where = os.readlink(fd)
        except OSError:
            continue  # the listing's own
        if where.startswith(str(below)):
            found.append(where)
    return found
