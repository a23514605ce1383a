"""What earlier runs left and later ones may go on with: bounded in number and in age."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dfagent.repository.disk import check_folder, children, remove, walk

MOST_PARTIALS = 256
"""Downloads that are kept over all models; a download is its bytes and its journal."""
KEPT_SECONDS = 7 * 86_400.0

_RESUMABLE = (".direct.partial", ".direct.parts", ".proxy.partial", ".proxy.parts")


@dataclass(slots=True)
class _Download:
    newest: float = 0.0
    files: list[Path] = field(default_factory=list)

    def is_over(self, now: float) -> bool:
        """Too old, or a journal alone: a run was killed just after it had taken the bytes over."""
        return now - self.newest > KEPT_SECONDS or all(path.name.endswith(".parts") for path in self.files)


def remove_unfinished(folder: Path) -> None:
    """Removes the partials of one model that no later download goes on with."""
    for partial in children(folder):
        if not partial.name.endswith(_RESUMABLE):
            remove(partial)


def sweep_partials(root: Path, busy: Collection[str], now: float) -> None:
    """Removes partials that are too old, and the oldest where there are too many; not those of the models in `busy`.

    `root` holds a folder for each model.
    """
    downloads: dict[tuple[str, str], _Download] = {}
    for folder in children(root):
        if folder.name in busy:
            continue
        remove_unfinished(folder)
        for path in children(folder):
            with suppress(FileNotFoundError):
                written = path.lstat().st_mtime
                download = downloads.setdefault((folder.name, path.name.rpartition(".")[0]), _Download())
                download.files.append(path)
                download.newest = max(download.newest, written)
    newest_first = sorted(downloads.values(), key=lambda download: download.newest, reverse=True)
    for number, download in enumerate(newest_first):
        if number >= MOST_PARTIALS or download.is_over(now):
            for path in download.files:
                remove(path)
    _remove_empty(root, busy)


def sweep_staging(root: Path, busy: Collection[str], now: float) -> None:
    """Removes generations that nobody went on assembling, so most likely of models that are no longer wanted."""
    for model in children(root):
        for staged in children(model) if model.name not in busy else ():
            # A file keeps the time of its content when it is moved in; the time of its name changes.
            touched = [staged.lstat().st_ctime, *(found.st_ctime for _, found in walk(staged))]
            if now - max(touched) > KEPT_SECONDS:
                remove(staged)
    _remove_empty(root, busy)


def _remove_empty(root: Path, busy: Collection[str]) -> None:
    for folder in children(root):
        if folder.name not in busy:
            with suppress(OSError):
                folder.rmdir()


def check_models(root: Path) -> None:
    """Raises `UnsafePath` where a link or a file stands among the folders of models."""
    for folder in children(root):
        check_folder(folder)
