"""The watch loop: a pass over the repositories, a pause, and again."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable
from contextlib import suppress

from dfagent._compat import timeout
from dfagent.agent import PassResult
from dfagent.redact import redact
from dfagent.wiring import Session

log = logging.getLogger("dfagent.sidecar")


async def watch(session: Session, interval: float, stop: asyncio.Event, report: Callable[[PassResult], None]) -> None:
    """Runs passes every `interval` seconds until `stop` is set, then gives up the pass under way and returns.

    A pass's errors are logged and tried again by the next one. What a given-up pass had fetched is kept: files that
    arrived are staged, parts of direct downloads resume.
    """
    while not stop.is_set():
        current = asyncio.create_task(session.run())
        waiting = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({current, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if not current.done():
                log.info("stopping: the pass under way is given up, the next start resumes it")
                return
            _report(current, report)
            with suppress(asyncio.TimeoutError):
                async with timeout(interval):
                    await stop.wait()
        finally:
            for task in (current, waiting):
                task.cancel()
            await asyncio.wait({current, waiting})
    log.info("stopped")


def _report(done: asyncio.Task[PassResult], report: Callable[[PassResult], None]) -> None:
    """Reports the pass; a bug in it must not end what has run for months, so it is logged and the next pass comes."""
    error = done.exception()
    if error is None:
        report(done.result())
        return
    trace = "".join(traceback.format_exception(error))
    log.critical("this is a bug in dfagent, the next pass tries again:\n%s", redact(trace))
