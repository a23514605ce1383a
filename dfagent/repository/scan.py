"""Which models a listing holds, and which file of which model each object is."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from dfagent.errors import EmptyRepository, UnsafePath
from dfagent.types import ObjectEntry, RepositoryUrl

CONFIG_NAME = "config.pbtxt"

_log = logging.getLogger(__name__)
# Triton ignores version folders that are zero or start with it.
_VERSION = re.compile(r"[1-9][0-9]*")
# NAME_MAX of every file system that matters here, in bytes.
_LONGEST_COMPONENT = 255


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a model: `path` is relative to the model's folder and safe to join to it."""

    path: PurePosixPath
    entry: ObjectEntry


@dataclass(frozen=True, slots=True)
class ModelSource:
    """One model as the listing holds it.

    `folders` are those that the store has a folder marker for (an ensemble's version folder has nothing else in it).
    Where `problem` is set the model must not be materialised: its name is what the key said, not safe to use as a
    path, and `files` and `folders` are empty.
    """

    name: str
    files: tuple[ModelFile, ...] = ()
    folders: tuple[PurePosixPath, ...] = ()
    problem: UnsafePath | None = None

    @property
    def config(self) -> ModelFile | None:
        """The model's `config.pbtxt`, which Triton does not require of every model."""
        return next((file for file in self.files if file.path == PurePosixPath(CONFIG_NAME)), None)


def scan(url: RepositoryUrl, entries: Iterable[ObjectEntry]) -> list[ModelSource]:
    """The models below `url`, in the listing's order.

    `url` names a folder of models, or one model: then it holds `config.pbtxt` or version folders itself, and the
    model has the name of the prefix's last component (the bucket's where there is none). A model with an unsafe name
    comes back with its `problem`, so that it does not hide the others. Raises `EmptyRepository` where no model is.
    """
    prefix = f"{url.prefix}/" if url.prefix else ""
    listed = list(entries)
    below = [(entry.ref.key[len(prefix) :], entry) for entry in listed if entry.ref.key.startswith(prefix)]
    below = [(path, entry) for path, entry in below if path]
    if _is_single_model([path for path, _ in below]):
        name = url.prefix.rpartition("/")[2] or url.bucket
        models = [_model(name, below)]
    else:
        models = [_model(name, files) for name, files in _by_first_folder(below).items()]
    models = [model for model in models if model.files or model.problem]
    if not models:
        raise EmptyRepository(
            f"no model lies below {url}",
            hint=f"its listing holds {len(listed)} objects and none is in a model's folder: is the prefix right?",
        )
    return models


def _is_single_model(paths: list[str]) -> bool:
    if CONFIG_NAME in paths:
        return True
    # A folder of models may hold one that is called "7": only its own config.pbtxt tells it from a version.
    holds_models = any(path.count("/") == 1 and path.endswith(f"/{CONFIG_NAME}") for path in paths)
    return not holds_models and any(_VERSION.fullmatch(path.partition("/")[0]) for path in paths if "/" in path)


def _by_first_folder(below: list[tuple[str, ObjectEntry]]) -> dict[str, list[tuple[str, ObjectEntry]]]:
    models: dict[str, list[tuple[str, ObjectEntry]]] = {}
    for path, entry in below:
        name, slash, rest = path.partition("/")
        if slash:
            models.setdefault(name, []).append((rest, entry))
        else:
            _log.debug("%r is not in a model's folder: ignored", entry.ref.key)
    return models


def _model(name: str, objects: list[tuple[str, ObjectEntry]]) -> ModelSource:
    files: dict[str, ModelFile] = {}
    folders: dict[str, PurePosixPath] = {}
    try:
        _check_model_name(name)
        for path, entry in objects:
            if _is_folder_marker(path, entry):
                folder = path[:-1]
                if folder:
                    _check_path(folder, name, entry)
                    folders[folder] = PurePosixPath(folder)
                continue
            _check_path(path, name, entry)
            _check_not_listed(path, name, files)
            files[path] = ModelFile(PurePosixPath(path), entry)
        _check_no_file_is_a_folder(name, files, folders)
    except UnsafePath as problem:
        return ModelSource(name, problem=problem)
    return ModelSource(name, tuple(files.values()), tuple(folders.values()))


def _is_folder_marker(path: str, entry: ObjectEntry) -> bool:
    # Consoles and some tools write an empty object `folder/` for each folder.
    return entry.size == 0 and (not path or path.endswith("/"))


def _check_model_name(name: str) -> None:
    complaint = _complaint(name)
    # Our own state folder begins with a dot, and Triton takes every folder for a model, hidden ones too.
    if not complaint and name.startswith("."):
        complaint = "begins with a dot"
    if complaint:
        raise UnsafePath(f"model {name!r}: its name {complaint}", hint="rename the model's folder in the store")


def _check_path(path: str, model: str, entry: ObjectEntry) -> None:
    for component in path.split("/"):
        if complaint := _complaint(component):
            raise UnsafePath(
                f"model {model!r}: key {entry.ref.key!r} can't be a path, a component of it {complaint}",
                hint="rename or remove the object in the store",
            )


def _check_not_listed(path: str, model: str, files: dict[str, ModelFile]) -> None:
    if path in files:
        raise UnsafePath(f"model {model!r}: key {files[path].entry.ref.key!r} is listed twice")


def _check_no_file_is_a_folder(model: str, files: dict[str, ModelFile], folders: dict[str, PurePosixPath]) -> None:
    paths = [*files, *(f"{folder}/" for folder in folders)]
    for folder in (parent for path in paths for parent in _parents(path)):
        if folder in files:
            raise UnsafePath(
                f"model {model!r}: key {files[folder].entry.ref.key!r} is a file and a folder at once",
                hint="rename or remove the object in the store",
            )


def _parents(path: str) -> Iterator[str]:
    for at, character in enumerate(path):
        if character == "/":
            yield path[:at]


def _complaint(component: str) -> str:
    """What makes one component of a path unsafe, "" where nothing does."""
    if not component:
        return "is empty"
    if component in (".", ".."):
        return f"is {component!r}"
    if "/" in component:
        return "holds a slash"
    # Cc: control characters (NUL and newlines too); Cs: halves of a surrogate pair, which no file system takes.
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in component):
        return "holds a control character"
    if len(component.encode()) > _LONGEST_COMPONENT:
        return f"is longer than {_LONGEST_COMPONENT} bytes"
    return ""
