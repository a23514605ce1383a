"""The pipeline on real Dragonfly: where bytes come from, never stale, never mixed, and what happens when parts die."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from dfagent.agent import PassResult
from dfagent.cli.progress import Silent
from dfagent.errors import ConnectFailed, PeerUnavailable, Stalled
from dfagent.local.dragonfly import DragonflyCluster, Peer
from dfagent.local.object_store import S3Server
from dfagent.settings.credentials import CloudCredentials
from dfagent.settings.dragonfly import DragonflySettings
from dfagent.settings.files import Settings
from dfagent.transports.options import Timeouts
from dfagent.wiring import RunOptions, open_session
from tests.servers.gate import Gate

MIB = 1 << 20
CONFIG = 'name: "net"\nbackend: "python"\nmodel_repository_agents { agents [ { name: "dragonfly" } ] }\n'
SHARED = 12 * MIB
"""Large enough for dfdaemon to share it: up to 4 MiB it always goes to the source itself."""

StartDragonfly = Callable[..., DragonflyCluster]


@dataclass
class Fleet:
    """A bucket behind a gate, and nodes that prefetch its repository."""

    server: S3Server
    bucket: str
    gate: Gate
    folder: Path

    def put(self, key: str, data: bytes) -> None:
        self.server.client().put_object(Bucket=self.bucket, Key=f"repo/{key}", Body=data)

    def put_model(self, weights: bytes) -> bytes:
        self.put("net/config.pbtxt", CONFIG.encode())
        self.put("net/1/weights.bin", weights)
        return weights

    def target(self, node: str) -> Path:
        return self.folder / node / "models"

    def weights(self, node: str) -> Path:
        return self.target(node) / "net/1/weights.bin"

    async def prefetch(
        self, node: str | None, peer: Peer, transport: str = "dfdaemon", stall: float = 30.0, **dragonfly: object
    ) -> PassResult:
        addresses = {"socket": str(peer.socket), "proxy": peer.proxy, **dragonfly}
        return await self.run(node, addresses, transport, stall)

    async def run(
        self, node: str | None, dragonfly: Mapping[str, object], transport: str, stall: float = 30.0
    ) -> PassResult:
        """One pass with these settings of Dragonfly; without a node it only warms."""
        secret = {"key_id": self.server.access_key, "secret_key": self.server.secret_key, "region": "us-east-1"}
        settings = Settings(
            DragonflySettings.model_validate(dict(dragonfly)),
            CloudCredentials.model_validate({"s3": {"": secret}}),
        )
        options = RunOptions(
            (f"s3://{self.gate.endpoint}/{self.bucket}/repo",),
            target=self.target(node) if node else None,
            transport=transport,
            timeouts=Timeouts(connect=5.0, stall=stall),
        )
        async with open_session(settings, options, Silent()) as session:
            return await session.run()


@pytest.fixture
async def fleet(s3_server: S3Server, bucket: str, session_folder: Path) -> AsyncIterator[Fleet]:
    # Below the session's folder, because hard links need the file system of dfdaemon's storage.
    async with Gate(s3_server.port) as gate:
        yield Fleet(s3_server, bucket, gate, session_folder / bucket)


def weights_record(result: PassResult) -> tuple[str, int, int, int]:
    """Source, and bytes by origin, remote peer and local peer, of the weights."""
    assert not result.errors, result.errors
    record = next(record for record in result.objects if record.path == "1/weights.bin")
    traffic = record.traffic
    return record.source.value, traffic.origin, traffic.remote_peer, traffic.local_peer


async def should_record_cold_remote_and_local_as_dragonfly_says(fleet: Fleet, dragonfly: DragonflyCluster) -> None:
    here, there = dragonfly.peers
    data = fleet.put_model(os.urandom(SHARED))
    first = await fleet.prefetch("cold", here)
    assert weights_record(first) == ("cold", SHARED, 0, 0)
    assert {record.path: record.transport for record in first.objects} == {
        "config.pbtxt": "direct",  # too small for a detour
        "1/weights.bin": "dfdaemon",
    }
    assert weights_record(await fleet.prefetch("remote", there)) == ("remote", 0, SHARED, 0)
    assert weights_record(await fleet.prefetch("local", here)) == ("local", 0, 0, SHARED)
    for node in ("cold", "remote", "local"):
        assert fleet.weights(node).read_bytes() == data


async def should_warm_a_peers_cache_without_a_folder(fleet: Fleet, dragonfly: DragonflyCluster) -> None:
    here = dragonfly.peers[0]
    fleet.put_model(os.urandom(SHARED))
    result = await fleet.prefetch(None, here)
    assert not result.errors
    assert [(record.outcome, record.generation) for record in result.models] == [("warmed", "")]
    assert weights_record(await fleet.prefetch("node", here)) == ("local", 0, 0, SHARED)


async def should_link_a_local_hit_to_the_cache_and_leave_the_cache_as_it_is(
    fleet: Fleet, dragonfly: DragonflyCluster
) -> None:
    here = dragonfly.peers[0]
    data = fleet.put_model(os.urandom(SHARED))
    await fleet.prefetch("one", here)
    cached = fleet.weights("one").stat()
    await fleet.prefetch("two", here)
    linked = fleet.weights("two").stat()
    assert (linked.st_ino, linked.st_mode, linked.st_mtime_ns) == (cached.st_ino, cached.st_mode, cached.st_mtime_ns)
    config = (fleet.target("two") / "net/config.pbtxt").stat()
    assert config.st_nlink == 1, "config.pbtxt is a file of our own"
    fleet.put("net/1/weights.bin", os.urandom(SHARED))
    await fleet.prefetch("two", here)
    assert fleet.weights("one").read_bytes() == data, "replacing one node's model leaves the old inode alone"


async def should_share_one_task_between_proxy_and_grpc(fleet: Fleet, dragonfly: DragonflyCluster) -> None:
    here = dragonfly.peers[0]
    fleet.put_model(os.urandom(SHARED))
    source, *_ = weights_record(await fleet.prefetch("proxy", here, transport="proxy"))
    assert source == "unknown", "the proxy does not tell where a task's first bytes came from"
    assert weights_record(await fleet.prefetch("grpc", here)) == ("local", 0, 0, SHARED)
    assert weights_record(await fleet.prefetch("again", here, transport="proxy")) == ("local", 0, 0, SHARED)


async def should_ask_the_origin_for_the_bytes_once_whoever_signs(fleet: Fleet, dragonfly: DragonflyCluster) -> None:
    fleet.put_model(os.urandom(SHARED))
    for node, peer in (("one", dragonfly.peers[0]), ("two", dragonfly.peers[1]), ("three", dragonfly.peers[0])):
        await fleet.prefetch(node, peer)
    # Each peer first asks for one byte, to learn the size; that is no traffic.
    lines = [line.lower() for head in fleet.gate.requests("weights.bin") for line in head.splitlines()]
    asked = sorted(line for line in lines if line.startswith("range:") and not line.endswith("=0-0"))
    assert len(asked) == len(set(asked)), f"some bytes were asked for twice: {asked}"


async def should_call_it_cold_when_a_seed_fetched_it_for_us(fleet: Fleet, start_dragonfly: StartDragonfly) -> None:
    cluster = start_dragonfly(peers=2, seed=True)
    fleet.put_model(os.urandom(SHARED))
    source, _, remote, _ = weights_record(await fleet.prefetch("first", cluster.peers[0]))
    assert remote > 0, "with a seed peer even a cold download shows REMOTE_PEER pieces"
    assert source == "cold"
    assert weights_record(await fleet.prefetch("second", cluster.peers[1]))[0] == "remote"


async def should_call_it_joined_when_others_are_fetching_it(fleet: Fleet, dragonfly: DragonflyCluster) -> None:
    here, there = dragonfly.peers
    data = fleet.put_model(os.urandom(5 * SHARED))
    hold = fleet.gate.hold("weights.bin", after=2 * MIB)
    first = asyncio.create_task(fleet.prefetch("first", here))
    await asyncio.wait_for(hold.reached.wait(), 30)
    second = asyncio.create_task(fleet.prefetch("second", there))
    # The second node's own first request to the origin shows that it has asked the scheduler.
    asked = len(fleet.gate.requests("weights.bin"))
    await _until(lambda: len(fleet.gate.requests("weights.bin")) > asked)
    hold.release()
    assert weights_record(await first)[0] == "cold"
    source, origin, remote, _ = weights_record(await second)
    assert source == ("joined" if not origin else "cold")
    assert remote or origin
    assert fleet.weights("second").read_bytes() == data


async def should_call_it_cold_when_the_scheduler_believed_in_a_dead_peer(
    fleet: Fleet, start_dragonfly: StartDragonfly
) -> None:
    cluster = start_dragonfly(peers=2)
    fleet.put_model(os.urandom(SHARED))
    await fleet.prefetch("first", cluster.peers[0])
    cluster.peers[0].kill()
    assert weights_record(await fleet.prefetch("second", cluster.peers[1]))[0] == "cold"


@pytest.mark.parametrize("transport", ["proxy", "dfdaemon"])
async def should_see_an_overwritten_model_on_the_next_pass(
    fleet: Fleet, dragonfly: DragonflyCluster, transport: str
) -> None:
    fleet.put_model(os.urandom(SHARED))
    await fleet.prefetch("node", dragonfly.peers[0], transport)
    new = os.urandom(SHARED)
    fleet.put("net/1/weights.bin", new)
    result = await fleet.prefetch("node", dragonfly.peers[0], transport)
    assert [record.outcome for record in result.models] == ["published"]
    assert fleet.weights("node").read_bytes() == new


@pytest.mark.parametrize("transport", ["proxy", "dfdaemon"])
async def should_never_mix_two_versions_when_overwritten_during_the_download(
    fleet: Fleet, dragonfly: DragonflyCluster, transport: str
) -> None:
    old, new = os.urandom(100 * MIB), os.urandom(100 * MIB)
    fleet.put_model(old)
    hold = fleet.gate.hold("weights.bin", after=2 * MIB)
    running = asyncio.create_task(fleet.prefetch("node", dragonfly.peers[0], transport))
    await asyncio.wait_for(hold.reached.wait(), 30)
    fleet.put("net/1/weights.bin", new)
    hold.release()
    result = await running
    assert not result.errors
    assert fleet.weights("node").read_bytes() in (old, new)
    await fleet.prefetch("node", dragonfly.peers[0], transport)
    assert fleet.weights("node").read_bytes() == new
    # Nothing of the new version may be in the cache under the old one's identity, or the other way round.
    assert weights_record(await fleet.prefetch("second", dragonfly.peers[1]))[0] in ("remote", "cold")
    assert fleet.weights("second").read_bytes() == new


async def should_say_so_when_dfdaemon_is_killed_and_complete_on_the_next_run(
    fleet: Fleet, start_dragonfly: StartDragonfly
) -> None:
    cluster = start_dragonfly(peers=1)
    peer = cluster.peers[0]
    data = fleet.put_model(os.urandom(60 * MIB))
    hold = fleet.gate.hold("weights.bin", after=4 * MIB)
    running = asyncio.create_task(fleet.prefetch("node", peer))
    await asyncio.wait_for(hold.reached.wait(), 30)
    peer.kill()
    result = await asyncio.wait_for(running, 60)
    (error,) = result.errors
    assert isinstance(error, (PeerUnavailable, ConnectFailed)) and "dfdaemon" in error.message and error.hint
    assert list(fleet.target("node").iterdir()) == []
    hold.release()
    peer.restart()
    await fleet.prefetch("node", peer)
    assert fleet.weights("node").read_bytes() == data


async def should_end_a_remote_hit_whose_origin_is_dead(fleet: Fleet, dragonfly: DragonflyCluster) -> None:
    """dfdaemon asks the origin even when all bytes come from peers, and hangs if it does not answer."""
    here, there = dragonfly.peers
    fleet.put_model(os.urandom(SHARED))
    await fleet.prefetch("first", here)
    hold = fleet.gate.hold("weights.bin")
    result = await asyncio.wait_for(fleet.prefetch("second", there, stall=1.0), 60)
    (error,) = result.errors
    assert isinstance(error, Stalled) and "--stall-timeout" in error.hint
    assert list(fleet.target("second").iterdir()) == []
    hold.release()
    assert weights_record(await fleet.prefetch("second", there))[0] in ("remote", "local")


async def should_serve_a_local_hit_with_a_dead_origin(fleet: Fleet, dragonfly: DragonflyCluster) -> None:
    here = dragonfly.peers[0]
    data = fleet.put_model(os.urandom(SHARED))
    await fleet.prefetch("first", here)
    hold = fleet.gate.hold("weights.bin")
    assert weights_record(await fleet.prefetch("second", here))[0] == "local"
    assert not hold.reached.is_set()
    assert fleet.weights("second").read_bytes() == data


async def should_share_no_cache_between_credentials_when_isolated(fleet: Fleet, dragonfly: DragonflyCluster) -> None:
    here = dragonfly.peers[0]
    fleet.put_model(os.urandom(SHARED))
    await fleet.prefetch("shared", here)
    isolated = await fleet.prefetch("isolated", here, isolation="per-credential")
    assert weights_record(isolated)[0] == "cold"


async def should_map_paths_into_dfdaemons_file_system(fleet: Fleet, dragonfly: DragonflyCluster) -> None:
    """dfdaemon sees the folder by another name, as it does from another mount namespace."""
    data = fleet.put_model(os.urandom(SHARED))
    mine, theirs = fleet.folder / "mapped", fleet.folder / "as-dfdaemon-sees-it"
    mine.mkdir(parents=True)
    wrong = await fleet.prefetch("mapped", dragonfly.peers[0], path_map={str(mine): str(theirs)})
    assert isinstance(wrong.errors[0], PeerUnavailable), "the mapped path is the one that dfdaemon is given"
    theirs.symlink_to(mine, target_is_directory=True)
    right = await fleet.prefetch("mapped", dragonfly.peers[0], path_map={str(mine): str(theirs)})
    assert not right.errors
    assert fleet.weights("mapped").read_bytes() == data


async def should_finish_many_small_objects_although_dfdaemon_sheds_load(
    fleet: Fleet, dragonfly: DragonflyCluster
) -> None:
    fleet.put("net/config.pbtxt", CONFIG.encode())
    client = fleet.server.client()
    names = [f"{number:04}" for number in range(300)]
    await asyncio.gather(
        *(
            asyncio.to_thread(
                client.put_object, Bucket=fleet.bucket, Key=f"repo/net/1/{name}", Body=name.encode() * 100
            )
            for name in names
        )
    )
    result = await fleet.prefetch("node", dragonfly.peers[0], concurrency=64)
    assert not result.errors
    assert {path.name: path.read_bytes() for path in (fleet.target("node") / "net/1").iterdir()} == {
        name: name.encode() * 100 for name in names
    }


async def _until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)
