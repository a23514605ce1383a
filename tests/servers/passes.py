"""A bucket behind a gate, a folder to materialise into, and passes between them with any options."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dfagent.agent import PassResult
from dfagent.cli.progress import Silent
from dfagent.local.object_store import S3Server
from dfagent.settings.credentials import CloudCredentials
from dfagent.settings.dragonfly import DragonflySettings
from dfagent.settings.files import Settings
from dfagent.wiring import RunOptions, Session, open_session
from tests.servers.gate import Gate

AGENT = 'model_repository_agents { agents [ { name: "dragonfly", } ] }'


def config_of(model: str) -> bytes:
    """A configuration that declares the agent."""
    return f'name: "{model}"\nbackend: "python"\n{AGENT}\n'.encode()


def sums_of(files: dict[str, bytes]) -> bytes:
    """What `sha256sum` writes of these files."""
    return "".join(f"{hashlib.sha256(data).hexdigest()}  {path}\n" for path, data in files.items()).encode()


@dataclass
class Place:
    """`options` are those of every pass; `url` names the repository `repo` unless told otherwise."""

    server: S3Server
    bucket: str
    gate: Gate
    target: Path
    dragonfly: DragonflySettings = field(default_factory=DragonflySettings)
    options: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def client(self) -> Any:
        return self.server.client()

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data)

    def put_files(self, folder: str, files: dict[str, bytes]) -> None:
        for path, data in files.items():
            self.put(f"{folder}/{path}", data)

    def put_model(self, folder: str, weights: bytes = b"weights") -> None:
        self.put_files(folder, {"config.pbtxt": config_of(folder.rpartition("/")[2]), "1/weights": weights})

    def delete(self, prefix: str) -> None:
        for item in self.client.list_objects_v2(Bucket=self.bucket, Prefix=prefix).get("Contents", []):
            self.client.delete_object(Bucket=self.bucket, Key=item["Key"])

    def url(self, prefix: str = "repo") -> str:
        return f"s3://{self.gate.endpoint}/{self.bucket}/{prefix}"

    @asynccontextmanager
    async def session(self, *urls: str, **options: Any) -> AsyncIterator[Session]:
        secret = {"key_id": self.server.access_key, "secret_key": self.server.secret_key, "region": "us-east-1"}
        settings = Settings(self.dragonfly, CloudCredentials.model_validate({"s3": {"": secret}}))
        chosen: dict[str, Any] = {"target": self.target, "transport": "direct", **self.options, **options}
        run = RunOptions(urls or (self.url(),), **chosen)
        async with open_session(settings, run, Silent()) as session:
            yield session

    async def run(self, *urls: str, **options: Any) -> PassResult:
        async with self.session(*urls, **options) as session:
            return await session.run()

    @property
    def state(self) -> Path:
        return self.target.parent / f".dfagent-{self.target.name}"

    def published(self, model: str) -> str:
        """The generation that DIR/<model> leads to."""
        assert (self.target / model).exists(), "a link that leads nowhere breaks Triton's whole index"
        return Path(os.readlink(self.target / model)).name

    def names(self) -> list[str]:
        """What Triton sees."""
        return sorted(path.name for path in self.target.iterdir())

    def outcomes(self, result: PassResult) -> dict[str, str]:
        return {record.model: record.outcome for record in result.models}
