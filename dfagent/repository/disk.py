"""What we do to the disk below the names of the repository: never through a link, with our modes, errors as ours.

Only names are guarded here, not races: whoever can swap our folders while we work is our own user.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dfagent.errors import NoSpace, RepositoryError, UnsafePath

FOLDER_MODE = 0o750
FILE_MODE = 0o640


@contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """The disk's errors as ours."""
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"the disk of {where} is full", hint="make room, then run again") from exc
        if exc.errno == errno.EROFS:
            raise RepositoryError(
                f"can't write to {where}: the file system is read-only",
                hint="mount it writable, or choose another folder; a disk with errors may have become read-only",
            ) from exc
        if exc.errno in (errno.EMFILE, errno.ENFILE):
            raise RepositoryError(
                f"can't work in {where}: {exc.strerror}", hint="raise the limit of open files (ulimit -n)"
            ) from exc
        raise RepositoryError(
            f"can't write to {where}: {exc.strerror or exc}",
            hint="the user that dfagent runs as needs write access to it and to its parent",
        ) from exc


def check_folder(folder: Path) -> bool:
    """Whether the folder exists; raises `UnsafePath` where a link or a file stands in its place."""
    try:
        mode = os.lstat(folder).st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(mode):
        raise UnsafePath(
            f"{folder} is {kind_of(mode)}, where dfagent has a folder of its own",
            hint="dfagent follows no links there: move it away, then run again",
        )
    return True


def make_folder(folder: Path) -> None:
    """Makes the folder and what is missing above it, each with our mode whatever the umask; existing ones stay."""
    if check_folder(folder):
        return
    if not folder.parent.is_dir():
        make_folder(folder.parent)
    try:
        folder.mkdir(FOLDER_MODE)
    except FileExistsError:
        # Somebody else was faster.
        check_folder(folder)
        return
    folder.chmod(FOLDER_MODE)


def read_file(path: Path) -> bytes | None:
    """The content of a regular file, None where there is none; raises `UnsafePath` for anything else."""
    try:
        # Without blocking: a planted pipe would never end.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as exc:
        if exc.errno in (errno.ELOOP, errno.ENXIO):
            raise _no_file(path) from exc
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _no_file(path)
    with os.fdopen(fd, "rb") as file:
        return file.read()


def write_file(path: Path, temporary: Path, data: bytes, *, sync: bool = False) -> None:
    """Replaces the file at once, whatever stood there: a link is replaced, not followed."""
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    with os.fdopen(fd, "wb") as file:
        os.fchmod(fd, FILE_MODE)
        file.write(data)
        if sync:
            file.flush()
            os.fsync(fd)
    try:
        os.replace(temporary, path)
    except IsADirectoryError as exc:
        temporary.unlink()
        raise _no_file(path) from exc


def open_file(path: Path) -> int:
    """A descriptor for reading and writing a file of ours, made if it is not there; the caller closes it."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, FILE_MODE)
    except OSError as exc:
        if exc.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise _no_file(path) from exc
        raise
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        raise _no_file(path)
    if found.st_nlink > 1:
        os.close(fd)
        raise UnsafePath(
            f"{path} is another file's hard link, where dfagent has a file of its own",
            hint="dfagent would write into that file: move it away, then run again",
        )
    os.fchmod(fd, FILE_MODE)
    return fd


def plain_file(root: Path, relative: str) -> os.stat_result | None:
    """The regular file below `root`, None where it or a folder above it is missing, a link or something else."""
    place = root
    with suppress(OSError):
        for component in Path(relative).parts:
            if not stat.S_ISDIR(os.lstat(place).st_mode):
                return None
            place /= component
        found = os.lstat(place)
        return found if stat.S_ISREG(found.st_mode) else None
    return None


def plain_folder(root: Path, relative: str) -> bool:
    """Whether the folder below `root` is there, with no link on the way."""
    place = root
    with suppress(OSError):
        for component in ("", *Path(relative).parts):
            place /= component
            if not stat.S_ISDIR(os.lstat(place).st_mode):
                return False
        return True
    return False


def remove(path: Path) -> None:
    """Removes whatever has this name; of a link only the link. What can't be removed stays: it is in nobody's way."""
    with suppress(OSError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def children(folder: Path) -> list[Path]:
    """What is in the folder, nothing where there is none; raises `UnsafePath` for a link."""
    return sorted(folder.iterdir()) if check_folder(folder) else []


def walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Everything below the folder, by its name relative to it; links are not followed."""
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(parent, name)  # noqa: PTH118 — half of the time would go into Path objects
            with suppress(FileNotFoundError):
                yield os.path.relpath(path, folder), os.lstat(path)


def sync_folder(folder: Path) -> None:
    """Makes the names in the folder survive a power cut."""
    _sync(folder, os.O_DIRECTORY)


def sync_file(path: Path) -> None:
    """Makes the bytes of the file survive a power cut; they may be in a file that is not ours to write."""
    _sync(path, os.O_NOFOLLOW)


def _sync(path: Path, flags: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def kind_of(mode: int) -> str:
    """What the mode says that something is, in words."""
    if stat.S_ISLNK(mode):
        return "a link"
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a file" if stat.S_ISREG(mode) else "neither file nor folder"


def _no_file(path: Path) -> UnsafePath:
    return UnsafePath(
        f"{path} is {kind_of(os.lstat(path).st_mode)}, where dfagent has a file of its own",
        hint="dfagent follows no links there: move it away, then run again",
    )
