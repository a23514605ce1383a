"""`dfdaemon`: gRPC DownloadTask over the peer's unix socket; dfdaemon hard-links or writes the file itself."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import grpc
from dragonfly_api import common_pb2, dfdaemon_pb2

from dfagent._compat import timeout
from dfagent.errors import DamagedTask, DfagentError, NoSpace, PeerUnavailable, Stalled, Truncated
from dfagent.transports.dfdaemon_client import DfdaemonClient, has_no_room, link_error, peer_error
from dfagent.transports.options import RequestOptions, Timeouts, check_task_id
from dfagent.transports.traffic import PieceCount, source_of
from dfagent.types import Fetched, FetchRequest, SignedUrl, Traffic


class DfdaemonTransport:
    """Asks the node's peer for the object as a task.

    The file that appears at the output path may be the cache's inode: it is complete only when the stream ends, and
    it is renamed or unlinked, never written. `map_path` turns our paths into those of dfdaemon's file system. With
    `force_hard_link` dfdaemon must link: where it can't, `NoHardLink` comes before any bytes are fetched. Without, it
    copies then.
    """

    name = "dfdaemon"

    def __init__(
        self,
        socket: str,
        options: RequestOptions,
        timeouts: Timeouts,
        map_path: Callable[[Path], Path] = lambda p: p,
        *,
        force_hard_link: bool = False,
    ) -> None:
        self._client = DfdaemonClient(socket, timeouts)
        self._options = options
        self._timeouts = timeouts
        self._map_path = map_path
        self._force_hard_link = force_hard_link
        self._distrusted: set[str] = set()

    async def aclose(self) -> None:
        await self._client.aclose()

    async def is_here(self, task_id: str) -> bool:
        """Whether this node has the whole task; False where dfdaemon can't be asked."""
        return await self._client.is_here(task_id)

    async def knows(self, task_id: str) -> bool | None:
        """As `is_here`, but None where dfdaemon can't be asked."""
        return await self._client.knows(task_id)

    async def discard(self, task_id: str) -> bool:
        """Deletes the task from this node's cache; tells whether it is gone, False where dfdaemon can't be asked.

        Files that dfdaemon linked for us keep their bytes. The next download of the task goes to the origin: parents
        may have the same wrong bytes, and then dfdaemon's own checksums of them agree.
        """
        self._distrusted.add(task_id)
        return await self._client.discard(task_id)

    async def fetch(self, request: FetchRequest, folder: Path | None) -> Fetched:
        known_before = await self._client.task_state(request.task.id)
        started = time.monotonic()
        signed = await request.sign()
        signed_at = time.monotonic()
        # A name of its own for every attempt: dfdaemon may still write to the path of one that we gave up.
        path = folder / f"{request.task.id[:32]}-{uuid.uuid4().hex[:8]}.dfdaemon.partial" if folder else None
        try:
            pieces = await self._download(request, self._message(request, signed, path), folder)
            if path:
                await asyncio.to_thread(_check_file, path, request)
        except BaseException:
            if path:
                # The first error counts, whatever else is wrong with the folder.
                with suppress(OSError):
                    path.unlink(missing_ok=True)
            raise
        self._distrusted.discard(request.task.id)
        request.on_progress(request.entry.size - pieces.total)
        return Fetched(
            path=path,
            transport=self.name,
            source=source_of(known_before, pieces),
            traffic=pieces.traffic,
            sign_seconds=signed_at - started,
            fetch_seconds=time.monotonic() - signed_at,
        )

    async def _download(
        self, request: FetchRequest, message: dfdaemon_pb2.DownloadTaskRequest, folder: Path | None
    ) -> PieceCount:
        """Reads the stream to its end; only then are all bytes there."""
        stream = self._client.stub().DownloadTask(message)
        pieces = PieceCount()
        heard, size = False, request.entry.size
        try:
            while True:
                async with timeout(self._timeouts.stall):
                    response = await stream.read()
                if response is grpc.aio.EOF:
                    break
                heard = True
                check_task_id(request, response.task_id)
                if response.WhichOneof("response") == "download_task_started_response":
                    size = response.download_task_started_response.content_length
                else:
                    _count(response.download_piece_finished_response.piece, pieces, request)
        except asyncio.TimeoutError as exc:
            raise Stalled(
                f"{request.label}: no word from dfdaemon for {self._timeouts.stall:g} s",
                hint="the origin or the parent peer is stuck; --stall-timeout sets how long to wait",
            ) from exc
        except grpc.aio.AioRpcError as exc:
            raise await self._error(request, exc, heard, folder) from None
        finally:
            stream.cancel()
        # Not before: dfdaemon may still make a file for a download that we gave up.
        if size != request.entry.size:
            raise DamagedTask(f"{request.label}: dfdaemon has {size} bytes of it, {request.entry.size} were listed")
        # A stream that ends well is not enough: one whose task in dfdaemon panicked does so, too, and the file that was
        # linked has its full size from the start.
        if pieces.total != size and not await self._client.is_here(request.task.id):
            raise Truncated(f"{request.label}: dfdaemon ended after {pieces.total} of {size} bytes")
        return pieces

    async def _error(
        self, request: FetchRequest, exc: grpc.aio.AioRpcError, heard: bool, folder: Path | None
    ) -> DfagentError:
        if folder and (unlinked := link_error(request.label, exc, forced=self._force_hard_link and not heard)):
            return unlinked
        # dfdaemon does not say whose disk is full: its own, or the one that it copies to for us.
        if folder and has_no_room(exc) and await asyncio.to_thread(_is_full, folder, request.entry.size):
            return NoSpace(
                f"{request.label}: no room for {request.entry.size} bytes in {folder}",
                hint="make room where the model folder lies",
            )
        return peer_error(request.label, exc, heard)

    def _message(self, request: FetchRequest, signed: SignedUrl, path: Path | None) -> dfdaemon_pb2.DownloadTaskRequest:
        options = self._options
        download = common_pb2.Download(
            url=signed.url,
            type=common_pb2.STANDARD,
            request_header=options.origin_headers(request, signed),
            filtered_query_params=options.filters_for(signed),
            content_for_calculating_task_id=request.task.content,
            need_back_to_source=request.task.id in self._distrusted,
        )
        if path:
            download.output_path = str(self._map_path(path))
            download.force_hard_link = self._force_hard_link
        if options.tag:
            download.tag = options.tag
        if options.application:
            download.application = options.application
        if options.priority is not None:
            download.priority = common_pb2.Priority.ValueType(options.priority)
        if options.piece_length is not None:
            download.piece_length = options.piece_length
        return dfdaemon_pb2.DownloadTaskRequest(download=download)


def _count(piece: common_pb2.Piece, pieces: PieceCount, request: FetchRequest) -> None:
    """Counts a finished piece. The started message lists pieces as well, but there the traffic type is always 0."""
    traffic = {
        common_pb2.BACK_TO_SOURCE: Traffic(origin=piece.length),
        common_pb2.REMOTE_PEER: Traffic(remote_peer=piece.length),
        common_pb2.LOCAL_PEER: Traffic(local_peer=piece.length),
    }.get(piece.traffic_type, Traffic())
    if pieces.add(piece.number, traffic):
        request.on_progress(piece.length)


def _is_full(folder: Path, size: int) -> bool:
    return shutil.disk_usage(folder).free < size


def _check_file(path: Path, request: FetchRequest) -> None:
    """The finished file has to be where we asked for it, and of the object's size."""
    try:
        size = os.stat(path, follow_symlinks=False).st_size
    except FileNotFoundError as exc:
        raise PeerUnavailable(
            f"{request.label}: dfdaemon says that it is done, but the file is not in {path.parent}",
            hint="does dfdaemon see this folder by another name? `path_map` in dragonfly_config.json tells which",
        ) from exc
    if size != request.entry.size:
        raise DamagedTask(f"{request.label}: dfdaemon delivered {size} of {request.entry.size} bytes")
