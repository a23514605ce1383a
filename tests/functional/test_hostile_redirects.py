"""A store that redirects a signed request elsewhere: neither credentials nor signatures follow, and nothing loops."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse, HeadersDict

from dfagent.errors import ConfigError, StoreError
from dfagent.settings.credentials import S3Credential
from dfagent.stores.s3 import S3Store
from dfagent.stores.url import parse_repository_url
from dfagent.types import ObjectEntry, ObjectRef
from tests.servers.canned import CannedHttp, http_answer

STATUSES = [300, 301, 302, 307, 308]
REGIONS = ["", "eu-west-1", "evil.example.com/", "-", "1234", "a" * 64]


def opened(url: str) -> S3Store:
    credential = S3Credential.model_validate({"key_id": "K", "secret_key": "S"})
    return S3Store(parse_repository_url(url), credential, connect_timeout=2, read_timeout=5)


async def listing(store: S3Store) -> None:
    url = parse_repository_url("s3://http://unused:1/bkt/m")
    async for _ in store.list(url):
        pass


async def checksum(store: S3Store) -> None:
    await store.checksum(ObjectEntry(ObjectRef("s3", "h", "bkt", "m/a"), 7, '"e"'))


Ask = Callable[[S3Store], Awaitable[None]]


def error_page(endpoint: str, region: str) -> bytes:
    """What AWS answers where the bucket is elsewhere, with a host and a region of the server's choice."""
    inner = f"<Code>PermanentRedirect</Code><Endpoint>{endpoint}</Endpoint><Region>{region}</Region>"
    return f"<Error>{inner}<Message>elsewhere</Message></Error>".encode()


@pytest.mark.parametrize("ask", [listing, checksum])
@pytest.mark.parametrize(
    ("status", "region"), [*((status, "") for status in STATUSES), *((307, region) for region in REGIONS[1:])]
)
async def test_no_redirect_is_followed(status: int, region: str, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host that Location and the error page name is never asked, and the redirecting one only a few times."""
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda _seconds: None)
    async with CannedHttp(http_answer(200)) as other:
        body = error_page(other.url.removeprefix("http://"), region) if ask is listing else b""
        more = {"x_amz_bucket_region": region} if region else {}
        redirect = http_answer(status, body, Location=f"{other.url}/bkt?signed", Content_Type="application/xml", **more)
        async with CannedHttp(redirect) as first:
            store = opened(f"s3://{first.url}/bkt/m")
            with pytest.raises(StoreError) as caught:
                await ask(store)
            await store.aclose()
            assert len(first.heads) <= 3
        assert other.heads == []
    assert caught.value.hint and caught.value.exit_code == 3
    assert str(caught.value).isprintable() and "signed" not in caught.value.message


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("ask", [listing, checksum])
async def test_a_see_other_is_not_followed_either(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """This one the SDK's HTTP client refuses, and leaves its connection to the garbage collector."""
    await test_no_redirect_is_followed(303, "", ask, monkeypatch)
    gc.collect()


@pytest.mark.parametrize("status", [301, 302, 307])
async def test_a_redirect_without_a_region_is_told_with_its_host(status: int) -> None:
    """At once: the SDK would ask the redirecting server for the region, eighty times in a recursion."""
    async with CannedHttp(http_answer(status, b"", Location="https://evil.example.com:1/b?token=hush")) as first:
        store = opened(f"s3://{first.url}/bkt/m")
        with pytest.raises(StoreError, match=rf"was redirected to https://evil.example.com:1 \({status}\)") as caught:
            await listing(store)
        await store.aclose()
        assert len(first.heads) == 1
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("location", ["", "//evil", "javascript:x", "http://u:p@evil/", "http://e/\x9b2J"])
async def test_a_location_can_be_anything(location: str) -> None:
    """It is shown only where it is a plain host."""
    async with CannedHttp(http_answer(302, b"", Location=location)) as first:
        store = opened(f"s3://{first.url}/bkt/m")
        with pytest.raises(StoreError, match="was redirected") as caught:
            await listing(store)
        await store.aclose()
    assert str(caught.value).isprintable() and "u:p" not in str(caught.value)


@pytest.mark.parametrize("ask", [listing, checksum])
async def test_a_region_that_can_be_none_is_the_stores_fault(ask: Ask) -> None:
    """Not a `ConfigError`, which would end `serve`."""
    page = error_page("h", "evil.example.com/").replace(b"PermanentRedirect", b"AuthorizationHeaderMalformed")
    answer = http_answer(400, page if ask is listing else b"", x_amz_bucket_region="evil.example.com/")
    async with CannedHttp(answer) as first:
        store = opened(f"s3://{first.url}/bkt/m")
        with pytest.raises(StoreError, match="region that can be none") as caught:
            await ask(store)
        await store.aclose()
    assert not isinstance(caught.value, ConfigError)


@pytest.mark.parametrize("ask", [listing, checksum])
@pytest.mark.parametrize(
    "region", [*REGIONS, "eu-west-1.evil.example.com", "x@evil.example.com", "s3.evil.example.com#"]
)
async def test_at_aws_a_redirect_leads_to_aws_only(region: str, ask: Ask) -> None:
    """There the SDK follows to the region that the answer names; whatever is named, the host stays Amazon's.

    Nobody answers as Amazon here, so the SDK's own hook before sending does.
    """
    asked: list[str] = []

    def answer(request: Any, **_: Any) -> Any:
        asked.append(request.url)
        headers: Any = HeadersDict({"x-amz-bucket-region": region, "location": "https://evil.example.com/"})
        page = b"" if ask is checksum else error_page("evil.example.com", region)
        return AWSResponse(request.url, 301, headers, SimpleNamespace(stream=lambda: iter([page])))

    store = opened("s3://bkt/m")
    connection = await store._connected()
    connection.client.meta.events.register("before-send.s3", answer)
    with pytest.raises(StoreError):
        await ask(store)
    await store.aclose()
    hosts = {url.split("/")[2] for url in asked}
    assert hosts <= {"bkt.s3.amazonaws.com", "bkt.s3.eu-west-1.amazonaws.com"}
    assert len(asked) <= 3 and (region != "eu-west-1" or len(hosts) == 2)
