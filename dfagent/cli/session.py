"""From a command's arguments to settings and run options."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dfagent.errors import ConfigError
from dfagent.settings.files import Settings, load_settings
from dfagent.transports.options import Timeouts
from dfagent.wiring import RunOptions


def run_options(arguments: dict[str, Any], target: Path | None, load: bool) -> RunOptions:
    """The shared options of `cli.options` as the values that wiring takes."""
    if load and not arguments["triton"]:
        raise ConfigError("--load needs Triton's address", hint="give --triton HOST:PORT (its gRPC port, often 8001)")
    if arguments["state"] and target is None:
        raise ConfigError("--state goes with --to", hint="give --to DIR, or leave --state out")
    if arguments["triton"] and not load:
        raise ConfigError("--triton alone loads nothing", hint="add --load, or leave --triton out")
    if arguments["require_sha256"] and target is None:
        raise ConfigError(
            "--require-sha256 goes with --to: what is only in a peer's cache can't be checked",
            hint="give --to DIR, or leave --require-sha256 out",
        )
    return RunOptions(
        urls=arguments["urls"],
        target=target,
        state=arguments["state"],
        transport=arguments["transport"],
        select_all=arguments["select_all"],
        triton=arguments["triton"] if load else None,
        require_sha256=arguments["require_sha256"],
        prune=arguments["prune"],
        allow_empty=arguments["allow_empty"],
        load_timeout=arguments["load_timeout"],
        timeouts=Timeouts(connect=arguments["connect_timeout"], stall=arguments["stall_timeout"]),
    )


def settings(arguments: dict[str, Any]) -> Settings:
    """Both settings files, as the shared options and the environment name them."""
    return load_settings(arguments["config"], arguments["credentials"], os.environ)
