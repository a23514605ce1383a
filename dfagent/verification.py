"""Looks at every published model again: the files against their manifest, the manifest against the store; repairs."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from dfagent.checksums import checksum_of_file
from dfagent.errors import DfagentError, RepositoryError, StoreError
from dfagent.repository.disk import disk_errors, kind_of, plain_file, plain_folder, remove, walk
from dfagent.repository.folder import RepositoryFolder
from dfagent.repository.manifest import Manifest, ManifestFile
from dfagent.repository.scan import CONFIG_NAME
from dfagent.repository.trust import known_checksum
from dfagent.tasks import owned_tasks
from dfagent.types import Checksum, FetchRequest

_READERS = 4
_LOOKS = 3
_ANY = Checksum("crc32", b"")
# Triton's python backend writes it beside a model.
_NOT_STRANGE = "__pycache__"

Listing = Mapping[str, Mapping[str, FetchRequest]]


class Origin(Protocol):
    """The repository that models came from."""

    async def objects(self) -> Listing:
        """What the store has now: each model's objects by their path in it."""
        ...

    async def bring(self, models: frozenset[str]) -> list[DfagentError]:
        """Brings these models as any pass does; returns what went wrong."""
        ...


OpenOrigin = Callable[[str], AbstractAsyncContextManager[Origin]]


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong with a model. `path` is relative to the model's folder, "" for the model itself."""

    path: str
    problem: str


@dataclass(slots=True)
class ModelCheck:
    """What was found of one name in DIR.

    `outcome` is "whole", "damaged", "mended", "foreign" for what dfagent did not put there, or "gone" for what was
    removed meanwhile. `store` is "same", "newer", "gone", or "unknown" where it was not asked or did not answer.
    `unverified` files have the right size, and nobody knows a checksum of them. `wrong` and `strange` are what a repair
    goes by: files whose bytes are not right, and names that do not belong there.
    """

    model: str
    outcome: str = "whole"
    generation: str = ""
    repository: str = ""
    files: int = 0
    bytes: int = 0
    verified: int = 0
    unverified: int = 0
    damage: list[Damage] = field(default_factory=list)
    store: str = "unknown"
    note: str = ""
    wrong: list[ManifestFile] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)

    def fields(self) -> dict[str, object]:
        """What a record of it holds."""
        record = asdict(self)
        del record["wrong"], record["strange"]
        return {"kind": "verification", **record}


@dataclass(slots=True)
class Verification:
    """`folder` is open for reading (`look`), or for good (`open`) where `run` is to repair."""

    folder: RepositoryFolder
    open_origin: OpenOrigin
    offline: bool = False
    _readers: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_READERS))

    async def run(self, *, repair: bool = False) -> tuple[list[ModelCheck], list[DfagentError]]:
        """Every name in DIR, and the errors that decide about the exit code: none where all is whole or mended."""
        with disk_errors(self.folder.target):
            async with AsyncExitStack() as stack:
                return await self._run(stack, repair)

    async def _run(self, stack: AsyncExitStack, repair: bool) -> tuple[list[ModelCheck], list[DfagentError]]:
        published = await asyncio.to_thread(self.folder.published)
        # They stay open: a listing's requests ask them.
        origins: dict[str, Origin] = {}
        listings = await self._listings(published, origins, stack)
        checks = [await self._check(model, digest, listings) for model, digest in published.items()]
        errors: list[DfagentError] = []
        if repair:
            errors = await self._repair([check for check in checks if check.damage], origins)
            for number, check in enumerate(checks):
                if check.damage:
                    checks[number] = await self._look_again(check, listings)
        damaged = [check.model for check in checks if check.damage]
        if damaged:
            hint = "its own errors stand above" if repair else "`dfagent verify --repair` brings these files again"
            errors.append(RepositoryError(f"damaged: {', '.join(damaged)}", hint=hint))
        return checks, errors

    async def _listings(
        self, published: Mapping[str, str | None], origins: dict[str, Origin], stack: AsyncExitStack
    ) -> dict[str, Listing | StoreError]:
        """What each repository holds now, or why it does not say."""
        listings: dict[str, Listing | StoreError] = {}
        for model, digest in published.items():
            manifest = await asyncio.to_thread(self.folder.read_manifest, model, digest) if digest else None
            repository = manifest.repository if manifest else ""
            if repository and repository not in listings and not self.offline:
                try:
                    origins[repository] = await stack.enter_async_context(self.open_origin(repository))
                    listings[repository] = await origins[repository].objects()
                except DfagentError as exc:
                    listings[repository] = exc if isinstance(exc, StoreError) else StoreError(exc.message)
        return listings

    async def _check(self, model: str, digest: str | None, listings: Mapping[str, Listing | StoreError]) -> ModelCheck:
        if digest is None:
            note = await asyncio.to_thread(_strange_name, self.folder.target / model)
            return ModelCheck(model, outcome="foreign", note=note)
        for _ in range(_LOOKS):
            check = await self._look(model, digest, listings)
            current = await asyncio.to_thread(self.folder.current, model)
            if not check.damage or current == digest:
                break
            if current is None:
                return ModelCheck(model, outcome="gone", note="it was removed meanwhile")
            # Without the lock a model may be published anew meanwhile, and the generation that was read removed.
            digest = str(current)
        return check

    async def _look(self, model: str, digest: str, listings: Mapping[str, Listing | StoreError]) -> ModelCheck:
        check = ModelCheck(model, generation=digest)
        generation = self.folder.generation(model, digest)
        manifest = await asyncio.to_thread(self.folder.read_manifest, model, digest)
        if not await asyncio.to_thread(plain_folder, generation, ""):
            check.damage.append(Damage("", "its link dangles: the generation is gone"))
        if manifest is None:
            check.damage.append(Damage("", "its manifest is gone or damaged, so nobody knows what it is made of"))
        else:
            check.repository, check.files, check.bytes = manifest.repository, len(manifest.files), manifest.size
            objects = await self._compare(check, manifest, listings.get(manifest.repository))
            if await asyncio.to_thread(plain_folder, generation, ""):
                await self._look_at_files(check, manifest, generation, objects)
        if check.damage:
            check.outcome = "damaged"
        return check

    async def _look_at_files(
        self, check: ModelCheck, manifest: Manifest, generation: Path, objects: Mapping[str, FetchRequest]
    ) -> None:
        for folder in manifest.folders:
            if not await asyncio.to_thread(plain_folder, generation, folder):
                check.damage.append(Damage(folder, "the folder is missing"))
        async with owned_tasks() as group:
            for file in manifest.files:
                group.create_task(self._look_at(check, file, generation, objects.get(file.path)))
        check.strange = await asyncio.to_thread(_strange_files, generation, manifest)
        check.damage += [Damage(name, "does not belong to the model") for name in check.strange]
        check.damage.sort(key=lambda damage: damage.path)

    async def _look_at(
        self, check: ModelCheck, file: ManifestFile, generation: Path, request: FetchRequest | None
    ) -> None:
        async with self._readers:
            checksum = await asyncio.to_thread(known_checksum, file, self.folder.ledger)
            if checksum is None and request is not None and request.task.id == file.version:
                with suppress(StoreError):
                    checksum = await request.expected()
            # Nobody waits for this thread after an interrupt: it only reads, and a file may be large.
            problem = await asyncio.to_thread(self._problem, generation, file, checksum)
        if problem:
            check.damage.append(Damage(file.path, problem))
            check.wrong.append(file)
        elif checksum:
            check.verified += 1
        else:
            check.unverified += 1

    def _problem(self, generation: Path, file: ManifestFile, checksum: Checksum | None) -> str:
        """What is wrong with the file, "" for nothing; reads all of it."""
        path = generation / file.path
        found = plain_file(generation, file.path)
        if found is None:
            return _why_no_file(path)
        if found.st_size != file.size:
            return f"has {found.st_size} bytes instead of {file.size}"
        try:
            computed = checksum_of_file(path, checksum or _ANY)
        except OSError as exc:
            return f"can't be read: {exc.strerror or exc}"
        if checksum and computed.value != checksum.value:
            return f"has wrong bytes: {checksum.algorithm} is {computed.value.hex()}, expected {checksum.value.hex()}"
        ledger = self.folder.ledger
        if checksum is None and ledger.knows(file.version) and not ledger.verified(file.version, found):
            return "was changed since it was brought, and the store has no checksum to compare it with"
        return ""

    async def _compare(
        self, check: ModelCheck, manifest: Manifest, listing: Listing | StoreError | None
    ) -> Mapping[str, FetchRequest]:
        """Says how the store's version differs; returns what the store has of the model."""
        if listing is None:
            if not self.offline:
                check.note = "where it came from was not noted yet: the next pass of prefetch or serve notes it"
            return {}
        if isinstance(listing, StoreError):
            check.note = f"the store can't be asked: {listing.message}"
            return {}
        objects = listing.get(check.model)
        if objects is None:
            check.store = "gone"
            return {}
        same = await asyncio.to_thread(self._is_same, manifest, objects)
        check.store = "same" if same else "newer"
        return objects

    def _is_same(self, manifest: Manifest, objects: Mapping[str, FetchRequest]) -> bool:
        here = {file.path: file.version for file in manifest.files if file.own_checksum is None}
        there = {path: request.task.id for path, request in objects.items() if path != CONFIG_NAME}
        config = objects.get(CONFIG_NAME)
        has_config = any(file.path == CONFIG_NAME for file in manifest.files)
        if here != there or has_config != (config is not None):
            return False
        # What is published is not the store's config.pbtxt, so its version is noted elsewhere.
        return config is None or self.folder.stored_config(manifest.model, config.task.id) is not None

    async def _repair(self, checks: list[ModelCheck], origins: Mapping[str, Origin]) -> list[DfagentError]:
        """Runs the usual pipeline for the damaged models, after it was told what to trust no more."""
        errors: list[DfagentError] = []
        models: dict[str, set[str]] = {}
        for check in checks:
            await asyncio.to_thread(self._trust_no_more, check)
            if check.repository not in origins:
                problem, hint = "where it came from is not known", "run prefetch with its URL"
            elif check.store == "gone":
                problem, hint = "the store no longer has it", "put it there again"
            else:
                models.setdefault(check.repository, set()).add(check.model)
                continue
            errors.append(RepositoryError(f"{check.model} can't be repaired: {problem}", hint=hint))
        for repository, names in models.items():
            try:
                errors += await origins[repository].bring(frozenset(names))
            except DfagentError as exc:
                errors.append(exc)
        return errors

    def _trust_no_more(self, check: ModelCheck) -> None:
        for file in check.wrong:
            self.folder.ledger.forget(file.version)
        generation = self.folder.generation(check.model, check.generation)
        for name in check.strange:
            remove(generation / name)
        self.folder.forget_loaded(check.model)

    async def _look_again(self, before: ModelCheck, listings: Mapping[str, Listing | StoreError]) -> ModelCheck:
        digest = await asyncio.to_thread(self.folder.current, before.model)
        after = await self._check(before.model, digest, listings)
        if not after.damage:
            after.outcome = "mended"
            if after.generation != before.generation:
                after.note = "the store has a newer version, which was brought"
        return after


def _strange_name(path: Path) -> str:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return "is gone meanwhile"
    if not stat.S_ISLNK(mode):
        return f"{kind_of(mode)} that dfagent did not put there: left alone"
    dangles = "" if path.exists() else ", and leads nowhere"
    return f"a link that dfagent did not put there{dangles}: left alone"


def _why_no_file(path: Path) -> str:
    with suppress(OSError):
        mode = os.lstat(path).st_mode
        return "lies in a folder that is a link" if stat.S_ISREG(mode) else f"is {kind_of(mode)} instead of a file"
    return "is missing"


def _strange_files(generation: Path, manifest: Manifest) -> list[str]:
    """What nobody published there: the names of files, and of folders without those of their content."""
    expected = {*manifest.all_folders, *(file.path for file in manifest.files)}
    strange = {name for name, _ in walk(generation) if name not in expected}
    return sorted(
        name
        for name in strange
        if _NOT_STRANGE not in PurePosixPath(name).parts
        and not strange & {str(parent) for parent in PurePosixPath(name).parents}
        and not any(str(parent) in {file.path for file in manifest.files} for parent in PurePosixPath(name).parents)
    )
