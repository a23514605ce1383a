"""Servers that answer what a test gives them: for what no healthy store, proxy or dfdaemon can be made to say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from dragonfly_api import common_pb2, dfdaemon_pb2, dfdaemon_pb2_grpc
from google.protobuf import empty_pb2

from tests.servers.listening import Listening


def http_answer(status: int, body: bytes = b"", **headers: str) -> bytes:
    """A whole answer; `Content_Range` becomes Content-Range."""
    fields = {"Content-Length": str(len(body)), "Connection": "close"}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"HTTP/1.1 {status} -", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join((*lines, "", "")).encode() + body


class CannedHttp(Listening):
    """`async with CannedHttp(answer, …) as server`: one answer a request, the last one for ever; `heads` are kept."""

    def __init__(self, *answers: bytes) -> None:
        super().__init__()
        self._answers = list(answers)
        self.heads: list[str] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode("latin-1"))
            writer.write(self._answers.pop(0) if len(self._answers) > 1 else self._answers[0])
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has seen enough
        finally:
            writer.close()

    def headers(self, number: int = 0) -> dict[str, str]:
        """A request's headers, their names in small letters."""
        return {
            name.lower(): value for name, _, value in (line.partition(": ") for line in self.heads[number].splitlines())
        }


Answer = Callable[[Any, Any], AsyncIterator[dfdaemon_pb2.DownloadTaskResponse]]


class CannedDfdaemon(dfdaemon_pb2_grpc.DfdaemonDownloadServicer):
    """dfdaemon's download service: `answer` is the stream; `asked` are the downloads that it was asked for.

    It has the tasks `here`. Without a `scheduler` it deletes none of them in the cluster, and so none at all.
    """

    def __init__(self, answer: Answer, here: Iterable[str] = (), *, scheduler: bool = True) -> None:
        self._answer = answer
        self._scheduler = scheduler
        self.here = set(here)
        self.asked: list[common_pb2.Download] = []
        self.cancelled = asyncio.Event()

    async def StatLocalTask(self, request: Any, context: Any) -> Any:  # noqa: N802
        """A task of `here` is finished."""
        if request.task_id not in self.here:
            await context.abort(grpc.StatusCode.NOT_FOUND, "not found")
        answer = dfdaemon_pb2.StatLocalTaskResponse(task_id=request.task_id)
        answer.finished_at.GetCurrentTime()
        return answer

    async def DeleteTask(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Here and at the scheduler."""
        if not self._scheduler:
            await context.abort(grpc.StatusCode.INTERNAL, "available schedulers not found")
        self.here.discard(request.task_id)
        return empty_pb2.Empty()

    async def DeleteLocalTask(self, request: Any, _context: Any) -> Any:  # noqa: N802
        """Here."""
        self.here.discard(request.task_id)
        return empty_pb2.Empty()

    async def StatTask(self, _request: Any, context: Any) -> None:  # noqa: N802
        """Nor elsewhere."""
        await context.abort(grpc.StatusCode.NOT_FOUND, "not found")

    async def DownloadTask(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Gives the canned stream."""
        self.asked.append(request.download)
        try:
            async for response in self._answer(request.download, context):
                yield response
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


@asynccontextmanager
async def serving(service: CannedDfdaemon, socket: Path) -> AsyncIterator[CannedDfdaemon]:
    """The service on a unix socket."""
    server = grpc.aio.server()
    dfdaemon_pb2_grpc.add_DfdaemonDownloadServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    try:
        yield service
    finally:
        await server.stop(None)
