"""`dfagent serve`: passes at an interval until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import logging
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from dfagent.cli.options import Folder, Seconds, shared_options

if TYPE_CHECKING:
    from dfagent.agent import PassResult


@click.command("serve", short_help="Keep models up to date, until stopped.")
@click.option("--to", type=Folder(), metavar="DIR", required=True, help="Triton's model repository.")
@click.option(
    "--interval",
    type=Seconds(),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Between passes.",
)
@shared_options
def command(to: Path, interval: float, **arguments: Any) -> None:
    """Bring the models of each URL into DIR, load them in Triton (where --triton is given), and repeat.

    A failed pass is logged and tried again at the next interval. SIGTERM gives up the pass under way and exits with 0.
    """
    from dfagent.cli.running import run, set_up_logging

    set_up_logging(logging.INFO)
    run(_serve(to, interval, arguments))


async def _serve(to: Path, interval: float, arguments: dict[str, Any]) -> NoReturn:
    from dfagent.cli.progress import Silent
    from dfagent.cli.running import leave
    from dfagent.cli.session import run_options, settings
    from dfagent.sidecar.watch import watch
    from dfagent.wiring import open_session

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    options = run_options(arguments, to, load=bool(arguments["triton"]))
    async with open_session(settings(arguments), options, Silent()) as session:
        logging.getLogger("dfagent.serve").info("every %g s: %s to %s", interval, " ".join(options.urls), to)
        await watch(session, interval, stop, lambda result: _report(result, arguments["as_json"]))
    leave(0)


def _report(result: PassResult, as_json: bool) -> None:
    from dfagent.cli.report import print_json
    from dfagent.redact import redact

    log = logging.getLogger("dfagent.serve")
    for record in result.models:
        loaded_now = record.loaded and record.seconds.load > 0
        if record.outcome == "published" or loaded_now:
            state = "loaded" if record.loaded else "published"
            log.info("%s: generation %s %s", record.model, record.generation[:12], state)
        elif record.outcome == "removed":
            log.info("%s: removed, %s no longer holds it", record.model, record.repository)
    for error in result.errors:
        log.error("%s", redact(str(error)))
    if as_json:
        print_json(result)
