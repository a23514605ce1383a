"""Tasks that belong together: the first error comes out as itself, and nobody goes on without the others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from dfagent.errors import NotFound, Stalled
from dfagent.tasks import finished_in_thread, owned_tasks


async def should_raise_the_first_error_as_itself_and_cancel_the_siblings() -> None:
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def sibling() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def fails() -> None:
        await began.wait()
        raise NotFound("gone")

    with pytest.raises(NotFound, match="gone"):
        await together(sibling(), fails())
    assert cancelled.is_set()


async def should_keep_the_errors_own_cause() -> None:
    cause = OSError("the wire")

    async def fails() -> None:
        raise Stalled("stuck") from cause

    with pytest.raises(Stalled) as caught:
        await together(fails())
    assert caught.value.__cause__ is cause


async def should_find_the_error_inside_of_groups_in_groups() -> None:
    async def fails() -> None:
        raise NotFound("deep")

    with pytest.raises(NotFound, match="deep"):
        await together(together(fails()))


async def should_raise_what_its_own_body_raises_and_cancel_the_tasks() -> None:
    tasks: list[asyncio.Task[bool]] = []

    async def body() -> None:
        async with owned_tasks() as group:
            tasks.append(group.create_task(asyncio.Event().wait()))
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await body()
    assert tasks[0].cancelled()


async def should_end_every_task_when_it_is_cancelled_itself() -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def endless() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    running = asyncio.create_task(together(endless()))
    await began.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended.is_set()


async def together(*tasks: Coroutine[Any, Any, None]) -> None:
    async with owned_tasks() as group:
        for task in tasks:
            group.create_task(task)


async def should_let_a_thread_finish_before_a_cancellation_goes_on() -> None:
    """A write that goes on after its descriptor was closed may land in another file."""
    begun, go_on, finished = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait(20)
        finished.set()

    task = asyncio.create_task(finished_in_thread(work))
    await asyncio.to_thread(begun.wait, 20)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert finished.is_set()
