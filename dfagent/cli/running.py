"""Runs a command's coroutine: signals, typed errors, exit codes, logs."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, NoReturn

from dfagent.errors import DfagentError
from dfagent.redact import printable, redact

_UMASK = 0o027


class _Printable(logging.Formatter):
    """Names in a bucket may hold characters that reorder a line or can't be seen; nobody is to be misled by a log."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def set_up_logging(level: int) -> None:
    """Our own loggers at `level`; everybody else's only from WARNING on; nothing that signs at any level.

    To be called before an SDK is imported.
    """
    handler = _RedactingHandler()
    handler.setFormatter(_Printable("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    # A logger's own level would let its records through here, however silent the root is.
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or f"{record.name}.".startswith("dfagent."))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("dfagent").setLevel(level)
    logging.captureWarnings(True)
    _redact_tracebacks()
    if os.environ.pop("GRPC_TRACE", ""):
        # gRPC writes to standard error by itself, past every handler, and what it traces are whole requests.
        complain("GRPC_TRACE is ignored: its output would show signed URLs")


class _RedactingHandler(logging.Handler):
    """Libraries quote whole URLs even in warnings, and tracebacks quote what libraries raise."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception:  # noqa: BLE001 — logging's own answer to a wrong call would print its arguments as they are
            text = f"a log line of {record.name} can't be written:\n{traceback.format_exc()}"
        complain(redact(text))


def _redact_tracebacks() -> None:
    """What nobody caught is printed by the interpreter; it must not print signatures either."""

    def uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
        complain(redact("".join(traceback.format_exception(kind, error, trace))))

    sys.excepthook = uncaught
    threading.excepthook = lambda thread: uncaught(thread.exc_type, thread.exc_value, thread.exc_traceback)
    sys.unraisablehook = lambda lost: uncaught(lost.exc_type, lost.exc_value, lost.exc_traceback)


def fail(errors: Sequence[DfagentError]) -> NoReturn:
    """Prints every error with its hint and ends with the first one's exit code."""
    for error in errors:
        complain(f"error: {redact(error.message)}")
        if error.hint:
            complain(f"  hint: {redact(error.hint)}")
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
