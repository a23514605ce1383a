"""A real Dragonfly cluster on loopback: one scheduler, an optional seed peer, and peers."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dfagent.errors import PartError
from dfagent.local.cache import DragonflyBinaries, dragonfly_binaries
from dfagent.local.process import LOOPBACK, Process, clean_environment, free_ports, listens

START_SECONDS = 60
# The scheduler looks for seed peers every 30 s and not at its start (SeedPeerRefreshInterval in its source); nothing
# that it answers tells whether it has looked. Until then peers fetch from the origin as if there were no seed.
SEED_NOTICED_SECONDS = 31
# The kernel takes 107 bytes; the daemon's own temporary names get a few of them.
LONGEST_SOCKET_PATH = 100

Config = Mapping[str, Any]


class Peer:
    """One dfdaemon: `socket` for gRPC, `proxy` and `metrics_url` over HTTP, its cache in `storage`."""

    def __init__(
        self,
        name: str,
        binaries: DragonflyBinaries,
        folder: Path,
        socket_path: Path,
        scheduler: int,
        extra: Config,
        *,
        scheduler_ip: str = LOOPBACK,
    ) -> None:
        self.name = name
        self.folder = folder
        self.socket = socket_path
        self.storage = folder / "data"
        self.upload_port, self.proxy_port, metrics, health, stats, piece_tcp, piece_quic = free_ports(7)
        self.proxy = f"http://127.0.0.1:{self.proxy_port}"
        self.metrics_url = f"http://127.0.0.1:{metrics}/metrics"
        self._config = _merged(
            {
                "host": {"ip": LOOPBACK, "hostname": name},
                "server": {"pluginDir": str(folder / "plugins"), "cacheDir": str(folder / "cache")},
                "download": {"protocol": "tcp", "server": {"socketPath": str(socket_path)}},
                "upload": {"server": {"ip": LOOPBACK, "port": self.upload_port}},
                "storage": {
                    "dir": str(self.storage),
                    "keep": True,
                    "server": {"ip": LOOPBACK, "tcpPort": piece_tcp, "quicPort": piece_quic},
                },
                "proxy": {"server": {"ip": LOOPBACK, "port": self.proxy_port}},
                "metrics": {"server": {"ip": LOOPBACK, "port": metrics}},
                "health": {"server": {"ip": LOOPBACK, "port": health}},
                "stats": {"server": {"ip": LOOPBACK, "port": stats}},
            },
            extra,
        )
        self._schedulers = {"scheduler": {"addrs": [f"{scheduler_ip}:{scheduler}"]}}
        args: list[str | Path] = [
            binaries.dfdaemon,
            "-c",
            folder / "dfdaemon.yaml",
            "--dynconfig",
            folder / "dynconfig.yaml",
        ]
        # Its own log goes into files: it holds signed URLs, which must not come out in an error's text.
        args += ["--log-dir", folder / "log"]
        self.process = Process(name, args, log=folder / "output.log", env=clean_environment())

    def start(self) -> None:
        """Start it without waiting; `wait_healthy` does that."""
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_yaml(self.folder / "dfdaemon.yaml", self._config)
        _write_yaml(self.folder / "dynconfig.yaml", self._schedulers)
        # A daemon that was killed leaves its socket behind, which would look like a living one.
        self.socket.unlink(missing_ok=True)
        self.process.start()

    def wait_healthy(self) -> None:
        """Return when it answers on its socket and accepts connections on its proxy's port."""
        self.process.wait_until(
            lambda: listens(self.proxy_port) and _answers(self.socket), seconds=START_SECONDS, what="healthy"
        )

    def restart(self) -> None:
        """End it and start it again with the same ports and the same cache; returns when it is healthy."""
        self.process.stop()
        self.start()
        self.wait_healthy()

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would."""
        self.process.kill()


class DragonflyCluster:
    """A scheduler, `peers` daemons and, where asked for, a seed peer, all healthy inside the `with` block.

    It takes four seconds to start, half a minute with a seed, because the scheduler looks for seeds so seldom.

    `configs` adds to the configuration of one member by its name (`scheduler`, `seed`, `peer-0`, `peer-1` …), in the
    shape of Dragonfly's own file. Data, logs and configurations stay in `folder` afterwards.
    """

    def __init__(
        self, folder: Path, *, peers: int = 2, seed: bool = False, configs: Mapping[str, Config] | None = None
    ) -> None:
        self.folder = folder
        self.binaries = _installed()
        self._configs = configs or {}
        self._cleanup = ExitStack()
        self.scheduler_port, self._scheduler_metrics_port = free_ports(2)
        self.scheduler = Process(
            "scheduler", self._scheduler_command(), log=folder / "scheduler" / "output.log", env=clean_environment()
        )
        sockets = self._socket_folder()
        self.peers = [self._peer(f"peer-{index}", sockets, {}) for index in range(peers)]
        self.seed = self._peer("seed", sockets, {"seedPeer": {"enable": True, "type": "super"}}) if seed else None

    @property
    def members(self) -> list[Peer]:
        """All daemons, the seed first."""
        return [*([self.seed] if self.seed else []), *self.peers]

    def start(self) -> DragonflyCluster:
        """Start everything; returns when each daemon is healthy and known to the scheduler."""
        try:
            self._start_scheduler()
            scheduler_since = time.monotonic()
            for peer in self.members:
                self._cleanup.callback(peer.process.stop)
                peer.start()
            for peer in self.members:
                peer.wait_healthy()
            names = {peer.name for peer in self.members}
            self.scheduler.wait_until(
                lambda: names <= _known_hosts(self.scheduler_port), seconds=START_SECONDS, what="aware of its peers"
            )
            if self.seed:
                self._wait_for_the_seed_to_be_noticed(scheduler_since)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End every member and remove the sockets."""
        for peer in self.members:
            # All at once: each takes a moment to say goodbye to the scheduler.
            peer.process.terminate()
        self._cleanup.close()

    def _wait_for_the_seed_to_be_noticed(self, scheduler_since: float) -> None:
        noticed = scheduler_since + SEED_NOTICED_SECONDS
        self.scheduler.wait_until(lambda: time.monotonic() > noticed, seconds=2 * SEED_NOTICED_SECONDS)

    def _start_scheduler(self) -> None:
        folder = self.folder / "scheduler"
        folder.mkdir(parents=True, exist_ok=True)
        _write_yaml(folder / "scheduler.yaml", self._scheduler_config(folder))
        _write_yaml(folder / "dynconfig.yaml", _SCHEDULER_DYNCONFIG)
        self._cleanup.callback(self.scheduler.stop)
        self.scheduler.start()
        self.scheduler.wait_until(lambda: _scheduler_answers(self.scheduler_port), seconds=START_SECONDS)

    def _scheduler_command(self) -> list[str | Path]:
        folder = self.folder / "scheduler"
        config, dynconfig = folder / "scheduler.yaml", folder / "dynconfig.yaml"
        return [self.binaries.scheduler, "--config", config, "--dynconfig", dynconfig]

    def _scheduler_config(self, folder: Path) -> Config:
        config = {
            "server": {
                "advertiseIP": LOOPBACK,
                "listenIP": LOOPBACK,
                "port": self.scheduler_port,
                "logDir": str(folder / "log"),
                "pluginDir": str(folder / "plugins"),
                "dataDir": str(folder / "data"),
            },
            "scheduler": {
                "algorithm": "default",
                "backToSourceCount": 200,
                "retryBackToSourceLimit": 3,
                "retryLimit": 5,
                "retryInterval": "500ms",
            },
            "job": {"enable": False},
            "metrics": {"enable": True, "addr": f"127.0.0.1:{self._scheduler_metrics_port}"},
        }
        return _merged(config, self._configs.get("scheduler", {}))

    def _peer(self, name: str, sockets: Path, role: Config) -> Peer:
        extra = _merged(role, self._configs.get(name, {}))
        folder = self.folder / name
        return Peer(name, self.binaries, folder, sockets / f"{name}.sock", self.scheduler_port, extra)

    def _socket_folder(self) -> Path:
        if len(str(self.folder)) + len("/peer-00.sock") <= LONGEST_SOCKET_PATH:
            return self.folder
        short = Path(tempfile.mkdtemp(prefix="dfagent-"))
        self._cleanup.callback(shutil.rmtree, short, ignore_errors=True)
        return short

    def __enter__(self) -> DragonflyCluster:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


# What the scheduler would otherwise be told by a manager.
_SCHEDULER_DYNCONFIG: Config = {
    "applications": [],
    "seedPeerClusterConfig": {"loadLimit": 2000},
    "schedulerClusterConfig": {"candidateParentLimit": 4, "filterParentLimit": 15},
    "schedulerClusterClientConfig": {"loadLimit": 200},
}


def _installed() -> DragonflyBinaries:
    binaries = dragonfly_binaries()
    if binaries is None:
        raise PartError("Dragonfly's dfdaemon and scheduler are not installed", hint="`make dragonfly` installs them")
    return binaries


def _merged(base: Config, extra: Config) -> dict[str, Any]:
    merged = dict(base)
    for key, value in extra.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _write_yaml(path: Path, value: Config) -> None:
    # Every JSON document is a YAML document.
    path.write_text(json.dumps(value, indent=2))


def _answers(socket_path: Path) -> bool:
    """Whether the daemon answers a question about a task that nobody has."""
    import grpc
    from dragonfly_api import dfdaemon_pb2, dfdaemon_pb2_grpc

    if not socket_path.exists():
        return False
    # Without an authority dfdaemon resets every stream on a Unix socket.
    options = [("grpc.default_authority", "localhost")]
    with grpc.insecure_channel(f"unix:{socket_path}", options=options) as channel:
        stub = dfdaemon_pb2_grpc.DfdaemonDownloadStub(channel)  # type: ignore[no-untyped-call]
        try:
            stub.StatLocalTask(dfdaemon_pb2.StatLocalTaskRequest(task_id="0" * 64), timeout=2)
        except grpc.RpcError as answer:
            return bool(answer.code() == grpc.StatusCode.NOT_FOUND)
    return True


def _scheduler_answers(port: int) -> bool:
    import grpc

    try:
        _known_hosts(port)
    except grpc.RpcError:
        return False
    return True


def _known_hosts(port: int) -> set[str]:
    import grpc
    from dragonfly_api import scheduler_pb2, scheduler_pb2_grpc

    # A proxy of the environment is not for loopback.
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = scheduler_pb2_grpc.SchedulerStub(channel)  # type: ignore[no-untyped-call]
        answer = stub.ListHosts(scheduler_pb2.ListHostsRequest(), timeout=2)
    return {host.hostname for host in answer.hosts}
