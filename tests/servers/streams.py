"""A gate before a gRPC server on a unix socket: a transparent pass-through that counts calls."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from types import TracebackType

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME_HEAD = 9
_HEADERS = 1
_CHUNK = 1 << 16


class CallCounter:
    """`async with CallCounter(socket, at) as counter`: listens at the path `at`; `calls` is how many came in.

    A client begins each call with one HEADERS frame (RFC 9113, 8.1), and gRPC's clients send no others.
    """

    def __init__(self, upstream: Path, at: Path) -> None:
        self._upstream = upstream
        self.at = at
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.calls = 0

    async def __aenter__(self) -> CallCounter:
        self._server = await asyncio.start_unix_server(self._accept, self.at)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.at.unlink(missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with suppress(OSError, asyncio.CancelledError):
            up_reader, up_writer = await asyncio.open_unix_connection(self._upstream)
            halves = [
                asyncio.create_task(_pass(reader, up_writer, _Frames(self))),
                asyncio.create_task(_pass(up_reader, writer, None)),
            ]
            try:
                await asyncio.wait(halves, return_when=asyncio.FIRST_COMPLETED)
            finally:
                up_writer.close()
                writer.close()
                for half in halves:
                    half.cancel()
                await asyncio.gather(*halves, return_exceptions=True)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, frames: _Frames | None) -> None:
    while data := await reader.read(_CHUNK):
        if frames:
            frames.look(data)
        writer.write(data)
        await writer.drain()


class _Frames:
    """Finds the frames of one client in the chunks that it sends."""

    def __init__(self, counter: CallCounter) -> None:
        self._counter = counter
        self._left = b""
        self._skip = len(_PREFACE)

    def look(self, data: bytes) -> None:
        data = self._left + data
        at = 0
        while True:
            skipped = min(self._skip, len(data) - at)
            at += skipped
            self._skip -= skipped
            if self._skip or len(data) - at < _FRAME_HEAD:
                break
            self._counter.calls += data[at + 3] == _HEADERS
            self._skip = _FRAME_HEAD + int.from_bytes(data[at : at + 3], "big")
        self._left = data[at:]
