"""SHA256SUMS: a model's own list of digests, as the `sha256sum` tool writes it, enforced before anything is published.

`parse` reads it, `Sha256Check` holds a model's files to it. What a file was found to be is noted with its device,
inode, size and mtime, so a file is read once, not in every pass, and one that was changed on the disk is noticed.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from dfagent.errors import DigestMismatch, InvalidSha256Sums
from dfagent.repository.folder import RepositoryFolder
from dfagent.repository.scan import CONFIG_NAME, ModelFile, ModelSource
from dfagent.tasks import finished_in_thread, owned_tasks
from dfagent.types import FileIdentity, file_identity

if TYPE_CHECKING:
    from hashlib import _Hash

SUMS_NAME = "SHA256SUMS"
MAX_SUMS_BYTES = 4 << 20

_LINE = re.compile(rb"(\\?)([0-9a-fA-F]{64}) [ *](.+)", re.DOTALL)
_ESCAPE = re.compile(rb"\\(.?)", re.DOTALL)
_ESCAPED = {b"\\": b"\\", b"n": b"\n", b"r": b"\r"}
_SHOWN = 12  # characters of a digest in a message
_LONGEST_NAME = 200  # characters of a name in a message
_CHUNK = 1 << 20
# One stay in a thread: a cancellation waits for its end, so it has to be short.
_SLICE = 64 << 20
_MOST_READERS = 4
_MAKE_ONE = (
    "in the model's folder run `find . -type f ! -path ./SHA256SUMS -exec sha256sum {} + > SHA256SUMS`, and upload it"
)


def parse(data: bytes, label: str) -> dict[str, str]:
    """The digests (64 small hex digits) by path, relative to the model's folder; `label` names the file in errors.

    Takes both of the tool's markers, its escaped names, comments, empty lines, and a leading `./`. Raises
    `InvalidSha256Sums` for anything else, for paths that lead out of the folder, and for a path with two digests.
    """
    if len(data) > MAX_SUMS_BYTES:
        raise _too_large(label, len(data))
    sums: dict[str, str] = {}
    for number, line in enumerate(data.split(b"\n"), start=1):
        text = line.removesuffix(b"\r")
        if not text.strip() or text.startswith(b"#"):
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            raise InvalidSha256Sums(
                f"{label}:{number}: expected a sha256 in hex, two characters, a path", hint=_MAKE_ONE
            )
        digest = match[2].decode().lower()
        path = _path(match[3], f"{label}:{number}", escaped=bool(match[1]))
        if sums.setdefault(path, digest) != digest:
            raise InvalidSha256Sums(
                f"{label}:{number}: {_shown(path)} stands there twice, with two digests", hint="remove the wrong one"
            )
    return sums


def _path(name: bytes, place: str, *, escaped: bool) -> str:
    complaint = ""
    path = ""
    try:
        path = (_ESCAPE.sub(lambda match: _ESCAPED[match[1]], name) if escaped else name).decode()
    except KeyError:
        complaint = "holds an escape that sha256sum does not write"
    except UnicodeDecodeError:
        complaint = "is not UTF-8"
    while path.startswith("./"):
        path = path[2:]
    if path.startswith("/"):
        complaint = "is absolute"
    elif not complaint and ("\0" in path or not {"", ".", ".."}.isdisjoint(path.split("/"))):
        complaint = "is no plain path below the model's folder"
    if complaint:
        raise InvalidSha256Sums(
            f"{place}: the path {_shown(path or name.decode(errors='replace'))} {complaint}",
            hint=_MAKE_ONE,
        )
    return path


def check_lists_all(sums: Iterable[str], files: Iterable[str], label: str) -> None:
    """Raises `InvalidSha256Sums` unless both hold the same paths, the list itself aside.

    Its own line is ignored: a file can't hold its own digest, but careless commands write one.
    """
    listed, held = set(sums) - {SUMS_NAME}, set(files) - {SUMS_NAME}
    if unlisted := sorted(held - listed):
        raise InvalidSha256Sums(
            f"{label} does not list {_shown(unlisted[0])}{_and_more(unlisted)}",
            hint=f"remove the file, or list it: {_MAKE_ONE}",
        )
    if absent := sorted(listed - held):
        raise InvalidSha256Sums(
            f"{label} lists {_shown(absent[0])}{_and_more(absent)}, which the model does not hold",
            hint=f"upload the file, or make the list anew: {_MAKE_ONE}",
        )


@dataclass(frozen=True, slots=True)
class Demand:
    """What a model's files have to be: `expected` maps paths to sha256, config.pbtxt (checked already) left out.

    `data` is SHA256SUMS itself where it had to be read, `source` names the versions of all objects.
    """

    model: str
    expected: Mapping[str, str]
    source: str
    data: bytes | None = None


@dataclass(slots=True)
class _Note:
    """What is known of a model: the `source` that was found right, and what it demands; what files were found to be.

    `refused` are the digests by path that were wrong when the file had been fetched.
    """

    source: str = ""
    expected: dict[str, str] = field(default_factory=dict)
    files: dict[FileIdentity, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: RepositoryFolder, model: str) -> _Note:
        """The model's note; an empty one where there is none, or a power cut left half of it."""
        try:
            raw = orjson.loads(folder.sha256_note(model) or b"")
            files = {(dev, ino, size, mtime): str(digest) for dev, ino, size, mtime, digest in raw["files"]}
            return cls(str(raw["source"]), dict(raw["expected"]), files, dict(raw["refused"]))
        except (ValueError, KeyError, TypeError):
            return cls()

    def to_json(self) -> bytes:
        files = [[*identity, digest] for identity, digest in self.files.items()]
        return orjson.dumps({"source": self.source, "expected": self.expected, "files": files, "refused": self.refused})


class Sha256Check:
    """Holds models to their SHA256SUMS. One serves all models of a run, so that few files are read side by side."""

    def __init__(self, folder: RepositoryFolder) -> None:
        self._folder = folder
        self._readers = asyncio.Semaphore(min(_MOST_READERS, os.cpu_count() or 1))

    async def demand(
        self,
        model: ModelSource,
        versions: Mapping[str, str],
        config: bytes | None,
        read: Callable[[ModelFile], Awaitable[bytes]],
    ) -> Demand:
        """What the model's SHA256SUMS demands of the objects of these versions (by path).

        `config` is config.pbtxt as the store has it; it is checked here. SHA256SUMS is read from the store unless
        these very versions were found right before. Raises `InvalidSha256Sums`, `DigestMismatch` for config.pbtxt.
        """
        source = hashlib.sha256(orjson.dumps(sorted(versions.items()))).hexdigest()
        note = await asyncio.to_thread(_Note.read, self._folder, model.name)
        if note.source == source:
            return Demand(model.name, note.expected, source)
        label = f"{model.name}/{SUMS_NAME}"
        listed = next((file for file in model.files if str(file.path) == SUMS_NAME), None)
        if listed is None:
            raise InvalidSha256Sums(f"{label} is demanded, and the store has none", hint=_MAKE_ONE)
        if listed.entry.size > MAX_SUMS_BYTES:
            raise _too_large(label, listed.entry.size)
        data = await read(listed)
        expected = await asyncio.to_thread(parse, data, label)
        check_lists_all(expected, versions, label)
        if config is not None:
            _raise_if_wrong(model.name, {CONFIG_NAME: hashlib.sha256(config).hexdigest()}, expected)
        demanded = {path: digest for path, digest in expected.items() if path != CONFIG_NAME}
        # The copy that is published has to be the one that was read here.
        demanded[SUMS_NAME] = hashlib.sha256(data).hexdigest()
        return Demand(model.name, demanded, source, data)

    async def check(self, demand: Demand, where: Path, *, staged: bool) -> None:
        """Compares the files below `where` with the demand; reads those that are not known.

        Raises `DigestMismatch` that names the first wrong file and both digests. With `staged`, a wrong file is
        removed, so that it is fetched again, once: the same bytes again are the store's, and are kept.
        """
        note = await asyncio.to_thread(_Note.read, self._folder, demand.model)
        found, unknown = await asyncio.to_thread(_known, demand.expected, where, note)

        async def look(path: str) -> None:
            found[path] = await self._read(where / path, f"{demand.model}/{path}")

        async with owned_tasks() as group:
            for path in unknown:
                group.create_task(look(path))
        digests = {path: digest for path, (_, digest) in found.items()}
        wrong = {path: digest for path, digest in digests.items() if digest != demand.expected[path]}
        again = {path for path, digest in wrong.items() if staged and note.refused.get(path) != digest}
        known = {identity: digest for path, (identity, digest) in found.items() if path not in again}
        right = _Note(demand.source, dict(demand.expected), known)
        await asyncio.to_thread(self._keep, demand.model, _Note(files=known, refused=wrong) if wrong else right)
        for path in again:
            await asyncio.to_thread((where / path).unlink)
        _raise_if_wrong(demand.model, digests, demand.expected)

    def _keep(self, model: str, note: _Note) -> None:
        data = note.to_json()
        if self._folder.sha256_note(model) != data:
            self._folder.note_sha256(model, data)

    async def _read(self, path: Path, label: str) -> tuple[FileIdentity, str]:
        state = hashlib.sha256()
        async with self._readers:
            before, count = await finished_in_thread(_hash_slice, path, state, 0)
            after, offset = before, count
            while count == _SLICE:
                after, count = await finished_in_thread(_hash_slice, path, state, offset)
                offset += count
        if before != after:
            raise DigestMismatch(f"{label}: it was changed while it was read", hint="who else writes there?")
        return after, state.hexdigest()


def _known(expected: Iterable[str], where: Path, note: _Note) -> tuple[dict[str, tuple[FileIdentity, str]], list[str]]:
    """What is known of files by their identity, and the paths of those that have to be read."""
    found: dict[str, tuple[FileIdentity, str]] = {}
    unknown: list[str] = []
    for path in expected:
        identity = file_identity((where / path).stat())
        if identity in note.files:
            found[path] = identity, note.files[identity]
        else:
            unknown.append(path)
    return found, unknown


def _hash_slice(path: Path, state: _Hash, offset: int) -> tuple[FileIdentity, int]:
    """Adds up to `_SLICE` bytes from `offset` on; returns what the file was after that, and how many bytes it were."""
    count = 0
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        while count < _SLICE and (chunk := file.read(_CHUNK)):
            state.update(chunk)
            count += len(chunk)
        return file_identity(os.fstat(file.fileno())), count


def _raise_if_wrong(model: str, digests: Mapping[str, str], expected: Mapping[str, str]) -> None:
    wrong = sorted(path for path, digest in digests.items() if digest != expected[path])
    if wrong:
        path = wrong[0]
        raise DigestMismatch(
            f"{model}/{path}: its sha256 is {digests[path][:_SHOWN]}…, {SUMS_NAME} says "
            f"{expected[path][:_SHOWN]}…{_and_more(wrong)}",
            hint=f"was the file uploaded after {SUMS_NAME} was made? nothing of this version is published",
        )


def _too_large(label: str, size: int) -> InvalidSha256Sums:
    return InvalidSha256Sums(
        f"{label} has {size} bytes, more than the {MAX_SUMS_BYTES} that are read", hint="is it a list of digests?"
    )


def _and_more(paths: list[str]) -> str:
    return f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""


def _shown(path: str) -> str:
    return repr(path if len(path) <= _LONGEST_NAME else f"{path[:_LONGEST_NAME]}…")
