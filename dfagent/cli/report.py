"""Records for people (a table) and for programs (JSON Lines)."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from dfagent.agent import PassResult
from dfagent.records import ModelRecord, to_json_line


def print_result(result: PassResult, *, as_json: bool) -> None:
    if as_json:
        print_json(result)
    elif result.models:
        Console().print(model_table(result.models))


def print_json(result: PassResult) -> None:
    for line in (*map(to_json_line, result.objects), *map(to_json_line, result.models)):
        sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


def model_table(models: list[ModelRecord]) -> Table:
    """One row a model: what became of it, where its bytes came from, and seconds by phase."""
    table = Table(title="Models", title_justify="left")
    for heading in ("model", "outcome", "size", "fetched", "by", "source", "origin", "remote peer", "local peer"):
        table.add_column(heading, overflow="fold")
    for phase in ("list", "sign", "fetch", "publish", "load"):
        table.add_column(f"{phase} s", justify="right")
    for record in sorted(models, key=lambda record: record.model):
        traffic, seconds = record.traffic, record.seconds
        table.add_row(
            record.model,
            record.outcome + (", READY" if record.loaded else ""),
            decimal(record.bytes),
            decimal(record.fetched_bytes),
            record.transport,
            record.source.value if record.source else "-",
            *(decimal(count) for count in (traffic.origin, traffic.remote_peer, traffic.local_peer)),
            *(f"{value:.3f}" for value in (seconds.list, seconds.sign, seconds.fetch, seconds.publish, seconds.load)),
        )
    return table
