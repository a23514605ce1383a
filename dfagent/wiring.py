"""The only place that chooses concrete classes: from settings and options to agents that can run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dfagent.agent import Agent, PassResult
from dfagent.errors import ConfigError, DfagentError
from dfagent.fetching import Fetcher
from dfagent.model_job import Observer, Tools
from dfagent.pruning import Pruner
from dfagent.repository.folder import RepositoryFolder, disk_errors
from dfagent.repository.sha256sums import Sha256Check
from dfagent.settings.files import Settings
from dfagent.stores.registry import open_store
from dfagent.stores.url import parse_repository_url
from dfagent.tasks import finished_in_thread
from dfagent.transports.options import Timeouts
from dfagent.transports.pressure import Pressure
from dfagent.verification import Verification
from dfagent.ways import Tuning, Ways

if TYPE_CHECKING:
    from dfagent.triton.client import TritonClient


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the command line decides. Without `target` a run only warms the peer's cache; seconds for the timeout.

    `require_sha256` demands a SHA256SUMS of every model, as the setting `sha256_manifest` does. `prune` removes what
    the repositories no longer hold, with `allow_empty` also where one holds no model at all.
    """

    urls: tuple[str, ...]
    target: Path | None = None
    state: Path | None = None
    transport: str | None = None
    select_all: bool = False
    triton: str | None = None
    require_sha256: bool = False
    prune: bool = False
    allow_empty: bool = False
    load_timeout: float = 300.0
    timeouts: Timeouts = field(default_factory=Timeouts)
    tuning: Tuning = field(default_factory=Tuning)


@dataclass(slots=True)
class Session:
    """Agents that share a folder, a transport and a Triton, for as many passes as wanted."""

    agents: list[Agent]
    triton: TritonClient | None
    folder: RepositoryFolder | None = None
    pruner: Pruner | None = None

    async def run(self) -> PassResult:
        """One pass over every repository, one after the other; a repository's own error is among the errors."""
        total = PassResult()
        claimed: dict[str, str] = {}
        if self.folder and not await self._hold(self.folder, total):
            return total
        for agent in self.agents:
            try:
                result = await agent.run(claimed)
            except DfagentError as exc:
                total.errors.append(exc)
                continue
            total.models += result.models
            total.objects += result.objects
            total.errors += result.errors
        if self.pruner:
            await self._prune(self.pruner, total)
        if self.folder:
            await self._sweep(self.folder, total)
        return total

    async def _hold(self, folder: RepositoryFolder, total: PassResult) -> bool:
        try:
            await finished_in_thread(folder.hold)
        except DfagentError as exc:
            total.errors.append(exc)
            return False
        return True

    async def _sweep(self, folder: RepositoryFolder, total: PassResult) -> None:
        """Now, while nothing is under way: a service that runs for months starts only once."""
        try:
            with disk_errors(folder.state):
                await asyncio.to_thread(folder.sweep)
        except DfagentError as exc:
            total.errors.append(exc)

    async def _prune(self, pruner: Pruner, total: PassResult) -> None:
        """After all repositories, because a model may have moved from one to the other."""
        try:
            pruned = await pruner.run([agent.view for agent in self.agents])
        except DfagentError as exc:
            total.errors.append(exc)
        else:
            total.models += pruned.models
            total.errors += pruned.errors


@asynccontextmanager
async def open_session(
    settings: Settings, options: RunOptions, observer: Observer, folder: RepositoryFolder | None = None
) -> AsyncIterator[Session]:
    """Everything a run needs, given back when it ends, however it ends; a `folder` that is open stays so."""
    urls = [parse_repository_url(text) for text in options.urls]
    name = settings.dragonfly.default_transport(options.transport)
    if options.target is None and not settings.dragonfly.has_peer(name):
        raise ConfigError(
            "without --to there is only a peer's cache to warm, and the direct transport has none",
            hint="give --to DIR, or name a Dragonfly peer by `socket` or `proxy` in dragonfly_config.json",
        )
    _check_pruning(options)
    async with AsyncExitStack() as stack:
        folder = folder or await _open_folder(stack, options)
        ledger = folder.ledger if folder else None
        limit = Pressure(settings.dragonfly.concurrency)
        ways = Ways(settings.dragonfly, options.timeouts, ledger, options.tuning, limit)
        stack.push_async_callback(ways.aclose)
        transport = ways.chosen(name)
        direct = transport if name == "direct" else ways.direct()
        triton = _triton(options)
        if triton:
            stack.push_async_callback(triton.aclose)
        demanded = options.require_sha256 or settings.dragonfly.sha256_manifest
        sha256 = Sha256Check(folder) if folder and demanded else None
        agents = []
        for url in urls:
            store = open_store(
                url,
                settings.credentials,
                connect_timeout=options.timeouts.connect,
                read_timeout=options.timeouts.stall,
                checksums=True,
            )
            stack.push_async_callback(store.aclose)
            tools = Tools(
                fetcher=Fetcher(store, transport, limit, known=ledger, copies=partial(ways.copies, name)),
                config_fetcher=Fetcher(store, direct, limit, known=ledger),
                folder=folder,
                triton=triton,
                observer=observer,
                repository=str(url),
                select_all=options.select_all,
                sha256=sha256,
            )
            isolated = settings.dragonfly.isolation == "per-credential"
            agents.append(Agent(url, tools, per_credential=isolated, allow_empty=options.allow_empty))
        pruner = Pruner(folder, triton, observer.finished) if folder and options.prune else None
        yield Session(agents, triton, folder, pruner)


def _check_pruning(options: RunOptions) -> None:
    if options.allow_empty and not options.prune:
        raise ConfigError("--allow-empty goes with --prune", hint="add --prune, or leave --allow-empty out")
    if options.prune and options.target is None:
        raise ConfigError("--prune goes with --to: only a folder has models to remove", hint="give --to DIR")


@asynccontextmanager
async def open_verification(
    settings: Settings, options: RunOptions, observer: Observer, *, repair: bool, offline: bool
) -> AsyncIterator[Verification]:
    """What looks at the folder `options.target` again. Only for a repair it takes the folder's lock."""
    folder = RepositoryFolder(options.target or Path(), options.state)

    @asynccontextmanager
    async def open_origin(repository: str) -> AsyncIterator[Agent]:
        one = replace(options, urls=(repository,), select_all=True)
        async with open_session(settings, one, observer, folder) as session:
            yield session.agents[0]

    try:
        with disk_errors(folder.target):
            await asyncio.to_thread(folder.open if repair else folder.look)
        yield Verification(folder, open_origin, offline=offline)
    finally:
        folder.close()


async def _open_folder(stack: AsyncExitStack, options: RunOptions) -> RepositoryFolder | None:
    if options.target is None:
        return None
    folder = RepositoryFolder(options.target, options.state)
    stack.callback(folder.close)
    await asyncio.to_thread(folder.open)
    return folder


def _triton(options: RunOptions) -> TritonClient | None:
    if options.triton is None:
        return None
    if options.target is None:
        raise ConfigError(
            "--load needs --to DIR: Triton loads from a folder", hint="give the model repository's folder"
        )
    from dfagent.triton.client import TritonClient

    return TritonClient(options.triton, load_timeout=options.load_timeout)
