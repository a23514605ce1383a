"""The number of objects in flight: it shrinks when load is shed, grows as objects come, and nobody is passed over."""

from __future__ import annotations

import asyncio

import pytest

from dfagent.errors import Overloaded, Stalled
from dfagent.transports.pressure import Pressure
from dfagent.transports.retrying import Retrying, RetryPolicy
from tests.unit.test_retrying import Script, request


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def _holding(pressure: Pressure, done: asyncio.Event, order: list[int], number: int) -> None:
    async with pressure:
        order.append(number)
        await done.wait()


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def should_let_in_who_comes_to_wait_behind_one_that_was_just_cancelled() -> None:
    """A cancelled wait stands in the queue until its task runs again."""
    pressure, order, leave = Pressure(1), list[int](), asyncio.Event()
    holder = asyncio.create_task(_holding(pressure, leave, order, 0))
    await _settle()
    cancelled = asyncio.create_task(_holding(pressure, leave, order, 1))
    await _settle()
    # In one step of the loop: the holder leaves, another one comes, and the one that waits is cancelled.
    leave.set()
    late = asyncio.create_task(_holding(pressure, leave, order, 2))
    cancelled.cancel()
    await asyncio.wait_for(asyncio.gather(holder, late), 20)
    assert order == [0, 2] and cancelled.cancelled()


async def should_let_in_as_many_as_there_are_places_in_the_order_of_asking() -> None:
    pressure, order = Pressure(2), list[int]()
    events = [asyncio.Event() for _ in range(4)]
    tasks = [asyncio.create_task(_holding(pressure, event, order, n)) for n, event in enumerate(events)]
    await _settle()
    assert order == [0, 1]
    events[1].set()
    await _settle()
    assert order == [0, 1, 2]
    for event in events:
        event.set()
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3]


def should_halve_the_places_once_for_refusals_that_come_together_and_keep_one() -> None:
    clock = Clock()
    pressure = Pressure(16, clock)
    for _ in range(10):
        pressure.refused()
    assert pressure.places == 8
    for _ in range(10):
        clock.now += 2.0
        pressure.refused()
    assert pressure.places == 1


def should_give_one_place_back_for_a_round_of_objects_up_to_the_most() -> None:
    pressure = Pressure(4, Clock())
    pressure.refused()
    for _ in range(3):
        pressure.came()
    assert pressure.places == 3
    for _ in range(100):
        pressure.came()
    assert pressure.places == 4


@pytest.mark.parametrize("given", [True, False], ids=["given the place but not run", "still waiting"])
async def should_not_lose_the_place_of_one_that_is_cancelled(given: bool) -> None:
    pressure, order = Pressure(1), list[int]()
    over = asyncio.Event()
    over.set()
    async with pressure:
        waiting = asyncio.create_task(_holding(pressure, over, order, 1))
        await _settle()
        if not given:
            waiting.cancel()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.wait_for(_holding(pressure, over, order, 2), 1)
    assert order == [2]


async def should_tell_of_shed_load_only() -> None:
    pressure = Pressure(8)
    quick = RetryPolicy(first_pause=0.001)
    await Retrying(Script((0, Stalled("stuck")), (1, None)), quick, pressure).fetch(request(), None)
    assert pressure.places == 8
    await Retrying(Script((0, Overloaded("later")), (1, None)), quick, pressure).fetch(request(), None)
    assert pressure.places == 4
