"""The world of real schedules: an S3 server behind a gate, and dfdaemons, one on a small disk, one behind a link."""

from __future__ import annotations

import asyncio
import json
import shlex
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from dragonfly_api import dfdaemon_pb2, dfdaemon_pb2_grpc

from dfagent.agent import PassResult
from dfagent.cli.progress import Silent
from dfagent.local.dragonfly import DragonflyCluster, Peer
from dfagent.local.object_store import S3Server
from dfagent.local.process import free_ports
from dfagent.settings.credentials import CloudCredentials
from dfagent.settings.dragonfly import DragonflySettings
from dfagent.settings.files import Settings
from dfagent.transports.options import Timeouts
from dfagent.transports.retrying import RetryPolicy
from dfagent.ways import Tuning
from dfagent.wiring import RunOptions, open_session
from tests.servers.gate import Gate
from tests.soak.link import Link

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MIB = 1 << 20
START = """
from tests.secrecy.child import watch
watch()
from functools import partial
import dfagent.wiring as wiring
from dfagent.transports.retrying import RetryPolicy
from dfagent.ways import Tuning
wiring.RunOptions = partial(wiring.RunOptions, tuning=Tuning(retries=RetryPolicy(attempts=2, first_pause=0.2)))
from dfagent.cli import main
main()
"""
"""The program itself, but it gives up sooner: a soak has no time for its patience."""
SMALL_DISK = 48 * MIB
CONNECT, STALL = 1.5, 3.0
QUICK = RetryPolicy(attempts=3, first_pause=0.2)
HEALTHY_SECONDS = 60.0
UPLOAD_LIMIT = "40MB"
"""A second: slow enough that a parent can be killed while it gives."""

HERE, PARENT, SMALL, FAR = "peer-0", "peer-1", "peer-2", "peer-3"


@dataclass
class World:
    """Servers that live through all schedules; what one of them broke is mended before the next one."""

    folder: Path
    server: S3Server
    cluster: DragonflyCluster
    gate: Gate
    far_gate: Gate
    link: Link
    small_disk: Path
    client: S3Client
    bucket: str

    def peer(self, name: str) -> Peer:
        return next(peer for peer in self.cluster.peers if peer.name == name)

    def settings(self, peer: Peer) -> Settings:
        secret = {"key_id": self.server.access_key, "secret_key": self.server.secret_key, "region": "us-east-1"}
        proxy = peer.proxy.replace("127.0.0.1", self.link.far) if peer.name == FAR else peer.proxy
        return Settings(
            DragonflySettings.model_validate({"socket": str(peer.socket), "proxy": proxy}),
            CloudCredentials.model_validate({"s3": {"": secret}}),
        )

    def url(self, prefix: str, peer: Peer) -> str:
        gate = self.far_gate if peer.name == FAR else self.gate
        return f"s3://{gate.endpoint}/{self.bucket}/{prefix}"

    async def prefetch(self, prefix: str, peer: Peer, target: Path | None, transport: str) -> PassResult:
        """One run in this process."""
        return await self.prefetch_url(self.url(prefix, peer), peer, target, transport)

    async def prefetch_url(self, url: str, peer: Peer, target: Path | None, transport: str) -> PassResult:
        options = RunOptions(
            (url,), target=target, transport=transport, timeouts=Timeouts(CONNECT, STALL), tuning=Tuning(retries=QUICK)
        )
        async with open_session(self.settings(peer), options, Silent()) as session:
            return await session.run()

    def arguments(self, prefix: str, peer: Peer, target: Path, transport: str) -> list[str]:
        """The program's, for the same run as a process of its own."""
        files = self.folder / "settings" / peer.name
        if not files.exists():
            self._write_settings(files, peer)
        run = ["prefetch", self.url(prefix, peer), "--to", str(target), "--json"]
        options = ["--transport", transport, "--config", str(files / "dragonfly_config.json")]
        options += ["--credentials", str(files / "cloud_credential.json")]
        options += ["--connect-timeout", str(CONNECT), "--stall-timeout", str(STALL)]
        return [*run, *options]

    def _write_settings(self, files: Path, peer: Peer) -> None:
        settings = self.settings(peer)
        files.mkdir(parents=True)
        dragonfly = {"socket": str(settings.dragonfly.socket), "proxy": settings.dragonfly.proxy}
        (files / "dragonfly_config.json").write_text(json.dumps(dragonfly))
        credential = {"key_id": self.server.access_key, "secret_key": self.server.secret_key, "region": "us-east-1"}
        secrets = files / "cloud_credential.json"
        secrets.touch(mode=0o600)
        secrets.write_text(json.dumps({"s3": {"": credential}}))

    def put(self, key: str, data: bytes) -> str:
        """Stores the object; gives its etag."""
        return self.client.put_object(Bucket=self.bucket, Key=key, Body=data)["ETag"]

    def cached(self, peer: Peer, task_id: str) -> Path:
        """Where dfdaemon keeps a task's bytes (found in its source; only tests may know)."""
        return peer.storage / "content" / "tasks" / task_id[:3] / task_id

    def has(self, peer: Peer, task_id: str) -> bool:
        """Whether the peer says that it has the whole task."""
        question = dfdaemon_pb2.StatLocalTaskRequest(task_id=task_id)
        try:
            answer: Any = _ask(peer, lambda stub: stub.StatLocalTask(question, timeout=2))
        except grpc.RpcError:
            return False
        return bool(answer.HasField("finished_at"))

    def fill_small_disk(self, leave: int) -> None:
        """Takes all room of the small disk but `leave` bytes."""
        room = shutil.disk_usage(self.small_disk).free - leave
        with (self.small_disk / "filler").open("ab") as filler, suppress(OSError):
            while room > 0:
                room -= filler.write(bytes(min(room, MIB)))
                filler.flush()

    def forget_rules(self) -> None:
        self.gate.forget()
        self.far_gate.forget()

    async def heal(self) -> None:
        """Everything runs and answers."""
        self.link.up()
        await self.gate.revive()
        await self.far_gate.revive()
        for filler in self.small_disk.glob("filler*"):
            filler.unlink()
        if not self.cluster.scheduler.running:
            self.cluster.scheduler.start()
        for peer in self.cluster.peers:
            if not peer.process.running:
                _move(peer)
                peer.start()
        for peer in self.cluster.peers:
            await answering(peer)

    async def forget(self, tasks: set[str]) -> None:
        """Deletes the tasks everywhere, so that three hundred schedules don't fill the disk."""
        for peer in self.cluster.peers:
            await asyncio.to_thread(_delete, peer, tasks)


async def answering(peer: Peer) -> None:
    """Returns when the daemon answers on its socket (the event loop, and with it the gate, goes on meanwhile)."""
    deadline = time.monotonic() + HEALTHY_SECONDS
    while not await asyncio.to_thread(_answers, peer):
        if time.monotonic() > deadline:
            raise AssertionError(f"{peer.name} does not answer; its log ends:\n{peer.process.log_tail(40)}")
        await asyncio.sleep(0.05)


def _move(peer: Peer) -> None:
    """Gives the daemon other ports for what it serves to peers.

    It takes them without SO_REUSEADDR, so for a minute after it died while it gave it could not have its own again.
    """
    upload, tcp, quic = free_ports(3)
    config: Any = peer._config
    config["upload"]["server"]["port"] = upload
    config["storage"]["server"].update(tcpPort=tcp, quicPort=quic)


@asynccontextmanager
async def world(folder: Path, server: S3Server) -> AsyncIterator[World]:
    """The world in the block; its folder should lie on a real disk with room for a few GB."""
    async with AsyncExitStack() as stack:
        link = stack.enter_context(Link())
        client = server.client()
        bucket = f"soak-{folder.name}"
        client.create_bucket(Bucket=bucket)
        small = folder / "dragonfly" / SMALL
        stack.enter_context(_small_disk(small))
        cluster = stack.enter_context(DragonflyCluster(folder / "dragonfly", peers=3, configs=_configs(link)))
        far = _far_peer(cluster, link)
        cluster.peers.append(far)
        for peer in cluster.peers:
            # Nobody needs their goodbyes, which take seconds each.
            stack.callback(peer.kill)
        gate = await stack.enter_async_context(Gate(server.port))
        far_gate = await stack.enter_async_context(Gate(server.port, host=link.near))
        made = World(folder, server, cluster, gate, far_gate, link, small, client, bucket)
        await made.heal()
        yield made


def _configs(link: Link) -> dict[str, Mapping[str, Any]]:
    quick = {"scheduler": {"announceInterval": "1s"}, "upload": {"bandwidthLimit": UPLOAD_LIMIT}}
    # The parent gives to the far peer, too, so it must be known by an address that both can reach.
    reachable = {
        "host": {"ip": link.near},
        "upload": {"server": {"ip": link.near}, "bandwidthLimit": UPLOAD_LIMIT},
        "storage": {"server": {"ip": link.near}},
    }
    scheduler = {"server": {"advertiseIP": link.near, "listenIP": "0.0.0.0"}}
    return {"scheduler": scheduler, HERE: quick, PARENT: {**quick, **reachable}, SMALL: quick}


def _far_peer(cluster: DragonflyCluster, link: Link) -> Peer:
    """A peer in the link's namespace; its socket is a file, so it is asked from anywhere."""
    folder = cluster.folder / FAR
    folder.mkdir(parents=True)
    program = folder / "dfdaemon"
    binaries = cluster.binaries
    program.write_text(f'#!/bin/sh\nexec {shlex.join(link.inside())} {shlex.quote(str(binaries.dfdaemon))} "$@"\n')
    program.chmod(0o755)
    server = {"server": {"ip": link.far}}
    config = {
        "host": {"ip": link.far},
        "upload": server,
        "storage": server,
        "proxy": server,
        "scheduler": {"announceInterval": "1s"},
    }
    socket = cluster.peers[0].socket.with_name(f"{FAR}.sock")
    return Peer(
        FAR, replace(binaries, dfdaemon=program), folder, socket, cluster.scheduler_port, config, scheduler_ip=link.near
    )


@contextmanager
def _small_disk(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "dfagent-soak", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _ask(peer: Peer, question: Callable[[Any], object]) -> object:
    options = [("grpc.default_authority", "localhost")]
    with grpc.insecure_channel(f"unix:{peer.socket}", options=options) as channel:
        return question(dfdaemon_pb2_grpc.DfdaemonDownloadStub(channel))  # type: ignore[no-untyped-call]


def _answers(peer: Peer) -> bool:
    question = dfdaemon_pb2.StatLocalTaskRequest(task_id="0" * 64)
    try:
        _ask(peer, lambda stub: stub.StatLocalTask(question, timeout=2))
    except grpc.RpcError as answer:
        return bool(answer.code() == grpc.StatusCode.NOT_FOUND)
    return True


def _delete(peer: Peer, tasks: set[str]) -> None:
    for task in tasks:
        question = dfdaemon_pb2.DeleteTaskRequest(task_id=task)
        with suppress(grpc.RpcError):
            _ask(peer, partial(_delete_one, question))


def _delete_one(question: Any, stub: Any) -> object:
    return stub.DeleteTask(question, timeout=5)
