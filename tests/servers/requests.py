"""Fetch requests for tests of what stands around a transport: nothing is signed for real."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone

from dfagent.types import FetchRequest, ObjectEntry, ObjectRef, SignedUrl, TaskIdentity


def request_for(size: int, on_progress: Callable[[int], None] = lambda _count: None) -> FetchRequest:
    """A request for an object of that size at a host that nobody asks."""
    entry = ObjectEntry(ObjectRef("s3", "host", "bucket", "key"), size, '"etag"')

    async def sign() -> SignedUrl:
        return SignedUrl("http://host/key", datetime.now(timezone.utc), ())

    return FetchRequest(entry, TaskIdentity.of(entry), sign, "key", on_progress)
