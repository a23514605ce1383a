"""What a real dfdaemon answers when it can't link, has no room, or keeps bytes that are not the store's."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from dfagent.errors import DamagedTask, DfagentError, NoHardLink, PeerUnavailable
from dfagent.local.dragonfly import DragonflyCluster, Peer
from dfagent.local.object_store import REGION, S3Server
from dfagent.settings.credentials import CloudCredentials
from dfagent.stores.registry import open_store
from dfagent.stores.url import parse_repository_url
from dfagent.transports.dfdaemon import DfdaemonTransport
from dfagent.transports.options import RequestOptions, Timeouts
from dfagent.transports.verifying import Verifying
from dfagent.types import FetchRequest, ObjectEntry, ObjectRef, SignedUrl, Source, TaskIdentity, Traffic
from tests.servers.gate import Gate

SIZE = 9 << 20
TIMEOUTS = Timeouts(connect=5.0, stall=30.0)
StartDragonfly = Callable[..., DragonflyCluster]


@dataclass
class Origin:
    """Objects in a bucket behind a gate, and requests for them."""

    server: S3Server
    bucket: str
    gate: Gate

    def put(self, key: str, data: bytes) -> ObjectEntry:
        etag = self.server.client().put_object(Bucket=self.bucket, Key=key, Body=data)["ETag"]
        return ObjectEntry(ObjectRef("s3", self.gate.endpoint, self.bucket, key), len(data), etag)

    def request(self, entry: ObjectEntry, task: TaskIdentity | None = None) -> FetchRequest:
        secret = {"key_id": self.server.access_key, "secret_key": self.server.secret_key, "region": REGION}
        url = parse_repository_url(f"s3://{self.gate.endpoint}/{self.bucket}")

        async def sign() -> SignedUrl:
            store = open_store(url, CloudCredentials.model_validate({"s3": {"": secret}}))
            try:
                return await store.sign(entry)
            finally:
                await store.aclose()

        return FetchRequest(entry, task or TaskIdentity.of(entry), sign, entry.ref.key)

    def ranges(self, key: str) -> list[str]:
        """The ranges of the object that were asked for."""
        lines = [line.lower() for head in self.gate.requests(key) for line in head.splitlines()]
        return [line for line in lines if line.startswith("range:")]


@pytest.fixture
async def origin(s3_server: S3Server, bucket: str) -> AsyncIterator[Origin]:
    async with Gate(s3_server.port) as gate:
        yield Origin(s3_server, bucket, gate)


@pytest.fixture
def folder(session_folder: Path, bucket: str) -> Path:
    """On the mount of dfdaemon's storage."""
    made = session_folder / f"partials-{bucket}"
    made.mkdir()
    return made


@pytest.fixture
def other_mount(session_folder: Path) -> Iterator[Path]:
    shared_memory = Path("/dev/shm")
    assert shared_memory.stat().st_dev != session_folder.stat().st_dev, "the tests' own folder lies in /dev/shm"
    with tempfile.TemporaryDirectory(dir=shared_memory, prefix="dfagent-tests-") as made:
        yield Path(made)


@asynccontextmanager
async def asking(peer: Peer, *, force_hard_link: bool = True) -> AsyncIterator[DfdaemonTransport]:
    transport = DfdaemonTransport(str(peer.socket), RequestOptions(), TIMEOUTS, force_hard_link=force_hard_link)
    try:
        yield transport
    finally:
        await transport.aclose()


def cached(peer: Peer, entry: ObjectEntry) -> Path:
    task = TaskIdentity.of(entry).id
    return peer.storage / "content" / "tasks" / task[:3] / task


def damage(peer: Peer, entry: ObjectEntry) -> None:
    """Turns a byte of what the peer keeps, as a disk that fails would."""
    with cached(peer, entry).open("r+b") as file:
        file.seek(entry.size // 2)
        byte = file.read(1)[0]
        file.seek(entry.size // 2)
        file.write(bytes([byte ^ 0x10]))


@pytest.mark.parametrize("is_cached", [False, True])
async def should_fetch_nothing_where_the_link_would_cross_mounts(
    origin: Origin, dragonfly: DragonflyCluster, other_mount: Path, is_cached: bool
) -> None:
    entry = origin.put("w", os.urandom(SIZE))
    async with asking(dragonfly.peers[0]) as transport:
        if is_cached:
            await transport.fetch(origin.request(entry), None)
        before = origin.ranges("/w")
        with pytest.raises(NoHardLink, match="cross-device"):
            await transport.fetch(origin.request(entry), other_mount)
    asked = origin.ranges("/w")[len(before) :]
    assert asked == ([] if is_cached else ["range: bytes=0-0"]), "it may look at the size, no more"
    assert list(other_mount.iterdir()) == []
    async with asking(dragonfly.peers[0], force_hard_link=False) as transport:
        fetched = await transport.fetch(origin.request(entry), other_mount)
    assert fetched.path is not None and fetched.path.stat().st_nlink == 1, "dfdaemon copies where it may"


async def should_say_that_dfdaemon_does_not_see_the_folder(
    origin: Origin, dragonfly: DragonflyCluster, folder: Path
) -> None:
    entry = origin.put("w", os.urandom(SIZE))
    for forced, expected in ((True, NoHardLink), (False, PeerUnavailable)):
        transport = DfdaemonTransport(
            str(dragonfly.peers[0].socket),
            RequestOptions(),
            TIMEOUTS,
            map_path=lambda path: Path("/nowhere") / path.name,
            force_hard_link=forced,
        )
        with pytest.raises(DfagentError) as failed:
            await transport.fetch(origin.request(entry), folder)
        await transport.aclose()
        assert type(failed.value) is expected and "path_map" in failed.value.hint


async def should_go_another_way_when_dfdaemons_own_disk_is_full(
    origin: Origin, start_dragonfly: StartDragonfly, folder: Path
) -> None:
    full = {"peer-0": {"gc": {"policy": {"diskThreshold": "5MiB"}}}}
    peer = start_dragonfly(peers=1, configs=full).peers[0]
    entry = origin.put("w", os.urandom(SIZE))
    async with asking(peer) as transport:
        with pytest.raises(PeerUnavailable, match="no room"):
            await transport.fetch(origin.request(entry), folder)


async def should_fetch_a_deleted_task_from_the_origin_because_parents_may_have_the_same_wrong_bytes(
    origin: Origin, dragonfly: DragonflyCluster, folder: Path
) -> None:
    """The other peer got other bytes under this task, so its own checksums of them agree, and it gives them away."""
    here, there = dragonfly.peers
    data = os.urandom(SIZE)
    entry, wrong = origin.put("w", data), origin.put("wrong", os.urandom(SIZE))
    async with asking(there) as transport:
        await transport.fetch(origin.request(wrong, TaskIdentity.of(entry)), None)
    async with asking(here) as transport:
        poisoned = await transport.fetch(origin.request(entry), folder)
        assert poisoned.path is not None and poisoned.path.read_bytes() != data
        assert await transport.discard(TaskIdentity.of(entry).id)
        fetched = await transport.fetch(origin.request(entry), folder)
        assert fetched.traffic == Traffic(origin=SIZE)
        assert fetched.path is not None and fetched.path.read_bytes() == data


async def should_keep_damage_of_a_parents_disk_at_the_parent(
    origin: Origin, dragonfly: DragonflyCluster, folder: Path
) -> None:
    here, there = dragonfly.peers
    data = os.urandom(SIZE)
    entry = origin.put("w", data)
    async with asking(there) as transport:
        await transport.fetch(origin.request(entry), None)
    damage(there, entry)
    async with asking(here) as transport:
        fetched = await transport.fetch(origin.request(entry), folder)
    assert fetched.source is Source.COLD, "the damaged piece came from the origin"
    assert fetched.path is not None and fetched.path.read_bytes() == data


async def should_have_a_task_that_lost_its_end_fetched_again(
    origin: Origin, dragonfly: DragonflyCluster, folder: Path
) -> None:
    """dfdaemon would give the short file for ever."""
    here = dragonfly.peers[0]
    data = os.urandom(SIZE)
    entry = origin.put("w", data)
    async with asking(here) as transport:
        await transport.fetch(origin.request(entry), None)
        os.truncate(cached(here, entry), SIZE // 2)
        verifying = Verifying(transport, discard=transport.discard)
        with pytest.raises(DamagedTask) as failed:
            await verifying.fetch(origin.request(entry), folder)
        assert failed.value.retryable
        fetched = await verifying.fetch(origin.request(entry), folder)
    assert fetched.path is not None and fetched.path.read_bytes() == data
