"""The watch loop: a pass over the repositories, a pause, and again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from dfagent._compat import timeout
from dfagent.agent import PassResult
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
            report(current.result())
            with suppress(asyncio.TimeoutError):
                async with timeout(interval):
                    await stop.wait()
        finally:
            for task in (current, waiting):
                task.cancel()
            await asyncio.wait({current, waiting})
