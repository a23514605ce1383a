"""Nothing leaves a transport unverified when the store gave a checksum; what was verified once is not read again."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from dfagent.checksums import checksum_of_file
from dfagent.errors import DamagedTask, DigestMismatch, RepositoryError
from dfagent.tasks import finished_in_thread
from dfagent.transports.base import Transport
from dfagent.types import Checksum, Fetched, FetchRequest, file_identity

log = logging.getLogger("dfagent.transports")
Discard = Callable[[str], Awaitable[bool]]


class Trust(Protocol):
    """What was verified before. Called from threads."""

    def verified(self, task_id: str, file: os.stat_result) -> bool:
        """Whether just this file (device, inode, size, mtime) was found to hold the task's bytes."""
        ...

    def checksum(self, task_id: str) -> Checksum | None:
        """What the store said of the task's bytes."""
        ...


class Verifying:
    """A transport whose files agree with the store's checksum, as far as the store gives one.

    The checksum comes from the store itself, never from a peer. A file that `ledger` knows is trusted without a look.
    After a mismatch the file is removed and `DigestMismatch` is raised. `discard` deletes the task (by its id) from the
    node's peer then, and after `DamagedTask`, so that the next attempt does not meet the same bytes again.
    """

    def __init__(self, inner: Transport, ledger: Trust | None = None, discard: Discard | None = None) -> None:
        self._inner = inner
        self._ledger = ledger
        self._discard = discard

    @property
    def name(self) -> str:
        return self._inner.name

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def fetch(self, request: FetchRequest, folder: Path | None) -> Fetched:
        if self._discard and folder:
            # Asked before the bytes: what a peer sends is of no use as long as the store does not answer.
            await request.expected()
        try:
            fetched = await self._inner.fetch(request, folder)
        except DamagedTask as exc:
            exc.hint = await self._rid(request) or exc.hint
            raise
        if fetched.path is None:
            return fetched
        started = time.monotonic()
        try:
            before = await asyncio.to_thread(_stat, fetched.path)
            if fetched.written_as and file_identity(before) != fetched.written_as:
                raise RepositoryError(
                    f"{request.label}: its file was replaced or changed while it was being written",
                    hint="who else works in the state folder? the next run fetches it again",
                )
            verified = await self._verified(request, fetched, fetched.path, before)
        except BaseException as exc:
            # What has a journal beside it can be gone on with, unless its bytes are wrong.
            if isinstance(exc, DigestMismatch) or not fetched.path.with_suffix(".parts").exists():
                with suppress(OSError):
                    fetched.path.unlink(missing_ok=True)
            raise
        return replace(
            fetched,
            verified=verified,
            verified_as=file_identity(before),
            verify_seconds=time.monotonic() - started,
        )

    async def _verified(
        self, request: FetchRequest, fetched: Fetched, path: Path, before: os.stat_result
    ) -> Checksum | None:
        task = request.task.id
        if self._ledger:
            known: bool = await asyncio.to_thread(self._ledger.verified, task, before)
            if known:
                return await asyncio.to_thread(self._ledger.checksum, task)
        expected = fetched.told or await request.expected()
        if expected is None:
            return None
        computed = fetched.computed
        if computed is None or not _comparable(computed, expected):
            computed = await finished_in_thread(checksum_of_file, path, expected)
        if computed.value == expected.value:
            return expected
        raise await self._mismatch(request, fetched, expected, computed)

    async def _mismatch(
        self, request: FetchRequest, fetched: Fetched, expected: Checksum, computed: Checksum
    ) -> DigestMismatch:
        message = (
            f"{request.label}: the bytes that came by {fetched.transport} are not the store's: "
            f"{expected.algorithm} is {computed.value.hex()[:16]}, expected {expected.value.hex()[:16]}"
        )
        hint = await self._rid(request) or "the store or the network changed them on the way; try again"
        return DigestMismatch(message, hint=hint)

    async def _rid(self, request: FetchRequest) -> str:
        """Rids the node's peer of the task and says so; "" where there is no peer."""
        if self._discard is None:
            return ""
        if await self._discard(request.task.id):
            said = "the damaged task was deleted from the node's Dragonfly peer"
        else:
            said = f"delete task {request.task.id[:16]}… from the node's Dragonfly peer: its cache may be damaged"
        log.warning("%s: %s", request.label, said)
        return said


def _stat(path: Path) -> os.stat_result:
    return os.stat(path, follow_symlinks=False)


def _comparable(computed: Checksum, expected: Checksum) -> bool:
    return (computed.algorithm, computed.part_size) == (expected.algorithm, expected.part_size)
