"""The watch loop: passes go on whatever they meet, and end at once when they shall."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import cast

import pytest

from dfagent.agent import Agent, PassResult
from dfagent.errors import StoreUnavailable
from dfagent.sidecar.watch import watch
from dfagent.wiring import Session

SECONDS = 20.0
FOR_EVER = 3600.0


class Script:
    """An agent whose passes run the given function."""

    url = "s3://bucket/repo"

    def __init__(self, one_pass: Callable[[], Awaitable[None]]) -> None:
        self._one_pass = one_pass
        self.passes = 0

    async def run(self, _claimed: dict[str, str]) -> PassResult:
        self.passes += 1
        await self._one_pass()
        return PassResult()

    def session(self) -> Session:
        return Session([cast(Agent, self)], None)


async def should_run_pass_after_pass_until_it_is_stopped() -> None:
    stop = asyncio.Event()
    results: list[PassResult] = []

    def report(result: PassResult) -> None:
        results.append(result)
        if len(results) == 3:
            stop.set()

    script = Script(lambda: asyncio.sleep(0))
    await asyncio.wait_for(watch(script.session(), 0.001, stop, report), SECONDS)
    assert (script.passes, len(results)) == (3, 3)


async def should_go_on_after_a_pass_that_failed() -> None:
    stop = asyncio.Event()
    errors: list[str] = []

    async def fails() -> None:
        raise StoreUnavailable("down")

    def report(result: PassResult) -> None:
        errors.extend(error.message for error in result.errors)
        if len(errors) == 2:
            stop.set()

    await asyncio.wait_for(watch(Script(fails).session(), 0.001, stop, report), SECONDS)
    assert errors == ["down", "down"]


async def should_give_up_the_pass_under_way_when_stopped() -> None:
    stop, ended = asyncio.Event(), asyncio.Event()

    async def endless() -> None:
        stop.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    results: list[PassResult] = []
    await asyncio.wait_for(watch(Script(endless).session(), FOR_EVER, stop, results.append), SECONDS)
    assert ended.is_set(), "nothing goes on behind its back"
    assert results == []


async def should_not_wait_for_the_interval_when_stopped() -> None:
    stop, paused = asyncio.Event(), asyncio.Event()
    script = Script(lambda: asyncio.sleep(0))
    running = asyncio.create_task(watch(script.session(), FOR_EVER, stop, lambda _: paused.set()))
    await asyncio.wait_for(paused.wait(), SECONDS)
    stop.set()
    await asyncio.wait_for(running, SECONDS)
    assert script.passes == 1


async def should_take_its_pass_along_when_it_is_cancelled() -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def endless() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    running = asyncio.create_task(watch(Script(endless).session(), FOR_EVER, asyncio.Event(), lambda _: None))
    await asyncio.wait_for(began.wait(), SECONDS)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    assert ended.is_set()


async def should_tell_a_bug_and_go_on(caplog: pytest.LogCaptureFixture) -> None:
    stop = asyncio.Event()
    passes = 0

    async def buggy() -> None:
        nonlocal passes
        passes += 1
        if passes == 2:
            stop.set()
        raise ZeroDivisionError("http://host/key?X-Amz-Signature=abc")

    await asyncio.wait_for(watch(Script(buggy).session(), 0.01, stop, lambda _: None), SECONDS)
    assert passes == 2
    assert "ZeroDivisionError" in caplog.text and "X-Amz-Signature=abc" not in caplog.text
