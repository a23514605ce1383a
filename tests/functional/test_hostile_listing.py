"""Listings that no honest S3 server gives: each ends as one sentence, never as a bucket that looks empty."""

from __future__ import annotations

import tracemalloc
from urllib.parse import parse_qs, urlsplit

import pytest

from dfagent.errors import ConfigError, NotFound, StoreBusy, StoreError
from dfagent.settings.credentials import S3Credential
from dfagent.stores.s3 import S3Store
from dfagent.stores.s3_listing import Listing
from dfagent.stores.url import parse_repository_url
from tests.servers.canned import CannedHttp, http_answer

OBJECT = "<Contents><Key>m/a</Key><Size>1</Size><ETag>&quot;e&quot;</ETag></Contents>"


def page(*inner: str, name: str = "b") -> bytes:
    listing = f"<ListBucketResult><Name>{name}</Name>{''.join(inner)}</ListBucketResult>"
    return http_answer(200, listing.encode(), Content_Type="application/xml")


def entry(key: str = "m/a", size: str = "1", etag: str = "e") -> bytes:
    return page(f"<Contents><Key>{key}</Key><Size>{size}</Size><ETag>{etag}</ETag></Contents>")


async def keys(server: CannedHttp, bucket: str = "b", **credential: str) -> list[str]:
    url = parse_repository_url(f"s3://{server.url}/{bucket}/m")
    settings = S3Credential.model_validate({"key_id": "K", "secret_key": "S", **credential})
    store = S3Store(url, settings, connect_timeout=2, read_timeout=5)
    try:
        return [found.ref.key async for found in store.list(url)]
    finally:
        await store.aclose()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (http_answer(200), "is not S3's"),
        (http_answer(200, b"<html><body>It works!</body></html>"), "is not S3's"),
        (http_answer(200, b"<!doctype html><p>It works!"), "is not S3's"),
        (http_answer(200, b"{}"), "is not S3's"),
        (page("<EncodingType>url</EncodingType><Contents><Size>1</Size></Contents>"), "is not S3's"),
        (page("<Contents><Size>1</Size><ETag>e</ETag></Contents>"), "an object with no key"),
        (page("<Contents><Key>m/a</Key><ETag>e</ETag></Contents>"), "'m/a' with no size"),
        (page("<Contents><Key>m/a</Key><Size>1</Size></Contents>"), "'m/a' with no ETag"),
        (entry(size="many"), "is not S3's"),
        (entry(size=""), "is not S3's"),
        (entry(size="9" * 5000), "is not S3's"),
        (entry(size="-1"), "'m/a' with a size that no object can have"),
        (entry(size=str(2**63)), "'m/a' with a size that no object can have"),
        (entry(etag="e&#10;X-Injected: 1"), "'m/a' with an ETag that no HTTP header can carry"),
        (entry(etag="\u00e9"), "an ETag that no HTTP header can carry"),
        (page("<IsTruncated>true</IsTruncated>", OBJECT), "has more pages, but no continuation token"),
        (
            page("<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>"),
            "repeats a continuation token",
        ),
        (
            page("<NextContinuationToken>t</NextContinuationToken>", OBJECT),
            "has a continuation token, but says that it is complete",
        ),
        (page("<KeyCount>2</KeyCount>", OBJECT), "counts 2 keys and holds 1"),
        (page("<Prefix>other</Prefix>", OBJECT), "is of the prefix 'other', which was not asked for"),
        (page("<Delimiter>/</Delimiter>", OBJECT), "obeys a Delimiter, which was not asked for"),
        (page("<StartAfter>m/0</StartAfter>", OBJECT), "obeys a StartAfter, which was not asked for"),
        (page(OBJECT, "<CommonPrefixes><Prefix>m/b/</Prefix></CommonPrefixes>"), "has folders in the place of objects"),
        (page(OBJECT, OBJECT), "has 'm/a' twice"),
        (page(OBJECT, OBJECT.replace("m/a", "mm/b")), "has 'mm/b', which is not below the prefix"),
        (page(OBJECT, name="another"), "is of the bucket 'another', which was not asked for"),
        (page("<Name>b</Name>", OBJECT), "says Name more than once"),
        (http_answer(400, b"<html><Error>odd</Error></html>"), "is not S3's"),
    ],
)
async def test_what_no_s3_server_answers_is_a_store_error(answer: bytes, says: str) -> None:
    """The sentence says what is wrong, on one line, with a hint."""
    async with CannedHttp(answer) as server:
        with pytest.raises(StoreError) as caught:
            await keys(server)
        assert len(server.heads) <= 2  # nothing is asked again
    assert says in caught.value.message
    assert caught.value.hint
    assert caught.value.exit_code == 3
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("body", [b"", b"<html><body>404</body></html>"])
async def test_a_plain_web_servers_404_is_readable(body: bytes) -> None:
    """It has no code and no message of S3's."""
    async with CannedHttp(http_answer(404, body)) as server:
        with pytest.raises(NotFound, match=r"ListObjectsV2 answered 404"):
            await keys(server)


async def test_the_largest_object_and_a_marker_without_an_etag_are_listed() -> None:
    """What is odd, but can be."""
    marker = "<Contents><Key>m/1/</Key><Size>0</Size></Contents>"
    largest = OBJECT.replace("<Size>1<", f"<Size>{2**63 - 1}<")
    async with CannedHttp(page(marker, largest)) as server:
        assert await keys(server) == ["m/1/", "m/a"]


async def test_an_alias_of_an_access_point_is_answered_with_the_buckets_own_name() -> None:
    """AWS does so; it is no contradiction."""
    async with CannedHttp(page(OBJECT)) as server:
        assert await keys(server, bucket="point-1234-s3alias") == ["m/a"]


async def test_pages_are_followed_by_their_tokens() -> None:
    """An empty page in the middle ends nothing."""
    more = "<IsTruncated>true</IsTruncated><NextContinuationToken>{}</NextContinuationToken>"
    async with CannedHttp(page(more.format("t1")), page(more.format("t2")), page(OBJECT)) as server:
        assert await keys(server) == ["m/a"]
        asked = [parse_qs(urlsplit(head.split()[1]).query) for head in server.heads]
    assert [query.get("continuation-token") for query in asked] == [None, ["t1"], ["t2"]]


async def test_a_region_that_can_be_none_is_not_blamed_on_the_url() -> None:
    """The hint names the key to correct; the value may be a secret in the wrong place."""
    async with CannedHttp(page(OBJECT)) as server:
        with pytest.raises(ConfigError, match="region") as caught:
            await keys(server, region="not a region!")
    assert '"region" in cloud_credential.json' in caught.value.hint
    assert "not a region!" not in str(caught.value)
    assert not server.heads


BUSY = http_answer(503, b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>")


@pytest.mark.parametrize("refusals", [5, 9])
async def test_a_store_that_asks_for_fewer_requests_is_asked_later(
    refusals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three attempts of the SDK are soon used up where many agents list at once; an end must be all the same."""
    monkeypatch.setattr("dfagent.stores.patience.PAUSES", (0.001, 0.001))
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda _seconds: None)
    async with CannedHttp(*[BUSY] * refusals, page(OBJECT)) as server:
        if refusals == 5:
            assert await keys(server) == ["m/a"]
        else:
            with pytest.raises(StoreBusy, match="SlowDown"):
                await keys(server)
        assert len(server.heads) == min(refusals + 1, 9)


async def test_a_listing_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong prefix of a huge bucket must not fill the memory; so many objects and no more are taken."""
    monkeypatch.setattr("dfagent.stores.s3_listing.MAX_OBJECTS", 3)
    more = "<IsTruncated>true</IsTruncated><NextContinuationToken>{}</NextContinuationToken>"
    pages = [page(more.format(number), OBJECT.replace("m/a", f"m/{number}")) for number in range(9)]
    async with CannedHttp(*pages) as server:
        with pytest.raises(StoreError, match="more than 3 objects") as caught:
            await keys(server)
        assert len(server.heads) == 4
    assert "is the prefix right?" in caught.value.hint
    async with CannedHttp(*pages[:2], page(OBJECT)) as server:
        assert await keys(server) == ["m/0", "m/1", "m/a"]


def test_an_entry_of_a_listing_takes_little_memory() -> None:
    """Nothing of the SDK's page is kept but name, size and ETag."""
    contents = [
        {"Key": f"models/net/1/{number:06}", "Size": number, "ETag": f'"{number:032x}"', "LastModified": object()}
        for number in range(1000)
    ]
    listing = Listing("store:1", "bucket")
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        entries = listing.entries({"Name": "bucket", "Contents": contents})
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(entries) == 1000 and taken < 250 * 1000
