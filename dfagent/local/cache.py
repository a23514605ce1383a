"""Where the real parts lie on this machine: a cache outside the tree, keyed by version, that every checkout shares."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from dfagent.errors import PartError

CLIENT_VERSION = "1.5.10"
SCHEDULER_VERSION = "2.5.1"
# The Go daemon that was before dfdaemon: no module mirror seen here has a newer one.
LEGACY_VERSION = "2.0.9"

_PARTS_LIST = Path(__file__).resolve().parents[2] / "requirements" / "parts.txt"


@dataclass(frozen=True, slots=True)
class DragonflyBinaries:
    """Dragonfly's real programs: the peer's daemon, its download command, and the scheduler."""

    dfdaemon: Path
    dfget: Path
    scheduler: Path


def cache_folder() -> Path:
    """`$DFAGENT_CACHE`, else `dfagent` below `$XDG_CACHE_HOME` or `~/.cache`; it need not exist yet."""
    if own := os.environ.get("DFAGENT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dfagent"


def client_folder() -> Path:
    """The folder of this version's dfdaemon and dfget; it exists only when they are complete."""
    return cache_folder() / "dragonfly" / f"client-{CLIENT_VERSION}" / "bin"


def scheduler_folder() -> Path:
    """The folder of this version's scheduler; it exists only when it is complete."""
    return cache_folder() / "dragonfly" / f"scheduler-{SCHEDULER_VERSION}" / "bin"


def legacy_folder() -> Path:
    """The folder of the Go daemon that was before dfdaemon; it exists only when it is complete."""
    return cache_folder() / "dragonfly" / f"legacy-{LEGACY_VERSION}" / "bin"


def legacy_dfget() -> Path:
    """The Go daemon's program (`dfget daemon` is the peer); it need not exist yet."""
    return legacy_folder() / "dfget"


def build_folder() -> Path:
    """Where builds keep what they have so far; it is gone when they are done."""
    return cache_folder() / "dragonfly" / "build"


def dragonfly_binaries() -> DragonflyBinaries | None:
    """The installed programs, None where one of them is missing."""
    client, scheduler = client_folder(), scheduler_folder()
    binaries = DragonflyBinaries(client / "dfdaemon", client / "dfget", scheduler / "scheduler")
    paths = (binaries.dfdaemon, binaries.dfget, binaries.scheduler)
    return binaries if all(path.exists() for path in paths) else None


def parts_list() -> Path:
    """The pinned list of wheels that are unpacked rather than installed."""
    if not _PARTS_LIST.exists():
        raise PartError(
            "the list of Triton's wheels (requirements/parts.txt) is not here",
            hint="the demo and the tests run from a checkout of dfagent",
        )
    return _PARTS_LIST


def parts_target() -> Path:
    """The folder for exactly the wheels that are pinned now, for this Python; it exists only when they are complete."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return cache_folder() / f"parts-{hashlib.sha256(parts_list().read_bytes()).hexdigest()[:12]}-py{version}"


def parts_folder() -> Path | None:
    """The folder that holds the unpacked wheels as in site-packages, None where they are not installed."""
    folder = parts_target()
    return folder if folder.exists() else None
