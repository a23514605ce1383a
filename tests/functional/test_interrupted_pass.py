"""A pass that is given up leaves the folder only when its last change there is made."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from dfagent.local.object_store import S3Server
from dfagent.repository.folder import RepositoryFolder
from dfagent.repository.materialise import Staging
from tests.servers.gate import Gate
from tests.servers.passes import Place


@pytest.fixture
async def place(s3_server: S3Server, bucket: str, tmp_path: Path) -> AsyncIterator[Place]:
    async with Gate(s3_server.port) as gate:
        yield Place(s3_server, bucket, gate, tmp_path / "node" / "models")


class Held:
    """A method that waits, in its thread, until it is let go."""

    def __init__(self, original: Callable[..., Any]) -> None:
        self._original = original
        self.begun, self.let_go = threading.Event(), threading.Event()

    def __get__(self, owner: Any, _: Any) -> Callable[..., Any]:
        def held(*arguments: Any) -> Any:
            self.begun.set()
            assert self.let_go.wait(30)
            return self._original(owner, *arguments)

        return held


@pytest.mark.parametrize(
    ("owner", "method"), [(Staging, "take"), (Staging, "write"), (Staging, "finish"), (RepositoryFolder, "publish")]
)
async def should_finish_a_change_on_the_disk_before_it_lets_the_folder_go(
    place: Place, owner: type, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its ledger is closed under it, and the next dfagent may have the folder's lock already."""
    place.put_model("repo/net")
    held = Held(getattr(owner, method))
    with monkeypatch.context() as patch:
        patch.setattr(owner, method, held)
        running = asyncio.create_task(place.run())
        assert await asyncio.to_thread(held.begun.wait, 30)
        running.cancel()
        await asyncio.wait([running], timeout=0.2)
        assert not running.done()
        held.let_go.set()
        with pytest.raises(asyncio.CancelledError):
            await running
    place.gate.heads.clear()
    assert not (await place.run()).errors
    assert place.gate.requests("1/weights") == [], "what was being taken in is here"
