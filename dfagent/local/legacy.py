"""A real peer of the Dragonfly before today's on loopback: the Go daemon, `dfget daemon` of Dragonfly 2.0 and 2.1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dfagent.errors import PartError
from dfagent.local.cache import legacy_dfget
from dfagent.local.process import LOOPBACK, Process, clean_environment, free_ports, listens

START_SECONDS = 60


class LegacyPeer:
    """One Go daemon that fetches what it is asked for as a task, whatever its URL; healthy inside the `with` block.

    `proxy` is its HTTP proxy's address. `scheduler` is the port of one on this machine that speaks Dragonfly's first
    protocol; where nobody listens there, the daemon goes to the source by itself.
    """

    def __init__(self, folder: Path, *, scheduler: int | None = None) -> None:
        self.folder = folder
        self.storage = folder / "data"
        unheard, self._proxy_port, self._upload_port, self._peer_port, self._health_port = free_ports(5)
        self.proxy = f"http://{LOOPBACK}:{self._proxy_port}"
        self._scheduler = unheard if scheduler is None else scheduler
        command: list[str | Path] = [_installed(), "daemon", "--config", folder / "dfget.yaml"]
        self.process = Process("legacy daemon", command, log=folder / "output.log", env=clean_environment())

    def start(self) -> LegacyPeer:
        """Start it, or start it again with the tasks it had; returns when its proxy and its health port answer."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # Every JSON document is a YAML document.
        (self.folder / "dfget.yaml").write_text(json.dumps(self._config(), indent=2))
        # One that was killed leaves its socket behind, and would not start over it.
        self._socket.unlink(missing_ok=True)
        self.process.start()
        try:
            ports = (self._proxy_port, self._health_port)
            self.process.wait_until(lambda: all(listens(port) for port in ports), seconds=START_SECONDS)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Ask it to end and see that it does."""
        self.process.stop()

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would."""
        self.process.kill()

    @property
    def _socket(self) -> Path:
        return self.folder / "d.sock"

    def _config(self) -> dict[str, Any]:
        folder = self.folder
        return {
            "aliveTime": "0s",
            "gcInterval": "1m0s",
            "workHome": str(folder),
            "cacheDir": str(folder / "cache"),
            # Its own log goes into files: it holds signed URLs, which must not come out in an error's text.
            "logDir": str(folder / "log"),
            "pluginDir": str(folder / "plugins"),
            "dataDir": str(self.storage),
            "keepStorage": True,
            "scheduler": {
                "manager": {"enable": False},
                "netAddrs": [{"type": "tcp", "addr": f"{LOOPBACK}:{self._scheduler}"}],
                "scheduleTimeout": "1s",
            },
            "host": {"advertiseIP": LOOPBACK, "hostname": folder.name},
            "download": {
                "downloadGRPC": {"security": _PLAIN, "unixListen": {"socket": str(self._socket)}},
                "peerGRPC": {"security": _PLAIN, "tcpListen": _at(self._peer_port)},
            },
            "upload": {"security": _PLAIN, "tcpListen": _at(self._upload_port)},
            "health": {"security": _PLAIN, "tcpListen": _at(self._health_port)},
            "storage": {"taskExpireTime": "6h", "strategy": "io.d7y.storage.v2.simple", "multiplex": True},
            "proxy": {
                "security": _PLAIN,
                "tcpListen": _at(self._proxy_port),
                # What no rule matches it passes on to the store instead of keeping it as a task.
                "proxies": [{"regx": ".*"}],
            },
        }

    def __enter__(self) -> LegacyPeer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


_PLAIN = {"insecure": True}


def _at(port: int) -> dict[str, Any]:
    return {"listen": LOOPBACK, "port": port}


def _installed() -> Path:
    program = legacy_dfget()
    if not program.exists():
        raise PartError("Dragonfly's legacy daemon is not installed", hint="`make dragonfly` installs it")
    return program
