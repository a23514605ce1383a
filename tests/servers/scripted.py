"""An HTTP server whose every answer a function of the test chooses: of the right ones, or bent in one place."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.servers.listening import Listening

ETAG = '"etag"'


@dataclass(frozen=True)
class Asked:
    """A request: its target as sent, its headers by their names in small letters."""

    target: str
    headers: dict[str, str]

    @property
    def range(self) -> tuple[int, int] | None:
        """First and last byte of the range asked for."""
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
        return (int(found[1]), int(found[2])) if found else None


@dataclass
class Reply:
    """An answer. `length` is the Content-Length told: None for the right one, -1 for none.

    `cut` ends the body early, after `hold`: a client's library may drop what it has not handed on when that happens.
    `rest` goes over the wire after `hold`, as it is.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    chunked: bool = False
    cut: int | None = None
    hold: Callable[[], Awaitable[object]] | None = None
    rest: bytes = b""

    def raw(self) -> bytes:
        """What goes over the wire."""
        fields = {"Connection": "close", **self.headers}
        body = self.body
        if self.chunked:
            fields["Transfer-Encoding"] = "chunked"
            body = (b"%x\r\n%s\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
        elif self.length != -1:
            fields["Content-Length"] = str(len(self.body) if self.length is None else self.length)
        head = "\r\n".join(
            [f"HTTP/1.1 {self.status} -", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        )
        return head.encode("latin-1") + body[: self.cut]


Answer = Callable[[Asked], Reply]


def good_store(data: bytes, **headers: str) -> Answer:
    """Answers as a store does: ranges, the pinned version, nothing else; `X_Name=value` adds headers to a 200."""

    def answer(asked: Asked) -> Reply:
        if asked.headers.get("if-match") != ETAG:
            return Reply(412)
        if (wanted := asked.range) is None:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return Reply(200, data, {"ETag": ETAG, **named})
        first, last = wanted
        if last >= len(data):
            return Reply(416)
        said = f"bytes {first}-{last}/{len(data)}"
        return Reply(206, data[first : last + 1], {"ETag": ETAG, "Content-Range": said})

    return answer


class Scripted(Listening):
    """`async with Scripted(answer) as server`: `asked` are the requests so far, `extra` goes into every answer."""

    def __init__(self, answer: Answer, extra: dict[str, str] | None = None) -> None:
        super().__init__()
        self.answer = answer
        self._extra = extra or {}
        self.asked: list[Asked] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            request, *lines = head.splitlines()
            fields = (line.partition(": ") for line in lines if line)
            asked = Asked(request.split(" ")[1], {name.lower(): value for name, _, value in fields})
            self.asked.append(asked)
            reply = self.answer(asked)
            reply.headers = {**self._extra, **reply.headers}
            writer.write(reply.raw())
            await writer.drain()
            if reply.hold:
                await reply.hold()
            writer.write(reply.rest)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has seen enough
        finally:
            writer.close()
