"""Takes away what a store no longer holds, and only on the word of complete listings.

Every guard is here, and each errs on the side of keeping: a repository that was not listed completely is no view of it,
so nothing is removed; an empty one has to be seen twice; a model that any of the repositories holds stays.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from dfagent.errors import DfagentError, EmptyRepository, TritonUnavailable
from dfagent.records import ModelRecord, Seconds, error_fields
from dfagent.repository.disk import disk_errors
from dfagent.repository.manifest import Manifest
from dfagent.tasks import finished_in_thread, owned_tasks
from dfagent.types import Traffic

log = logging.getLogger("dfagent.agent")

SECOND_LOOK_SECONDS = 1.0
"""How long after the first listing an empty repository is listed again, in the same pass."""


async def _a_moment() -> None:
    await asyncio.sleep(SECOND_LOOK_SECONDS)


class Unloader(Protocol):
    """What pruning asks of Triton."""

    async def unload(self, model: str) -> None:
        """Returns when no version of the model serves any more."""
        ...


class Published(Protocol):
    """What pruning asks of the model repository on the disk; every method blocks."""

    @property
    def target(self) -> Path: ...

    def origins(self) -> dict[str, Manifest]:
        """A manifest of each model that dfagent published here: it names the repository that the model came from."""
        ...

    def current(self, model: str) -> str | None: ...

    def unpublish(self, model: str) -> None:
        """Takes the model's link away, then all that is kept of it."""
        ...


@dataclass(frozen=True, slots=True)
class View:
    """What one pass saw of a repository that was listed completely.

    `kept` are the models that it holds and that are wanted, broken ones too. `only` is the one model that the URL names
    itself, None where it names a folder of models. `again` lists once more: whether nothing at all is different.
    """

    repository: str
    kept: frozenset[str]
    only: str | None
    again: Callable[[], Awaitable[bool]]


@dataclass(slots=True)
class Pruned:
    """What became of the models that were to go."""

    models: list[ModelRecord] = field(default_factory=list)
    errors: list[DfagentError] = field(default_factory=list)


class Pruner:
    """Unloads and unpublishes models; without `triton` it only unpublishes.

    `finished` is told every record; `pause` is awaited before an empty repository is listed again.
    """

    def __init__(
        self,
        folder: Published,
        triton: Unloader | None,
        finished: Callable[[ModelRecord], None],
        pause: Callable[[], Awaitable[None]] = _a_moment,
    ) -> None:
        self._folder = folder
        self._triton = triton
        self._finished = finished
        self._pause = pause

    async def run(self, views: Sequence[View | None]) -> Pruned:
        """Removes the models that came from one of the repositories and that none of them holds any more.

        A repository without a view was not listed completely. A model may have moved there, so then nothing goes.
        """
        pruned = Pruned()
        complete = [view for view in views if view is not None]
        if len(complete) < len(views):
            log.warning(
                "a repository was not listed completely, or holds no wanted model: no model is removed in this pass"
            )
            return pruned
        with disk_errors(self._folder.target):
            origins = await asyncio.to_thread(self._folder.origins)
        kept = frozenset[str]().union(*(view.kept for view in complete))
        for view in complete:
            gone = {
                model: manifest
                for model, manifest in origins.items()
                if manifest.repository == view.repository and model not in kept
            }
            if await self._may_go(view, gone, pruned):
                await self._remove_all(gone, pruned)
        return pruned

    async def _may_go(self, view: View, gone: dict[str, Manifest], pruned: Pruned) -> bool:
        """Whether the view is good enough to remove models for; takes those out that it says nothing about."""
        if view.only is not None and (others := set(gone) - {view.only}):
            # One config.pbtxt in the wrong place, and a folder of models reads as a single one.
            log.warning("%s holds one model now: %s kept", view.repository, ", ".join(sorted(others)))
            for model in others:
                del gone[model]
        if not gone or view.kept:
            return bool(gone)
        await self._pause()
        try:
            if await view.again():
                return True
        except DfagentError as exc:
            pruned.errors.append(exc)
            return False
        pruned.errors.append(
            EmptyRepository(
                f"{view.repository} held no model, and a moment later its listing was another one: nothing is removed",
                hint="the next pass looks again",
            )
        )
        return False

    async def _remove_all(self, gone: dict[str, Manifest], pruned: Pruned) -> None:
        async def remove(model: str, manifest: Manifest) -> None:
            record, error = await self._remove(model, manifest)
            pruned.models.append(record)
            if error:
                pruned.errors.append(error)
            self._finished(record)

        async with owned_tasks() as group:
            for model, manifest in gone.items():
                group.create_task(remove(model, manifest))

    async def _remove(self, model: str, manifest: Manifest) -> tuple[ModelRecord, DfagentError | None]:
        """One model: first Triton lets go, then the link goes, then the files. Whatever fails is tried again."""
        error: DfagentError | None = None
        started = unloaded = time.monotonic()
        try:
            with disk_errors(self._folder.target):
                # Without a link an earlier removal was killed after Triton had let go; others may serve the name now.
                if self._triton and await asyncio.to_thread(self._folder.current, model) is not None:
                    await self._unload(self._triton, model)
                unloaded = time.monotonic()
                await finished_in_thread(self._folder.unpublish, model)
        except DfagentError as exc:
            error = exc
        record = ModelRecord(
            model=model,
            repository=manifest.repository,
            outcome="failed" if error else "removed",
            bytes=manifest.size,
            fetched_bytes=0,
            objects=len(manifest.files),
            transport="",
            source=None,
            traffic=Traffic(),
            seconds=Seconds(load=unloaded - started, publish=time.monotonic() - unloaded),
            generation=manifest.digest,
            error=error_fields(error) if error else {},
        )
        return record, error

    async def _unload(self, triton: Unloader, model: str) -> None:
        try:
            await triton.unload(model)
        except TritonUnavailable as exc:
            raise TritonUnavailable(f"{model} is to be removed: {exc.message}", hint=exc.hint) from exc
