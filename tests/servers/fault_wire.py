"""Raw HTTP on sockets: requests, answers, and a listening port that can go away for a moment."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

LONGEST_WAIT = 10.0
"""Seconds that a silent server waits for its client to give up."""
_LINGER_RESET = struct.pack("ii", 1, 0)


@dataclass
class Request:
    """A request's head. `query` is as it was sent; header names are in small letters."""

    method: str
    target: str
    headers: dict[str, str]

    @property
    def path(self) -> str:
        return unquote(urlsplit(self.target).path)

    @property
    def query(self) -> str:
        return urlsplit(self.target).query

    @property
    def is_last(self) -> bool:
        """Whether the client wants the connection closed after the answer."""
        return self.headers.get("connection", "").lower() == "close"

    @property
    def range(self) -> tuple[int, int] | None:
        """First and last byte of the one range that was asked for; the last one may lie beyond the end."""
        unit, _, span = self.headers.get("range", "").partition("=")
        first, dash, last = span.partition("-")
        if unit != "bytes" or not dash or not first.isdecimal():
            return None
        return int(first), int(last) if last else 1 << 62


@dataclass
class Answer:
    """What a healthy server would send; faults are made by changing it or the way it is written."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    has_body: bool = True

    def encode_head(self) -> bytes:
        fields = {"Content-Length": str(len(self.body)), **self.headers}
        lines = [f"HTTP/1.1 {self.status} -", *(f"{name}: {value}" for name, value in fields.items() if value)]
        return "\r\n".join((*lines, "", "")).encode("latin-1")

    def encode(self) -> bytes:
        return self.encode_head() + (self.body if self.has_body else b"")


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    """The next request on a connection, None where it ended. No request of ours has a body."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return None
    first, *lines = head.split("\r\n")
    method, target, _ = first.split(" ", 2)
    pairs = (line.partition(":") for line in lines if line)
    return Request(method, target, {name.strip().lower(): value.strip() for name, _, value in pairs})


class Listener:
    """A listening port that can be closed for a moment and be opened again as the same port.

    `handle(reader, writer)` serves a connection to its end. A second socket holds the port while nobody listens, so
    that connections are refused and no other program gets it. `swallowed` counts clients that took an endless body.
    """

    def __init__(self, handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> None:
        self._handle = handle
        self._guard = _bound(0)
        self.port: int = self._guard.getsockname()[1]
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reopening: asyncio.TimerHandle | None = None
        self._opening: asyncio.Task[None] | None = None
        self.swallowed = 0

    @property
    def connections(self) -> int:
        """Connections that their clients have not closed."""
        return len(self._writers)

    async def open(self) -> None:
        listening = _bound(self.port)
        listening.listen(128)
        self._server = await asyncio.start_server(self._accept, sock=listening)

    def die(self, seconds: float) -> None:
        """Resets every connection and refuses new ones for a while."""
        self._stop_listening()
        for writer in list(self._writers):
            reset(writer)
        if self._reopening is None:
            self._reopening = asyncio.get_running_loop().call_later(seconds, self._reopen)

    def _reopen(self) -> None:
        self._reopening = None
        self._opening = asyncio.ensure_future(self.open())

    async def revive(self) -> None:
        """Listens again at once, if it does not."""
        if self._reopening is not None:
            self._reopening.cancel()
            self._reopen()
        if self._opening is not None:
            await self._opening

    async def close(self) -> None:
        await self.revive()
        self._stop_listening()
        self._guard.close()
        await asyncio.sleep(0)  # a connection that was accepted just now has a task that has not begun
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            await self._handle(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # the client went away, or the server closes
        finally:
            writer.close()
            with suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()
            self._writers.discard(writer)
            self._tasks.discard(task)


def _bound(port: int) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind(("127.0.0.1", port))
    made.setblocking(False)
    return made


def reset(writer: asyncio.StreamWriter) -> None:
    """Ends the connection with RST instead of FIN."""
    connection: socket.socket | None = writer.get_extra_info("socket")
    if connection is not None:
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    writer.transport.abort()


async def wait_until_given_up(reader: asyncio.StreamReader) -> None:
    """Says nothing until the client closes the connection."""
    with suppress(OSError, asyncio.TimeoutError):
        await asyncio.wait_for(reader.read(), LONGEST_WAIT)
