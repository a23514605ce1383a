"""Requests in flight are bounded, whoever asks."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

from dfagent.fetching import Fetcher
from dfagent.stores.base import Store
from dfagent.types import Fetched, FetchRequest, ObjectEntry, ObjectRef, Source, Traffic


class Counting:
    """A transport that keeps every request until it is told to go on."""

    name = "counting"

    def __init__(self) -> None:
        self.in_flight = self.most = 0
        self.go_on = asyncio.Event()

    async def aclose(self) -> None: ...

    async def fetch(self, _request: FetchRequest, _folder: Path | None) -> Fetched:
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        await self.go_on.wait()
        self.in_flight -= 1
        return Fetched(None, self.name, Source.DIRECT, Traffic(), 0.0, 0.0)


async def should_never_have_more_requests_in_flight_than_the_limit() -> None:
    transport = Counting()
    fetcher = Fetcher(cast(Store, None), transport, asyncio.Semaphore(3))
    entry = ObjectEntry(ObjectRef("s3", "host", "bucket", "key"), 1, '"etag"')
    request = fetcher.request("key", entry, lambda _count: None)
    tasks = [asyncio.create_task(fetcher.fetch(request, None)) for _ in range(8)]
    for _ in range(8):
        await asyncio.sleep(0)
    transport.go_on.set()
    await asyncio.gather(*tasks)
    assert transport.most == 3
