"""Line breaks in a key, an ETag or a bucket add no header and no request to what is sent."""

from __future__ import annotations

import asyncio
from urllib.parse import unquote, urlsplit

import aiohttp
import pytest
from yarl import URL

from dfagent.errors import DfagentError
from dfagent.settings.credentials import S3Credential
from dfagent.stores.s3 import S3Store
from dfagent.stores.url import parse_repository_url
from dfagent.types import ObjectEntry, ObjectRef, TaskIdentity
from tests.servers.canned import CannedHttp, http_answer

BREAK = "a\r\nX-Injected: 1\r\n\r\nGET /injected HTTP/1.1\r\nHost: b\r\n\r\n"
BREAKS = [BREAK, BREAK.replace("\r", ""), BREAK.replace("\n", ""), "a\u2028X-Injected: 1", "a\x85X-Injected: 1", "a\0b"]


def opened(server: CannedHttp) -> S3Store:
    credential = S3Credential.model_validate({"key_id": "K", "secret_key": "S"})
    return S3Store(parse_repository_url(f"s3://{server.url}/bkt/m"), credential, connect_timeout=2, read_timeout=5)


def entry(bucket: str = "bkt", key: str = "m/a", etag: str = '"e"') -> ObjectEntry:
    return ObjectEntry(ObjectRef("s3", "store:1", bucket, key), 7, etag)


def assert_nothing_injected(server: CannedHttp) -> None:
    for head in server.heads:
        lines = head.split("\r\n")
        assert not any(line.lower().startswith(("x-injected", "get /injected")) for line in lines[1:]), head
        assert "\n" not in head.replace("\r\n", "") and "\r" not in head.replace("\r\n", "")
        assert lines[0].count(" ") == 2


@pytest.mark.parametrize("key", BREAKS)
async def test_a_key_is_one_path_in_every_request(key: str) -> None:
    """HEAD, and the signed GET as it is sent."""
    async with CannedHttp(http_answer(200, b"", ETag='"e"')) as server, aiohttp.ClientSession() as http:
        store = opened(server)
        await store.checksum(entry(key=key))
        signed = await store.sign(entry(key=key))
        async with http.get(URL(signed.url, encoded=True)) as answer:
            assert answer.status == 200
        await store.aclose()
        assert len(server.heads) == 2
        for head in server.heads:
            assert unquote(urlsplit(head.split(" ")[1]).path) == f"/bkt/{key}"
        assert_nothing_injected(server)


@pytest.mark.parametrize("text", BREAKS)
async def test_an_etag_or_a_bucket_with_a_line_break_is_refused_or_harmless(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No listing and no URL gives one; the SDK refuses them too."""
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda _seconds: None)
    async with CannedHttp(http_answer(200, b"", ETag='"e"')) as server:
        store = opened(server)
        for wrong in (entry(etag=text), entry(bucket=f"bkt{text}")):
            with pytest.raises(DfagentError) as caught:
                await store.checksum(wrong)
            assert str(caught.value).isprintable()
        await store.aclose()
        await asyncio.sleep(0)
        assert_nothing_injected(server)


@pytest.mark.parametrize("text", BREAKS)
def test_an_identity_is_one_line_of_ascii(text: str) -> None:
    """It travels in a header of Dragonfly's, and stands in records."""
    for odd in (entry(bucket=text), entry(key=text), entry(etag=text)):
        content = TaskIdentity.of(odd).content
        assert content.isascii() and content.isprintable() and " " not in content
