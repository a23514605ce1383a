"""What every store must do, proved against a real server that checks signatures.

A further store joins by a `Subject` of its own in `SUBJECTS`.
"""

from __future__ import annotations

import logging
import traceback
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any, Protocol

import aiohttp
import pytest
from yarl import URL

from dfagent.errors import AccessDenied, DfagentError, NotFound, StoreUnavailable
from dfagent.settings.credentials import CloudCredentials
from dfagent.stores.base import Store
from dfagent.stores.registry import open_store
from dfagent.types import ObjectEntry, RepositoryUrl, SignedUrl, TaskIdentity
from tests.servers.gate import Gate

WRONG_SECRET = "not-the-secret-at-all"
# No backslash: the local server stores it as a slash.
ODD_NAMES = (
    "empty", "with space", " leading and trailing ", "a+b", "a&b=c", "100%", "%41", "what?", "sharp#", "til~de",
    "it's", "(round)", "[square]", "{curly}", "star*", "bang!", "com,ma;semi:at@", "caret^pipe|tick`quote\"",
    "ünïcödé-日本-🦊", "a//b", "trailing.",
)  # fmt: skip


class Subject(Protocol):
    """One store with its real server: how to fill a folder of its own there, and how to open it rightly and wrongly."""

    @property
    def secret(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def page_size(self) -> int: ...

    def key(self, name: str) -> str: ...
    def put(self, name: str, content: bytes) -> None: ...
    def url(self, name: str = "", endpoint: str = "") -> RepositoryUrl: ...
    def open(self, url: RepositoryUrl | None = None, **credential: Any) -> Store: ...


class S3Subject:
    """S3, as the local server speaks it."""

    page_size = 1000

    def __init__(self, server: Any, bucket: str) -> None:
        self.server = server
        self.bucket = bucket
        self.client = server.client()
        self.folder = uuid.uuid4().hex
        self.secret = str(server.secret_key)
        self.port = int(URL(server.endpoint).port or 0)

    def key(self, name: str) -> str:
        return f"{self.folder}/{name}".rstrip("/")

    def put(self, name: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=f"{self.folder}/{name}", Body=content)

    def url(self, name: str = "", endpoint: str = "") -> RepositoryUrl:
        return RepositoryUrl("s3", endpoint or self.server.endpoint, self.bucket, self.key(name))

    def open(self, url: RepositoryUrl | None = None, **credential: Any) -> Store:
        options = {name: credential.pop(name) for name in ("ttl", "checksums") if name in credential}
        entry = {"key_id": self.server.access_key, "secret_key": self.secret, **credential}
        file = CloudCredentials.model_validate({"s3": {"": entry}})
        return open_store(url or self.url(), file, connect_timeout=2, read_timeout=20, **options)


SUBJECTS: dict[str, Callable[[pytest.FixtureRequest], Subject]] = {
    "s3": lambda request: S3Subject(request.getfixturevalue("s3_server"), request.getfixturevalue("bucket")),
}


@pytest.fixture(params=sorted(SUBJECTS))
def subject(request: pytest.FixtureRequest) -> Subject:
    return SUBJECTS[request.param](request)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def listed(store: Store, url: RepositoryUrl) -> list[ObjectEntry]:
    return [entry async for entry in store.list(url)]


async def names(subject: Subject, store: Store, url: RepositoryUrl) -> list[str]:
    return [entry.ref.key.removeprefix(subject.key("") + "/") for entry in await listed(store, url)]


async def get(http: aiohttp.ClientSession, signed: SignedUrl, **headers: str) -> tuple[int, bytes]:
    async with http.get(URL(signed.url, encoded=True), headers={**signed.headers, **headers}) as answer:
        return answer.status, await answer.read()


async def one(subject: Subject, name: str = "model/1/model.onnx", content: bytes = b"weights") -> ObjectEntry:
    subject.put(name, content)
    entries = await listed(subject.open(), subject.url(name))
    assert [entry.ref.key for entry in entries] == [subject.key(name)]
    return entries[0]


async def test_listing_goes_past_one_page_with_one_request_a_page(subject: Subject) -> None:
    """A thousand keys a page, nothing asked per file (TC#225: files past 1,000 were missing)."""
    wanted = [f"many/{number:05}" for number in range(2 * subject.page_size + 1)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: subject.put(name, b""), wanted))
    async with Gate(subject.port) as gate:
        url = subject.url("many", gate.endpoint)
        assert await names(subject, subject.open(url), url) == wanted
        assert len(gate.heads) == 3


async def test_a_prefix_ends_at_a_slash(subject: Subject) -> None:
    """`foo` never takes `foo-hf/` or `foo.txt` along (K#3776)."""
    for name in ("foo/config.pbtxt", "foo/1/model.onnx", "foo-hf/config.pbtxt", "foo.txt", "fo"):
        subject.put(name, b"x")
    found = await names(subject, subject.open(), subject.url("foo"))
    assert found == ["foo/1/model.onnx", "foo/config.pbtxt"]


async def test_a_url_may_name_a_single_object(subject: Subject) -> None:
    """Found by one request more, and never by a sibling's name."""
    for name in ("solo/model.onnx", "solo/model.onnx.bak"):
        subject.put(name, b"x")
    async with Gate(subject.port) as gate:
        url = subject.url("solo/model.onnx", gate.endpoint)
        assert await names(subject, subject.open(url), url) == ["solo/model.onnx"]
        assert len(gate.heads) == 2
    assert await names(subject, subject.open(), subject.url("solo/model.on")) == []


async def test_an_empty_prefix_lists_the_bucket_and_an_absent_one_nothing(subject: Subject) -> None:
    """Neither is an error of the store's."""
    subject.put("a", b"1")
    subject.put("b/c", b"22")
    bucket = replace(subject.url(), prefix="")
    sizes = {entry.ref.key: entry.size for entry in await listed(subject.open(), bucket)}
    assert (sizes[subject.key("a")], sizes[subject.key("b/c")]) == (1, 2)
    assert await names(subject, subject.open(), subject.url("absent")) == []


async def test_folder_markers_are_listed_but_the_prefix_s_own(subject: Subject) -> None:
    """An ensemble's version folder has nothing else in it, and Triton wants it."""
    for name in ("marked/", "marked/ensemble/1/"):
        subject.put(name, b"")
    subject.put("marked/ensemble/config.pbtxt", b"x")
    found = await names(subject, subject.open(), subject.url("marked"))
    assert found == ["marked/ensemble/1/", "marked/ensemble/config.pbtxt"]


async def test_a_marker_of_the_prefix_alone_is_nothing(subject: Subject) -> None:
    """It costs the one request that looks for a single object, and does not hide it."""
    subject.put("bare/", b"")
    async with Gate(subject.port) as gate:
        url = subject.url("bare", gate.endpoint)
        assert await names(subject, subject.open(url), url) == []
        assert len(gate.heads) == 2


@pytest.mark.parametrize("name", ODD_NAMES)
async def test_odd_keys_are_listed_signed_and_fetched(subject: Subject, http: aiohttp.ClientSession, name: str) -> None:
    """Whatever stands in a key, its signed URL brings its bytes."""
    content = b"" if name == "empty" else f"bytes of {name}".encode()
    entry = await one(subject, f"odd/{name}", content)
    assert entry.size == len(content)
    assert await get(http, await subject.open().sign(entry)) == (200, content)


async def test_the_signed_url_takes_ranges_and_pins(subject: Subject, http: aiohttp.ClientSession) -> None:
    """dfdaemon rewrites Range and adds If-Match: neither may be part of the signature."""
    entry = await one(subject)
    signed = await subject.open().sign(entry)
    assert await get(http, signed, Range="bytes=1-3") == (206, b"eig")
    assert await get(http, signed, **entry.pin_headers) == (200, b"weights")
    status, _ = await get(http, signed, **{"If-Match": '"0123456789abcdef0123456789abcdef"'})
    assert status == 412


async def test_an_overwritten_object_has_another_version_and_task(
    subject: Subject, http: aiohttp.ClientSession
) -> None:
    """The old pin no longer opens the object, and the new listing is a new task."""
    old = await one(subject, "again", b"one")
    new = await one(subject, "again", b"two")
    assert TaskIdentity.of(old) != TaskIdentity.of(new)
    status, _ = await get(http, await subject.open().sign(old), **old.pin_headers)
    assert status == 412


async def test_two_listings_and_two_signatures_make_one_task(subject: Subject) -> None:
    """A task is the object's name and version, whoever signs in whatever region."""
    entry = await one(subject)
    elsewhere = subject.open(region="eu-central-1")
    again = (await listed(elsewhere, subject.url("model/1/model.onnx")))[0]
    assert TaskIdentity.of(entry) == TaskIdentity.of(again)
    assert (await subject.open().sign(entry)).url != (await elsewhere.sign(entry)).url


async def test_an_expired_url_is_refused(subject: Subject, http: aiohttp.ClientSession) -> None:
    """The store agrees with `expires_at`."""
    entry = await one(subject)
    signed = await subject.open(ttl=timedelta(seconds=1)).sign(entry)
    deadline = signed.expires_at + timedelta(seconds=10)
    statuses = [200]
    while statuses[-1] == 200 and datetime.now(timezone.utc) < deadline:
        statuses.append((await get(http, signed))[0])
    assert statuses[-1] == 403
    assert datetime.now(timezone.utc) >= signed.expires_at


async def test_a_tampered_url_is_refused(subject: Subject, http: aiohttp.ClientSession) -> None:
    """A signature opens its own object only."""
    entry = await one(subject)
    await one(subject, "other", b"secret weights")
    signed = await subject.open().sign(entry)
    moved = signed.url.replace(entry.ref.key, subject.key("other"))
    assert moved != signed.url
    status, _ = await get(http, SignedUrl(moved, signed.expires_at, signed.signing_params))
    assert status == 403


async def test_wrong_secret_is_access_denied_with_the_stores_reason(subject: Subject) -> None:
    """The hint speaks of the secret, which is not shown."""
    with pytest.raises(AccessDenied, match="SignatureDoesNotMatch") as caught:
        await listed(subject.open(secret_key=WRONG_SECRET), subject.url())
    assert "secret_key does not belong to key_id" in caught.value.hint
    assert WRONG_SECRET not in str(caught.value)


async def test_unknown_key_is_access_denied_with_another_hint(subject: Subject) -> None:
    """A key of another store is not a wrong secret."""
    with pytest.raises(AccessDenied, match="InvalidAccessKeyId") as caught:
        await listed(subject.open(key_id="NOSUCHKEY"), subject.url())
    assert "check key_id" in caught.value.hint


async def test_an_absent_bucket_is_not_found(subject: Subject) -> None:
    """Not an empty repository."""
    url = replace(subject.url(), bucket="no-such-bucket-here")
    with pytest.raises(NotFound, match="NoSuchBucket"):
        await listed(subject.open(url), url)


async def test_a_dead_endpoint_is_unavailable_and_retryable(subject: Subject, unused_tcp_port: int) -> None:
    """The error names where nothing answers."""
    url = subject.url("", f"http://127.0.0.1:{unused_tcp_port}")
    with pytest.raises(StoreUnavailable, match=f"nothing answers at http://127.0.0.1:{unused_tcp_port}") as caught:
        await listed(subject.open(url), url)
    assert caught.value.retryable


async def test_tls_to_a_plain_port_is_a_tls_problem(subject: Subject) -> None:
    """Not reported as a matter of credentials (T#4702), nor retried."""
    url = subject.url("", f"https://127.0.0.1:{subject.port}")
    with pytest.raises(DfagentError, match="TLS with the store failed") as caught:
        await listed(subject.open(url), url)
    assert "for plain HTTP write s3://http://host:port/" in caught.value.hint
    assert not caught.value.retryable


async def test_nothing_secret_reaches_logs_or_errors(subject: Subject, caplog: pytest.LogCaptureFixture) -> None:
    """At DEBUG on the root logger, through right and wrong use, tracebacks included."""
    entry = await one(subject)
    for name in ("boto3", "botocore", "urllib3"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    caplog.set_level(logging.DEBUG)
    store = subject.open()
    signed = await store.sign(entry)
    texts = [repr(signed), str(signed), repr(store)]
    for wrong in (subject.open(secret_key=WRONG_SECRET), subject.open(key_id="NOSUCHKEY")):
        with pytest.raises(AccessDenied) as caught:
            await listed(wrong, subject.url())
        texts += [str(caught.value), caught.value.hint, *traceback.format_exception(caught.value)]
    texts += [record.getMessage() for record in caplog.records]
    signature = signed.url.rsplit("=", 1)[1]
    for text in texts:
        for forbidden in (subject.secret, signature, "X-Amz-Signature", "AWS4-HMAC-SHA256", WRONG_SECRET):
            assert forbidden not in text


async def test_the_credential_is_named_by_its_public_part(subject: Subject) -> None:
    """It tells credentials apart where tasks are isolated, and is no secret."""
    assert await subject.open(key_id="AKPUBLIC").credential_id() == "AKPUBLIC"
