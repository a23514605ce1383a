"""`auto`: for each object the cheapest way that works; a peer that fails costs P2P, never the object."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from dfagent.errors import (
    AccessDenied,
    Changed,
    ConfigError,
    ConnectFailed,
    DfagentError,
    NoHardLink,
    NoSpace,
    NotFound,
    OriginStatus,
    PeerUnavailable,
    StoreBusy,
    StoreUnavailable,
)
from dfagent.redact import redact
from dfagent.transports.base import Transport
from dfagent.types import Detour, Fetched, FetchRequest

log = logging.getLogger("dfagent.transports")

# dfdaemon's constant: what fits into one piece is fetched from the origin by every peer.
NEVER_SHARED = 4 << 20
REST = 30.0
"""Seconds for which a way that can't work now is not tried by other objects."""
REST_WITHOUT_LINKS = 600.0
_FAILURES_IN_A_ROW = 3
# No other way can help, or it would hide what the user has to do.
_FINAL = (Changed, NoSpace, ConfigError)
_OF_THE_WAY = (PeerUnavailable, StoreUnavailable)


@dataclass(slots=True)
class Way:
    """One transport of the chain (with its retries), and how it did lately."""

    transport: Transport
    clock: Callable[[], float] = time.monotonic
    rests_until: float = 0.0
    why: str = ""
    failures: int = field(default=0)

    @property
    def rests(self) -> bool:
        return self.clock() < self.rests_until

    def worked(self) -> None:
        self.failures, self.rests_until = 0, 0.0

    def failed(self, error: DfagentError) -> None:
        """One object's own trouble is not the way's: only what would meet every object makes it rest."""
        self.why = redact(error.message)
        self.failures += isinstance(error, _OF_THE_WAY) and not isinstance(error, StoreBusy)
        if isinstance(error, NoHardLink):
            self.rests_until = self.clock() + REST_WITHOUT_LINKS
        elif isinstance(error, ConnectFailed) or self.failures >= _FAILURES_IN_A_ROW:
            self.rests_until = self.clock() + REST
            self.failures = 0


class Fallback:
    """Tries `peers` one after the other, then `direct` (None where there is no folder to write into).

    Objects of at most 4 MiB, which Dragonfly never shares when cold, go direct unless this node has them (`is_here`,
    by task id; None where nobody answers). Each way begins with a fresh file. What was tried before stands in
    `Fetched.detours`.
    """

    name = "auto"

    def __init__(
        self,
        peers: Sequence[Transport],
        direct: Transport,
        is_here: Callable[[str], Awaitable[bool | None]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._not_asked_until = 0.0
        self._peers = [Way(transport, clock) for transport in peers]
        self._direct = Way(direct, clock)
        self._is_here = is_here

    async def aclose(self) -> None:
        for way in (*self._peers, self._direct):
            await way.transport.aclose()

    async def fetch(self, request: FetchRequest, folder: Path | None) -> Fetched:
        ways = await self._ways(request, folder)
        detours: list[Detour] = []
        for way, following in zip(ways, [*ways[1:], None], strict=True):
            if following is None:
                return replace(await self._last(way, request, folder, detours), detours=tuple(detours))
            if way.rests:
                detours.append(Detour(way.transport.name, following.transport.name, way.why))
                continue
            try:
                fetched = await way.transport.fetch(request, folder)
            except _FINAL:
                raise
            except DfagentError as exc:
                way.failed(exc)
                detours.append(Detour(way.transport.name, following.transport.name, redact(exc.message)))
                log.warning("%s: going on by %s: %s", request.label, following.transport.name, redact(exc.message))
                await asyncio.to_thread(_clear, folder, request, way.transport.name)
            else:
                way.worked()
                return replace(fetched, detours=tuple(detours))
        raise AssertionError("the last way returns or raises")

    async def _ways(self, request: FetchRequest, folder: Path | None) -> list[Way]:
        if folder is None:
            return self._peers
        if request.entry.size <= NEVER_SHARED and not await self._has(request.task.id):
            return [self._direct]
        return [*self._peers, self._direct]

    async def _has(self, task_id: str) -> bool:
        """Whether this node has the task. A peer that does not answer is not asked for each of many small objects."""
        if self._is_here is None or self._clock() < self._not_asked_until:
            return False
        answer = await self._is_here(task_id)
        if answer is None:
            self._not_asked_until = self._clock() + REST
        return bool(answer)

    async def _last(self, way: Way, request: FetchRequest, folder: Path | None, detours: list[Detour]) -> Fetched:
        try:
            return await way.transport.fetch(request, folder)
        except DfagentError as exc:
            if detours and not isinstance(exc, _FINAL):
                before = "; ".join(f"{detour.tried} failed before: {detour.why}" for detour in detours)
                exc.hint = f"{exc.hint}; {before}" if exc.hint else before
            raise


class Explaining:
    """A peer's transport whose errors carry the store's own reason, which the peer leaves out.

    `ask` gets the reason from the store itself, "" where it has none.
    """

    def __init__(self, inner: Transport, ask: Callable[[FetchRequest], Awaitable[str]]) -> None:
        self._inner = inner
        self._ask = ask

    @property
    def name(self) -> str:
        return self._inner.name

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def fetch(self, request: FetchRequest, folder: Path | None) -> Fetched:
        try:
            return await self._inner.fetch(request, folder)
        except (AccessDenied, NotFound, OriginStatus) as exc:
            if reason := await self._ask(request):
                exc.message = f"{exc.message}: the store says {reason}"
            raise


def _clear(folder: Path | None, request: FetchRequest, transport: str) -> None:
    """Gives back the room of a partial that nobody goes on with: the next way writes the whole object again."""
    if folder is None:
        return
    for partial in folder.glob(f"{request.task.id[:32]}*.{transport}.*"):
        with suppress(FileNotFoundError):
            partial.unlink()
