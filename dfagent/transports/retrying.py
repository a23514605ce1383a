"""The one retry policy: it obeys `exc.retryable`, and signs again when a signature has run out."""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass, replace
from pathlib import Path

from dfagent.errors import (
    AccessDenied,
    ConnectFailed,
    DamagedTask,
    DfagentError,
    DigestMismatch,
    Overloaded,
    SignedUrlExpired,
    Stalled,
    StoreBusy,
)
from dfagent.transports.base import Transport
from dfagent.transports.pressure import Pressure
from dfagent.types import Fetched, FetchRequest, Source

log = logging.getLogger("dfagent.transports")
_SHEDS_LOAD = (Overloaded, StoreBusy)
_ATTEMPTS_AT_WRONG_BYTES = 2
# Progress resets the count of failures; who lets a byte through each time is not to be asked for each byte.
_FAILURES_AT_MOST = 100
_WORTH_A_FAILURE = 4 << 20


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Full-jitter exponential backoff; `first_pause` and `longest_pause` in seconds.

    Load shedding gets more attempts than failures do: it says "later", not "broken". Where another transport can take
    over, waiting for a second stall is not worth it: `after_stall` False. Wrong bytes get one more attempt: who sends
    them twice will go on, and each attempt is a whole download.
    """

    attempts: int = 4
    overloaded_attempts: int = 20
    first_pause: float = 0.5
    longest_pause: float = 15.0
    after_stall: bool = True

    def pause(self, failures: int, error: DfagentError) -> float:
        ceiling: float = min(self.longest_pause, self.first_pause * 2 ** (failures - 1))
        wanted = error.retry_after if isinstance(error, Overloaded) else None
        # On top of what was asked for: a busy server tells all of us the same, and would meet all of us again at once.
        return min(wanted or 0.0, self.longest_pause * 4 - ceiling) + random.uniform(ceiling / 2, ceiling)

    def allows(self, failures: int, error: DfagentError) -> bool:
        if isinstance(error, Stalled) and not self.after_stall:
            return False
        limit = self.overloaded_attempts if isinstance(error, _SHEDS_LOAD) else self.attempts
        if isinstance(error, (DigestMismatch, DamagedTask)):
            limit = min(limit, _ATTEMPTS_AT_WRONG_BYTES)
        return error.retryable and failures < limit


class Retrying:
    """A transport that tries another one again.

    An expired signature is no failure as long as bytes came through since the last one; without progress it is tried
    once more and then becomes `AccessDenied`. `pressure` is told of load that is shed and of objects that came through.
    """

    def __init__(self, inner: Transport, policy: RetryPolicy | None = None, pressure: Pressure | None = None) -> None:
        self._inner = inner
        self._policy = policy or RetryPolicy()
        self._pressure = pressure

    @property
    def name(self) -> str:
        return self._inner.name

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def fetch(self, request: FetchRequest, folder: Path | None) -> Fetched:
        attempts = failures = fruitless_signatures = furthest = lost = 0
        most = _FAILURES_AT_MOST + request.entry.size // _WORTH_A_FAILURE
        began = False
        while True:
            attempts += 1
            attempt = _Attempt(request)
            try:
                fetched = await self._inner.fetch(attempt.request, folder)
                if self._pressure:
                    self._pressure.came()
                return replace(fetched, attempts=attempts, source=_honest(fetched.source, began))
            except SignedUrlExpired as exc:
                attempt.take_back()
                fruitless_signatures = 0 if attempt.counted > furthest else fruitless_signatures + 1
                if fruitless_signatures > 1:
                    raise AccessDenied(exc.message, hint=exc.hint) from exc
                log.info("%s: signing again: %s", request.label, exc.message)
            except DfagentError as exc:
                attempt.take_back()
                if self._pressure and isinstance(exc, _SHEDS_LOAD):
                    self._pressure.refused()
                began = began or not isinstance(exc, (*_SHEDS_LOAD, ConnectFailed))
                failures = 1 if attempt.counted > furthest else failures + 1
                lost += 1
                if lost > most or not self._policy.allows(failures, exc):
                    raise
                pause = self._policy.pause(failures, exc)
                log.warning("%s: trying again in %.1f s: %s", request.label, pause, exc.message)
                await asyncio.sleep(pause)
            furthest = max(furthest, attempt.counted)


def _honest(source: Source, began: bool) -> Source:
    """The source, unless an attempt that failed may have brought the bytes that a later one found at a peer."""
    return source if not began or source in (Source.COLD, Source.DIRECT) else Source.UNKNOWN


class _Attempt:
    """Counts one attempt's bytes, so that a failed one can be taken back from the progress."""

    def __init__(self, request: FetchRequest) -> None:
        self._report = request.on_progress
        self.counted = 0
        self.request = replace(request, on_progress=self._count)

    def _count(self, count: int) -> None:
        self.counted += count
        self._report(count)

    def take_back(self) -> None:
        self._report(-self.counted)
