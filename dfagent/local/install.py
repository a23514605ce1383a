"""Installs the real parts into the cache: `python -m dfagent.local.install dragonfly|legacy|parts …`.

Only the standard library is needed, so that it runs before any environment is made.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dfagent.errors import PartError
from dfagent.local.build import build_client, build_legacy, build_scheduler, need_packages
from dfagent.local.cache import (
    CLIENT_VERSION,
    LEGACY_VERSION,
    SCHEDULER_VERSION,
    DragonflyBinaries,
    cache_folder,
    client_folder,
    dragonfly_binaries,
    legacy_folder,
    parts_folder,
    parts_list,
    parts_target,
    scheduler_folder,
)
from dfagent.local.releases import ReleaseUnavailable, client_from_release, legacy_from_release, scheduler_from_release

__all__ = [
    "DragonflyBinaries",
    "dragonfly_binaries",
    "install_dragonfly",
    "install_legacy",
    "install_parts",
    "parts_folder",
]

Report = Callable[[str], None]
# Puts the programs into a folder.
Maker = Callable[[Path, Report], None]

WAIT_SECONDS = 1


def install_dragonfly(report: Report) -> DragonflyBinaries:
    """The programs, installed if need be: upstream's release where it can be had, else built, which takes long.

    `report` gets lines for a person, one about every 20 s. A second caller waits for the first and repeats its lines.
    """
    with _alone("dragonfly", report) as say:
        # One after the other: each build uses all the cores there are.
        _install(f"Dragonfly client {CLIENT_VERSION}", client_folder(), client_from_release, build_client, say)
        _install(
            f"Dragonfly scheduler {SCHEDULER_VERSION}", scheduler_folder(), scheduler_from_release, build_scheduler, say
        )
    binaries = dragonfly_binaries()
    if binaries is None:
        raise PartError(f"{client_folder().parents[1]} is not complete", hint="remove it and try again")
    return binaries


def install_legacy(report: Report) -> Path:
    """The folder with the Go daemon that was before dfdaemon, installed likewise; only tests need it."""
    with _alone("dragonfly", report) as say:
        _install(f"Dragonfly's legacy daemon {LEGACY_VERSION}", legacy_folder(), legacy_from_release, build_legacy, say)
    return legacy_folder()


def install_parts(report: Report) -> Path:
    """The folder with the unpacked wheels of Triton and the demo's model, installed if need be by this Python's pip."""
    target = parts_target()
    with _alone("parts", report) as say:
        need_packages("for Triton's python backend", missing_python_library(), say)
        if not target.exists():
            say("downloading Triton and the demo's model (half a gigabyte on disk)")
            with _published(target) as folder:
                _pip_install(folder)
            say(f"Triton is installed in {target}")
    return target


def missing_python_library() -> list[str]:
    """The Debian package with this Python's shared library, where it is not here: Triton's stub is linked to it."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    library = f"libpython{version}.so.1.0"
    if Path(sysconfig.get_config_var("LIBDIR") or "", library).exists():
        return []
    try:
        ctypes.CDLL(library)
    except OSError:
        return [f"libpython{version}"]
    return []


def _install(name: str, bin_folder: Path, from_release: Maker, build: Maker, report: Report) -> None:
    if bin_folder.exists():
        return
    with _published(bin_folder.parent) as folder:
        target = folder / "bin"
        target.mkdir()
        try:
            from_release(target, report)
        except ReleaseUnavailable as why:
            report(f"{name}: upstream's release can't be used ({why}), so it is built")
            shutil.rmtree(target)
            target.mkdir()
            build(target, report)
    report(f"{name} is installed in {bin_folder}")


@contextmanager
def _published(folder: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `folder` only when nothing went wrong."""
    partial = folder.with_name(f"{folder.name}.partial")
    # Nobody else works here (see `_alone`): what is left is of a run that was killed.
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _pip_install(folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    # Python writes no bytecode there: the folder's content is what the wheels hold.
    command += ["--no-compile", "--require-hashes", "-r", str(parts_list()), "--target", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = "\n".join((done.stderr or done.stdout).strip().splitlines()[-10:])
        raise PartError(f"Triton's wheels can't be installed:\n{reason}", hint="`make venv`, then `make parts`")


@contextmanager
def _alone(what: str, report: Report) -> Iterator[Report]:
    """Hold the cache's lock for `what`; gives a `report` whose lines those who wait can read as well."""
    cache = cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = (cache / f"{what}.lock").open("ab")
    except OSError as exc:
        raise PartError(f"the cache {cache} can't be written: {exc}", hint="DFAGENT_CACHE names another") from exc
    lines = cache / f"{what}.progress"
    with lock:
        _wait_for(lock.fileno(), lines, report)
        lines.write_text("")

        def say(line: str) -> None:
            with lines.open("a") as file:
                file.write(line + "\n")
            report(line)

        yield say


def _wait_for(lock: int, lines: Path, report: Report) -> None:
    seen = None
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        said = lines.read_text().splitlines() if lines.exists() else []
        if seen is None:
            report("another process installs it; waiting for that one")
            seen = max(0, len(said) - 1)
        for line in said[seen:]:
            report(line)
        seen = len(said)
        time.sleep(WAIT_SECONDS)


def main(arguments: list[str]) -> int:
    """Install what is named; the exit code is PartError's where it can't be."""
    installers: dict[str, Callable[[Report], object]] = {
        "dragonfly": install_dragonfly,
        "legacy": install_legacy,
        "parts": install_parts,
    }
    if not arguments or not installers.keys() >= set(arguments):
        sys.stderr.write(f"usage: python -m dfagent.local.install {'|'.join(installers)} …\n")
        return 2
    # As an exception, so that what was started is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        for name in arguments:
            installers[name](_print)
    except PartError as exc:
        sys.stderr.write(f"{exc}\n")
        return exc.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return os.EX_OK


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
