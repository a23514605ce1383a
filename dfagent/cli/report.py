"""Records for people (a table) and for programs (JSON Lines)."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from dfagent.agent import PassResult
from dfagent.errors import NoSpace
from dfagent.records import ModelRecord, to_json_line

_PHASES = ("list", "fetch", "publish", "load")
_ENDLESS = 10_000
_WHOLE_NAME = 24


def print_result(result: PassResult, *, as_json: bool) -> None:
    """The records of a pass, on standard output."""
    if as_json:
        print_json(result)
    elif result.models:
        # A file or a pipe has no width, and rich's default of 80 columns would cut the table.
        terminal = bool(sys.stdout and sys.stdout.isatty())
        drawn = io.StringIO()
        console = Console(file=drawn, force_terminal=terminal, width=None if terminal else 120)
        console.print(fitting_table(console, result.models))
        write(drawn.getvalue().encode(errors="replace"))


def print_json(result: PassResult) -> None:
    """JSON Lines: the objects, then the models."""
    write(b"".join((*map(to_json_line, result.objects), *map(to_json_line, result.models))))


def write(data: bytes) -> None:
    """Writes to standard output. A reader that has gone is no failure of the pass, so it is left at that."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as exc:
        # Python would fail once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(exc, BrokenPipeError):
            raise NoSpace(
                f"the records can't be written: {exc.strerror}", hint="where does standard output go?"
            ) from exc


def fitting_table(console: Console, models: list[ModelRecord]) -> Table:
    """The table with as many phases as the console has room for: without them the first columns would be cut."""
    endless = console.options.update(width=_ENDLESS)
    for phases in (_PHASES, ("fetch", "load"), ("fetch",)):
        table = model_table(models, phases)
        if console.measure(table, options=endless).maximum <= console.width:
            return table
    return model_table(models, ())


def model_table(models: list[ModelRecord], phases: Iterable[str] = _PHASES) -> Table:
    """One row a model: what became of it, where its bytes came from, and seconds; --json has every figure."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    # A narrow terminal takes room from the other columns first.
    longest = max((len(shown(record.model)) for record in models), default=0)
    table.add_column("model", overflow="fold", min_width=min(longest, _WHOLE_NAME))
    for heading in ("outcome", "size", "source"):
        table.add_column(heading, overflow="fold")
    for phase in phases:
        table.add_column(f"{phase} s", justify="right", no_wrap=True)
    for record in sorted(models, key=lambda record: record.model):
        table.add_row(
            Text(shown(record.model)),
            record.outcome + (", READY" if record.loaded else ""),
            decimal(record.bytes),
            f"{record.source.value} ({record.transport})" if record.source else "-",
            *(f"{getattr(record.seconds, phase):.3f}" for phase in phases),
        )
    return table


def shown(name: str) -> str:
    """A name from a bucket as a terminal may have it: nobody's control characters reach it."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in name)
