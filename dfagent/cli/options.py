"""Options that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
_LONGEST_WAIT = 7 * 86_400.0


class Folder(click.Path):
    """A path that is not empty: an unset variable in a script must not mean the current folder."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value):
            self.fail("is empty: is a variable unset?", param, ctx)
        return super().convert(value, param, ctx)


class Seconds(click.FloatRange):
    """A time that a clock can count."""

    def __init__(self) -> None:
        super().__init__(min=0.1, max=_LONGEST_WAIT)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail("is no number of seconds", param, ctx)
        return seconds


_PATH = Folder()

_SHARED = (
    click.argument("urls", metavar="URL...", nargs=-1, required=True),
    click.option(
        "--state", type=_PATH, metavar="DIR", help="State folder [default: .dfagent-<name of --to> beside it]."
    ),
    click.option(
        "--transport",
        type=click.Choice(["auto", "direct", "proxy", "dfdaemon"]),
        help="How bytes come [default: auto, the cheapest that works for each object].",
    ),
    click.option("--all", "select_all", is_flag=True, help="Every model, not only those with the dragonfly agent."),
    click.option(
        "--require-sha256", is_flag=True, help="Every model must have a SHA256SUMS that its files agree with."
    ),
    click.option("--prune", is_flag=True, help="Unload and remove models that the repositories no longer hold."),
    click.option("--allow-empty", is_flag=True, help="With --prune: also where a repository holds no model at all."),
    click.option("--triton", metavar="HOST:PORT", help="Triton's gRPC address."),
    click.option("--config", type=_PATH, metavar="FILE", help="dragonfly_config.json"),
    click.option("--credentials", type=_PATH, metavar="FILE", help="cloud_credential.json"),
    click.option("--json", "as_json", is_flag=True, help="Records as JSON Lines on standard output, no table."),
    click.option("--connect-timeout", type=Seconds(), default=10.0, show_default=True, metavar="SECONDS"),
    click.option(
        "--stall-timeout",
        type=Seconds(),
        default=60.0,
        show_default=True,
        metavar="SECONDS",
        help="Give up an attempt after this long without a byte.",
    ),
    click.option("--load-timeout", type=Seconds(), default=300.0, show_default=True, metavar="SECONDS"),
    click.option("-v", "--verbose", is_flag=True, help="Log every object and every decision."),
)


def shared_options(command: F) -> F:
    """Adds the URLs and every option of a run to a command."""
    for option in reversed(_SHARED):
        command = option(command)
    return command
