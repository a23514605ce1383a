"""What one generation of a model is made of; its digest names the generation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

import orjson

from dfagent.repository.scan import CONFIG_NAME
from dfagent.types import Checksum


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One file: `path` relative to the model's folder, `size` in bytes as published.

    `version` names its content: the task id of the object it came from, or the sha256 of what we wrote ourselves.
    """

    path: str
    size: int
    version: str

    @property
    def own_checksum(self) -> Checksum | None:
        """Of the one file that we write ourselves, config.pbtxt: its version is its sha256."""
        return Checksum("sha256", bytes.fromhex(self.version)) if self.path == CONFIG_NAME else None


@dataclass(frozen=True, slots=True)
class Manifest:
    """A model's files and the (possibly empty) folders that it also has, both in the order of their names.

    `repository` is the URL that the model came from, "" where a manifest was written before that was noted. It is no
    part of the digest: the same files from another URL are the same generation.
    """

    model: str
    files: tuple[ManifestFile, ...]
    folders: tuple[str, ...] = ()
    repository: str = ""

    @classmethod
    def of(cls, model: str, files: Iterable[ManifestFile], folders: Iterable[str], repository: str = "") -> Manifest:
        return cls(model, tuple(sorted(files, key=lambda file: file.path)), tuple(sorted(folders)), repository)

    @property
    def digest(self) -> str:
        content = asdict(self)
        del content["repository"]
        return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()

    @property
    def all_folders(self) -> tuple[str, ...]:
        """Every folder that a file or an empty folder needs, the upper ones first."""
        paths = {*map(PurePosixPath, self.folders), *(PurePosixPath(file.path).parent for file in self.files)}
        return tuple(sorted({str(path) for each in paths for path in (each, *each.parents) if path.name}))

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    def to_json(self) -> bytes:
        return orjson.dumps(asdict(self), option=orjson.OPT_SORT_KEYS)

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """The manifest that `to_json` wrote; raises ValueError, KeyError or TypeError for anything else."""
        raw: dict[str, Any] = orjson.loads(data)
        files = tuple(ManifestFile(**file) for file in raw["files"])
        return cls(raw["model"], files, tuple(raw["folders"]), raw.get("repository", ""))
