"""The cache of a fault-injecting Dragonfly peer: whole tasks by their id, fetched from the origin piece by piece.

Like dfdaemon it asks for one byte first, to learn the size, takes as many bytes as each piece must have, and knows
nothing of checksums: what the origin gives wrongly lies in the cache until somebody deletes the task.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

_NOT_OF_THE_WHOLE = {"content-range", "content-length", "connection", "transfer-encoding"}


class BackendError(Exception):
    """The origin did not give the object; `status` is None where there was no answer at all."""

    def __init__(self, status: int | None, headers: dict[str, str] | None = None) -> None:
        super().__init__(f"backend error: {status}")
        self.status = status
        self.headers = headers or {}


class ShortPieceError(Exception):
    """The origin gave fewer bytes than the piece must have."""


@dataclass(frozen=True)
class Stamp:
    """What changes when somebody writes to a file, replaces it, or changes its mode."""

    inode: int
    mode: int
    written: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        told = path.stat()
        return cls(told.st_ino, told.st_mode, told.st_mtime_ns)


@dataclass
class CachedTask:
    """One task: `headers` are the origin's, `pieces` the numbers of those that are here.

    `data` is what the peer itself wrote into its file. After a failure the origin is asked for the size again, but as
    with dfdaemon the file stays as long as it was made.
    """

    id: str
    path: Path
    size: int
    headers: dict[str, str]
    piece_length: int
    pieces: set[int] = field(default_factory=set)
    data: bytearray = field(default_factory=bytearray)
    stamp: Stamp | None = None
    failed: bool = False

    @property
    def piece_count(self) -> int:
        return -(-self.size // self.piece_length)

    @property
    def is_finished(self) -> bool:
        return len(self.pieces) == self.piece_count and not self.failed

    def piece(self, number: int) -> tuple[int, int]:
        """Offset and length of a piece."""
        start = number * self.piece_length
        return start, min(self.piece_length, self.size - start)


class PeerCache:
    """Tasks in `folder`; `piece_length` in bytes, `origin_timeout` in seconds.

    `damage` tells what others did to its files; `deleted` are the ids that the API deleted.
    """

    def __init__(self, folder: Path, piece_length: int = 256 << 10, origin_timeout: float = 5.0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._origin_timeout = origin_timeout
        self.folder = folder
        self.piece_length = piece_length
        self.tasks: dict[str, CachedTask] = {}
        self.deleted: list[str] = []
        self._locks: dict[str, asyncio.Lock] = {}
        self.client = OriginClient()

    def lock(self, task_id: str) -> asyncio.Lock:
        """One download of a task at a time; a second one then finds it here."""
        return self._locks.setdefault(task_id, asyncio.Lock())

    def finished(self, task_id: str) -> CachedTask | None:
        task = self.tasks.get(task_id)
        return task if task and task.is_finished else None

    async def begin(self, task_id: str, url: str, headers: dict[str, str]) -> CachedTask:
        """The task, known before or made now from what the origin says of its size."""
        known = self.tasks.get(task_id)
        if known is not None and not known.failed:
            return known
        answer = await self._ask(url, {**headers, "Range": "bytes=0-0"}, most=1)
        if answer.status == 416:
            answer = await self._ask(url, headers, most=0)
        if not 200 <= answer.status < 300:
            raise BackendError(answer.status, answer.headers)
        told = answer.headers.get("content-length", "")
        if answer.status == 206:
            told = answer.headers.get("content-range", "").rpartition("/")[2]
        if not told.isdecimal():
            raise BackendError(None)
        kept = {name: value for name, value in answer.headers.items() if name not in _NOT_OF_THE_WHOLE}
        task = CachedTask(task_id, self.folder / task_id, int(told), kept, self.piece_length)
        if known is not None:
            task.data, task.stamp = known.data, known.stamp
            task.pieces = {number for number in known.pieces if known.piece(number) == task.piece(number)}
        else:
            self._replace(task, bytes(task.size))
        self.tasks[task_id] = task
        return task

    async def missing_pieces(self, task: CachedTask, url: str, headers: dict[str, str]) -> AsyncIterator[int]:
        """Fetches the pieces that are not here, one after the other; yields each one's number once it is."""
        for number in range(task.piece_count):
            if number in task.pieces:
                continue
            start, length = task.piece(number)
            wanted = {**headers, "Range": f"bytes={start}-{start + length - 1}"}
            task.failed = True
            answer = await self._ask(url, wanted, most=length)
            if not 200 <= answer.status < 300:
                raise BackendError(answer.status, answer.headers)
            if len(answer.body) != length:
                raise ShortPieceError(f"expected {length} bytes, got {len(answer.body)}")
            task.failed = False
            self.write(task, start, answer.body)
            task.pieces.add(number)
            yield number

    async def _ask(self, url: str, headers: dict[str, str], most: int) -> OriginAnswer:
        try:
            return await asyncio.wait_for(self.client.get(url, headers, most), self._origin_timeout)
        except asyncio.TimeoutError as exc:
            raise BackendError(None) from exc

    def write(self, task: CachedTask, start: int, data: bytes) -> None:
        with task.path.open("r+b") as file:
            file.seek(start)
            file.write(data)
        task.data[start : start + len(data)] = data
        task.stamp = Stamp.of(task.path)

    def corrupt(self, task: CachedTask, amount: int) -> bool:
        """Flips one bit of the cached file, as a bad disk would; files that were linked from it before stay right."""
        if not task.size:
            return False
        data = bytearray(task.data)
        data[amount // 8 % len(data)] ^= 1 << amount % 8
        self._replace(task, bytes(data))
        return True

    def punch(self, task: CachedTask, amount: int) -> bool:
        """Makes a hole: the size stays, a part reads as zeros."""
        data = bytearray(task.data)
        start = amount % len(data) if data else 0
        if not any(data[start:]):
            return False
        data[start:] = bytes(len(data) - start)
        self._replace(task, bytes(data))
        return True

    def _replace(self, task: CachedTask, data: bytes) -> None:
        fresh = task.path.with_suffix(".new")
        fresh.write_bytes(data)
        os.replace(fresh, task.path)
        task.data[:] = data
        task.stamp = Stamp.of(task.path)

    def delete(self, task_id: str) -> bool:
        task = self.tasks.pop(task_id, None)
        if task is None:
            return False
        task.path.unlink(missing_ok=True)
        self.deleted.append(task_id)
        return True

    def damage(self) -> list[str]:
        """What somebody else did to the cache's files."""
        found = []
        for task in self.tasks.values():
            try:
                now, data = Stamp.of(task.path), task.path.read_bytes()
            except FileNotFoundError:
                found.append(f"{task.id[:12]} is gone")
                continue
            if now != task.stamp:
                found.append(f"{task.id[:12]} was changed: {task.stamp} is now {now}")
            if data != task.data:
                found.append(f"{task.id[:12]} has other bytes")
        known = {task.path.name for task in self.tasks.values()}
        found += [f"{path.name} was added" for path in self.folder.iterdir() if path.name not in known]
        return found

    def clear(self) -> None:
        self.tasks.clear()
        self.deleted.clear()
        self._locks.clear()
        for path in self.folder.iterdir():
            path.unlink()


@dataclass
class OriginAnswer:
    """An origin's answer as far as it was read; header names are in small letters."""

    status: int
    headers: dict[str, str]
    body: bytes


class OriginClient:
    """GETs to an origin over connections that are kept for the next one, as dfdaemon keeps them."""

    def __init__(self) -> None:
        self._idle: list[tuple[str, asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def get(self, url: str, headers: dict[str, str], most: int) -> OriginAnswer:
        """Reads at most so many bytes of the body; redirects are not followed. `BackendError` where no answer comes."""
        parts = urlsplit(url)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        fields = {"Host": parts.netloc, **headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        request = f"GET {target} HTTP/1.1\r\n{head}\r\n".encode("latin-1")
        for reader, writer in self._kept(parts.netloc):
            with suppress(OSError, asyncio.IncompleteReadError):
                return await self._exchange(parts.netloc, reader, writer, request, most)
        try:
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            return await self._exchange(parts.netloc, reader, writer, request, most)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as exc:
            raise BackendError(None) from exc

    def _kept(self, place: str) -> Iterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """One connection at most: a second one that died would be no accident."""
        for kept in self._idle:
            if kept[0] == place:
                self._idle.remove(kept)
                if not kept[1].at_eof() and not kept[2].is_closing():
                    yield kept[1], kept[2]
                return

    async def _exchange(
        self, place: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, most: int
    ) -> OriginAnswer:
        keep = False
        try:
            writer.write(request)
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            pairs = (line.partition(":") for line in lines[1:] if line)
            got = {name.strip().lower(): value.strip() for name, _, value in pairs}
            status, length = lines[0].split(" ")[1], got.get("content-length", "")
            if not status.isdecimal():
                raise BackendError(None)
            body = await _at_most(reader, min(most, int(length or most)))
            keep = length == str(len(body)) and got.get("connection") != "close"
            return OriginAnswer(int(status), got, body)
        finally:
            if keep:
                self._idle.append((place, reader, writer))
            else:
                writer.close()

    def close(self) -> None:
        """Closes the kept connections."""
        for _, _, writer in self._idle:
            writer.close()
        self._idle.clear()


async def _at_most(reader: asyncio.StreamReader, count: int) -> bytes:
    body = b""
    while len(body) < count:
        with suppress(ConnectionError):
            chunk = await reader.read(count - len(body))
            if chunk:
                body += chunk
                continue
        break
    return body


def origin_request_headers(headers: dict[str, str]) -> dict[str, str]:
    """Those of a request's headers that a peer passes on to the origin."""
    ours = ("x-dragonfly-", "proxy-", "host", "connection", "range")
    return {name: value for name, value in headers.items() if not name.lower().startswith(ours)}
