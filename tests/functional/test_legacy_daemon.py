"""A proxy address where the Go daemon of Dragonfly 2.0 and 2.1 answers, as its source says that it does."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest

from dfagent.errors import Changed, DfagentError, Overloaded, PeerUnavailable
from dfagent.transports.options import RequestOptions, Timeouts
from dfagent.transports.partial import PartialFile, Writer
from dfagent.transports.proxy import ProxyTransport
from dfagent.types import Fetched, FetchRequest, ObjectEntry, ObjectRef, SignedUrl, Source, TaskIdentity, Traffic
from tests.servers.scripted import Asked, Reply, Scripted

BLOCK = 1000
OPTIONS = RequestOptions(
    headers={"X-Team": "vision"}, filtered_params=("ns",), tag="models", application="triton", priority=3
)
TIMEOUTS = Timeouts(connect=5.0, stall=20.0)
OLD, NEW = os.urandom(3 * BLOCK), os.urandom(3 * BLOCK)


class GoDaemon:
    """Caches by sha256 of URL, range, tag and application; knows no content id, so it may serve what is stale."""

    def __init__(self) -> None:
        self.stored = OLD
        self.cache: dict[str, bytes] = {}

    def __call__(self, asked: Asked) -> Reply:
        """A task's answer: its own two headers, 206 to whatever range, with a total that ends where the range does."""
        url = asked.target.partition("?")[0] if "x-dragonfly-filter" in asked.headers else asked.target
        names = ("range", "x-dragonfly-tag", "x-dragonfly-application")
        task = hashlib.sha256("".join((url, *(asked.headers.get(name, "") for name in names))).encode()).hexdigest()
        data = self.cache.setdefault(task, self.stored)
        headers = {"X-Dragonfly-Task": task, "X-Dragonfly-Peer": "10.0.0.1-1-2-3"}
        if asked.range:
            first, last = asked.range
            return Reply(206, data[first : last + 1], {**headers, "Content-Range": f"bytes {first}-{last}/{last + 1}"})
        return Reply(200, data, headers)


def request(etag: str = '"old"', isolation: str = "", size: int = len(OLD)) -> FetchRequest:
    entry = ObjectEntry(ObjectRef("s3", "store.test", "bucket", "key"), size, etag)
    url = f"http://store.test/bucket/key?ns=1&X-Amz-Signature={os.urandom(4).hex()}"

    async def sign() -> SignedUrl:
        return SignedUrl(url, datetime.now(timezone.utc), ("X-Amz-Signature",))

    return FetchRequest(entry, TaskIdentity.of(entry, isolation), sign, "net/1/key")


@asynccontextmanager
async def to(daemon: Scripted, legacy: bool | None, options: RequestOptions = OPTIONS) -> AsyncIterator[ProxyTransport]:
    transport = ProxyTransport(daemon.url, options, TIMEOUTS, legacy=legacy, block_size=BLOCK)
    try:
        yield transport
    finally:
        await transport.aclose()


def content(fetched: Fetched) -> bytes:
    assert fetched.path is not None
    return fetched.path.read_bytes()


async def failure(transport: ProxyTransport, wanted: FetchRequest, folder: Path) -> DfagentError:
    with pytest.raises(DfagentError) as failed:
        await transport.fetch(wanted, folder)
    return failed.value


async def should_find_out_by_its_answer_and_ask_again_in_its_own_words(tmp_path: Path) -> None:
    wanted = request()
    async with Scripted(GoDaemon()) as daemon, to(daemon, None) as transport:
        fetched = await transport.fetch(wanted, tmp_path)
        assert content(fetched) == OLD
        assert (fetched.source, fetched.traffic, fetched.told) == (Source.UNKNOWN, Traffic(), None)
        assert len(daemon.asked) == 2
        await transport.fetch(request('"2"'), tmp_path)
        assert len(daemon.asked) == 3, "it is known by now"
    for asked in daemon.asked[1:2]:
        assert {name: value for name, value in asked.headers.items() if name.startswith(("x-", "if-"))} == {
            "x-dragonfly-filter": "ns&X-Amz-Signature",
            "x-dragonfly-tag": f"models-{wanted.task.id}",
            "x-dragonfly-application": "triton",
            "x-dragonfly-priority": "3",
            "x-team": "vision",
            "if-match": '"old"',
        }


@pytest.mark.parametrize("legacy", [None, True])
async def should_never_serve_an_overwritten_object_from_its_cache(tmp_path: Path, legacy: bool | None) -> None:
    """The tag names the version, and whose credential it was."""
    store = GoDaemon()
    async with Scripted(store) as daemon, to(daemon, legacy) as transport:
        assert content(await transport.fetch(request('"old"'), tmp_path)) == OLD
        store.stored = NEW
        assert content(await transport.fetch(request('"new"'), tmp_path)) == NEW
        tasks = len(store.cache)
        await transport.fetch(request('"new"', isolation="somebody else"), tmp_path)
        assert len(store.cache) == tasks + 1
        (tmp_path / "again").mkdir()
        await transport.fetch(request('"new"'), tmp_path / "again")
        assert len(store.cache) == tasks + 1, "another signature is the same task"


async def should_find_out_in_words_that_make_one_task_whoever_signs(tmp_path: Path) -> None:
    """What is fetched to find out is thrown away: a new process must not cost the origin another download."""
    store = GoDaemon()
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        async with Scripted(store) as daemon, to(daemon, None) as transport:
            await transport.fetch(request(), tmp_path / run)
    assert len(store.cache) == 2, "one by the URL, one by the version"


async def should_not_tell_todays_dfdaemon_the_old_ones_words_for_ever(tmp_path: Path) -> None:
    def todays(asked: Asked) -> Reply:
        content = asked.headers["x-dragonfly-content-for-calculating-task-id"]
        return Reply(200, OLD, {"X-Dragonfly-Task-Id": hashlib.sha256(content.encode()).hexdigest()})

    async with Scripted(todays) as daemon, to(daemon, None) as transport:
        await transport.fetch(request('"1"'), tmp_path)
        await transport.fetch(request('"2"'), tmp_path)
    assert ["x-dragonfly-filter" in asked.headers for asked in daemon.asked] == [True, False]


async def should_let_no_header_of_the_users_take_the_version_out_of_the_tag(tmp_path: Path) -> None:
    own = replace(OPTIONS, headers={"x-dragonfly-TAG": "mine", "X-Dragonfly-Filter": "", "X-Dragonfly-Registry": "r"})
    async with Scripted(GoDaemon()) as daemon, to(daemon, True, own) as transport:
        wanted = request()
        await transport.fetch(wanted, tmp_path)
    sent = daemon.asked[0].headers
    assert sent["x-dragonfly-tag"] == f"mine-{wanted.task.id}"
    assert sent["x-dragonfly-filter"] == "ns&X-Amz-Signature"
    assert sent["x-dragonfly-registry"] == "r"


async def should_ask_a_legacy_daemon_for_no_range(tmp_path: Path) -> None:
    """Each would be a task of its own there, and its answer doesn't tell the total size."""
    wanted = request()
    partial = PartialFile(tmp_path, wanted.task.id, len(OLD), "proxy", block_size=BLOCK)
    partial.open()
    partial.begin("crc32c")
    Writer(partial, 0, BLOCK).write(OLD[:BLOCK])
    partial.close()
    async with Scripted(GoDaemon()) as daemon, to(daemon, True) as transport:
        assert content(await transport.fetch(wanted, tmp_path)) == OLD
    assert [asked.range for asked in daemon.asked] == [None]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (Reply(412, b"412 -", {"X-Dragonfly-Task": "t", "X-Dragonfly-Peer": "p"}), Changed),
        (Reply(503, b"task: t\npeer: p\nerror: http://store.test/k?X-Amz-Signature=5ec7e7"), PeerUnavailable),
        (Reply(429, b"acquire"), Overloaded),
        (Reply(200, OLD, {"ETag": '"old"'}), PeerUnavailable),
        (Reply(200, OLD, {"X-Dragonfly-Task": "t"}), PeerUnavailable),
        (Reply(200, OLD, {"X-Dragonfly-Task-Id": "f" * 64}), PeerUnavailable),
    ],
    ids=["origin's", "its own", "busy", "passed through", "half", "today's dfdaemon"],
)
async def should_tell_its_errors_from_the_origins(tmp_path: Path, reply: Reply, expected: type[DfagentError]) -> None:
    async with Scripted(lambda _asked: reply) as daemon, to(daemon, True) as transport:
        error = await failure(transport, request(), tmp_path)
    assert type(error) is expected and error.hint
    assert "5ec7e7" not in f"{error}"
    assert list(tmp_path.iterdir()) == []


async def should_refuse_it_where_the_settings_say_that_it_is_none(tmp_path: Path) -> None:
    async with Scripted(GoDaemon()) as daemon, to(daemon, False) as transport:
        assert isinstance(await failure(transport, request(), tmp_path), PeerUnavailable)
    assert len(daemon.asked) == 1


async def should_notice_that_it_was_replaced_by_todays_dfdaemon(tmp_path: Path) -> None:
    wanted = request()
    async with Scripted(GoDaemon()) as daemon, to(daemon, None) as transport:
        await transport.fetch(request('"before"'), tmp_path)
        daemon.answer = lambda _asked: Reply(200, OLD, {"X-Dragonfly-Task-Id": wanted.task.id})
        assert content(await transport.fetch(wanted, tmp_path)) == OLD
    assert "x-dragonfly-content-for-calculating-task-id" in daemon.asked[-1].headers


async def should_not_ask_two_kinds_of_peers_in_turn_for_ever(tmp_path: Path) -> None:
    def contrary(asked: Asked) -> Reply:
        modern = "x-dragonfly-use-p2p" in asked.headers
        ours = {"X-Dragonfly-Task": "t", "X-Dragonfly-Peer": "p"} if modern else {"X-Dragonfly-Task-Id": "f" * 64}
        return Reply(200, OLD, ours)

    async with Scripted(contrary) as daemon, to(daemon, None) as transport:
        assert isinstance(await failure(transport, request(), tmp_path), PeerUnavailable)
    assert len(daemon.asked) == 2


async def should_find_out_when_it_only_warms_too(tmp_path: Path) -> None:
    async with Scripted(GoDaemon()) as daemon, to(daemon, None) as transport:
        fetched = await transport.fetch(request(), None)
    assert fetched.path is None and len(daemon.asked) == 2
    assert list(tmp_path.iterdir()) == []
