"""Progress: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from dfagent.cli.report import shown
from dfagent.model_job import Observer
from dfagent.records import ModelRecord


class Silent:
    """Says nothing."""

    def fetching(self, model: str, size: int) -> None: ...

    def progress(self, model: str, count: int) -> None: ...

    def finished(self, record: ModelRecord) -> None: ...


class Lines:
    """One line when a model's download begins and one when the model is done."""

    def fetching(self, model: str, size: int) -> None:
        if size:
            _say(f"{shown(model)}: fetching {decimal(size)}")

    def progress(self, model: str, count: int) -> None: ...

    def finished(self, record: ModelRecord) -> None:
        _say(f"{shown(record.model)}: {record.outcome}")


def _say(line: str) -> None:
    """A reader that has gone, or a full disk, is no failure of the pass."""
    with suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


class Bars:
    """One bar a model."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, TaskID] = {}

    def fetching(self, model: str, size: int) -> None:
        if model in self._bars:
            self._progress.reset(self._bars[model], total=size)
        elif size:
            self._bars[model] = self._progress.add_task(shown(model), total=size)

    def progress(self, model: str, count: int) -> None:
        if model in self._bars:
            self._progress.advance(self._bars[model], count)

    def finished(self, record: ModelRecord) -> None:
        if record.model in self._bars:
            self._progress.update(self._bars[record.model], description=f"{shown(record.model)}: {record.outcome}")


@contextmanager
def watch_progress(*, quiet: bool) -> Iterator[Observer]:
    """The observer that suits where standard error goes."""
    console = Console(stderr=True)
    if quiet:
        yield Silent()
    elif not console.is_terminal:
        yield Lines()
    else:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=console) as progress:
            yield Bars(progress)
