"""What one generation of a model is made of; its digest names the generation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One file: `path` relative to the model's folder, `size` in bytes as published.

    `version` names its content: the task id of the object it came from, or the sha256 of what we wrote ourselves.
    """

    path: str
    size: int
    version: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A model's files and the (possibly empty) folders that it also has, both in the order of their names."""

    model: str
    files: tuple[ManifestFile, ...]
    folders: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: str, files: Iterable[ManifestFile], folders: Iterable[str]) -> Manifest:
        return cls(model, tuple(sorted(files, key=lambda file: file.path)), tuple(sorted(folders)))

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.to_json()).hexdigest()

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    def to_json(self) -> bytes:
        return orjson.dumps(asdict(self), option=orjson.OPT_SORT_KEYS)

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """The manifest that `to_json` wrote; raises ValueError, KeyError or TypeError for anything else."""
        raw: dict[str, Any] = orjson.loads(data)
        return cls(raw["model"], tuple(ManifestFile(**file) for file in raw["files"]), tuple(raw["folders"]))
