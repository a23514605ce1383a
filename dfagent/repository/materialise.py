"""Assembles one generation of a model: reuse what is unchanged, take in what was fetched, then make it whole at once.

What a power cut or a kill leaves is decided by the order of the steps. Each is on the disk (fsync) before the next one:

1. the bytes of a file: in its partial, or in the peer's cache where they were linked
2. its entry in the ledger, which says that these bytes were verified (not synced itself: a lost one costs reading)
3. its name in the staging folder, which says that the file is whole (`Staging.take`)
4. the names in all folders of the staging folder (from here on: `Staging.finish`)
5. the manifest: its bytes, then its name in manifests/
6. the generation's name: one rename of the staging folder into generations/
7. the link DIR/<model>: one rename, `RepositoryFolder.publish`

So a link leads to a whole generation or to the one before, a name in generations/ always has its manifest, and no name
says more than the bytes can keep. Partials are not synced while they grow: their journals count within one boot only.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from dfagent.errors import DigestMismatch, Truncated
from dfagent.repository.disk import (
    FILE_MODE,
    check_folder,
    disk_errors,
    make_folder,
    remove,
    sync_file,
    sync_folder,
    walk,
    write_file,
)
from dfagent.repository.folder import RepositoryFolder
from dfagent.repository.manifest import Manifest, ManifestFile
from dfagent.repository.trust import Trust, trust
from dfagent.types import Checksum, FileIdentity, file_identity


class Staging:
    """The generation of `manifest` while it is assembled. Methods block on the disk: call them off the event loop."""

    def __init__(self, folder: RepositoryFolder, manifest: Manifest) -> None:
        self._folder = folder
        self.manifest = manifest
        self.digest = manifest.digest
        self._path = folder.staging(manifest.model, self.digest)
        self._folders = manifest.all_folders

    def unproven(self) -> list[ManifestFile]:
        """Files that are here by an earlier run, and that nothing is known of (a lost ledger).

        Who tells the ledger what the store says of them (`Ledger.learn`) saves fetching them again.
        """
        generation, published = self._published()
        found = []
        for file in self.manifest.files:
            places = [(self._path, file)]
            if have := published.get(file.version):
                places.append((generation, have))
            if any(trust(root, there, self._folder.ledger) is Trust.UNPROVEN for root, there in places):
                found.append(file)
        return found

    def _published(self) -> tuple[Path, dict[str, ManifestFile]]:
        """The generation that DIR leads to, and its files by their version."""
        model = self.manifest.model
        digest = self._folder.current(model) or ""
        manifest = self._folder.read_manifest(model, digest) if digest else None
        files = {file.version: file for file in manifest.files} if manifest else {}
        return self._folder.generation(model, digest), files

    def open(self) -> list[ManifestFile]:
        """Makes the folders, takes over what this node already has, and returns the files that are missing.

        A file is in the staging folder only when it is whole, so a killed run's files count, as far as they are
        trusted (`dfagent.repository.trust`).
        """
        with disk_errors(self._folder.state):
            self._check_places()
            self._folder.remove_staging(self.manifest.model, keep=self.digest)
            if not self._is_ours():
                remove(self._path)
            for name in ("", *self._folders):
                make_folder(self._path / name)
            reused = self._reuse()
            return [file for file in self.manifest.files if file not in reused and not self._has(file)]

    def _check_places(self) -> None:
        """Before anything is fetched for them."""
        model = self.manifest.model
        check_folder(self._folder.generation(model, self.digest))
        self._folder.manifest_path(model, self.digest)

    def _is_ours(self) -> bool:
        """Whether nothing is in the staging folder but what belongs there: it is published as a whole."""
        files = {file.path for file in self.manifest.files}
        return not self._path.is_symlink() and all(
            (stat.S_ISREG(found.st_mode) and name in files) or (stat.S_ISDIR(found.st_mode) and name in self._folders)
            for name, found in walk(self._path)
        )

    def _has(self, file: ManifestFile) -> bool:
        return trust(self._path, file, self._folder.ledger) is Trust.VERIFIED

    def _reuse(self) -> set[ManifestFile]:
        """Links the files that the published generation has in the same version, and returns which they are."""
        generation, published = self._published()
        reused: set[ManifestFile] = set()
        for file in self.manifest.files:
            have = published.get(file.version)
            if have is None or self._has(file):
                continue
            if trust(generation, have, self._folder.ledger) is Trust.VERIFIED:
                remove(self._path / file.path)
                os.link(generation / have.path, self._path / file.path, follow_symlinks=False)
                reused.add(file)
        return reused

    def take(
        self,
        file: ManifestFile,
        partial: Path,
        checksum: Checksum | None = None,
        verified_as: FileIdentity | None = None,
    ) -> None:
        """Moves a fetched file in. It may be the P2P cache's inode, so it is only ever renamed.

        `checksum` is the store's own that the bytes were found to agree with, None where there is none; `verified_as`
        is how the file was then. Raises `DigestMismatch` for one that was changed since.
        """
        with disk_errors(self._folder.state):
            self._folder.check_held()
            found = partial.lstat()
            if not stat.S_ISREG(found.st_mode) or found.st_size != file.size:
                partial.unlink()
                raise Truncated(
                    f"{self.manifest.model}/{file.path}: {found.st_size} bytes arrived, {file.size} were listed"
                )
            if verified_as and file_identity(found) != verified_as:
                partial.unlink()
                raise DigestMismatch(
                    f"{self.manifest.model}/{file.path}: the file was changed after it had been verified",
                    hint="who else writes into the peer's cache or the state folder? run again",
                )
            if found.st_nlink == 1 and found.st_uid == os.geteuid():
                # Nobody else's: what dfdaemon linked has its name in the cache as well, and keeps its mode.
                partial.chmod(FILE_MODE)
            sync_file(partial)
            self._folder.ledger.remember(file.version, found, checksum, synced=True)
            os.replace(partial, self._path / file.path)

    def write(self, file: ManifestFile, data: bytes) -> None:
        """Writes a file of our own."""
        with disk_errors(self._folder.state):
            path = self._path / file.path
            write_file(path, self._folder.temporary(), data, sync=True)
            self._folder.ledger.remember(file.version, path.lstat(), None, synced=True)

    def finish(self) -> None:
        """Makes the assembled files a generation: synced, with its manifest, under its final name."""
        model = self.manifest.model
        generation = self._folder.generation(model, self.digest)
        with disk_errors(self._folder.state):
            self._folder.check_held()
            for name in ("", *self._folders):
                sync_folder(self._path / name)
            make_folder(generation.parent)
            self._folder.write_manifest(self.manifest)
            self._move_to(generation)
            sync_folder(generation.parent)
        self._folder.remove_partials(model)

    def _move_to(self, generation: Path) -> None:
        """Puts the staging folder where the generation belongs.

        One that is already there was found damaged, else nothing would have been staged. It may be published, and a
        link must never dangle, so it is mended file by file: by names only, what a file's bytes are is not ours alone.
        """
        if not check_folder(generation):
            os.replace(self._path, generation)
            return
        self._folder.forget_loaded(self.manifest.model)
        for name in self._folders:
            if not _is_folder(generation / name):
                remove(generation / name)
            make_folder(generation / name)
        for file in self.manifest.files:
            if _is_folder(generation / file.path):
                remove(generation / file.path)
            os.replace(self._path / file.path, generation / file.path)
        for name in ("", *self._folders):
            sync_folder(generation / name)
        remove(self._path)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
