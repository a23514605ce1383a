"""The command line: arguments and presentation only."""

from __future__ import annotations

import importlib

import click

from dfagent import __version__

_COMMANDS = {
    "prefetch": "Bring models to this node, once.",
    "serve": "Keep models on this node and in Triton up to date, until stopped.",
    "verify": "Check what is published against its manifest and the store.",
    "demo": "Show the whole way on this machine: bucket, Dragonfly, Triton, answer.",
}


class _LazyGroup(click.Group):
    """Imports a command's module only when it runs, so that --help and errors come at once."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"dfagent.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="dfagent")
def main() -> None:
    """P2P-accelerated model distribution for NVIDIA Triton, through Dragonfly.

    Exit codes: 0 done, 1 a bug of ours, 2 settings or options, 3 the object store, 4 the transfer, 5 the model
    repository or its folder, 6 Triton, 7 the disk is full, 8 a part of the demo is missing, 130 and 143 interrupted.
    """
