"""Direct and proxy downloads that were cut off, killed, or answered wrongly: right bytes or a typed error."""

from __future__ import annotations

import asyncio
import base64
import gzip
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

import pytest

from dfagent.checksums import hasher
from dfagent.errors import Changed, DamagedTask, DfagentError, NotFound, OriginStatus, SignedUrlExpired, Truncated
from dfagent.transports.base import Transport
from dfagent.transports.direct import DirectTransport
from dfagent.transports.options import RequestOptions, Timeouts
from dfagent.transports.partial import PartialFile, Writer
from dfagent.transports.proxy import ProxyTransport
from dfagent.transports.retrying import Retrying, RetryPolicy
from dfagent.types import Checksum, Fetched, FetchRequest, ObjectEntry, ObjectRef, SignedUrl, Source, TaskIdentity
from tests.servers.scripted import ETAG, Answer, Asked, Reply, Scripted, good_store

BLOCK = 1000
RANGE = 4000
DATA = os.urandom(10 * BLOCK + 500)
SIZE = len(DATA)
SMALL = DATA[: 3 * BLOCK + 5]
QUERY = "?X-Amz-Signature=5ec7e7"
TIMEOUTS = Timeouts(connect=5.0, stall=20.0)
QUICK = RetryPolicy(first_pause=0.001, longest_pause=0.002)
BOTH = pytest.mark.parametrize("kind", ["direct", "proxy"])


def checksum(algorithm: str, data: bytes = DATA, part_size: int = 0) -> Checksum:
    computed = hasher(algorithm, part_size)
    computed.update(data)
    return computed.checksum()


@dataclass
class Way:
    """One transport against one scripted server, which is the store or the node's peer."""

    kind: str
    server: Scripted
    transport: Transport
    folder: Path
    counts: list[int] = field(default_factory=list)
    enough: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    expectations: list[Checksum | None] = field(default_factory=list)

    def request(self, data: bytes = DATA, expected: Checksum | None = None) -> FetchRequest:
        entry = entry_of(data)
        host = self.server.url if self.kind == "direct" else "http://store.test"
        signed = SignedUrl(f"{host}/bucket/key{QUERY}", datetime.now(timezone.utc), ("X-Amz-Signature",))

        async def sign() -> SignedUrl:
            return signed

        async def expect() -> Checksum | None:
            self.expectations.append(expected)
            return expected

        return FetchRequest(entry, TaskIdentity.of(entry), sign, "net/1/key", self.count, expect)

    def count(self, number: int) -> None:
        self.counts.append(number)
        if sum(self.counts) >= self.enough:
            self.arrived.set()

    def cut(self, reply: Reply, after: int, total: int) -> Reply:
        """The reply, cut off when `total` bytes of the object have arrived."""
        self.enough = total
        self.arrived.clear()
        return replace(reply, cut=after, hold=lambda: asyncio.wait_for(self.arrived.wait(), 20))

    async def fetch(self, data: bytes = DATA, expected: Checksum | None = None) -> Fetched:
        """One attempt that must bring exactly the data and count it once."""
        fetched = await self.transport.fetch(self.request(data, expected), self.folder)
        assert fetched.path is not None and fetched.path.read_bytes() == data
        assert sum(self.counts) == len(data)
        return fetched

    async def failure(self, data: bytes = DATA) -> DfagentError:
        with pytest.raises(DfagentError) as failed:
            await self.transport.fetch(self.request(data), self.folder)
        assert "5ec7e7" not in f"{failed.value} {failed.value.__cause__!r}"
        self.counts.clear()
        return failed.value

    async def heals(self, data: bytes = DATA) -> Fetched:
        """The same folder and a server that is well again: nothing that was left may spoil the object."""
        self.server.answer = good_store(data)
        self.counts.clear()
        return await self.fetch(data)

    def left(self, *blocks: int, data: bytes = DATA) -> PartialFile:
        """What a killed run left."""
        task = TaskIdentity.of(entry_of(data)).id
        partial = PartialFile(self.folder, task, len(data), self.kind, block_size=BLOCK)
        partial.open()
        partial.begin("crc32c")
        for number in blocks:
            offset, length = partial.place(number)
            Writer(partial, offset, length).write(data[offset : offset + length])
        partial.close()
        return partial

    @property
    def ranges(self) -> list[tuple[int, int] | None]:
        return [asked.range for asked in self.server.asked]


def answering(reply: Reply) -> Answer:
    """The same to every request."""
    return lambda _asked: replace(reply, headers=dict(reply.headers))


def entry_of(data: bytes) -> ObjectEntry:
    return ObjectEntry(ObjectRef("s3", "store.test", "bucket", "key"), len(data), ETAG)


@pytest.fixture
async def way(kind: str, tmp_path: Path) -> AsyncIterator[Way]:
    async with way_to(kind, tmp_path, good_store(DATA)) as opened:
        yield opened


@asynccontextmanager
async def way_to(kind: str, folder: Path, answer: Answer) -> AsyncIterator[Way]:
    async with AsyncExitStack() as stack:
        task = {"X-Dragonfly-Task-Id": TaskIdentity.of(entry_of(DATA)).id}
        server = await stack.enter_async_context(Scripted(answer, task))
        options = RequestOptions(tag="models")
        transport: Transport
        if kind == "direct":
            transport = DirectTransport(options, TIMEOUTS, block_size=BLOCK, range_size=RANGE)
        else:
            transport = ProxyTransport(server.url, options, TIMEOUTS, block_size=BLOCK)
        stack.push_async_callback(transport.aclose)
        yield Way(kind, server, transport, folder)


def bent(answer: Answer, bend: Callable[[Asked, Reply], Reply | None]) -> Answer:
    """The answer, bent where `bend` gives another."""
    return lambda asked: bend(asked, reply := answer(asked)) or reply


# Going on


@BOTH
async def should_lose_one_block_by_a_lost_connection(way: Way, kind: str) -> None:
    """The connection is cut once, in the middle of the third block of the first answer."""
    at, total = 2 * BLOCK + 500, 2 * BLOCK + 500 + (SIZE - RANGE if kind == "direct" else 0)
    cuts = [at]

    def cut_once(asked: Asked, reply: Reply) -> Reply | None:
        first = not asked.range or asked.range[0] == 0
        return way.cut(reply, cuts.pop(), total) if first and cuts else None

    way.server.answer = bent(good_store(DATA), cut_once)
    way.transport = Retrying(way.transport, QUICK)
    fetched = await way.fetch()
    assert fetched.attempts == 2
    assert way.ranges[-1] == ((2000, SIZE - 1) if kind == "proxy" else (2000, 3999))


@BOTH
async def should_pin_and_name_the_task_in_every_request(way: Way, kind: str) -> None:
    way.left(0)
    await way.fetch()
    for asked in way.server.asked:
        assert asked.range and asked.headers["if-match"] == ETAG
        if kind == "proxy":
            assert (
                asked.headers["x-dragonfly-content-for-calculating-task-id"] == TaskIdentity.of(entry_of(DATA)).content
            )
            assert asked.headers["x-dragonfly-use-p2p"] == "true"
            assert asked.headers["x-dragonfly-tag"] == "models"
            assert asked.headers["x-dragonfly-prefetch"] == "true"
            assert asked.headers["x-dragonfly-filtered-query-params"] == "X-Amz-Signature"


@BOTH
async def should_ask_for_nothing_that_a_killed_run_brought(way: Way, kind: str) -> None:
    way.left(0, 1, 2, 6)
    fetched = await way.fetch()
    if kind == "proxy":
        assert way.ranges == [(3000, SIZE - 1)]
        assert fetched.source is Source.UNKNOWN
    else:
        assert sorted(part for part in way.ranges if part) == [(3000, 5999), (7000, SIZE - 1)]
        assert fetched.traffic.origin == SIZE - 4 * BLOCK
    assert fetched.computed == checksum("crc32c")


@BOTH
async def should_ask_for_nothing_at_all_where_a_killed_run_brought_everything(way: Way) -> None:
    way.left(*range(11))
    fetched = await way.fetch()
    assert way.server.asked == []
    assert fetched.computed == checksum("crc32c")
    assert fetched.traffic.origin == 0


@BOTH
async def should_fetch_a_damaged_block_again(way: Way) -> None:
    partial = way.left(*range(11))
    with partial.path.open("r+b") as file:
        file.seek(5 * BLOCK)
        file.write(bytes([DATA[5 * BLOCK] ^ 0x80]))
    await way.fetch()
    assert [part and part[0] for part in way.ranges] == [5 * BLOCK]


async def should_call_a_hit_local_only_if_all_of_it_came_from_there(tmp_path: Path) -> None:
    for left, source in (((), Source.LOCAL), ((0,), Source.UNKNOWN)):
        folder = tmp_path / source.value
        folder.mkdir()
        async with way_to("proxy", folder, good_store(DATA)) as way:
            way.server.answer = bent(
                good_store(DATA),
                lambda _asked, reply: replace(
                    reply, headers={**reply.headers, "X-Dragonfly-Task-Download-Finished": "true"}
                ),
            )
            way.left(*left)
            fetched = await way.fetch()
        assert fetched.source is source
        assert fetched.traffic.local_peer == SIZE - BLOCK * len(left)


# Answers to a range


@BOTH
@pytest.mark.parametrize(
    "content_range",
    [
        "",
        "bytes {a}-{b}/*",
        "bytes {a1}-{b}/{size}",
        "bytes {a}-{b1}/{size}",
        "bytes {a}-{b}/{size1}",
        "{a}-{b}/{size}",
    ],
)
async def should_take_no_other_part_than_it_asked_for(way: Way, content_range: str) -> None:
    def wrong(asked: Asked, reply: Reply) -> Reply | None:
        if not asked.range:
            return None
        a, b = asked.range
        said = content_range.format(a=a, b=b, a1=a + 1, b1=b + 1, size=SIZE, size1=SIZE + 1)
        headers = {name: value for name, value in reply.headers.items() if name != "Content-Range"}
        return replace(
            reply, body=bytes(len(reply.body)), headers={**headers, **({"Content-Range": said} if said else {})}
        )

    way.left(0, 1)
    way.server.answer = bent(good_store(DATA), wrong)
    assert isinstance(await way.failure(), Truncated)
    way.server.asked.clear()
    await way.heals()
    assert min(part[0] for part in way.ranges if part) == 2 * BLOCK, "what the journal has is still good"


@BOTH
async def should_start_again_in_the_same_attempt_where_a_range_is_answered_with_all(way: Way, kind: str) -> None:
    """With a fresh file: what an earlier run brought may be of anything."""
    way.left(0, 1, 7)
    whole = good_store(DATA)
    way.server.answer = lambda asked: whole(Asked(asked.target, {**asked.headers, "range": ""}))
    fetched = await way.fetch()
    assert fetched.attempts == 1
    assert fetched.computed == checksum("crc32c")
    if kind == "proxy":
        assert len(way.server.asked) == 1, "the answer is used as it is"
    else:
        assert way.ranges.count(None) == 1
        assert fetched.traffic.origin == SIZE


@BOTH
async def should_trust_nothing_of_before_after_it_started_again(way: Way) -> None:
    """Also where the new beginning is cut off at once."""
    way.left(0, 1, 7)
    whole = good_store(DATA)

    def cut_off(asked: Asked) -> Reply:
        reply = whole(Asked(asked.target, {**asked.headers, "range": ""}))
        return reply if asked.range and way.kind == "direct" else way.cut(reply, BLOCK + 1, BLOCK + 1)

    way.server.answer = cut_off
    assert isinstance(await way.failure(), Truncated)
    way.server.asked.clear()
    await way.heals()
    assert min(part[0] for part in way.ranges if part) == BLOCK


@BOTH
async def should_start_again_once_where_a_range_can_not_be_had(way: Way) -> None:
    way.left(0, 1)
    way.server.answer = bent(good_store(DATA), lambda asked, _reply: Reply(416) if asked.range else None)
    await way.fetch()
    assert way.ranges.count(None) == 1


@BOTH
async def should_not_start_again_for_ever(way: Way) -> None:
    way.left(0, 1)
    way.server.answer = lambda _asked: Reply(416)
    error = await way.failure()
    assert isinstance(error, OriginStatus) and error.status == 416
    assert way.ranges.count(None) == 1
    assert list(way.folder.iterdir()) == []


@BOTH
@pytest.mark.parametrize(("status", "expected"), [(412, Changed), (404, NotFound)])
async def should_keep_nothing_of_a_version_that_is_gone(
    way: Way, status: int, expected: type[DfagentError], kind: str
) -> None:
    way.left(0, 1)
    peer = {"X-Dragonfly-Error-Type": "backend"} if kind == "proxy" else {}
    way.server.answer = lambda _asked: Reply(status, headers=peer)
    assert type(await way.failure()) is expected
    assert list(way.folder.iterdir()) == []


@BOTH
async def should_keep_what_came_where_the_signature_runs_out_in_the_middle(way: Way, kind: str) -> None:
    way.left(0, 1)
    peer = {"X-Dragonfly-Error-Type": "backend"} if kind == "proxy" else {}
    way.server.answer = lambda _asked: Reply(403, headers=peer)
    assert type(await way.failure()) is SignedUrlExpired
    way.server.asked.clear()
    await way.heals()
    assert min(part[0] for part in way.ranges if part) == 2 * BLOCK


@BOTH
async def should_not_mix_two_versions_of_a_server_that_knows_no_pin(way: Way) -> None:
    """It answers the range, but its ETag is another one."""
    way.left(0, 1)
    other = bytes(SIZE)
    way.server.answer = lambda asked: replace(
        good_store(other)(asked),
        headers={
            **good_store(other)(asked).headers,
            "ETag": '"another"',
        },
    )
    assert isinstance(await way.failure(), (Changed, DamagedTask))
    assert list(way.folder.iterdir()) == []


@BOTH
async def should_know_its_version_also_where_the_etag_is_called_weak(way: Way) -> None:
    way.server.answer = bent(
        good_store(DATA), lambda _asked, reply: replace(reply, headers={**reply.headers, "ETag": f"W/{ETAG}"})
    )
    await way.fetch()


async def should_take_an_older_dfdaemons_200_for_the_part_that_its_content_range_tells(tmp_path: Path) -> None:
    async with way_to("proxy", tmp_path, good_store(DATA)) as way:
        way.left(0, 1)
        way.server.answer = bent(good_store(DATA), lambda _asked, reply: replace(reply, status=200))
        await way.fetch()
        assert way.ranges == [(2000, SIZE - 1)]


# Answers to a plain GET


@BOTH
async def should_take_a_whole_answer_to_a_whole_request_only(way: Way) -> None:
    for status in (206, 200):
        reply = Reply(status, SMALL, {"Content-Range": f"bytes 0-{len(SMALL) - 1}/{len(SMALL)}"})
        way.server.answer = answering(reply)
        assert isinstance(await way.failure(SMALL), Truncated)


@BOTH
@pytest.mark.parametrize(
    "reply",
    [
        Reply(body=SMALL[:-1]),
        Reply(body=SMALL + b"!"),
        Reply(body=SMALL, length=len(SMALL) + 1),
        Reply(body=SMALL, length=len(SMALL) - 1),
        Reply(body=bytes(len(SMALL) - 1), length=-1),
        Reply(body=bytes(len(SMALL) + 1), length=-1),
        Reply(body=bytes(len(SMALL) - 1), chunked=True),
        Reply(body=bytes(len(SMALL) + 1), chunked=True),
        Reply(body=b"<html>login please</html>" * 1000, chunked=True),
        Reply(body=b"<html>login please</html>"),
        Reply(),
    ],
    ids=lambda reply: f"{len(reply.body)}{'-chunked' if reply.chunked else ''} length {reply.length}",
)
async def should_go_on_with_nothing_of_an_answer_that_was_not_the_object(way: Way, reply: Reply) -> None:
    """Too long or too short: its first blocks are as wrong as its last."""
    way.server.answer = lambda _asked: replace(reply, headers={})
    error = await way.failure(SMALL)
    assert isinstance(error, Truncated)
    assert list(way.folder.iterdir()) == []
    await way.heals(SMALL)


@BOTH
async def should_take_back_what_it_wrote_of_an_answer_that_turns_out_too_long(way: Way) -> None:
    """It is an endless page, say, whose beginning has been written when that is seen."""
    page = replace(way.cut(Reply(body=bytes(2 * BLOCK), chunked=True), 2 * BLOCK + 8, 2 * BLOCK), rest=b"7d0\r\n")
    page.rest += bytes(2 * BLOCK)
    way.server.answer = answering(page)
    assert isinstance(await way.failure(SMALL), Truncated)
    assert list(way.folder.iterdir()) == []


@BOTH
async def should_write_nothing_of_an_answer_whose_head_is_wrong_already(way: Way) -> None:
    """A connection that then breaks would leave blocks that look good."""
    for length in (len(SMALL) + 1, 2 * BLOCK + 500):
        way.server.answer = answering(Reply(body=bytes(len(SMALL)), length=length, cut=2 * BLOCK + 9))
        error = await way.failure(SMALL)
        assert isinstance(error, Truncated) and "than the 3005 bytes asked for" in error.message
        assert list(way.folder.iterdir()) == []


def cut_answer(way: Way, chunked: bool) -> Answer:
    # A chunk that is not whole when the connection ends may be handed on or not.
    total = 2 * BLOCK + (0 if chunked else 9)
    good = good_store(SMALL)
    return lambda asked: way.cut(replace(good(asked), chunked=chunked), 2 * BLOCK + 9, total)


@BOTH
async def should_keep_the_blocks_that_came_before_the_connection_broke(way: Way) -> None:
    for chunked in (False, True):
        way.server.answer = cut_answer(way, chunked)
        assert isinstance(await way.failure(SMALL), Truncated)
        way.server.asked.clear()
        (await way.heals(SMALL)).path.unlink()  # type: ignore[union-attr]
        assert way.ranges == [(2 * BLOCK, len(SMALL) - 1)]


@BOTH
async def should_bring_an_empty_object_and_nothing_longer_in_its_place(way: Way) -> None:
    way.server.answer = good_store(b"")
    assert (await way.fetch(b"")).computed == checksum("crc32c", b"")
    way.server.answer = lambda _asked: Reply(body=b"!", chunked=True)
    assert isinstance(await way.failure(b""), Truncated)


@BOTH
async def should_never_unpack_what_comes_packed(way: Way) -> None:
    """Nobody asked for it: size and checksum decide."""
    packed = gzip.compress(SMALL)
    encoded = {"Content-Encoding": "gzip"}
    way.server.answer = bent(
        good_store(packed), lambda _asked, reply: replace(reply, headers={**reply.headers, **encoded})
    )
    await way.fetch(packed)
    assert all(asked.headers["accept-encoding"] == "identity" for asked in way.server.asked)
    way.server.answer = lambda _asked: Reply(body=packed, headers=encoded, chunked=True)
    way.counts.clear()
    assert isinstance(await way.failure(SMALL), Truncated)


# Redirects


@BOTH
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def should_follow_no_redirect_and_sign_nothing_to_another_host(way: Way, status: int, kind: str) -> None:
    async with Scripted(good_store(DATA)) as elsewhere:
        peer = {"X-Dragonfly-Error-Type": "backend"} if kind == "proxy" else {}
        headers = {"Location": f"{elsewhere.url}/bucket/key{QUERY}", "Set-Cookie": "a=b", **peer}
        way.server.answer = lambda _asked: Reply(status, headers=headers)
        for left in ((), (0, 1)):
            way.left(*left)
            error = await way.failure()
            assert isinstance(error, OriginStatus) and error.status == status and not error.retryable
        assert elsewhere.asked == []
    assert not any("cookie" in asked.headers for asked in way.server.asked)


# Checksums


@pytest.mark.parametrize("algorithm", ["crc64nvme", "crc32c", "crc32", "crc64xz", "sha256", "sha1", "md5"])
@BOTH
async def should_compute_the_expected_checksum_while_bytes_stream(way: Way, algorithm: str, kind: str) -> None:
    """Direct takes the ranges in any order, so it has only those that blocks can give."""
    expected = checksum(algorithm)
    fetched = await way.fetch(expected=expected)
    of_blocks = algorithm in ("crc64nvme", "crc32c", "crc32")
    assert fetched.computed == (expected if of_blocks or kind == "proxy" else None)
    assert fetched.told is None
    assert way.expectations == [expected]


@BOTH
async def should_compute_a_checksum_of_parts_only_over_one_stream(way: Way, kind: str) -> None:
    expected = checksum("sha256", part_size=5 * BLOCK)
    assert (await way.fetch(expected=expected)).computed == (expected if kind == "proxy" else None)


async def should_not_compute_half_a_digest_after_a_resume(tmp_path: Path) -> None:
    async with way_to("proxy", tmp_path, good_store(DATA)) as way:
        way.left(0)
        assert (await way.fetch(expected=checksum("md5"))).computed is None


async def should_take_the_checksum_that_the_store_tells_beside_the_bytes(tmp_path: Path) -> None:
    """That saves the question for small objects."""
    told = {"X_Amz_Checksum_Crc64nvme": checksum_text("crc64nvme", SMALL)}
    async with way_to("direct", tmp_path, good_store(SMALL, **told)) as way:
        fetched = await way.fetch(SMALL)
        assert fetched.told == fetched.computed == checksum("crc64nvme", SMALL)
        assert way.expectations == []


async def should_hash_by_what_the_store_tells_where_it_is_no_crc(tmp_path: Path) -> None:
    async with way_to("direct", tmp_path, good_store(SMALL, Content_MD5=checksum_text("md5", SMALL))) as way:
        fetched = await way.fetch(SMALL)
        assert fetched.told == fetched.computed == checksum("md5", SMALL)


async def should_believe_no_peer_what_it_tells_of_the_bytes(tmp_path: Path) -> None:
    async with way_to("proxy", tmp_path, good_store(SMALL, Content_MD5=checksum_text("md5", SMALL))) as way:
        assert (await way.fetch(SMALL)).told is None


def checksum_text(algorithm: str, data: bytes) -> str:
    return base64.b64encode(checksum(algorithm, data).value).decode()
