"""File systems of a test's own: a tiny one that fills up, and a view of a folder that can't be written."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def tiny_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system in memory with room for `size` bytes, at the folder."""
    folder.mkdir(exist_ok=True)
    with _mounted("-t", "tmpfs", "-o", f"size={size}", "dfagent-test", folder):
        yield folder


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """The folder can't be written meanwhile, not even by root."""
    with _mounted("--bind", folder, folder):
        _mount("-o", "remount,bind,ro", folder)
        yield


@contextmanager
def _mounted(*arguments: str | Path) -> Iterator[None]:
    _mount(*arguments)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", arguments[-1]], check=True)


def _mount(*arguments: str | Path) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"this test mounts a file system, which needs root in a namespace that may: {done.stderr.strip()}")
