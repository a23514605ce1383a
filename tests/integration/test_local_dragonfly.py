"""The cluster that tests, demo and benchmarks share: healthy when it is there, gone when it is not."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import grpc
import pytest
from dragonfly_api import common_pb2, dfdaemon_pb2, dfdaemon_pb2_grpc

from dfagent.local.dragonfly import DragonflyCluster, Peer
from dfagent.local.object_store import S3Server
from tests.conftest import StartDragonfly

MIB = 1 << 20
SEED_OF_BYTES = os.urandom(1 << 16)


def download(peer: Peer, url: str, output: Path, content: str) -> set[Any]:
    """One plain DownloadTask; gives the traffic types of its pieces."""
    request = dfdaemon_pb2.DownloadTaskRequest(
        download=common_pb2.Download(
            url=url,
            type=common_pb2.TaskType.STANDARD,
            output_path=str(output),
            content_for_calculating_task_id=content,
        )
    )
    options = [("grpc.default_authority", "localhost")]
    with grpc.insecure_channel(f"unix:{peer.socket}", options=options) as channel:
        stub = dfdaemon_pb2_grpc.DfdaemonDownloadStub(channel)  # type: ignore[no-untyped-call]
        answers = list(stub.DownloadTask(request, timeout=60))
    return {
        answer.download_piece_finished_response.piece.traffic_type
        for answer in answers
        if answer.HasField("download_piece_finished_response")
    }


def signed_object(server: S3Server, bucket: str, size: int) -> tuple[str, str]:
    """A new object: its signed URL and its sha256."""
    body = (SEED_OF_BYTES * (size // len(SEED_OF_BYTES) + 1))[:size]
    client = server.client()
    client.put_object(Bucket=bucket, Key="object", Body=body)
    url = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "object"})
    return url, hashlib.sha256(body).hexdigest()


def test_an_object_comes_from_the_origin_and_then_from_the_other_peer(
    dragonfly: DragonflyCluster, s3_server: S3Server, bucket: str, tmp_path: Path
) -> None:
    """The two peers know each other through the scheduler."""
    url, digest = signed_object(s3_server, bucket, 12 * MIB)
    first, second = dragonfly.peers
    assert download(first, url, tmp_path / "cold", bucket) == {common_pb2.TrafficType.BACK_TO_SOURCE}
    assert download(second, url, tmp_path / "remote", bucket) == {common_pb2.TrafficType.REMOTE_PEER}
    for name in ("cold", "remote"):
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest


def test_a_seed_fetches_for_the_peers(
    seeded_dragonfly: DragonflyCluster, s3_server: S3Server, bucket: str, tmp_path: Path
) -> None:
    """With a seed even a cold download is a remote peer's."""
    url, _ = signed_object(s3_server, bucket, 12 * MIB)
    assert download(seeded_dragonfly.peers[0], url, tmp_path / "cold", bucket) == {common_pb2.TrafficType.REMOTE_PEER}


def test_a_killed_peer_comes_back_with_its_cache(
    start_dragonfly: StartDragonfly, s3_server: S3Server, bucket: str, tmp_path: Path
) -> None:
    """Restarting keeps ports, socket and what was downloaded."""
    (peer,) = start_dragonfly(peers=1).peers
    url, _ = signed_object(s3_server, bucket, 12 * MIB)
    download(peer, url, tmp_path / "before", bucket)
    peer.kill()
    assert not peer.process.running
    peer.restart()
    assert download(peer, url, tmp_path / "after", bucket) == {common_pb2.TrafficType.LOCAL_PEER}


def test_configs_add_to_one_members_configuration(start_dragonfly: StartDragonfly) -> None:
    """A nested key is added and its neighbours stay."""
    cluster = start_dragonfly(peers=1, configs={"peer-0": {"proxy": {"rules": [{"regex": "models"}]}}})
    config = (cluster.peers[0].folder / "dfdaemon.yaml").read_text()
    assert '"regex": "models"' in config
    assert f'"port": {cluster.peers[0].proxy_port}' in config


@pytest.mark.dragonfly
@pytest.mark.parametrize("depth", [0, 12], ids=["short-path", "path-too-long-for-a-socket"])
def test_nothing_is_left_after_an_error_inside(tmp_path: Path, depth: int) -> None:
    """Processes and sockets are gone, whatever happened, also where the folder's path is too long for a socket."""
    folder = tmp_path.joinpath(*["a-long-name"] * depth)
    cluster = DragonflyCluster(folder, peers=1)
    with pytest.raises(RuntimeError, match="in the middle"), cluster:  # noqa: PT012 — two things must hold inside
        assert all(process.running for process in (cluster.scheduler, cluster.peers[0].process))
        raise RuntimeError("in the middle")
    assert not any(process.running for process in (cluster.scheduler, cluster.peers[0].process))
    assert not cluster.peers[0].socket.exists()
