"""Keys of a listing: no path leads out of its model's folder, and none is another one's to the file system."""

from __future__ import annotations

from pathlib import Path

import atheris

from dfagent.errors import EmptyRepository
from dfagent.repository.folding import folding
from dfagent.repository.scan import scan
from dfagent.types import ObjectEntry, ObjectRef, RepositoryUrl

SEEDS = [b"\x07m/a/config.pbtxt\nm/a/1/x\nm/b/../../etc", b"\x01a/A/x\na/a/y\n", b"\x03m//x\nm/a/./b\n/m\n"]
_ROOT = Path("/repository")


def check(data: bytes) -> None:
    """What has no problem is safe to write."""
    given = atheris.FuzzedDataProvider(data)
    kinds = given.ConsumeIntInRange(0, 15)
    fold = folding(by_case=bool(kinds & 1), by_form=bool(kinds & 2), by_end=bool(kinds & 4)) if kinds & 7 else None
    keys = given.ConsumeUnicode(given.remaining_bytes()).split("\n")
    size = kinds >> 3
    entries = [ObjectEntry(ObjectRef("s3", "store:1", "bucket", key), size, '"e"') for key in keys]
    for prefix in ("", "m", "m/a"):
        try:
            models = scan(RepositoryUrl("s3", "http://store:1", "bucket", prefix), entries, fold)
        except EmptyRepository:
            continue
        folders: set[str] = set()
        for model in models:
            if model.problem:
                assert not model.files and not model.folders
                continue
            known = fold(model.name) if fold else model.name
            assert known not in folders
            folders.add(known)
            _check_paths(model.name, [str(file.path) for file in model.files] + [str(path) for path in model.folders])


def _check_paths(model: str, paths: list[str]) -> None:
    for path in paths:
        target = _ROOT / model / path
        assert ".." not in target.parts and target.parts[:3] == ("/", "repository", model)
        assert all(ord(character) > 31 for character in str(target)) and len(str(target).encode()) < 4096
