"""Ranges through a real dfdaemon's proxy: on a task that it has not, has in part, and has."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from dfagent.checksums import hasher
from dfagent.errors import Changed
from dfagent.local.dragonfly import DragonflyCluster
from dfagent.local.object_store import S3Server
from dfagent.settings.credentials import S3Credential
from dfagent.stores.s3 import S3Store
from dfagent.transports.dfdaemon import DfdaemonTransport
from dfagent.transports.options import RequestOptions, Timeouts
from dfagent.transports.partial import PartialFile, Writer
from dfagent.transports.proxy import ProxyTransport
from dfagent.transports.retrying import Retrying, RetryPolicy
from dfagent.types import Checksum, FetchRequest, ObjectEntry, ObjectRef, RepositoryUrl, Source, TaskIdentity
from tests.servers.gate import Gate

MIB = 1 << 20
BLOCK = 3 * MIB  # no multiple of dfdaemon's pieces of 4 MiB
SIZE = 22 * MIB + 77
QUICK = RetryPolicy(first_pause=0.05, longest_pause=0.2)


@dataclass
class Setting:
    """An object in a real store behind a gate, and a gate before the peer's proxy."""

    store: Gate
    peer: Gate
    request: FetchRequest
    data: bytes

    def left_by_a_killed_run(self, folder: Path, blocks: int) -> None:
        folder.mkdir(exist_ok=True)
        partial = PartialFile(folder, self.request.task.id, SIZE, "proxy", block_size=BLOCK)
        partial.open()
        partial.begin("crc32c")
        Writer(partial, 0, blocks * BLOCK).write(self.data[: blocks * BLOCK])
        partial.close()

    @asynccontextmanager
    async def proxy(self) -> AsyncIterator[ProxyTransport]:
        transport = ProxyTransport(
            self.peer.endpoint, RequestOptions(), Timeouts(connect=5.0, stall=30.0), block_size=BLOCK
        )
        try:
            yield transport
        finally:
            await transport.aclose()

    @property
    def ranges(self) -> list[str]:
        """What the peer was asked for."""
        sent = [
            dict(line.lower().split(": ", 1) for line in head.splitlines()[1:]) for head in self.peer.requests("/m/")
        ]
        return [headers.get("range", "all") for headers in sent]


@pytest.fixture
async def setting(s3_server: S3Server, bucket: str, dragonfly: DragonflyCluster) -> AsyncIterator[Setting]:
    data = os.urandom(SIZE)
    async with Gate(s3_server.port) as store, Gate(dragonfly.peers[0].proxy_port) as peer:
        etag = s3_server.client().put_object(Bucket=bucket, Key="m/1/weights.bin", Body=data)["ETag"]
        entry = ObjectEntry(ObjectRef("s3", f"127.0.0.1:{store.port}", bucket, "m/1/weights.bin"), SIZE, etag)
        credential = S3Credential.model_validate({"key_id": s3_server.access_key, "secret_key": s3_server.secret_key})
        signer = S3Store(RepositoryUrl("s3", store.endpoint, bucket, ""), credential)
        request = FetchRequest(entry, TaskIdentity.of(entry), lambda: signer.sign(entry), entry.ref.key)
        yield Setting(store, peer, request, data)


def crc32c(data: bytes) -> Checksum:
    computed = hasher("crc32c")
    computed.update(data)
    return computed.checksum()


async def should_go_on_in_the_middle_of_a_task_that_is_cold_then_partly_here_then_whole(
    setting: Setting, tmp_path: Path
) -> None:
    """After a range dfdaemon calls the task finished, so a whole answer may be called local before it is."""
    async with setting.proxy() as proxy:
        for blocks in (4, 2, 0, 3):
            folder = tmp_path / f"after-{blocks}"
            setting.left_by_a_killed_run(folder, blocks)
            fetched = await proxy.fetch(setting.request, folder)
            assert fetched.path is not None and fetched.path.read_bytes() == setting.data
            assert fetched.computed == crc32c(setting.data)
            assert fetched.source is (Source.UNKNOWN if blocks else Source.LOCAL)
            last_traffic = fetched.traffic.local_peer
    assert setting.ranges == [
        f"bytes={4 * BLOCK}-{SIZE - 1}",
        f"bytes={2 * BLOCK}-{SIZE - 1}",
        "all",
        f"bytes={3 * BLOCK}-{SIZE - 1}",
    ]
    assert last_traffic == SIZE - 3 * BLOCK, "by then this node had all of it"
    for head in setting.store.requests("weights.bin"):
        assert f"if-match: {setting.request.entry.etag}".lower() in head.lower()


async def should_go_on_after_the_proxy_broke_off(setting: Setting, tmp_path: Path) -> None:
    cut = setting.peer.cut("weights.bin", after=14 * MIB)
    async with setting.proxy() as proxy:
        fetched = await Retrying(proxy, QUICK).fetch(setting.request, tmp_path)
    assert cut.reached.is_set()
    assert fetched.path is not None and fetched.path.read_bytes() == setting.data
    assert fetched.attempts == 2
    first, second = setting.ranges
    assert first == "all"
    offset = int(second.removeprefix("bytes=").partition("-")[0])
    # What arrived together with the end of the connection is lost: a buffer and the block that it was part of.
    assert offset % BLOCK == 0 and 14 * MIB - 2 * MIB - 2 * BLOCK <= offset <= 14 * MIB


async def should_not_go_on_with_another_version(setting: Setting, s3_server: S3Server, tmp_path: Path) -> None:
    ref = setting.request.entry.ref
    setting.left_by_a_killed_run(tmp_path, 2)
    s3_server.client().put_object(Bucket=ref.bucket, Key=ref.key, Body=os.urandom(SIZE))
    async with setting.proxy() as proxy:
        with pytest.raises(Changed):
            await proxy.fetch(setting.request, tmp_path)
    assert list(tmp_path.iterdir()) == []


async def should_leave_the_node_with_the_whole_task_after_a_range(
    setting: Setting, dragonfly: DragonflyCluster, tmp_path: Path
) -> None:
    """It tells everybody that it has all of it: what links its file, or asks it as a parent, must get all."""
    setting.left_by_a_killed_run(tmp_path / "proxy", 4)
    async with setting.proxy() as proxy:
        await proxy.fetch(setting.request, tmp_path / "proxy")
    for peer in dragonfly.peers:
        folder = tmp_path / peer.name
        folder.mkdir()
        dfdaemon = DfdaemonTransport(str(peer.socket), RequestOptions(), Timeouts(connect=5.0, stall=30.0))
        try:
            fetched = await dfdaemon.fetch(setting.request, folder)
        finally:
            await dfdaemon.aclose()
        assert fetched.path is not None and fetched.path.read_bytes() == setting.data
