"""How many objects may be in flight: fewer while somebody sheds load, more again as objects come through."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType

_REST = 2.0
"""Seconds in which many refusals are one: they answer what was sent before the first of them was heard."""


class Pressure:
    """`async with pressure` takes one of at most `most` places, in the order of asking.

    `refused` halves the places, down to one; each object that comes through, told by `came`, gives a part of one back,
    so that a round of them gives one. Many agents share a store and a peer, and none knows of the others: without this
    each would keep all its objects knocking. Who holds a place keeps it.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = float(most)
        self._places = float(most)
        self._taken = 0
        self._waiting: list[asyncio.Future[None]] = []
        self._clock = clock
        self._refused_at = -_REST

    @property
    def places(self) -> int:
        return int(self._places)

    def refused(self) -> None:
        now = self._clock()
        if now - self._refused_at >= _REST:
            self._refused_at = now
            self._places = max(1.0, self._places / 2)

    def came(self) -> None:
        self._places = min(self._most, self._places + 1 / self._places)
        self._let_in()

    async def __aenter__(self) -> None:
        if self._taken < self.places and not any(not place.done() for place in self._waiting):
            self._taken += 1
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.cancelled() or not place.done():
                self._waiting.remove(place)
                self._let_in()  # somebody may have come to wait behind it
            else:
                self._give_back()  # it was let in just before it was cancelled
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()

    def _give_back(self) -> None:
        self._taken -= 1
        self._let_in()

    def _let_in(self) -> None:
        while self._taken < self.places and (place := next((p for p in self._waiting if not p.done()), None)):
            self._waiting.remove(place)
            self._taken += 1
            place.set_result(None)
