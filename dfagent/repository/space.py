"""Room on the disk for downloads, promised before they begin, over all models that download side by side."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dfagent.errors import NoSpace
from dfagent.repository.disk import walk
from dfagent.repository.manifest import ManifestFile

_BLOCK = 512


class Space:
    """What is promised to whom on the disk of `state`. `folders` are where a model's downloads lie until it is whole.

    A promise shrinks as the download fills it, because what was written is no longer free. Any thread may call.
    """

    def __init__(self, state: Path, folders: Callable[[str], Iterable[Path]]) -> None:
        self._state = state
        self._folders = folders
        self._mutex = threading.Lock()
        self._promised: dict[str, tuple[int, int]] = {}

    @contextmanager
    def reserving(self, model: str, copied: Iterable[ManifestFile]) -> Iterator[None]:
        """`reserve`, and `release` at the end. Only for code that may block."""
        self.reserve(model, copied)
        try:
            yield
        finally:
            self.release(model)

    def reserve(self, model: str, copied: Iterable[ManifestFile]) -> None:
        """Promises the model room for the files that will take space of ours: not those that dfdaemon links.

        What its partials of these versions already hold is not counted. Raises `NoSpace`, and then promises nothing.
        """
        with self._mutex:
            self._promised.pop(model, None)
            needed = sum(file.size for file in copied) - self._held_for(model, copied)
            others = sum(max(0, size - self._held(name) + held) for name, (size, held) in self._promised.items())
            disk = os.statvfs(self._state)
            free = disk.f_bavail * disk.f_frsize
            if needed > free - others:
                spoken_for = f", {others} of them for other models that download now" if others else ""
                raise NoSpace(
                    f"{model}: {needed} bytes are needed, {free} are free on the disk of {self._state}{spoken_for}",
                    hint="make room, then run again; what is published is as it was",
                )
            if needed > 0:
                self._promised[model] = (needed, self._held(model))

    def release(self, model: str) -> None:
        """The model needs no more room: it is whole, or given up."""
        with self._mutex:
            self._promised.pop(model, None)

    def _held(self, model: str) -> int:
        """Bytes on disk of what is being downloaded; what has another name elsewhere takes no room here."""
        return sum(
            found.st_blocks * _BLOCK
            for folder in self._folders(model)
            for _, found in walk(folder)
            if stat.S_ISREG(found.st_mode) and found.st_nlink == 1
        )

    def _held_for(self, model: str, copied: Iterable[ManifestFile]) -> int:
        """Bytes on disk of the files' own partials, at most each file's size."""
        sizes = {file.version[:32]: file.size for file in copied}
        held: dict[str, int] = {}
        for folder in self._folders(model):
            for name, found in walk(folder):
                task = os.path.basename(name).partition(".")[0]  # noqa: PTH119 — the name is text
                if task in sizes and name.endswith(".partial"):
                    held[task] = max(held.get(task, 0), min(sizes[task], found.st_blocks * _BLOCK))
        return sum(held.values())
