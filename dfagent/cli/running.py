"""Runs a command's coroutine: signals, typed errors, exit codes, logs."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import traceback
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from dfagent.errors import DfagentError
from dfagent.redact import printable, redact


class _Printable(logging.Formatter):
    """Names in a bucket may hold characters that reorder a line or can't be seen; nobody is to be misled by a log."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


_UMASK = 0o027


def set_up_logging(level: int) -> None:
    """Our own loggers at `level`; everybody else's only from WARNING on, because libraries log whole URLs."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Printable("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("dfagent").setLevel(level)


def fail(errors: Sequence[DfagentError]) -> NoReturn:
    """Prints every error with its hint and ends with the first one's exit code."""
    for error in errors:
        complain(f"error: {redact(error.message)}")
        if error.hint:
            complain(f"  hint: {error.hint}")
    sys.exit(errors[0].exit_code)


def complain(text: str) -> None:
    """Says it on standard error, if anybody can hear it there."""
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            print(printable(text), file=sys.stderr)


def run(main: Coroutine[Any, Any, Sequence[DfagentError]]) -> None:
    """Runs the coroutine to its end, or until SIGINT or SIGTERM cancels it (exit code 130 or 143).

    What it returns are the errors that it went on after: they are told, and the first one decides about the exit code.
    """
    # Libraries and the SDKs write files, too; what is ours is for our user and its group at most.
    os.umask(_UMASK)
    try:
        errors = asyncio.run(_guarded(main))
    except DfagentError as exc:
        fail([exc])
    except Exception:  # noqa: BLE001 — the last line of defence: a bug must not print a signature
        complain(redact(traceback.format_exc()))
        complain("error: this is a bug in dfagent: please report it with the lines above")
        sys.exit(1)
    if errors:
        fail(errors)


async def _guarded(main: Coroutine[Any, Any, Sequence[DfagentError]]) -> Sequence[DfagentError]:
    task = asyncio.ensure_future(main)
    received: list[int] = []

    def interrupt(number: int) -> None:
        received.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, interrupt, number)
    try:
        return await task
    except asyncio.CancelledError:
        first = signal.Signals(received[0]) if received else signal.SIGINT
        complain(f"interrupted by {first.name}: what arrived is kept, run again")
        leave(128 + first)


def leave(code: int) -> NoReturn:
    """Ends the process without waiting for threads: an SDK's call to a silent store can't be cancelled.

    Everything that has to be given back was given back when the coroutine ended.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            if stream is not None:
                stream.flush()
    os._exit(code)
