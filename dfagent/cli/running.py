"""Runs a command's coroutine: signals, typed errors, exit codes, logs."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import traceback
from collections.abc import Coroutine, Sequence
from typing import Any, NoReturn

from dfagent.errors import DfagentError
from dfagent.redact import redact


def set_up_logging(level: int) -> None:
    """Our own loggers at `level`; everybody else's only from WARNING on, because libraries log whole URLs."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("dfagent").setLevel(level)


def fail(errors: Sequence[DfagentError]) -> NoReturn:
    """Prints every error with its hint and ends with the first one's exit code."""
    for error in errors:
        print(f"error: {redact(error.message)}", file=sys.stderr)
        if error.hint:
            print(f"  hint: {error.hint}", file=sys.stderr)
    sys.exit(errors[0].exit_code)


def run(main: Coroutine[Any, Any, None]) -> None:
    """Runs the coroutine to its end, or until SIGINT or SIGTERM cancels it (exit code 130 or 143)."""
    received: list[int] = []

    async def guarded() -> None:
        task = asyncio.ensure_future(main)

        def interrupt(number: int) -> None:
            received.append(number)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, interrupt, number)
        await task

    try:
        asyncio.run(guarded())
    except asyncio.CancelledError:
        number = received[0] if received else signal.SIGINT
        print(f"interrupted by {signal.Signals(number).name}: what arrived is kept, run again", file=sys.stderr)
        sys.exit(128 + number)
    except DfagentError as exc:
        fail([exc])
    except Exception:  # noqa: BLE001 — the last line of defence: a bug must not print a signature
        print(redact(traceback.format_exc()), file=sys.stderr)
        print("error: this is a bug in dfagent: please report it with the lines above", file=sys.stderr)
        sys.exit(1)
