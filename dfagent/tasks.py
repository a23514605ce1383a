"""Tasks that nobody loses: groups whose error comes out as itself, threads that are waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from dfagent._compat import BaseExceptionGroup, TaskGroup

_Result = TypeVar("_Result")


async def finished_in_thread(work: Callable[..., _Result], *args: object) -> _Result:
    """Like asyncio.to_thread, but a cancellation waits for the thread.

    A thread can't be cancelled: left alone it would go on with a file descriptor that was closed meanwhile, and by
    then may belong to another file.
    """
    running = asyncio.ensure_future(asyncio.to_thread(work, *args))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([running])
        raise


@asynccontextmanager
async def owned_tasks() -> AsyncIterator[TaskGroup]:
    """A TaskGroup that raises its first error instead of a group: the siblings were cancelled because of it."""
    try:
        async with TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failed:
        error: BaseException = failed
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from error.__cause__
