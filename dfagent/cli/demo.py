"""`dfagent demo`: the whole way on this machine."""

from __future__ import annotations

import logging
import shutil
import signal
import sys
import time
from pathlib import Path

import click


@click.command("demo", short_help="Show the whole way on this machine.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("demo-output"), show_default=True, metavar="DIR",
    help="Where report.html and records.jsonl go, and the servers' data meanwhile.",
)  # fmt: skip
@click.option(
    "--size", type=click.IntRange(min=8 << 20), default=1 << 30, show_default=True, metavar="BYTES",
    help="Size of the generated model, a multiple of 8.",
)  # fmt: skip
@click.option("--keep", is_flag=True, help="Keep the servers' data and the materialised models.")
def command(output: Path, size: int, keep: bool) -> None:
    """Bring real models from an S3 bucket through real Dragonfly peers into a real Triton, and ask them.

    Runs direct, cold, remote hit and local hit one after the other, each with a Triton of its own, and checks that
    two different inputs get their two right answers. Everything runs on loopback and is taken down at the end.
    """
    from dfagent.cli.running import fail, set_up_logging
    from dfagent.errors import DfagentError

    set_up_logging(logging.WARNING)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        problems = _play(output.resolve(), size - size % 8)
    except DfagentError as exc:
        fail([exc])
    except KeyboardInterrupt:
        print("interrupted: every server was taken down", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    finally:
        if not keep:
            shutil.rmtree(output / "work", ignore_errors=True)
    if problems:
        for problem in problems:
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(1)


def _play(output: Path, size: int) -> list[str]:
    """Plays the demo, prints its table, and returns what went wrong."""
    from rich.console import Console

    from dfagent.cli.progress import watch_progress
    from dfagent.demo.report import CAVEAT, table
    from dfagent.demo.story import Stage, run_demo

    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:6.1f} s] {text}", flush=True)

    with watch_progress(quiet=False) as observer:
        results = run_demo(Stage(output, size, say, observer))
    Console(width=None if sys.stdout.isatty() else 120).print(table(results))
    print(CAVEAT)
    print(f"chart: {(output / 'report.html').as_uri()}")
    print(f"records: {output / 'records.jsonl'}")
    return [problem for result in results for problem in result.problems]
