"""What has to hold before anything is written: places that don't spoil each other, one dfagent at a time, one mount."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import uuid
from contextlib import suppress
from pathlib import Path

from dfagent.errors import ConfigError, FolderInUse, RepositoryError
from dfagent.repository import ledger
from dfagent.repository.disk import children, open_file, plain_file, read_file, write_file

KINDS = ("generations", "manifests", "staging", "partials", "loaded", "configs", "sha256sums", "tmp")
"""The folders in the state folder."""
_OWNER = "target"
_LOCK = "lock"
_PROBE = re.compile(r"\.dfagent-probe-[0-9a-f]{32}")


def check_places(target: Path, state: Path) -> None:
    """Refuses places where one folder would spoil the other, and a state folder that is not this DIR's own."""
    if target.exists() and not target.is_dir():
        raise ConfigError(
            f"{target} is no folder", hint="name the folder that is to be, or is, Triton's model repository"
        )
    if state == target or target in state.parents:
        raise ConfigError(
            f"the state folder {state} lies inside the model repository {target}",
            hint="choose one beside it: Triton takes every folder in its repository for a model",
        )
    if state in target.parents:
        raise ConfigError(
            f"the model repository {target} lies inside the state folder {state}",
            hint="choose a state folder beside it",
        )
    names = {path.name for path in children(state)}
    owner = read_file(state / _OWNER)
    if owner is None and names - {*KINDS, _LOCK, *ledger.FILES}:
        raise ConfigError(
            f"the state folder {state} holds files that are not dfagent's",
            hint="choose an empty or a new folder for --state",
        )
    if owner is not None and owner.decode(errors="replace") != _owner(target, state):
        raise ConfigError(
            f"{state} is the state folder of another model repository ({owner.decode(errors='replace')} from there)",
            hint="give each --to a --state of its own",
        )


def name_owner(target: Path, state: Path, temporary: Path) -> None:
    """Writes down which DIR this is the state folder of."""
    write_file(state / _OWNER, temporary, _owner(target, state).encode())


def _owner(target: Path, state: Path) -> str:
    """How the state folder names its DIR; relative, so that both can be moved together."""
    return os.path.relpath(target, state)


def is_lock(fd: int, state: Path) -> bool:
    """Whether the descriptor is of the lock that others find: only that one keeps them out."""
    with suppress(OSError):
        return os.path.samestat(os.fstat(fd), os.lstat(state / _LOCK))
    return False


def locked(target: Path, state: Path) -> int:
    """The file descriptor that holds the lock; raises `FolderInUse` where another dfagent has it."""
    fd = open_file(state / _LOCK)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not is_lock(fd, state):
            raise BlockingIOError  # another one took the folder away and made it anew just then
    except BlockingIOError:
        holder = os.pread(fd, 20, 0).decode(errors="replace").strip()
        os.close(fd)
        raise FolderInUse(
            f"another dfagent (process {holder or 'unknown'}) works on {target}",
            hint="wait for it, stop it, or give this one another --to",
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def unmake(state: Path) -> None:
    """Takes a new state folder away again that turned out to be in the wrong place; only what is empty goes."""
    with suppress(OSError):
        for kind in KINDS:
            (state / kind).rmdir()
        for name in (_OWNER, _LOCK):
            (state / name).unlink(missing_ok=True)
        state.rmdir()


def check_same_mount(target: Path, state: Path, probe: Path) -> None:
    """Proves by a file `probe` in the state folder that a link in DIR can be replaced from there."""
    # Two mounts of one file system have the same device number: only trying tells.
    for left in children(target):
        if _PROBE.fullmatch(left.name) and (found := plain_file(target, left.name)) and found.st_size == 0:
            left.unlink()  # by a run that was killed just then
    arrived = target / f".dfagent-probe-{uuid.uuid4().hex}"
    try:
        write_file(arrived, probe, b"")
    except OSError as exc:
        if exc.errno != errno.EXDEV:
            raise
        raise _other_mount(target, state) from exc
    finally:
        probe.unlink(missing_ok=True)
        with suppress(OSError):
            arrived.unlink(missing_ok=True)


def _other_mount(target: Path, state: Path) -> RepositoryError:
    if os.path.ismount(target):
        return RepositoryError(
            f"{target} is a mount point itself, so its state folder {state} lies on another mount",
            hint=f"choose a folder inside it, such as --to {target / 'models'}, and let Triton mount the parent",
        )
    return RepositoryError(
        f"{target} and its state folder {state} lie on different mounts",
        hint=f"choose --state on the mount of {target}, or leave it out",
    )
