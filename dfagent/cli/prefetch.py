"""`dfagent prefetch`: one pass, then the records."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dfagent.cli.options import Folder, shared_options

if TYPE_CHECKING:
    from dfagent.errors import DfagentError


@click.command("prefetch", short_help="Bring models to this node, once.")
@click.option("--to", type=Folder(), metavar="DIR", help="Triton's model repository; made if absent.")
@click.option("--load", is_flag=True, help="Load each model in Triton (explicit model control) and wait until READY.")
@shared_options
def command(to: Path | None, load: bool, **arguments: Any) -> None:
    """Bring the models of each URL into DIR, and load them.

    A URL is s3://bucket/prefix or s3://http://host:port/bucket/prefix, and holds models or is one. Without --to the
    objects only go into the Dragonfly peer's cache. Unchanged objects are not downloaded again.
    """
    from dfagent.cli.running import run, set_up_logging

    set_up_logging(logging.INFO if arguments["verbose"] else logging.WARNING)
    run(_prefetch(to, load, arguments))


async def _prefetch(to: Path | None, load: bool, arguments: dict[str, Any]) -> list[DfagentError]:
    from dfagent.cli.progress import watch_progress
    from dfagent.cli.report import print_result
    from dfagent.cli.session import run_options, settings
    from dfagent.wiring import open_session

    options = run_options(arguments, to, load)
    with watch_progress(quiet=arguments["as_json"]) as observer:
        async with open_session(settings(arguments), options, observer) as session:
            if session.triton:
                await session.triton.check()
            result = await session.run()
    print_result(result, as_json=arguments["as_json"])
    return result.errors
