"""The model repository on disk: Triton's folder of links, and the state folder beside it that the links lead into.

DIR/<model>                                   -> relative link into generations/, all that Triton sees
.dfagent-<name of DIR>/generations/<model>/<digest>/   a model's files, never changed once they are here
                      /manifests/<model>/<digest>.json what a generation is made of
                      /staging/<model>/<digest>/       a generation that is being assembled
                      /partials/<model>/               downloads under way
                      /loaded/<model>                  what Triton was last seen to serve
                      /configs/<model>                 config.pbtxt as the store has it, after its version
                      /sha256sums/<model>              what its files were found to be, where SHA256SUMS is demanded
                      /target                          which DIR this is the state of
                      /tmp/                            files that are about to be renamed
                      /ledger.sqlite                   what was verified before, and what the store said of it
                      /lock                            held by the one dfagent that works here

DIR and --state may be reached through links, which are followed once, at the start. Nothing else may be a link but
DIR/<model>: where one stands in the place of a folder or a file of ours, nothing is written or removed through it.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dfagent.errors import ConfigError, FolderInUse, UnsafePath
from dfagent.repository import leftovers
from dfagent.repository.disk import (
    FILE_MODE,
    FOLDER_MODE,
    check_folder,
    children,
    disk_errors,
    make_folder,
    plain_file,
    plain_folder,
    read_file,
    remove,
    sync_folder,
    write_file,
)
from dfagent.repository.folding import Folding, folding_of
from dfagent.repository.ledger import Ledger
from dfagent.repository.manifest import Manifest, ManifestFile
from dfagent.repository.opening import KINDS, check_places, check_same_mount, is_lock, locked, name_owner, unmake
from dfagent.repository.space import Space
from dfagent.repository.trust import Trust, trust
from dfagent.types import Checksum

__all__ = ["FILE_MODE", "FOLDER_MODE", "RepositoryFolder", "disk_errors"]

_BY_MODEL = ("generations", "manifests", "staging", "partials")


@dataclass(frozen=True, slots=True)
class Examined:
    """A generation as it lies on the disk.

    `unproven` are the files that are trusted only because nothing is known of their versions.
    """

    manifest: Manifest | None
    whole: bool
    unproven: tuple[ManifestFile, ...] = ()


class RepositoryFolder:
    """DIR and its state folder. Every method blocks on the disk: call them off the event loop."""

    def __init__(self, target: Path, state: Path | None = None) -> None:
        # Resolved once, because a relative link must be right from where DIR really is.
        self.target = _resolved(target)
        self.state = _resolved(state) if state else self.target.parent / f".dfagent-{self.target.name}"
        self._lock_fd = -1
        self.ledger = Ledger(self.state)
        self.folds: Folding | None = None
        self.space = Space(self.state, lambda model: (self._state("partials") / model, self._state("staging") / model))

    def open(self) -> None:
        """Makes both folders, proves that a link in one can be replaced from the other, and takes the lock."""
        with disk_errors(self.target):
            check_places(self.target, self.state)
            is_new = not self.state.exists()
            make_folder(self.target)
            make_folder(self.state)
            for kind in KINDS:
                make_folder(self._state(kind))
            self._lock_fd = locked(self.target, self.state)
            try:
                name_owner(self.target, self.state, self.temporary())
                check_same_mount(self.target, self.state, self.temporary())
                self.sweep()
                self.ledger.reopen()
                self.folds = folding_of(self._state("tmp"))
            except BaseException:
                if is_new:
                    unmake(self.state)
                self.close()
                raise

    def hold(self) -> None:
        """Opens anew where the state folder was removed or replaced since: that lock keeps nobody out any more."""
        if not self._is_held():
            self.close()
            self.open()

    def check_held(self) -> None:
        """Before anything is taken over or shown: without its lock another one may be at work here."""
        if not is_lock(self._lock_fd, self.state):
            raise FolderInUse(
                f"{self.state} was removed or replaced while dfagent worked in it", hint="the next run begins anew"
            )

    def _is_held(self) -> bool:
        folders = (self.target, self.state, *map(self._state, KINDS))
        return is_lock(self._lock_fd, self.state) and all(
            folder.is_dir() and not folder.is_symlink() for folder in folders
        )

    def look(self) -> None:
        """Instead of `open`, for one who only reads: needs no lock, and makes and changes nothing."""
        check_places(self.target, self.state)
        for folder in (self.target, self.state):
            if not check_folder(folder):
                raise ConfigError(
                    f"{self.target} is no model repository of dfagent's: there is no {folder}",
                    hint="name the folder that was --to of prefetch or serve, and its --state if it had one",
                )
        self.ledger = Ledger(self.state, read_only=True)

    def close(self) -> None:
        self.ledger.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _state(self, kind: str) -> Path:
        return self.state / kind

    def sweep(self, busy: Collection[str] = (), now: float | None = None) -> None:
        """Removes what killed runs left and nobody goes on with, and what is too old or too much to be kept.

        Nothing of the models in `busy` is touched. `now` is in seconds since the epoch.
        """
        now = time.time() if now is None else now
        for kind in _BY_MODEL:
            leftovers.check_models(self._state(kind))
        leftovers.sweep_partials(self._state("partials"), busy, now)
        leftovers.sweep_staging(self._state("staging"), busy, now)
        if not busy:
            for leftover in children(self._state("tmp")):
                remove(leftover)

    # One model's places

    def _of(self, kind: str, model: str) -> Path:
        """The model's folder of the kind, which need not be there; raises `UnsafePath` where something else is."""
        check_folder(self.state)
        check_folder(self._state(kind))
        folder = self._state(kind) / model
        check_folder(folder)
        return folder

    def temporary(self) -> Path:
        """A new name for a file that is about to be renamed; what a killed run leaves is removed at the start."""
        check_folder(self._state("tmp"))
        return self._state("tmp") / uuid.uuid4().hex

    def partials(self, model: str) -> Path:
        folder = self._of("partials", model)
        make_folder(folder)
        return folder

    def generation(self, model: str, digest: str) -> Path:
        return self._of("generations", model) / digest

    def staging(self, model: str, digest: str) -> Path:
        return self._of("staging", model) / digest

    def manifest_path(self, model: str, digest: str) -> Path:
        return self._of("manifests", model) / f"{digest}.json"

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder for a moment. One below the system's own folder would stay there for ever after a kill."""
        folder = self.temporary()
        make_folder(folder)
        try:
            yield folder
        finally:
            remove(folder)

    def stored_config(self, model: str, version: str) -> bytes | None:
        """The model's config.pbtxt as the store had it, if it was of this version."""
        known, _, data = (self._read("configs", model) or b"").partition(b"\n")
        return data if known == version.encode() else None

    def store_config(self, model: str, version: str, data: bytes) -> None:
        """Remembers it, so that an unchanged model costs no request."""
        self._write("configs", model, version.encode() + b"\n" + data)

    def loaded(self, model: str) -> bytes | None:
        """The note of what Triton was last seen to serve."""
        return self._read("loaded", model)

    def note_loaded(self, model: str, note: bytes) -> None:
        self._write("loaded", model, note)

    def forget_loaded(self, model: str) -> None:
        """The files that Triton loaded are no longer what is there: it has to load them again."""
        check_folder(self._state("loaded"))
        remove(self._state("loaded") / model)

    def sha256_note(self, model: str) -> bytes | None:
        """The note of what the model's files were found to be, where SHA256SUMS is demanded."""
        return self._read("sha256sums", model)

    def note_sha256(self, model: str, note: bytes) -> None:
        self._write("sha256sums", model, note)

    def _read(self, kind: str, model: str) -> bytes | None:
        check_folder(self._state(kind))
        return read_file(self._state(kind) / model)

    def _write(self, kind: str, model: str, data: bytes) -> None:
        check_folder(self._state(kind))
        with disk_errors(self.state):
            write_file(self._state(kind) / model, self.temporary(), data)

    def published(self) -> dict[str, str | None]:
        """What is in DIR, by name: the digest of the generation it leads to, None for what we did not put there."""
        found: dict[str, str | None] = {}
        for path in children(self.target):
            try:
                found[path.name] = self.current(path.name)
            except UnsafePath:
                found[path.name] = None
        return found

    def current(self, model: str) -> str | None:
        """The digest of the generation that DIR/<model> leads to, None where nothing of ours is published.

        Raises `UnsafePath` where something stands there that we did not put.
        """
        link = self.target / model
        check_folder(self.target)
        try:
            leads_to = Path(os.path.normpath(self.target / os.readlink(link)))
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise self._not_ours(model) from exc
        if leads_to.parent != self._state("generations") / model:
            raise self._not_ours(model)
        return leads_to.name

    def origins(self) -> dict[str, Manifest]:
        """A manifest of each model that is or was published here, of whole generations or not, by the model's name.

        Of models without a link too: a removal that was killed left them. Left out is what we did not put there, and
        what came from nobody knows where.
        """
        found: dict[str, Manifest] = {}
        for folder in children(self._state("manifests")):
            try:
                published = self.current(folder.name)
                digests = [published] if published else [path.stem for path in children(folder)]
                manifests = [self.read_manifest(folder.name, digest) for digest in digests]
            except UnsafePath:
                continue
            known = [manifest for manifest in manifests if manifest and manifest.repository]
            if len({manifest.repository for manifest in known}) == 1 and len(known) == len(manifests):
                found[folder.name] = known[0]
        return found

    def _not_ours(self, model: str) -> UnsafePath:
        return UnsafePath(
            f"{self.target / model} was not put there by dfagent with the state folder {self.state}",
            hint="move it away, or choose another --to",
        )

    def manifest(self, model: str, digest: str) -> Manifest | None:
        """The manifest of a generation that is whole (see `examine`), else None."""
        examined = self.examine(model, digest)
        return examined.manifest if examined.whole else None

    def examine(self, model: str, digest: str) -> Examined:
        """Looks whether all folders and files of a generation are here and trusted; reads only what it must."""
        manifest = self.read_manifest(model, digest)
        if manifest is None:
            return Examined(None, whole=False)
        generation = self.generation(model, digest)
        whole = all(plain_folder(generation, folder) for folder in manifest.folders)
        unproven = []
        for file in manifest.files:
            worth = trust(generation, file, self.ledger)
            whole = whole and worth is not Trust.REFUSED
            if worth is Trust.UNPROVEN:
                unproven.append(file)
        return Examined(manifest, whole, tuple(unproven))

    def read_manifest(self, model: str, digest: str) -> Manifest | None:
        """What the generation ought to be made of, None where that is not known."""
        try:
            manifest = Manifest.from_json(read_file(self.manifest_path(model, digest)) or b"")
        except (UnsafePath, OSError, ValueError, KeyError, TypeError):
            return None
        return manifest if (manifest.model, manifest.digest) == (model, digest) else None

    def write_manifest(self, manifest: Manifest) -> None:
        path = self.manifest_path(manifest.model, manifest.digest)
        make_folder(path.parent)
        write_file(path, self.temporary(), manifest.to_json(), sync=True)
        sync_folder(path.parent)

    def settle(self, manifest: Manifest, file: ManifestFile, checksum: Checksum | None) -> None:
        """Says what the store answered about an unproven file of a generation.

        With a checksum the next look reads the file. Where the store has none, what is there now is what counts.
        """
        self.ledger.learn(file.version, checksum)
        found = plain_file(self.generation(manifest.model, manifest.digest), file.path)
        if checksum is None and found is not None and found.st_size == file.size:
            self.ledger.remember(file.version, found, None, synced=True)

    def publish(self, model: str, digest: str) -> None:
        """Makes DIR/<model> lead to the generation, by one atomic replacement; nothing ever sees it missing."""
        link = self.target / model
        text = os.path.relpath(self.generation(model, digest), self.target)
        check_folder(self.target)
        prepared = self.temporary()
        with disk_errors(self.target):
            self.check_held()
            prepared.symlink_to(text)
            try:
                os.replace(prepared, link)
            except IsADirectoryError as exc:
                prepared.unlink()
                raise self._not_ours(model) from exc
            sync_folder(self.target)

    def unpublish(self, model: str) -> None:
        """Takes DIR/<model> away, then all that is kept of the model, what names its origin last.

        So a removal that is killed can be gone on with. Raises `UnsafePath` where DIR/<model> is not ours.
        """
        if self.current(model) is not None:
            check_folder(self.target)
            with disk_errors(self.target):
                (self.target / model).unlink()
                sync_folder(self.target)
        for kind in ("loaded", "configs", "sha256sums"):
            check_folder(self._state(kind))
            remove(self._state(kind) / model)
        for kind in ("partials", "staging", "generations", "manifests"):
            remove(self._of(kind, model))

    def remove_generations(self, model: str, keep: set[str]) -> None:
        """Removes every generation of the model but those to keep; the published one always stays."""
        keep = keep | {self.current(model) or ""}
        for folder in children(self._of("generations", model)):
            if folder.name not in keep:
                # The manifest goes first: a generation without one is never taken for a whole one.
                remove(self.manifest_path(model, folder.name))
                remove(folder)

    def remove_staging(self, model: str, keep: str) -> None:
        """Removes what other, superseded downloads of the model left."""
        for folder in children(self._of("staging", model)):
            if folder.name != keep:
                remove(folder)

    def remove_unfinished(self, model: str) -> None:
        """Removes partials that no later download goes on with: all but those of direct and proxy ones."""
        leftovers.remove_unfinished(self._of("partials", model))

    def remove_partials(self, model: str) -> None:
        remove(self._of("partials", model))


def _resolved(path: Path) -> Path:
    with disk_errors(path):
        try:
            return path.resolve()
        except RuntimeError as exc:  # a loop of symbolic links, before Python 3.13
            raise ConfigError(f"{path} is a loop of links", hint="choose another folder") from exc
