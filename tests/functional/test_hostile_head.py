"""What a store may answer to the HEAD that asks for a checksum: an honest checksum, none, or one typed error."""

from __future__ import annotations

import hashlib
import logging

import pytest

from dfagent.errors import Changed, NotFound, StoreError, StoreUnavailable
from dfagent.settings.credentials import S3Credential
from dfagent.stores.s3 import S3Store
from dfagent.stores.url import parse_repository_url
from dfagent.types import Checksum, ObjectEntry, ObjectRef
from tests.servers.canned import CannedHttp, http_answer

MD5 = hashlib.md5(b"weights", usedforsecurity=False).hexdigest()


def head(status: int = 200, etag: str = f'"{MD5}"', size: int = 7, **headers: str) -> bytes:
    return http_answer(status, b"", ETag=etag, Content_Length=str(size), **headers)


async def asked(server: CannedHttp, times: int = 1, etag: str = f'"{MD5}"') -> list[Checksum | None]:
    store = S3Store(
        parse_repository_url(f"s3://{server.url}/bkt"),
        S3Credential.model_validate({"key_id": "K", "secret_key": "S"}),
        connect_timeout=2,
        read_timeout=5,
    )
    entry = ObjectEntry(ObjectRef("s3", server.url.removeprefix("http://"), "bkt", "m/a"), 7, etag)
    try:
        return [await store.checksum(entry) for _ in range(times)]
    finally:
        await store.aclose()


@pytest.mark.parametrize(("status", "kind"), [(412, Changed), (404, NotFound)])
async def test_a_final_answer_is_one_typed_error(status: int, kind: type[StoreError]) -> None:
    """One sentence that names the object, and nothing is asked again."""
    async with CannedHttp(http_answer(status, Location="http://127.0.0.1:1/")) as server:
        with pytest.raises(kind) as caught:
            await asked(server)
        assert len([line for line in server.heads if line.startswith("HEAD /bkt/m/a")]) == 1
    assert type(caught.value) is kind and not caught.value.retryable
    assert "/bkt/m/a" in caught.value.message


@pytest.mark.parametrize("status", [500, 503, 504, 429])
async def test_a_busy_store_is_unavailable_and_retryable(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not taken for a store without checksums: that would publish unverified bytes."""
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda _seconds: None)
    async with CannedHttp(http_answer(status)) as server:
        with pytest.raises(StoreUnavailable, match=str(status)):
            await asked(server)
        assert len(server.heads) <= 3


@pytest.mark.parametrize("status", [400, 401, 403, 405, 501])
async def test_a_refused_head_tells_nothing_and_is_told_once(status: int, caplog: pytest.LogCaptureFixture) -> None:
    """Policies and gateways refuse HEAD of what they serve; the GET tells the truth."""
    caplog.set_level(logging.WARNING)
    async with CannedHttp(http_answer(status)) as server:
        assert await asked(server, times=3) == [None, None, None]
    (record,) = caplog.records
    assert f"answered a HEAD with {status}" in record.getMessage()


async def test_an_if_match_that_the_store_ignores_is_changed() -> None:
    """Its checksum is of other bytes."""
    async with CannedHttp(head(etag='"other"', x_amz_checksum_crc32="GtJzWA==")) as server:
        with pytest.raises(Changed):
            await asked(server)


@pytest.mark.parametrize(("listed", "answered"), [('"e"', "e"), ("e", '"e"'), ('"e"', 'W/"e"')])
async def test_one_version_may_be_written_in_several_ways(listed: str, answered: str) -> None:
    """Gateways quote the ETag in one answer and not in the other."""
    async with CannedHttp(head(etag=answered, x_amz_checksum_crc32="GtJzWA==")) as server:
        assert await asked(server, etag=listed) == [Checksum("crc32", bytes.fromhex("1ad27358"))]


async def test_a_broken_checksum_is_passed_over() -> None:
    """As if it were not there."""
    async with CannedHttp(head(x_amz_checksum_crc32="?", x_amz_checksum_sha256="GtJzWA==")) as server:
        assert await asked(server) == [Checksum("md5", bytes.fromhex(MD5))]


@pytest.mark.parametrize("headers", [{"x_amz_mp_parts_count": "three"}, {"Last_Modified": "yesterday"}])
async def test_an_answer_that_the_sdk_can_not_read_is_a_store_error(headers: dict[str, str]) -> None:
    """Not the SDK's own exception."""
    async with CannedHttp(http_answer(200, b"", ETag=f'"{MD5}"', **headers)) as server:
        with pytest.raises(StoreError, match="is not S3's"):
            await asked(server)


@pytest.mark.parametrize(
    "second",
    [head(size=7), head(206, size=3, x_amz_mp_parts_count="3"), head(206, size=0), http_answer(416), http_answer(501)],
    ids=["whole", "other count", "empty", "416", "501"],
)
async def test_a_store_that_does_not_tell_the_size_of_parts_tells_no_checksum(second: bytes) -> None:
    """A guess would make right bytes look corrupt."""
    first = head(etag='"e"', x_amz_checksum_crc32="GtJzWA==-2")
    async with CannedHttp(first, second.replace(f'"{MD5}"'.encode(), b'"e"')) as server:
        assert await asked(server, etag='"e"') == [None]
        assert ["partNumber=1" in line for line in server.heads] == [False, True]


async def test_an_entry_without_an_etag_asks_nobody() -> None:
    """A folder marker has no bytes, and without a pin the answer could be of any version."""
    async with CannedHttp(head()) as server:
        assert await asked(server, etag="") == [None]
        assert not server.heads
