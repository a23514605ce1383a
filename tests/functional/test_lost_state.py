"""A pass after the ledger was lost: what is here is read, not fetched again; no damage gets into a new generation.

And after the whole state folder was lost under a running agent: it begins anew, unless another has begun by then.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from dfagent.errors import FolderInUse, RepositoryError
from dfagent.local.object_store import S3Server
from dfagent.repository.ledger import FILES, NAME
from dfagent.repository.materialise import Staging
from tests.servers.gate import Gate
from tests.servers.passes import Place, config_of

FILES_OF_NET = {"config.pbtxt": config_of("net"), "1/a": b"first" * 1000, "1/b": b"second" * 1000}


@pytest.fixture
async def place(s3_server: S3Server, bucket: str, tmp_path: Path) -> AsyncIterator[Place]:
    async with Gate(s3_server.port) as gate:
        place = Place(s3_server, bucket, gate, tmp_path / "node" / "models")
        place.put_files("repo/net", FILES_OF_NET)
        yield place


def lose_ledger(place: Place) -> None:
    assert (place.state / NAME).exists()
    for name in FILES:
        (place.state / name).unlink(missing_ok=True)


def flip(path: Path) -> None:
    """As a failing disk does: neither the size nor the time tells."""
    before = path.stat()
    path.write_bytes(b"X" + path.read_bytes()[1:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def fetched(place: Place) -> list[str]:
    """The objects that were asked for with GET since `heads` was cleared."""
    paths = (head.split()[1].partition("?")[0] for head in place.gate.heads if head.startswith("GET "))
    return [path.rpartition("/net/")[2] for path in paths if "/net/" in path]


@pytest.mark.parametrize("damaged", [False, True])
async def should_reuse_the_files_of_the_generation_before_only_if_their_bytes_are_right(
    place: Place, damaged: bool
) -> None:
    await place.run()
    if damaged:
        flip(place.target / "net/1/a")
    lose_ledger(place)
    place.put("repo/net/1/b", b"newer")
    place.gate.heads.clear()
    assert place.outcomes(await place.run()) == {"net": "published"}
    assert (place.target / "net/1/a").read_bytes() == FILES_OF_NET["1/a"]
    assert ("1/a" in fetched(place)) is damaged


@pytest.mark.parametrize("damaged", [False, True])
async def should_go_on_with_what_a_killed_run_left_only_if_its_bytes_are_right(
    place: Place, damaged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Staging, "finish", Mock(side_effect=RepositoryError("the disk went away")))
        assert place.outcomes(await place.run()) == {"net": "failed"}
    (staged,) = (place.state / "staging").glob("net/*/1/a")
    if damaged:
        flip(staged)
    lose_ledger(place)
    place.gate.heads.clear()
    assert place.outcomes(await place.run()) == {"net": "published"}
    assert (place.target / "net/1/a").read_bytes() == FILES_OF_NET["1/a"]
    assert ("1/a" in fetched(place)) is damaged and "1/b" not in fetched(place)


@pytest.mark.parametrize("obstacle", ["folder", "pipe"])
async def should_notice_damage_also_where_no_ledger_can_be_written(
    place: Place, obstacle: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each pass asks the store and reads; it never publishes on trust, and it never waits for a pipe's other end."""
    await place.run()
    lose_ledger(place)
    (place.state / NAME).mkdir() if obstacle == "folder" else os.mkfifo(place.state / NAME)
    assert place.outcomes(await place.run()) == {"net": "unchanged"}
    flip(place.target / "net/1/a")
    assert place.outcomes(await place.run()) == {"net": "published"}
    assert (place.target / "net/1/a").read_bytes() == FILES_OF_NET["1/a"]
    said = [record.message for record in caplog.records]
    assert [message for message in said if NAME in message]
    assert "net: published files are not what they were: what is damaged is brought again" in said


@pytest.mark.parametrize("lost", ["state", "one folder"])
async def should_begin_anew_where_the_state_folder_was_removed_meanwhile(place: Place, lost: str) -> None:
    async with place.session() as session:
        assert place.outcomes(await session.run()) == {"net": "published"}
        shutil.rmtree(place.state if lost == "state" else place.state / "tmp")
        place.put("repo/net/1/b", b"newer")
        result = await session.run()
        assert not result.errors and (place.target / "net/1/a").read_bytes() == FILES_OF_NET["1/a"]
        with pytest.raises(FolderInUse):
            await place.run()
        place.gate.heads.clear()
        assert place.outcomes(await session.run()) == {"net": "unchanged"} and fetched(place) == []


async def should_leave_the_folder_to_the_one_who_has_it_by_now(place: Place) -> None:
    async with place.session() as first:
        await first.run()
        shutil.rmtree(place.state)
        async with place.session() as second:
            await second.run()
            (error,) = (await first.run()).errors
            assert isinstance(error, FolderInUse)
            assert place.outcomes(await second.run()) == {"net": "unchanged"}
        assert place.outcomes(await first.run()) == {"net": "unchanged"}
