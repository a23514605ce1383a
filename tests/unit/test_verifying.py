"""What verification lets through, what it refuses, and what it need not read."""

from __future__ import annotations

import os
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dfagent.errors import Changed, DamagedTask, DigestMismatch, RepositoryError, StoreUnavailable
from dfagent.transports.verifying import Verifying
from dfagent.types import Checksum, Fetched, FetchRequest, Source, Traffic, file_identity
from tests.servers.requests import request_for

DATA = b"the store's bytes" * 100
RIGHT = Checksum("crc32", zlib.crc32(DATA).to_bytes(4, "big"))
WRONG = Checksum("crc32", b"\0\0\0\1")


class Bringing:
    """A transport that writes the same bytes each time; `told` and `computed` are what it says of them."""

    name = "bringing"

    def __init__(self, data: bytes = DATA, told: Checksum | None = None, computed: Checksum | None = None) -> None:
        self._data, self._told, self._computed = data, told, computed

    async def aclose(self) -> None: ...

    async def fetch(self, _request: FetchRequest, folder: Path | None) -> Fetched:
        path = folder / "partial.partial" if folder else None
        if path:
            path.write_bytes(self._data)
        fetched = Fetched(path, self.name, Source.UNKNOWN, Traffic(), 0.0, 0.0)
        return replace(fetched, told=self._told, computed=self._computed)


class Known:
    """A ledger that knows one inode's time of change."""

    def __init__(self, mtime_ns: int = 0, checksum: Checksum | None = None) -> None:
        self._mtime_ns, self._checksum = mtime_ns, checksum

    def verified(self, _task_id: str, file: os.stat_result) -> bool:
        return file.st_mtime_ns == self._mtime_ns

    def checksum(self, _task_id: str) -> Checksum | None:
        return self._checksum


class Replaced(Bringing):
    """Another program put its own file in the place of the one that was written."""

    async def fetch(self, request: FetchRequest, folder: Path | None) -> Fetched:
        fetched = await super().fetch(request, folder)
        assert fetched.path is not None
        written_as = file_identity(fetched.path.stat())
        fetched.path.unlink()
        fetched.path.write_bytes(bytes(len(DATA)))
        return replace(fetched, written_as=written_as, computed=RIGHT)


def asking(answer: Checksum | None) -> tuple[FetchRequest, list[str]]:
    """A request that notes every question for the store's checksum."""
    asked: list[str] = []

    async def expected() -> Checksum | None:
        asked.append("the store")
        return answer

    return replace(request_for(len(DATA)), expected=expected), asked


def discarding(gone: bool) -> tuple[Callable[[str], Awaitable[bool]], list[str]]:
    discarded: list[str] = []

    async def discard(task_id: str) -> bool:
        discarded.append(task_id)
        return gone

    return discard, discarded


async def should_not_take_the_checksum_of_what_was_written_for_that_of_another_file(tmp_path: Path) -> None:
    request, _ = asking(RIGHT)
    with pytest.raises(RepositoryError, match="replaced or changed"):
        await Verifying(Replaced()).fetch(request, tmp_path)


@pytest.mark.parametrize("computed", [None, RIGHT, Checksum("sha256", b"of no use")], ids=["read", "streamed", "other"])
async def should_let_the_stores_bytes_through_and_say_by_what_they_agree(
    tmp_path: Path, computed: Checksum | None
) -> None:
    request, _ = asking(RIGHT)
    fetched = await Verifying(Bringing(computed=computed)).fetch(request, tmp_path)
    assert fetched.verified == RIGHT
    assert fetched.path is not None and fetched.path.read_bytes() == DATA


async def should_refuse_other_bytes_remove_them_and_delete_the_task_at_the_peer(tmp_path: Path) -> None:
    request, _ = asking(RIGHT)
    discard, discarded = discarding(gone=True)
    damaged = DATA[:-1] + b"X"
    with pytest.raises(DigestMismatch) as refused:
        await Verifying(Bringing(damaged), discard=discard).fetch(request, tmp_path)
    assert refused.value.retryable
    assert RIGHT.value.hex() in refused.value.message
    assert discarded == [request.task.id]
    assert not list(tmp_path.iterdir())


async def should_believe_the_streams_own_count_before_the_file(tmp_path: Path) -> None:
    request, _ = asking(RIGHT)
    with pytest.raises(DigestMismatch):
        await Verifying(Bringing(computed=WRONG)).fetch(request, tmp_path)


async def should_say_what_to_delete_where_the_peer_can_not_be_told(tmp_path: Path) -> None:
    request, _ = asking(RIGHT)
    discard, _discarded = discarding(gone=False)
    with pytest.raises(DigestMismatch) as refused:
        await Verifying(Bringing(b"x" * len(DATA)), discard=discard).fetch(request, tmp_path)
    assert request.task.id[:16] in refused.value.hint


async def should_pass_bytes_that_the_store_has_no_checksum_of_as_unverified(tmp_path: Path) -> None:
    request, _ = asking(None)
    fetched = await Verifying(Bringing()).fetch(request, tmp_path)
    assert fetched.verified is None
    assert fetched.path is not None and fetched.path.exists()


async def should_not_ask_again_for_what_the_answer_itself_told(tmp_path: Path) -> None:
    request, asked = asking(WRONG)
    fetched = await Verifying(Bringing(told=RIGHT, computed=RIGHT)).fetch(request, tmp_path)
    assert fetched.verified == RIGHT
    assert not asked


async def should_trust_a_file_that_the_ledger_knows_without_reading_it(tmp_path: Path) -> None:
    request, asked = asking(WRONG)

    class Linking(Bringing):
        async def fetch(self, request: FetchRequest, folder: Path | None) -> Fetched:
            fetched = await super().fetch(request, folder)
            assert fetched.path
            os.utime(fetched.path, ns=(7, 7))
            return fetched

    fetched = await Verifying(Linking(), Known(7, RIGHT)).fetch(request, tmp_path)
    assert fetched.verified == RIGHT
    assert not asked
    with pytest.raises(DigestMismatch):
        await Verifying(Linking(), Known(8, RIGHT)).fetch(request, tmp_path)


async def should_rid_the_peer_of_a_task_of_another_size(tmp_path: Path) -> None:
    class Short(Bringing):
        async def fetch(self, _request: FetchRequest, _folder: Path | None) -> Fetched:
            raise DamagedTask("92 bytes of it")

    request, _ = asking(RIGHT)
    for folder in (tmp_path, None):
        discard, discarded = discarding(gone=True)
        with pytest.raises(DamagedTask) as refused:
            await Verifying(Short(), discard=discard).fetch(request, folder)
        assert discarded == [request.task.id]
        assert "deleted" in refused.value.hint


async def should_keep_what_can_be_resumed_when_the_store_can_not_be_asked(tmp_path: Path) -> None:
    async def busy() -> Checksum | None:
        raise StoreUnavailable("busy")

    (tmp_path / "partial.parts").write_text("a journal")
    with pytest.raises(StoreUnavailable):
        await Verifying(Bringing()).fetch(replace(request_for(len(DATA)), expected=busy), tmp_path)
    assert (tmp_path / "partial.partial").exists()
    with pytest.raises(DigestMismatch):
        await Verifying(Bringing()).fetch(asking(WRONG)[0], tmp_path)
    assert not (tmp_path / "partial.partial").exists()


async def should_ask_the_store_before_a_peer_sends_anything(tmp_path: Path) -> None:
    async def changed() -> Checksum | None:
        raise Changed("overwritten")

    class NotAsked(Bringing):
        async def fetch(self, _request: FetchRequest, _folder: Path | None) -> Fetched:
            raise AssertionError("the peer was asked")

    discard, _ = discarding(gone=True)
    with pytest.raises(Changed):
        await Verifying(NotAsked(), discard=discard).fetch(replace(request_for(1), expected=changed), tmp_path)


async def should_leave_nothing_when_the_store_can_not_be_asked(tmp_path: Path) -> None:
    async def changed() -> Checksum | None:
        raise Changed("overwritten")

    with pytest.raises(Changed):
        await Verifying(Bringing()).fetch(replace(request_for(len(DATA)), expected=changed), tmp_path)
    assert not list(tmp_path.iterdir())


async def should_have_nothing_to_verify_where_only_a_cache_was_warmed() -> None:
    request, asked = asking(WRONG)
    discard, _ = discarding(gone=True)
    assert (await Verifying(Bringing(), discard=discard).fetch(request, None)).verified is None
    assert not asked
