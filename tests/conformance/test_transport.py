"""What every transport must do, whichever way the bytes come: one suite, three implementations, a real S3 server."""

from __future__ import annotations

import asyncio
import gzip
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from dfagent.errors import AccessDenied, Changed, ConfigError, ConnectFailed, DfagentError, NotFound, Stalled, Truncated
from dfagent.local.dragonfly import DragonflyCluster
from dfagent.local.object_store import S3Server
from dfagent.settings.credentials import S3Credential
from dfagent.stores.s3 import S3Store
from dfagent.transports.base import Transport
from dfagent.transports.dfdaemon import DfdaemonTransport
from dfagent.transports.direct import DirectTransport
from dfagent.transports.options import RequestOptions, Timeouts
from dfagent.transports.proxy import ProxyTransport
from dfagent.transports.retrying import Retrying, RetryPolicy
from dfagent.types import FetchRequest, ObjectEntry, ObjectRef, RepositoryUrl, SignedUrl, TaskIdentity
from tests.servers.gate import Gate

MIB = 1 << 20
IMPATIENT = Timeouts(connect=2.0, stall=2.0)
PATIENT = Timeouts(connect=5.0, stall=30.0)
QUICK = RetryPolicy(first_pause=0.05, longest_pause=0.2)
MakeTransport = Callable[..., Transport]


@dataclass
class Origin:
    """A bucket behind a gate, and requests for its objects."""

    server: S3Server
    bucket: str
    gate: Gate

    def put(self, key: str, data: bytes, **fields: Any) -> ObjectEntry:
        etag = self.server.client().put_object(Bucket=self.bucket, Key=key, Body=data, **fields)["ETag"]
        ref = ObjectRef("s3", f"127.0.0.1:{self.gate.port}", self.bucket, key)
        return ObjectEntry(ref, len(data), etag)

    def request(self, entry: ObjectEntry, secret: str | None = None, **changes: Any) -> FetchRequest:
        credential = S3Credential.model_validate(
            {"key_id": self.server.access_key, "secret_key": secret or self.server.secret_key}
        )
        store = S3Store(RepositoryUrl("s3", self.gate.endpoint, self.bucket, ""), credential)

        async def sign() -> SignedUrl:
            return await store.sign(entry)

        return replace(FetchRequest(entry, TaskIdentity.of(entry), sign, entry.ref.key), **changes)


@pytest.fixture
async def origin(s3_server: S3Server, bucket: str) -> AsyncIterator[Origin]:
    async with Gate(s3_server.port) as gate:
        yield Origin(s3_server, bucket, gate)


@pytest.fixture(
    params=[
        "direct",
        pytest.param("proxy", marks=pytest.mark.dragonfly),
        pytest.param("dfdaemon", marks=pytest.mark.dragonfly),
    ]
)
def make(request: pytest.FixtureRequest) -> MakeTransport:
    name = request.param
    cluster: DragonflyCluster | None = None if name == "direct" else request.getfixturevalue("dragonfly")

    def build(timeouts: Timeouts = PATIENT, **options: Any) -> Transport:
        chosen = RequestOptions(**options)
        if cluster is None:
            return DirectTransport(chosen, timeouts)
        peer = cluster.peers[0]
        if name == "proxy":
            return ProxyTransport(peer.proxy, chosen, timeouts)
        return DfdaemonTransport(str(peer.socket), chosen, timeouts)

    build.__name__ = name
    return build


@asynccontextmanager
async def opened(transport: Transport) -> AsyncIterator[Transport]:
    try:
        yield transport
    finally:
        await transport.aclose()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "partials").mkdir()
    return tmp_path / "partials"


def files_that_look_whole(folder: Path, entry: ObjectEntry) -> Iterator[Path]:
    """Anything but a partial whose journal tells that it is not whole."""
    names = {path.name for path in folder.iterdir()}
    return (
        folder / name
        for name in names
        if not name.endswith(".parts") and name.removesuffix(".partial") + ".parts" not in names
    )


@pytest.mark.parametrize("size", [0, 1, 65_536, 5 * MIB + 1, 70 * MIB], ids=["empty", "byte", "64K", "5M", "70M"])
async def should_bring_exactly_the_bytes(make: MakeTransport, origin: Origin, folder: Path, size: int) -> None:
    data = os.urandom(size)
    entry = origin.put("m/1/weights.bin", data)
    progress: list[int] = []
    async with opened(make()) as transport:
        fetched = await transport.fetch(origin.request(entry, on_progress=progress.append), folder)
    assert fetched.path is not None
    assert fetched.path.read_bytes() == data
    assert sum(progress) == size
    assert fetched.transport == transport.name


@pytest.mark.parametrize("key", ["a b+c&d=e%41?x#y~!('*)[]{}|^`", "ünï/çödé", "a//b", "0/=/%2F"])
async def should_bring_objects_with_odd_keys(make: MakeTransport, origin: Origin, folder: Path, key: str) -> None:
    entry = origin.put(key, b"odd but right")
    async with opened(make()) as transport:
        fetched = await transport.fetch(origin.request(entry), folder)
    assert fetched.path is not None and fetched.path.read_bytes() == b"odd but right"


async def should_bring_an_object_as_it_is_stored_whatever_encoding_it_declares(
    make: MakeTransport, origin: Origin, folder: Path
) -> None:
    data = gzip.compress(b"weights" * 1000)
    entry = origin.put("m/1/weights.gz", data, ContentEncoding="gzip")
    async with opened(make()) as transport:
        fetched = await transport.fetch(origin.request(entry), folder)
    assert fetched.path is not None and fetched.path.read_bytes() == data


async def should_refuse_another_version(make: MakeTransport, origin: Origin, folder: Path) -> None:
    listed = origin.put("m/1/weights.bin", b"old" * 1000)
    origin.put("m/1/weights.bin", b"new" * 1000)
    async with opened(Retrying(make(), QUICK)) as transport:
        with pytest.raises(Changed):
            await transport.fetch(origin.request(listed), folder)
    assert not list(files_that_look_whole(folder, listed))


async def should_report_a_missing_object_without_trying_again(
    make: MakeTransport, origin: Origin, folder: Path
) -> None:
    entry = origin.put("m/1/gone.bin", b"here for now")
    origin.server.client().delete_object(Bucket=origin.bucket, Key="m/1/gone.bin")
    signatures = 0
    request = origin.request(entry)

    async def counted() -> SignedUrl:
        nonlocal signatures
        signatures += 1
        return await request.sign()

    async with opened(Retrying(make(), QUICK)) as transport:
        with pytest.raises(NotFound):
            await transport.fetch(replace(request, sign=counted), folder)
    assert signatures == 1
    assert not list(files_that_look_whole(folder, entry))


async def should_sign_once_more_after_a_refused_signature_and_then_give_up(
    make: MakeTransport, origin: Origin, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry = origin.put("m/1/secret.bin", os.urandom(100))
    signatures: list[SignedUrl] = []
    request = origin.request(entry, secret="not-the-right-one")

    async def counted() -> SignedUrl:
        signatures.append(await request.sign())
        return signatures[-1]

    caplog.set_level(logging.DEBUG)
    async with opened(Retrying(make(), QUICK)) as transport:
        with pytest.raises(AccessDenied) as refused:
            await transport.fetch(replace(request, sign=counted), folder)
    assert len(signatures) == 2
    assert not list(files_that_look_whole(folder, entry))
    told = f"{refused.value} {refused.value!r} {refused.value.__cause__!r} {caplog.text}"
    assert "X-Amz-Signature" not in told
    assert "not-the-right-one" not in told


async def should_use_a_fresh_signature_when_one_expired(make: MakeTransport, origin: Origin, folder: Path) -> None:
    data = os.urandom(1000)
    entry = origin.put("m/1/late.bin", data)
    good, bad = origin.request(entry), origin.request(entry, secret="expired-say")
    turns = iter([bad.sign, good.sign])
    async with opened(Retrying(make(), QUICK)) as transport:
        fetched = await transport.fetch(replace(good, sign=lambda: next(turns)()), folder)
    assert fetched.path is not None and fetched.path.read_bytes() == data
    assert fetched.attempts == 2


async def should_never_take_a_wrong_size_for_the_object(make: MakeTransport, origin: Origin, folder: Path) -> None:
    entry = origin.put("m/1/short.bin", b"x" * 1000)
    for size in (999, 1001):
        listed = replace(entry, size=size)
        async with opened(make()) as transport:
            with pytest.raises(Truncated):
                await transport.fetch(origin.request(listed), folder)
        assert not list(folder.glob("*.parti*"))


async def should_end_a_stalled_download(make: MakeTransport, origin: Origin, folder: Path) -> None:
    entry = origin.put("m/1/stuck.bin", os.urandom(20 * MIB))
    hold = origin.gate.hold("stuck.bin", after=MIB)
    async with opened(make(IMPATIENT)) as transport:
        with pytest.raises(Stalled) as stalled:
            await asyncio.wait_for(transport.fetch(origin.request(entry), folder), 60)
    assert hold.reached.is_set()
    assert "--stall-timeout" in stalled.value.hint
    assert not list(files_that_look_whole(folder, entry))


async def should_survive_a_lost_connection(make: MakeTransport, origin: Origin, folder: Path) -> None:
    data = os.urandom(20 * MIB)
    entry = origin.put("m/1/cut.bin", data)
    cut = origin.gate.cut("cut.bin", after=MIB)
    async with opened(Retrying(make(), QUICK)) as transport:
        fetched = await transport.fetch(origin.request(entry), folder)
    assert cut.reached.is_set()
    assert fetched.path is not None and fetched.path.read_bytes() == data


async def should_pin_the_version_and_pass_the_users_headers_to_the_origin(
    make: MakeTransport, origin: Origin, folder: Path
) -> None:
    entry = origin.put("m/1/pinned.bin", os.urandom(6 * MIB))
    async with opened(make(headers={"X-Team": "vision", "X-Dragonfly-Tag": "t"})) as transport:
        await transport.fetch(origin.request(entry), folder)
    heads = origin.gate.requests("pinned.bin")
    assert heads
    for head in heads:
        sent = dict(line.lower().split(": ", 1) for line in head.splitlines()[1:])
        assert sent["if-match"] == entry.etag.lower()
        assert sent["x-team"] == "vision"
        assert "x-dragonfly-tag" not in sent or transport.name == "proxy"


async def should_leave_nothing_when_cancelled(make: MakeTransport, origin: Origin, folder: Path) -> None:
    entry = origin.put("m/1/cancelled.bin", os.urandom(20 * MIB))
    hold = origin.gate.hold("cancelled.bin", after=MIB)
    async with opened(make()) as transport:
        task = asyncio.create_task(transport.fetch(origin.request(entry), folder))
        await asyncio.wait_for(hold.reached.wait(), 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not list(files_that_look_whole(folder, entry))


async def should_warm_a_peers_cache_without_a_folder(make: MakeTransport, origin: Origin, folder: Path) -> None:
    entry = origin.put("m/1/warm.bin", os.urandom(6 * MIB))
    async with opened(make()) as transport:
        if transport.name == "direct":
            with pytest.raises(ConfigError):
                await transport.fetch(origin.request(entry), None)
            return
        warmed = await transport.fetch(origin.request(entry), None)
        assert warmed.path is None
        asked = len(origin.gate.requests("warm.bin"))
        again = await transport.fetch(origin.request(entry), folder)
    assert again.source.value == "local"
    assert len(origin.gate.requests("warm.bin")) == asked


async def should_say_who_refused_the_connection(folder: Path, origin: Origin, unused_address: tuple[str, int]) -> None:
    """Nothing listens: the direct transport's store, the proxy, the socket."""
    host, port = unused_address
    entry = origin.put("m/1/x.bin", b"x")
    for transport, who in (
        (ProxyTransport(f"http://{host}:{port}", RequestOptions(), IMPATIENT), "proxy"),
        (DfdaemonTransport(str(folder / "no.sock"), RequestOptions(), IMPATIENT), "dfdaemon"),
    ):
        async with opened(transport):
            with pytest.raises(ConnectFailed) as failed:
                await transport.fetch(origin.request(entry), folder)
        assert who in failed.value.message
        assert failed.value.hint
        assert not list(folder.iterdir())


async def should_fail_typed_when_the_origin_is_dead(make: MakeTransport, origin: Origin, folder: Path) -> None:
    entry = origin.put("m/1/dead.bin", os.urandom(6 * MIB))
    request = origin.request(entry)
    signed = await request.sign()
    async with Gate(1) as closed:  # nothing listens behind this gate
        dead_url = signed.url.replace(f":{origin.gate.port}/", f":{closed.port}/")
    request = replace(request, sign=lambda: _ready(replace(signed, url=dead_url)))
    async with opened(make(IMPATIENT)) as transport:
        with pytest.raises(DfagentError) as failed:
            await transport.fetch(request, folder)
    assert "X-Amz" not in str(failed.value)
    assert not list(files_that_look_whole(folder, entry))


async def _ready(value: SignedUrl) -> SignedUrl:
    return value
