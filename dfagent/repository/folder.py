"""The model repository on disk: Triton's folder of links, and the state folder beside it that the links lead into.

DIR/<model>                                   -> relative link into generations/, all that Triton sees
.dfagent-<name of DIR>/generations/<model>/<digest>/   a model's files, never changed once they are here
                      /manifests/<model>/<digest>.json what a generation is made of
                      /staging/<model>/<digest>/       a generation that is being assembled
                      /partials/<model>/               downloads under way
                      /loaded/<model>                  what Triton was last seen to serve
                      /configs/<model>                 config.pbtxt as the store has it, after its version
                      /target                          which DIR this is the state of
                      /tmp/                            files that are about to be renamed
                      /ledger.sqlite                   what was verified before, and what the store said of it
                      /lock                            held by the one dfagent that works here
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dfagent.errors import ConfigError, FolderInUse, NoSpace, RepositoryError, UnsafePath
from dfagent.repository import ledger
from dfagent.repository.ledger import Ledger
from dfagent.repository.manifest import Manifest

FOLDER_MODE = 0o750
FILE_MODE = 0o640
_KINDS = ("generations", "manifests", "staging", "partials", "loaded", "configs", "tmp")
_OWNER = "target"
_RESUMABLE = (".direct.partial", ".direct.parts", ".proxy.partial", ".proxy.parts")


class RepositoryFolder:
    """DIR and its state folder. Every method blocks on the disk: call them off the event loop."""

    def __init__(self, target: Path, state: Path | None = None) -> None:
        # Resolved once, because a relative link must be right from where DIR really is.
        self.target = _resolved(target)
        self.state = _resolved(state) if state else self.target.parent / f".dfagent-{self.target.name}"
        self._lock_fd = -1
        self.ledger = Ledger(self.state)

    def open(self) -> None:
        """Makes both folders, proves that a link in one can be replaced from the other, and takes the lock."""
        with disk_errors(self.target):
            self._check_places()
            self.target.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            for kind in _KINDS:
                self._state(kind).mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            (self.state / _OWNER).write_text(self._owner)
            self._lock()
            try:
                self._check_same_mount()
                self._sweep()
                self.ledger = Ledger(self.state)
            except BaseException:
                self.close()
                raise

    @property
    def _owner(self) -> str:
        """How the state folder names its DIR; relative, so that both can be moved together."""
        return os.path.relpath(self.target, self.state)

    def _check_places(self) -> None:
        """Refuses places where one folder would spoil the other, and a state folder that is not this DIR's own."""
        if self.state == self.target or self.target in self.state.parents:
            raise ConfigError(
                f"the state folder {self.state} lies inside the model repository {self.target}",
                hint="choose one beside it: Triton takes every folder in its repository for a model",
            )
        if self.state in self.target.parents:
            raise ConfigError(
                f"the model repository {self.target} lies inside the state folder {self.state}",
                hint="choose a state folder beside it",
            )
        owner = _read_text(self.state / _OWNER)
        names = {path.name for path in self.state.iterdir()} if self.state.exists() else set()
        if owner is None and names - {*_KINDS, "lock", *ledger.FILES}:
            raise ConfigError(
                f"the state folder {self.state} holds files that are not dfagent's",
                hint="choose an empty or a new folder for --state",
            )
        if owner is not None and owner != self._owner:
            raise ConfigError(
                f"{self.state} is the state folder of another model repository ({owner} from there)",
                hint="give each --to a --state of its own",
            )

    def close(self) -> None:
        self.ledger.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _state(self, kind: str) -> Path:
        return self.state / kind

    def _lock(self) -> None:
        self._lock_fd = os.open(self.state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock_fd, 20, 0).decode(errors="replace").strip()
            self.close()
            raise FolderInUse(
                f"another dfagent (process {holder or 'unknown'}) works on {self.target}",
                hint="wait for it, stop it, or give this one another --to",
            ) from None
        os.ftruncate(self._lock_fd, 0)
        os.pwrite(self._lock_fd, f"{os.getpid()}\n".encode(), 0)

    def _check_same_mount(self) -> None:
        # Two mounts of one file system have the same device number: only trying tells.
        probe, arrived = self.temporary(), self.target / f".dfagent-probe-{uuid.uuid4().hex}"
        probe.touch(FILE_MODE)
        try:
            os.replace(probe, arrived)
        except OSError as exc:
            if exc.errno != errno.EXDEV:
                raise
            raise RepositoryError(self._other_mount(), hint=self._mount_hint()) from exc
        finally:
            probe.unlink(missing_ok=True)
            arrived.unlink(missing_ok=True)

    def _other_mount(self) -> str:
        if os.path.ismount(self.target):
            return f"{self.target} is a mount point itself, so its state folder {self.state} lies on another mount"
        return f"{self.target} and its state folder {self.state} lie on different mounts"

    def _mount_hint(self) -> str:
        if os.path.ismount(self.target):
            return f"choose a folder inside it, such as --to {self.target / 'models'}, and let Triton mount the parent"
        return f"choose --state on the mount of {self.target}, or leave it out"

    def _sweep(self) -> None:
        """Removes what a killed run left and nobody can go on with; downloads with a journal are kept."""
        for folder in _children(self._state("partials")):
            self.remove_unfinished(folder.name)
        for leftover in _children(self._state("tmp")):
            leftover.unlink()

    # One model's places

    def temporary(self) -> Path:
        """A new name for a file that is about to be renamed; what a killed run leaves is removed at the start."""
        return self._state("tmp") / uuid.uuid4().hex

    def partials(self, model: str) -> Path:
        folder = self._state("partials") / model
        folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
        return folder

    def generation(self, model: str, digest: str) -> Path:
        return self._state("generations") / model / digest

    def staging(self, model: str, digest: str) -> Path:
        return self._state("staging") / model / digest

    def manifest_path(self, model: str, digest: str) -> Path:
        return self._state("manifests") / model / f"{digest}.json"

    def stored_config(self, model: str, version: str) -> bytes | None:
        """The model's config.pbtxt as the store had it, if it was of this version."""
        try:
            known, _, data = (self._state("configs") / model).read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        return data if known.decode(errors="replace") == version else None

    def store_config(self, model: str, version: str, data: bytes) -> None:
        """Remembers it, so that an unchanged model costs no request."""
        temporary = self.temporary()
        temporary.write_bytes(version.encode() + b"\n" + data)
        os.replace(temporary, self._state("configs") / model)

    def loaded_path(self, model: str) -> Path:
        return self._state("loaded") / model

    def current(self, model: str) -> str | None:
        """The digest of the generation that DIR/<model> leads to, None where nothing of ours is published.

        Raises `UnsafePath` where something stands there that we did not put.
        """
        link = self.target / model
        try:
            leads_to = Path(os.path.normpath(self.target / os.readlink(link)))
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise self._not_ours(model) from exc
        if leads_to.parent != self._state("generations") / model:
            raise self._not_ours(model)
        return leads_to.name

    def _not_ours(self, model: str) -> UnsafePath:
        return UnsafePath(
            f"{self.target / model} was not put there by dfagent with the state folder {self.state}",
            hint="move it away, or choose another --to",
        )

    def manifest(self, model: str, digest: str) -> Manifest | None:
        """The manifest of a generation whose files are all here with their sizes, else None."""
        try:
            manifest = Manifest.from_json(self.manifest_path(model, digest).read_bytes())
            folder = self.generation(model, digest)
            whole = all((folder / file.path).stat().st_size == file.size for file in manifest.files)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return manifest if whole and manifest.digest == digest else None

    def publish(self, model: str, digest: str) -> None:
        """Makes DIR/<model> lead to the generation, by one atomic replacement; nothing ever sees it missing."""
        link = self.target / model
        text = os.path.relpath(self.generation(model, digest), self.target)
        prepared = self.temporary()
        with disk_errors(self.target):
            prepared.symlink_to(text)
            os.replace(prepared, link)
            sync_folder(self.target)

    def remove_generations(self, model: str, keep: set[str]) -> None:
        """Removes every generation of the model but those to keep; the published one always stays."""
        keep = keep | {self.current(model) or ""}
        for folder in _children(self._state("generations") / model):
            if folder.name not in keep:
                # The manifest goes first: a generation without one is never taken for a whole one.
                self.manifest_path(model, folder.name).unlink(missing_ok=True)
                shutil.rmtree(folder, ignore_errors=True)

    def remove_staging(self, model: str, keep: str) -> None:
        """Removes what other, superseded downloads of the model left."""
        for folder in _children(self._state("staging") / model):
            if folder.name != keep:
                shutil.rmtree(folder, ignore_errors=True)

    def remove_unfinished(self, model: str) -> None:
        """Removes partials that no later download goes on with: all but those with a journal."""
        for partial in _children(self._state("partials") / model):
            if not partial.name.endswith(_RESUMABLE):
                partial.unlink(missing_ok=True)

    def remove_partials(self, model: str) -> None:
        shutil.rmtree(self._state("partials") / model, ignore_errors=True)


def _resolved(path: Path) -> Path:
    with disk_errors(path):
        try:
            return path.resolve()
        except RuntimeError as exc:  # a loop of symbolic links, before Python 3.13
            raise ConfigError(f"{path} is a loop of links", hint="choose another folder") from exc


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _children(folder: Path) -> Iterator[Path]:
    with suppress(FileNotFoundError):
        yield from list(folder.iterdir())


@contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """The disk's errors as ours."""
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"the disk of {where} is full", hint="make room, then run again") from exc
        raise RepositoryError(
            f"can't write to {where}: {exc.strerror or exc}",
            hint="the user that dfagent runs as needs write access to it and to its parent",
        ) from exc


def sync_folder(folder: Path) -> None:
    """Makes the names in the folder survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
