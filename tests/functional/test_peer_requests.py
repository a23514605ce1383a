"""What the transports ask of stores and peers, and what they make of answers that no healthy one gives."""

from __future__ import annotations

import asyncio
import socket
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import replace
from datetime import datetime, timezone
from email.utils import formatdate
from pathlib import Path
from typing import Any

import grpc
import pytest
from dragonfly_api import common_pb2, dfdaemon_pb2

from dfagent.errors import (
    ConnectFailed,
    DamagedTask,
    DfagentError,
    NoHardLink,
    NoSpace,
    NotFound,
    OriginStatus,
    Overloaded,
    PeerUnavailable,
    Stalled,
    Truncated,
)
from dfagent.transports.base import Transport
from dfagent.transports.dfdaemon import DfdaemonTransport
from dfagent.transports.direct import DirectTransport
from dfagent.transports.options import RequestOptions, Timeouts
from dfagent.transports.proxy import ProxyTransport
from dfagent.types import FetchRequest, ObjectEntry, ObjectRef, SignedUrl, TaskIdentity
from tests.servers.canned import CannedDfdaemon, CannedHttp, http_answer, serving

BODY = b"weights!"
# Quoting it again, or less, would break a signature.
QUERY = "?ns=1&X-Amz-Credential=key%2Fday%27%2A&X-Amz-Signature=5ec7e7"
TIMEOUTS = Timeouts(connect=5.0, stall=20.0)
EVERYTHING = RequestOptions(
    headers={"X-Team": "vision", "X-Dragonfly-Registry": "r"},
    filtered_params=("ns",),
    tag="models",
    application="triton",
    priority=3,
    piece_length=8 << 20,
)


def request(url: str = "http://store.test/bucket/key", size: int = len(BODY)) -> FetchRequest:
    entry = ObjectEntry(ObjectRef("s3", "store.test", "bucket", "key"), size, '"etag"')
    signed = SignedUrl(f"{url}{QUERY}", datetime.now(timezone.utc), ("X-Amz-Signature",))

    async def sign() -> SignedUrl:
        return signed

    return FetchRequest(entry, TaskIdentity.of(entry), sign, "net/1/key")


TASK = request().task


@asynccontextmanager
async def opened(transport: Transport) -> AsyncIterator[Transport]:
    try:
        yield transport
    finally:
        await transport.aclose()


async def failure_of(transport: Transport, wanted: FetchRequest, folder: Path | None) -> DfagentError:
    async with opened(transport):
        with pytest.raises(DfagentError) as failed:
            await transport.fetch(wanted, folder)
    assert folder is None or not list(folder.glob("*.parti*")), "none of these answers is worth going on with"
    return failed.value


# The proxy


def from_peer(status: int = 200, body: bytes = BODY, **headers: str) -> bytes:
    return http_answer(status, body, **{"X_Dragonfly_Task_Id": TASK.id, **headers})


@pytest.mark.parametrize("url", ["http://store.test/bucket/it%27s", "https://store.test/bucket/it%27s"])
async def should_ask_the_proxy_in_absolute_form_and_never_for_a_tunnel(tmp_path: Path, url: str) -> None:
    async with CannedHttp(from_peer()) as peer, opened(ProxyTransport(peer.url, EVERYTHING, TIMEOUTS)) as transport:
        fetched = await transport.fetch(request(url), tmp_path)
    assert fetched.path is not None and fetched.path.read_bytes() == BODY
    assert peer.heads[0].startswith(f"GET {url}{QUERY} HTTP/1.1\r\n")


async def should_tell_the_proxy_all_that_the_settings_say(tmp_path: Path) -> None:
    async with (
        CannedHttp(from_peer()) as peer,
        opened(ProxyTransport(peer.url, EVERYTHING, TIMEOUTS, legacy=False)) as transport,
    ):
        await transport.fetch(request(), tmp_path)
    sent = peer.headers()
    assert {name: value for name, value in sent.items() if name.startswith(("x-", "if-"))} == {
        "x-team": "vision",
        "if-match": '"etag"',
        "x-dragonfly-use-p2p": "true",
        "x-dragonfly-filtered-query-params": "ns,X-Amz-Signature",
        "x-dragonfly-content-for-calculating-task-id": TASK.content,
        "x-dragonfly-tag": "models",
        "x-dragonfly-application": "triton",
        "x-dragonfly-priority": "3",
        "x-dragonfly-piece-length": f"{8 << 20}b",
        "x-dragonfly-registry": "r",
    }


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (from_peer(500, b"", X_Dragonfly_Error_Type="proxy"), PeerUnavailable),
        (from_peer(403, b"", X_Dragonfly_Error_Type="dfdaemon"), PeerUnavailable),
        (from_peer(404, b"", X_Dragonfly_Error_Type="backend"), NotFound),
        (from_peer(502, b"", X_Dragonfly_Error_Type="backend"), OriginStatus),
        (from_peer(429, b""), Overloaded),
        (from_peer(X_Dragonfly_Task_Id="f" * 64), PeerUnavailable),
        (http_answer(200, BODY), PeerUnavailable),
        (from_peer(body=BODY[:-1]), DamagedTask),
        (from_peer(body=BODY + b"!"), DamagedTask),
        (from_peer(Content_Length=str(len(BODY) + 1)), DamagedTask),
    ],
)
@pytest.mark.parametrize("warm_only", [False, True])
async def should_tell_the_proxys_errors_from_the_origins(
    tmp_path: Path, answer: bytes, expected: type[DfagentError], warm_only: bool
) -> None:
    async with CannedHttp(answer) as peer:
        transport = ProxyTransport(peer.url, RequestOptions(), TIMEOUTS)
        error = await failure_of(transport, request(), None if warm_only else tmp_path)
    assert type(error) is expected
    assert "5ec7e7" not in f"{error} {error!r} {error.__cause__!r}"


# dfdaemon


def started(size: int = len(BODY), task_id: str = TASK.id) -> dfdaemon_pb2.DownloadTaskResponse:
    return dfdaemon_pb2.DownloadTaskResponse(
        task_id=task_id,
        download_task_started_response=dfdaemon_pb2.DownloadTaskStartedResponse(content_length=size),
    )


def piece(number: int, length: int) -> dfdaemon_pb2.DownloadTaskResponse:
    part = common_pb2.Piece(number=number, length=length, traffic_type=common_pb2.REMOTE_PEER)
    return dfdaemon_pb2.DownloadTaskResponse(
        task_id=TASK.id, download_piece_finished_response=dfdaemon_pb2.DownloadPieceFinishedResponse(piece=part)
    )


async def whole(download: Any, _context: Any) -> AsyncIterator[dfdaemon_pb2.DownloadTaskResponse]:
    yield started()
    Path(download.output_path).write_bytes(BODY)
    yield piece(0, len(BODY))


async def should_tell_dfdaemon_all_that_the_settings_say(tmp_path: Path) -> None:
    async with serving(CannedDfdaemon(whole), tmp_path / "sock") as daemon:
        transport = DfdaemonTransport(str(tmp_path / "sock"), EVERYTHING, TIMEOUTS)
        async with opened(transport):
            fetched = await transport.fetch(request(), tmp_path)
    (asked,) = daemon.asked
    assert fetched.path is not None and asked.output_path == str(fetched.path)
    assert dict(asked.request_header) == {"X-Team": "vision", "If-Match": '"etag"'}
    assert list(asked.filtered_query_params) == ["ns", "X-Amz-Signature"]
    assert asked.content_for_calculating_task_id == TASK.content
    assert (asked.tag, asked.application, asked.priority, asked.piece_length) == ("models", "triton", 3, 8 << 20)


async def should_count_every_byte_of_dfdaemons_once_in_the_progress(tmp_path: Path) -> None:
    """Also where a piece is told twice, or pieces that were here before are not told at all."""
    for told in ([piece(0, 4), piece(0, 4), piece(1, 4)], [piece(1, 4)], []):

        async def answer(
            download: Any, _context: Any, told: list[dfdaemon_pb2.DownloadTaskResponse] = told
        ) -> AsyncIterator[dfdaemon_pb2.DownloadTaskResponse]:
            yield started()
            Path(download.output_path).write_bytes(BODY)
            for response in told:
                yield response

        counts: list[int] = []
        async with serving(CannedDfdaemon(answer, here=[TASK.id]), tmp_path / "sock"):
            wanted = request()
            transport = DfdaemonTransport(str(tmp_path / "sock"), RequestOptions(), TIMEOUTS)
            async with opened(transport):
                await transport.fetch(replace(wanted, on_progress=counts.append), tmp_path)
        assert sum(counts) == len(BODY)


@pytest.mark.parametrize("wrong", ["size told", "size written", "task id", "no file"])
async def should_take_nothing_of_dfdaemon_that_is_not_the_object(tmp_path: Path, wrong: str) -> None:
    async def answer(download: Any, _context: Any) -> AsyncIterator[dfdaemon_pb2.DownloadTaskResponse]:
        yield started(len(BODY) + (wrong == "size told"), "f" * 64 if wrong == "task id" else TASK.id)
        if wrong != "no file":
            Path(download.output_path).write_bytes(BODY[: -1 if wrong == "size written" else None])
        yield piece(0, len(BODY))

    (tmp_path / "partials").mkdir()
    async with serving(CannedDfdaemon(answer), tmp_path / "sock"):
        transport = DfdaemonTransport(str(tmp_path / "sock"), RequestOptions(), TIMEOUTS)
        error = await failure_of(transport, request(), tmp_path / "partials")
    assert type(error) is (DamagedTask if "size" in wrong else PeerUnavailable)
    assert ("path_map" in error.hint) == (wrong == "no file")


@pytest.mark.parametrize("told", [[], [piece(0, 4)], [piece(0, 4), piece(0, 4)]])
async def should_not_take_a_link_for_whole_whose_stream_ended_early(tmp_path: Path, told: list[Any]) -> None:
    """It has its full size, with holes; dfdaemon ends the stream of a task that panicked as it ends any other."""

    async def ends_early(download: Any, _context: Any) -> AsyncIterator[dfdaemon_pb2.DownloadTaskResponse]:
        yield started()
        Path(download.output_path).write_bytes(bytes(len(BODY)))
        for response in told:
            yield response

    (tmp_path / "partials").mkdir()
    async with serving(CannedDfdaemon(ends_early), tmp_path / "sock"):
        transport = DfdaemonTransport(str(tmp_path / "sock"), RequestOptions(), TIMEOUTS)
        error = await failure_of(transport, request(), tmp_path / "partials")
    assert isinstance(error, Truncated) and error.retryable and "of 8 bytes" in error.message


@pytest.mark.parametrize("why", ["stalled", "another task"])
async def should_let_dfdaemon_know_that_a_download_was_given_up(tmp_path: Path, why: str) -> None:
    async def endless(download: Any, _context: Any) -> AsyncIterator[dfdaemon_pb2.DownloadTaskResponse]:
        yield started(task_id=TASK.id if why == "stalled" else "f" * 64)
        Path(download.output_path).write_bytes(BODY)
        await asyncio.Event().wait()

    (tmp_path / "partials").mkdir()
    async with serving(CannedDfdaemon(endless), tmp_path / "sock") as daemon:
        transport = DfdaemonTransport(str(tmp_path / "sock"), RequestOptions(), Timeouts(connect=5.0, stall=0.5))
        async with opened(transport):
            # The error is kept, because with it its frames would go, and with them the call.
            with pytest.raises(DfagentError) as given_up:
                await asyncio.wait_for(transport.fetch(request(), tmp_path / "partials"), 20)
            await asyncio.wait_for(daemon.cancelled.wait(), 20)
    assert type(given_up.value) is (Stalled if why == "stalled" else PeerUnavailable)
    assert why != "stalled" or list((tmp_path / "partials").iterdir()) == []


@pytest.mark.parametrize("by_proxy", [False, True])
async def should_not_wait_for_ever_for_the_head_of_an_answer_that_goes_on_and_on(
    tmp_path: Path, by_proxy: bool
) -> None:
    """Such a server is never silent, so no timeout of reading ever comes."""

    gone = asyncio.Event()

    async def continues(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while not writer.is_closing():
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                await writer.drain()
                await asyncio.sleep(0.01)
        writer.close()
        gone.set()

    server = await asyncio.start_server(continues, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    timeouts = Timeouts(connect=5.0, stall=0.5)
    options = RequestOptions()
    transport = ProxyTransport(url, options, timeouts) if by_proxy else DirectTransport(options, timeouts)
    async with server:
        failure = await asyncio.wait_for(failure_of(transport, request(f"{url}/bucket/key"), tmp_path), 20)
        await asyncio.wait_for(gone.wait(), 20)
    assert type(failure) is Stalled


async def should_give_dfdaemon_a_new_path_at_every_attempt(tmp_path: Path) -> None:
    """It may still write to the path of a download that was given up."""

    async def fails(_download: Any, context: Any) -> AsyncIterator[dfdaemon_pb2.DownloadTaskResponse]:
        yield started()
        await context.abort(grpc.StatusCode.INTERNAL, "no")

    async with serving(CannedDfdaemon(fails), tmp_path / "sock") as daemon:
        transport = DfdaemonTransport(str(tmp_path / "sock"), RequestOptions(), TIMEOUTS)
        async with opened(transport):
            for _ in range(2):
                with pytest.raises(PeerUnavailable):
                    await transport.fetch(request(), tmp_path)
    assert len({asked.output_path for asked in daemon.asked}) == 2


async def should_fetch_nothing_that_dfdaemon_must_link_and_can_not(tmp_path: Path) -> None:
    """And copy nothing either: that is for the caller to decide."""

    async def refuses(_download: Any, context: Any) -> AsyncIterator[dfdaemon_pb2.DownloadTaskResponse]:
        await context.abort(grpc.StatusCode.INTERNAL, "Invalid cross-device link (os error 18)")
        yield started()

    (tmp_path / "partials").mkdir()
    async with serving(CannedDfdaemon(refuses), tmp_path / "sock") as daemon:
        for forced in (True, False):
            transport = DfdaemonTransport(str(tmp_path / "sock"), RequestOptions(), TIMEOUTS, force_hard_link=forced)
            error = await failure_of(transport, request(), tmp_path / "partials")
            assert isinstance(error, NoHardLink) == forced
    assert [asked.force_hard_link for asked in daemon.asked] == [True, False]


async def should_not_blame_the_link_for_what_fails_after_it(tmp_path: Path) -> None:
    async def breaks(_download: Any, context: Any) -> AsyncIterator[dfdaemon_pb2.DownloadTaskResponse]:
        yield started()
        await context.abort(grpc.StatusCode.INTERNAL, "No such file or directory (os error 2)")

    (tmp_path / "partials").mkdir()
    async with serving(CannedDfdaemon(breaks), tmp_path / "sock"):
        transport = DfdaemonTransport(str(tmp_path / "sock"), RequestOptions(), TIMEOUTS, force_hard_link=True)
        assert type(await failure_of(transport, request(), tmp_path / "partials")) is PeerUnavailable


async def should_tell_our_own_full_disk_from_dfdaemons(tmp_path: Path) -> None:
    """Only ours is no reason to go on by another way."""

    async def full(_download: Any, context: Any) -> AsyncIterator[dfdaemon_pb2.DownloadTaskResponse]:
        await context.abort(grpc.StatusCode.INTERNAL, "No space left on device (os error 28)")
        yield started()

    (tmp_path / "partials").mkdir()
    async with serving(CannedDfdaemon(full), tmp_path / "sock"):
        for size, expected in ((len(BODY), PeerUnavailable), (1 << 60, NoSpace)):
            transport = DfdaemonTransport(str(tmp_path / "sock"), RequestOptions(), TIMEOUTS)
            error = await failure_of(transport, request(size=size), tmp_path / "partials")
            assert type(error) is expected and "no room" in error.message


@pytest.mark.parametrize("scheduler", [True, False])
async def should_delete_a_cached_task_from_the_node(tmp_path: Path, scheduler: bool) -> None:
    """Also where the scheduler is away, and with it the cluster's own deletion."""
    service = CannedDfdaemon(whole, here=[TASK.id, "another"], scheduler=scheduler)
    async with serving(service, tmp_path / "sock"):
        transport = DfdaemonTransport(str(tmp_path / "sock"), RequestOptions(), TIMEOUTS)
        async with opened(transport):
            assert await transport.is_here(TASK.id)
            assert await transport.discard(TASK.id)
            assert not await transport.is_here(TASK.id)
            assert await transport.discard(TASK.id), "what is not there is gone"
    assert service.here == {"another"}


async def should_ask_for_the_origins_bytes_once_after_a_task_was_deleted(tmp_path: Path) -> None:
    async with serving(CannedDfdaemon(whole), tmp_path / "sock") as daemon:
        transport = DfdaemonTransport(str(tmp_path / "sock"), RequestOptions(), TIMEOUTS)
        async with opened(transport):
            await transport.fetch(request(), tmp_path)
            await transport.discard(TASK.id)
            await transport.fetch(request(), tmp_path)
            await transport.fetch(request(), tmp_path)
    assert [asked.need_back_to_source for asked in daemon.asked] == [False, True, False]


async def should_not_fail_when_there_is_no_dfdaemon_to_delete_from(tmp_path: Path) -> None:
    transport = DfdaemonTransport(str(tmp_path / "none"), RequestOptions(), Timeouts(connect=0.5))
    async with opened(transport):
        assert not await transport.is_here(TASK.id)
        assert not await transport.discard(TASK.id)


# The store


async def should_send_a_signed_url_as_it_is(tmp_path: Path) -> None:
    store = CannedHttp(http_answer(200, BODY))
    async with store, opened(DirectTransport(RequestOptions(), TIMEOUTS)) as transport:
        await transport.fetch(request(f"{store.url}/bucket/it%27s"), tmp_path)
    assert store.heads[0].startswith(f"GET /bucket/it%27s{QUERY} HTTP/1.1\r\n")


async def should_keep_the_signature_out_of_what_a_traceback_shows(tmp_path: Path) -> None:
    """The HTTP library's own errors quote the whole URL."""
    async with CannedHttp(b"this is not HTTP\r\n\r\n") as store:
        transport = DirectTransport(RequestOptions(), TIMEOUTS)
        error = await failure_of(transport, request(store.url), tmp_path)
    assert isinstance(error, Truncated)
    assert "5ec7e7" not in "".join(traceback.format_exception(error))


async def should_follow_no_redirect(tmp_path: Path) -> None:
    """The signature was for another host."""
    async with (
        CannedHttp(http_answer(200, BODY)) as elsewhere,
        CannedHttp(http_answer(307, Location=f"{elsewhere.url}/key")) as store,
    ):
        transport = DirectTransport(RequestOptions(), TIMEOUTS)
        error = await failure_of(transport, request(store.url), tmp_path)
    assert isinstance(error, OriginStatus) and error.status == 307 and "region" in error.hint
    assert elsewhere.heads == []


async def should_read_how_long_a_busy_store_asks_to_wait(tmp_path: Path) -> None:
    for value, least, most in (
        ("7", 7, 7),
        (formatdate(4e9, usegmt=True), 1e6, 4e9),
        (formatdate(0, usegmt=True), 0, 0),
    ):
        async with CannedHttp(http_answer(503, Retry_After=value)) as store:
            transport = DirectTransport(RequestOptions(), TIMEOUTS)
            error = await failure_of(transport, request(store.url), tmp_path)
        assert isinstance(error, Overloaded) and error.retry_after is not None
        assert least <= error.retry_after <= most
    for value in ("soon", ""):
        async with CannedHttp(http_answer(503, Retry_After=value)) as store:
            transport = DirectTransport(RequestOptions(), TIMEOUTS)
            error = await failure_of(transport, request(store.url), tmp_path)
        assert isinstance(error, Overloaded) and error.retry_after is None


async def should_take_a_whole_answer_to_a_whole_request_only(tmp_path: Path) -> None:
    async with CannedHttp(http_answer(206, BODY, Content_Range="bytes 0-7/99")) as store:
        transport = DirectTransport(RequestOptions(), TIMEOUTS)
        assert isinstance(await failure_of(transport, request(store.url), tmp_path), Truncated)


@pytest.fixture
def deaf() -> Iterator[str]:
    """The URL of a server that never accepts: its queue of connections is full."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        address = listening.getsockname()
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)
        yield "http://{}:{}".format(*address)


@pytest.mark.parametrize("name", ["direct", "proxy"])
async def should_give_up_a_connection_that_nobody_accepts(tmp_path: Path, deaf: str, name: str) -> None:
    impatient = Timeouts(connect=0.3, stall=60.0)
    transport: Transport = (
        DirectTransport(RequestOptions(), impatient)
        if name == "direct"
        else ProxyTransport(deaf, RequestOptions(), impatient)
    )
    error = await asyncio.wait_for(failure_of(transport, request(deaf), tmp_path), 30)
    assert isinstance(error, ConnectFailed) and "did not accept" in error.message and "0.3 s" in error.message
