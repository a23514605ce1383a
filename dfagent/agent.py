"""The pipeline over one model repository: list, scan, run a job for each model; written against the protocols only."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from dfagent.errors import Changed, DfagentError, EmptyRepository
from dfagent.model_job import ModelJob, Tools
from dfagent.pruning import View
from dfagent.records import ModelRecord, ObjectRecord
from dfagent.repository.folding import Folding
from dfagent.repository.scan import ModelSource, scan
from dfagent.tasks import owned_tasks
from dfagent.types import FetchRequest, ObjectEntry, RepositoryUrl

log = logging.getLogger("dfagent.agent")

# A model that is overwritten faster than this many listings can follow is reported instead of chased.
_LISTINGS = 5


@dataclass(slots=True)
class PassResult:
    """What one pass over a repository did; `errors` belong to the models whose record says "failed".

    `left_alone` are the models that are not wanted.
    """

    models: list[ModelRecord] = field(default_factory=list)
    objects: list[ObjectRecord] = field(default_factory=list)
    errors: list[DfagentError] = field(default_factory=list)
    left_alone: set[str] = field(default_factory=set)

    def add(self, job: ModelJob, record: ModelRecord | None) -> None:
        if record is not None:
            self.models.append(record)
            self.objects.extend(job.objects)
        else:
            self.left_alone.add(job.source.name)
        if job.error is not None:
            self.errors.append(job.error)


class Agent:
    """Brings one repository's models to this node, once each time `run` is called.

    `per_credential` gives the tasks of different credentials different identities, so they share no cache. With
    `allow_empty` a repository without models is no error. `view` is what the last pass saw of the repository, None
    where it was not listed completely.
    """

    def __init__(
        self, url: RepositoryUrl, tools: Tools, *, per_credential: bool = False, allow_empty: bool = False
    ) -> None:
        self.url = url
        self.view: View | None = None
        self._tools = tools
        self._per_credential = per_credential
        self._allow_empty = allow_empty

    async def objects(self) -> dict[str, dict[str, FetchRequest]]:
        """What the store has now: each model's objects by their path in it, as requests."""
        fetcher = (await self._isolated()).fetcher
        entries = [entry async for entry in fetcher.store.list(self.url)]
        return {
            model.name: {
                str(file.path): fetcher.request(f"{model.name}/{file.path}", file.entry, lambda _count: None)
                for file in model.files
            }
            for model in scan(self.url, entries, self._folds)
            if not model.problem
        }

    async def bring(self, models: frozenset[str]) -> list[DfagentError]:
        """One pass over these models only; returns what went wrong."""
        return (await self.run({}, models)).errors

    async def run(self, claimed: dict[str, str], only: frozenset[str] | None = None) -> PassResult:
        """One pass. One model's error does not stop the others; a listing's error ends the pass.

        `claimed` maps the models of the repositories before this one to their repository, and is added to; with `only`
        the other models are left alone.
        """
        self.view = None
        tools = replace(await self._isolated(), claimed=claimed)
        result = PassResult()
        todo: Collection[str] | None = only
        held: set[str] = set()
        failed: dict[str, ModelSource] = {}
        for listing in range(1, _LISTINGS + 1):
            started = time.monotonic()
            entries = [entry async for entry in tools.fetcher.store.list(self.url)]
            scanned = self._scanned(entries)
            models = [model for model in scanned if todo is None or model.name in todo]
            held |= {model.name for model in scanned}
            jobs = [ModelJob(model, tools, time.monotonic() - started) for model in models]
            # A store that lists what it does not serve would be asked for it again and again.
            last = {model.name for model in models if listing == _LISTINGS or model == failed.get(model.name)}
            todo = await self._run_jobs(jobs, result, last)
            if not todo:
                break
            failed = {model.name: model for model in models if model.name in todo}
            log.warning("%s: overwritten while it was fetched: listing again", ", ".join(sorted(todo)))
        if not result.models and self._allow_empty:
            log.warning("%s holds no model that is wanted", self.url)
        elif not result.models:
            raise EmptyRepository(
                f"none of the {len(held)} models in {self.url} declares the dragonfly agent",
                hint='add `model_repository_agents { agents [ { name: "dragonfly" } ] }` to config.pbtxt, or use --all',
            )
        if only is None:
            self.view = await self._view(entries, scanned, frozenset(held - result.left_alone))
        return result

    @property
    def _folds(self) -> Folding | None:
        return self._tools.folder.folds if self._tools.folder else None

    def _scanned(self, entries: Sequence[ObjectEntry]) -> list[ModelSource]:
        try:
            return scan(self.url, entries, self._folds)
        except EmptyRepository:
            if not self._allow_empty:
                raise
            return []

    async def _view(self, entries: Sequence[ObjectEntry], scanned: Sequence[ModelSource], kept: frozenset[str]) -> View:
        # Only an empty repository is looked at twice.
        before = await asyncio.to_thread(_digest, entries) if not kept else b""

        async def again() -> bool:
            entries = [entry async for entry in self._tools.fetcher.store.list(self.url)]
            return await asyncio.to_thread(_digest, entries) == before

        return View(str(self.url), kept, self._only(scanned), again)

    def _only(self, scanned: Sequence[ModelSource]) -> str | None:
        """The model that the URL names itself. One with a problem tells nothing of its files: it counts as such."""
        prefix = f"{self.url.prefix}/" if self.url.prefix else ""
        if len(scanned) != 1:
            return None
        (model,) = scanned
        itself = model.problem or any(file.entry.ref.key == f"{prefix}{file.path}" for file in model.files)
        return model.name if itself else None

    async def _isolated(self) -> Tools:
        if not self._per_credential:
            return self._tools
        credential = await self._tools.fetcher.store.credential_id()
        isolation = hashlib.sha256(credential.encode()).hexdigest()[:16]
        return replace(
            self._tools,
            fetcher=replace(self._tools.fetcher, isolation=isolation),
            config_fetcher=replace(self._tools.config_fetcher, isolation=isolation),
        )

    async def _run_jobs(self, jobs: list[ModelJob], result: PassResult, last: set[str]) -> set[str]:
        """Runs the jobs side by side; returns the models whose objects were overwritten meanwhile.

        For the models in `last` that is a failure.
        """
        changed: set[str] = set()

        async def run(job: ModelJob) -> None:
            try:
                result.add(job, await job.run(may_list_again=job.source.name not in last))
            except Changed:
                changed.add(job.source.name)

        async with owned_tasks() as group:
            for job in jobs:
                group.create_task(run(job))
        return changed


def _digest(entries: Sequence[ObjectEntry]) -> bytes:
    """Names a listing: two with one digest hold the same versions of the same objects."""
    state = hashlib.sha256()
    for entry in entries:
        state.update(f"{entry.ref.key}\0{entry.size}\0{entry.etag}\0".encode("utf-8", "surrogatepass"))
    return state.digest()
