"""Breaks one guard after the other and asks whether the soak notices: a check that never fails proves nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import aiohttp

from dfagent.repository.folder import RepositoryFolder
from dfagent.repository.materialise import Staging
from dfagent.stores.s3 import S3Store
from dfagent.stores.s3_listing import Listing
from dfagent.transports import direct
from dfagent.transports.dfdaemon import DfdaemonTransport
from dfagent.transports.verifying import Verifying
from dfagent.types import ObjectEntry, TaskIdentity
from dfagent.ways import Ways
from tests.soak.kinds import PAIRS
from tests.soak.worker import Worker, room

_ROUNDS = 6
_MOST_SEEDS = 40


@dataclass(frozen=True)
class Sabotage:
    """A broken guard: `breaks` are (class or module, attribute, replacement of the original one).

    `kinds` are the violations that must be seen, in schedules whose main fault is one of `faults` ("" is any).
    """

    name: str
    kinds: tuple[str, ...]
    faults: tuple[str, ...]
    breaks: tuple[tuple[Any, str, Callable[[Any], Any]], ...]

    @contextmanager
    def done(self) -> Iterator[None]:
        with ExitStack() as stack:
            for owner, attribute, replacement in self.breaks:
                original = owner.__dict__[attribute]
                stack.enter_context(patch.object(owner, attribute, replacement(original)))
            yield

    def seeds(self) -> list[int]:
        numbers = [number for number, (label, _) in enumerate(PAIRS) if not self.faults or label in self.faults]
        return [number + round_ * len(PAIRS) for round_ in range(_ROUNDS) for number in numbers][:_MOST_SEEDS]


def _no_check(_original: Any) -> Any:
    async def verified(*_arguments: Any) -> None:
        return None

    return verified


def _pins_nothing(_original: Any) -> Any:
    return property(lambda _entry: {})


def _one_task_for_all_versions(_original: Any) -> Any:
    return classmethod(lambda cls, entry, _isolation="": cls(str(entry.ref)))


def _follows_redirects(original: Any) -> Any:
    return lambda session, url, **options: original(session, url, **{**options, "allow_redirects": True})


def _keeps_what_is_damaged(_original: Any) -> Any:
    async def discard(*_arguments: Any) -> bool:
        return True

    return discard


def _changes_the_mode(original: Any) -> Any:
    def take(staging: Staging, file: Any, partial: Any, *more: Any) -> Any:
        partial.chmod(0o600)
        return original(staging, file, partial, *more)

    return take


def _says_what_it_signed(original: Any) -> Any:
    async def sign(store: S3Store, entry: ObjectEntry) -> Any:
        signed = await original(store, entry)
        logging.getLogger("dfagent.stores").warning("signed %s", signed.url)
        return signed

    return sign


def _first_page_only(_original: Any) -> Any:
    return lambda _listing, _page: ""


def _publishes_first(original: Any) -> Any:
    """An empty model instead of the old one while the new one is fetched."""

    def open_staging(staging: Staging) -> Any:
        link = staging._folder.target / staging.manifest.model
        link.unlink(missing_ok=True)
        return original(staging)

    return open_staging


def _stays_open(_original: Any) -> Any:
    async def aclose(_ways: Ways) -> None: ...

    return aclose


def _raises_what_it_will(_original: Any) -> Any:
    def error_of(*_arguments: Any) -> None:
        raise KeyError("status")

    return error_of


def _writes_beside(original: Any) -> Any:
    def open_folder(folder: RepositoryFolder) -> None:
        original(folder)
        (folder.target / "note.txt").touch()

    return open_folder


def _reads_on(_original: Any) -> Any:
    async def save_body(response: aiohttp.ClientResponse, writer: Any, *_arguments: Any) -> None:
        async for chunk in response.content.iter_any():
            writer.write(chunk[: writer.left])

    return save_body


SABOTAGES = (
    Sabotage(
        "checksums are not compared",
        ("corrupt",),
        ("flipped-bit@get", "html-page-of-same-size@proxy", "corrupt-cache@download"),
        ((Verifying, "_verified", _no_check),),
    ),
    Sabotage("requests pin no version", ("store",), ("reset@get",), ((ObjectEntry, "pin_headers", _pins_nothing),)),
    Sabotage(
        "a task is one for all versions", ("corrupt", "stale"), (), ((TaskIdentity, "of", _one_task_for_all_versions),)
    ),
    Sabotage(
        "redirects are followed",
        ("secret",),
        ("redirect-elsewhere@get",),
        ((aiohttp.ClientSession, "get", _follows_redirects),),
    ),
    Sabotage(
        "damaged tasks stay in the cache",
        ("cache", "recovery"),
        ("flipped-bit@get", "corrupt-cache@download"),
        ((DfdaemonTransport, "discard", _keeps_what_is_damaged),),
    ),
    Sabotage(
        "a linked file's mode is changed",
        ("cache",),
        ("piece-twice@download",),
        ((Staging, "take", _changes_the_mode),),
    ),
    Sabotage("a signed URL is logged", ("secret",), ("slow-start@get",), ((S3Store, "sign", _says_what_it_signed),)),
    Sabotage(
        "a listing ends after a page",
        ("corrupt", "stale"),
        ("status-500-at-page-2@list",),
        ((Listing, "next_token", _first_page_only),),
    ),
    Sabotage(
        "the old model goes before the new one came",
        ("corrupt",),
        ("status-403@get", "status-404@get"),
        ((Staging, "open", _publishes_first),),
    ),
    Sabotage("connections stay open", ("leaked", "problem"), ("reset@get",), ((Ways, "aclose", _stays_open),)),
    Sabotage(
        "an error has no type",
        ("bug",),
        ("status-403@get", "status-500@get"),
        ((direct, "error_of", _raises_what_it_will),),
    ),
    Sabotage(
        "files are left beside the models", ("outside",), ("reset@get",), ((RepositoryFolder, "open", _writes_beside),)
    ),
    Sabotage("bodies are read without a limit", ("requests",), ("endless@get",), ((direct, "save_body", _reads_on),)),
)


def prove() -> bool:
    """Whether every sabotage is noticed; prints how."""
    well = True
    with room() as folder:
        worker = Worker(6, folder)
        for sabotage in SABOTAGES:
            with sabotage.done():
                done = worker.run(sabotage.seeds())
            seen = {violation.kind: outcome.seed for outcome in done.outcomes for violation in outcome.violations}
            seen |= dict.fromkeys(["problem"] if done.problems else [], -1)
            noticed = [f"{kind} (seed {seen[kind]})" for kind in sabotage.kinds if kind in seen]
            well = well and bool(noticed)
            print(f"{sabotage.name}: {', '.join(noticed) or f'NOT NOTICED, but {seen}'}")
        worker.close()
    return well
