"""Which models a listing holds, and which file of which model each object is."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
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
# Bytes of a path below the model's folder: PATH_MAX with its NUL, less the room that the state folder, the model's name
# and its generation's digest may take before it.
_LONGEST_PATH = 4095 - 1024
# Folders in each other. Far more than models have; making a thousand of them overflows Python's stack.
_DEEPEST = 100
_LONGEST_SHOWN = 400
_RENAME = "rename or remove the object in the store"
_Objects = list[tuple[str, ObjectEntry]]


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


def scan(
    url: RepositoryUrl, entries: Iterable[ObjectEntry], folds: Callable[[str], str] | None = None
) -> list[ModelSource]:
    """The models below `url`, in the listing's order.

    `url` names a folder of models, or one model: then it holds `config.pbtxt` or version folders itself, and the
    model has the name of the prefix's last component (the bucket's where there is none). A model with an unsafe name
    comes back with its `problem`, so that it does not hide the others. `folds` maps a name to what the target's file
    system knows it by (see `dfagent.repository.folding`): names that are one there are unsafe. Without it, names are
    kept apart. Raises `EmptyRepository` where no model is.
    """
    prefix = f"{url.prefix}/" if url.prefix else ""
    listed = list(entries)
    below = [(entry.ref.key[len(prefix) :], entry) for entry in listed if entry.ref.key.startswith(prefix)]
    below = [(path, entry) for path, entry in below if path]
    if _is_single_model([path for path, _ in below]):
        name = url.prefix.rpartition("/")[2] or url.bucket
        models = [_model(name, below, folds)]
    else:
        groups = _by_first_folder(below)
        twins = _twins(groups, folds) if folds else {}
        models = [
            ModelSource(name, problem=twins[name]) if name in twins else _model(name, objects, folds)
            for name, objects in groups.items()
        ]
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


def _by_first_folder(below: _Objects) -> dict[str, _Objects]:
    models: dict[str, _Objects] = {}
    for path, entry in below:
        name, slash, rest = path.partition("/")
        if slash:
            models.setdefault(name, []).append((rest, entry))
        else:
            _log.debug("%r is not in a model's folder: ignored", entry.ref.key)
    return models


def _twins(groups: dict[str, _Objects], folds: Callable[[str], str]) -> dict[str, UnsafePath]:
    """What is wrong with each model whose name is another one's to the file system: neither of them is chosen."""
    by_folded: dict[str, list[str]] = {}
    for name in groups:
        by_folded.setdefault(folds(name), []).append(name)
    twins = {}
    for names in by_folded.values():
        for name in names if len(names) > 1 else ():
            other = next(twin for twin in names if twin != name)
            keys = " and ".join(ascii(groups[model][0][1].ref.key) for model in (name, other))
            twins[name] = UnsafePath(
                f"model {name!a}: its name is the one of model {other!a} on this file system (keys {keys})",
                hint="rename one of the two folders in the store, or use a file system that tells such names apart",
            )
    return twins


def _model(name: str, objects: _Objects, folds: Callable[[str], str] | None) -> ModelSource:
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
        if folds:
            _check_no_twins(name, objects, folds)
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
    components = path.split("/")
    for component in components:
        if complaint := _complaint(component):
            raise UnsafePath(
                f"model {model!r}: key {_shown(entry)} can't be a path, a component of it {complaint}", hint=_RENAME
            )
    complaint = f"it is longer than {_LONGEST_PATH} bytes" if len(path.encode()) > _LONGEST_PATH else ""
    if len(components) > _DEEPEST:
        complaint = f"it nests deeper than {_DEEPEST} folders"
    if complaint:
        raise UnsafePath(f"model {model!r}: key {_shown(entry)} can't be a path, {complaint}", hint=_RENAME)


def _shown(entry: ObjectEntry) -> str:
    key = entry.ref.key
    return repr(key) if len(key) <= _LONGEST_SHOWN else f"{key[:_LONGEST_SHOWN]!r}…"


def _check_not_listed(path: str, model: str, files: dict[str, ModelFile]) -> None:
    if path in files:
        raise UnsafePath(f"model {model!r}: key {files[path].entry.ref.key!r} is listed twice")


def _check_no_file_is_a_folder(model: str, files: dict[str, ModelFile], folders: dict[str, PurePosixPath]) -> None:
    paths = [*files, *(f"{folder}/" for folder in folders)]
    for folder in (parent for path in paths for parent in _parents(path)):
        if folder in files:
            raise UnsafePath(
                f"model {model!r}: key {files[folder].entry.ref.key!r} is a file and a folder at once",
                hint=_RENAME,
            )


def _check_no_twins(model: str, objects: _Objects, folds: Callable[[str], str]) -> None:
    """Refuses two keys of which one would overwrite the other, or whose folders would become one."""
    known: dict[str, tuple[str, str]] = {}
    for path, entry in objects:
        for name in (*_parents(path), path):
            folded = "/".join(map(folds, name.split("/")))
            other, key = known.setdefault(folded, (name, entry.ref.key))
            if other != name:
                raise UnsafePath(
                    f"model {model!r}: keys {key!a} and {entry.ref.key!a} are one name on this file system",
                    hint="rename one of the two in the store, or use a file system that tells such names apart",
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
