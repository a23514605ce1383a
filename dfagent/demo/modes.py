"""The four download modes of the seed document, each for real: prefetch, load in Triton, ask the models."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from dfagent.agent import PassResult
from dfagent.demo.models import Answer, DemoRepository, check_answers
from dfagent.local.dragonfly import Peer
from dfagent.local.object_store import S3Server
from dfagent.local.triton import TritonServer
from dfagent.model_job import Observer
from dfagent.settings.credentials import CloudCredentials
from dfagent.settings.dragonfly import DragonflySettings
from dfagent.settings.files import Settings
from dfagent.types import Source
from dfagent.wiring import RunOptions, open_session


@dataclass(frozen=True, slots=True)
class Mode:
    """One way to get the models: through `peer` (None: straight from the store), which should turn out `expected`."""

    title: str
    folder: str
    expected: Source
    peer: Peer | None = None


@dataclass(frozen=True, slots=True)
class ModeResult:
    """What one mode did; `seconds` is the whole of it, from the listing to the last model's READY."""

    mode: Mode
    result: PassResult
    answers: list[Answer]
    seconds: float

    def fetch_seconds(self, model: str) -> float:
        return next(record.seconds.fetch for record in self.result.models if record.model == model)

    @property
    def problems(self) -> list[str]:
        """Everything that did not turn out as it must; a demo without problems is a proof."""
        problems = [error.message for error in self.result.errors]
        problems += [
            f"{record.model} came from {record.source and record.source.value}, expected {self.mode.expected.value}"
            for record in self.result.models
            if record.outcome != "failed" and record.source is not self.mode.expected
        ]
        problems += [
            f"{answer.model}, asked about {answer.input}, said {answer.got!r} instead of {answer.expected!r}"
            for answer in self.answers
            if not answer.right
        ]
        return [f"{self.mode.title}: {problem}" for problem in problems]


async def run_mode(
    mode: Mode, url: str, server: S3Server, repository: DemoRepository, work: Path, observer: Observer
) -> ModeResult:
    """Brings the repository into a fresh folder by the mode, loads it in a Triton of its own, and asks its models."""
    place = work / mode.folder
    models = place / "models"
    models.mkdir(parents=True)
    credential = {"key_id": server.access_key, "secret_key": server.secret_key, "region": "us-east-1"}
    settings = Settings(
        DragonflySettings(socket=mode.peer.socket if mode.peer else None),
        CloudCredentials.model_validate({"s3": {"": credential}}),
    )
    with TritonServer(models, place / "triton") as triton:
        options = RunOptions((url,), target=models, triton=triton.grpc)
        async with open_session(settings, options, observer) as session:
            started = time.monotonic()
            result = await session.run()
            seconds = time.monotonic() - started
        answers = await check_answers(triton.grpc, repository)
    return ModeResult(mode, result, answers, seconds)
