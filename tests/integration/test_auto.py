"""`auto` on real Dragonfly: the way each object takes, what a failing peer costs, and bytes above suspicion."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from dfagent.agent import PassResult
from dfagent.errors import AccessDenied
from dfagent.local.dragonfly import DragonflyCluster, Peer
from dfagent.local.object_store import S3Server
from dfagent.records import ObjectRecord
from dfagent.stores.s3 import S3Store
from dfagent.types import ObjectEntry, SignedUrl
from tests.integration.test_pipeline import CONFIG, SHARED, Fleet
from tests.servers.gate import Gate

SMALL = 1 << 20
StartDragonfly = Callable[..., DragonflyCluster]


@pytest.fixture
async def fleet(s3_server: S3Server, bucket: str, session_folder: Path) -> AsyncIterator[Fleet]:
    # Below the session's folder, because hard links need the file system of dfdaemon's storage.
    async with Gate(s3_server.port) as gate:
        yield Fleet(s3_server, bucket, gate, session_folder / bucket)


def put_model(fleet: Fleet) -> tuple[bytes, bytes]:
    small, large = os.urandom(SMALL), os.urandom(SHARED)
    fleet.put("net/config.pbtxt", CONFIG.encode())
    fleet.put("net/1/small.bin", small)
    fleet.put("net/1/weights.bin", large)
    return small, large


def records(result: PassResult) -> dict[str, ObjectRecord]:
    assert not result.errors, result.errors
    return {record.path: record for record in result.objects}


def ways(result: PassResult) -> dict[str, tuple[str, str]]:
    """Transport and verification of each object but the configuration."""
    return {
        path: (record.transport, record.verified) for path, record in records(result).items() if path != "config.pbtxt"
    }


async def should_link_large_objects_and_bring_small_ones_direct_until_the_node_has_them(
    fleet: Fleet, dragonfly: DragonflyCluster
) -> None:
    here = dragonfly.peers[0]
    small, large = put_model(fleet)
    first = await fleet.prefetch("one", here, transport="auto")
    assert ways(first) == {"1/small.bin": ("direct", "crc32"), "1/weights.bin": ("dfdaemon", "crc32")}
    assert fleet.weights("one").stat().st_nlink > 1, "a hard link into dfdaemon's cache"
    await fleet.prefetch(None, here, transport="auto")
    again = await fleet.prefetch("two", here, transport="auto")
    assert ways(again) == {"1/small.bin": ("dfdaemon", "crc32"), "1/weights.bin": ("dfdaemon", "crc32")}
    assert {record.source.value for path, record in records(again).items() if path != "config.pbtxt"} == {"local"}
    for node in ("one", "two"):
        assert fleet.weights(node).read_bytes() == large
        assert (fleet.target(node) / "net/1/small.bin").read_bytes() == small


async def should_stream_through_the_proxy_where_dfdaemon_can_not_link(
    fleet: Fleet, dragonfly: DragonflyCluster, tmp_path: Path
) -> None:
    """The node's dfdaemon does not see the folder under the name that `path_map` gives it."""
    here = dragonfly.peers[0]
    _, large = put_model(fleet)
    mapping = {str(fleet.folder): str(tmp_path / "nowhere")}
    result = await fleet.prefetch("node", here, transport="auto", path_map=mapping)
    record = records(result)["1/weights.bin"]
    assert (record.transport, record.verified) == ("proxy", "crc32")
    assert [(detour.tried, detour.then) for detour in record.detours] == [("dfdaemon", "proxy")]
    assert fleet.weights("node").read_bytes() == large


async def should_go_on_without_the_peer_when_it_is_dead(fleet: Fleet, start_dragonfly: StartDragonfly) -> None:
    here = start_dragonfly(peers=1).peers[0]
    _, large = put_model(fleet)
    here.kill()
    result = await fleet.prefetch("node", here, transport="auto")
    record = records(result)["1/weights.bin"]
    assert (record.transport, record.source.value) == ("direct", "direct")
    assert [(detour.tried, detour.then) for detour in record.detours] == [("dfdaemon", "proxy"), ("proxy", "direct")]
    assert fleet.weights("node").read_bytes() == large


async def should_not_read_again_what_the_ledger_knows(fleet: Fleet, dragonfly: DragonflyCluster) -> None:
    """The same inode comes back after the folder lost it: neither the store is asked for a checksum, nor is it read."""
    here = dragonfly.peers[0]
    put_model(fleet)
    await fleet.prefetch("node", here, transport="auto")
    for published in (fleet.target("node").parent / ".dfagent-models/generations").glob("*/*/1/weights.bin"):
        published.unlink()
    asked = len(fleet.gate.heads)
    again = await fleet.prefetch("node", here, transport="auto")
    assert ways(again) == {"1/weights.bin": ("dfdaemon", "crc32")}
    heads = [head.split()[0] for head in fleet.gate.heads[asked:] if "weights.bin" in head]
    assert heads == [], "no HEAD and no GET for it"


@contextmanager
def damaged_cache(peer: Peer, data: bytes) -> Iterator[Path]:
    """dfdaemon's own file of these bytes, one bit turned by a disk that fails."""
    (content,) = (
        path for path in peer.storage.rglob("*") if path.is_file() and path.stat().st_size == len(data)
        if path.read_bytes() == data
    )  # fmt: skip
    with content.open("r+b") as file:
        file.seek(len(data) // 2)
        byte = file.read(1)[0]
        file.seek(len(data) // 2)
        file.write(bytes([byte ^ 1]))
    yield content


@pytest.mark.parametrize("transport", ["auto", "dfdaemon", "proxy"])
async def should_never_publish_a_damaged_cached_task_and_rid_the_peer_of_it(
    fleet: Fleet, start_dragonfly: StartDragonfly, transport: str
) -> None:
    here = start_dragonfly(peers=1).peers[0]
    _, large = put_model(fleet)
    await fleet.prefetch(None, here, transport="auto")
    with damaged_cache(here, large):
        await fleet.prefetch("node", here, transport=transport)
        result = await fleet.prefetch("node", here, transport=transport)
    assert not result.errors, result.errors
    assert fleet.weights("node").read_bytes() == large
    again = await fleet.prefetch("another", here, transport="dfdaemon")
    assert fleet.weights("another").read_bytes() == large
    assert records(again)["1/weights.bin"].verified == "crc32"


async def should_give_the_stores_own_reason_where_a_peer_hides_it(
    fleet: Fleet, dragonfly: DragonflyCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listings go through and signatures don't: the proxy answers 403 with an empty body."""
    here = dragonfly.peers[0]
    put_model(fleet)
    sign = S3Store.sign

    async def spoiled(store: S3Store, entry: ObjectEntry) -> SignedUrl:
        signed = await sign(store, entry)
        if not entry.ref.key.endswith("weights.bin"):
            return signed
        return replace(signed, url=re.sub("X-Amz-Signature=.", "X-Amz-Signature=x", signed.url))

    monkeypatch.setattr(S3Store, "sign", spoiled)
    result = await fleet.prefetch("node", here, transport="proxy")
    (error,) = result.errors
    assert isinstance(error, AccessDenied)
    assert "SignatureDoesNotMatch" in error.message
