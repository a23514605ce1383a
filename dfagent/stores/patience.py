"""Listings of a store that asks for fewer requests: many agents list one bucket, and none knows of the others."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from dfagent.errors import StoreBusy

log = logging.getLogger("dfagent.stores")
_Answer = TypeVar("_Answer")

PAUSES: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds, at most, between one refusal and the next question."""


async def patiently(ask: Callable[[], Awaitable[_Answer]]) -> _Answer:
    """The answer; asks again after each of `PAUSES` where the store is busy, so that agents come back one by one."""
    for longest in PAUSES:
        try:
            return await ask()
        except StoreBusy as exc:
            pause = random.uniform(longest / 2, longest)
            log.warning("trying again in %.1f s: %s", pause, exc.message)
            await asyncio.sleep(pause)
    return await ask()
