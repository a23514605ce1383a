"""Turns listed objects into fetch requests, and keeps the number of those in flight bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dfagent.stores.base import Store
from dfagent.transports.base import Transport
from dfagent.types import Checksum, Fetched, FetchRequest, ObjectEntry, SignedUrl, TaskIdentity


class KnownChecksums(Protocol):
    """What the store was heard to say before; called from threads."""

    def checksum(self, task_id: str) -> Checksum | None: ...


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Fetches one store's objects by one transport; `isolation` is part of every task's identity.

    `limit` is shared by all models of all passes: dfdaemon sheds load above a few dozen requests in flight. `known`
    saves the question for checksums of versions that were fetched before. `copies` tells by an object's size whether a
    file of our own will hold it, so that room is needed for it; what dfdaemon links takes none.
    """

    store: Store
    transport: Transport
    limit: AbstractAsyncContextManager[object]
    isolation: str = ""
    known: KnownChecksums | None = None
    copies: Callable[[int], bool] = lambda _size: True

    def task(self, entry: ObjectEntry) -> TaskIdentity:
        return TaskIdentity.of(entry, self.isolation)

    def request(self, label: str, entry: ObjectEntry, on_progress: Callable[[int], None]) -> FetchRequest:
        async def sign() -> SignedUrl:
            return await self.store.sign(entry)

        task = self.task(entry)
        return FetchRequest(entry, task, sign, label, on_progress, self._asked_once(task, entry))

    def _asked_once(self, task: TaskIdentity, entry: ObjectEntry) -> Callable[[], Awaitable[Checksum | None]]:
        answers: list[Checksum | None] = []

        async def expected() -> Checksum | None:
            if not answers:
                known = await asyncio.to_thread(self.known.checksum, task.id) if self.known else None
                answers.append(known or await self.store.checksum(entry))
            return answers[0]

        return expected

    async def fetch(self, request: FetchRequest, folder: Path | None) -> Fetched:
        async with self.limit:
            return await self.transport.fetch(request, folder)
