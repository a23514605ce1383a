"""`dfagent verify`: looks at what is published again, and repairs it where asked."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dfagent.cli.options import Folder

if TYPE_CHECKING:
    from dfagent.errors import DfagentError
    from dfagent.verification import ModelCheck

_STORE = {
    "same": "the store has this version",
    "newer": "the store has a newer version",
    "gone": "the store no longer has it",
    "unknown": "the store was not asked",
}


@click.command("verify", short_help="Check what is published against its manifest and the store.")
@click.argument("target", metavar="DIR", type=Folder())
@click.option("--repair", is_flag=True, help="Bring damaged models again; no other dfagent may run on DIR.")
@click.option("--offline", is_flag=True, help="Ask no store: only the files and what is known of them.")
@click.option("--state", type=Folder(), metavar="DIR", help="State folder [default: .dfagent-<name of DIR> beside it].")
@click.option("--config", type=Folder(), metavar="FILE", help="dragonfly_config.json")
@click.option("--credentials", type=Folder(), metavar="FILE", help="cloud_credential.json")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON a model on standard output.")
@click.option("-v", "--verbose", is_flag=True, help="Log every object and every decision.")
def command(target: Path, repair: bool, offline: bool, **arguments: Any) -> None:
    """Read every published file of the model repository DIR, and compare it with its manifest and the store.

    Without --repair nothing is written and nothing is locked, so it may run beside `dfagent serve`. A newer version in
    the store is no damage. Exit code 5: something is damaged, or could not be mended; 3: the store could not be asked
    for what --repair needs.
    """
    from dfagent.cli.running import run, set_up_logging

    set_up_logging(logging.INFO if arguments["verbose"] else logging.WARNING)
    run(_verify(target, repair, offline, arguments))


async def _verify(target: Path, repair: bool, offline: bool, arguments: dict[str, Any]) -> list[DfagentError]:
    from dfagent.cli.progress import Silent
    from dfagent.cli.session import settings
    from dfagent.errors import ConfigError
    from dfagent.wiring import RunOptions, open_verification

    if repair and offline:
        raise ConfigError("--repair needs the store", hint="leave --offline or --repair out")
    options = RunOptions((), target=target, state=arguments["state"])
    async with open_verification(
        settings(arguments), options, Silent(), repair=repair, offline=offline
    ) as verification:
        checks, errors = await verification.run(repair=repair)
    _report(checks, as_json=arguments["as_json"])
    return errors


def _report(checks: list[ModelCheck], *, as_json: bool) -> None:
    import orjson

    from dfagent.cli.report import write

    if as_json:
        write(b"".join(orjson.dumps(check.fields(), option=orjson.OPT_APPEND_NEWLINE) for check in checks))
        return
    lines = [line for check in checks for line in _lines(check)] or ["nothing is published"]
    write(("\n".join(lines) + "\n").encode(errors="replace"))


def _lines(check: ModelCheck) -> list[str]:
    from rich.filesize import decimal

    from dfagent.cli.report import shown

    if check.outcome == "foreign":
        return [f"{shown(check.model)}: {check.note}"]
    unverified = f", {check.unverified} of them without a checksum to compare with" if check.unverified else ""
    about = f"{check.files} files, {decimal(check.bytes)}{unverified}; {_STORE[check.store]}"
    note = f" ({shown(check.note)})" if check.note else ""
    damage = [f"  {shown(found.path) or 'the model'}: {found.problem}" for found in check.damage]
    return [f"{shown(check.model)}: {check.outcome}, {about}{note}", *damage]
