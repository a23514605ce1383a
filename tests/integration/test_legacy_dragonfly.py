"""The Go daemon of Dragonfly 2.0 for real: recognised, never stale, one task whoever signs, no loss when it dies."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dfagent.agent import PassResult
from dfagent.errors import Changed, NotFound, PeerUnavailable
from dfagent.local.legacy import LegacyPeer
from dfagent.local.object_store import S3Server
from dfagent.records import ObjectRecord
from dfagent.transports.options import RequestOptions
from dfagent.transports.proxy import ProxyTransport
from tests.integration.test_dfdaemon_faults import TIMEOUTS, Origin
from tests.integration.test_pipeline import MIB, SHARED, Fleet
from tests.servers.gate import Gate

StartLegacyPeer = Callable[[], LegacyPeer]


@pytest.fixture
async def fleet(s3_server: S3Server, bucket: str, tmp_path: Path) -> AsyncIterator[Fleet]:
    async with Gate(s3_server.port) as gate:
        yield Fleet(s3_server, bucket, gate, tmp_path)


async def prefetch(
    fleet: Fleet, node: str, peer: LegacyPeer, transport: str = "auto", legacy: bool | None = None
) -> PassResult:
    return await fleet.run(node, {"proxy": peer.proxy, "legacy": legacy}, transport)


def weights(result: PassResult) -> ObjectRecord:
    assert not result.errors, result.errors
    return next(record for record in result.objects if record.path == "1/weights.bin")


def way(result: PassResult) -> tuple[str, str, list[tuple[str, str]]]:
    """Transport, verification and detours of the weights."""
    record = weights(result)
    return record.transport, record.verified, [(detour.tried, detour.then) for detour in record.detours]


@pytest.mark.parametrize(("legacy", "finding_out"), [(None, 1), (True, 0)])
async def should_be_recognised_and_ask_the_origin_once_whoever_signs(
    fleet: Fleet, legacy_peer: LegacyPeer, legacy: bool | None, finding_out: int
) -> None:
    """Each pass signs anew; to find out costs one more task, which later passes meet in its cache."""
    data = fleet.put_model(os.urandom(SHARED))
    for node in ("one", "two", "three"):
        result = await prefetch(fleet, node, legacy_peer, legacy=legacy)
        assert way(result) == ("proxy", "crc32", [])
        assert fleet.weights(node).read_bytes() == data
    assert len(fleet.gate.requests("weights.bin")) == 1 + finding_out


@pytest.mark.parametrize("legacy", [None, True])
async def should_never_serve_an_overwritten_object_from_its_cache(
    fleet: Fleet, legacy_peer: LegacyPeer, legacy: bool | None
) -> None:
    fleet.put_model(os.urandom(SHARED))
    await prefetch(fleet, "node", legacy_peer, legacy=legacy)
    for _ in range(2):
        new = fleet.put_model(os.urandom(SHARED))
        result = await prefetch(fleet, "node", legacy_peer, legacy=legacy)
        assert way(result) == ("proxy", "crc32", [])
        assert fleet.weights("node").read_bytes() == new


async def should_share_between_two_legacy_peers(
    fleet: Fleet, legacy_peer: LegacyPeer, start_legacy_peer: StartLegacyPeer
) -> None:
    data = fleet.put_model(os.urandom(SHARED))
    await prefetch(fleet, "one", legacy_peer, legacy=True)
    assert way(await prefetch(fleet, "two", start_legacy_peer(), legacy=True)) == ("proxy", "crc32", [])
    assert fleet.weights("two").read_bytes() == data
    assert len(fleet.gate.requests("weights.bin")) == 1


async def should_refuse_it_where_the_settings_say_that_it_is_none(fleet: Fleet, legacy_peer: LegacyPeer) -> None:
    fleet.put_model(os.urandom(SHARED))
    (error,) = (await prefetch(fleet, "node", legacy_peer, "proxy", legacy=False)).errors
    assert isinstance(error, PeerUnavailable)
    assert way(await prefetch(fleet, "node", legacy_peer, legacy=False)) == ("direct", "crc32", [("proxy", "direct")])


async def should_go_on_without_it_when_it_dies_in_the_middle(fleet: Fleet, start_legacy_peer: StartLegacyPeer) -> None:
    peer = start_legacy_peer()
    data = fleet.put_model(os.urandom(5 * SHARED))
    hold = fleet.gate.hold("weights.bin", after=20 * MIB)
    running = asyncio.create_task(prefetch(fleet, "node", peer, legacy=True))
    await asyncio.wait_for(hold.reached.wait(), 30)
    peer.kill()
    hold.release()
    assert way(await running) == ("direct", "crc32", [("proxy", "direct")])
    assert fleet.weights("node").read_bytes() == data


async def should_begin_again_where_it_came_back_and_ask_for_no_range(
    fleet: Fleet, start_legacy_peer: StartLegacyPeer, tmp_path: Path
) -> None:
    """A range would be a task of its own, which no other node shares, although a partial is there."""
    peer = start_legacy_peer()
    data = fleet.put_model(os.urandom(5 * SHARED))
    hold = fleet.gate.hold("weights.bin", after=20 * MIB)
    running = asyncio.create_task(prefetch(fleet, "node", peer, "proxy", legacy=True))
    await asyncio.wait_for(hold.reached.wait(), 30)
    peer.kill()
    hold.release()
    assert (await running).errors
    assert list(tmp_path.rglob("*.proxy.*")), "there would be something to go on with"
    asked = len(fleet.gate.requests("weights.bin"))
    peer.start()
    assert way(await prefetch(fleet, "node", peer, "proxy", legacy=True)) == ("proxy", "crc32", [])
    assert fleet.weights("node").read_bytes() == data
    assert not any("\nrange:" in head.lower() for head in fleet.gate.requests("weights.bin")[asked:])


async def should_never_publish_what_its_cache_damaged(fleet: Fleet, start_legacy_peer: StartLegacyPeer) -> None:
    peer = start_legacy_peer()
    data = fleet.put_model(os.urandom(SHARED))
    await prefetch(fleet, "one", peer, legacy=True)
    (cached,) = (path for path in peer.storage.rglob("*") if path.is_file() and path.stat().st_size == len(data))
    with cached.open("r+b") as file:
        file.seek(SHARED // 2)
        file.write(bytes([data[SHARED // 2] ^ 1]))
    assert way(await prefetch(fleet, "two", peer, legacy=True)) == ("direct", "crc32", [("proxy", "direct")])
    assert fleet.weights("two").read_bytes() == data


@pytest.mark.parametrize("legacy", [None, True])
async def should_pass_on_the_pin_and_the_origins_answer(
    fleet: Fleet, legacy_peer: LegacyPeer, tmp_path: Path, legacy: bool | None
) -> None:
    origin = Origin(fleet.server, fleet.bucket, fleet.gate)
    entry = origin.put("key", os.urandom(SHARED))
    transport = ProxyTransport(legacy_peer.proxy, RequestOptions(), TIMEOUTS, legacy=legacy)
    try:
        with pytest.raises(Changed):
            await transport.fetch(origin.request(replace(entry, etag='"another"')), tmp_path)
        with pytest.raises(NotFound):
            await transport.fetch(origin.request(replace(entry, ref=replace(entry.ref, key="absent"))), tmp_path)
        await transport.fetch(origin.request(entry), tmp_path)
    finally:
        await transport.aclose()
