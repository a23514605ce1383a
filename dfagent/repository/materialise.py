"""Assembles one generation of a model: reuse what is unchanged, take in what was fetched, then make it whole at once.

Order on disk: files, then the manifest, then the folder's rename into generations/, then the link. Each is synced
before the next, so after a crash a generation is either whole or not there.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from dfagent.errors import Truncated
from dfagent.repository.folder import FILE_MODE, FOLDER_MODE, RepositoryFolder, disk_errors, sync_folder
from dfagent.repository.manifest import Manifest, ManifestFile


class Staging:
    """The generation of `manifest` while it is assembled. Methods block on the disk: call them off the event loop."""

    def __init__(self, folder: RepositoryFolder, manifest: Manifest) -> None:
        self._folder = folder
        self.manifest = manifest
        self.digest = manifest.digest
        self._path = folder.staging(manifest.model, self.digest)

    def open(self) -> list[ManifestFile]:
        """Makes the folders, takes over what this node already has, and returns the files that are missing.

        A file is in the staging folder only when it is whole, so a killed run's files count.
        """
        with disk_errors(self._folder.state):
            self._folder.remove_staging(self.manifest.model, keep=self.digest)
            for name in ("", *self.manifest.folders, *(str(Path(file.path).parent) for file in self.manifest.files)):
                (self._path / name).mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            self._reuse()
            return [file for file in self.manifest.files if not self._has(file)]

    def _has(self, file: ManifestFile) -> bool:
        try:
            return (self._path / file.path).lstat().st_size == file.size
        except FileNotFoundError:
            return False

    def _reuse(self) -> None:
        """Links the files that the published generation has in the same version; generations never change."""
        model = self.manifest.model
        published = self._folder.current(model)
        old = self._folder.manifest(model, published) if published else None
        if old is None or published is None:
            return
        by_version = {file.version: file for file in old.files}
        for file in self.manifest.files:
            have = by_version.get(file.version)
            if have is not None and not self._has(file):
                (self._path / file.path).unlink(missing_ok=True)
                os.link(self._folder.generation(model, published) / have.path, self._path / file.path)

    def take(self, file: ManifestFile, partial: Path) -> None:
        """Moves a fetched file in. It may be the P2P cache's inode, so it is only ever renamed."""
        with disk_errors(self._folder.state):
            size = partial.lstat().st_size
            if size != file.size:
                partial.unlink()
                raise Truncated(f"{self.manifest.model}/{file.path}: {size} bytes arrived, {file.size} were listed")
            # Before the name says that it is whole: after a power cut nothing else would tell zeros from bytes.
            _sync_file(partial)
            os.replace(partial, self._path / file.path)

    def write(self, file: ManifestFile, data: bytes) -> None:
        """Writes a file of our own."""
        with disk_errors(self._folder.state):
            temporary = self._folder.temporary()
            temporary.write_bytes(data)
            temporary.chmod(FILE_MODE)
            _sync_file(temporary)
            os.replace(temporary, self._path / file.path)

    def finish(self) -> None:
        """Makes the assembled files a generation: synced, with its manifest, under its final name."""
        manifest, model = self.manifest, self.manifest.model
        generation = self._folder.generation(model, self.digest)
        manifest_path = self._folder.manifest_path(model, self.digest)
        with disk_errors(self._folder.state):
            for parent in {(self._path / file.path).parent for file in manifest.files} | {self._path}:
                sync_folder(parent)
            for folder in (generation.parent, manifest_path.parent):
                folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            temporary = self._folder.temporary()
            temporary.write_bytes(manifest.to_json())
            _sync_file(temporary)
            os.replace(temporary, manifest_path)
            sync_folder(manifest_path.parent)
            self._move_to(generation)
            sync_folder(generation.parent)
        self._folder.remove_partials(model)

    def _move_to(self, generation: Path) -> None:
        """Puts the staging folder where the generation belongs.

        One that is already there was found damaged, else nothing would have been staged. It may be published, and a
        link must never dangle, so it is mended file by file.
        """
        if not generation.exists():
            os.replace(self._path, generation)
            return
        for name in self.manifest.folders:
            (generation / name).mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        for file in self.manifest.files:
            (generation / file.path).parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            os.replace(self._path / file.path, generation / file.path)
        shutil.rmtree(self._path)


def _sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
