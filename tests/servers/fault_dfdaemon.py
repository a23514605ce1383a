"""dfdaemon's download service over the cache of a fault-injecting peer; it misbehaves on demand.

The shapes are those of dfdaemon 1.5.10 (`dragonfly-client/src/grpc/dfdaemon_download.rs`): the link appears before the
first message, and the file is whole when the stream ends. The faults' op is "download", "stat" (StatLocalTask) or
"delete"; their key is the object's, without its bucket ("" for stat and delete, which know only ids).
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import grpc
from dragonfly_api import common_pb2, dfdaemon_pb2, dfdaemon_pb2_grpc
from google.protobuf import empty_pb2

from tests.servers.fault_cache import BackendError, CachedTask, PeerCache, ShortPieceError, origin_request_headers
from tests.servers.fault_plan import Fault, FaultPlan
from tests.servers.fault_wire import LONGEST_WAIT

_REFUSALS = {
    "resource-exhausted": (grpc.StatusCode.RESOURCE_EXHAUSTED, "server is overloaded"),
    "unavailable": (grpc.StatusCode.UNAVAILABLE, "connection refused"),
    "internal": (grpc.StatusCode.INTERNAL, "piece 3 state is failed"),
    "no-space": (grpc.StatusCode.INTERNAL, "No space left on device (os error 28)"),
    "no-space-for-task": (grpc.StatusCode.INTERNAL, "no space left on device: not enough space to store the task"),
}
_LINK_ERRORS = {"link-exdev": errno.EXDEV, "link-exists": errno.EEXIST, "link-missing": errno.ENOENT}


class FaultDfdaemon(dfdaemon_pb2_grpc.DfdaemonDownloadServicer):
    """The service on `socket`. `asked` are the downloads; `die` ends proxy and gRPC of the peer together."""

    def __init__(self, socket: Path, cache: PeerCache, plan: FaultPlan, die: Callable[[float], None]) -> None:
        self.socket = socket
        self.asked: list[common_pb2.Download] = []
        self._cache = cache
        self._plan = plan
        self._die_all = die
        self._server: Any = None
        self._starts = 0
        self._dying: asyncio.Task[None] | None = None
        self._back = asyncio.Event()
        self._late: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        # Under a name of its own: a server that ends removes its socket late, when another may stand in its place.
        self._starts += 1
        own = self.socket.with_suffix(f".{self._starts}")
        server = grpc.aio.server()
        dfdaemon_pb2_grpc.add_DfdaemonDownloadServicer_to_server(self, server)  # type: ignore[no-untyped-call]
        server.add_insecure_port(f"unix:{own}")
        await server.start()
        self.socket.unlink(missing_ok=True)
        self.socket.symlink_to(own.name)
        self._server = server

    def die(self, seconds: float) -> None:
        if self._dying is None or self._dying.done():
            self._back.clear()
            self._dying = asyncio.ensure_future(self._gone_for(seconds))

    async def _gone_for(self, seconds: float) -> None:
        self.socket.unlink()
        server, self._server = self._server, None
        await server.stop(None)
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._back.wait(), seconds)
        await self.open()

    async def revive(self) -> None:
        self._back.set()
        if self._dying is not None:
            await self._dying
        await asyncio.gather(*self._late)
        self._late.clear()

    async def close(self) -> None:
        await self.revive()
        await self._server.stop(None)

    def start_anew(self) -> None:
        self.asked.clear()

    async def StatLocalTask(self, request: Any, context: Any) -> Any:  # noqa: N802
        """What this node has of the task."""
        fault = self._plan.take("stat", "")
        if fault:
            self._plan.fire(fault, "stat", "")
            await self._fail(fault, context)
            if fault.kind == "lies-here":
                return _local(request.task_id, 0, finished=True)
        task = self._cache.tasks.get(request.task_id)
        if task is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"local task not found: {request.task_id}")
            return None
        return _local(task.id, task.size, task.is_finished)

    async def StatTask(self, request: Any, context: Any) -> Any:  # noqa: N802
        """No other peer has anything."""
        await context.abort(grpc.StatusCode.INTERNAL, f"task {request.task_id} not found")

    async def DeleteTask(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Forgets the task."""
        fault = self._plan.take("delete", "")
        if fault:
            self._plan.fire(fault, "delete", "")
            await self._fail(fault, context)
        if not self._cache.delete(request.task_id):
            await context.abort(grpc.StatusCode.INTERNAL, f"task {request.task_id} not found")
        return empty_pb2.Empty()

    DeleteLocalTask = DeleteTask

    async def _fail(self, fault: Fault, context: Any) -> None:
        if fault.kind == "silence":
            await asyncio.sleep(LONGEST_WAIT)
        if fault.kind in _REFUSALS:
            await context.abort(*_REFUSALS[fault.kind])

    async def DownloadTask(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """The task's stream of messages."""
        download = request.download
        self.asked.append(download)
        run = _Download(download, self._cache, context)
        fault = self._plan.take("download", run.key) or Fault("", "download")

        def fire() -> None:
            self._plan.fire(fault, "download", run.key)

        if fault.kind == "peer-dies":
            fire()
            self._die_all(fault.amount / 1000)
            await asyncio.sleep(LONGEST_WAIT)
        if fault.kind == "silence" or fault.kind in _REFUSALS:
            fire()
            await self._fail(fault, context)
        try:
            if fault.kind == "error-backend":
                fire()
                raise BackendError(fault.amount)
            async for message in run.messages(fault, fire):
                yield message
        except (asyncio.CancelledError, GeneratorExit):
            run.was_given_up()
            raise
        except BackendError as exc:
            await run.abort(exc)
        except ShortPieceError as exc:
            await context.abort(grpc.StatusCode.INTERNAL, str(exc))
        if fault.kind == "late-file" and download.output_path:
            fire()
            self._late.add(asyncio.ensure_future(_appear_later(Path(download.output_path))))
            await context.abort(grpc.StatusCode.INTERNAL, "download failed")


async def _appear_later(path: Path) -> None:
    await asyncio.sleep(0.02)
    with suppress(OSError):
        _put(path, b"late")


def _put(output: Path, data: bytes) -> None:
    """A file of its own: what stands there may be linked from the cache."""
    output.unlink(missing_ok=True)
    output.write_bytes(data)


def _local(task_id: str, size: int, finished: bool) -> dfdaemon_pb2.StatLocalTaskResponse:
    answer = dfdaemon_pb2.StatLocalTaskResponse(task_id=task_id, content_length=size)
    if finished:
        answer.finished_at.GetCurrentTime()
    return answer


class _Download:
    """One DownloadTask call."""

    def __init__(self, download: common_pb2.Download, cache: PeerCache, context: Any) -> None:
        self._download = download
        self._cache = cache
        self._context = context
        self.key = unquote(urlsplit(download.url).path).removeprefix("/").partition("/")[2]
        content = download.content_for_calculating_task_id or download.url
        self._task_id = hashlib.sha256(content.encode()).hexdigest()
        self._output = Path(download.output_path) if download.output_path else None

    async def abort(self, exc: BackendError) -> None:
        """An origin's error as dfdaemon tells it: JSON in the status details."""
        detail = json.dumps({"message": str(exc), "header": exc.headers, "status_code": exc.status}).encode()
        self._context.set_trailing_metadata((("grpc-status-details-bin", detail),))
        await self._context.abort(grpc.StatusCode.INTERNAL, str(exc))

    def was_given_up(self) -> None:
        """dfdaemon goes on by itself, to a whole task or a failed one; here it is always the latter."""
        task = self._cache.tasks.get(self._task_id)
        if task and not task.is_finished:
            task.failed = True

    async def messages(self, fault: Fault, fire: Callable[[], None]) -> AsyncIterator[Any]:
        headers = origin_request_headers(dict(self._download.request_header))
        async with self._cache.lock(self._task_id):
            task = await self._cache.begin(self._task_id, self._download.url, headers)
            was_here = set(task.pieces)
            if task.is_finished:
                self._spoil(task, fault, fire)
            linked = await self._link(task, _LINK_ERRORS.get(fault.kind), fire)
            yield self._started(task, fault, fire)
            if await self._breaks_off(fault, fire):
                return
            for number in sorted(was_here):
                yield self._piece(task, number, common_pb2.LOCAL_PEER)
            async for number in self._cache.missing_pieces(task, self._download.url, headers):
                yield self._piece(task, number, common_pb2.BACK_TO_SOURCE)
                if fault.kind == "piece-twice":
                    fire()
                    yield self._piece(task, number, common_pb2.BACK_TO_SOURCE)
            if not was_here:
                self._spoil(task, fault, fire)
            if self._output:
                self._deliver(task, linked, self._output)
                self._finish_wrongly(task, self._output, fault, fire)

    async def _breaks_off(self, fault: Fault, fire: Callable[[], None]) -> bool:
        """What happens after the first message; True where the stream ends as if all were well."""
        if fault.kind in ("stall", "unavailable-midway", "ends-early"):
            fire()
        if fault.kind == "stall":
            await asyncio.sleep(LONGEST_WAIT)
        if fault.kind == "unavailable-midway":
            await self._context.abort(grpc.StatusCode.UNAVAILABLE, "transport is closing")
        return fault.kind == "ends-early"

    def _spoil(self, task: CachedTask, fault: Fault, fire: Callable[[], None]) -> None:
        """Damages what lies in the cache."""
        spoil = {"corrupt-cache": self._cache.corrupt, "link-with-holes": self._cache.punch}.get(fault.kind)
        if spoil and fault.is_due and spoil(task, fault.amount):
            fire()

    async def _link(self, task: CachedTask, refused: int | None, fire: Callable[[], None]) -> bool:
        """Whether the file is linked at the output path; without force_hard_link a copy at the end will do."""
        if self._output is None:
            return False
        number = refused
        if refused is not None:
            fire()
        else:
            try:
                os.link(task.path, self._output)
                return True
            except OSError as exc:
                number = exc.errno or errno.EIO
        if self._download.force_hard_link or number == errno.EEXIST:
            text = f"{os.strerror(number or 0)} (os error {number})"
            await self._context.abort(grpc.StatusCode.INTERNAL, text)
        return False

    def _deliver(self, task: CachedTask, linked: bool, output: Path) -> None:
        """Copies what could not be linked; the link follows a cached file that was replaced meanwhile."""
        if not linked:
            shutil.copyfile(task.path, output)
        elif output.exists() and not output.samefile(task.path):
            output.unlink()
            os.link(task.path, output)

    def _finish_wrongly(self, task: CachedTask, output: Path, fault: Fault, fire: Callable[[], None]) -> None:
        """What is wrong with the file although the stream says that it is done."""
        data = bytearray(task.data)
        if not output.exists():
            return  # who asked has given up
        if fault.kind == "no-file":
            fire()
            output.unlink()
        elif fault.kind == "wrong-size" and data:
            fire()
            _put(output, bytes(data[: fault.amount % len(data)]))
        elif fault.kind == "flipped-bit" and data:
            fire()
            data[fault.amount // 8 % len(data)] ^= 1 << fault.amount % 8
            _put(output, bytes(data))

    def _started(self, task: CachedTask, fault: Fault, fire: Callable[[], None]) -> Any:
        size, task_id = task.size, self._task_id
        if fault.kind == "wrong-size-told":
            fire()
            size += 1 + fault.amount % 64
        if fault.kind == "other-task":
            fire()
            task_id = hashlib.sha256(f"{task_id}{fault.amount}".encode()).hexdigest()
        told = dfdaemon_pb2.DownloadTaskStartedResponse(
            content_length=size, response_header=task.headers, is_finished=task.is_finished
        )
        for number in range(task.piece_count):
            start, length = task.piece(number)
            told.pieces.add(number=number, offset=start, length=length)
        return dfdaemon_pb2.DownloadTaskResponse(task_id=task_id, download_task_started_response=told)

    def _piece(self, task: CachedTask, number: int, traffic: Any) -> Any:
        start, length = task.piece(number)
        piece = common_pb2.Piece(number=number, offset=start, length=length, traffic_type=traffic)
        told = dfdaemon_pb2.DownloadPieceFinishedResponse(piece=piece)
        return dfdaemon_pb2.DownloadTaskResponse(task_id=self._task_id, download_piece_finished_response=told)
