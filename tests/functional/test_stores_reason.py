"""What the store itself says, where it says it badly or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timezone

import pytest

from dfagent.errors import StoreUnavailable
from dfagent.transports.direct import DirectTransport
from dfagent.transports.options import RequestOptions, Timeouts
from dfagent.types import FetchRequest, ObjectEntry, ObjectRef, SignedUrl, TaskIdentity
from tests.servers.scripted import ETAG, Reply, Scripted, good_store

TIMEOUTS = Timeouts(connect=5.0, stall=20.0)
DENIED = b"<Error><Code>AccessDenied</Code><Message>No</Message></Error>"


def request(url: str) -> FetchRequest:
    entry = ObjectEntry(ObjectRef("s3", "store.test", "bucket", "key"), 8, ETAG)

    async def sign() -> SignedUrl:
        return SignedUrl(f"{url}/k?X-Amz-Signature=5ec7e7", datetime.now(timezone.utc), (), {"X-Signed": "1"})

    return FetchRequest(entry, TaskIdentity.of(entry), sign, "net/1/key")


@asynccontextmanager
async def direct() -> AsyncIterator[DirectTransport]:
    transport = DirectTransport(RequestOptions(headers={"X-Team": "vision"}), TIMEOUTS)
    try:
        yield transport
    finally:
        await transport.aclose()


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(403, DENIED), "403 AccessDenied: No"),
        (Reply(412), "412"),
        (Reply(500, b"<html>oops</html>"), "500"),
        (Reply(301, DENIED, {"Location": "http://127.0.0.1:1/"}), "301 AccessDenied: No"),
        (Reply(206, b"w"), ""),
        (Reply(200, b"weights!"), ""),
        (Reply(416, DENIED), ""),
        (Reply(403, DENIED, length=len(DENIED) + 5), "403 AccessDenied: No"),
    ],
)
async def should_be_asked_for_by_a_signed_request_of_one_byte(reply: Reply, reason: str) -> None:
    async with Scripted(lambda _asked: reply) as store, direct() as transport:
        assert await transport.reason(request(store.url)) == reason
    (asked,) = store.asked
    assert asked.target == "/k?X-Amz-Signature=5ec7e7"
    assert asked.range == (0, 0)
    assert (asked.headers["if-match"], asked.headers["x-signed"], asked.headers["x-team"]) == (ETAG, "1", "vision")


async def should_be_nothing_where_nobody_can_be_asked(unused_address: tuple[str, int]) -> None:
    async def unsigned() -> SignedUrl:
        raise StoreUnavailable("no credentials")

    async with direct() as transport:
        assert await transport.reason(request("http://{}:{}".format(*unused_address))) == ""
        assert await transport.reason(replace(request(""), sign=unsigned)) == ""


async def should_be_read_to_a_bound_and_no_longer_than_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """The status is worth more than its text: an endless or a hanging page hides no refusal."""
    monkeypatch.setattr("dfagent.transports.http._ERROR_BODY_SECONDS", 0.1)
    hanging = asyncio.Event()
    async with Scripted(good_store(b"")) as store, direct() as transport:
        store.answer = lambda _asked: Reply(403, DENIED, length=10**9, hold=hanging.wait)
        assert await transport.reason(request(store.url)) == "403 AccessDenied: No"
        hanging.set()
        store.answer = lambda _asked: Reply(403, b"x" * 5000 + DENIED)
        assert await transport.reason(request(store.url)) == "403"
