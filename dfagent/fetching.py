"""Turns listed objects into fetch requests, and keeps the number of those in flight bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dfagent.stores.base import Store
from dfagent.transports.base import Transport
from dfagent.types import Fetched, FetchRequest, ObjectEntry, SignedUrl, TaskIdentity


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Fetches one store's objects by one transport; `isolation` is part of every task's identity.

    `limit` is shared by all models of all passes: dfdaemon sheds load above a few dozen requests in flight.
    """

    store: Store
    transport: Transport
    limit: asyncio.Semaphore
    isolation: str = ""

    def task(self, entry: ObjectEntry) -> TaskIdentity:
        return TaskIdentity.of(entry, self.isolation)

    def request(self, label: str, entry: ObjectEntry, on_progress: Callable[[int], None]) -> FetchRequest:
        async def sign() -> SignedUrl:
            return await self.store.sign(entry)

        return FetchRequest(entry, self.task(entry), sign, label, on_progress)

    async def fetch(self, request: FetchRequest, folder: Path | None) -> Fetched:
        async with self.limit:
            return await self.transport.fetch(request, folder)
