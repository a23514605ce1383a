"""Records for people (a table) and for programs (JSON Lines)."""

from __future__ import annotations

import sys

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from dfagent.agent import PassResult
from dfagent.records import ModelRecord, to_json_line

_PHASES = ("list", "fetch", "publish", "load")


def print_result(result: PassResult, *, as_json: bool) -> None:
    """The records of a pass, on standard output."""
    if as_json:
        print_json(result)
    elif result.models:
        # A file or a pipe has no width, and rich's default of 80 columns would cut the table.
        Console(width=None if sys.stdout.isatty() else 120).print(model_table(result.models))


def print_json(result: PassResult) -> None:
    """JSON Lines: the objects, then the models."""
    for line in (*map(to_json_line, result.objects), *map(to_json_line, result.models)):
        sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


def model_table(models: list[ModelRecord]) -> Table:
    """One row a model: what became of it, where its bytes came from, and seconds; --json has every figure."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("model", overflow="fold")
    for heading in ("outcome", "size", "source"):
        table.add_column(heading, no_wrap=True)
    for phase in _PHASES:
        table.add_column(f"{phase} s", justify="right", no_wrap=True)
    for record in sorted(models, key=lambda record: record.model):
        table.add_row(
            record.model,
            record.outcome + (", READY" if record.loaded else ""),
            decimal(record.bytes),
            f"{record.source.value} ({record.transport})" if record.source else "-",
            *(f"{getattr(record.seconds, phase):.3f}" for phase in _PHASES),
        )
    return table
