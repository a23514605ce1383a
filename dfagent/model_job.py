"""One model in one pass: choose, fetch, materialise, publish, load; it ends in a record, whatever happens."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import orjson

from dfagent.errors import (
    Changed,
    DfagentError,
    InvalidModelConfig,
    LoadRejected,
    RepositoryError,
    StoreError,
    TritonError,
    TritonUnavailable,
)
from dfagent.fetching import Fetcher
from dfagent.records import ModelRecord, ObjectRecord, Seconds, error_fields, main_way
from dfagent.repository.config_pbtxt import MAX_CONFIG_BYTES, declares_dragonfly, parse_config, without_dragonfly
from dfagent.repository.folder import RepositoryFolder, disk_errors
from dfagent.repository.manifest import Manifest, ManifestFile
from dfagent.repository.materialise import Staging
from dfagent.repository.scan import CONFIG_NAME, ModelFile, ModelSource
from dfagent.repository.sha256sums import SUMS_NAME, Demand, Sha256Check
from dfagent.tasks import finished_in_thread, owned_tasks
from dfagent.types import Checksum, FileIdentity, Traffic

log = logging.getLogger("dfagent.agent")
Take = Callable[[Path, "Checksum | None", "FileIdentity | None"], None]


class Loader(Protocol):
    """What a pass asks of Triton."""

    @property
    def address(self) -> str: ...

    async def ready(self, model: str) -> bool: ...

    async def load(self, model: str) -> object: ...


class Observer(Protocol):
    """Somebody who watches a pass; called in the event loop, so it must return at once."""

    def fetching(self, model: str, size: int) -> None: ...

    def progress(self, model: str, count: int) -> None: ...

    def finished(self, record: ModelRecord) -> None: ...


@dataclass(frozen=True, slots=True)
class Tools:
    """What every job of a pass works with. Without `folder` a job only warms the peer's cache.

    With `sha256` every model must have a SHA256SUMS and be what it says.
    """

    fetcher: Fetcher
    config_fetcher: Fetcher
    folder: RepositoryFolder | None
    triton: Loader | None
    observer: Observer
    repository: str
    select_all: bool
    sha256: Sha256Check | None = None
    claimed: dict[str, str] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)


@dataclass(slots=True)
class ModelJob:
    """`run` returns None for a model that is not to be materialised, and raises only `Changed`, if it may."""

    source: ModelSource
    tools: Tools
    list_seconds: float
    objects: list[ObjectRecord] = field(default_factory=list)
    error: DfagentError | None = None
    _seconds: Seconds = field(default_factory=Seconds)
    _size: int = 0
    _generation: str = ""
    _loaded: bool = False

    async def run(self, *, may_list_again: bool) -> ModelRecord | None:
        self._seconds = Seconds(list=self.list_seconds)
        self._size = sum(file.entry.size for file in self.source.files)
        folder = self.tools.folder
        try:
            with disk_errors(folder.state if folder else Path(tempfile.gettempdir())):
                outcome = await self._outcome()
        except DfagentError as exc:
            if may_list_again and isinstance(exc, Changed):
                raise
            self.error = exc
            outcome = "failed"
            await self._tidy()
        if outcome is None:
            return None
        record = self._record(outcome)
        self.tools.observer.finished(record)
        return record

    async def _outcome(self) -> str | None:
        if self.source.problem:
            raise self.source.problem
        config = await self._config()
        if not (self.tools.select_all or await asyncio.to_thread(self._declares, config)):
            if self.source.name not in self.tools.told:
                self.tools.told.add(self.source.name)
                log.info("%s: its config.pbtxt does not declare the dragonfly agent: left alone", self.source.name)
            return None
        self._claim()
        if self.tools.folder is None:
            await self._fetch_all([(file, None) for file in self.source.files])
            return "warmed"
        return await self._materialise(self.tools.folder, config)

    async def _tidy(self) -> None:
        """Removes what failed downloads of the model left: dfdaemon may write a file after we gave it up."""
        if self.tools.folder and not self.source.problem:
            await asyncio.to_thread(self.tools.folder.remove_unfinished, self.source.name)

    def _declares(self, config: bytes | None) -> bool:
        return config is not None and declares_dragonfly(parse_config(config, self._config_label))

    @property
    def _config_label(self) -> str:
        return f"{self.source.name}/{CONFIG_NAME}"

    def _claim(self) -> None:
        """Two repositories with a model of one name would swap it for ever: the second one is refused."""
        folds = self.tools.folder.folds if self.tools.folder else None
        name = folds(self.source.name) if folds else self.source.name
        owner = self.tools.claimed.setdefault(name, self.tools.repository)
        if owner != self.tools.repository:
            raise RepositoryError(
                f"model {self.source.name!r} of {self.tools.repository} is also in {owner}",
                hint="give one of the two repositories another --to",
            )

    async def _config(self) -> bytes | None:
        """The store's config.pbtxt. It is small, so it comes directly, and once for each version of it."""
        listed = self.source.config
        if listed is None:
            return None
        if listed.entry.size > MAX_CONFIG_BYTES:
            raise InvalidModelConfig(
                f"{self.source.name}: config.pbtxt has {listed.entry.size} bytes", hint="is it a model configuration?"
            )
        folder, version = self.tools.folder, self.tools.config_fetcher.task(listed.entry).id
        known = await asyncio.to_thread(folder.stored_config, self.source.name, version) if folder else None
        if known is not None:
            return known
        data = await self._read_directly(listed)
        if folder:
            await finished_in_thread(folder.store_config, self.source.name, version, data)
        return data

    async def _read_directly(self, file: ModelFile) -> bytes:
        folder = self.tools.folder
        with folder.scratch() if folder else tempfile.TemporaryDirectory(prefix="dfagent-") as scratch:
            path = await self._fetch(file, Path(scratch), self.tools.config_fetcher)
            return await asyncio.to_thread(path.read_bytes)

    async def _demand(self, config: bytes | None) -> Demand | None:
        if self.tools.sha256 is None:
            return None
        versions = {str(file.path): self.tools.fetcher.task(file.entry).id for file in self.source.files}
        return await self.tools.sha256.demand(self.source, versions, config, self._read_directly)

    async def _hold_to(self, demand: Demand | None, where: Path, *, staged: bool) -> None:
        if self.tools.sha256 is None or demand is None:
            return
        started = time.monotonic()
        try:
            await self.tools.sha256.check(demand, where, staged=staged)
        finally:
            self._add(verify=time.monotonic() - started)

    async def _materialise(self, folder: RepositoryFolder, config: bytes | None) -> str:
        model = self.source.name
        published = None if config is None else await asyncio.to_thread(without_dragonfly, config, self._config_label)
        manifest = self._manifest(published)
        self._generation = manifest.digest
        demand = await self._demand(config)
        before = await asyncio.to_thread(folder.current, model)
        whole = await self._is_whole(folder, manifest)
        if not whole:
            if before == manifest.digest:
                log.warning("%s: published files are not what they were: what is damaged is brought again", model)
            await self._assemble(folder, await asyncio.to_thread(Staging, folder, manifest), published, demand)
        else:
            await self._hold_to(demand, folder.generation(model, manifest.digest), staged=False)
        started = time.monotonic()
        if before != manifest.digest:
            await finished_in_thread(folder.publish, model, manifest.digest)
        self._add(publish=time.monotonic() - started)
        fallback = await asyncio.to_thread(self._fallback, folder, before)
        await asyncio.to_thread(folder.remove_generations, model, {manifest.digest, before or "", fallback or ""})
        await self._load(folder, fallback)
        if self._loaded:
            await asyncio.to_thread(folder.remove_generations, model, {manifest.digest})
        return "unchanged" if whole and before == manifest.digest else "published"

    async def _is_whole(self, folder: RepositoryFolder, wanted: Manifest) -> bool:
        """Whether the generation is here. The store is asked about files that nothing is known of (a lost ledger)."""
        model, digest = wanted.model, wanted.digest
        examined = await asyncio.to_thread(folder.examine, model, digest)
        if examined.unproven:
            await self._ask_about(examined.unproven, partial(self._settle, folder, wanted))
            examined = await asyncio.to_thread(folder.examine, model, digest)
        if examined.whole and examined.manifest != wanted:
            # Only where it came from differs.
            await finished_in_thread(folder.write_manifest, wanted)
        return examined.whole

    async def _prove(self, folder: RepositoryFolder, staging: Staging) -> None:
        """Asks the store about files of an earlier run that a lost ledger knows nothing of: then they can be read."""

        async def learn(have: ManifestFile, file: ModelFile) -> None:
            checksum = await self._expected(file)
            await asyncio.to_thread(folder.ledger.learn, have.version, checksum)

        await self._ask_about(await asyncio.to_thread(staging.unproven), learn)

    async def _ask_about(
        self, unproven: Iterable[ManifestFile], ask: Callable[[ManifestFile, ModelFile], Coroutine[Any, Any, None]]
    ) -> None:
        by_path = {file.path: file for file in unproven}
        async with owned_tasks() as group:
            for file in self.source.files:
                if have := by_path.get(str(file.path)):
                    group.create_task(ask(have, file))

    async def _expected(self, file: ModelFile) -> Checksum | None:
        fetcher = self.tools.fetcher
        async with fetcher.limit:
            return await fetcher.request(f"{self.source.name}/{file.path}", file.entry, lambda _: None).expected()

    async def _settle(self, folder: RepositoryFolder, wanted: Manifest, have: ManifestFile, file: ModelFile) -> None:
        try:
            checksum = await self._expected(file)
        except Changed:
            raise
        except StoreError as exc:
            log.warning("%s/%s is published unverified, the store can't be asked: %s", wanted.model, have.path, exc)
            return
        await finished_in_thread(folder.settle, wanted, have, checksum)

    def _manifest(self, published_config: bytes | None) -> Manifest:
        files = []
        for file in self.source.files:
            if file is self.source.config and published_config is not None:
                version = hashlib.sha256(published_config).hexdigest()
                files.append(ManifestFile(CONFIG_NAME, len(published_config), version))
            else:
                files.append(ManifestFile(str(file.path), file.entry.size, self.tools.fetcher.task(file.entry).id))
        return Manifest.of(self.source.name, files, map(str, self.source.folders), self.tools.repository)

    async def _assemble(
        self, folder: RepositoryFolder, staging: Staging, config: bytes | None, demand: Demand | None
    ) -> None:
        await self._prove(folder, staging)
        missing = {file.path: file for file in await asyncio.to_thread(staging.open)}
        own = [(missing.pop(CONFIG_NAME, None), config)]
        if demand and demand.data is not None:
            own.append((missing.pop(SUMS_NAME, None), demand.data))
        copied = [file for file in missing.values() if self.tools.fetcher.copies(file.size)]
        await asyncio.to_thread(folder.space.reserve, self.source.name, copied)
        try:
            await self._fetch_all(
                [
                    (file, partial(staging.take, missing[str(file.path)]))
                    for file in self.source.files
                    if str(file.path) in missing
                ]
            )
        finally:
            folder.space.release(self.source.name)
        started = time.monotonic()
        for file, data in own:
            if file is not None and data is not None:
                await finished_in_thread(staging.write, file, data)
        self._add(publish=time.monotonic() - started)
        await self._hold_to(demand, folder.staging(self.source.name, staging.digest), staged=True)
        started = time.monotonic()
        await finished_in_thread(staging.finish)
        self._add(publish=time.monotonic() - started)

    async def _fetch_all(self, files: list[tuple[ModelFile, Take | None]]) -> None:
        """Fetches side by side; each file goes to its taker as soon as it is whole, so a kill loses only the rest."""
        folder = self.tools.folder
        self.tools.observer.fetching(self.source.name, sum(file.entry.size for file, _ in files))
        await self._tidy()
        partials = await asyncio.to_thread(folder.partials, self.source.name) if folder and files else None
        started = time.monotonic()
        async with owned_tasks() as group:
            for file, take in files:
                group.create_task(self._fetch(file, partials, self.tools.fetcher, take))
        self._add(fetch=time.monotonic() - started)

    async def _fetch(self, file: ModelFile, folder: Path | None, fetcher: Fetcher, take: Take | None = None) -> Path:
        model = self.source.name

        def progress(count: int) -> None:
            if fetcher is self.tools.fetcher:
                self.tools.observer.progress(model, count)

        request = fetcher.request(f"{model}/{file.path}", file.entry, progress)
        fetched = await fetcher.fetch(request, folder)
        started = time.monotonic()
        if fetched.path and take:
            await finished_in_thread(take, fetched.path, fetched.verified, fetched.verified_as)
        verify_seconds = fetched.verify_seconds + time.monotonic() - started
        record = ObjectRecord.of(model, str(file.path), request, fetched, verify_seconds)
        self.objects.append(record)
        self._add(sign=record.seconds.sign, verify=record.seconds.verify)
        log.info(
            "%s: %d bytes by %s, %s, %s",
            *(request.label, record.bytes, record.transport, record.source.value, record.verified),
        )
        return fetched.path or Path()

    def _fallback(self, folder: RepositoryFolder, before: str | None) -> str | None:
        """The generation to go back to: the one that Triton took last, else the one that was published before.

        They differ where something was published while Triton was down, or by a run that was killed before the load.
        """
        model = self.source.name
        for digest in (_noted_generation(folder.loaded(model)), before):
            if digest and digest != self._generation and folder.manifest(model, digest):
                return digest
        return None

    async def _load(self, folder: RepositoryFolder, fallback: str | None) -> None:
        """Loads what is published, unless Triton already serves just that."""
        triton, model = self.tools.triton, self.source.name
        if triton is None:
            return
        note = orjson.dumps({"triton": triton.address, "generation": self._generation})
        if await asyncio.to_thread(folder.loaded, model) == note and await triton.ready(model):
            self._loaded = True
            return
        started = time.monotonic()
        try:
            await triton.load(model)
        except TritonUnavailable as exc:
            raise TritonUnavailable(f"{model}: {exc.message}", hint=exc.hint) from exc
        except LoadRejected:
            if fallback:
                await self._go_back(folder, triton, fallback)
            raise
        finally:
            self._add(load=time.monotonic() - started)
        await finished_in_thread(folder.note_loaded, model, note)
        self._loaded = True

    async def _go_back(self, folder: RepositoryFolder, triton: Loader, generation: str) -> None:
        """Triton goes on serving the old generation, and a restart of it must find that one, too."""
        model = self.source.name
        await finished_in_thread(folder.publish, model, generation)
        log.warning("%s: Triton refused the new generation: the one before is published again", model)
        # The refusal is this pass's error: what goes wrong here as well is tried again by the next pass.
        with suppress(TritonError):
            if not await triton.ready(model):
                await triton.load(model)

    def _add(self, **seconds: float) -> None:
        self._seconds = replace(
            self._seconds, **{phase: getattr(self._seconds, phase) + value for phase, value in seconds.items()}
        )

    def _record(self, outcome: str) -> ModelRecord:
        fetched = [record for record in self.objects if record.path != CONFIG_NAME] or self.objects
        # What came of a failed model says nothing about the rest of it.
        transport, source = (None if self.error else main_way(fetched)) or (self.tools.fetcher.transport.name, None)
        return ModelRecord(
            model=self.source.name,
            repository=self.tools.repository,
            outcome=outcome,
            bytes=self._size,
            fetched_bytes=sum(record.bytes for record in self.objects),
            objects=len(self.source.files),
            transport=transport,
            source=source,
            traffic=sum((record.traffic for record in self.objects), Traffic()),
            seconds=self._seconds,
            generation=self._generation,
            loaded=self._loaded,
            error=error_fields(self.error) if self.error else {},
        )


def _noted_generation(note: bytes | None) -> str | None:
    """The generation in a note of what Triton serves; None where there is none, or a power cut left half of it."""
    try:
        return str(orjson.loads(note or b"")["generation"])
    except (ValueError, KeyError, TypeError):
        return None
